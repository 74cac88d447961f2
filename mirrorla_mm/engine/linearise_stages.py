"""The stages of a linearisation: each is a training of its own, and leaves a file."""

from __future__ import annotations

import copy
import io
import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config, ConfigDict
from mmengine.dist import barrier, is_main_process
from mmengine.logging import print_log
from mmengine.model import is_model_wrapper
from mmengine.registry import MODELS as ROOT_MODELS
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from torch import Tensor, nn

from .amp import OUR_AMP, is_amp
from .atomic import whole_file
from .checkpoint_fit import CheckpointFitHook
from .configs import preprocessor_of
from .data import check_data
from .distributed import decided_by_first, join_processes
from .errors import UserError
from .launch import build_runner
from .linearise import layers_of, linear_config
from .linearise_model import (
    PREFIX,
    TARGETS,
    Checkpoint,
    Inputs,
    backbone_inputs,
    build_backbone,
    build_process,
    copy_weights,
    fill_backbone,
    layer_errors,
    read_checkpoint,
)
from .prepare import prepare_training
from .resuming import checkpoint_for_all, find_latest_checkpoint
from .settings import digest, file_digest, keep_settings
from .work_dir import hold_work_dir

__all__ = ['STEPS', 'Linearisation', 'named', 'shorten']

FINE_TUNED = 'fine-tuned'
STEPS = (*TARGETS, FINE_TUNED)
STATES = ('copied', *STEPS)
SETTINGS = 'settings.json'
RESULTS = 'results.json'
# Settings that say where a run takes place, not what it computes.
PLACES = ('work_dir', 'launcher', 'log_level', 'resume', 'experiment_name')


