"""Every config loads, survives dump and fromfile, builds; every family takes a training step."""

import copy
import re
from collections.abc import Iterable
from contextlib import nullcontext
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from mmdet.testing import demo_mm_inputs
from mmengine import load as load_yaml
from mmengine.config import Config
from mmengine.model.utils import revert_sync_batchnorm
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, PARAM_SCHEDULERS, init_default_scope
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample

from mirrorla_mm.analysis.flops import build_empty
from mirrorla_mm.analysis.metafiles import PRETRAIN_HOSTS
from mirrorla_mm.analysis.paper_tables import classifier, quick_bases, without_mmpretrain
from mirrorla_mm.stack import find_stack
from tests.training_step import take_step

CONFIGS = Path(__file__).parents[1] / 'configs'
FILES = sorted(
    str(path.relative_to(CONFIGS)) for path in CONFIGS.rglob('*.py') if '_base_' not in path.parts
)
WITHOUT_MMPRETRAIN = not find_spec('mmpretrain')
UNLISTED = ('quickstart', 'studies')
# onedl's DINO codes a coordinate of its reference boxes by twice as many numbers.
MORE_ON_ONEDL = {'dino': 2 * 256 * 256}
FAMILIES = {
    'retinanet': 'retinanet/retinanet_mirrorla-t{}_fpn_1x_coco.py',
    'mask_rcnn': 'mask_rcnn/mask-rcnn_mirrorla-t{}_fpn_amp-1x_coco.py',
    'mask_rcnn_3x': 'mask_rcnn/mask-rcnn_mirrorla-t{}_fpn_amp-ms-crop-3x_coco.py',
    'cascade_rcnn': (
        'cascade_rcnn/cascade-mask-rcnn_mirrorla-s{}_fpn_4conv1fc-giou_amp-ms-crop-3x_coco.py'
    ),
    'sem_fpn': 'sem_fpn/mirrorla-t{}_fpn_4xb4-80k_ade20k-512x512.py',
    'upernet': 'upernet/mirrorla-s{}_upernet_8xb2-160k_ade20k-512x512.py',
    'efficientvit_ade': (
        'efficientvit_head/mirrorla-t{}_efficientvit-head_4xb4-160k_ade20k-512x512.py'
    ),
    'efficientvit_cityscapes': (
        'efficientvit_head/mirrorla-t{}_efficientvit-head_4xb2-160k_cityscapes-1024x1024.py'
    ),
    'light_ham': 'light_ham_head/mirrorla-t{}_light-ham-head_4xb4-160k_ade20k-512x512.py',
}


@pytest.fixture(scope='module', autouse=True)
def fast_loading():
    with quick_bases():
        yield


@cache
def _load(name: str) -> Config:
    with without_mmpretrain() if WITHOUT_MMPRETRAIN else nullcontext():
        return Config.fromfile(CONFIGS / name)


def load(name: str) -> Config:
    """A config, read once, for the test to change."""
    return copy.deepcopy(_load(name))


def each(names: Iterable[str]) -> pytest.MarkDecorator:
    """Parametrise by configs; all but the first of each folder make slow tests."""
    params, folders = [], set()
    for name in names:
        folder = name.split('/')[0]
        params.append(pytest.param(name, marks=[pytest.mark.slow] * (folder in folders)))
        folders.add(folder)
    return pytest.mark.parametrize('name', params)


def bases(path: Path) -> list[Path]:
    """Bases of a config that are this project's own."""
    names = Config._get_base_files(str(path))
    return [(path.parent / name).resolve() for name in names if '::' not in name]


def levels(path: Path) -> int:
    return 1 + max(map(levels, bases(path)), default=0)


@pytest.mark.parametrize('name', FILES)
def test_config_is_read_in_three_levels_and_without_another_recipe(name):
    assert levels(CONFIGS / name) <= 3
    assert all('_base_' in base.parts for base in bases(CONFIGS / name))


