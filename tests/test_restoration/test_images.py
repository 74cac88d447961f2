"""Image files of every kind, there and back."""

import cv2
import numpy as np
import pytest
import torch

from mirrorla_mm.restoration.images import Image, read_image, write_png
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
