"""The command lines for diffusion models, on a toy of the shipped configs."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from PIL import Image

from mirrorla_mm.diffusion.study import Judge

CONFIGS = Path(__file__).resolve().parents[2] / 'configs' / 'diffusion'
NAME = '{}-mirrorla-s-p2_8xb32-400k_imagenet-256x256.py'


@pytest.fixture
def config(tmp_path):
    """The shipped protocol with a toy host, six iterations, and images in the place of latents."""
    rng = np.random.default_rng(0)
    for label in 'abc':
        (tmp_path / f'data/train/{label}').mkdir(parents=True)
        for number in range(4):
            image = rng.integers(0, 255, (3, 8, 8)).astype(np.float32)
            np.save(tmp_path / f'data/train/{label}/{number}.npy', image)

    def write(process: str) -> str:
        cfg = Config.fromfile(CONFIGS / NAME.format(process))
        cfg.model.backbone.update(
            arch=dict(embed_dims=16, depth=1, num_heads=2),
            input_size=8,
            in_channels=3,
            num_classes=3,
        )
        cfg.model.data_preprocessor.update(mean=[127.5], std=[127.5])
        cfg.model.process.sampling_steps = 4
        cfg.train_dataloader.update(num_workers=0, persistent_workers=False, batch_size=4)
        cfg.train_cfg.max_iters = 6
        cfg.custom_hooks[0].momentum = 0.5
        cfg.default_hooks.checkpoint.interval = 3
        cfg.optim_wrapper.optimizer.lr = 1e-2
        cfg.randomness = dict(seed=0)
        path = tmp_path / f'{process}.py'
        cfg.dump(path)
        return str(path)

    return write


DATA = ('--cfg-options', 'data_root=data/')


@pytest.mark.slow
@pytest.mark.parametrize('process', ['dit', 'sit'])
def test_trains_resumes_and_draws_the_averaged_weights(run, config, process, tmp_path, capsys):
    file = config(process)
    run('train', file, '--work-dir', 'work', *DATA)
    whole = torch.load('work/iter_6.pth', weights_only=False)
    run('train', file, '--work-dir', 'half', *DATA, 'train_cfg.max_iters=3')
    run('train', file, '--work-dir', 'half', '--resume', *DATA)
    resumed = torch.load('half/iter_6.pth', weights_only=False)
    for key, value in whole['state_dict'].items():
        assert torch.equal(value, resumed['state_dict'][key]), key
    final = 'backbone.final_layer.linear.weight'
    average, trained = whole['state_dict'][final], whole['ema_state_dict'][f'module.{final}']
    assert trained.count_nonzero() and not torch.equal(average, trained)

    draw = ('sample', file, 'work/iter_6.pth', '--number', 6, '--batch-size', 4, '--grid', 2)
    run(*draw, '--out-dir', 'out', '--guidance', 2)
    assert 'samples_6x8x8x3.npz' in capsys.readouterr().out
    first = np.load('out/samples_6x8x8x3.npz')['arr_0']
    with Image.open('out/grid.png') as grid:
        assert grid.size == (19, 19)
    # The weights alone, named as DiT's authors name them, are the same model.
    published = {k.removeprefix('backbone.'): v for k, v in whole['state_dict'].items()}
    torch.save(published, 'published.pt')
    run(*draw[:2], 'published.pt', *draw[3:], '--out-dir', 'same', '--guidance', 2)
    assert (np.load('same/samples_6x8x8x3.npz')['arr_0'] == first).all()
    # A process of two draws its part, the other one joins them.
    for rank in (0, 1):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv('RANK', str(rank))
            patch.setenv('WORLD_SIZE', '2')
            run(*draw, '--out-dir', 'shared', '--guidance', 2)
    assert (np.load('shared/samples_6x8x8x3.npz')['arr_0'] == first).all()


def test_bfloat16_trains(run, config):
    run('train', config('dit'), '--amp', '--work-dir', 'w', *DATA, 'optim_wrapper.dtype=bfloat16')
    weights = torch.load('w/iter_6.pth', weights_only=False)['state_dict']
    assert all(torch.isfinite(v).all() for v in weights.values())


def told(capsys, call) -> str:
    """The one sentence that a command ends with."""
    with pytest.raises(SystemExit):
        call()
    (line,) = capsys.readouterr().err.strip().splitlines()[-1:]
    assert line.startswith('error: ')
    return line


def test_mistakes_are_said_in_a_sentence(run, config, capsys):
    file = config('sit')
    torch.save({'state_dict': {'x': torch.zeros(1)}}, 'other.pth')
    Path('cut.pth').write_bytes(Path('other.pth').read_bytes()[:300])
    cases = {
        ('sample', file, 'none.pth'): 'none.pth does not exist',
        ('sample', file, 'cut.pth'): 'damaged, cut short',
        ('sample', file, 'other.pth'): 'is of another model',
        ('sample', file, 'other.pth', '--device', 'cpux'): "device 'cpux' cannot be used",
        ('sample', 'none.py', 'other.pth'): 'none.py does not exist',
        ('sample', file, 'other.pth', '--vae', 'nowhere'): 'nowhere is no folder of a VAE',
        ('sample', file, 'other.pth', '--cfg-options', 'model.process.sampler=x'): 'sde, euler',
        ('train', file, '--work-dir', 'w'): 'data/imagenet_latents',
        ('train', file, '--work-dir', 'w', '--resume', 'cut.pth', *DATA): 'damaged, cut short',
        ('train', file, '--work-dir', 'w', *DATA, 'load_from=cut.pth'): 'damaged, cut short',
        ('train', file, '--work-dir', 'w', *DATA, 'model.test_cfg.guidance=-1'): 'a number from 0',
        ('train', file, '--work-dir', 'w', *DATA, 'model.test_cfg.guidance=x'): 'a number from 0',
        ('train', file, '--work-dir', 'w', *DATA, 'model.backbone.num_classes=0'): '1 at least',
        ('train', file, '--work-dir', 'w', *DATA, 'model.backbone.patch_size=0'): 'of patch_size',
        ('train', file, '--work-dir', 'w', *DATA, 'model.backbone.num_classes=2'): 'of class 2',
        ('train', file, '--work-dir', 'w', *DATA, 'model.backbone.input_size=4'): '3x4x4: other',
        ('train', file, '--work-dir', 'w', *DATA, 'model.backbone.in_channels=4'): '4x8x8: other',
        ('test', file, 'other.pth'): 'which tools/sample.py draws',
        ('encode_latents', 'data/train', 'nowhere', 'out'): 'nowhere is no folder of a VAE',
    }
    for command, message in cases.items():
        assert message in told(capsys, lambda command=command: run(*command)), command


def test_damaged_latents_are_named_or_left_out(run, config, capsys):
    file = config('sit')
    for latent in Path('data/train/b').iterdir():
        latent.write_bytes(latent.read_bytes()[:200])
    command = ('train', file, '--work-dir', 'w', *DATA)
    assert 'b/' in (line := told(capsys, lambda: run(*command))) and 'cannot be read' in line
    run(*command, 'train_cfg.max_iters=12', '--bad-data', 'skip')
    assert 'cannot be read' in Path('w/bad_data.jsonl').read_text()


@pytest.mark.slow
def test_the_study_starts_all_arms_alike_goes_on_and_shows_what_was_drawn(run, capsys):
    config = Path('toy.py')
    config.write_text(
        f"_base_ = '{CONFIGS.parent / 'studies' / 'dit-study_1xb16-400_shapes-32x32.py'}'\n"
        'model = dict(backbone=dict(arch=dict(embed_dims=16, depth=1, num_heads=2)),'
        ' process=dict(sampling_steps=2))\n'
        'train_dataloader = dict(batch_size=2)\n'
        # Nothing is learned, so that the checkpoints show where the arms started.
        'optim_wrapper = dict(optimizer=dict(lr=0.0))\n'
        'param_scheduler = dict(eta_min=0.0)\n'
    )
    Path('work').mkdir()
    torch.save(Judge().state_dict(), 'work/judge.pth')
    command = ('studies/diffusion', '--config', config, '--work-dir', 'work', '--iters', 2)
    command += ('--samples', 48, '--report', 'report', '--seeds', 0, '--arms')
    run(*command, 'softmax')
    run(*command, 'softmax', 'control', 'mirror')
    assert 'softmax, seed 0: done before' in capsys.readouterr().out
    softmax, control, mirror = (
        torch.load(f'work/{arm}/seed-0/iter_2.pth', weights_only=False)['state_dict']
        for arm in ('softmax', 'control', 'mirror')
    )
    for less, more in ((softmax, control), (control, mirror)):
        for name, value in less.items():
            assert torch.equal(more[name][: len(value)], value), name
    results = json.loads(Path('report/results.json').read_text())
    assert [r['arm'] for r in results] == ['softmax', 'control', 'mirror']
    assert np.isfinite([r[key] for r in results for key in ('mse', 'fd', 'fd_of_real')]).all()
    for grid in ('work/mirror/seed-0.png', 'report/samples.png'):
        with Image.open(grid) as image:
            assert min(image.size) > 60
    assert 'mirror + gate + lepe' in Path('report/results.md').read_text()
    Path('work/softmax/seed-0.json').unlink()  # A run that is under way counts as well.
    deeper = Path('deeper.py')
    deeper.write_text(config.read_text().replace('depth=1', 'depth=2'))
    for change, message in (
        (('--iters', 4), 'work holds results of other settings (iters 2, not 4): move'),
        (('--samples', 60), 'name another --work-dir'),
        (('--config', deeper), 'of other settings (config '),
        (('--samples', 47), '--samples needs to be 48 at least, got 47'),
    ):
        changed = (*command, 'softmax', *change)
        assert message in told(capsys, lambda changed=changed: run(*changed))
