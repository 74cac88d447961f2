"""Converters meet strangers' files: each is refused by name, or converted as the sound one is."""

import random
import runpy
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mirrorla_mm.converters import (
    ConversionError,
    convert_file,
    convert_nalaformer,
    convert_ravlt,
    convert_swin_pvt,
)
from mirrorla_mm.engine.checkpoint import CheckpointError
from tests.strangers import CALLS, DAMAGES, Call, damaged, noted

TOOLS = Path(__file__).resolve().parents[2] / 'tools' / 'model_converters'
CONVERTERS = {
    'ravlt_cls_paper': convert_ravlt,
    'ravlt_det_linear': partial(convert_ravlt, layout='linear'),
    'flatten_swin': convert_swin_pvt,
    'flatten_pvt': convert_swin_pvt,
    'polaformer_swin': convert_swin_pvt,
    'polaformer_pvt': convert_swin_pvt,
}
HUGE = 10**9
# What may stand where a weight belongs. The two long ones are honest tensors of a few bytes each:
# a model of their size would not fit any memory.
IMPOSTORS = {
    'text': lambda w: 'weight',
    'none': lambda w: None,
    'number': lambda w: 1.0,
    'list': lambda w: w.flatten()[:2].tolist(),
    'nested dict': lambda w: {'weight': w},
    'NaN': lambda w: w.double() * torch.nan,
    'infinite': lambda w: w.double() + torch.inf,
    'complex': lambda w: w.to(torch.complex64),
    'boolean': lambda w: w > 0,
    'sparse': lambda w: w.to_sparse(),
    'endless': lambda w: torch.zeros(1).expand(2**40),
}
MISFITS = {
    'integers': lambda w: w.to(torch.int32),
    'one number': lambda w: torch.zeros(()),
    'nothing': lambda w: torch.zeros(0),
    'longer by one': lambda w: torch.zeros(len(w) + 1 if w.ndim else 3, *w.shape[1:]),
    'an axis more': lambda w: torch.zeros(*w.shape, 2),
    'flat': lambda w: w.flatten(),
    'long': lambda w: torch.zeros(100_000),
}
KEYS = {
    'left out': lambda w, key: w.pop(key),
    'unknown': lambda w, key: w.update({f'{key}_2': w[key]}),
    'number for a name': lambda w, key: w.update({7: w[key]}),
    'twice': lambda w, key: w.update({f'module.{key}': w[key]}),
    'block far away': lambda w, key: w.update({f'layers.0.blocks.{HUGE}.norm1.weight': w[key]}),
    'stage far away': lambda w, key: w.update({f'layers.{HUGE}.blocks.0.norm1.weight': w[key]}),
    'PVT stage far away': lambda w, key: w.update({f'block{HUGE}.0.norm1.weight': w[key]}),
}
every_file = pytest.mark.parametrize('name', CONVERTERS)
seeds = st.integers(0, 2**31)


@pytest.fixture(scope='module')
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp('conversion')


@pytest.fixture(scope='module')
def sound(oracle, folder):
    """Weights of an official file, and what they convert to."""
    found = {}

    def get(name: str):
        if name not in found:
            weights = oracle(name)['state_dict']
            torch.save(weights, folder / 'sound.pth')
            found[name] = (
                weights,
                convert_file(CONVERTERS[name], folder / 'sound.pth', folder / 'converted.pth'),
            )
        return found[name]

    return get


def attempt(convert, content, folder: Path):
    """Convert ``content``; None if it was refused as it should be."""
    src, dst = folder / 'stranger.pth', folder / 'out' / 'ours.pth'
    if isinstance(content, bytes):
        src.write_bytes(content)
    else:
        torch.save(content, src)
    try:
        converted = convert_file(convert, src, dst)
    except (ConversionError, CheckpointError) as error:
        assert 'stranger.pth' in str(error) and '\n' not in str(error)
        assert not list(folder.glob('out/*'))
        return None
    finally:
        assert not CALLS
    dst.unlink()
    return converted


def assert_same(actual, expected) -> None:
    assert actual.backbone == expected.backbone
    assert actual.state_dict.keys() == expected.state_dict.keys()
    for key, value in expected.state_dict.items():
        assert torch.equal(actual.state_dict[key], value), key


