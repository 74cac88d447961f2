"""Predictions of several segmentors side by side."""

import cv2
import numpy as np
import pytest

from tests.test_apis.conftest import DETECTOR, SEGMENTOR, save_weights, toy


def test_segmentors_are_drawn_and_other_checkpoints_refused(run, tmp_path, capsys):
    for name, config in (('segmentor', SEGMENTOR), ('detector', DETECTOR)):
        cfg = toy(config)
        cfg.dump(tmp_path / f'{name}.py')
        save_weights(cfg, tmp_path / f'{name}.pth')
    cv2.imwrite('a.png', np.full((48, 64, 3), 99, np.uint8))
    command = ('analysis_tools/compare_segmentations', 'a.png', '--out', 'out.png', '--models')
    run(*command, 'One=segmentor.py:segmentor.pth', 'Two=segmentor.py:segmentor.pth')
    assert cv2.imread('out.png').shape[1] > 500
    for model, message in (
        ('segmentor.py:detector.pth', 'is of another model'),
        ('detector.py:detector.pth', 'takes segmentors'),
    ):
        with pytest.raises(SystemExit):
            run(*command, f'One={model}')
        assert message in capsys.readouterr().err
