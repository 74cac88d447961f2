"""The result of a conversion, its report, and the error of a file that cannot be converted."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from torch import Tensor

from ..engine.errors import UserError

# Settings that the config decides: they choose among the outputs, not among the weights.
OUTPUTS = ('type', 'out_indices', 'out_norm')


Result = TypeVar('Result')


class ConversionError(UserError, ValueError):
    """The file is not what the converter reads; the message names what is wrong."""


@dataclass(frozen=True)
class Converted:
    """The weights of a file under our names.

    Attributes:
        state_dict (dict): Complete, for the model as a whole: the backbone's under ``backbone.``.
        backbone (dict): The backbone's config.
        new (tuple[str, ...]): Parameters that the file does not have, at their initial values.
        left_out (tuple[str, ...]): Entries of the file that the model has no use for.
        assumed (dict): Settings that the file does not tell, and their values.
    """

    state_dict: dict[str, Tensor]
    backbone: dict
    new: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    assumed: dict[str, Any] = field(default_factory=dict)


def blames_the_file(convert: Callable[..., Result]) -> Callable[..., Result]:
    """Decorate a converter: shapes that make no sense become a :class:`ConversionError`.

    A ``ValueError`` has a message for people already and stays as it is.
    """

    @functools.wraps(convert)
    def checked(*args, **kwargs) -> Result:
        try:
            return convert(*args, **kwargs)
        except ValueError:
            raise
        except Exception as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise ConversionError(
                f'The shapes in this file are those of no model that can be built ({reason}).'
            ) from error

    return checked


def report(converted: Converted, file: str | os.PathLike, settings: bool = True) -> str:
    """Say what was written, what in it is new, and how a config starts from it.

    Args:
        converted (Converted): What was written.
        file (str | os.PathLike): Where.
        settings (bool): Give the backbone's settings among the options. Not needed where the
            config that starts from the file is the one that it was made for.
    """
    lines = [
        f'{file}: {len(converted.state_dict)} entries for backbone={converted.backbone}',
        *_listed('new, at their initial values', converted.new),
        *_listed('of the source left out', converted.left_out),
    ]
    if converted.assumed:
        assumed = ', '.join(f'{name}={value}' for name, value in converted.assumed.items())
        lines.append(f'Assumed, as the file does not tell: {assumed}')
    backbone = converted.backbone if settings else {}
    if isinstance(backbone.get('arch'), dict):
        # On the command line a named arch cannot become a dict.
        lines.append(f'Needed in the config: arch={dict(_delete_=True, **backbone["arch"])}')
    options = _options({k: v for k, v in backbone.items() if k not in (*OUTPUTS, 'arch')})
    if isinstance(backbone.get('arch'), str):
        options.insert(0, f'model.backbone.arch={backbone["arch"]}')
    option = 'model.backbone.init_cfg'
    options += [f'{option}.type=Pretrained', f'{option}.checkpoint={file}']
    options += [f'{option}.prefix=backbone.']
    lines += ['To start from it:', '  --cfg-options ' + ' \\\n    '.join(options)]
    return '\n'.join(lines)


def _listed(what: str, names: tuple[str, ...]) -> list[str]:
    return [f'{len(names)} entries {what}', *(f'  {name}' for name in names)] if names else []


def _options(settings: dict, prefix: str = 'model.backbone.') -> list[str]:
    """Settings as the command line takes them."""
    options = []
    for name, value in settings.items():
        if isinstance(value, dict):
            options += _options(value, f'{prefix}{name}.')
        else:
            text = ','.join(map(str, value)) if isinstance(value, (tuple, list)) else value
            options.append(f'{prefix}{name}={text}')
    return options
