"""Parameters and multiply-accumulates of a model, per component and in two conventions.

The paper's dense-prediction tables count convolution and linear *modules* alone. Its Tab. 6 counts
every product, those of attention included. One pass on the meta device, which computes shapes
alone, gives both in a second at any input size.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from mmengine.config import Config
from mmengine.model.utils import revert_sync_batchnorm
from mmengine.registry import MODELS, init_default_scope
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from ..engine.configs import preprocessor_of
from ..ops import use_backend

# Torch counts what its other devices run for softmax attention, and leaves out the CPU's.
aten = torch.ops.aten
FORMULAS = {
    **flop_registry,
    aten._scaled_dot_product_flash_attention_for_cpu: flop_registry[
        aten._scaled_dot_product_flash_attention
    ],
}
DENSE_HEADS = ('rpn_head', 'bbox_head', 'decode_head')


@dataclass(frozen=True)
class Complexity:
    """Size and cost of a component.

    Attributes:
        params (int): Parameters, trainable or not.
        layers (int): Multiply-accumulates of convolutions and linear layers.
        total (int): Multiply-accumulates of every matrix product, attention included.
    """

    params: int = 0
    layers: int = 0
    total: int = 0

    def __add__(self, other: Complexity) -> Complexity:
        return Complexity(
            self.params + other.params, self.layers + other.layers, self.total + other.total
        )


class MacCounter(TorchDispatchMode):
    """Counts multiply-accumulates of what runs within its ``with`` block.

    A product of a weight and an activation counts as a layer; a product of two activations is
    attention. Weights are parameters, buffers and whatever is computed from these alone, such as a
    projection with a reflection, or a convolution with the statistics of its norm folded into it.

    Args:
        model (nn.Module): Its parameters and buffers are the weights.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.layers = 0
        self.total = 0
        # By identity. They are held, because the id of a freed tensor may be given out again.
        self._weights = {id(x): x for x in (*model.parameters(), *model.buffers())}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: Any = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        inputs = [x for x in tree_leaves(args) if isinstance(x, Tensor)]
        is_weight = [id(x) in self._weights for x in inputs]
        if inputs and all(is_weight):
            self._weights.update((id(x), x) for x in tree_leaves(out) if isinstance(x, Tensor))
        if func._overloadpacket in FORMULAS:
            formula = FORMULAS[func._overloadpacket]
            macs = formula(*args, **(kwargs or {}), out_val=out) // 2
            self.total += macs
            # A convolution's factors come before its bias, those of all else after it.
            is_convolution = func._overloadpacket is aten.convolution
            first, second = is_weight[:2] if is_convolution else is_weight[-2:]
            if first != second:
                self.layers += macs
        return out


@contextmanager
def empty_parameters() -> Iterator[None]:
    """Build modules without memory or time for their parameters, which go to the meta device.

    ``torch.device('meta')`` would take everything there, and a constructor that computes with
    numbers, such as drop-path rates, fails.
    """
    register = nn.Module.register_parameter

    def register_empty(self: nn.Module, name: str, param: nn.Parameter | None) -> None:
        if param is not None:
            param = nn.Parameter(param.to('meta'), param.requires_grad)
        register(self, name, param)

    nn.Module.register_parameter = register_empty
    try:
        yield
    finally:
        nn.Module.register_parameter = register


def build_empty(cfg: Config) -> nn.Module:
    """Build the model of a config on the meta device, in evaluation mode."""
    init_default_scope(cfg.get('default_scope', 'mirrorla_mm'))
    with empty_parameters():
        model = MODELS.build(cfg.model)
    return revert_sync_batchnorm(model).to('meta').eval()


def default_shape(cfg: Config) -> tuple[int, int]:
    """Height and width that the tables of the field count a config at.

    That is 800x1280 for detection, the training crop for segmentation, what becomes 720x1280 for
    super-resolution, the latent for diffusion, 224x224 otherwise.
    """
    if cfg.get('default_scope') == 'mmdet':
        return 800, 1280
    if 'upscale' in cfg.model.backbone:
        scale = cfg.model.backbone.upscale
        return 720 // scale, 1280 // scale
    if 'input_size' in cfg.model.backbone:
        return (cfg.model.backbone.input_size,) * 2
    size = preprocessor_of(cfg).get('size')
    return tuple(size) if size else (224, 224)


def config_complexity(
    cfg: Config, shape: tuple[int, int], proposals: int = 1000, masks: int = 100
) -> dict[str, Complexity]:
    """:func:`model_complexity` of a config's model, which takes no memory to build."""
    return model_complexity(build_empty(cfg), shape, proposals, masks)