@pytest.fixture(scope='module')
def listed() -> dict[str, dict]:
    """The models of all metafiles, by config."""
    metafiles = load_yaml(CONFIGS.parent / 'model-index.yml')['Import']
    models = [m for metafile in metafiles for m in load_yaml(CONFIGS.parent / metafile)['Models']]
    return {model['Config'].removeprefix('configs/'): model for model in models}


@each(FILES)
def test_config_survives_dump_and_has_the_parameters_that_its_metafile_states(
    name, listed, tmp_path, plain_configs
):
    cfg = load(name)
    cfg.dump(tmp_path / 'dumped.py')
    assert Config.fromfile(tmp_path / 'dumped.py').to_dict() == cfg.to_dict()
    if name.startswith('imagenet/'):
        model = classifier(CONFIGS / name)
    elif WITHOUT_MMPRETRAIN and any(host in name for host in PRETRAIN_HOSTS):
        pytest.skip('mmpretrain (optional extra "pretrain") is not installed')
    else:
        model = build_empty(cfg)
    params = sum(p.numel() for p in model.parameters())
    if name.split('/')[0] in UNLISTED:
        assert params > 1e5
    else:
        stated = listed[name]['Metadata']['Parameters']
        if find_stack().name == 'onedl':
            stated += MORE_ON_ONEDL.get(name.split('/')[0], 0)
        assert params == stated, 'stale: run tools/analysis_tools/metafiles.py'


@each(name for name in FILES if '-linear_' in name)
def test_linear_layout_changes_nothing_else(name):
    linear, hybrid = load(name), load(name.replace('-linear_', '_'))
    assert linear.model.backbone.pop('layout') == 'linear'
    linear.pop('host', None), hybrid.pop('host', None)
    assert linear.to_dict() == hybrid.to_dict()


RAVLT_ROWS = [name for name in FILES if 'ravlt-' in name and not name.startswith('studies/')]


def test_every_family_but_efficientvit_and_light_ham_has_rows_of_the_host():
    folders = {name.split('/')[0] for name in RAVLT_ROWS}
    assert folders == {
        'retinanet',
        'mask_rcnn',
        'cascade_rcnn',
        'sem_fpn',
        'upernet',
        'imagenet',
    }


@each(RAVLT_ROWS)
def test_ravlt_differs_in_the_feature_map_alone(name):
    ravlt, mirror = load(name), load(name.replace('ravlt-', 'mirrorla-'))
    assert ravlt.model.backbone.type == 'mirrorla_mm.RAVLT'
    ravlt.model.backbone.type = mirror.model.backbone.type
    ravlt.pop('host', None), mirror.pop('host', None)
    assert ravlt.to_dict() == mirror.to_dict()


HOSTS_WITH_TABLES = [name for name in FILES if '-swin-' in name or '-pvt-' in name]


# Those of the baselines are upstream's own.
@each(name for name in HOSTS_WITH_TABLES if not name.startswith('baselines/'))
def test_learned_tables_and_reflections_do_not_decay(name):
    cfg = load(name)
    model = classifier(CONFIGS / name) if name.startswith('imagenet/') else build_empty(cfg)
    keys = cfg.optim_wrapper.paramwise_cfg.custom_keys
    exempt = {key for key, options in keys.items() if options.get('decay_mult') == 0}
    tables = [
        name
        for name, _ in model.named_parameters()
        if any(word in name for word in ('position', 'pos_embed', '_bias.', 'reflection'))
    ]
    assert tables or 'attn_cfg' not in cfg.model.backbone
    assert [name for name in tables if not any(key in name for key in exempt)] == []


@pytest.mark.parametrize(
    ('name', 'rate'),
    [
        ('mirrorla-xt', 0.05),
        ('mirrorla-t', 0.05),
        ('mirrorla-s', 0.15),
        ('mirrorla-b', 0.4),
        ('mirrorla-l', 0.55),
        ('nalaformer-xt', 0.1),
        ('nalaformer-t', 0.1),
        ('ravlt-t', 0.05),
        ('still-t', 0.05),
        ('swin-t', 0.2),
        ('pola-swin-s', 0.3),
        ('agent-pvt-t', 0.1),
    ],
)
def test_drop_path_of_pretraining_is_the_published_one(name, rate):
    model = classifier(CONFIGS / f'imagenet/{name}_8xb128_in1k.py')
    rates = [m.drop_prob for m in model.modules() if hasattr(m, 'drop_prob')]
    assert max(rates) == pytest.approx(rate)


