"""Checkpoints: what mmengine saves comes back equal, what is hostile is refused before it acts."""

import builtins
import functools
import importlib
import io
import json
import os
import pickle
import struct
import tarfile
import zipfile
from argparse import Namespace
from collections import Counter, OrderedDict, defaultdict, deque
from datetime import date, datetime, time, timedelta, timezone
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.config import Config, ConfigDict
from mmengine.logging import HistoryBuffer
from mmengine.runner import CheckpointLoader, load_checkpoint
from torch import nn

from mirrorla_mm.engine import checkpoint as checkpoint_module
from mirrorla_mm.engine import safe_pickle, torch_file
from mirrorla_mm.engine.checkpoint import (
    CheckpointError,
    UnsafeCheckpointError,
    load_checkpoint_file,
    load_url,
    register_safe_loader,
)
from mirrorla_mm.engine.reproducible import make_reproducible
from tests.strangers import Call

from .toy import toy_runner

FORMATS = {
    'zip': {},
    'legacy': {'_use_new_zipfile_serialization': False},
    'protocol4': {'pickle_protocol': 4},
}


class WithState(Call):
    """Pickles as a call followed by setting state."""

    def __init__(self, function, args, state):
        super().__init__(function, *args)
        self.state = state

    def __reduce__(self):
        return self.function, self.args, self.state


class EvilModule(nn.Linear):
    """Runs code in ``__setstate__`` of a class that the file names."""

    def __setstate__(self, state):
        Path(state['sentinel']).touch()


class EvilDict(OrderedDict):
    """Runs code while it is filled: items are set by ``SETITEM``."""

    def __setitem__(self, key, value):
        Path(str(value)).touch()


def hostile_payloads(sentinel: str) -> dict:
    """Objects that create the file ``sentinel`` when an ordinary unpickler meets them."""
    code = f'open({sentinel!r}, "w").close()'
    evil_dict = EvilDict()
    OrderedDict.__setitem__(evil_dict, 'key', sentinel)
    module = EvilModule(1, 1)
    module.sentinel = sentinel
    return {
        'os.system': Call(os.system, f'touch {sentinel}'),
        'os.mkdir': Call(os.mkdir, sentinel),
        'eval': Call(eval, code),
        'exec': Call(exec, code),
        'open': Call(open, sentinel, 'w'),
        'compile': Call(compile, code, 'x', 'exec'),
        '__import__': Call(builtins.__import__, 'antigravity'),
        'getattr of a path': Call(getattr, Path(sentinel), 'touch'),
        'getattr of HistoryBuffer': Call(getattr, HistoryBuffer, '__init__'),
        'getattr of an array': Call(getattr, np.ndarray, 'tofile'),
        'partial': Call(functools.partial(open, sentinel, 'w')),
        'pickle in pickle': Call(pickle.loads, pickle.dumps(Call(os.mkdir, sentinel))),
        'numpy.load': Call(np.load, io.BytesIO()),
        'numpy object array': np.array([Call(os.mkdir, sentinel), 1], dtype=object),
        'numpy save': Call(np.save, sentinel, np.zeros(1)),
        'torch.load': Call(torch.load, sentinel),
        'torch.hub': Call(torch.hub.load, 'owner/name', 'model'),
        'torch.jit': Call(torch.jit.load, sentinel),
        'module with __setstate__': module,
        'dict subclass': evil_dict,
        'torch module': nn.Linear(1, 1),
        'tensor by a function': Call(
            torch._tensor._rebuild_from_type_v2, os.mkdir, torch.Tensor, (sentinel,), {}
        ),
        'tensor of another type': Call(
            torch._tensor._rebuild_from_type_v2, torch._utils._rebuild_tensor, EvilModule, (), {}
        ),
        'state of a function': WithState(getattr, (HistoryBuffer, 'mean'), {'__code__': 1}),
    }


PAYLOADS = list(hostile_payloads('x'))


def wrap(payload, place: str):
    """Put the payload where checkpoints have room for objects."""
    if place == 'top':
        return payload
    if place == 'optimizer':
        return {'optimizer': {'state': {0: {'exp_avg': torch.zeros(2), 'step': payload}}}}
    history = HistoryBuffer([1.0], [1])
    history.note = payload
    return {'message_hub': {'log_scalars': {'train/loss': history}}}


