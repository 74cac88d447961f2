"""A published file has no training state, and a name that its content proves."""

import hashlib

import pytest
import torch

from mirrorla_mm.engine.checkpoint import CheckpointError, load_checkpoint_file
from mirrorla_mm.engine.errors import UserError
from mirrorla_mm.engine.publishing import publish

from .toy import toy_runner

pytest.importorskip('safetensors')
FORMATS = ('.pth', '.safetensors')


@pytest.fixture(scope='module')
def averaged(tmp_path_factory):
    """A checkpoint of a run with running averages."""
    work_dir = tmp_path_factory.mktemp('run')
    toy_runner(work_dir, max_iters=4).train()
    return work_dir / 'iter_4.pth'


def equal(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize('suffix', FORMATS)
def test_training_state_is_left_out_and_the_name_is_a_hash(averaged, tmp_path, suffix):
    before = load_checkpoint_file(averaged)
    file = publish(averaged, tmp_path / f'toy{suffix}')
    assert file.name == f'toy-{hashlib.sha256(file.read_bytes()).hexdigest()[:8]}{suffix}'
    after = load_checkpoint_file(file)
    assert set(after) == {'meta', 'state_dict'}
    assert equal(after['state_dict'], before['state_dict'])
    assert after['state_dict']._metadata == before['state_dict']._metadata
    assert after['meta']['iter'] == 4 and after['meta'].get('cfg') == before['meta'].get('cfg')
    assert list(after['meta']['dataset_meta']['classes']) == ['sum']
    assert not list(tmp_path.glob('*.partial'))


@pytest.mark.parametrize('suffix', FORMATS)
def test_averages_and_trained_weights_are_told_apart(tmp_path, suffix):
    runner = toy_runner(tmp_path, max_iters=4)
    runner.train()
    [averages] = [h.ema_model.module for h in runner.hooks if hasattr(h, 'ema_model')]
    files = {
        w: publish(tmp_path / 'iter_4.pth', tmp_path / f'{w}{suffix}', w)
        for w in (None, 'ema', 'trained')
    }
    held = {w: load_checkpoint_file(file)['state_dict'] for w, file in files.items()}
    assert equal(held[None], averages.state_dict()) and equal(held['ema'], averages.state_dict())
    assert equal(held['trained'], runner.model.state_dict())
    assert not equal(held['trained'], held['ema'])


@pytest.mark.parametrize('meta', ['text', [1]])
def test_metadata_that_are_no_dict_are_named(tmp_path, meta):
    torch.save({'meta': meta, 'state_dict': {'w': torch.ones(1)}}, tmp_path / 'odd.pth')
    with pytest.raises(CheckpointError, match=rf'odd\.pth are a {type(meta).__name__}'):
        publish(tmp_path / 'odd.pth', tmp_path / 'toy.pth')


def test_what_cannot_be_published_is_named(averaged, tmp_path):
    with pytest.raises(UserError, match=r'not as .*toy\.bin'):
        publish(averaged, tmp_path / 'toy.bin')
    torch.save({'state_dict': {'a': torch.ones(1)}}, tmp_path / 'plain.pth')
    with pytest.raises(CheckpointError, match=r'plain\.pth holds no running averages'):
        publish(tmp_path / 'plain.pth', tmp_path / 'a.pth', 'ema')
    torch.save({'state_dict': {'a': 'text'}}, tmp_path / 'text.pth')
    with pytest.raises(CheckpointError, match=r'text\.pth holds a, which is no tensor'):
        publish(tmp_path / 'text.pth', tmp_path / 'a.pth')


def test_views_take_no_more_than_they_show(tmp_path):
    whole = torch.randn(10**5)
    torch.save({'state_dict': {'a': whole[:2], 'b': whole[:2]}}, tmp_path / 'views.pth')
    for suffix in FORMATS:
        assert publish(tmp_path / 'views.pth', tmp_path / f'a{suffix}').stat().st_size < 10**4


def test_hostile_safetensors_are_refused(tmp_path):
    def write(header: bytes, content: bytes = b'') -> str:
        file = tmp_path / 'hostile.safetensors'
        file.write_bytes(len(header).to_bytes(8, 'little') + header + content)
        return file

    tensor = b'"w":{"dtype":"F32","shape":[%d],"data_offsets":[0,%d]}'
    meta = b'{"__metadata__":{"mirrorla_mm.meta":"%s"},' + tensor % (1, 4) + b'}'
    files = [
        (b'{' + tensor % (2**40, 2**42) + b'}', bytes(4)),
        (b'{' + tensor % (2, 4) + b'}', bytes(4)),
        (b'{"a":' * 10**5, b''),
        (meta % (b'[' * 10**5), bytes(4)),
        (meta % b'[1]', bytes(4)),
        (meta % b'{\\"a\\":\\"\\\\u001b[2J\\"}', bytes(4)),
        (meta % (b'{\\"a\\":' * 200 + b'1' + b'}' * 200), bytes(4)),
    ]
    for header, content in files:
        with pytest.raises(CheckpointError, match=r'hostile\.safetensors') as info:
            load_checkpoint_file(write(header, content))
        assert str(info.value).isprintable()
    assert load_checkpoint_file(write(meta % b'{}', bytes(4)))['state_dict']['w'].tolist() == [0]