@pytest.mark.parametrize(
    ('name', 'rate'),
    [
        ('mask_rcnn/mask-rcnn_agent-swin-t_fpn_amp-1x_coco.py', 0.1),
        ('mask_rcnn/mask-rcnn_flatten-swin-t_fpn_amp-1x_coco.py', 0.2),
        ('mask_rcnn/mask-rcnn_pola-swin-s_fpn_amp-1x_coco.py', 0.2),
        ('upernet/pola-swin-s_upernet_8xb2-160k_ade20k-512x512.py', 0.3),
    ],
)
def test_drop_path_of_dense_prediction_is_that_of_the_followed_protocol(name, rate):
    assert load(name).model.backbone.drop_path_rate == rate


def test_gradients_of_swin_are_clipped_in_pretraining_as_the_authors_do():
    clips = {
        name: load(f'imagenet/{name}_8xb128_in1k.py').optim_wrapper.get('clip_grad')
        for name in ('flatten-swin-t', 'flatten-pvt-t', 'ravlt-t')
    }
    assert clips == {'flatten-swin-t': dict(max_norm=5.0), 'flatten-pvt-t': None, 'ravlt-t': None}


HOST = re.compile(r'(?:mirrorla|ravlt|nalaformer|still|agent|flatten|pola)-[a-z-]*(?=_)')
DENSE = [
    name
    for name in FILES
    if name.split('/')[0]
    not in ('baselines', 'diffusion', 'imagenet', 'quickstart', 'studies', 'super_resolution')
]


@each(DENSE)
def test_a_dense_config_has_a_recipe_of_imagenet_to_start_from(name):
    host = HOST.search(name.split('/')[1])[0]
    assert f'imagenet/{host}_8xb128_in1k.py' in FILES


def test_xcit_may_leave_its_layers_for_classifiers_unused():
    assert load('baselines/mask-rcnn_xcit-t12-p8_fpn_amp-ms-crop-3x_coco.py').find_unused_parameters


def tiny(cfg: Config) -> Config:
    """One block a stage of the same widths, and few regions."""
    heads = (1, 2, 4, 8) if cfg.model.backbone.arch == 't' else (1, 2, 5, 8)
    dims = (64, 128, 256, 512) if cfg.model.backbone.arch == 't' else (64, 128, 320, 512)
    cfg.model.backbone.arch = dict(embed_dims=dims, depths=(1, 1, 1, 1), num_heads=heads)
    regions = cfg.model.get('train_cfg', {}).get('rcnn', [])
    for region in regions if isinstance(regions, list) else [regions]:
        region.sampler.num = 16
    return cfg


def batch(cfg: Config) -> dict:
    torch.manual_seed(0)
    if cfg.default_scope == 'mmdet':
        with_mask = cfg.model.type != 'RetinaNet'
        return demo_mm_inputs(2, [[3, 64, 64], [3, 96, 64]], num_items=[2, 1], with_mask=with_mask)
    classes = cfg.model.decode_head.num_classes
    samples = []
    for _ in range(2):
        labels = torch.randint(classes, (1, 64, 64))
        sample = SegDataSample(gt_sem_seg=PixelData(data=labels))
        sample.set_metainfo(dict(img_shape=(64, 64), ori_shape=(64, 64)))
        samples.append(sample)
    return dict(inputs=list(torch.randint(256, (2, 3, 64, 64))), data_samples=samples)


