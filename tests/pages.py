"""Contents of the fenced blocks of a Markdown page."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

_FENCE = re.compile(r'^```(\w+)\n(.*?)^```', flags=re.M | re.S)
_NAMED = re.compile(r'`(\w+\.py)`[^`]*\n\n```python\n(.*?)^```', flags=re.M | re.S)


def commands(page: Path) -> list[list[str]]:
    """The commands of a page's shell blocks, in order, as words."""
    blocks = _FENCE.findall(page.read_text(encoding='utf-8'))
    text = ''.join(text for kind, text in blocks if kind in ('shell', 'bash'))
    text = text.replace('\\\n', ' ')
    lines = re.sub(r'"[^"]*"', lambda quoted: quoted[0].replace('\n', ' '), text).splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def configs(page: Path) -> list[str]:
    """The blocks of Python on a page that are configs with a base."""
    found = _FENCE.findall(page.read_text(encoding='utf-8'))
    return [text for kind, text in found if kind == 'python' and text.startswith('_base_ = ')]


def named_files(page: Path) -> dict[str, str]:
    """Blocks of Python that the sentence before them gives a file name, by that name."""
    return dict(_NAMED.findall(page.read_text(encoding='utf-8')))
