"""Image files of every kind, there and back."""

import struct
import zlib

import cv2
import numpy as np
import pytest
import torch
from PIL import Image as PillowImage
from PIL import ImageOps

from mirrorla_mm.restoration.images import Image, read_image, write_png
from tests.exif import ORIENTATION
from tests.test_restoration.toy import draw


def kinds():
    image = draw(9, 12)
    deep = image.astype(np.uint16) * 251
    return dict(
        colour=image,
        grey=image[..., 1],
        clear=np.dstack((image, image[..., 0])),
        deep=deep,
        deep_grey=deep[..., 2],
        deep_clear=np.dstack((deep, deep[..., 1])),
    )


@pytest.mark.parametrize('kind', kinds())
def test_files_come_back_as_they_were(tmp_path, kind):
    array = kinds()[kind]
    write_png(array, tmp_path / 'x.png')
    image = read_image(tmp_path / 'x.png')
    assert (
        image.colours.shape == (3, 9, 12) and 0 <= image.colours.min() <= image.colours.max() <= 1
    )
    back = image.array()
    assert back.dtype == array.dtype and np.array_equal(back, array)
    assert np.array_equal(cv2.imread(str(tmp_path / 'x.png'), cv2.IMREAD_UNCHANGED), back)


def stored(kind: str) -> PillowImage.Image:
    """An image of 9x12 with opacity 40 to 250 in one of Pillow's modes, or without any."""
    colours = PillowImage.fromarray(draw(9, 12))
    alpha = PillowImage.fromarray(np.linspace(40, 250, 9 * 12).reshape(9, 12).astype(np.uint8))
    if kind == 'CMYK':
        return colours.convert('CMYK')
    image = colours.convert(kind.removesuffix('A'))
    image.putalpha(alpha)
    return image


@pytest.mark.parametrize('suffix', ['png', 'tif'])
@pytest.mark.parametrize('kind', ['RGBA', 'LA'])
@pytest.mark.parametrize('turn', [1, 2, 3, 4, 5, 6, 7, 8])
def test_opacity_changes_no_colours_and_what_is_turned_is_upright(tmp_path, suffix, kind, turn):
    image, exif = stored(kind), PillowImage.Exif()
    exif[ORIENTATION] = turn
    image.save(tmp_path / f'a.{suffix}', exif=exif)
    image.getexif()[ORIENTATION] = turn
    expected = np.asarray(ImageOps.exif_transpose(image).convert('RGBA'))
    read = read_image(tmp_path / f'a.{suffix}')
    assert np.array_equal(read.array(), expected[..., [2, 1, 0, 3]])
    assert read.grey == (kind == 'LA')


@pytest.mark.parametrize('turn', [1, 2, 3, 4, 5, 6, 7, 8])
def test_deep_colours_with_opacity_are_turned_as_others_are(tmp_path, turn):
    array = np.asarray(stored('RGBA'))
    exif = PillowImage.Exif()
    exif[ORIENTATION] = turn
    PillowImage.fromarray(array).save(tmp_path / 'a.png', exif=exif)
    deep = cv2.imencode('.png', array[..., [2, 1, 0, 3]].astype(np.uint16) * 257)[1].tobytes()
    chunk = b'eXIf' + exif.tobytes().removeprefix(b'Exif\0\0')
    chunk = struct.pack('>I', len(chunk) - 4) + chunk + struct.pack('>I', zlib.crc32(chunk))
    place = deep.index(b'IDAT') - 4
    (tmp_path / 'b.png').write_bytes(deep[:place] + chunk + deep[place:])
    plain, deep = (read_image(tmp_path / f'{name}.png').array() for name in 'ab')
    assert deep.dtype == np.uint16 and np.array_equal(deep, plain * np.uint16(257))


def test_grey_with_a_transparent_value_keeps_it_and_ink_gets_no_opacity(tmp_path):
    grey = PillowImage.fromarray(draw(9, 12)).convert('L')
    grey.save(tmp_path / 'a.png', transparency=grey.getpixel((3, 4)))
    read = read_image(tmp_path / 'a.png')
    assert read.grey and read.alpha[0, 4, 3] == 0 and read.alpha.max() == 1
    stored('CMYK').save(tmp_path / 'a.tif')
    assert read_image(tmp_path / 'a.tif').alpha is None


def test_opacity_is_enlarged_with_the_colours():
    ramp = torch.linspace(0, 1, 8).expand(1, 8, 8)
    alpha = Image(torch.zeros(3, 8, 8), alpha=ramp).enlarged(torch.zeros(3, 16, 16)).array()[..., 3]
    # A ramp stays one: between the outer pixels, whose half lies beyond the border.
    expected = 255 * (torch.arange(16) / 2 - 0.25) / 7
    assert abs(alpha[:, 4:12] - expected[4:12].numpy()).max() <= 1


def test_values_beyond_the_range_are_cut_and_nothing_is_overwritten():
    colours = torch.tensor([-0.5, 0.5, 1.5]).view(3, 1, 1)
    image = Image(colours, alpha=torch.tensor([[[2.0]]]), grey=False)
    assert image.array().tolist() == [[[255, 128, 0, 255]]]
    assert colours.flatten().tolist() == [-0.5, 0.5, 1.5]
    grey = Image(torch.full((3, 1, 1), 0.2), alpha=torch.zeros(1, 1, 1), grey=True)
    assert grey.array().tolist() == [[[51, 51, 51, 0]]]