@pytest.mark.parametrize(
    ('family', 'layout'),
    [
        *(pytest.param(family, '', marks=pytest.mark.slow) for family in FAMILIES),
        ('retinanet', '-linear'),
        ('sem_fpn', '-linear'),
    ],
)
def test_family_takes_a_training_step(family, layout):
    cfg = tiny(load(FAMILIES[family].format(layout)))
    init_default_scope(cfg.default_scope)
    if 'size' in cfg.model.data_preprocessor:
        cfg.model.data_preprocessor.size = (64, 64)
    model = revert_sync_batchnorm(MODELS.build(cfg.model)).train()
    idle, changed = take_step(model, cfg, batch(cfg))
    # A parameter without a gradient would stop DistributedDataParallel on several devices.
    assert not idle
    assert any('reflection.theta' in name for name in changed)


@pytest.mark.parametrize('name', [name for name in FILES if name.startswith('imagenet/')])
def test_classifier_takes_a_training_step_and_predicts(name):
    DataSample = pytest.importorskip('mmpretrain.structures').DataSample
    cfg = load(name)

    init_default_scope(cfg.default_scope)
    model = MODELS.build(dict(cfg.model, data_preprocessor=cfg.data_preprocessor)).train()
    optim_wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    optim_wrapper.zero_grad = lambda **_: None  # Leave the gradients to be looked at.
    samples = [DataSample().set_gt_label(label) for label in (3, 5)]
    data = dict(inputs=torch.randint(256, (2, 3, 64, 64)), data_samples=samples)
    assert torch.isfinite(model.train_step(data, optim_wrapper)['loss'])
    assert [name for name, p in model.named_parameters() if p.grad is None] == []
    settings = {group['weight_decay'] for group in optim_wrapper.optimizer.param_groups}
    assert settings == {0.0, 0.05}
    assert all(sample.pred_score.shape == (1000,) for sample in model.eval().test_step(data))


@pytest.mark.parametrize(
    ('family', 'lr', 'decay', 'norm_decay', 'head_lr'),
    [
        ('retinanet', 1e-4, 1e-4, 1e-4, 1e-4),
        pytest.param('mask_rcnn', 1e-4, 0.05, 0.0, 1e-4, marks=pytest.mark.slow),
        pytest.param('mask_rcnn_3x', 1e-4, 0.05, 0.0, 1e-4, marks=pytest.mark.slow),
        pytest.param('cascade_rcnn', 1e-4, 0.05, 0.0, 1e-4, marks=pytest.mark.slow),
        ('sem_fpn', 1e-4, 1e-4, 1e-4, 1e-4),
        pytest.param('upernet', 6e-5, 0.01, 0.0, 6e-5, marks=pytest.mark.slow),
        pytest.param('efficientvit_ade', 6e-5, 0.01, 0.0, 6e-4, marks=pytest.mark.slow),
        pytest.param('efficientvit_cityscapes', 6e-5, 0.01, 0.0, 6e-4, marks=pytest.mark.slow),
        pytest.param('light_ham', 6e-5, 0.01, 0.0, 6e-4, marks=pytest.mark.slow),
    ],
)
def test_protocol_of_the_optimizer(family, lr, decay, norm_decay, head_lr):
    cfg = tiny(load(FAMILIES[family].format('')))
    init_default_scope(cfg.default_scope)
    model = MODELS.build(cfg.model)
    optimizer = build_optim_wrapper(model, cfg.optim_wrapper).optimizer
    groups = {id(p): group for group in optimizer.param_groups for p in group['params']}
    named = {name: groups[id(p)] for name, p in model.named_parameters()}

    def settings(part: str) -> set:
        found = {
            (round(g['lr'], 9), g['weight_decay']) for name, g in named.items() if part in name
        }
        assert found
        return found

    assert isinstance(optimizer, torch.optim.AdamW)
    assert settings('.attn.qkv.weight') == {(lr, decay)}
    assert settings('.norm1.') == {(lr, norm_decay)}
    assert settings('.reflection.') == {(lr, 0.0)}
    assert {setting[0] for setting in settings('head.')} == {head_lr}