@pytest.mark.parametrize('name', PAYLOADS)
@pytest.mark.parametrize('form', FORMATS)
@pytest.mark.parametrize('place', ['top', 'optimizer', 'history'])
def test_hostile_file_is_refused_and_does_nothing(tmp_path, name, form, place):
    path, sentinel = tmp_path / 'hostile.pth', tmp_path / 'executed'
    torch.save(wrap(hostile_payloads(str(sentinel))[name], place), path, **FORMATS[form])
    with pytest.raises(UnsafeCheckpointError, match='hostile.pth was refused') as info:
        load_checkpoint_file(path)
    assert not sentinel.exists()
    assert len(str(info.value).splitlines()) == 1


@pytest.mark.parametrize('name', ['os.mkdir', 'eval', 'open', 'module with __setstate__'])
def test_the_hostile_files_do_act_on_an_ordinary_unpickler(tmp_path, name):
    path, sentinel = tmp_path / 'hostile.pth', tmp_path / 'executed'
    torch.save(hostile_payloads(str(sentinel))[name], path)
    torch.load(path, weights_only=False)
    assert sentinel.exists()


def test_refusal_names_file_and_global(tmp_path):
    torch.save({'state_dict': {}, 'meta': Call(os.system, 'true')}, tmp_path / 'a.pth')
    with pytest.raises(UnsafeCheckpointError, match=rf'a\.pth .*{os.system.__module__}\.system'):
        load_checkpoint_file(tmp_path / 'a.pth')


def name(module: str, attribute: str) -> bytes:
    return f'c{module}\n{attribute}\n'.encode()


def text(value: str) -> bytes:
    return b'X' + struct.pack('<I', len(value)) + value.encode()


# Programs that no honest pickler writes: opcodes of the first protocols, calls of what is in the
# table but no function, state on classes and functions, other persistent ids.
HISTORY = name('mmengine.logging.history_buffer', 'HistoryBuffer')
GETATTR = name('__builtin__', 'getattr')
DEQUE = name('collections', 'deque')
PROGRAMS = {
    'global': name('os', 'mkdir') + b'(S"SENTINEL"\ntR.',
    'global by protocol 4': b'\x8c\x02os\x8c\x05mkdir\x93(S"SENTINEL"\ntR.',
    'instance by protocol 0': b'(S"SENTINEL"\nios\nmkdir\n.',
    'instance by protocol 1': b'(' + name('os', 'mkdir') + b'S"SENTINEL"\no.',
    'extension registry': b'\x82\x01.',
    'dotted name': b'\x8c\x05numpy\x8c\x0alib.os.sys\x93.',
    'dotted name of a class': b'\x8c\x08argparse\x8c\x12Namespace.__class__\x93.',
    'getattr of itself': GETATTR + GETATTR + text('__self__') + b'\x86R.',
    'getattr of a class': GETATTR + name('argparse', 'Namespace') + text('__init__') + b'\x86R.',
    'getattr of the buffer': GETATTR + HISTORY + text('__init__') + b'\x86R.',
    'instance of a function': GETATTR + b')\x81.',
    'instance with arguments': name('argparse', 'Namespace') + b'K\x01\x85\x81.',
    'state of a class': HISTORY + b'}' + text('mean') + b'Nsb.',
    'state of a function': GETATTR + b'}' + text('a') + b'Nsb.',
    'slots of an object': name('argparse', 'Namespace') + b')\x81N}' + text('a') + b'Ns\x86b.',
    'buffer without logs': HISTORY + b')\x81}b.',
    'call of a class': name('argparse', 'Namespace') + b')R.',
    'call of a constant': name('numpy', 'ndarray') + b'K\x05\x85R.',
    'call of a text': text('a') + b')R.',
    'call with a list': name('__builtin__', 'set') + b']R.',
    'append to a mapping': b'}Na.',
    'append to a class': name('collections', 'OrderedDict') + b'Na.',
    'extend a class': name('collections', 'OrderedDict') + b'(Ne.',
    'item of a class': name('argparse', 'Namespace') + b'NNs.',
    'items of a list': b'](K\x00Nu.',
    'add to a list': b'](K\x00\x90.',
    'deque of a list': DEQUE + b'(](]etR.',
    'append a list to a deque': DEQUE + b')R]a.',
    'extend a deque by a list': DEQUE + b')R(]e.',
    'codec': name('_codecs', 'encode') + text('a') + text('rot13') + b'\x86R.',
    'object dtype': name('numpy', 'dtype') + text('O8') + b'\x85R.',
    'structured dtype': name('numpy', 'dtype') + text('f4,O') + b'\x85R.',
    'factory': name('collections', 'defaultdict') + GETATTR + b'\x85R.',
    'source of a module': b'(' + text('module') + name('argparse', 'Namespace') + b'tQ.',
    'persistent id by protocol 0': b'Pstorage\n.',
    'out-of-band buffer': b'\x97.',
}


