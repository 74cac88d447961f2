"""Configs as the command lines read them."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config, DictAction

from .data import move_data
from .errors import UserError, hide_import_warnings

__all__ = ['ConfigOptions', 'preprocessor_of', 'read_config']


class ConfigOptions(DictAction):
    """mmengine's ``DictAction``, which names what is no pair, and what it cannot read."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        """Add pairs to the options, or end the program."""
        for pair in values:
            if '=' not in pair:
                parser.error(f"{option_string} takes KEY=VALUE pairs, and '{pair}' has no '='.")
            try:
                super().__call__(parser, namespace, [pair], option_string)
            except (AssertionError, RecursionError):
                parser.error(
                    f"{option_string} cannot read '{pair}': a value is a number, a word, or a list "
                    'or tuple of them such as [1,2] or (a,b).'
                )


def read_config(
    config: str | os.PathLike, options: dict | None = None, needs: Sequence[str] = ('model',)
) -> Config:
    """Read a config and override settings of it.

    The option ``data_root`` moves all data of the config; in OpenMMLab's configs it is a variable
    that was already put into every data set when the options are applied.

    Args:
        config (str | os.PathLike): A file or, as in a ``_base_``, one that a package brings along
            (``mmdet::pvt/retinanet_pvt-t_fpn_1x_coco.py``).
        options (dict, optional): Settings by dotted names.
        needs (Sequence[str]): Entries that it has to have, by dotted names.

    Raises:
        UserError: If there is no such config, it cannot be read or lacks an entry.
    """
    hide_import_warnings()
    of_a_package = '::' in str(config)
    if not of_a_package and not Path(config).is_file():
        raise UserError(f'The config {config} does not exist.')
    try:
        if of_a_package:
            cfg = Config.fromstring(f'_base_ = {str(config)!r}', '.py')
        else:
            cfg = Config.fromfile(config)
        options = options or {}
        if 'data_root' in options and cfg.get('data_root'):
            move_data(list(cfg.values()), cfg.data_root, options['data_root'])
        cfg.merge_from_dict(options)
    except Exception as error:
        raise UserError(f'The config {config} cannot be used: {error}') from error
    missing = [key for key in needs if not _entry(cfg, key)]
    if missing:
        raise UserError(
            f'The config {config} has no {", ".join(missing)}: it is of another kind, or a part of '
            'a config.'
        )
    return cfg


def _entry(cfg: Config, name: str) -> Any:
    found: Any = cfg
    for key in name.split('.'):
        found = found.get(key) if isinstance(found, (Config, dict)) else None
    return found


def preprocessor_of(cfg: Config) -> dict:
    """The ``data_preprocessor`` of a config's model, or the one beside it; empty without either."""
    return cfg.model.get('data_preprocessor') or cfg.get('data_preprocessor') or {}
