"""Enlarged images of a test run, as files."""

from types import SimpleNamespace

import cv2
import torch

from mirrorla_mm.restoration.hooks import SaveImagesHook


def test_images_are_saved_in_their_colours_by_data_set_and_name(tmp_path):
    red = torch.tensor([1.0, 0.5, 0.0]).view(3, 1, 1).expand(3, 4, 6)
    sample = SimpleNamespace(gt_path='HR/baby.bmp', dataset='Set5', pred_img=red)
    SaveImagesHook(str(tmp_path)).after_test_iter(None, 0, outputs=[sample])
    image = cv2.imread(str(tmp_path / 'Set5/baby.png'))
    assert image.shape == (4, 6, 3) and image[0, 0].tolist() == [0, 128, 255]