@pytest.mark.parametrize('program', PROGRAMS)
def test_handwritten_program_is_refused(tmp_path, program):
    sentinel = tmp_path / 'executed'
    source = PROGRAMS[program].replace(b'SENTINEL', str(sentinel).encode())
    with pytest.raises(pickle.UnpicklingError):
        safe_pickle.load(io.BytesIO(source), fetch=lambda reference: sentinel.touch())
    assert not sentinel.exists()


def test_dtype_cannot_be_given_another_layout():
    # numpy trusts this state: with an item size of 4096 the next access would leave the buffer.
    class Layout(Call):
        def __reduce__(self):
            return np.dtype, ('V8', False, True), (3, '|', None, None, None, 4096, 1, 0)

    class Size(Call):
        def __reduce__(self):
            return np.dtype, ('f8', False, True), (3, '<', None, None, None, 4096, 1, 0)

    for hostile in (Layout(None), Size(None)):
        with pytest.raises(safe_pickle.ForbiddenGlobal, match=r'numpy\.dtype'):
            safe_pickle.load(io.BytesIO(pickle.dumps(hostile, 2)))


def test_hostile_name_cannot_write_to_the_terminal():
    program = b'\x80\x04\x8c\x02os\x8c\x08\x1b[2Jrm\n\n\x93.'
    with pytest.raises(safe_pickle.ForbiddenGlobal) as info:
        safe_pickle.load(io.BytesIO(program))
    assert str(info.value).isprintable()


def test_tar_and_torchscript_are_refused(tmp_path):
    sentinel = tmp_path / 'executed'
    payload = pickle.dumps(Call(os.mkdir, str(sentinel)), 2)
    with tarfile.open(tmp_path / 'old.pth', 'w') as tar:
        for name in ('storages', 'tensors', 'pickle'):
            info = tarfile.TarInfo(name)
            info.size = len(payload)
            tar.addfile(info, io.BytesIO(payload))
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), tmp_path / 'script.pth')
    for name in ('old.pth', 'script.pth'):
        with pytest.raises(CheckpointError, match=name):
            load_checkpoint_file(tmp_path / name)
    assert not sentinel.exists()


def honest_content() -> dict:
    history = HistoryBuffer([1.0, 2.0], [1, 1])
    history.update(6)
    state_dict = OrderedDict(weight=torch.randn(3, 2), half=torch.ones(2).half())
    state_dict._metadata = OrderedDict({'': {'version': 1}})
    return {
        'state_dict': state_dict,
        'message_hub': {'log_scalars': {'train/loss': history}},
        'meta': {
            'epoch': 3,
            'best': np.float64(0.25),
            'seen': np.int64(2**40),
            'flag': np.bool_(True),
            'palette': np.arange(6, dtype='>i2').reshape(2, 3).T,
            'names': np.array(['wall', 'sky']),
            'empty': np.zeros((0, 3)),
            'info': ConfigDict(classes=('a',), nested={'b': 1}),
            'args': Namespace(lr=0.1, path=Path('a/b')),
            'raw': b'\x00\xff',
            'none': b'',
            'set': {1, 2},
            'big': 2**70,
        },
        'optimizer': {'state': {0: {'step': torch.tensor(3.0)}}, 'milestones': Counter([8, 11])},
        'extra': (torch.Size([2]), torch.float16, torch.device('cpu'), defaultdict(list, a=[1])),
        'parameter': nn.Parameter(torch.ones(2)),
        'shared': (shared := torch.arange(6.0), shared[2:4]),
    }


def assert_same(a, b):
    if isinstance(a, Path):
        assert str(a) == str(b)
        return
    assert type(a) is type(b)
    if isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype and torch.equal(a, b)
    elif isinstance(a, np.ndarray):
        # numpy itself turns a foreign byte order into the machine's
        assert a.dtype.newbyteorder('=') == b.dtype and np.array_equal(a, b)
    elif isinstance(a, dict):
        assert list(a) == list(b)
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_same(x, y)
    elif isinstance(a, HistoryBuffer):
        assert_same(a.data, b.data)
        assert a.max_length == b.max_length
    elif isinstance(a, (Namespace, SimpleNamespace)):
        assert_same(vars(a), vars(b))
    else:
        assert a == b


