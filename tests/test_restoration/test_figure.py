"""Which part of an image a comparison shows."""

import numpy as np

from mirrorla_mm.restoration.figure import find_detail


def test_the_detail_is_where_bicubic_interpolation_errs_most():
    truth = np.zeros((20, 30, 3), np.uint8)
    bicubic = truth.copy()
    bicubic[2:6, 3:7] = 10
    bicubic[11:15, 22:26] = 20
    assert find_detail(truth, bicubic, 4) == (11, 22)
