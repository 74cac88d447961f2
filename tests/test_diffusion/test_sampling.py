"""Samples by several processes, and what is left of a run that was stopped."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from mirrorla_mm.diffusion import DiffusionModel
from mirrorla_mm.diffusion.sampling import (
    NoiseStreams,
    Order,
    draw_batch,
    draw_share,
    part_file,
    save_first,
    tile,
)
from mirrorla_mm.engine.errors import UserError
from mirrorla_mm.registry import MODELS

from .toy import TOY, toy_host

ORDER = Order(10, 3, 1.0, None, (), 4, 'toy')


def pixel_model(**process) -> DiffusionModel:
    """A model of images of 16x16 pixels."""
    options = dict(TOY, in_channels=3)
    model = MODELS.build(
        dict(
            type='mirrorla_mm.DiffusionModel',
            backbone=dict(type='mirrorla_mm.DiT', **options),
            process=dict(type='mirrorla_mm.Interpolant', sampling_steps=3, **process),
        )
    )
    model.backbone.load_state_dict(toy_host(in_channels=3).state_dict())
    return model.eval()


def test_samples_do_not_depend_on_the_number_of_processes(tmp_path):
    model = pixel_model()
    alone = draw_share(model, ORDER, tmp_path / 'alone')
    results = [draw_share(model, ORDER, tmp_path / 'two', rank=r, world=2) for r in (1, 0)]
    assert results[0] is None and results[1].name == 'samples_10x16x16x3.npz'
    with np.load(alone) as a, np.load(results[1]) as b:
        assert a['arr_0'].shape == (10, 16, 16, 3) and a['arr_0'].dtype == np.uint8
        assert a['arr_1'].shape == (10,) and len(set(a['arr_1'].tolist())) > 2
        assert (a['arr_0'] == b['arr_0']).all() and (a['arr_1'] == b['arr_1']).all()
        assert len({image.tobytes() for image in a['arr_0']}) == 10


def test_a_sample_does_not_depend_on_those_beside_it(tmp_path):
    model = pixel_model()
    files = [
        draw_share(model, replace(ORDER, batch_size=size), tmp_path / str(size)) for size in (4, 10)
    ]
    a, b = (np.load(file)['arr_0'].astype(int) for file in files)
    assert abs(a - b).max() <= 1


def test_another_seed_draws_others(tmp_path):
    model = pixel_model()
    files = [draw_share(model, replace(ORDER, seed=s), tmp_path / str(s)) for s in (0, 1)]
    assert (np.load(files[0])['arr_0'] != np.load(files[1])['arr_0']).any()


def test_streams_of_samples_do_not_meet():
    numbers = (50699, 55170)  # With seed 0 torch's generator gives them one stream.
    first, second = NoiseStreams(0, numbers, (3, 4, 4))()
    assert first.dtype == torch.float32 and not torch.equal(first, second)


def test_a_stopped_run_goes_on_and_redraws_nothing(tmp_path, monkeypatch):
    model = pixel_model()
    whole = np.load(draw_share(model, ORDER, tmp_path / 'whole'))['arr_0']
    assert draw_share(model, ORDER, tmp_path / 'cut', rank=0, world=2) is None
    (part_file(tmp_path / 'cut', 0).with_suffix('.x.partial')).write_bytes(b'half')
    calls = []
    sample = model.sample
    monkeypatch.setattr(model, 'sample', lambda *args: calls.append(1) or sample(*args))
    file = draw_share(model, ORDER, tmp_path / 'cut')
    assert len(calls) == 1  # the batch of the process that never came
    assert (np.load(file)['arr_0'] == whole).all()


def test_samples_of_a_broken_model_are_not_kept(tmp_path, monkeypatch):
    model = pixel_model()
    broken = torch.full((4, 3, 16, 16), float('nan'))
    monkeypatch.setattr(model, 'sample', lambda *args: broken)
    with pytest.raises(UserError, match='One of the samples 0 to 3 holds NaN or infinity'):
        draw_share(model, ORDER, tmp_path)
    assert not part_file(tmp_path, 0).exists()


def test_classes_are_taken_in_turn_from_the_same_noise(tmp_path):
    file = draw_share(pixel_model(), replace(ORDER, classes=(7, 2)), tmp_path)
    assert np.load(file)['arr_1'].tolist() == [7, 2] * 5


def test_guidance_changes_the_samples(tmp_path):
    model = pixel_model()
    orders = [replace(ORDER, guidance=scale) for scale in (1.0, 4.0)]
    first, second = (draw_share(model, o, tmp_path / str(o.guidance)) for o in orders)
    assert (np.load(first)['arr_0'] != np.load(second)['arr_0']).any()


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (dict(classes=(3, 10)), 'no class 10: the model has 0 to 9'),
        (dict(guidance=-2.0), 'a number from 0'),
        (dict(number=0), '1 at least'),
        (dict(seed=-1), 'the seed 0'),
        (dict(guided_channels=4), 'need to be 1 to 3: 4'),
        (dict(guided_channels=0), 'need to be 1 to 3: 0'),
    ],
)
def test_an_order_that_makes_no_sense_is_refused(tmp_path, change, message):
    with pytest.raises(UserError, match=message):
        draw_share(pixel_model(), replace(ORDER, **change), tmp_path / 'x')
    assert not (tmp_path / 'x').exists()


def test_a_folder_of_another_order_is_refused(tmp_path):
    draw_share(pixel_model(), ORDER, tmp_path)
    for change, named in (
        (dict(seed=4), 'seed 3, not 4'),
        (dict(classes=(1,), seed=4), r'classes \[\], not \[1\]; seed 3, not 4'),
    ):
        with pytest.raises(UserError, match=rf'other settings \({named}\): name another --out'):
            draw_share(pixel_model(), replace(ORDER, **change), tmp_path)


def test_a_damaged_part_is_named(tmp_path):
    draw_share(pixel_model(), ORDER, tmp_path)
    part = part_file(tmp_path, 1)
    part.write_bytes(part.read_bytes()[:100])
    with pytest.raises(UserError, match='000001.npz is damaged'):
        draw_share(pixel_model(), ORDER, tmp_path)


class Enlarger(nn.Module):
    """A VAE whose images are the first channels of the latents, twice as large, in [-1, 1]."""

    config = SimpleNamespace(latent_channels=4)

    def decode(self, latents):
        images = nn.functional.interpolate(latents[:, :3], scale_factor=2).clamp(-1, 1)
        return type('Output', (), dict(sample=images))


def test_latents_need_a_vae(tmp_path):
    model = pixel_model()
    model.backbone = toy_host()
    with pytest.raises(UserError, match='with --vae'):
        draw_share(model, ORDER, tmp_path / 'without')
    with pytest.raises(UserError, match='latents of 4 channels, and this model draws 3'):
        draw_share(pixel_model(), ORDER, tmp_path / 'images', Enlarger())
    file = draw_share(model, ORDER, tmp_path / 'with', Enlarger())
    assert file.name == 'samples_10x32x32x3.npz'


def test_pixels_are_what_the_decoder_gives_rounded():
    model = pixel_model()
    latents = torch.tensor([[-1.0, -0.5], [0.25, 1.0]]).expand(4, 4, 2, 2)
    model.sample = lambda *args: latents
    images, _ = draw_batch(model, ORDER, 0, Enlarger())
    assert images.shape == (4, 4, 4, 3)
    # -0.5 is 63.75 of 255, and 0.25 is 159.375.
    assert (images[:, ::2, 1::2] == np.array([[0, 64], [159, 255]])[..., None]).all()


def test_every_class_is_drawn():
    model = pixel_model()
    model.sample = lambda labels, *args: torch.zeros(len(labels), 3, 16, 16)
    _, labels = draw_batch(model, replace(ORDER, number=200, batch_size=200), 0, None)
    assert set(labels.tolist()) == set(range(10))


def test_grid_shows_the_first_samples_row_by_row(tmp_path):
    images = np.arange(5, dtype=np.uint8).reshape(5, 1, 1, 1).repeat(2, 1).repeat(3, 2).repeat(3, 3)
    sheet = tile(images, 2)
    assert sheet.shape == (3 * 3 + 1, 2 * 4 + 1, 3)
    assert (sheet[4:6, 5:8] == 3).all() and (sheet[7:9, 5:8] == 255).all()
    draw_share(pixel_model(), ORDER, tmp_path)
    with Image.open(save_first(ORDER, tmp_path, 3)) as grid:
        assert grid.size == (3 * 17 + 1, 3 * 17 + 1)


def test_every_sampler_is_the_same_twice(tmp_path):
    for sampler in ('sde', 'heun'):
        model = pixel_model(sampler=sampler)
        first, second = (draw_share(model, ORDER, tmp_path / f'{sampler}{i}') for i in range(2))
        assert (np.load(first)['arr_0'] == np.load(second)['arr_0']).all()
    assert torch.is_grad_enabled()
