"""The numbers that the paper prints, for the rows that a config here can build.

They are listed by table, as printed; those of NaLaFormer come from its own paper. Left out are rows
of models that are not here; Tab. 4 (super-resolution) stands in :mod:`.table_4`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

BOX = ('AP b', 'AP50 b', 'AP75 b', 'APS b', 'APM b', 'APL b')
FID = ('FID', 'sFID', 'IS', 'precision', 'recall')
BOX_AND_MASK = ('AP b', 'AP50 b', 'AP75 b', 'AP m', 'AP50 m', 'AP75 m')


@dataclass(frozen=True)
class Cause:
    """Why a cell is not what the config gives.

    Attributes:
        text (str): The reason, and the counting that ``options``, ``shape`` and ``times`` describe.
        options (dict): Settings, by dotted name, that make the config count as the cell did.
        shape (tuple[int, int], optional): Height and width of the cell, if not the table's.
        times (int): Factor of the cell over the count.
    """

    text: str
    options: dict = field(default_factory=dict)
    shape: tuple[int, int] | None = None
    times: int = 1

    @property
    def countable(self) -> bool:
        """Whether the cell can be had from the config."""
        return bool(self.options or self.shape)


@dataclass(frozen=True)
class Row:
    """One row of a table.

    Attributes:
        method (str): Its name in the paper.
        config (str): Config, relative to ``configs``.
        params (float): Millions, as printed.
        flops (float): Billions of multiply-accumulates, as printed.
        metrics (tuple[str, ...]): Figures that need training, as printed.
        misprints (dict): Why a cell is one, by the name of the cell.
        options (str): ``--cfg-options`` of the row, for ablations.
        causes (dict): :class:`Cause` of each cell that differs, by the name of the cell.
    """

    method: str
    config: str
    params: float | None = None
    flops: float | None = None
    metrics: tuple[str, ...] = ()
    misprints: dict[str, str] = field(default_factory=dict)
    options: str = ''
    causes: dict[str, Cause] = field(default_factory=dict)


@dataclass(frozen=True)
class Table:
    """A table, or a part of one with inputs of one size.

    Attributes:
        title (str): Number and subject.
        shape (tuple[int, int]): Height and width that the FLOPs are for.
        counter (str): The paper's count for MirrorLA: ``'layers'`` or ``'total'``, fields of
            :class:`~mirrorla_mm.analysis.flops.Complexity`.
        metrics (tuple[str, ...]): Names of the figures that need training.
        rows (tuple[Row, ...]): The rows.
        sizes (bool): Show what the configs count, where the paper prints nothing.
        then (str): Commands after training.
    """

    title: str
    shape: tuple[int, int]
    counter: str
    metrics: tuple[str, ...]
    rows: tuple[Row, ...]
    sizes: bool = False
    then: str = ''


def _imagenet(method: str, name: str, *cells: float, **more: Any) -> Row:
    params, flops, accuracy = cells if len(cells) == 3 else (None, None, *cells)
    return Row(method, f'imagenet/{name}_8xb128_in1k.py', params, flops, (str(accuracy),), **more)


def _figures(text: str) -> tuple[str, ...]:
    return tuple(text.split())


def _diffusion(method: str, name: str, figures: str = '') -> Row:
    metrics = _figures(figures) or ('',) * len(FID)
    return Row(method, f'diffusion/{name}_8xb32-400k_imagenet-256x256.py', metrics=metrics)


_REFLECTION = 'model.backbone.reflection'
_SAME_MODEL = 'the model of the 1x schedule, for which the paper prints 219 G'
_MASK_RCNN = 'params and FLOPs of Mask R-CNN with S, in a table of RetinaNet, whose row S has 34 M'

_CLASSES = dict(
    flops=Cause(
        "counted with ADE20K's 150 classes instead of the 19 of Cityscapes, which gives",
        options={'model.decode_head.num_classes': 150},
    )
)
_RANK = dict(
    flops=Cause(
        "the authors' config leaves the rank of the Hamburger at 64, mmseg's sets 16; 64 gives",
        options={'model.decode_head.ham_kwargs.MD_R': 64},
    )
)
_QUARTERS = dict(
    flops=Cause(
        'four times what it is at 512x512, where attention costs less a token; that gives',
        shape=(512, 512),
        times=4,
    )
)
_FLATTEN_PVT = dict(
    flops=Cause(
        "unexplained: the authors' classifier (linear in all stages, k and v not reduced) gives "
        'ours, and they have published no code for dense prediction'
    )
)
_HYDRA = dict(
    flops=Cause(
        'printed alike for all linear attentions of that source; Hydra multiplies by elements '
        'where the others multiply matrices'
    )
)
_RELEASED = Cause("the authors' released code gives ours")
_ROUNDED_UP = dict(
    flops=Cause('unexplained; it would be ours rounded up, as are B and L of the same table')
)
_SEGNEXT_S = dict(params="SegNeXt's authors print 14 M")

TABLES = (
    Table(
        'Table 1: ImageNet-1K',
        (224, 224),
        'total',
        ('top-1',),
        (
            _imagenet('RAVLT-T', 'ravlt-t', 15, 2.6, 82.6),
            _imagenet('MirrorLA-T', 'mirrorla-t', 15, 2.6, 82.8),
            _imagenet('MirrorLA-S', 'mirrorla-s', 26, 4.9, 84.2),
            _imagenet('Agent-Swin-T', 'agent-swin-t', 29, 4.5, 82.6),
            _imagenet('Pola-Swin-T', 'pola-swin-t', 29, 4.5, 82.6),
            _imagenet('RAVLT-B', 'ravlt-b', 48, 10.6, 85.1),
            _imagenet('MirrorLA-B', 'mirrorla-b', 48, 10.6, 85.3),
            _imagenet('RAVLT-L', 'ravlt-l', 95, 17.3, 85.5),
            _imagenet('MirrorLA-L', 'mirrorla-l', 95, 17.3, 85.7),
        ),
    ),
    Table(
        'Table 6: architectures (XT; the others are those of Table 1)',
        (224, 224),
        'total',
        ('top-1 (Table 8)',),
        (_imagenet('MirrorLA-XT', 'mirrorla-xt', 6, 0.6, 76.0),),
    ),
    Table(
        'Table 5: diffusion transformers, ImageNet 256x256 without guidance',
        (32, 32),
        'total',
        FID,
        (
            _diffusion('DiT', 'dit-s-p2', '68.40 - - - -'),
            _diffusion('MirrorLADiT', 'dit-mirrorla-s-p2', '58.07 11.21 24.70 0.41 0.59'),
            _diffusion('control: ReLU + gate + lepe', 'dit-relu-s-p2'),
            _diffusion('PolaFormer++', 'dit-polapp-s-p2'),
            _diffusion('SiT', 'sit-s-p2', '58.61 9.25 24.31 0.41 0.59'),
            _diffusion('MirrorLASiT', 'sit-mirrorla-s-p2', '52.29 8.41 28.51 0.43 0.61'),
            _diffusion('control: ReLU + gate + lepe (SiT)', 'sit-relu-s-p2'),
        ),
        sizes=True,
        then=(
            'torchrun --nproc_per_node 8 tools/sample.py CONFIG CHECKPOINT --vae VAE_FOLDER '
            '--number 50000 --out-dir samples\n'
            '# guided-diffusion/evaluations, with its file of ImageNet 256x256\n'
            'python evaluator.py VIRTUAL_imagenet256_labeled.npz '
            'samples/samples_50000x256x256x3.npz'
        ),
    ),
    Table(
        'Table 7: linear attentions in Swin-T, ImageNet-1K',
        (224, 224),
        'total',
        ('top-1',),
        (
            _imagenet('Swin-T', 'swin-t', 28, 4.4, 81.2),
            _imagenet('Hydra', 'hydra-swin-t', 29, 4.5, 80.7, causes=_HYDRA),
            _imagenet('Efficient', 'efficient-swin-t', 29, 4.5, 81.0),
            _imagenet('Linear Angular', 'linear-angular-swin-t', 29, 4.5, 79.4),
            _imagenet('FLatten', 'flatten-swin-t', 29, 4.5, 82.1),
            _imagenet('Agent', 'agent-swin-t', 29, 4.5, 82.6),
            _imagenet('InLine', 'inline-swin-t', 30, 4.5, 82.4),
            _imagenet('PolaFormer', 'pola-swin-t', 29, 4.5, 82.6),
            _imagenet('ReLU+LA', 'relu-swin-t', 28, 4.6, 81.8),
            _imagenet('ReLU+MirrorLA', 'relu-mirrorla-swin-t', 28, 4.6, 82.4),
        ),
    ),
    Table(
        "NaLaFormer's own table: ImageNet-1K",
        (224, 224),
        'total',
        ('top-1',),
        (
            _imagenet(
                'NaLaFormer-XT',
                'nalaformer-xt',
                8,
                1.0,
                79.1,
                causes=dict(params=_RELEASED, flops=_RELEASED),
            ),
            _imagenet('NaLaFormer-T', 'nalaformer-t', 15, 2.7, 82.6),
            _imagenet('NaLaFormer-S', 'nalaformer-s', 26, 5.1, 84.3, causes=_ROUNDED_UP),
            _imagenet('NaLaFormer-B', 'nalaformer-b', 52, 12, 85.2),
            _imagenet('NaLaFormer-L', 'nalaformer-l', 95, 18, 85.7),
        ),
    ),
    Table(
        'Table 2: RetinaNet 1x, COCO',
        (800, 1280),
        'layers',
        BOX,
        (
            Row(
                'RAVLT-T',
                'retinanet/retinanet_ravlt-t_fpn_1x_coco.py',
                24,
                201,
                _figures('44.1 64.3 47.4 26.4 48.1 59.3'),
            ),
            Row(
                'MirrorLA-T',
                'retinanet/retinanet_mirrorla-t_fpn_1x_coco.py',
                24,
                200,
                _figures('46.1 67.4 49.4 28.8 50.4 61.7'),
            ),
            Row(
                'Swin-T',
                'baselines/retinanet_swin-t-p4-w7_fpn_adamw-1x_coco.py',
                38,
                248,
                _figures('41.7 63.1 44.3 27.0 45.3 54.7'),
            ),
            Row(
                'PVTv2-B2',
                'baselines/retinanet_pvtv2-b2_fpn_1x_coco.py',
                35,
                290,
                _figures('44.6 65.6 47.6 27.4 48.8 58.6'),
            ),
            Row(
                'RAVLT-T (in the block of S)',
                'retinanet/retinanet_ravlt-s_fpn_1x_coco.py',
                44,
                262,
                _figures('46.7 67.2 50.4 31.4 51.1 62.3'),
                dict(params=_MASK_RCNN, flops=_MASK_RCNN),
            ),
            Row(
                'MirrorLA-S',
                'retinanet/retinanet_mirrorla-s_fpn_1x_coco.py',
                34,
                243,
                _figures('48.5 69.8 52.2 32.2 52.9 63.7'),
            ),
        ),
    ),
    Table(
        'Table 2: Mask R-CNN 1x, COCO',
        (800, 1280),
        'layers',
        BOX_AND_MASK,
        (
            Row(
                'PVTv2-B1',
                'baselines/mask-rcnn_pvtv2-b1_fpn_amp-1x_coco.py',
                33,
                243,
                _figures('41.8 54.3 45.9 38.8 61.2 41.6'),
            ),
            Row(
                'FL-PVT-T',
                'mask_rcnn/mask-rcnn_flatten-pvt-t_fpn_amp-1x_coco.py',
                32,
                244,
                _figures('38.2 61.6 41.9 37.0 57.6 39.0'),
                causes=_FLATTEN_PVT,
            ),
            Row(
                'RAVLT-T',
                'mask_rcnn/mask-rcnn_ravlt-t_fpn_amp-1x_coco.py',
                33,
                219,
                _figures('47.2 69.1 51.7 42.7 66.0 46.0'),
            ),
            Row(
                'MirrorLA-T',
                'mask_rcnn/mask-rcnn_mirrorla-t_fpn_amp-1x_coco.py',
                33,
                219,
                _figures('47.7 69.6 52.6 43.0 66.6 46.2'),
            ),
            Row(
                'MirrorLA-S',
                'mask_rcnn/mask-rcnn_mirrorla-s_fpn_amp-1x_coco.py',
                44,
                262,
                _figures('49.9 71.6 54.7 44.5 68.4 48.1'),
            ),
        ),
    ),
    Table(
        'Table 2: Mask R-CNN 3x, COCO',
        (800, 1280),
        'layers',
        BOX_AND_MASK,
        (
            Row(
                'XCiT-T12/8',
                'baselines/mask-rcnn_xcit-t12-p8_fpn_amp-ms-crop-3x_coco.py',
                26,
                266,
                _figures('44.5 66.4 48.8 40.4 63.5 43.3'),
            ),
            Row(
                'MirrorLA-T',
                'mask_rcnn/mask-rcnn_mirrorla-t_fpn_amp-ms-crop-3x_coco.py',
                33,
                129,
                _figures('49.4 70.7 54.3 44.1 67.7 47.7'),
                dict(flops=_SAME_MODEL),
            ),
            Row(
                'FL-Swin-T',
                'mask_rcnn/mask-rcnn_flatten-swin-t_fpn_amp-ms-crop-3x_coco.py',
                49,
                268,
                _figures('46.5 68.5 50.8 42.1 65.4 45.1'),
            ),
            Row(
                'MirrorLA-S',
                'mask_rcnn/mask-rcnn_mirrorla-s_fpn_amp-ms-crop-3x_coco.py',
                44,
                262,
                _figures('51.3 72.3 56.4 45.4 69.6 49.0'),
            ),
        ),
    ),
    Table(
        'Table 3: ADE20K',
        (512, 512),
        'layers',
        ('mIoU',),
        (
            Row(
                'SegFormer-B1',
                'baselines/segformer_mit-b1_8xb2-160k_ade20k-512x512.py',
                14,
                16,
                ('42.2',),
            ),
            Row(
                'SegNeXt-S',
                'baselines/segnext_mscan-s_1xb16-160k_ade20k-512x512.py',
                15,
                16,
                ('44.3',),
                misprints=_SEGNEXT_S,
            ),
            Row(
                'MirrorLA-T',
                'efficientvit_head/mirrorla-t_efficientvit-head_4xb4-160k_ade20k-512x512.py',
                14,
                14,
                ('48.8',),
            ),
            Row(
                'SegNeXt-B',
                'baselines/segnext_mscan-b_1xb16-160k_ade20k-512x512.py',
                28,
                35,
                ('48.5',),
                causes=_RANK,
            ),
            Row(
                'SegFormer-B2',
                'baselines/segformer_mit-b2_8xb2-160k_ade20k-512x512.py',
                28,
                62,
                ('46.5',),
            ),
            Row(
                'MirrorLA-S',
                'efficientvit_head/mirrorla-s_efficientvit-head_4xb4-160k_ade20k-512x512.py',
                24,
                25,
                ('50.9',),
            ),
        ),
    ),
    Table(
        'Table 3: Cityscapes',
        (1024, 2048),
        'layers',
        ('mIoU',),
        (
            Row(
                'SegFormer-B1',
                'baselines/segformer_mit-b1_8xb1-160k_cityscapes-1024x1024.py',
                14,
                244,
                ('78.5',),
                causes=_CLASSES,
            ),
            Row(
                'SegNeXt-S',
                'baselines/segnext_mscan-s_4xb2-160k_cityscapes-1024x1024.py',
                15,
                125,
                ('81.3',),
                misprints=_SEGNEXT_S,
            ),
            Row(
                'MirrorLA-T',
                'efficientvit_head/mirrorla-t_efficientvit-head_4xb2-160k_cityscapes-1024x1024.py',
                14,
                110,
                ('82.5',),
            ),
            Row(
                'SegNeXt-B',
                'baselines/segnext_mscan-b_4xb2-160k_cityscapes-1024x1024.py',
                28,
                276,
                ('82.6',),
                causes=_RANK,
            ),
            Row(
                'SegFormer-B2',
                'baselines/segformer_mit-b2_8xb1-160k_cityscapes-1024x1024.py',
                28,
                711,
                ('81.0',),
                causes=_CLASSES,
            ),
            Row(
                'MirrorLA-S',
                'efficientvit_head/mirrorla-s_efficientvit-head_4xb2-160k_cityscapes-1024x1024.py',
                24,
                205,
                ('83.5',),
            ),
        ),
    ),
    Table(
        'Table 9: Semantic FPN 80k, ADE20K',
        (512, 2048),
        'layers',
        ('mIoU',),
        (
            Row('VAN-B1', 'baselines/fpn_van-b1_4xb4-80k_ade20k-512x512.py', 18, 140, ('42.9',)),
            Row(
                'PVTv2-B1',
                'baselines/fpn_pvtv2-b1_4xb4-80k_ade20k-512x512.py',
                18,
                136,
                ('42.5',),
                causes=_QUARTERS,
            ),
            Row(
                'FL-PVT-T',
                'sem_fpn/flatten-pvt-t_fpn_4xb4-80k_ade20k-512x512.py',
                16,
                169,
                ('37.2',),
                causes=_FLATTEN_PVT,
            ),
            Row(
                'Agent-PVT-T',
                'sem_fpn/agent-pvt-t_fpn_4xb4-80k_ade20k-512x512.py',
                15,
                147,
                ('40.2',),
            ),
            Row('RAVLT-T', 'sem_fpn/ravlt-t_fpn_4xb4-80k_ade20k-512x512.py', 18, 136, ('47.5',)),
            Row(
                'MirrorLA-T',
                'sem_fpn/mirrorla-t_fpn_4xb4-80k_ade20k-512x512.py',
                18,
                136,
                ('47.7',),
            ),
        ),
    ),
    Table(
        'Table 8: ablations, XT on ImageNet-1K',
        (224, 224),
        'total',
        ('top-1',),
        (
            _imagenet('lambda 1, alpha_max pi/2, full, head', 'mirrorla-xt', 76.0),
            _imagenet(
                'without full',
                'mirrorla-xt',
                75.5,
                options=f'{_REFLECTION}.variance_aware=False',
            ),
            _imagenet(
                'without head', 'mirrorla-xt', 75.7, options=f'{_REFLECTION}.cross_head=False'
            ),
            _imagenet('lambda 0.5', 'mirrorla-xt', 75.7, options=f'{_REFLECTION}.lam=0.5'),
            _imagenet('lambda 0.25', 'mirrorla-xt', 75.8, options=f'{_REFLECTION}.lam=0.25'),
            _imagenet(
                'alpha_max pi/4', 'mirrorla-xt', 75.9, options=f'{_REFLECTION}.alpha_max=0.7854'
            ),
            _imagenet(
                'alpha_max pi/8', 'mirrorla-xt', 75.8, options=f'{_REFLECTION}.alpha_max=0.3927'
            ),
        ),
    ),
)