@pytest.mark.parametrize('form', FORMATS)
def test_honest_content_comes_back_equal(tmp_path, form):
    content = honest_content()
    torch.save(content, tmp_path / 'a.pth', **FORMATS[form])
    loaded = load_checkpoint_file(tmp_path / 'a.pth')
    assert_same(content, loaded)
    assert loaded['state_dict']._metadata == content['state_dict']._metadata
    whole, view = loaded['shared']
    assert view.data_ptr() == whole[2:4].data_ptr()
    history = loaded['message_hub']['log_scalars']['train/loss']
    assert history.mean() == history.statistics('mean') == 3
    history.update(1)


def test_a_tensor_with_attributes_comes_back_without_them(tmp_path):
    # FSDP leaves such tensors in its checkpoints.
    weight = torch.arange(6.0).view(2, 3)
    weight._has_been_cloned = weight.numel = 'of the file'
    torch.save(weight, tmp_path / 'a.pth')
    loaded = load_checkpoint_file(tmp_path / 'a.pth')
    assert not loaded.__dict__
    torch.testing.assert_close(loaded, torch.arange(6.0).view(2, 3))


def test_what_was_loaded_can_be_saved_and_loaded_again(tmp_path):
    torch.save(honest_content(), tmp_path / 'a.pth')
    first = load_checkpoint_file(tmp_path / 'a.pth')
    torch.save(first, tmp_path / 'b.pth')
    assert_same(first, load_checkpoint_file(tmp_path / 'b.pth'))


def test_history_of_a_file_does_not_change_the_statistics_of_the_process(tmp_path):
    history = HistoryBuffer([1.0], [1])
    history.__dict__['statistics_methods'] = {}
    before = dict(HistoryBuffer._statistics_methods)
    torch.save(history, tmp_path / 'a.pth')
    load_checkpoint_file(tmp_path / 'a.pth')
    assert HistoryBuffer._statistics_methods == before


@pytest.mark.parametrize('form', FORMATS)
@pytest.mark.parametrize('part', [0, 0.01, 0.3, 0.9, 0.999])
def test_file_cut_short_is_named(tmp_path, form, part):
    path = tmp_path / 'cut.pth'
    torch.save(honest_content(), path, **FORMATS[form])
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * part)])
    with pytest.raises(CheckpointError, match=r'cut\.pth cannot be read') as info:
        load_checkpoint_file(path)
    assert len(str(info.value).splitlines()) == 1


def test_files_of_other_kinds_are_named(tmp_path):
    with zipfile.ZipFile(tmp_path / 'zip', 'w') as archive:
        archive.writestr('a.txt', 'text')
    (tmp_path / 'text').write_text('<html>404 Not Found</html>\n' * 9)
    (tmp_path / 'noise').write_bytes(np.random.default_rng(0).bytes(999))
    (tmp_path / 'pickle').write_bytes(pickle.dumps({'state_dict': {}}))
    for name in ('zip', 'text', 'noise', 'pickle'):
        with pytest.raises(CheckpointError, match=f'{name} cannot be read'):
            load_checkpoint_file(tmp_path / name)


def test_missing_file_and_folder_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r'nowhere\.pth does not exist'):
        load_checkpoint_file(tmp_path / 'nowhere.pth')
    with pytest.raises(FileNotFoundError, match='is a folder'):
        load_checkpoint_file(tmp_path)


def test_open_file_is_read_and_named(tmp_path):
    torch.save({'a': 1}, tmp_path / 'a.pth')
    with (tmp_path / 'a.pth').open('rb') as file:
        assert load_checkpoint_file(file) == {'a': 1}
    assert load_checkpoint_file(io.BytesIO((tmp_path / 'a.pth').read_bytes())) == {'a': 1}


