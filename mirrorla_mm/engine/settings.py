"""A folder remembers the settings that its results were made with, and takes no others."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from types import FunctionType
from typing import Any

from .atomic import whole_file
from .errors import UserError

__all__ = ['digest', 'file_digest', 'keep_settings', 'refuse_others']


WAY_OUT = 'name another folder to write to'


def digest(config: Mapping[Any, Any]) -> str:
    """Sum up a config: 16 hexadecimal digits, the same wherever and in whatever order it stands."""
    content = json.dumps(_in_order(config), default=_named)
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def file_digest(file: str | Path) -> str:
    """Sum up a file: 16 hexadecimal digits.

    Raises:
        OSError: If it cannot be read.
    """
    return hashlib.sha256(Path(file).read_bytes()).hexdigest()[:16]


def keep_settings(
    file: Path,
    settings: Mapping[str, Any],
    begun: bool,
    agreed: bool = False,
    way_out: str = WAY_OUT,
) -> None:
    """Note settings beside what is made with them.

    Args:
        file (Path): The note, in the folder of the results.
        settings (Mapping[str, Any]): What the results depend on, for JSON.
        begun (bool): Whether the folder has results; without any, a note is replaced.
        agreed (bool): Whether the results themselves name these settings, so that a note that is
            missing may be written. Defaults to False.
        way_out (str): What the user can do about a refusal. Defaults to :data:`WAY_OUT`.

    Raises:
        UserError: If the folder has results of other settings, or nothing says of which.
    """
    if begun and (file.exists() or not agreed):
        noted = _read(file)
        if not noted:
            raise UserError(
                f'{file.parent} holds results, and {file.name} there does not say of which '
                f'settings: {way_out}.'
            )
        refuse_others(noted, settings, file.parent, way_out)
        return
    with whole_file(file) as partial:
        partial.write_text(json.dumps(settings, indent=1, default=_named) + '\n', encoding='utf-8')


def refuse_others(
    noted: Mapping[str, Any], wanted: Mapping[str, Any], place: Path, way_out: str = WAY_OUT
) -> None:
    """Make sure that new results may stand beside earlier ones.

    Args:
        noted (Mapping[str, Any]): Settings of the earlier results, as JSON gave them.
        wanted (Mapping[str, Any]): Settings of the new ones.
        place (Path): Where the earlier ones lie, for the message.
        way_out (str): What the user can do about a refusal. Defaults to :data:`WAY_OUT`.

    Raises:
        UserError: If a setting differs; it names all that do, or says that an earlier version noted
            other ones.
    """
    wanted = json.loads(json.dumps(wanted, default=_named))  # as a note gives them back
    if noted.keys() != wanted.keys():
        raise UserError(
            f'{place} was written by an earlier version, which noted other settings: {way_out}.'
        )
    differing = [
        _difference(key, noted[key], wanted[key])
        for key in sorted(noted)
        if noted[key] != wanted[key]
    ]
    if differing:
        raise UserError(
            f'{place} holds results of other settings ({"; ".join(differing)}): {way_out}.'
        )


def _read(file: Path) -> dict[str, Any]:
    """Settings of a note; none where it is missing or damaged."""
    try:
        found = json.loads(file.read_text(encoding='utf-8'))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _in_order(value: Any) -> Any:
    """Sort mappings by the text of their keys, which need not be of one type."""
    if isinstance(value, Mapping):
        return {str(key): _in_order(value[key]) for key in sorted(value, key=str)}
    if isinstance(value, (set, frozenset)):
        return sorted(map(str, value))
    return [_in_order(item) for item in value] if isinstance(value, (list, tuple)) else value


def _named(value: Any) -> str:
    """A function by its name, as its text would tell its address; all else by its text."""
    if isinstance(value, FunctionType):
        return f'{value.__module__}.{value.__qualname__}'
    return str(value)


def _difference(key: str, noted: Any, wanted: Any) -> str:
    """Name a setting that differs, with both values where they are short."""
    text = f'{key} {noted}, not {wanted}'
    return text if len(text) <= 80 else key
