"""Image files that cannot be trusted."""

import numpy as np
import pytest
from PIL import Image, features

from mirrorla_mm.diffusion.datasets import read_square
from mirrorla_mm.engine.data import DataError
from mirrorla_mm.engine.images import cut_short, opening_problem, orientation, read_image
from mirrorla_mm.restoration.images import read_image as read_to_restore
from tests.exif import turned

EPS = b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n%%EOF\n'


def test_read_image_is_bgr_and_turned_as_exif_says(tmp_path):
    image = read_image(turned(tmp_path / 'a.jpg', 6))
    assert image.shape == (60, 40, 3) and image[0, 0].argmax() == 2


@pytest.mark.parametrize('suffix', ['jpg', 'png'])
@pytest.mark.parametrize('value', [1, 3, 8])
def test_orientation_is_read_from_the_header(tmp_path, suffix, value):
    assert orientation(turned(tmp_path / f'a.{suffix}', value)) == value


def test_files_without_an_image_have_no_orientation(tmp_path):
    (tmp_path / 'a.jpg').write_bytes(b'text')
    assert orientation(tmp_path / 'a.jpg') == orientation(tmp_path / 'none.jpg') == 1


@pytest.mark.parametrize(
    ('content', 'message'),
    [(None, 'does not exist'), (b'', r'is empty \(0 bytes\)'), (b'text', 'is no readable image')],
)
def test_no_image_is_refused_by_name(tmp_path, content, message):
    if content is not None:
        (tmp_path / 'a.jpg').write_bytes(content)
    with pytest.raises(DataError, match=rf'a\.jpg {message}'):
        read_image(tmp_path / 'a.jpg')


def test_no_image_is_read_without_permission(tmp_path, monkeypatch):
    Image.new('L', (30, 30)).save(tmp_path / 'a.png')
    monkeypatch.setattr('os.access', lambda path, mode: False)
    assert cut_short(tmp_path / 'a.png') is None
    with pytest.raises(DataError, match=r'a\.png cannot be opened: you have no permission'):
        read_image(tmp_path / 'a.png')


def test_bomb_is_known_by_its_header_at_any_size(tmp_path, monkeypatch):
    Image.new('L', (300, 300)).save(tmp_path / 'a.png')
    for limit, dangerous in ((300 * 300, False), (50_000, True), (10_000, True)):
        monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', limit)
        assert (opening_problem(tmp_path / 'a.png') is not None) == dangerous


@pytest.mark.parametrize('read', [read_image, read_to_restore, lambda path: read_square(path, 32)])
def test_no_program_is_run_for_postscript_by_another_name(tmp_path, monkeypatch, read):
    ran = []
    monkeypatch.setattr('PIL.EpsImagePlugin.Ghostscript', lambda *args: ran.append(args))
    (tmp_path / 'a.png').write_bytes(EPS)
    with pytest.raises(DataError, match=r'a\.png is no image, but a program in PostScript'):
        read(tmp_path / 'a.png')
    assert not ran


@pytest.mark.parametrize('kind', ['AVIF', 'TGA', 'PCX', 'PPM', 'GIF', 'WEBP', 'TIFF'])
def test_an_image_is_known_by_its_content(tmp_path, kind):
    if kind == 'AVIF' and not features.check('avif'):
        pytest.skip('this Pillow has no AVIF')
    Image.new('RGB', (40, 30), (200, 0, 0)).save(tmp_path / 'a.jpg', format=kind)
    assert read_square(tmp_path / 'a.jpg', 16)[..., 0].mean() == pytest.approx(200, abs=3)


def test_a_folder_is_no_image(tmp_path):
    (tmp_path / 'a.png').mkdir()
    assert opening_problem(tmp_path / 'a.png') == 'is a folder'
    assert cut_short(tmp_path / 'a.png') is None


def test_a_name_that_no_file_can_have_does_not_exist(tmp_path):
    assert opening_problem(tmp_path / ('a' * 300)) == 'does not exist'


def test_half_a_file_is_cut_short_and_a_whole_one_with_a_tail_is_not(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (60, 60, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / 'a.jpg')
    content = (tmp_path / 'a.jpg').read_bytes()
    (tmp_path / 'a.jpg').write_bytes(content[: len(content) // 2])
    assert cut_short(tmp_path / 'a.jpg').startswith('is cut short')
    (tmp_path / 'a.jpg').write_bytes(content + b'maker note')
    assert cut_short(tmp_path / 'a.jpg') is None