def test_switches_of_torch_change_nothing(tmp_path, monkeypatch):
    torch.save({'a': HistoryBuffer([1.0], [1])}, tmp_path / 'a.pth')
    torch.save(Call(os.mkdir, str(tmp_path / 'ran')), tmp_path / 'h.pth')
    for switch in ('TORCH_FORCE_WEIGHTS_ONLY_LOAD', 'TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD'):
        monkeypatch.setenv(switch, '1')
        assert load_checkpoint_file(tmp_path / 'a.pth')['a'].mean() == 1
        with pytest.raises(UnsafeCheckpointError):
            load_checkpoint_file(tmp_path / 'h.pth')
        monkeypatch.delenv(switch)
    assert not (tmp_path / 'ran').exists()


# --- mmengine's loaders ---------------------------------------------------------------------------


@pytest.fixture()
def hostile(tmp_path):
    """A hostile file and the sentinel it would create."""
    torch.save({'state_dict': {}, 'x': Call(os.mkdir, str(tmp_path / 'ran'))}, tmp_path / 'h.pth')
    yield tmp_path / 'h.pth'
    assert not (tmp_path / 'ran').exists()


@pytest.mark.parametrize('options', [{}, {'weights_only': True}, {'weights_only': False}])
def test_mmengine_s_own_loading_is_safe_whatever_it_asks_for(hostile, tmp_path, options):
    # onedl's mmengine passes weights_only, and False where True did not do.
    torch.save({'weight': torch.ones(2)}, tmp_path / 'plain.pth')
    load = checkpoint_module.mmengine_checkpoint.torch.load
    assert load(tmp_path / 'plain.pth', map_location='cpu', **options)['weight'].sum() == 2
    with pytest.raises(UnsafeCheckpointError):
        load(hostile, map_location='cpu', **options)


def test_every_mmengine_loader_refuses(hostile, monkeypatch):
    monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(hostile.parent))
    (hostile.parent / 'checkpoints').mkdir()
    (hostile.parent / 'checkpoints' / 'h.pth').write_bytes(hostile.read_bytes())
    monkeypatch.setenv('MMENGINE_HOME', str(hostile.parent))
    models = {'local': 'h.pth', 'web': 'https://a.b/h.pth'}
    (hostile.parent / 'open_mmlab.json').write_text(json.dumps(models))
    sources = [str(hostile), 'https://a.b/h.pth', 'open-mmlab://local', 'openmmlab://web']
    for source in sources:
        with pytest.raises(UnsafeCheckpointError, match=r'h\.pth was refused'):
            CheckpointLoader.load_checkpoint(source, map_location='cpu')
    with pytest.raises(UnsafeCheckpointError):
        load_checkpoint(nn.Linear(1, 1), str(hostile))


def test_pretrained_init_is_loaded_safely(hostile, tmp_path):
    from mmengine.model import BaseModule

    class Block(BaseModule):
        def __init__(self, checkpoint):
            super().__init__(init_cfg={'type': 'Pretrained', 'checkpoint': str(checkpoint)})
            self.fc = nn.Linear(2, 2)

    with pytest.raises(UnsafeCheckpointError):
        Block(hostile).init_weights()
    weights = {'fc.weight': torch.ones(2, 2), 'fc.bias': torch.ones(2)}
    history = HistoryBuffer([1.0], [1])
    torch.save({'state_dict': weights, 'message_hub': history}, tmp_path / 'good.pth')
    block = Block(tmp_path / 'good.pth')
    block.init_weights()
    assert torch.equal(block.fc.weight, torch.ones(2, 2))


def test_registering_twice_and_after_a_reload_changes_nothing(hostile):
    original = dict(vars(checkpoint_module))
    register_safe_loader()
    importlib.reload(checkpoint_module).register_safe_loader()
    with pytest.raises(checkpoint_module.UnsafeCheckpointError):
        CheckpointLoader.load_checkpoint(str(hostile))
    vars(checkpoint_module).update(original)
    register_safe_loader()


def test_download_that_fails_names_the_url(tmp_path):
    for url in ('file:///nowhere/a.pth', 'nothing://a.b/a.pth'):
        with pytest.raises(CheckpointError, match=rf'{url} cannot be downloaded'):
            load_url(url, model_dir=str(tmp_path))


def test_url_is_downloaded_once_and_loaded(tmp_path):
    torch.save({'a': 1}, tmp_path / 'a.pth')
    url, cache = (tmp_path / 'a.pth').as_uri(), tmp_path / 'cache'
    options = {'model_dir': str(cache), 'progress': False, 'file_name': 'b.pth'}
    assert load_url(url, **options) == {'a': 1}
    (tmp_path / 'a.pth').unlink()
    assert load_url(url, **options) == {'a': 1}
    assert [path.name for path in cache.iterdir()] == ['b.pth']


