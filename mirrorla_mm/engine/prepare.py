"""One call that gives a training all that this package has for its safety."""

from __future__ import annotations

from mmengine.config import Config
from mmengine.device import get_device
from mmengine.hooks import CheckpointHook as MMEngineCheckpointHook
from mmengine.runner import EpochBasedTrainLoop as MMEngineEpochBasedTrainLoop

from .amp import OUR_AMP, is_amp
from .bad_data import check_loading
from .reproducible import make_reproducible
from .resuming import checkpoint_for_all

__all__ = ['prepare_training']

CHECKPOINT_HOOK = 'mirrorla_mm.CheckpointHook'
EPOCH_LOOP = 'mirrorla_mm.EpochBasedTrainLoop'
HOOKS = ('mirrorla_mm.LostValidationHook', 'mirrorla_mm.FrozenNormHook', 'mirrorla_mm.WarmUpHook')


def prepare_training(cfg: Config, bad_data: str = 'refuse') -> None:
    """Let the training of a config survive interruptions and damaged data.

    Entries of the config are changed; outside of it, mmdet's data sets report the boxes they leave
    out. Hooks and loops of the user's own stay.

    - checkpoints appear complete or not at all, the work dir takes one training at a time, and the
      processes of a distributed run agree before they save or validate
      (:class:`.saving.CheckpointHook`);
    - a validation that was cut off is done after resuming, and so is the rest of an epoch
      (:mod:`.resuming`);
    - a resumed run draws the random numbers of an undisturbed one (:mod:`.reproducible`);
    - images and labels are checked where they are read (:mod:`.bad_data`);
    - batch norms that are frozen untrained are named (:mod:`.frozen_norms`), and so is a learning
      rate that rises for longer than the training lasts (:mod:`.warm_up`);
    - mixed precision runs on a CPU too (:mod:`.amp`).

    Args:
        cfg (Config): Of a training run, with ``work_dir``; ``resume`` is set if it resumes, from
            ``load_from`` or else from the first process's latest checkpoint that can be read.
        bad_data (str): ``'refuse'`` or ``'skip'`` what cannot be trusted.
    """
    hooks = cfg.setdefault('default_hooks', {})
    checkpoint = hooks.setdefault('checkpoint', {'type': 'CheckpointHook', 'interval': 1})
    if checkpoint and checkpoint.get('type') in ('CheckpointHook', MMEngineCheckpointHook):
        checkpoint['type'] = CHECKPOINT_HOOK
    loop = cfg.train_cfg
    if loop.get('by_epoch') or loop.get('type') in (
        'EpochBasedTrainLoop',
        MMEngineEpochBasedTrainLoop,
    ):
        loop.pop('by_epoch', None)
        loop['type'] = EPOCH_LOOP
    wrapper = cfg.get('optim_wrapper') or {}
    if is_amp(wrapper.get('type')) and get_device() == 'cpu':
        wrapper['type'] = OUR_AMP
    custom = cfg.get('custom_hooks') or []
    present = {hook.get('type') for hook in custom if isinstance(hook, dict)}
    cfg.custom_hooks = [*custom, *({'type': hook} for hook in HOOKS if hook not in present)]
    if cfg.get('resume') and not cfg.get('load_from'):
        cfg.load_from = checkpoint_for_all(cfg)
        cfg.resume = cfg.load_from is not None
    make_reproducible(cfg)
    check_loading(cfg, bad_data)
