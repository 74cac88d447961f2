"""Random damage to checkpoints: nothing executes, nothing is half loaded, the file is named."""

import pickle
import random
import zipfile

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from mirrorla_mm.engine.checkpoint import CheckpointError, load_checkpoint_file

SITE = []


def noted(*args):
    """What a hostile file would call, were it let to."""
    SITE.append(args)


class Hostile:
    """Pickles to a call of :func:`noted`."""

    def __reduce__(self):
        return noted, ('executed',)


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory) -> bytes:
    path = tmp_path_factory.mktemp('fuzz') / 'sound.pth'
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    torch.save(dict(state_dict=model.state_dict(), meta=dict(epoch=3, seed=1, note='a' * 50)), path)
    return path.read_bytes()


def damaged(content: bytes, kind: str, seed: int) -> bytes:
    chance = random.Random(seed)
    data = bytearray(content)
    if kind == 'cut':
        return bytes(data[: chance.randrange(len(data))])
    if kind == 'flip':
        for _ in range(chance.randint(1, 8)):
            data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    if kind == 'overwrite':
        start = chance.randrange(len(data))
        noise = chance.randbytes(chance.randint(1, 64))
        data[start : start + len(noise)] = noise
    if kind == 'insert':
        start = chance.randrange(len(data))
        data[start:start] = chance.randbytes(chance.randint(1, 64))
    if kind == 'noise':
        return chance.randbytes(chance.randint(0, 500))
    return bytes(data)


def values(checkpoint: dict) -> dict:
    return {name: tensor.tolist() for name, tensor in checkpoint['state_dict'].items()}


@given(
    kind=st.sampled_from(['cut', 'flip', 'overwrite', 'insert', 'noise']),
    seed=st.integers(0, 2**31),
)
def test_damaged_file_is_refused_by_name_or_loaded_whole(checkpoint, tmp_path_factory, kind, seed):
    path = tmp_path_factory.mktemp('fuzz') / 'damaged.pth'
    path.write_bytes(damaged(checkpoint, kind, seed))
    try:
        loaded = load_checkpoint_file(path)
    except CheckpointError as error:
        assert 'damaged.pth' in str(error)
    else:
        # Padding and time stamps of the archive may change without harm; anything else may not go
        # unnoticed in structure. Bits of a weight carry a checksum of their own.
        sound = torch.load(path, weights_only=True)
        assert values(loaded) == values(sound)


@given(depth=st.integers(0, 4), seed=st.integers(0, 2**31), zipped=st.booleans())
def test_hostile_object_at_any_depth_never_runs(tmp_path_factory, depth, seed, zipped):
    chance = random.Random(seed)
    content = Hostile()
    for _ in range(depth):
        content = chance.choice(
            [lambda c: [c], lambda c: {'state_dict': c}, lambda c: (1, c), lambda c: {'meta': [c]}]
        )(content)
    path = tmp_path_factory.mktemp('hostile') / 'hostile.pth'
    torch.save({'state_dict': {}, 'x': content}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match='hostile.pth'):
        load_checkpoint_file(path)
    assert not SITE


@given(stream=st.binary(max_size=200))
def test_any_pickle_stream_in_an_archive_is_refused_or_plain(tmp_path_factory, stream):
    path = tmp_path_factory.mktemp('stream') / 'stream.pth'
    with zipfile.ZipFile(path, 'w') as archive:
        archive.writestr('archive/data.pkl', b'\x80\x02' + stream + b'.')
        archive.writestr('archive/version', '3\n')
        archive.writestr('archive/byteorder', 'little')
    try:
        load_checkpoint_file(path)
    except CheckpointError as error:
        assert 'stream.pth' in str(error)
    assert not SITE


def test_what_is_refused_would_have_run():
    pickle.loads(pickle.dumps(Hostile()))
    assert SITE.pop() == ('executed',)