def test_files_of_one_name_do_not_share_the_cache(tmp_path):
    options = {'model_dir': str(tmp_path / 'cache'), 'progress': False}
    for project in ('one', 'two'):
        (tmp_path / project).mkdir()
        file = tmp_path / project / 'epoch_12.pth'
        torch.save({'project': project}, file)
        for _ in range(2):
            assert load_url(file.as_uri(), **options) == {'project': project}
    # Nor through a file that was cut short under the plain name.
    torch.save({'best of': 'nobody'}, tmp_path / 'whole.pth')
    half = (tmp_path / 'whole.pth').read_bytes()[:200]
    (tmp_path / 'cache' / 'best.pth').write_bytes(half)
    for project in ('one', 'two'):
        torch.save({'best of': project}, tmp_path / project / 'best.pth')
        url = (tmp_path / project / 'best.pth').as_uri()
        assert load_url(url, **options) == {'best of': project}
    # A name with a hash is that of one file, and of others' caches.
    torch.save({'a': 1}, tmp_path / 'cache' / 'resnet-5891d200.pth')
    assert load_url('https://nowhere.invalid/resnet-5891d200.pth', **options) == {'a': 1}


def test_a_file_that_somebody_put_into_the_cache_is_taken_and_named(tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(checkpoint_module, 'print_log', lambda text, *_: said.append(text))
    torch.save({'a': 1}, tmp_path / 'swin.pth')
    url = 'https://nowhere.invalid/swin.pth'
    assert load_url(url, model_dir=str(tmp_path), progress=False) == {'a': 1}
    assert said == [
        f'{tmp_path / "swin.pth"} is taken for {url}, as it has its name; delete it if '
        'it is another file.'
    ]


def test_a_cut_file_is_let_go_while_its_error_is_kept(tmp_path, monkeypatch):
    streams = []

    def kept(content):
        streams.append(io.BytesIO(content))
        return streams[-1]

    torch.save({'a': torch.ones(999)}, tmp_path / 'a.pth', **FORMATS['legacy'])
    whole = (tmp_path / 'a.pth').read_bytes()
    (tmp_path / 'a.pth').write_bytes(whole[:-100])
    names = SimpleNamespace(BytesIO=kept, SEEK_END=io.SEEK_END)
    monkeypatch.setattr(torch_file, 'io', names)
    with pytest.raises(CheckpointError):
        try:
            load_checkpoint_file(tmp_path / 'a.pth')
        except CheckpointError:
            streams[0].close()  # That fails while a view of it lives in the frames of the error.
            raise
    assert len(streams) == 1 and streams[0].closed


def test_download_that_was_cut_does_not_stay_in_the_cache(tmp_path):
    torch.save({'a': torch.ones(999)}, tmp_path / 'a.pth')
    whole, url, cache = (tmp_path / 'a.pth').read_bytes(), (tmp_path / 'a.pth').as_uri(), tmp_path
    options = {'model_dir': str(cache / 'cache'), 'progress': False}
    (tmp_path / 'a.pth').write_bytes(whole[:-999])
    with pytest.raises(CheckpointError, match=f'{url} did not arrive whole'):
        load_url(url, **options)
    assert not list((cache / 'cache').iterdir())
    (tmp_path / 'a.pth').write_bytes(whole)
    options['file_name'] = 'a.pth'
    (cache / 'cache/a.pth').write_bytes(whole[:-999])  # as earlier versions left it
    assert load_url(url, **options)['a'].sum() == 999


def test_run_is_resumed_from_a_url(served, tmp_path, monkeypatch):
    folder = tmp_path
    monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(folder / 'hub'))
    toy_runner(folder, max_iters=2).train()
    url = f'{served}/iter_2.pth'
    assert load_checkpoint_file(url)['meta']['iter'] == 2
    cfg = Config({'train_dataloader': {}, 'resume': True, 'load_from': url})
    make_reproducible(cfg)
    assert cfg.randomness.seed == load_checkpoint_file(folder / 'iter_2.pth')['meta']['seed']
    resume(folder, url)


# --- A checkpoint's text is no program ------------------------------------------------------------

PROGRAM = "_x = __import__('pathlib').Path({!r}).touch()\nmodel = dict(type='Linear')\n"


