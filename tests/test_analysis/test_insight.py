"""The measures behind the figures, against cases whose answer is known."""

import json
import math

import numpy as np
import pytest
import torch

from mirrorla_mm.analysis.attention_maps import attention_rows, token_at
from mirrorla_mm.analysis.capture import Captured, normalise, read_shrunk
from mirrorla_mm.analysis.covariance import independent_heads, mixing
from mirrorla_mm.analysis.curves import chosen_metrics, read_curves
from mirrorla_mm.analysis.theorem_3_1 import (
    many_clusters,
    pair_disagreement,
    random_clusters,
)
from mirrorla_mm.analysis.topology import (
    effective_rank,
    mean_entropy,
    paradigms,
    principal_components,
)
from mirrorla_mm.attention import Reflection
from mirrorla_mm.engine.errors import UserError
from mirrorla_mm.registry import build_attention


def test_effective_rank_counts_equal_directions():
    assert effective_rank(torch.eye(5)) == pytest.approx(5)
    assert effective_rank(torch.ones(5, 3)) == pytest.approx(1)
    assert effective_rank(torch.zeros(5, 3)) == 0


def test_entropy_is_one_for_uniform_and_zero_for_a_single_key():
    assert mean_entropy(torch.full((4, 8), 1 / 8)) == pytest.approx(1)
    assert mean_entropy(torch.eye(8)) == pytest.approx(0)


def test_principal_components_keep_the_distances_of_rows_of_rank_three():
    rows = torch.randn(40, 3, dtype=torch.float64) @ torch.randn(3, 20, dtype=torch.float64)
    scores = principal_components(rows)
    distances = torch.cdist(scores, scores), torch.cdist(rows, rows)
    torch.testing.assert_close(*distances, rtol=1e-6, atol=1e-6)


def test_pair_disagreement_is_the_mean_over_all_pairs():
    mask = torch.rand(7, 2) > 0.5
    pairs = [(mask[i] != mask[j]).sum() for i in range(7) for j in range(7) if i != j]
    assert pair_disagreement(mask).item() == pytest.approx(
        torch.stack(pairs).double().mean().item()
    )


def test_plain_reflection_of_figure_1_changes_no_attention_and_relu_does():
    q, k = torch.randn(2, 1, 2, 30, 8)
    identity, plain, relu, mirrored = paradigms(q, k, Reflection(16, 2), head=1)
    torch.testing.assert_close(identity.components, plain.components, rtol=1e-3, atol=1e-5)
    assert identity.entropy == pytest.approx(plain.entropy, abs=1e-6)
    assert identity.zero == plain.zero == 0 and relu.zero > 0.3 and mirrored.zero > 0.3


def test_dead_channels_are_those_zero_for_every_token():
    q, k = torch.rand(2, 1, 1, 10, 4)
    q[..., 1], k[..., 2], k[..., 0] = -1, -1, -1
    assert paradigms(q, k, Reflection(4, 1))[2].dead == pytest.approx(3 / 8)


def test_full_modulation_of_pi_half_flips_masks_and_so_changes_no_disagreement():
    with_, without = (random_clusters(1e-3, modulated, 200, 16) for modulated in (True, False))
    torch.testing.assert_close(with_.disagreement, without.disagreement)
    torch.testing.assert_close(with_.margin, without.margin, rtol=1e-4, atol=1e-6)


def test_tight_clusters_disagree_only_near_a_boundary():
    clusters = random_clusters(1e-2, count=2000)
    assert clusters.disagreement[clusters.near].mean() > 0.2
    assert clusters.disagreement[clusters.margin > 4.5].max() < 0.05


def test_the_tighter_clusters_are_the_more_are_drawn():
    settings = dict(count=200, tokens=4)
    tight, wide = (many_clusters(sigma, **settings) for sigma in (1e-3, 0.1))
    assert (len(tight.margin), len(wide.margin)) == (50 * 200, 200)
    assert torch.equal(tight.margin[:200], random_clusters(1e-3, **settings).margin)
    assert len(tight.margin.unique()) == len(tight.margin)
    assert tight.near.sum() > 5  # 23 are expected, in a round less than one


def test_cross_head_reflection_keeps_the_spectrum_and_wakes_a_silent_head():
    result = mixing(independent_heads(4, 8), torch.randn(32), 4)
    before, after = result.head_variance()
    assert result.spectrum_error() < 1e-12
    assert before[-1] < 1e-3 and after[-1] > 10 * before[-1]
    assert result.diagonal_mass()[1] < result.diagonal_mass()[0]


@pytest.mark.parametrize('rope', (False, True))
@pytest.mark.parametrize('name', ('SoftmaxAttention', 'ReLUAttention', 'MirrorAttention'))
def test_attention_rows_rebuild_the_output(name, rope):
    module = build_attention(dict(type=name, rope=rope), embed_dims=16, num_heads=1)
    captured = Captured(module, torch.randn(1, 12, 16), (3, 4))
    q, k, v = captured.heads()
    rows = attention_rows(captured, list(range(12)))
    expected = module.attend(q, k, v, (3, 4))[0, 0]
    torch.testing.assert_close(rows @ v[0, 0], expected, rtol=1e-4, atol=1e-5)


