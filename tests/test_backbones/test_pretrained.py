"""A host starts from a checkpoint whole or says in a sentence why not."""

import pytest
import torch

from mirrorla_mm.backbones import RAVLT, LinearSwin
from mirrorla_mm.backbones.deploy import deploy
from mirrorla_mm.engine import CheckpointError
from tests.archs import TINY


def start_from(file, content) -> None:
    torch.save(content, file)
    RAVLT(TINY, init_cfg=dict(type='Pretrained', checkpoint=str(file))).init_weights()


def test_missing_statistics_of_a_norm_whose_weight_is_there_are_refused(tmp_path):
    weights = RAVLT(TINY).state_dict()
    start_from(tmp_path / 'whole.pth', weights)
    lacking = {key: value for key, value in weights.items() if 'running' not in key}
    with pytest.raises(CheckpointError, match=r'it lacks \S+\.running_mean, the statistics of a'):
        start_from(tmp_path / 'lacking.pth', lacking)


def test_weights_that_were_folded_for_inference_are_refused(tmp_path):
    folded = deploy(RAVLT(TINY).eval()).state_dict()
    with pytest.raises(CheckpointError, match='folded for inference before it was saved'):
        start_from(tmp_path / 'folded.pth', folded)


@pytest.mark.parametrize('dtype', [torch.int8, torch.bool, torch.complex64])
def test_weights_of_another_kind_of_numbers_are_refused(tmp_path, dtype):
    weights = RAVLT(TINY).state_dict()
    key = next(iter(weights))
    with pytest.raises(CheckpointError, match=rf'other\.pth does not fit RAVLT: {key} (is|holds)'):
        start_from(tmp_path / 'other.pth', {**weights, key: weights[key].to(dtype)})


def test_a_checkpoint_in_a_list_is_refused(tmp_path):
    init_cfg = [dict(type='Pretrained', checkpoint=str(tmp_path / 'any.pth'))]
    for host in (RAVLT(TINY, init_cfg=init_cfg), LinearSwin('t', init_cfg=init_cfg)):
        with pytest.raises(ValueError, match='init_cfg needs to be the dict'):
            host.init_weights()


@pytest.mark.parametrize('content', [[1, 2], {'state_dict': 3}, {'state_dict': {0: 1}}])
def test_files_without_weights_are_refused(tmp_path, content):
    with pytest.raises(CheckpointError, match='holds no weights'):
        start_from(tmp_path / 'odd.pth', content)


def test_entries_that_are_no_tensors_are_refused(tmp_path):
    with pytest.raises(CheckpointError, match='does not fit RAVLT'):
        start_from(tmp_path / 'text.pth', dict.fromkeys(RAVLT(TINY).state_dict(), 'text'))