class Linearisation:
    """Make a trained model linear, stage by stage; what a work dir holds already is not repeated.

    The states of the model are ``teacher``, ``copied``, ``attention``, ``features`` and
    ``fine-tuned``; each but the first is a file of the work dir with that name.

    Args:
        cfg (Config): Of the trained model, with ``work_dir``.
        checkpoint (str): Its weights; those of the backbone alone are enough.
        attn (dict): ``type`` and options of the new attention.
        stages (Sequence[int]): Stages that get it, from 1.
        iters (Mapping[str, int]): Iterations of ``attention``, ``features`` and ``fine-tuned``; 0
            leaves a stage out.
        lrs (Mapping[str, float]): Learning rates of the first two.
        options (dict, optional): Of the new backbone, see :func:`.linear_config`.

    Raises:
        UserError: If the backbone cannot be linearised, the checkpoint is a URL, or the work dir
            holds another model's.
        CheckpointError: If the checkpoint does not fit.
    """

    def __init__(
        self,
        cfg: Config,
        checkpoint: str,
        attn: dict,
        stages: Sequence[int],
        iters: Mapping[str, int],
        lrs: Mapping[str, float],
        options: dict | None = None,
    ) -> None:
        if '://' in checkpoint:
            raise UserError(
                f'The checkpoint {checkpoint} is a URL, and the work dir notes a digest of a file: '
                'download it, and name the file.'
            )
        self.cfg = cfg
        self.checkpoint = checkpoint
        self.attn = attn
        self.options = options or {}
        self.stages = sorted(set(stages))
        self.iters = dict(iters)
        self.lrs = dict(lrs)
        self.work_dir = Path(cfg.work_dir)
        self.student = linear_config(cfg, attn, stages, options)
        init_default_scope(cfg.get('default_scope') or 'mirrorla_mm')
        join_processes(cfg)
        self.new_parameters = self._new_parameters()
        self._claim_work_dir()

    # --- States ---------------------------------------------------------------------------------

    def run(self) -> Path:
        """Go through all stages.

        Returns:
            Path: The file of the last.

        Raises:
            UserError: If the data of the config are not there or cannot be trusted.
        """
        file = self.copy()
        for target in TARGETS:
            if not self.iters[target]:
                continue
            if target == 'attention' and not self.new_parameters:
                print_log(
                    'The new attention has no parameters of its own: there is no attention '
                    'transfer.',
                    'current',
                )
                continue
            file = self.transfer(target, file)
        if self.iters[FINE_TUNED]:
            file = self.fine_tune(file)
        return file

    def states(self) -> dict[str, Path]:
        """Find the files of the states that there are.

        Returns:
            dict[str, Path]: By the name of the state, in order, ``teacher`` apart.
        """
        return {name: self.file(name) for name in STATES if self._is_there(self.file(name))}

    def file(self, state: str) -> Path:
        """The file of a state."""
        return self.work_dir / f'{state}.pth'

    def copy(self) -> Path:
        """Fill the new model with the weights that it shares with the old."""
        file = self.file('copied')
        if not self._is_there(file):
            teacher = self._teacher()
            with torch.random.fork_rng():
                torch.manual_seed((self.cfg.get('randomness') or {}).get('seed') or 0)
                student = build_backbone(self.student.model.backbone)
            copy_weights(teacher, student)
            self._save(student, file)
        return file

    def transfer(self, target: str, start: Path) -> Path:
        """Train the new layers to imitate the old, see :class:`.AttentionTransfer`.

        Args:
            target (str): ``'attention'`` or ``'features'``, the name of the state too.
            start (Path): The file of the state before.

        Returns:
            Path: The file of the state.
        """
        file = self.file(target)
        if self._is_there(file):
            return file
        runner = self._runner(self._transfer_config(target, start))
        runner.train()
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        self._save(model.student, file)
        return file

    def fine_tune(self, start: Path) -> Path:
        """Train the whole model on its task, by the config.

        Args:
            start (Path): The file of the state before.

        Returns:
            Path: The file of the state.
        """
        file = self.file(FINE_TUNED)
        if self._is_there(file):
            return file
        cfg = self.fine_tuning_config(start)
        self._runner(cfg).train()
        if is_main_process():
            # The last checkpoint holds what is tested: averages, where the config keeps some.
            last = read_checkpoint(str(find_latest_checkpoint(cfg.work_dir)))
            self._write(last.weights, file)
        barrier()
        return file

    def export(self, file: Path) -> tuple[Path, Path]:
        """Write the config and the checkpoint that the ordinary tools take.

        Args:
            file (Path): The file of a state.

        Returns:
            tuple[Path, Path]: ``linearised.py`` and ``linearised.pth`` of the work dir.
        """
        config, checkpoint = self.work_dir / 'linearised.py', self.work_dir / 'linearised.pth'
        cfg = copy.deepcopy(self.student)
        for key in ('work_dir', 'launcher'):
            cfg.pop(key, None)
        cfg.load_from = str(checkpoint)
        if is_main_process():
            with whole_file(checkpoint) as partial:
                partial.write_bytes(file.read_bytes())
            with whole_file(config) as partial:
                partial.write_text(cfg.pretty_text, encoding='utf-8')
        barrier()
        return config, checkpoint

    # --- Measurements ---------------------------------------------------------------------------

    def metrics(self, state: str) -> dict[str, float] | None:
        """Test a state by the config.

        Args:
            state (str): ``teacher`` or one of :meth:`states`.

        Returns:
            dict[str, float] | None: Scores by name; None without a test in the config, or while the
            head has no trained weights.

        Raises:
            UserError: If the test data are not there.
            CheckpointError: If the state's file does not fit.
        """
        if not self.cfg.get('test_evaluator') or (state != FINE_TUNED and not self.has_head):
            return None
        teacher = state == 'teacher'
        file = self.checkpoint if teacher else str(self.file(state))

        def test() -> dict[str, float]:
            cfg = copy.deepcopy(self.cfg if teacher else self.student)
            cfg.load_from, cfg.resume, cfg.log_level = file, False, 'WARNING'
            cfg.work_dir = str(self.work_dir / 'tests' / state)
            check_data(cfg, ('test_dataloader', 'test_evaluator'))
            runner = build_runner(named(cfg, f'test-{state}'))
            runner.register_hook(CheckpointFitHook(file))
            return {key: float(value) for key, value in runner.test().items()}

        return self._remembered(f'metrics of {state}', test)

    def errors(self, state: str, batches: Sequence[Inputs]) -> dict[str, float]:
        """Compare the new layers with the old ones.

        Args:
            state (str): One of :meth:`states`.
            batches (Sequence[tuple[Tensor, ...]]): From :meth:`inputs`.

        Returns:
            dict[str, float]: Squared error over power by layer, averaged over the batches.
        """

        def measure() -> dict[str, float]:
            teacher = self._teacher()
            student = build_backbone(self.student.model.backbone)
            fill_backbone(student, read_checkpoint(str(self.file(state))))
            teacher.eval()
            student.eval()
            layers = layers_of(student, self.stages)
            found = [
                layer_errors(teacher, student.requires_grad_(False), layers, batch)
                for batch in batches
            ]
            return {name: sum(each[name] for each in found) / len(found) for name in layers}

        return self._remembered(f'errors of {state}', measure)

    def inputs(self, batches: int = 4) -> list[Inputs]:
        """Inputs of the backbone for the first batches of the test data, or else of the training's.

        A diffusion model's noise is the same at each call.

        Args:
            batches (int): How many. Defaults to 4.

        Returns:
            list[tuple[Tensor, ...]]: One from :func:`.backbone_inputs` a batch.
        """
        loader = self.cfg.get('test_dataloader') or self.cfg.train_dataloader
        loader = Runner.build_dataloader(copy.deepcopy(loader), seed=0)
        preprocessor = ROOT_MODELS.build(self._preprocessor())
        process = build_process(self.cfg.model.get('process'))
        chosen = (preprocessor(data, False) for _, data in zip(range(batches), loader))
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return [
                backbone_inputs(process, data['inputs'].float(), data['data_samples'])
                for data in chosen
            ]

    @cached_property
    def has_head(self) -> bool:
        """Whether the checkpoint holds all parameters beyond the backbone, so it can be tested."""
        names = (
            name for name, _ in ROOT_MODELS.build(copy.deepcopy(self.cfg.model)).named_parameters()
        )
        rest = {name for name in names if not name.startswith(PREFIX)}
        return self.old.whole and rest <= self.old.weights.keys()

    @cached_property
    def old(self) -> Checkpoint:
        """The old model's weights, read once."""
        return read_checkpoint(self.checkpoint)

    # --- Parts ----------------------------------------------------------------------------------

    def _transfer_config(self, target: str, start: Path) -> Config:
        iters = self.iters[target]
        cfg = Config(
            dict(
                default_scope=self.cfg.get('default_scope'),
                custom_imports=self.cfg.get('custom_imports'),
                env_cfg=self.cfg.get('env_cfg') or {},
                launcher=self.cfg.get('launcher', 'none'),
                log_level=self.cfg.get('log_level', 'INFO'),
                randomness=self.cfg.get('randomness') or dict(seed=0),
                work_dir=str(self.work_dir / f'{target}-training'),
                model=dict(
                    type='mirrorla_mm.AttentionTransfer',
                    teacher=self.cfg.model.backbone.to_dict(),
                    student=self.student.model.backbone.to_dict(),
                    checkpoints=(self.checkpoint, str(start)),
                    stages=self.stages,
                    target=target,
                    process=self.cfg.model.get('process'),
                    data_preprocessor=self._preprocessor(),
                    # The default is that of DiffusionModel.
                    class_dropout=self.cfg.model.get('class_dropout', 0.1),
                ),
                train_dataloader=copy.deepcopy(self.cfg.train_dataloader),
                optim_wrapper=dict(
                    self._precision(),
                    optimizer=dict(type='AdamW', lr=self.lrs[target], weight_decay=0.0),
                ),
            )
        )
        return shorten(cfg, iters)

    def fine_tuning_config(self, start: Path) -> Config:
        """The user's config with the linear backbone, another start and few iterations.

        Args:
            start (Path): The file of the state before.
        """
        cfg = copy.deepcopy(self.student)
        cfg.load_from = str(start)
        cfg.work_dir = str(self.work_dir / f'{FINE_TUNED}-training')
        return shorten(cfg, self.iters[FINE_TUNED])

    def _precision(self) -> dict:
        """The optimizer's wrapper, with mixed precision where the config has it."""
        cfg = self.cfg.get('optim_wrapper') or {}
        if not is_amp(cfg.get('type')):
            return dict(type='OptimWrapper')
        options = {key: cfg[key] for key in ('dtype', 'loss_scale') if key in cfg}
        return dict(type=OUR_AMP, **options)

    @staticmethod
    def _is_there(file: Path) -> bool:
        """Whether the first process sees a file: all go the same way."""
        return decided_by_first(file.is_file)

    def _runner(self, cfg: Config) -> Runner:
        latest = checkpoint_for_all(cfg)
        cfg.resume = latest is not None
        if latest:
            cfg.load_from = latest
        check_data(cfg, ('train_dataloader',))
        prepare_training(cfg)
        return build_runner(named(cfg, Path(cfg.work_dir).name))

    def _preprocessor(self) -> dict:
        found = preprocessor_of(self.cfg)
        if not found:
            return dict(type='BaseDataPreprocessor')
        # As mmpretrain's own command line does.
        classifies = self.cfg.get('default_scope') == 'mmpretrain'
        return {**(dict(type='ClsDataPreprocessor') if classifies else {}), **found}

    def _teacher(self) -> nn.Module:
        teacher = build_backbone(self.cfg.model.backbone)
        fill_backbone(teacher, self.old)
        return teacher

    def _new_parameters(self) -> list[str]:
        return copy_weights(self._teacher(), build_backbone(self.student.model.backbone))

    def _save(self, backbone: nn.Module, file: Path) -> None:
        """Write the old model with another backbone."""
        if is_main_process():
            old = self.old.weights.items()
            rest = {key: value for key, value in old if not key.startswith(PREFIX)}
            own = {f'{PREFIX}{key}': value.cpu() for key, value in backbone.state_dict().items()}
            self._write({**own, **rest}, file)
        barrier()

    def _write(self, weights: Mapping[str, Tensor], file: Path) -> None:
        """Write weights with the names of the old model's classes."""
        meta = dict(dataset_meta=self.old.classes) if self.old.classes else {}
        content = io.BytesIO()
        torch.save(dict(meta=meta, state_dict=dict(weights)), content)
        with whole_file(file) as partial:
            partial.write_bytes(content.getvalue())

    def _claim_work_dir(self) -> None:
        """Refuse a folder whose files come from other settings, weights or data."""
        cfg = {key: value for key, value in self.cfg.to_dict().items() if key not in PLACES}
        settings = dict(
            weights=file_digest(self.checkpoint),
            config=digest(cfg),
            attn=self.attn,
            stages=self.stages,
            options=self.options,
            iters=self.iters,
            lrs=self.lrs,
        )

        def claim() -> None:
            made = (self.work_dir / RESULTS, *map(self.file, STATES))
            begun = any(file.exists() for file in made)
            hold_work_dir(self.work_dir)
            keep_settings(
                self.work_dir / SETTINGS, settings, begun, way_out='name another --work-dir'
            )

        decided_by_first(claim)

    def _remembered(self, key: str, measure: Any) -> dict[str, float]:
        """The result of an earlier measurement, else of one made now."""
        file = self.work_dir / RESULTS

        def noted() -> dict:
            return json.loads(file.read_text('utf-8')) if file.is_file() else {}

        results = decided_by_first(noted)
        if key not in results:
            results[key] = measure()
            if is_main_process():
                with whole_file(file) as partial:
                    partial.write_text(json.dumps(results, indent=1) + '\n', encoding='utf-8')
        return results[key]


