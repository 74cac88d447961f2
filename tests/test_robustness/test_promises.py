"""Every test that the table of promises names exists."""

import ast
import re
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]


def test_every_promise_names_a_test_that_exists():
    promised = re.findall(
        r'`(test_\w+/test_\w+\.py)::(\w+)`', (TESTS.parent / 'docs/reliability.md').read_text()
    )
    assert len(promised) > 40
    for file, name in promised:
        defined = {
            node.name
            for node in ast.parse((TESTS / file).read_text()).body
            if isinstance(node, ast.FunctionDef)
        }
        assert name in defined, f'{file}::{name}'
