"""The command lines for super-resolution, on drawn images and on the authors' weights."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config

from mirrorla_mm.converters import convert_dctlsa, convert_file
from mirrorla_mm.registry import MODELS
from mirrorla_mm.restoration.resize import downscale
from tests.test_restoration.toy import TOY, draw, write_benchmark

CONFIGS = Path(__file__).resolve().parents[2] / 'configs' / 'super_resolution'


@pytest.fixture
def config(tmp_path) -> str:
    """SwinIR-light's protocol at x2 with a toy host and six iterations on drawn images."""
    write_benchmark(tmp_path / 'data/DIV2K', [(32, 40), (36, 32), (33, 47)])
    (tmp_path / 'data/DIV2K/HR').rename(tmp_path / 'data/DIV2K/DIV2K_train_HR')
    (tmp_path / 'data/DIV2K/LR_bicubic').rename(tmp_path / 'data/DIV2K/DIV2K_train_LR_bicubic')
    write_benchmark(tmp_path / 'data/Set5', [(40, 45), (36, 64)])
    write_benchmark(tmp_path / 'data/Set14', [(32, 32)])
    cfg = Config.fromfile(CONFIGS / 'dctlsa-relu_x2_8xb8-ema-500k_div2k.py')
    cfg.model.backbone.update(TOY, attn_cfg=dict(type='ReLUAttention', reflection={}))
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        loader.update(num_workers=0, persistent_workers=False)
    cfg.train_dataloader.batch_size = 2
    cfg.train_dataloader.dataset.pipeline[1].size = 8
    cfg.test_dataloader.dataset.sets = ['Set5', 'Set14']
    cfg.train_cfg.update(max_iters=6, val_interval=3)
    cfg.default_hooks.checkpoint.interval = 3
    cfg.optim_wrapper.optimizer.lr = 1e-2
    cfg.randomness = dict(seed=0)
    path = tmp_path / 'toy.py'
    cfg.dump(path)
    return str(path)


def options(*more: str) -> list[str]:
    return ['--cfg-options', 'data_root=data', *more]


def metrics(folder: str) -> dict:
    return json.loads(next(Path(folder).glob('*/*.json')).read_text().splitlines()[-1])


@pytest.mark.slow
def test_trains_tests_resumes_and_saves_the_images(run, config, tmp_path):
    run('train', config, '--work-dir', 'work', *options())
    weights = torch.load(tmp_path / 'work/iter_6.pth', weights_only=False)
    assert {'state_dict', 'ema_state_dict'} <= weights.keys()
    assert list((tmp_path / 'work').glob('best_PSNR*.pth'))
    run('test', config, 'work/iter_6.pth', '--work-dir', 'plain', '--out', 'images', *options())
    rows = metrics('plain')
    assert rows['PSNR'] == pytest.approx((rows['Set5/PSNR'] + rows['Set14/PSNR']) / 2)
    assert {'Set5/SSIM', 'Set14/SSIM', 'SSIM'} <= rows.keys()
    assert cv2.imread('images/Set5/0.png').shape == (40, 44, 3)
    run('test', config, 'work/iter_6.pth', '--work-dir', 'flips', '--tta', '--deploy', *options())
    assert metrics('flips')['PSNR'] != rows['PSNR']
    run('train', config, '--work-dir', 'half', *options('train_cfg.max_iters=3'))
    run('train', config, '--work-dir', 'half', '--resume', *options())
    resumed = torch.load(tmp_path / 'half/iter_6.pth', weights_only=False)
    for key, value in weights['state_dict'].items():
        assert torch.equal(value, resumed['state_dict'][key]), key
    assert not torch.equal(
        weights['state_dict']['backbone.stem.weight'],
        weights['ema_state_dict']['module.backbone.stem.weight'],
    )


@pytest.mark.parametrize(
    ('tool', 'more', 'message'),
    [
        ('test', ['--show'], 'not for super-resolution'),
        ('test', ['--cfg-options', 'data_root=nowhere'], 'nowhere'),
        ('train', ['--cfg-options', 'data_root=nowhere'], 'nowhere'),
        ('restore', ['missing.png'], 'missing.png does not exist'),
    ],
)
def test_mistakes_are_said_in_a_sentence(run, config, capsys, tool, more, message):
    model = MODELS.build(Config.fromfile(config).model)
    torch.save(dict(state_dict=model.state_dict()), 'x.pth')
    with pytest.raises(SystemExit):
        run(tool, config, *([] if tool == 'train' else ['x.pth']), *more)
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith('error: ') and message in error


