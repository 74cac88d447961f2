"""A folder remembers the settings that its results were made with, and takes no others."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .atomic import whole_file
from .errors import UserError

__all__ = ['digest', 'keep_settings', 'refuse_others']


def digest(config: Mapping[str, Any]) -> str:
    """Sum up a config: 16 hexadecimal digits, the same wherever and in whatever order it stands."""
    content = json.dumps(config, sort_keys=True, default=str)
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def keep_settings(file: Path, settings: Mapping[str, Any], begun: bool) -> None:
    """Note settings beside what is made with them.

    Args:
        file (Path): The note, in the folder of the results.
        settings (Mapping[str, Any]): What the results depend on, for JSON.
        begun (bool): Whether the folder has results; without any, a note is replaced.

    Raises:
        UserError: If the folder has results of other settings, or nothing says of which.
    """
    if begun:
        noted = _read(file)
        if not noted:
            raise UserError(
                f'{file.parent} holds results, and {file.name} there does not say of which '
                'settings: name another folder to write to.'
            )
        refuse_others(noted, settings, file.parent)
        return
    with whole_file(file) as partial:
        partial.write_text(json.dumps(settings, indent=1, default=str) + '\n', encoding='utf-8')


def refuse_others(noted: Mapping[str, Any], wanted: Mapping[str, Any], place: Path) -> None:
    """Make sure that new results may stand beside earlier ones.

    Args:
        noted (Mapping[str, Any]): Settings of the earlier results, as JSON gave them.
        wanted (Mapping[str, Any]): Settings of the new ones.
        place (Path): Where the earlier ones lie, for the message.

    Raises:
        UserError: If a setting differs; it names all that do.
    """
    wanted = json.loads(json.dumps(wanted, default=str))  # as a note gives them back
    differing = [
        _difference(key, noted.get(key), wanted.get(key))
        for key in sorted(noted.keys() | wanted.keys())
        if noted.get(key) != wanted.get(key)
    ]
    if differing:
        raise UserError(
            f'{place} holds results of other settings ({"; ".join(differing)}): name another '
            'folder to write to.'
        )


def _read(file: Path) -> dict[str, Any]:
    """Settings of a note; none where it is missing or damaged."""
    try:
        found = json.loads(file.read_text(encoding='utf-8'))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _difference(key: str, noted: Any, wanted: Any) -> str:
    """Name a setting that differs, with both values where they are short."""
    text = f'{key} {noted}, not {wanted}'
    return text if len(text) <= 80 else key
