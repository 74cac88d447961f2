"""Guidance, losses and predictions of the model on mmengine."""

import pytest
import torch
from mmengine.structures import BaseDataElement

from mirrorla_mm.diffusion import DDPM, DiffusionModel
from mirrorla_mm.diffusion.model import guided
from mirrorla_mm.engine.data import DataError
from mirrorla_mm.engine.errors import UserError
from mirrorla_mm.registry import MODELS

from .toy import TOY


def toy_model(process: str = 'Interpolant', **options) -> DiffusionModel:
    torch.manual_seed(0)
    return MODELS.build(
        dict(
            type='mirrorla_mm.DiffusionModel',
            backbone=dict(type='mirrorla_mm.DiT', **TOY),
            process=dict(type=f'mirrorla_mm.{process}', sampling_steps=3),
            data_preprocessor=dict(type='ImgDataPreprocessor', mean=[0.0], std=[1 / 0.18215]),
            **options,
        )
    )


def batch(*labels: int) -> dict:
    return dict(
        inputs=[torch.randn(4, 16, 16) for _ in labels],
        data_samples=[BaseDataElement(gt_label=label) for label in labels],
    )


@pytest.mark.parametrize(
    ('process', 'losses'), [('Interpolant', {'loss_mse'}), ('DDPM', {'loss_mse', 'loss_vlb'})]
)
def test_learns_and_predicts(process, losses):
    model = toy_model(process)
    data = batch(1, 9)
    found = model(**model.data_preprocessor(data, True), mode='loss')
    assert set(found) == losses
    loss, logged = model.parse_losses(found)
    loss.backward()
    assert set(logged) == losses | {'loss'}
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    first, second = model.test_step(batch(3, 4))
    assert first.pred_img.shape == (4, 16, 16) and second.gt_label == 4


def test_latents_are_scaled_on_their_way_in_and_back():
    model = toy_model()
    data = batch(0)
    scaled = model.data_preprocessor(dict(data), False)['inputs']
    torch.testing.assert_close(scaled, data['inputs'][0].unsqueeze(0) * 0.18215)
    # A fresh model's velocity is 0: the ODE's samples are the noise, in the scale of the data.
    model.process.sampler = 'euler'
    noise = torch.randn(1, 4, 16, 16)
    out = model.sample(torch.tensor([0]), lambda: noise)
    torch.testing.assert_close(out, noise / 0.18215)


def test_classes_are_dropped_as_often_as_asked(monkeypatch):
    model = toy_model(class_dropout=0.25)
    seen = []
    monkeypatch.setattr(
        model.process, 'loss', lambda network, x: network(x, torch.zeros(len(x))) and {}
    )
    monkeypatch.setattr(model, 'backbone', Counting(seen))
    model(torch.zeros(4000, 1), batch(*[2] * 4000)['data_samples'], mode='loss')
    (labels,) = seen
    assert set(labels.tolist()) == {2, 10}
    assert (labels == 10).double().mean().item() == pytest.approx(0.25, abs=0.04)


class Counting(torch.nn.Module):
    num_classes = 10

    def __init__(self, seen: list) -> None:
        super().__init__()
        self.seen = seen

    def forward(self, x, t, y):
        self.seen.append(y)
        return x.sum() + 1


def test_guidance_is_its_formula_and_leaves_the_variance_alone():
    torch.manual_seed(0)
    answers = torch.randn(11, 8, 2, 2)
    calls = []

    def network(x, t, y):
        calls.append(len(x))
        return answers[y]

    x, t, y = torch.zeros(2, 4, 2, 2), torch.zeros(2), torch.tensor([3, 5])
    none, named = answers[10], answers[y]
    for channels, n in ((None, 4), (3, 3)):
        out = guided(network, y, 10, 2.5, channels)(x, t)
        torch.testing.assert_close(out[:, :n], none[:n] + 2.5 * (named[:, :n] - none[:n]))
        torch.testing.assert_close(out[:, n:], named[:, n:])
    torch.testing.assert_close(guided(network, y, 10, 1.0)(x, t), named)
    assert calls == [4, 4, 2]
    torch.testing.assert_close(
        guided(network, y, 10, 0.0)(x, t)[:, :4], none[:4].expand(2, -1, 2, 2)
    )


@pytest.mark.parametrize('guidance', [-1.0, float('nan'), float('inf')])
def test_a_guidance_that_is_none_is_refused(guidance):
    with pytest.raises(UserError, match='a number from 0'):
        toy_model().sample(torch.tensor([0]), lambda: torch.randn(1, 4, 16, 16), guidance)
    with pytest.raises(UserError, match='a number from 0'):
        toy_model(test_cfg=dict(guidance=guidance))


@pytest.mark.parametrize('label', [10, -1])
def test_a_class_out_of_range_is_refused_in_a_sentence(label):
    data = batch(0, label)
    data['data_samples'][1].set_metainfo(dict(img_path='cat/7.npy'))
    with pytest.raises(DataError, match=f'cat/7.npy is of class {label}.*0 to 9'):
        toy_model().test_step(data)


@pytest.mark.parametrize('shape', [(4, 32, 32), (3, 16, 16), (4, 16, 12)])
def test_latents_of_another_size_are_named_alone_and_among_others(shape):
    data = batch(0, 1)
    data['data_samples'][1].set_metainfo(dict(img_path='cat/7.npy'))
    data['inputs'][1] = torch.zeros(shape)
    said = f'cat/7.npy is of the size {"x".join(map(str, shape))}, and this model takes 4x16x16'
    for count in (0, 1):
        part = {key: values[count:] for key, values in data.items()}
        with pytest.raises(DataError, match=said):
            toy_model().test_step(part)


def test_the_network_names_the_size_of_what_it_gets():
    with pytest.raises(UserError, match='4x16x16, got 3x32x32'):
        toy_model()(torch.zeros(1, 3, 32, 32), batch(0)['data_samples'])


def test_other_modes_and_shares_are_refused():
    with pytest.raises(ValueError, match='loss or predict'):
        toy_model()(torch.zeros(1, 4, 16, 16), batch(0)['data_samples'], mode='tensor')
    with pytest.raises(ValueError, match=r'in \[0, 1\)'):
        toy_model(class_dropout=1.0)


def test_ddpm_needs_a_variance_and_betas_that_are_some():
    x, t = torch.zeros(2, 2, 4, 4), torch.zeros(2, dtype=torch.long)
    with pytest.raises(UserError, match='needs 4 channels of the network, got 2'):
        DDPM().errors(lambda x, t: x, x, t, x)
    with pytest.raises(UserError, match='betas need to lie between 0 and 1'):
        DDPM(betas=(0.0, 0.02))