@pytest.fixture(scope='module')
def authors(oracle_file, tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp('authors') / 'dctlsa_x4.pth'
    convert_file(convert_dctlsa, oracle_file('dctlsa_x4.pt'), path)
    return str(path)


X4 = str(CONFIGS / 'dctlsa_x4_1xb16-1000k_div2k.py')


@pytest.mark.slow
def test_the_authors_weights_give_their_decibels_on_set5(run, authors, image_root):
    root = image_root('sr')
    sets = 'test_dataloader.dataset.sets=Set5'
    run('test', X4, authors, '--work-dir', 'out', '--cfg-options', f'data_root={root}', sets)
    found = metrics('out')
    assert found['PSNR'] == pytest.approx(32.523, abs=5e-4)
    assert found['SSIM'] == pytest.approx(0.8990, abs=5e-5)


@pytest.mark.slow
def test_the_authors_own_luma_gives_their_own_similarity(run, authors, image_root):
    from mirrorla_mm.restoration.metrics import ssim

    root = image_root('sr') / 'Set5'
    run('restore', X4, authors, root / 'LR_bicubic/X4', '--out-dir', 'out')
    weights = torch.tensor([24.966, 128.553, 65.481], dtype=torch.float64) / 255
    weights *= 256 / 255  # They divide by 255 what is made to be divided by 256.
    figures = []
    for path in (root / 'HR').glob('*.png'):
        images = [cv2.imread(f) for f in (f'out/{path.stem}x4.png', str(path))]
        lumas = [torch.from_numpy(x[4:-4, 4:-4]).double() @ weights + 16 for x in images]
        figures.append(ssim(*(luma[None] for luma in lumas)))
    assert np.mean(figures) == pytest.approx(0.8987, abs=1e-4)


@pytest.mark.slow
def test_images_of_every_kind_are_enlarged_and_the_broken_are_named(run, authors, capsys):
    image = downscale(draw(80, 96), 4)
    grey = image[..., 1]
    Path('in').mkdir()
    kinds = dict(
        tiny=image[:9, :9],
        point=image[:1, :1],
        deep=image.astype(np.uint16) * 257,
        grey=grey,
        grey16=grey.astype(np.uint16) * 200,
        clear=np.dstack((image, grey)),
        large=np.tile(image, (3, 2, 1)),
    )
    for name, kind in kinds.items():
        cv2.imwrite(f'in/{name}.png', kind)
    Path('in/broken.png').write_bytes(Path('in/deep.png').read_bytes()[:300])
    cv2.imwrite('in/float.tiff', image.astype(np.float32))
    with pytest.raises(SystemExit):
        run('restore', X4, authors, 'in', '--out-dir', 'out', '--tile', '32', '--overlap', '16')
    said = capsys.readouterr()
    assert '2 could not be enlarged: broken.png, float.tiff' in said.err
    assert 'cut short' in said.out and 'float32' in said.out
    for name, kind in kinds.items():
        result = cv2.imread(f'out/{name}.png', cv2.IMREAD_UNCHANGED)
        assert result.dtype == kind.dtype, name
        assert result.shape == (4 * kind.shape[0], 4 * kind.shape[1], *kind.shape[2:]), name
    assert sorted(path.name for path in Path('out').iterdir()) == sorted(
        [*(f'{name}.png' for name in kinds), 'results.json']
    )
    deep, plain = (cv2.imread(f'out/{n}.png', -1).astype(float) for n in ('deep', 'clear'))
    assert np.abs(deep / 257 - plain[..., :3]).max() < 1


def test_results_never_take_the_place_of_their_sources(run, authors, capsys):
    Path('in').mkdir()
    cv2.imwrite('in/a.png', draw(12, 12))
    before = Path('in/a.png').read_bytes()
    for more, message in (
        (['--out-dir', 'in'], 'take the place'),
        (['--out-dir', 'out', '--tile', '20'], 'multiples of the window of 16'),
        (['--out-dir', 'out', '--truth', 'in', '--tile', '64', '--overlap', '64'], 'larger'),
    ):
        with pytest.raises(SystemExit):
            run('restore', X4, authors, 'in', *more)
        assert message in capsys.readouterr().err
    assert Path('in/a.png').read_bytes() == before and not Path('out').exists()


def test_comparisons_show_each_result(run, capsys):
    root = write_benchmark(Path('Set'), [(48, 64)])
    Path('mine').mkdir()
    cv2.imwrite('mine/0x2.png', draw(48, 64, 1))
    folders = (root / 'LR_bicubic/X2', root / 'HR', '--scale', 2, '--size', 16)
    run('analysis_tools/compare_restorations', *folders, '--results', 'Mine=mine')
    assert cv2.imread('comparisons/0x2.png').shape[1] > 500
    with pytest.raises(SystemExit):
        run('analysis_tools/compare_restorations', *folders, '--results', 'mine')
    assert 'LABEL=FOLDER' in capsys.readouterr().err
    files = {path: path.read_bytes() for path in Path('.').rglob('*.png')}
    for folder in (*folders[:2], 'mine'):
        command = ('analysis_tools/compare_restorations', *folders, '--results', 'Mine=mine')
        with pytest.raises(SystemExit):
            run(*command, '--out-dir', f'{folder}/../{Path(folder).name}')
        assert 'would take the place of the images' in capsys.readouterr().err
    assert {path: path.read_bytes() for path in Path('.').rglob('*.png')} == files