def test_softmax_rows_are_those_of_its_definition():
    module = build_attention(dict(type='SoftmaxAttention'), embed_dims=8, num_heads=2)
    captured = Captured(module, torch.randn(1, 6, 8), (2, 3))
    q, k, _ = captured.heads()
    expected = (q[0] @ k[0].transpose(-2, -1) / 2).softmax(-1).mean(0)[[1, 4]]
    torch.testing.assert_close(attention_rows(captured, [1, 4]), expected)


def test_token_at_the_corners():
    assert token_at((0, 0), (3, 4)) == 0
    assert token_at((1, 1), (3, 4)) == 11
    assert token_at((0.99, 0.0), (3, 4)) == 3


def write_log(folder, lines):
    (folder / 'vis_data').mkdir(parents=True)
    (folder / 'vis_data' / 'scalars.json').write_text('\n'.join(lines))


def test_each_task_has_a_metric_of_its_own(tmp_path):
    for name, scores in (
        ('detector', {'coco/bbox_mAP': 0.3, 'coco/bbox_mAP_50': 0.5}),
        ('segmentor', {'aAcc': 60.0, 'mIoU': 20.0}),
        ('another', {'aAcc': 70.0, 'mIoU': 30.0}),
    ):
        lines = [{'loss': 3.0, 'iter': 9, 'step': 9, 'epoch': 1}, {**scores, 'step': 1}]
        write_log(tmp_path / name / '1', map(json.dumps, lines))
    runs = [read_curves(tmp_path / name) for name in ('detector', 'segmentor', 'another')]
    assert chosen_metrics(runs, None) == ['coco/bbox_mAP', 'mIoU']
    assert chosen_metrics(runs, 'aAcc') == ['aAcc']
    assert runs[0].metrics['coco/bbox_mAP'] == {9: 0.3}  # an epoch's score at its last iteration


def test_curves_join_the_starts_of_a_run_and_survive_a_torn_line(tmp_path):
    write_log(
        tmp_path / '1',
        [
            json.dumps({'loss': 3.0, 'iter': 1, 'step': 1}),
            json.dumps({'loss': 2.0, 'iter': 2, 'step': 2}),
            '{"loss": 1',
        ],
    )
    write_log(
        tmp_path / '2',
        [
            json.dumps({'loss': 1.5, 'iter': 2, 'step': 2}),
            json.dumps({'mIoU': 20.0, 'aAcc': 60.0, 'step': 2}),
        ],
    )
    curves = read_curves(tmp_path)
    assert curves.loss == {1: 3.0, 2: 1.5}
    assert curves.metrics == {'mIoU': {2: 20.0}, 'aAcc': {2: 60.0}}
    assert chosen_metrics([curves], None) == ['mIoU']


def test_a_validation_before_the_first_loss_of_a_resumed_run_stands_after_the_last(tmp_path):
    write_log(tmp_path / '1', [json.dumps({'loss': 3.0, 'iter': 900, 'step': 900})])
    write_log(tmp_path / '2', [json.dumps({'mIoU': 20.0, 'step': 5})])
    assert read_curves(tmp_path).metrics == {'mIoU': {900: 20.0}}


def test_images_are_normalised_as_the_preprocessor_of_a_config_does():
    image = np.full((2, 2, 3), (200, 0, 0), np.uint8)
    shifted = normalise(image, dict(mean=[0, 0, 1], std=[1, 1, 1]))
    assert shifted[0, :, 0, 0].tolist() == [200, 0, -1]
    assert normalise(image, dict(bgr_to_rgb=True))[0, :, 0, 0].tolist() == [0, 0, 200]
    as_imagenet = normalise(image)[0, :, 0, 0]
    assert as_imagenet[2] == pytest.approx((200 - 103.53) / 57.375)


def test_missing_logs_and_metrics_are_named(tmp_path):
    with pytest.raises(UserError, match='is it the work dir of a run'):
        read_curves(tmp_path)
    write_log(tmp_path / '1', [json.dumps({'loss': 3.0, 'iter': 1, 'step': 1})])
    with pytest.raises(UserError, match="'mAP'"):
        chosen_metrics([read_curves(tmp_path)], 'mAP')


def test_images_of_any_depth_become_three_channels(tmp_path):
    import cv2

    for name, shape, dtype in (
        ('grey.png', (8, 10), np.uint8),
        ('deep.png', (8, 10, 3), np.uint16),
        ('alpha.png', (8, 10, 4), np.uint8),
    ):
        cv2.imwrite(str(tmp_path / name), np.full(shape, np.iinfo(dtype).max, dtype))
        image = read_shrunk(tmp_path / name)
        assert image.shape == (8, 10, 3) and image.dtype == np.uint8 and image.min() == 255
    assert normalise(image).shape == (1, 3, 8, 10)
    (tmp_path / 'broken.png').write_bytes(b'no image')
    with pytest.raises(UserError, match='broken.png'):
        read_shrunk(tmp_path / 'broken.png')


def test_long_side_only_shrinks(tmp_path):
    import cv2

    cv2.imwrite(str(tmp_path / 'a.png'), np.zeros((50, 100, 3), np.uint8))
    assert read_shrunk(tmp_path / 'a.png', 40).shape == (20, 40, 3)
    assert read_shrunk(tmp_path / 'a.png', 400).shape == (50, 100, 3)
    assert math.isclose(read_shrunk(tmp_path / 'a.png').mean(), 0)