def with_config(place: str, program: str) -> dict:
    """A checkpoint with a config where mmcv (``meta.config``) or mmengine wrote it."""
    meta = {'epoch': 1, 'iter': 2}
    hub = {'log_scalars': {}, 'runtime_info': {'epoch': 1}, 'resumed_keys': {}}
    owner, key = (hub['runtime_info'], 'cfg') if place == 'hub.cfg' else (meta, place[5:])
    owner[key] = program
    return {'state_dict': {'weight': torch.ones(1, 1)}, 'meta': meta, 'message_hub': hub}


@pytest.fixture(params=['meta.config', 'meta.cfg', 'hub.cfg'])
def programmed(request, tmp_path):
    """A checkpoint whose config would create a file; the test makes sure that it did not."""
    sentinel = tmp_path / 'executed'
    content = with_config(request.param, PROGRAM.format(str(sentinel)))
    torch.save(content, tmp_path / 'programmed.pth')
    yield tmp_path / 'programmed.pth'
    assert not sentinel.exists()


def test_config_of_a_checkpoint_is_kept_but_not_handed_out(tmp_path):
    torch.save(with_config('meta.cfg', 'a = 1'), tmp_path / 'a.pth')
    meta = load_checkpoint_file(tmp_path / 'a.pth')['meta']
    assert isinstance(meta, dict) and meta['epoch'] == 1 and 'cfg' in meta
    assert meta.get('cfg') == dict(meta)['cfg'] == 'a = 1'
    with pytest.raises(CheckpointError, match='name a config file'):
        meta['cfg']
    torch.save(meta, tmp_path / 'b.pth')
    assert torch.load(tmp_path / 'b.pth', weights_only=True)['cfg'] == 'a = 1'


def test_meta_may_be_an_ordered_dict(tmp_path):
    meta = OrderedDict(config='a = 1', epoch=3, cfg='b = 1')
    torch.save({'meta': meta}, tmp_path / 'a.pth')
    assert list(load_checkpoint_file(tmp_path / 'a.pth')['meta'].items())[0] == ('epoch', 3)
    del meta['cfg']
    torch.save({'meta': meta}, tmp_path / 'a.pth')
    assert load_checkpoint_file(tmp_path / 'a.pth')['meta'] == OrderedDict(epoch=3)


@pytest.mark.parametrize('task', ['mmdet', 'mmseg'])
def test_inferencer_without_a_config_asks_for_one(programmed, task):
    apis = importlib.import_module(f'{task}.apis')
    inferencer = apis.DetInferencer if task == 'mmdet' else apis.MMSegInferencer
    with pytest.raises((CheckpointError, ValueError)) as info:
        inferencer(None, weights=str(programmed), device='cpu')
    found = isinstance(info.value, CheckpointError)
    assert ('name a config file' if found else 'Cannot find the config') in str(info.value)


def resume(work_dir: Path, file: Path | str, **kwargs) -> None:
    """Take up a toy run at a checkpoint, on mmengine's own road."""
    toy_runner(work_dir, max_iters=4, resume=True, load_from=str(file), **kwargs).train()


def test_config_of_a_checkpoint_is_not_executed_by_a_resume(tmp_path):
    toy_runner(tmp_path, max_iters=2).train()
    content = load_checkpoint_file(tmp_path / 'iter_2.pth')
    content['meta']['config'] = PROGRAM.format(str(tmp_path / 'executed'))
    torch.save(content, tmp_path / 'programmed.pth')
    resume(tmp_path, tmp_path / 'programmed.pth')
    assert not (tmp_path / 'executed').exists()


@pytest.mark.parametrize('strategy', ['cos', 'linear'])
def test_one_cycle_schedule_is_resumed(tmp_path, strategy):
    schedule = {'type': 'OneCycleLR', 'eta_max': 0.1, 'total_steps': 8, 'by_epoch': False}
    schedule['anneal_strategy'] = strategy
    schedules = {'param_scheduler': [schedule]}
    toy_runner(tmp_path, max_iters=2, **schedules).train()
    resume(tmp_path, tmp_path / 'iter_2.pth', **schedules)


