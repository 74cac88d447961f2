"""Folders of latents and images, and drawn shapes."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from mirrorla_mm.diffusion.datasets import LoadLatent, read_square
from mirrorla_mm.diffusion.shapes import CLASSES
from mirrorla_mm.diffusion.vae import encode_folders, encode_views
from mirrorla_mm.engine.data import DataError
from mirrorla_mm.engine.errors import UserError
from mirrorla_mm.registry import DATASETS

PACK = dict(type='mirrorla_mm.PackDiffusionInputs')


def folders(root, *transforms, **options):
    pipeline = [*transforms, PACK]
    kind = dict(type='mirrorla_mm.ClassFolders', data_root=str(root), pipeline=pipeline, **options)
    return DATASETS.build(kind)


def test_classes_are_numbered_by_name_and_found_at_any_depth(tmp_path):
    for place in ('b/1.npy', 'b/deep/2.npy', 'a/3.npy'):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        np.save(tmp_path / place, np.full((4, 8, 8), 2, np.float16))
    (tmp_path / 'a/notes.txt').touch()
    data = folders(tmp_path, dict(type='mirrorla_mm.LoadLatent'))
    samples = [data[index] for index in range(len(data))]
    assert [sample['data_samples'].gt_label for sample in samples] == [0, 1, 1]
    assert samples[0]['inputs'].dtype == torch.float32 and samples[0]['inputs'].shape == (4, 8, 8)
    assert samples[2]['data_samples'].img_path.endswith('b/deep/2.npy')


def test_latents_are_drawn_around_the_mean_of_a_view(tmp_path):
    views = np.stack([np.stack([np.full((4, 8, 8), m), np.full((4, 8, 8), s)])
                      for m, s in ((5.0, 0.1), (-5.0, 0.3))])  # fmt: skip
    np.save(tmp_path / 'x.npy', views.astype(np.float16))
    load = LoadLatent()
    drawn = [load(dict(img_path=str(tmp_path / 'x.npy')))['img'] for _ in range(40)]
    first = np.array([latent for latent in drawn if latent.mean() > 0])
    second = np.array([latent for latent in drawn if latent.mean() < 0])
    assert 10 < len(first) < 30
    assert first.mean() == pytest.approx(5, abs=0.02) and first.std() == pytest.approx(0.1, rel=0.1)
    assert second.std() == pytest.approx(0.3, rel=0.1)


def test_damaged_and_strange_latents_are_refused_in_a_sentence(tmp_path):
    file = tmp_path / 'x.npy'
    np.save(file, np.zeros((4, 8, 8)))
    content = file.read_bytes()
    strange = tmp_path / 'strange.npy'
    np.save(strange, np.zeros((8, 8)))
    for name, array in (
        ('nan', np.full((4, 8, 8), np.nan)),
        ('large', np.full((4, 8, 8), 1e300)),
        ('bool', np.ones((4, 8, 8), bool)),
        ('text', np.full((4, 8, 8), 'a')),
        ('complex', np.zeros((4, 8, 8), complex)),
        ('none', np.zeros((0, 2, 4, 8, 8))),
    ):
        np.save(tmp_path / f'{name}.npy', array)
    objects = tmp_path / 'objects.npy'
    np.save(objects, np.array([{}], dtype=object), allow_pickle=True)
    file.write_bytes(content[: len(content) // 2])
    for path, message in (
        (file, 'x.npy cannot be read'),
        (objects, 'objects.npy cannot be read'),
        (strange, r'its shape is \(8, 8\)'),
        (tmp_path / 'absent.npy', 'absent.npy cannot be read'),
        (tmp_path / 'nan.npy', 'nan.npy is no latent: not all in it are finite'),
        (tmp_path / 'large.npy', 'not all in it are finite numbers in float32'),
        (tmp_path / 'bool.npy', 'bool.npy is no latent: it holds bool, not real numbers'),
        (tmp_path / 'text.npy', 'it holds <U1, not real numbers'),
        (tmp_path / 'complex.npy', 'it holds complex128, not real numbers'),
        (tmp_path / 'none.npy', r'its shape is \(0, 2, 4, 8, 8\)'),
    ):
        with pytest.raises(DataError, match=message):
            LoadLatent()(dict(img_path=str(path)))


@pytest.mark.parametrize('make', [lambda root: None, lambda root: (root / 'a').mkdir()])
def test_folders_without_files_are_refused(tmp_path, make):
    make(tmp_path)
    with pytest.raises(DataError, match='holds no'):
        folders(tmp_path)
    with pytest.raises(DataError, match='holds no folders'):
        folders(tmp_path / 'absent')


def test_images_are_shrunk_cut_and_mirrored(tmp_path):
    (tmp_path / 'a').mkdir()
    pixels = np.zeros((70, 130, 3), np.uint8)
    pixels[:, 65:, 0] = 255  # red on the right, black on the left
    Image.fromarray(pixels).save(tmp_path / 'a/x.png')
    square = dict(type='mirrorla_mm.LoadSquareImage', size=32)
    data = folders(tmp_path, square, suffixes=['.PNG'])
    images = torch.stack([data[0]['inputs'] for _ in range(20)])
    assert images.shape == (20, 3, 32, 32) and images.dtype == torch.uint8
    right = (images[:, 0, :, 20:] > 200).all(2).all(1)
    left = (images[:, 0, :, :12] > 200).all(2).all(1)
    assert (right ^ left).all() and 4 < right.sum() < 16
    assert images[:, 1:].max() == 0


def test_no_square_is_cut_out_of_a_strip(tmp_path):
    Image.new('L', (100, 1)).save(tmp_path / 'x.png')
    assert read_square(tmp_path / 'x.png', 8).shape == (8, 8, 3)
    Image.new('L', (1, 101)).save(tmp_path / 'x.png')
    with pytest.raises(DataError, match='has 1 x 101 pixels, and no square is cut out of a strip'):
        read_square(tmp_path / 'x.png', 8)


@pytest.mark.parametrize('size', [(32, 32), (33, 100), (64, 65), (500, 200), (7, 9)])
def test_any_image_becomes_a_square_of_its_mean(tmp_path, size):
    rng = np.random.default_rng(0)
    pixels = rng.integers(100, 156, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / 'x.png')
    square = read_square(tmp_path / 'x.png', 32)
    assert square.shape == (32, 32, 3)
    assert square.mean() == pytest.approx(pixels.mean(), abs=3)


def test_an_image_below_twice_the_size_is_not_halved(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (48, 48, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    image.save(tmp_path / 'x.png')
    plain = np.asarray(image.resize((32, 32), Image.Resampling.BICUBIC))
    assert (read_square(tmp_path / 'x.png', 32) == plain).all()


class Shrinker(nn.Module):
    """A VAE whose latents are images of half the side."""

    def __init__(self, factor=1.0):
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(factor))

    def encode(self, x):
        mean = nn.functional.avg_pool2d(x, 2) * self.factor
        latents = SimpleNamespace(mean=mean, std=torch.ones_like(mean))
        return SimpleNamespace(latent_dist=latents)


def test_latents_are_those_of_the_image_and_of_its_mirror_image():
    pixels = torch.tensor([[0.0, 51, 102], [153, 204, 255]])
    images = pixels.repeat_interleave(2, 0).repeat_interleave(2, 1).expand(1, 3, 4, 6)
    views = encode_views(Shrinker(), images)
    assert views.shape == (1, 2, 2, 3, 2, 3) and (views[:, :, 1] == 1).all()
    seen = np.array([[-1, -0.6, -0.2], [0.2, 0.6, 1]])
    for view, expected in ((0, seen), (1, seen[:, ::-1])):
        assert abs(views[0, view, 0] - expected).max() < 1e-3


def test_latents_of_another_size_or_vae_are_not_mixed(tmp_path):
    (tmp_path / 'images/a').mkdir(parents=True)
    Image.new('RGB', (40, 50)).save(tmp_path / 'images/a/x.png')
    place = tmp_path / 'images', tmp_path / 'out'
    assert encode_folders(Shrinker(), *place, size=16) == 1
    assert encode_folders(Shrinker(), *place, size=16) == 0
    for vae, size in ((Shrinker(), 32), (Shrinker(2.0), 16)):
        with pytest.raises(UserError, match='results of other settings'):
            encode_folders(vae, *place, size=size)
    with pytest.raises(UserError, match='1 at least'):
        encode_folders(Shrinker(), *place, size=0)


def test_damaged_images_are_refused_in_a_sentence(tmp_path):
    file = tmp_path / 'x.png'
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(file)
    file.write_bytes(file.read_bytes()[:600])
    with pytest.raises(DataError, match='x.png cannot be read'):
        read_square(file, 32)


@pytest.mark.parametrize('suffix', ['png', 'tif'])
def test_grey_images_of_16_bits_keep_their_brightness(tmp_path, suffix):
    deep = np.repeat(np.arange(64, dtype=np.uint16)[None] << 10, 64, 0)
    Image.fromarray(deep).save(tmp_path / f'x.{suffix}')
    square = read_square(tmp_path / f'x.{suffix}', 64)
    assert np.array_equal(square, np.repeat((deep >> 8)[..., None], 3, 2))


@pytest.mark.parametrize('kind', [np.int32, np.float32])
def test_images_of_32_bits_are_refused(tmp_path, kind):
    Image.fromarray(np.ones((8, 8), kind)).save(tmp_path / 'x.tif')
    with pytest.raises(DataError, match='x.tif cannot be read: it holds numbers of 32 bits'):
        read_square(tmp_path / 'x.tif', 8)


def test_images_of_too_many_pixels_are_refused_by_their_header(tmp_path, monkeypatch):
    Image.new('RGB', (64, 64)).save(tmp_path / 'x.png')
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 1000)
    with pytest.raises(DataError, match=r'x\.png has 0 million pixels, and no more than 0'):
        read_square(tmp_path / 'x.png', 32)


def test_drawings_depend_on_index_and_seed_alone():
    def drawn(seed, index):
        kind = dict(type='mirrorla_mm.DrawnShapes', length=20, seed=seed, pipeline=[PACK])
        return DATASETS.build(kind)[index]

    first = drawn(0, 13)
    assert first['data_samples'].gt_label == 13 % len(CLASSES)
    assert first['inputs'].shape == (3, 32, 32) and first['inputs'].dtype == torch.uint8
    assert torch.equal(first['inputs'], drawn(0, 13)['inputs'])
    assert not torch.equal(first['inputs'], drawn(1, 13)['inputs'])
    part = dict(type='mirrorla_mm.DrawnShapes', length=20, indices=[13], pipeline=[PACK])
    assert torch.equal(first['inputs'], DATASETS.build(part)[0]['inputs'])
    assert not torch.equal(first['inputs'], drawn(0, 7)['inputs'])