@every_file
@pytest.mark.parametrize('impostor', IMPOSTORS)
def test_what_is_no_weight_is_refused_by_name(sound, folder, name, impostor):
    weights = dict(sound(name)[0])
    key = random.Random(impostor).choice([k for k, w in weights.items() if w.ndim])
    weights[key] = IMPOSTORS[impostor](weights[key])
    assert attempt(CONVERTERS[name], weights, folder) is None


@every_file
@given(misfit=st.sampled_from(sorted(MISFITS)), seed=seeds)
def test_weight_of_another_shape_is_refused_or_changes_nothing(sound, folder, name, misfit, seed):
    weights, expected = sound(name)
    weights = dict(weights)
    key = random.Random(seed).choice(list(weights))
    weights[key] = MISFITS[misfit](weights[key])
    converted = attempt(CONVERTERS[name], weights, folder)
    if converted is not None and misfit != 'flat':
        # Entries that the model computes itself are not read.
        assert_same(converted, expected)


@every_file
@pytest.mark.parametrize('change', KEYS)
def test_entries_that_do_not_belong_are_refused(sound, folder, name, change):
    weights = dict(sound(name)[0])
    # A part of every model, and nothing that a converter computes.
    KEYS[change](weights, next(key for key in weights if 'norm1.' in key))
    assert attempt(CONVERTERS[name], weights, folder) is None


@pytest.mark.parametrize('name', ('ravlt_det_linear', 'flatten_pvt'))
@given(kind=st.sampled_from(DAMAGES), seed=seeds)
def test_damaged_file_is_refused_or_converted_whole(sound, folder, name, kind, seed):
    weights, expected = sound(name)
    torch.save(weights, folder / 'whole.pth')
    converted = attempt(
        CONVERTERS[name], damaged((folder / 'whole.pth').read_bytes(), kind, seed), folder
    )
    if converted is not None:
        assert_same(converted, expected)


@pytest.mark.parametrize('convert', (convert_ravlt, convert_nalaformer, convert_swin_pvt))
@pytest.mark.parametrize(
    'content',
    [
        b'',
        b'PK\x03\x04',
        Call(noted, 'executed'),
        {'state_dict': {'a': torch.ones(1), 'b': Call(noted, 'executed')}},
        {'model': {'layers.0.blocks.0.norm1.norm.weight': torch.ones(())}},
        {'pos_embed1': torch.ones(1)},
        {'layers.0.blocks.0.attn.positional_encoding': torch.ones(1)},
        [],
        {},
        7,
    ],
    ids=(
        'empty',
        'archive cut short',
        'hostile',
        'hostile entry',
        'lone norm',
        'lone position table',
        'lone encoding',
        'list',
        'empty dict',
        'number',
    ),
)
def test_what_is_no_model_at_all_is_refused(convert, content, tmp_path):
    assert attempt(convert, content, tmp_path) is None


@pytest.mark.parametrize('tool', ('ravlt', 'nalaformer', 'swin_pvt'))
@pytest.mark.parametrize('kind', ('folder', 'missing', 'empty', 'other model'))
def test_command_line_refuses_in_one_sentence_and_leaves_nothing(
    tool, kind, tmp_path, monkeypatch, capsys
):
    src, dst = tmp_path / 'stranger.pth', tmp_path / 'out' / 'ours.pth'
    if kind == 'folder':
        src.mkdir()
    elif kind == 'empty':
        src.touch()
    elif kind == 'other model':
        torch.save({'fc.weight': torch.ones(2, 2)}, src)
    monkeypatch.setattr(sys, 'argv', [tool, str(src), str(dst)])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(TOOLS / f'{tool}.py'), run_name='__main__')
    assert end.value.code == 1
    message = capsys.readouterr().err
    assert 'stranger.pth' in message and message.count('\n') == 1
    assert not dst.exists() and not list(tmp_path.glob('out/*'))


def test_full_disk_leaves_the_file_that_was_there(sound, folder, monkeypatch):
    weights, _ = sound('flatten_pvt')
    torch.save(weights, folder / 'whole.pth')
    (folder / 'ours.pth').write_bytes(b'old')

    def full(self, target):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(Path, 'replace', full)
    with pytest.raises(OSError, match=r'ours\.pth cannot be written'):
        convert_file(convert_swin_pvt, folder / 'whole.pth', folder / 'ours.pth')
    assert (folder / 'ours.pth').read_bytes() == b'old'
    assert not list(folder.glob('*.partial'))