def shorten(cfg: Config, iters: int) -> Config:
    """Make a config a training of so many iterations, with a rise and a cosine fall of its rate.

    Validation is left to the table at the end.

    Args:
        cfg (Config): Of a training; it is changed.
        iters (int): Iterations; a tenth of them is the rise.

    Returns:
        Config: The same.
    """
    cfg.train_cfg = ConfigDict(type='IterBasedTrainLoop', max_iters=iters)
    for key in ('val_dataloader', 'val_cfg', 'val_evaluator', 'test_dataloader', 'test_cfg'):
        cfg.pop(key, None)
    cfg.pop('test_evaluator', None)
    rise = iters // 10
    fall = ConfigDict(type='CosineAnnealingLR', by_epoch=False, begin=rise, end=iters, eta_min=0.0)
    cfg.param_scheduler = [dict(fall, T_max=iters - rise)]
    if rise:
        start = ConfigDict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=rise)
        cfg.param_scheduler = [start, *cfg.param_scheduler]
    cfg.log_processor = ConfigDict(type='LogProcessor', window_size=20, by_epoch=False)
    hooks = cfg.setdefault('default_hooks', ConfigDict())
    hooks['logger'] = ConfigDict(
        type='LoggerHook', interval=max(1, min(50, iters // 10)), log_metric_by_epoch=False
    )
    hooks['checkpoint'] = ConfigDict(
        type='mirrorla_mm.CheckpointHook',
        by_epoch=False,
        interval=max(1, min(1000, iters // 4)),
        max_keep_ckpts=1,
    )
    hooks.pop('visualization', None)
    return cfg


def named(cfg: Config, name: str) -> Config:
    """Give a run a name of its own: several share this process.

    Args:
        cfg (Config): With ``work_dir``; it is changed.
        name (str): Of the run.

    Returns:
        Config: The same.
    """
    folder = Path(cfg.work_dir)
    cfg.experiment_name = f'{folder.parent.name}-{name}'
    cfg.visualizer = ConfigDict(
        type='Visualizer', name=cfg.experiment_name, vis_backends=[dict(type='LocalVisBackend')]
    )
    return cfg
