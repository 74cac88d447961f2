"""Weights of DCTLSA, there and back."""

import pytest
import torch

from mirrorla_mm.converters import (
    ConversionError,
    convert_dctlsa,
    official_dctlsa,
    read_state_dict,
)
from mirrorla_mm.registry import MODELS
from mirrorla_mm.restoration.study import ROWS
from tests.test_restoration.toy import TOY, toy_host

QKV = 'B1.body.0.transformer_body.0.blocks.0.attn.qkv.weight'
# Rows with parameters of their own that start at random.
GATED = {'pola', 'nala', 'relu-gated', 'mirror-gated'}
DRAWN = {'mirror', 'random-mirror', 'blocks', 'blocks-variance', *GATED}


def official(**options) -> dict:
    model = toy_host(num_heads=5, embed_dims=10, window_size=16, **options)
    return official_dctlsa(model.state_dict())


def test_names_are_the_authors():
    names = set(official(num_groups=6, upscale=3))
    assert {
        'fea_conv.weight',
        'B1.body.0.transformer_body.0.blocks.0.attn.qkv.weight',
        'B6.body.1.transformer_body.0.blocks.1.attn.local.pointwise_prenorm_1.running_var',
        'B2.body.1.transformer_body.0.patch_embed.norm.bias',
        'B3.body.0.transformer_body.0.blocks.1.mlp.fc2.weight',
        'c1.0.weight',
        'c5.0.bias',
        'c.0.weight',
        'LR_conv.weight',
        'upsampler.0.weight',
    } <= names
    assert len(names) == 546 and 'c6.0.weight' not in names


@pytest.mark.parametrize('upscale', [2, 3, 4])
def test_there_and_back_is_the_same_file(upscale):
    weights = official(upscale=upscale)
    converted = convert_dctlsa(weights)
    assert converted.backbone['upscale'] == upscale and converted.new == ()
    back = official_dctlsa(converted.state_dict)
    assert list(back) == list(weights)
    assert all(torch.equal(back[key], weights[key]) for key in weights)


def toy_backbone(**options) -> dict:
    return dict(TOY, type='mirrorla_mm.DCTLSA', upscale=2, embed_dims=10, num_heads=5, **options)


def test_another_attention_starts_from_what_it_shares():
    weights = official()
    backbone = toy_backbone(attn_cfg=dict(type='ELUAttention', reflection={}))
    converted = convert_dctlsa(weights, backbone)
    assert {name.rsplit('.', 1)[1] for name in converted.new} == {'theta', 'u'}
    MODELS.build(backbone).load_state_dict(
        {key.removeprefix('backbone.'): value for key, value in converted.state_dict.items()}
    )
    with pytest.raises(ConversionError, match='reflection'):
        official_dctlsa(converted.state_dict)


@pytest.mark.parametrize('row', ROWS)
def test_every_row_of_the_study_starts_from_the_authors_projections(row):
    weights = official()
    backbone = toy_backbone(**{'attn_cfg': ROWS[row].attn_cfg, **ROWS[row].host})
    converted, other = (convert_dctlsa(weights, backbone, seed) for seed in (0, 1))
    MODELS.build(backbone).load_state_dict(
        {key.removeprefix('backbone.'): value for key, value in converted.state_dict.items()}
    )
    name = 'groups.0.0.blocks.0.attn.{}.weight'
    authors = weights[QKV]
    for start in (converted, other):
        assert torch.equal(start.state_dict[f'backbone.{name.format("qkv")}'][:30], authors)
    again = convert_dctlsa(weights, backbone, 1).state_dict
    assert all(torch.equal(value, again[key]) for key, value in other.state_dict.items())
    drawn = {
        key
        for key, value in converted.state_dict.items()
        if not torch.equal(value, other.state_dict[key])
    }
    assert drawn <= set(converted.new)
    assert bool(drawn) == (row in DRAWN), drawn


def test_the_authors_file_converts_to_the_last_entry(oracle_file):
    weights = read_state_dict(oracle_file('dctlsa_x4.pt'))
    back = official_dctlsa(convert_dctlsa(weights).state_dict)
    assert back.keys() == weights.keys()
    assert all(torch.equal(back[key], weights[key]) for key in weights)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (lambda w: w.pop('fea_conv.weight'), 'fea_conv.weight'),
        (lambda w: w.pop('c1.0.bias'), 'missing'),
        (lambda w: w.update(extra=torch.zeros(1)), "unexpected 'extra'"),
        (lambda w: w.update({'c.0.bias': torch.zeros(3)}), 'has shape'),
        (lambda w: w.update({QKV: w[QKV][:20]}), 'has shape'),
        (lambda w: w.update({QKV: w[QKV].long()}), 'holds torch.int64|has shape'),
        (lambda w: w.update({'fea_conv.weight': torch.tensor(1.0)}), 'no model'),
        (lambda w: w.update({'layers.0.blocks.0.attn.qkvo.weight': torch.zeros(1)}), 'of RAVLT'),
    ],
)
def test_files_that_do_not_fit_are_refused(change, message):
    for backbone in (None, toy_backbone(attn_cfg=dict(type='PolaAttention'))):
        weights = official()
        change(weights)
        with pytest.raises(ConversionError, match=message):
            convert_dctlsa(weights, backbone)
