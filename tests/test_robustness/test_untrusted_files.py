"""Random damage to checkpoints: nothing executes, nothing is half loaded, the file is named."""

import io
import pickle
import random
import subprocess
import sys
import zipfile
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from mirrorla_mm.engine.checkpoint import CheckpointError, load_checkpoint_file
from mirrorla_mm.engine.checkpoint_fit import check_fit
from mirrorla_mm.engine.errors import UserError, one_line_errors
from tests.strangers import CALLS, DAMAGES, Call, damaged, noted

from .hostile_files import ANYWHERE, FILES


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory) -> bytes:
    path = tmp_path_factory.mktemp('fuzz') / 'sound.pth'
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    torch.save(dict(state_dict=model.state_dict(), meta=dict(epoch=3, seed=1, note='a' * 50)), path)
    return path.read_bytes()


def values(checkpoint: dict) -> dict:
    return {name: tensor.tolist() for name, tensor in checkpoint['state_dict'].items()}


@given(
    kind=st.sampled_from(DAMAGES),
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
        # Only padding and time stamps of the archive may change without harm.
        sound = torch.load(io.BytesIO(checkpoint), weights_only=True)
        assert values(loaded) == values(sound) and loaded['meta'] == sound['meta']


def test_every_flipped_byte_of_a_weight_is_found(checkpoint, tmp_path):
    weight = torch.load(io.BytesIO(checkpoint), weights_only=True)['state_dict']['0.weight']
    start = checkpoint.index(weight.numpy().tobytes())
    path = tmp_path / 'flipped.pth'
    for place in range(start, start + weight.numel() * weight.element_size()):
        flipped = bytearray(checkpoint)
        flipped[place] ^= 1
        path.write_bytes(flipped)
        with pytest.raises(CheckpointError, match='flipped.pth'):
            load_checkpoint_file(path)


def test_file_saved_without_checksums_is_read(tmp_path):
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({'a': torch.arange(9.0)}, tmp_path / 'a.pth')
    finally:
        torch.serialization.set_crc32_options(before)
    assert load_checkpoint_file(tmp_path / 'a.pth')['a'].tolist() == list(range(9))


@given(depth=st.integers(0, 4), seed=st.integers(0, 2**31), zipped=st.booleans())
def test_hostile_object_at_any_depth_never_runs(tmp_path_factory, depth, seed, zipped):
    chance = random.Random(seed)
    content = Call(noted, 'executed')
    for _ in range(depth):
        content = chance.choice(
            [lambda c: [c], lambda c: {'state_dict': c}, lambda c: (1, c), lambda c: {'meta': [c]}]
        )(content)
    path = tmp_path_factory.mktemp('hostile') / 'hostile.pth'
    torch.save({'state_dict': {}, 'x': content}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match='hostile.pth'):
        load_checkpoint_file(path)
    assert not CALLS


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
    assert not CALLS


class Sized:
    """Pickles to a tensor of any stated size over a storage of four numbers."""

    def __init__(self, size: tuple, stride: tuple, offset: int = 0) -> None:
        self.view = offset, size, stride

    def __reduce__(self):
        storage = torch.zeros(4)._typed_storage()
        return torch._utils._rebuild_tensor_v2, (storage, *self.view, False, OrderedDict())


@pytest.mark.parametrize(
    'tensor',
    [
        Sized((2**62,), (1,)),
        Sized((2**40, 2**40), (1, 1)),
        Sized((-1,), (1,)),
        Sized((2,), (-1,)),
        Sized((4,), (1,), offset=1),
        Sized((4,), (1,), offset=-1),
        Sized(('4',), (1,)),
        Sized((4.0,), (1,)),
        Sized((4,), (1, 1)),
    ],
    ids=lambda tensor: str(tensor.view),
)
def test_tensor_larger_than_its_storage_or_of_no_size_is_refused(tensor, tmp_path):
    torch.save({'state_dict': {'sound': torch.ones(2), 'claimed': tensor}}, tmp_path / 'sized.pth')
    with pytest.raises(CheckpointError, match=r'sized\.pth') as error:
        load_checkpoint_file(tmp_path / 'sized.pth')
    assert '\n' not in str(error.value)


@pytest.mark.parametrize(
    'state_dict',
    [
        {'weight': {'nested': torch.ones(2, 2)}, 'bias': torch.ones(2)},
        {'weight': 'text', 'bias': torch.ones(2)},
        {'weight': None, 'bias': torch.ones(2)},
        {'weight': torch.ones(2, 3), 'bias': torch.ones(2)},
        {'weight': torch.zeros(1).expand(2**40), 'bias': torch.ones(2)},
        {1: torch.ones(2, 2), 'bias': torch.ones(2)},
        {},
        [torch.ones(2, 2)],
        'text',
        torch.ones(2, 2),
    ],
    ids=lambda content: str(type(content).__name__),
)
def test_content_that_is_not_the_models_leaves_the_model_untouched(state_dict, tmp_path):
    path = tmp_path / 'other.pth'
    torch.save({'state_dict': state_dict}, path)
    model = nn.Linear(2, 2)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=r'other\.pth'):
        check_fit(model, load_checkpoint_file(path), str(path))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_what_is_refused_would_have_run():
    pickle.loads(pickle.dumps(Call(noted, 'executed')))
    assert CALLS.pop() == ('executed',)


