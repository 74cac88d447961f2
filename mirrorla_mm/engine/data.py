"""Data that a config names: whether they are there, and how they move."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from typing import Any

from mmengine.config import Config

from .errors import UserError

__all__ = ['DataError', 'check_data', 'move_data']


class DataError(UserError):
    """A file of a data set is missing or cannot be read.

    A worker process hands an error on with its whole traceback as the text; only the sentence is
    kept.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message.rsplit(f'{type(self).__name__}: ', 1)[-1].strip())


def check_data(cfg: Config, keys: Iterable[str]) -> None:
    """Make sure that the files and folders that a config names are there.

    Args:
        cfg (Config): The config of a run.
        keys (Iterable[str]): Its entries to look at, dataloaders and evaluators.

    Raises:
        DataError: If one is not, naming the first and all entries of the config to change.
    """
    absent = [found for key in keys for found in _absent(cfg.get(key) or {}, key)]
    if not absent:
        return
    root = cfg.get('data_root')
    if root and all(path.startswith(root) for _, path in absent):
        options = 'data_root=PATH'
    else:
        options = ' '.join(dict.fromkeys(f'{option}=PATH' for option, _ in absent))
    raise DataError(
        f'The data are not there: {absent[0][1]} does not exist. Put or link them there, or name '
        f'another place with --cfg-options {options}'
    )


def _absent(node: Any, key: str) -> Iterator[tuple[str, str]]:
    """Pairs of the entry to change and the path that it leads to, where nothing lies."""
    if isinstance(node, (list, tuple)):
        for index, item in enumerate(node):
            yield from _absent(item, f'{key}.{index}')
        return
    if not isinstance(node, dict):
        return
    for child in ('dataset', 'datasets', 'metrics'):
        yield from _absent(node.get(child), f'{key}.{child}')
    root = node.get('data_root') or ''
    entries = {'ann_file': node.get('ann_file'), **(node.get('data_prefix') or {})}
    for name, value in entries.items():
        # An empty prefix is the root itself, an empty ann_file means none.
        if not isinstance(value, str) or (not value and (name == 'ann_file' or not root)):
            continue
        path = os.path.join(root, value)
        if '://' not in path and not node.get('backend_args') and not os.path.exists(path):
            yield f'{key}.{"data_root" if root else name}', path


def move_data(node: Any, old: str, new: str) -> None:
    """Replace the leading folder of every path below a node of a config, in place.

    Args:
        node (Any): A dict or list.
        old (str): The folder now.
        new (str): The folder to be.
    """
    for key, value in list(node.items() if isinstance(node, dict) else enumerate(node)):
        if isinstance(value, (dict, list)):
            move_data(value, old, new)
        elif isinstance(value, str) and f'{value}/'.startswith(f'{old.rstrip("/")}/'):
            node[key] = os.path.join(new, value[len(old) :].lstrip('/'))
