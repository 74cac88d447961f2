"""Parameters that the loss does not use, at which data parallelism stops."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator

from mmengine.runner import Runner

from .errors import UserError

__all__ = ['name_unused_parameters']

SHOWN = 5


@contextlib.contextmanager
def name_unused_parameters(runner: Runner) -> Iterator[None]:
    """Say which parameters the loss does not use, where data parallelism stops at them.

    torch gives their numbers alone, and only at the second iteration.

    Raises:
        UserError: In place of torch's error.
    """
    try:
        yield
    except RuntimeError as error:
        found = re.search(r'did not receive grad for rank \d+: ([\d ]+)', str(error))
        if found is None:
            raise
        model = runner.model.module
        names = [name for name, value in model.named_parameters() if value.requires_grad]
        unused = [names[int(number)] for number in found[1].split()]
        shown = ', '.join(unused[:SHOWN]) + (', ...' if len(unused) > SHOWN else '')
        raise UserError(
            f'{len(unused)} parameters have no part in the loss, and the processes wait for their '
            f'gradients: {shown}. Take them out of the model (out_indices of a backbone names the '
            'stages that the neck or head uses), or set --cfg-options find_unused_parameters=True.'
        ) from error
