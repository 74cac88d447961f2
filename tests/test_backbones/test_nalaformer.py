import pytest
import torch
import torch.nn.functional as F

from mirrorla_mm.backbones import NaLaFormer
from mirrorla_mm.converters import ConversionError, convert_nalaformer
from tests.official_files import NALAFORMER_ARCH, nalaformer_file


def test_converted_backbone_is_the_one_that_was_written():
    model = NaLaFormer(NALAFORMER_ARCH, out_indices=(3,), out_norm=False).eval()
    converted = convert_nalaformer(nalaformer_file(model))
    assert converted.new == ()
    again = NaLaFormer(**{k: v for k, v in converted.backbone.items() if k != 'type'}).eval()
    weights = {k: v for k, v in converted.state_dict.items() if k.startswith('backbone.')}
    again.load_state_dict({k.removeprefix('backbone.'): v for k, v in weights.items()})
    x = torch.rand(1, 3, 64, 64)
    torch.testing.assert_close(again(x)[0], model(x)[0])
    assert converted.state_dict['head.fc.weight'].shape == (5, 24)


def test_a_file_that_does_not_fit_is_refused_by_name():
    entries = nalaformer_file(NaLaFormer(NALAFORMER_ARCH, out_indices=(3,), out_norm=False))
    entries.pop('layers.1.blocks.0.cpe2.bias')
    with pytest.raises(ConversionError, match=r'missing .*stages.1.0.pos2.bias'):
        convert_nalaformer(entries)


@pytest.mark.parametrize('arch, params', [('t', 15), ('s', 26), ('b', 52), ('l', 95)])
def test_sizes_are_the_published_ones(arch, params):
    from mirrorla_mm.analysis.flops import empty_parameters

    with empty_parameters():
        model = NaLaFormer(arch, out_indices=(3,), out_norm=False)
    classifier = model.embed_dims[-1] * 1024 + 3 * 1024 + 1025 * 1000
    assert (sum(p.numel() for p in model.parameters()) + classifier) / 1e6 == pytest.approx(
        params, abs=0.5
    )


def test_a_block_convolves_before_the_attention_and_before_the_hidden_layer():
    """The authors' block, written out from its parts."""
    block = NaLaFormer(NALAFORMER_ARCH).stages[2][0].double()
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.normal_(std=0.3)
    x = torch.randn(2, 16, 4, 6, dtype=torch.float64)

    def convolved(x, conv):
        return x + F.conv2d(x, conv.weight, conv.bias, padding=1, groups=16)

    def tokens(x):
        return x.flatten(2).transpose(1, 2)

    y = convolved(x, block.pos)
    y = tokens(y) + block.gamma1 * block.attn(block.norm1(tokens(y)), (4, 6))
    y = tokens(convolved(y.transpose(1, 2).reshape(x.shape), block.pos2))
    y = y + block.gamma2 * block.ffn(block.norm2(y), (4, 6))
    torch.testing.assert_close(tokens(block(x)), y)


def test_softmax_stages_normalise_and_gate_too():
    model = NaLaFormer(NALAFORMER_ARCH)
    assert all(block.attn.out_norm is not None for stage in model.stages for block in stage)


def test_unknown_arch_is_explained():
    with pytest.raises(ValueError, match="Unknown arch 'q'; choose from xt, t, t-mlp4, s, b, l"):
        NaLaFormer('q')
