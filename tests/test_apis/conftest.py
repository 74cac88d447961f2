"""A detector and a segmentor of the quickstart and a model with masks, with random weights."""

from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope

from mirrorla_mm.apis import Inferencer
from tests.archs import TOY

CONFIGS = Path(__file__).parents[2] / 'configs'
DETECTOR = CONFIGS / 'quickstart/retinanet_mirrorla-xt_fpn_demo.py'
SEGMENTOR = CONFIGS / 'quickstart/mirrorla-xt_efficientvit-head_demo-160x160.py'
MASKS = CONFIGS / 'mask_rcnn/mask-rcnn_mirrorla-t_fpn_amp-1x_coco.py'


def toy(config: Path) -> Config:
    cfg = Config.fromfile(config)
    cfg.model.backbone.arch = TOY
    part = 'decode_head' if cfg.default_scope == 'mmseg' else 'neck'
    channels = TOY['embed_dims'][-len(cfg.model[part].in_channels) :]
    cfg.model[part].in_channels = list(channels)
    return cfg


def save_weights(cfg: Config, file: Path, **meta) -> Path:
    init_default_scope(cfg.default_scope)
    torch.save(dict(meta=meta, state_dict=MODELS.build(cfg.model).state_dict()), file)
    return file


@pytest.fixture(scope='session')
def inferencer(tmp_path_factory):
    """Build the toy model of a config, once."""
    built = {}

    def build(config: Path) -> Inferencer:
        if config not in built:
            cfg = toy(config)
            if config == MASKS:
                cfg.merge_from_dict(
                    {
                        'test_dataloader.dataset.pipeline.1.scale': (96, 96),
                        # Random weights are sure of nothing.
                        'model.test_cfg.rcnn': dict(score_thr=0.0, max_per_img=5),
                    }
                )
            torch.manual_seed(0)
            file = save_weights(cfg, tmp_path_factory.mktemp('weights') / 'weights.pth')
            built[config] = Inferencer(cfg, file, 'cpu')
        return built[config]

    return build