def rates(cfg: Config, iterations: int, per_epoch: int) -> list[float]:
    """Learning rates over a run, by the config's own schedulers."""
    param = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.AdamW([param], lr=1.0)
    schedulers = [PARAM_SCHEDULERS.build(dict(s, optimizer=optimizer)) for s in cfg.param_scheduler]
    lrs = []
    for i in range(iterations):
        lrs.append(optimizer.param_groups[0]['lr'])
        optimizer.step()
        for scheduler in schedulers:
            if not scheduler.by_epoch or (i + 1) % per_epoch == 0:
                scheduler.step()
    return lrs


@pytest.mark.parametrize(
    ('family', 'epochs', 'steps'),
    [('retinanet', 12, (8, 11)), ('mask_rcnn', 12, (8, 11)), ('mask_rcnn_3x', 36, (27, 33))],
)
def test_schedule_of_detection(family, epochs, steps):
    cfg = load(FAMILIES[family].format(''))
    assert cfg.train_cfg.max_epochs == epochs
    per_epoch = 600
    lrs = rates(cfg, epochs * per_epoch, per_epoch)
    assert lrs[0] == pytest.approx(1e-3)
    assert lrs[500] == pytest.approx(1.0)
    for epoch in range(1, epochs):
        expected = 0.1 ** sum(epoch >= step for step in steps)
        assert lrs[epoch * per_epoch + per_epoch // 2] == pytest.approx(expected)


@pytest.mark.parametrize(
    ('family', 'iterations', 'power', 'warmup'),
    [('sem_fpn', 80000, 0.9, 0), ('upernet', 160000, 1.0, 1500), ('light_ham', 160000, 1.0, 1500)],
)
def test_schedule_of_segmentation(family, iterations, power, warmup):
    cfg = load(FAMILIES[family].format(''))
    assert cfg.train_cfg.max_iters == iterations
    poly = cfg.param_scheduler[-1]
    assert (poly.power, poly.begin, poly.end, poly.eta_min) == (power, warmup, iterations, 0.0)
    assert len(cfg.param_scheduler) == 1 + bool(warmup)


@pytest.mark.parametrize('family', FAMILIES)
def test_auto_scale_lr_knows_the_protocol_batch(family):
    cfg = load(FAMILIES[family].format(''))
    assert cfg.auto_scale_lr.base_batch_size == (8 if 'cityscapes' in family else 16)
    name = Path(FAMILIES[family]).name
    gpus = next((int(part[0]) for part in name.split('_') if part[1:3] == 'xb'), 8)
    assert gpus * cfg.train_dataloader.batch_size == cfg.auto_scale_lr.base_batch_size


def test_metafiles_list_every_config_of_their_folder():
    index = load_yaml(CONFIGS.parent / 'model-index.yml')['Import']
    assert len(index) == len(set(index))
    for metafile in index:
        path = CONFIGS.parent / metafile
        models = load_yaml(path)['Models']
        listed = {Path(model['Config']).name for model in models}
        assert listed == {file.name for file in path.parent.glob('*.py')}, metafile
        assert all(model['Name'] == Path(model['Config']).stem for model in models)
        readme = (path.parent / 'README.md').read_text(encoding='utf-8')
        assert all(name in readme for name in listed)


def test_model_index_is_read_by_the_library_that_openmim_uses():
    modelindex = pytest.importorskip('modelindex')
    root = CONFIGS.parent
    index = modelindex.load(str(root / 'model-index.yml'))
    index.build_models_with_collections()
    listed = {model.config for model in index.models}
    assert listed == {f'configs/{name}' for name in FILES if name.split('/')[0] not in UNLISTED}
    # Its own check looks for them beside the metafile; OpenMMLab names them from the root.
    assert all((root / collection.readme).is_file() for collection in index.collections)
    assert [error for error in index.check(silent=True) if 'README' not in error] == []


def test_data_sets_lie_where_the_configs_look():
    index = load_yaml(CONFIGS.parent / 'dataset-index.yml')
    roots = {entry['data_root'] for entry in index.values() if isinstance(entry, dict)}
    used = {load(name.format('')).data_root for name in FAMILIES.values()}
    assert all(any(Path(place).is_relative_to(root) for root in roots) for place in used)
