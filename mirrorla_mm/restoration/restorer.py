"""A model that enlarges images, on mmengine's runner."""

from __future__ import annotations

import torch
from mmengine.model import BaseModel
from mmengine.structures import BaseDataElement
from torch import Tensor

from ..registry import MODELS, register_model
from .tiling import enlarge

PREPROCESSOR = dict(type='ImgDataPreprocessor', mean=(0, 0, 0), std=(255, 255, 255))


@register_model
class Restorer(BaseModel):
    """Super-resolution with one network and one loss.

    Args:
        backbone (dict): The network, from RGB in [0, 1] to RGB in [0, 1].
        loss (dict): A loss of two images. Defaults to L1.
        test_cfg (dict, optional): Options of :func:`~mirrorla_mm.restoration.tiling.enlarge`:
            ``tile``, ``overlap``, ``self_ensemble``. Defaults to whole images, once.
        data_preprocessor (dict): Defaults to mmengine's, from 0..255 to [0, 1].
        init_cfg (dict, optional): Initialisation, see :class:`mmengine.model.BaseModule`.
    """

    def __init__(
        self,
        backbone: dict,
        loss: dict | None = None,
        test_cfg: dict | None = None,
        data_preprocessor: dict | None = None,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(data_preprocessor or PREPROCESSOR, init_cfg)
        self.backbone = MODELS.build(backbone)
        self.pixel_loss = MODELS.build(loss or dict(type='mirrorla_mm.L1Loss'))
        self.test_cfg = dict(test_cfg or {})

    def forward(
        self,
        inputs: Tensor,
        data_samples: list[BaseDataElement] | None = None,
        mode: str = 'tensor',
    ) -> Tensor | dict[str, Tensor] | list[BaseDataElement]:
        """Enlarge images.

        Args:
            inputs (Tensor): RGB in [0, 1], shape (B, 3, h, w).
            data_samples (list[BaseDataElement], optional): With ``gt_img`` in 0..255 for
                ``'loss'``, shape (3, s * h, s * w) each.
            mode (str): ``'tensor'``, ``'predict'`` or ``'loss'``.

        Returns:
            Tensor | list[BaseDataElement] | dict: The enlarged images (B, 3, s * h, s * w); the
            samples with ``pred_img`` (3, s * h, s * w), in [0, 1]; or the loss.

        Raises:
            ValueError: If there is no such mode.
        """
        if mode == 'tensor':
            return self.backbone(inputs)
        if mode == 'predict':
            return self._predict(inputs, data_samples)
        if mode == 'loss':
            return self._loss(inputs, data_samples)
        raise ValueError(f"Unknown mode '{mode}'; choose tensor, predict or loss.")

    def _loss(self, inputs: Tensor, data_samples: list[BaseDataElement]) -> dict[str, Tensor]:
        truth = torch.stack([sample.gt_img for sample in data_samples]).to(inputs) / 255
        return dict(loss=self.pixel_loss(self.backbone(inputs), truth))

    def _predict(
        self, inputs: Tensor, data_samples: list[BaseDataElement] | None
    ) -> list[BaseDataElement]:
        images = enlarge(self.backbone, inputs, **self.test_cfg).clamp(0, 1)
        samples = data_samples or [BaseDataElement() for _ in images]
        for sample, image in zip(samples, images):
            sample.pred_img = image
        return samples