@torch.no_grad()
def model_complexity(
    model: nn.Module, shape: tuple[int, int], proposals: int = 1000, masks: int = 100
) -> dict[str, Complexity]:
    """Parameters and multiply-accumulates of inference on one image, per component.

    Post-processing and auxiliary heads cost nothing here; the latter's parameters are counted.

    Args:
        model (nn.Module): A detector of mmdet (one-stage, or two-stage with boxes and masks,
            cascaded or not), a segmentor of mmseg, a classifier of mmpretrain, a diffusion model
            or a backbone.
        shape (tuple[int, int]): Height and width of the image.
        proposals (int): Boxes that a two-stage detector classifies.
        masks (int): Boxes that it segments.

    Returns:
        dict[str, Complexity]: By component, in the order of the pass.
    """
    device = next(model.parameters()).device
    results: dict[str, Complexity] = {}

    def run(name: str, module: nn.Module, *inputs: Any) -> Any:
        # The reference backend: faster ones save products by other algebra.
        with use_backend('torch'), MacCounter(module) as counter:
            out = module(*inputs)
        cost = Complexity(_params(module), counter.layers, counter.total)
        results[name] = results.get(name, Complexity()) + cost
        return out

    image = torch.empty(1, 3, *shape, device=device)
    if not hasattr(model, 'backbone'):
        run('backbone', model, image)
        return results
    # A network of more than an image brings an example of its arguments.
    example = getattr(model.backbone, 'example', None)
    inputs = (image,) if example is None else example(shape, device)
    features = run('backbone', model.backbone, *inputs)
    if getattr(model, 'neck', None) is not None:
        features = run('neck', model.neck, features)
    if samples_places(model):
        run('transformer', Queries(model, shape), features)
    else:
        for name in DENSE_HEADS:
            if hasattr(model, name):
                run(name, getattr(model, name), features)
    if hasattr(model, 'roi_head'):
        _run_roi_head(run, model.roi_head, dict(bbox=proposals, mask=masks), device)
    if hasattr(model, 'head'):
        run('head', model.head, features)
    rest = _params(model) - sum(cost.params for cost in results.values())
    if rest:
        results['training only'] = Complexity(params=rest)
    return results


def total_complexity(parts: dict[str, Complexity]) -> Complexity:
    """The sum over the components."""
    return sum(parts.values(), Complexity())


def samples_places(model: nn.Module) -> bool:
    """Whether a model is of the DETR family, by its deformable attention.

    Shapes alone do not say what such a head computes: it reads the sizes of its maps from tensors.
    """
    return any(hasattr(module, 'sampling_offsets') for module in model.modules())


class Queries(nn.Module):
    """The transformer of Mask2Former (mmdet's or mmseg's) or DINO, as a function of the features.

    It takes memory, unlike the rest of what is counted: weights and features of zeros.

    Args:
        model (nn.Module): The whole model.
        shape (tuple[int, int]): Height and width of the image.
    """

    def __init__(self, model: nn.Module, shape: tuple[int, int]) -> None:
        super().__init__()
        head = getattr(model, 'panoptic_head', None) or getattr(model, 'decode_head', None)
        self.shape = shape
        self.masks = head is not None
        before = ('backbone', 'neck')
        parts = [part for name, part in model.named_children() if name not in before]
        self.parts = nn.ModuleList([head] if self.masks else parts)
        if not self.masks:
            self.level_embed = model.level_embed
        self.to_empty(device='cpu')
        for tensor in (*self.parameters(), *self.buffers()):
            tensor.data.zero_()
        if not self.masks:
            model.level_embed = self.level_embed
            self.forward_transformer = model.forward_transformer

    def forward(self, features: tuple[Tensor, ...]) -> None:
        """Run on zeros of the features' shapes."""
        features = [torch.zeros(feature.shape) for feature in features]
        if self.masks:
            self.parts[0](features, [])
            return
        from mmdet.structures import DetDataSample

        sample = DetDataSample(metainfo=dict(img_shape=self.shape, batch_input_shape=self.shape))
        found = self.forward_transformer(features, [sample])
        head = next(part for part in self.parts if hasattr(part, 'cls_branches'))
        head(**found)


def _run_roi_head(run: Any, roi_head: nn.Module, rois: dict[str, int], device: Any) -> None:
    for kind, number in rois.items():
        heads = _as_list(getattr(roi_head, f'{kind}_head', None))
        extractors = _as_list(getattr(roi_head, f'{kind}_roi_extractor', None))
        for head, extractor in zip(heads, extractors):
            size = extractor.roi_layers[0].output_size
            run(
                f'roi_head.{kind}',
                head,
                torch.empty(number, extractor.out_channels, *size, device=device),
            )


def _as_list(module: nn.Module | None) -> list[nn.Module]:
    if module is None:
        return []
    return list(module) if isinstance(module, nn.ModuleList) else [module]


def _params(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())
