"""A network and a process between noise and data, on mmengine's runner."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from mmengine.model import BaseModel
from mmengine.structures import BaseDataElement
from torch import Tensor, nn

from ..engine.data import DataError
from ..engine.errors import UserError
from ..registry import MODELS, register_model
from .dit import by

# Images in 0..255; of latents the mean is 0 and the standard deviation 1 / 0.18215.
PREPROCESSOR = dict(type='ImgDataPreprocessor', mean=(127.5,), std=(127.5,))


@register_model
class DiffusionModel(BaseModel):
    """Draws images or latents of a class.

    Args:
        backbone (dict): The network, such as :class:`~mirrorla_mm.diffusion.DiT`.
        process (dict): :class:`~mirrorla_mm.diffusion.DDPM` or
            :class:`~mirrorla_mm.diffusion.Interpolant`.
        class_dropout (float): Share of the samples that train without their class, which
            classifier-free guidance needs. Defaults to 0.1.
        test_cfg (dict, optional): ``guidance`` and ``guided_channels`` of :meth:`sample`.
        data_preprocessor (dict, optional): Scales the data, and back. Defaults to mmengine's, from
            0..255 to [-1, 1].
        init_cfg (dict, optional): Initialisation, see :class:`mmengine.model.BaseModule`.

    Raises:
        ValueError: If ``class_dropout`` is no share.
        UserError: If the guidance is no scale.
    """

    def __init__(
        self,
        backbone: dict,
        process: dict,
        class_dropout: float = 0.1,
        test_cfg: dict | None = None,
        data_preprocessor: dict | None = None,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(data_preprocessor or PREPROCESSOR, init_cfg)
        if not 0 <= class_dropout < 1:
            raise ValueError(f'class_dropout needs to lie in [0, 1), got {class_dropout}.')
        self.backbone = MODELS.build(backbone)
        self.process = MODELS.build(process)
        self.class_dropout = class_dropout
        self.data_preprocessor.register_forward_pre_hook(self._check_shapes)
        self.test_cfg = dict(test_cfg or {})
        check_guidance(self.test_cfg.get('guidance', 1.0))

    def forward(
        self,
        inputs: Tensor,
        data_samples: list[BaseDataElement] | None = None,
        mode: str = 'loss',
    ) -> dict[str, Tensor] | list[BaseDataElement]:
        """Learn from images, or draw some of the same classes.

        Args:
            inputs (Tensor): Scaled images or latents, shape (B, C, S, S).
            data_samples (list[BaseDataElement]): With ``gt_label``, an int each.
            mode (str): ``'loss'`` or ``'predict'``.

        Returns:
            dict | list[BaseDataElement]: The losses; or the samples with ``pred_img`` (C, S, S), in
            the scale of the data.

        Raises:
            DataError: If a class is out of range.
            UserError: If the data have another size than the network's.
            ValueError: If there is no such mode.
        """
        labels = self._labels(data_samples).to(inputs.device)
        if mode == 'loss':
            return self._loss(inputs, labels)
        if mode != 'predict':
            raise ValueError(f"Unknown mode '{mode}'; choose loss or predict.")
        images = self.sample(labels, lambda: torch.randn_like(inputs), **self.test_cfg)
        for sample, image in zip(data_samples, images):
            sample.pred_img = image
        return data_samples

    def _loss(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        nameless = torch.rand(labels.shape, device=x.device) < self.class_dropout
        labels = labels.masked_fill(nameless, self.backbone.num_classes)
        return self.process.loss(lambda x, t: self.backbone(x, t, labels), x)

    @torch.no_grad()
    def sample(
        self,
        labels: Tensor,
        draw: Callable[[], Tensor],
        guidance: float = 1.0,
        guided_channels: int | None = None,
    ) -> Tensor:
        """Draw images or latents.

        Args:
            labels (Tensor): Classes, shape (B,), int64.
            draw (Callable): Gives standard normal noise (B, C, S, S), another one at each call.
            guidance (float): Scale of classifier-free guidance; 1 is none. Defaults to 1.
            guided_channels (int, optional): Channels that are guided; DiT's and SiT's authors guide
                3 of 4. Defaults to all.

        Returns:
            Tensor: Shape (B, C, S, S), in the scale of the data: 0..255, not clamped, or a VAE's.

        Raises:
            UserError: If the guidance is negative or no number.
        """
        check_guidance(guidance)
        network = guided(
            self.backbone, labels, self.backbone.num_classes, guidance, guided_channels
        )
        scale = self.data_preprocessor
        return self.process.sample(network, draw) * scale.std + scale.mean

    def _check_shapes(self, preprocessor: nn.Module, args: tuple) -> None:
        """Name a sample that does not fit, before a batch pads it to the size of the others."""
        data = args[0]
        for image, sample in zip(data['inputs'], data['data_samples']):
            if tuple(image.shape) != self.backbone.in_shape:
                raise DataError(
                    f'{sample.get("img_path", "A sample")} is of the size {by(image.shape)}, and '
                    f'this model takes {by(self.backbone.in_shape)}: other data need another '
                    'model.backbone.in_channels or model.backbone.input_size.'
                )

    def _labels(self, data_samples: list[BaseDataElement]) -> Tensor:
        labels = torch.tensor([int(sample.gt_label) for sample in data_samples])
        for sample, label in zip(data_samples, labels.tolist()):
            if not 0 <= label < self.backbone.num_classes:
                where = sample.get('img_path', 'A sample')
                raise DataError(
                    f'{where} is of class {label}, and the model has the classes 0 to '
                    f'{self.backbone.num_classes - 1}: set model.backbone.num_classes.'
                )
        return labels


def guided(
    network: Callable[[Tensor, Tensor, Tensor], Tensor],
    labels: Tensor,
    nameless: int,
    scale: float,
    channels: int | None = None,
) -> Callable[[Tensor, Tensor], Tensor]:
    """Classifier-free guidance, ``f(x, none) + scale (f(x, label) - f(x, none))``.

    A learned variance is that of the class. Source: Ho and Salimans, "Classifier-Free Diffusion
    Guidance", 2022.

    Args:
        network (Callable): Of x (B, C, ...), t (B,) and classes (B,).
        labels (Tensor): Classes, shape (B,).
        nameless (int): The class that stands for none.
        scale (float): 1 asks the network once, all else twice.
        channels (int, optional): The first channels that are guided. Defaults to all C.

    Returns:
        Callable: Of x and t.
    """
    if scale == 1:
        return lambda x, t: network(x, t, labels)
    both = torch.cat((labels, torch.full_like(labels, nameless)))

    def run(x: Tensor, t: Tensor) -> Tensor:
        named, free = network(torch.cat((x, x)), torch.cat((t, t)), both).chunk(2)
        n = x.shape[1] if channels is None else channels
        return torch.cat((torch.lerp(free[:, :n], named[:, :n], scale), named[:, n:]), dim=1)

    return run


def check_guidance(scale: float) -> None:
    """Make sure that a scale of the guidance is one.

    Raises:
        UserError: If it is negative or no number.
    """
    if not (isinstance(scale, (int, float)) and math.isfinite(scale) and scale >= 0):
        raise UserError(f'The guidance needs to be a number from 0, where 1 is none; got {scale}.')
