"""Latency and memory of variants of one model, measured so that the comparison means something.

Variants take turns within one process, so that whatever else the machine does hits all alike, and
ratios are taken within each round. Peak memory is measured in a fresh process for each variant.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from multiprocessing import get_context
from pathlib import Path
from statistics import median, quantiles
from tempfile import TemporaryDirectory
from typing import TypeVar

import torch
from mmengine.registry import init_default_scope
from torch import Tensor, nn

from ..backbones import MirrorLA
from ..backbones.deploy import deploy
from ..backbones.options import arch_settings, stage_layout
from ..backbones.ravlt import ARCHS
from ..engine.configs import read_config
from ..engine.export import export, prepare
from ..registry import MODELS
from .reference_ravlt import ReferenceRAVLT

T = TypeVar('T')
Step = Callable[[Tensor], object]
WORDS = ('reference', 'eager', 'deploy', 'compile', 'amp', 'bf16', 'onnx')
# Upstream backbones to compare with, and the channels of their four stages.
PEERS = {
    'resnet50': (dict(type='mmdet.ResNet', depth=50), (256, 512, 1024, 2048)),
    'swin-t': (dict(type='mmdet.SwinTransformer'), (96, 192, 384, 768)),
    'pvtv2-b1': (
        dict(type='mmdet.PyramidVisionTransformerV2', embed_dims=64, num_layers=(2, 2, 2, 2)),
        (64, 128, 320, 512),
    ),
}
# Of each group a variant has one word at most: one model, one runtime or dtype.
EXCLUSIVE = ({'reference', *PEERS}, *({'onnx', word} for word in ('compile', 'amp', 'bf16')))


@dataclass(frozen=True)
class Subject:
    """Settings of a measurement.

    Args:
        arch (str): Architecture of the backbone, where there is no config.
        layout (str): Its layout.
        config (str, optional): Config of a detector or segmentor, measured as a whole.
        backbone_only (bool): Measure the config's backbone alone.
        train (bool): A training step of the backbone, forwards and backwards, instead of inference.
        batch (int): Images at a time.
        device (str): Device.
        threads (int): CPU threads.
        cpu_time (bool): Count processor time of all threads instead of the time that passes, for a
            CPU that others use too. Run it with ``OMP_WAIT_POLICY=passive``, or waiting counts.
    """

    arch: str = 't'
    layout: str = 'linear'
    config: str | None = None
    backbone_only: bool = False
    train: bool = False
    batch: int = 1
    device: str = 'cpu'
    threads: int = 2
    cpu_time: bool = False


@dataclass(frozen=True)
class Timing:
    """Latencies of one variant in seconds, a round each, and their ratios to the first variant."""

    variant: str
    shape: tuple[int, int]
    latencies: list[float]
    ratios: list[float]

    @property
    def latency(self) -> float:
        return median(self.latencies)

    def ratio(self) -> tuple[float, float, float]:
        """Median and quartiles of the ratios."""
        if len(self.ratios) < 2:
            return (self.ratios[0],) * 3
        low, middle, high = quantiles(self.ratios, n=4, method='inclusive')
        return middle, low, high


def parse_variant(text: str) -> set[str]:
    """The words of a variant such as ``'deploy+compile'``.

    Raises:
        ValueError: If a word is unknown, or words exclude each other.
    """
    words = set(text.split('+'))
    if words - {*WORDS, *PEERS}:
        known = ', '.join((*WORDS, *PEERS))
        raise ValueError(f"Unknown variant '{text}': join words of {known} by '+'.")
    for group in EXCLUSIVE:
        if len(words & group) > 1:
            both = ' and '.join(sorted(words & group))
            raise ValueError(f"Variant '{text}' joins {both}, which exclude each other.")
    return words


def with_peers(variants: list[str], peers: list[str]) -> list[str]:
    """The variants and the peers beside them, through onnxruntime too where a variant is."""
    through_onnx = any('onnx' in parse_variant(variant) for variant in variants)
    return [*variants, *peers, *(f'{peer}+onnx' for peer in peers if through_onnx)]


def measure_latency(
    subject: Subject, variants: list[str], shape: tuple[int, int], rounds: int
) -> list[Timing]:
    """Time variants in turn, after two rounds of warm-up; the first is what ratios refer to."""
    torch.set_num_threads(subject.threads)
    steps = [build_step(subject, variant) for variant in variants]
    inputs = images(subject, shape)
    for step in steps * 2:
        step(inputs)
    clock = time.process_time if subject.cpu_time else time.perf_counter
    latencies: list[list[float]] = [[] for _ in steps]
    for _ in range(rounds):
        for step, times in zip(steps, latencies):
            times.append(elapsed(partial(step, inputs), subject.device, clock))
    return [
        Timing(variant, shape, times, [t / first for t, first in zip(times, latencies[0])])
        for variant, times in zip(variants, latencies)
    ]


def measure_memory(subject: Subject, variant: str, shape: tuple[int, int]) -> tuple[float, float]:
    """Peak memory of one step in a process of its own.

    Returns:
        tuple[float, float]: MiB that the step takes on top of the loaded model and its input, and
        MiB of the whole process at its peak (on a GPU: of all tensors).
    """
    # What is exported is exported here: the exporter's own memory stays out.
    return in_fresh_process(_peak_memory, subject, step_builder(subject, variant), shape)


def in_fresh_process(function: Callable[..., T], *args: object) -> T:
    """Call a function in a new process, where nothing that ran before has left its traces.

    Its name, arguments and result, or the exception that it raises, are pickled.
    """
    with ProcessPoolExecutor(1, mp_context=get_context('spawn')) as pool:
        return pool.submit(function, *args).result()


def _peak_memory(
    subject: Subject, build: Callable[[], Step], shape: tuple[int, int]
) -> tuple[float, float]:
    torch.set_num_threads(subject.threads)
    step = build()
    inputs = images(subject, shape)
    step(images(subject, (64, 64)))  # What libraries allocate once.
    if subject.device == 'cuda':
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step(inputs)
        peak = torch.cuda.max_memory_allocated()
    else:
        # Linux: reset the high-water mark of the resident set.
        Path('/proc/self/clear_refs').write_text('5')
        before = _resident_bytes('VmRSS')
        step(inputs)
        peak = _resident_bytes('VmHWM')
    return (peak - before) / 2**20, peak / 2**20


def _resident_bytes(field: str) -> int:
    for line in Path('/proc/self/status').read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f'/proc/self/status lacks {field}: memory is measured on Linux only.')


def elapsed(
    run: Callable[[], object],
    device: torch.device | str,
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """Time of one call in seconds: of what it started on a GPU, and of nothing before it."""
    _finish(device)
    start = clock()
    run()
    _finish(device)
    return clock() - start


def _finish(device: torch.device | str) -> None:
    """Wait for what was started on a GPU."""
    if torch.device(device).type == 'cuda':
        torch.cuda.synchronize(device)


def images(subject: Subject, shape: tuple[int, int]) -> Tensor:
    """A batch of noise."""
    return torch.rand(subject.batch, 3, *shape, device=subject.device)


def build_step(subject: Subject, variant: str) -> Step:
    """A function of a batch of images that runs one variant once."""
    return step_builder(subject, variant)()


def step_builder(subject: Subject, variant: str) -> Callable[[], Step]:
    """What makes the step of a variant, in this process or, pickled, in another."""
    words = parse_variant(variant)
    if 'onnx' in words:
        return partial(exported_step, exported_file(subject, variant), subject.threads)
    return partial(torch_step, subject, words)


def torch_step(subject: Subject, words: set[str]) -> Step:
    """A function of a batch of images that runs a model of torch once."""
    torch.manual_seed(0)
    model = build_model(subject, words).to(subject.device)
    model.train(subject.train)
    if words & {'deploy', 'bf16'}:
        deploy(model, 'bfloat16' if 'bf16' in words else None)
    run = torch.compile(model) if 'compile' in words else model
    whole = subject.config is not None and not subject.backbone_only
    autocast = torch.autocast(subject.device, torch.bfloat16, enabled='amp' in words)

    def infer(inputs: Tensor) -> object:
        more = (_samples(model, inputs), 'predict') if whole else ()
        with torch.inference_mode(), autocast:
            return run(inputs, *more)

    def train(inputs: Tensor) -> None:
        with autocast:
            loss = sum(y.float().square().mean() for y in run(inputs))
        loss.backward()
        model.zero_grad()  # Gradients are the step's memory, not the next one's start.

    return train if subject.train else infer


def exported_file(subject: Subject, variant: str) -> Path:
    """The model of a variant as an ONNX file for images of any size, written once."""
    key = f'{variant} of {subject}'
    if key not in _exports:
        torch.manual_seed(0)
        model = prepare(build_model(subject, parse_variant(variant)))
        file = Path(_folder().name, f'{len(_exports)}.onnx')
        export(model, file, 'onnx')
        _exports[key] = file
    return _exports[key]


_exports: dict[str, Path] = {}
_folder = cache(TemporaryDirectory)


def exported_step(file: Path, threads: int) -> Step:
    """A function of a batch of images that runs an exported model once, on onnxruntime.

    Of a detector that is its raw head maps: boxes are decoded by the application.
    """
    from onnxruntime import InferenceSession, SessionOptions

    options = SessionOptions()
    options.intra_op_num_threads = threads
    # Else its threads wait awake for a while, on the processors that the next variant runs on.
    options.add_session_config_entry('session.force_spinning_stop', '1')
    session = InferenceSession(str(file), options, providers=['CPUExecutionProvider'])
    (name,) = (node.name for node in session.get_inputs())
    return lambda inputs: session.run(None, {name: inputs.numpy()})


def build_model(subject: Subject, words: set[str]) -> nn.Module:
    """The model of a variant, with random weights."""
    peer, channels = next((PEERS[word] for word in words if word in PEERS), (None, None))
    if subject.config is None and peer is not None:
        init_default_scope('mirrorla_mm')
        return MODELS.build(peer)
    if subject.config is None:
        if 'reference' in words:
            return reference_backbone(subject.arch, subject.layout)
        return MirrorLA(subject.arch, subject.layout)
    cfg = read_config(subject.config)
    init_default_scope(cfg.get('default_scope', 'mirrorla_mm'))
    cfg.model.pop('init_cfg', None)
    cfg.model.backbone.init_cfg = None
    if peer is not None:
        # The same stages as ours: one more would give the head four times the work.
        stages = tuple(cfg.model.backbone.get('out_indices', range(len(channels))))
        cfg.model.backbone = dict(peer, out_indices=stages)
        if 'neck' in cfg.model:
            cfg.model.neck.in_channels = [channels[i] for i in stages]  # FPN takes no tuple
    model = MODELS.build(cfg.model)
    if 'reference' in words:
        backbone = cfg.model.backbone
        model.backbone = reference_backbone(
            backbone.get('arch', 't'), backbone.get('layout', 'hybrid')
        )
    return model.backbone if subject.backbone_only else model


def reference_backbone(arch: str | dict, layout: str) -> ReferenceRAVLT:
    """The yardstick of the same architecture."""
    settings = arch_settings(arch, ARCHS)
    shape = {key: settings[key] for key in ('embed_dims', 'depths', 'num_heads')}
    return ReferenceRAVLT(
        **shape,
        layout=stage_layout(layout, len(settings['depths'])),
        mlp_ratio=settings['mlp_ratio'],
        drop_path_rate=settings['drop_path_rate'],
    )


def _samples(model: nn.Module, images: Tensor) -> list:
    """Metadata that a detector or segmentor wants of each image."""
    if type(model).__module__.startswith('mmseg'):
        from mmseg.structures import SegDataSample as Sample
    else:
        from mmdet.structures import DetDataSample as Sample
    size = tuple(images.shape[-2:])
    keys = ('img_shape', 'ori_shape', 'pad_shape', 'batch_input_shape')
    meta = {**dict.fromkeys(keys, size), 'scale_factor': (1.0, 1.0)}
    return [Sample(metainfo=meta) for _ in images]
