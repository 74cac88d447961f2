"""The resize, against images that MATLAB made."""

import cv2
import mmcv
import numpy as np
import pytest

from mirrorla_mm.restoration.metrics import PSNR, SSIM
from mirrorla_mm.restoration.resize import downscale, upscale
from tests.test_restoration.toy import draw


def test_low_resolution_images_of_set5_are_met_to_the_last_bit(image_root):
    root = image_root('sr') / 'Set5'
    paths = list((root / 'HR').glob('*.png'))
    assert len(paths) == 5
    for path in paths:
        small = cv2.imread(str(root / 'LR_bicubic/X4' / f'{path.stem}x4.png'))
        assert np.array_equal(downscale(cv2.imread(str(path)), 4), small), path.name


@pytest.mark.parametrize('scale', [2, 3, 4])
def test_sizes_are_cut_to_multiples(scale):
    image = draw(25, 38)
    small = downscale(image, scale)
    assert small.shape == (25 // scale, 38 // scale, 3)
    assert np.array_equal(downscale(image[: 25 // scale * scale], scale), small)
    assert upscale(small, scale).shape == (25 // scale * scale, 38 // scale * scale, 3)


def cubic(x):
    """Keys' kernel with a = -1/2."""
    x = np.abs(x)
    near = 1.5 * x**3 - 2.5 * x**2 + 1
    far = -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    return np.where(x < 1, near, np.where(x < 2, far, 0))


def weights(length, new):
    """The matrix of MATLAB's ``imresize`` for one axis: a wide kernel where it shrinks."""
    factor = new / length
    stretch = min(factor, 1)
    matrix = np.zeros((new, length))
    reach = int(np.ceil(2 / stretch)) + 1
    for row in range(new):
        centre = (row + 0.5) / factor - 0.5
        for place in range(int(centre) - reach, int(centre) + reach + 2):
            mirrored = place % (2 * length)
            mirrored = min(mirrored, 2 * length - 1 - mirrored)
            matrix[row, mirrored] += cubic((place - centre) * stretch)
    return matrix / matrix.sum(1, keepdims=True)


def by_hand(image, height, width):
    for length in (height, width):
        image = np.floor(weights(len(image), length) @ image.astype(float) + 0.5).clip(0, 255).T
    return image


@pytest.mark.parametrize('scale', [2, 3, 4])
def test_is_the_matrix_written_out_with_rounding_after_each_axis(scale):
    image = draw(24, 36, seed=3)[..., 0]
    small = downscale(image[..., None], scale)[..., 0]
    assert np.array_equal(small, by_hand(image, 24 // scale, 36 // scale))
    large = upscale(small[..., None], scale)[..., 0]
    assert np.array_equal(large, by_hand(small, 24, 36))


def test_the_paper_s_bicubic_row_is_of_the_luma_alone(image_root):
    # Table 4 prints 28.42 and 0.8104: of the rounded luma, shrunk and enlarged without rounding.
    colour, luma = [], []
    for path in (image_root('sr') / 'Set5/HR').glob('*.png'):
        truth = cv2.imread(str(path))[..., ::-1]
        height, width = (n // 4 * 4 for n in truth.shape[:2])
        truth = np.ascontiguousarray(truth[:height, :width])
        colour.append(PSNR().measure(upscale(downscale(truth, 4), 4), truth, dict(scale=4)))
        y = np.floor(mmcv.rgb2ycbcr(truth.astype(np.float32) / 255, y_only=True) * 255 + 0.5)
        rows, columns = (weights(n // 4, n) @ weights(n, n // 4) for n in (height, width))
        images = [x.clip(0, 255).round().astype(np.uint8) for x in (rows @ y @ columns.T, y)]
        metrics = (PSNR(4, convert_to=None), SSIM(4, convert_to=None))
        luma.append([metric.measure(*(x[..., None] for x in images), {}) for metric in metrics])
    assert np.mean(colour) == pytest.approx(28.429, abs=5e-4)
    assert np.mean(luma, 0) == pytest.approx([28.4207, 0.8104], abs=5e-4)