# --- Files that would cost, read or print too much ------------------------------------------------

# Half a gigabyte more than the process has, so that a file that takes more ends in a MemoryError.
LOAD_ALL = """
import resource, sys, time
from pathlib import Path
from mirrorla_mm.engine.checkpoint import CheckpointError, load_checkpoint_file

pages = int(Path('/proc/self/statm').read_text().split()[0])
limit = pages * resource.getpagesize() + 2**29
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
for path in sorted(Path(sys.argv[1]).iterdir()):
    print(path.stem, end='\t', flush=True)
    start = time.process_time()
    try:
        load_checkpoint_file(path, 'cpu')
        result = 'loaded'
    except CheckpointError as error:
        result = str(error)
    except BaseException as error:
        result = f'{type(error).__name__}: {error}'
    print(time.process_time() - start, result, sep='\t', flush=True)
"""


@pytest.mark.slow
def test_small_file_that_would_cost_or_break_much_is_refused(tmp_path):
    """All in one process with little memory."""
    for name, write in FILES.items():
        write(tmp_path / f'{name}.pth')
    done = subprocess.run(
        [sys.executable, '-c', LOAD_ALL, str(tmp_path)],
        capture_output=True,
        encoding='utf-8',
        timeout=240,
        cwd=Path(__file__).parents[2],
    )
    rows = [line.split('\t') for line in done.stdout.splitlines()]
    assert done.returncode == 0, f'{rows[-1:]} ended the process: {done.stderr[-500:]}'
    assert {name for name, *_ in rows} == FILES.keys()
    for name, seconds, message in rows:
        assert f'{name}.pth' in message, name
        assert 'refused' in message or 'cannot be read' in message, name
        assert message.isprintable(), name
        assert float(seconds) < 10, name


@pytest.mark.parametrize('name', ANYWHERE)
def test_object_that_numpy_would_read_at_any_address_is_refused(tmp_path, name):
    ANYWHERE[name](tmp_path / 'a.pth')
    with pytest.raises(CheckpointError, match=r'a\.pth was refused .* only Python may give'):
        load_checkpoint_file(tmp_path / 'a.pth')


@pytest.mark.parametrize('note', ['third_party', 2, 1.5, True, None])
def test_author_of_detectron2_s_files_and_other_plain_notes_may_stay(tmp_path, note):
    torch.save({'model': {}, '__author__': note}, tmp_path / 'a.pth')
    assert load_checkpoint_file(tmp_path / 'a.pth')['__author__'] == note


def test_message_about_a_file_cannot_steer_a_terminal(capsys):
    class Odd(UserError):
        pass

    for error in (Odd('\x1b[2J\x9b1m\r\ud800'), OSError(2, '\x1b[2J', 'a\x07')):
        with pytest.raises(SystemExit), one_line_errors():
            raise error
        assert capsys.readouterr().err.strip().isprintable()
    assert str(Odd('wall\nsky, Wände')) == 'wall\nsky, Wände'