def test_more_kinds_of_plain_values_come_back_equal(tmp_path):
    content = {
        'counts': defaultdict(int, a=1),
        'times': [
            datetime(2026, 11, 21, 12, 30, 5, 7, timezone.utc),
            date(2026, 11, 21),
            time(1, 2, 3),
            timedelta(days=-1, seconds=5),
        ],
        'last': deque([1, 2], 5),
        'part': [slice(1, None, 2), range(3), bytearray(b'a'), 1j, frozenset({'a'})],
        'space': SimpleNamespace(a=1),
        'keys': {(1, 'a'): 0, 2.5: 1, None: 2, np.int64(3): 3, torch.float16: 4},
        'fortran': np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        'frozen': np.frombuffer(b'abcd', 'u1'),
        'text': np.array(['wall', 'sky']),
    }
    float8 = torch.ones(2).to(torch.float8_e4m3fn)  # torch cannot compare it
    for protocol in (2, 3, 4, 5):
        torch.save({**content, 'float8': float8}, tmp_path / 'a.pth', pickle_protocol=protocol)
        loaded = load_checkpoint_file(tmp_path / 'a.pth')
        assert torch.equal(loaded.pop('float8').float(), torch.ones(2))
        assert_same(content, loaded)
        assert loaded['counts']['new'] == 0 and loaded['last'].maxlen == 5


class Trusted:
    """A class of the user's."""

    def __init__(self):
        self.value = 3


def test_class_that_is_refused_is_named_with_the_way_to_allow_it(tmp_path):
    torch.save({'x': Trusted()}, tmp_path / 'a.pth')
    torch.save({'x': Call(os.mkdir, str(tmp_path / 'ran'))}, tmp_path / 'h.pth')
    way = r'Trusted.*add_safe_globals\(\[.*Trusted\]\)'
    with pytest.raises(UnsafeCheckpointError, match=way):
        load_checkpoint_file(tmp_path / 'a.pth')
    with torch.serialization.safe_globals([Trusted, getattr]):
        assert load_checkpoint_file(tmp_path / 'a.pth')['x'].value == 3
        # What one class is allowed, no other is; and getattr stays mmengine's.
        for hostile in ('os.mkdir', 'getattr of a path'):
            torch.save(hostile_payloads(str(tmp_path / 'ran'))[hostile], tmp_path / 'h.pth')
            with pytest.raises(UnsafeCheckpointError):
                load_checkpoint_file(tmp_path / 'h.pth')
    assert not (tmp_path / 'ran').exists()


def test_advice_to_allow_a_class_is_given_where_it_helps(tmp_path):
    torch.save(nn.Linear(1, 1), tmp_path / 'a.pth')
    with pytest.raises(UnsafeCheckpointError, match=r'torch\.\S+Linear.* save the state_dict\(\)'):
        load_checkpoint_file(tmp_path / 'a.pth')
    torch.save({'x': Call(os.mkdir, str(tmp_path / 'ran'))}, tmp_path / 'a.pth')
    with pytest.raises(UnsafeCheckpointError) as info:
        load_checkpoint_file(tmp_path / 'a.pth')
    assert 'mkdir' in str(info.value) and 'add_safe_globals' not in str(info.value)


def test_what_others_allow_for_torch_s_loader_is_still_read_in_the_safe_way(tmp_path):
    history = HistoryBuffer([1.0, 3.0], [1, 1])
    torch.save({'loss': history, 'seen': np.arange(3.0)}, tmp_path / 'a.pth')
    statistics = dict(HistoryBuffer._statistics_methods)
    core = (np._core if np.__version__ >= '2' else np.core).multiarray
    kinds = {type(np.dtype(kind)) for kind in ('u4', 'f8', 'i8')}
    # The list of onedl's mmengine, which it sets around each call of torch.load.
    allowed = [slice, getattr, core._reconstruct, core.scalar, np.ndarray, np.dtype, HistoryBuffer]
    with torch.serialization.safe_globals([*allowed, *kinds]):
        loaded = load_checkpoint_file(tmp_path / 'a.pth')
        names = {kind.rpartition('.')[2] for kind in safe_pickle._allowed()}
    assert loaded['loss'].statistics('mean') == 2 and loaded['seen'].tolist() == [0, 1, 2]
    assert HistoryBuffer._statistics_methods == statistics
    assert names == {kind.__name__ for kind in kinds}


def test_what_torch_allows_for_itself_is_not_allowed_here(tmp_path):
    import torch.distributed.tensor

    ours = [entry for entry in safe_pickle._allowed() if entry.startswith('torch.')]
    assert torch.serialization.get_safe_globals() and not ours
