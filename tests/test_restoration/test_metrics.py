"""PSNR and SSIM, by hand and against scikit-image."""

import math

import numpy as np
import pytest
import torch

from mirrorla_mm.engine.errors import UserError
from mirrorla_mm.restoration.metrics import PSNR, SSIM, to_uint8


def images(height=32, width=40, seed=0):
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    noise = rng.integers(-20, 21, truth.shape)
    return (truth + noise).clip(0, 255).astype(np.uint8), truth


def luma(image):
    """BT.601, studio range, from 8 bits."""
    return image @ np.array([65.481, 128.553, 24.966]) / 255 + 16


def test_psnr_is_that_of_the_luma_without_a_border_of_the_scale():
    image, truth = images()
    error = (luma(image) - luma(truth))[3:-3, 3:-3]
    expected = 10 * math.log10(255**2 / (error**2).mean())
    assert PSNR().measure(image, truth, dict(scale=3)) == pytest.approx(expected, abs=1e-4)


def test_border_and_colours_are_options():
    image, truth = images()
    error = image.astype(float) - truth
    expected = 10 * math.log10(255**2 / (error**2).mean())
    metric = PSNR(crop_border=0, convert_to=None)
    assert metric.measure(image, truth, dict(scale=3)) == pytest.approx(expected)


def test_equal_images_have_no_noise_and_full_similarity():
    _, truth = images()
    assert PSNR().measure(truth, truth, dict(scale=2)) == math.inf
    assert SSIM().measure(truth, truth, dict(scale=2)) == pytest.approx(1, abs=1e-12)


def test_ssim_is_that_of_scikit_image():
    from skimage.metrics import structural_similarity

    image, truth = (x.astype(np.float64) for x in images())
    expected = structural_similarity(
        image,
        truth,
        channel_axis=2,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        data_range=255,
    )
    assert SSIM().compare(image, truth) == pytest.approx(expected, abs=1e-12)


def test_predictions_are_rounded_to_8_bits():
    image = torch.tensor([[[0.499, -0.2, 1.7]]]).expand(3, 1, 3) * torch.tensor(1.0)
    assert to_uint8(image)[0, :, 0].tolist() == [127, 0, 255]
    assert to_uint8((image * 0 + 10).byte())[0, 0, 0] == 10


@pytest.mark.parametrize('metric', [PSNR(), SSIM()])
@pytest.mark.parametrize('number', [math.nan, math.inf])
def test_predictions_of_a_broken_model_are_not_scored(metric, number):
    _, truth = images()
    prediction = torch.zeros(3, *truth.shape[:2])
    prediction[1, 2, 3] = number
    sample = dict(
        pred_img=prediction, gt_img=torch.from_numpy(truth).permute(2, 0, 1), gt_path='a.png'
    )
    with pytest.raises(UserError, match=r'The prediction for a\.png holds NaN or infinity'):
        metric.process(None, [sample])


def test_a_row_for_each_set_and_the_mean_of_the_rows():
    image, truth = images()
    samples = [
        dict(
            pred_img=torch.from_numpy(x).permute(2, 0, 1) / 255,
            gt_img=torch.from_numpy(truth).permute(2, 0, 1),
            scale=2,
            dataset=name,
        )
        for x, name in ((image, 'A'), (image, 'A'), (images(seed=1)[0], 'B'))
    ]
    metric = PSNR()
    metric.process(None, samples)
    rows = metric.evaluate(3)
    first = metric.measure(image, truth, samples[0])
    assert rows['A/PSNR'] == pytest.approx(first)
    assert rows['PSNR'] == pytest.approx((rows['A/PSNR'] + rows['B/PSNR']) / 2)
    metric.process(None, samples[:2])
    assert metric.evaluate(2) == dict(PSNR=pytest.approx(first))


@pytest.mark.parametrize(
    ('metric', 'height', 'message'),
    [(PSNR, 8, 'too small'), (SSIM, 18, '11x11'), (SSIM, 31, 'pixels, its')],
)
def test_what_cannot_be_compared_is_said(metric, height, message):
    image, truth = images(height)
    image = image[:30] if height == 31 else image
    with pytest.raises(ValueError, match=message):
        metric().measure(image, truth, dict(scale=4, gt_path='x.png'))


def test_another_colour_space_is_refused():
    with pytest.raises(ValueError, match="'Y' or None"):
        PSNR(convert_to='L')
