"""Files that are small or look harmless, and would cost or break much were they believed.

Each entry of :data:`FILES` writes one; none of them runs code, those are in ``test_checkpoint.py``.
They are made by hand, opcode by opcode: no honest program writes them.
"""

import pickle
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import torch

MIB = 2**20


# --- Pickle programs ------------------------------------------------------------------------------


def name(module: str, attribute: str) -> bytes:
    """A global."""
    return f'c{module}\n{attribute}\n'.encode()


def text(value: str) -> bytes:
    """A string."""
    content = value.encode('utf-8', 'surrogatepass')
    return b'X' + struct.pack('<I', len(content)) + content


def number(value: int) -> bytes:
    """An integer of any size up to 255 bytes."""
    raw = pickle.encode_long(value)
    return b'\x8a' + bytes([len(raw)]) + raw


def call(function: bytes, *args: bytes) -> bytes:
    """The call of a function."""
    return function + b'(' + b''.join(args) + b'tR'


def put(index: int) -> bytes:
    """Remember the top of the stack."""
    return b'r' + struct.pack('<I', index)


def get(index: int) -> bytes:
    """Push the remembered object."""
    return b'j' + struct.pack('<I', index)


def storage(
    numel: int,
    key: str = '0',
    kind: str = 'FloatStorage',
    place: str = 'cpu',
    legacy: bool = False,
) -> bytes:
    """A reference to a storage."""
    end = b'N' if legacy else b''
    parts = (text('storage'), name('torch', kind), text(key), text(place), number(numel), end)
    return b'(' + b''.join(parts) + b'tQ'


def tensor(source: bytes, size: tuple, stride: tuple, offset: int = 0) -> bytes:
    """A tensor over a storage."""
    shape = b'(' + b''.join(map(number, size)) + b't'
    steps = b'(' + b''.join(map(number, stride)) + b't'
    hooks = call(name('collections', 'OrderedDict'))
    rebuild = name('torch._utils', '_rebuild_tensor_v2')
    return call(rebuild, source, number(offset), shape, steps, b'\x89', hooks)


def dtype(code: str) -> bytes:
    """A NumPy dtype."""
    return call(name('numpy', 'dtype'), text(code), b'\x89', b'\x88')


def array(code: str, shape: tuple, raw: bytes = b'') -> bytes:
    """A NumPy array."""
    empty = call(
        name('numpy.core.multiarray', '_reconstruct'),
        name('numpy', 'ndarray'),
        b'(K\x00t',
        text('b'),
    )
    sizes = b'(' + b''.join(map(number, shape)) + b't'
    content = call(name('_codecs', 'encode'), text(raw.decode('latin1')), text('latin1'))
    return empty + b'(K\x01' + sizes + dtype(code) + b'\x89' + content + b'tb'


def shared(levels: int, empty: bytes, first: bytes, wrap: Callable[[bytes], bytes]) -> bytes:
    """Containers that hold the one below twice: 2**levels when unfolded."""
    program = first + put(0) + b'0'
    for level in range(levels):
        program += wrap(get(level) + get(level)) + put(level + 1) + b'0'
    return program + get(levels)


def nested(levels: int) -> list:
    """A list that holds the one below twice."""
    inner: list = []
    for _ in range(levels):
        inner = [inner, inner]
    return inner


# --- Files ----------------------------------------------------------------------------------------


def archive(
    path: Path,
    program: bytes,
    records: dict[str, bytes] | None = None,
    compression: int = zipfile.ZIP_STORED,
    byteorder: str = 'little',
) -> None:
    """A file as torch >= 1.6 writes it, around a pickle program."""
    with zipfile.ZipFile(path, 'w', compression) as file:
        file.writestr('archive/data.pkl', b'\x80\x02' + program + b'.')
        file.writestr('archive/version', '3\n')
        file.writestr('archive/byteorder', byteorder)
        for key, content in (records or {}).items():
            file.writestr(f'archive/data/{key}', content)


def legacy(path: Path, program: bytes, keys: list, storages: bytes = b'') -> None:
    """A file as torch < 1.6 wrote it."""
    head = (torch.serialization.MAGIC_NUMBER, torch.serialization.PROTOCOL_VERSION, {})
    parts = [pickle.dumps(part, 2) for part in head]
    parts += [b'\x80\x02' + program + b'.', pickle.dumps(keys, 2), storages]
    path.write_bytes(b''.join(parts))


def overlapping(path: Path, entries: int) -> None:
    """An archive whose directory has many names for one record, without checksums."""
    content, offset = bytes(256 * 1024), 0
    records = bytearray()
    directory = bytearray()

    def add(key: str, stored: bytes, at: int | None = None) -> None:
        nonlocal offset
        place = len(records) if at is None else at
        file = key.encode()
        crc = zlib.crc32(stored) if at is None else 0
        sizes = struct.pack('<IIIHH', crc, len(stored), len(stored), len(file), 0)
        if at is None:
            records.extend(struct.pack('<4s5H', b'PK\x03\x04', 20, 0, 0, 0, 0) + sizes + file)
            records.extend(stored)
        head = struct.pack('<4s6H', b'PK\x01\x02', 20, 20, 0, 0, 0, 0)
        directory.extend(head + sizes + struct.pack('<HHHII', 0, 0, 0, 0, place) + file)

    names = [f'{i:05d}' for i in range(entries)]
    held = b''.join(
        tensor(storage(len(content) // 4, key), (len(content) // 4,), (1,)) for key in names
    )
    add('archive/data.pkl', b'\x80\x02](' + held + b'e.')
    at = len(records)
    add(f'archive/data/{names[0]}', content)
    for key in names[1:]:
        add(f'archive/data/{key}', content, at)
    end = struct.pack('<4s4H', b'PK\x05\x06', 0, 0, entries + 1, entries + 1)
    end += struct.pack('<IIH', len(directory), len(records), 0)
    path.write_bytes(bytes(records + directory) + end)


TEXT = b'}' + text('key')  # a dict up to its first value
LISTS = shared(40, b']', b']', lambda items: b'](' + items + b'e')
TUPLES = shared(40, b')', b')', lambda items: b'(' + items + b't')
SET = name('builtins', 'set')
PATH = name('pathlib', 'PosixPath')
CONFIG = name('mmengine.config.config', 'ConfigDict')
DEQUE = name('collections', 'deque')
PRIME = 2**61 - 1  # hashes of integers are taken modulo it

#: What costs too much: memory, time or the stack.
COSTLY: dict[str, Callable[[Path], None]] = {
    'set of a huge tensor': lambda path: archive(
        path, SET + tensor(storage(1), (20 * MIB,), (0,)) + b'\x85R', {'0': bytes(4)}
    ),
    'huge tensor of one number': lambda path: archive(
        path, tensor(storage(1), (2**50,), (0,)), {'0': bytes(4)}
    ),
    'many views of one storage': lambda path: archive(
        path,
        storage(MIB // 4) + put(0) + b'0](' + tensor(get(0), (MIB // 4,), (1,)) * 2000 + b'e',
        {'0': bytes(MIB)},
    ),
    'path of many parts': lambda path: archive(
        path, text('a' * MIB) + put(0) + b'0' + PATH + b'(' + get(0) * 20_000 + b'tR'
    ),
    'text encoded many times': lambda path: archive(
        path,
        text('a' * MIB)
        + put(0)
        + b'0]('
        + call(name('_codecs', 'encode'), get(0), text('latin1')) * 10_000
        + b'e',
    ),
    'config of shared lists': lambda path: archive(path, CONFIG + TEXT + LISTS + b's\x85R'),
    'shared lists': lambda path: archive(path, LISTS),
    'shared tuples as key': lambda path: archive(path, b'}' + TUPLES + b'Ns'),
    'shared tuples in a set': lambda path: archive(path, SET + b'](' + TUPLES + b'e\x85R'),
    'deep tuple as key': lambda path: archive(path, b'})' + b'\x85' * 2 * MIB + b'Ns'),
    'deep tuple': lambda path: archive(path, b')' + b'\x85' * 2 * MIB),
    'deep lists': lambda path: archive(path, b'](' * 100_000 + b'e' * 100_000),
    'deep slices': lambda path: archive(
        path,
        name('builtins', 'slice')
        + put(0)
        + b'0N'
        + put(1)
        + (b'0' + get(0) + get(1) + b'\x85R' + put(1)) * 100_000,
    ),
    'deep deques': lambda path: archive(
        path, DEQUE + put(0) + b'0' + get(0) * 120_000 + b']\x85R' + b'\x85\x85R' * 119_999
    ),
    'deep deques by appending': lambda path: archive(
        path, DEQUE + put(0) + b'0' + (get(0) + b')R') * 120_000 + b'a' * 119_999
    ),
    'list that holds itself': lambda path: archive(path, b']' + put(0) + get(0) + b'a'),
    'set of an endless array': lambda path: archive(path, SET + array('S0', (2**40,)) + b'\x85R'),
    'endless array': lambda path: archive(path, array('S0', (2**40,))),
    'array of very many dimensions': lambda path: archive(path, array('f4', (2**2000,) * 20_000)),
    'endless range': lambda path: archive(
        path, call(name('builtins', 'range'), number(0), number(2**60))
    ),
    'colliding keys': lambda path: archive(
        path, b'}(' + b''.join(number(i * PRIME) + b'N' for i in range(1, 200_001)) + b'u'
    ),
    'keys of great numbers': lambda path: archive(
        path, b'}(' + b''.join(number(2**2000 + i) + b'N' for i in range(1000)) + b'u'
    ),
    'many tuples as keys': lambda path: archive(
        path,
        b'}(' + b''.join(number(i) + b'K\x00\x86N' for i in range(200_000)) + b'u',
    ),
    'long text hashed many times': lambda path: archive(
        path,
        call(
            name('numpy.core.multiarray', 'scalar'),
            dtype(f'U{MIB // 4}'),
            call(name('_codecs', 'encode'), text('a\0\0\0' * (MIB // 4)), text('latin1')),
        )
        + put(0)
        + b'0}('
        + (get(0) + b'N') * 100_000
        + b'u',
    ),
    'many empty sets': lambda path: archive(path, b'](' + b'\x8f' * 4 * MIB + b'e'),
    'many marks': lambda path: archive(path, b'(' * 8 * MIB),
    'many operations': lambda path: archive(path, b'N0' * 8 * MIB + b'N'),
    'length of a buffer': lambda path: archive(path, b'\x96' + struct.pack('<Q', 2**40)),
    'length of bytes': lambda path: archive(path, b'\x8e' + struct.pack('<Q', 2**40)),
    'length of a frame': lambda path: archive(path, b'\x95' + struct.pack('<Q', 2**40)),
    'lists as the name of an attribute': lambda path: archive(
        path,
        call(
            name('builtins', 'getattr'),
            name('mmengine.logging.history_buffer', 'HistoryBuffer'),
            LISTS,
        ),
    ),
    'long text in many places': lambda path: archive(
        path, text('a' * MIB) + put(0) + b'0](' + get(0) * 80_000 + text('\x1b') + b'e'
    ),
    'legacy list of lists': lambda path: legacy(path, b'N', [nested(40), nested(40)]),
    'compressed storage': lambda path: archive(
        path,
        tensor(storage(16 * MIB), (16 * MIB,), (1,)),
        {'0': bytes(64 * MIB)},
        zipfile.ZIP_DEFLATED,
    ),
    'compressed pickle': lambda path: archive(
        path, b'N0' * 16 * MIB + b'N', compression=zipfile.ZIP_DEFLATED
    ),
    'many names of one record': lambda path: overlapping(path, 12_000),
    'legacy storage without content': lambda path: legacy(
        path, tensor(storage(256 * MIB, legacy=True), (256 * MIB,), (1,)), []
    ),
    'legacy storage of a huge size': lambda path: legacy(
        path, storage(2**60, legacy=True), ['0'], struct.pack('<q', 2**60)
    ),
}


def sized(path: Path, numel: int, order: str = 'little', kind: str = 'FloatStorage') -> None:
    """A storage that states another size than its record has."""
    program = tensor(storage(numel, kind=kind), (min(numel, 4),), (1,))
    archive(path, program, {'0': bytes(16)}, byteorder=order)


def twice(path: Path) -> None:
    """Two records whose names differ by case alone: readers take one or the other."""
    program = tensor(storage(MIB, 'a'), (MIB,), (1,))
    archive(path, program, {'a': bytes(16), 'A': bytes(4 * MIB)})


def doubled(path: Path) -> None:
    """Two records of one name."""
    archive(path, tensor(storage(4), (4,), (1,)), {'0': bytes(16)})
    with zipfile.ZipFile(path, 'a') as file, warnings.catch_warnings():
        warnings.simplefilter('ignore')
        file.writestr('archive/data/0', bytes(4 * MIB))


#: What states other sizes than it has: reading past the end would yield memory of the process.
BEYOND: dict[str, Callable[[Path], None]] = {
    'storage larger than its record': lambda path: sized(path, 2**20),
    'storage smaller than its record': lambda path: sized(path, 2),
    'storage of a negative size': lambda path: sized(path, -4),
    'storage of other numbers': lambda path: sized(path, 4, kind='DoubleStorage'),
    'storage of the other byte order': lambda path: sized(path, 2**20, 'big'),
    'storage of no byte order': lambda path: sized(path, 4, 'middle'),
    'storage without a record': lambda path: archive(path, tensor(storage(4, '1'), (4,), (1,))),
    'records that differ by case': twice,
    'records of one name': doubled,
    'storage in two sizes': lambda path: archive(
        path, b'](' + storage(4) + storage(8) + b'e', {'0': bytes(16)}
    ),
    'storage in another folder': lambda path: archive(
        path, tensor(storage(1, '../data.pkl'), (1,), (1,))
    ),
    'tensor that would grow its storage': lambda path: archive(
        path, tensor(storage(4), (1000,), (1,)), {'0': bytes(16)}
    ),
    'tensor of overflowing size': lambda path: archive(
        path, tensor(storage(4), (2**62, 2**62), (2**62, 2**62)), {'0': bytes(16)}
    ),
    'tensor before its storage': lambda path: archive(
        path, tensor(storage(4), (2,), (-1,), 1), {'0': bytes(16)}
    ),
    'bare storage': lambda path: archive(path, storage(4), {'0': bytes(16)}),
    'legacy storage cut short': lambda path: legacy(
        path,
        tensor(storage(4, legacy=True), (4,), (1,)),
        ['0'],
        struct.pack('<q', 4) + bytes(15),
    ),
    'legacy storage of another size': lambda path: legacy(
        path,
        tensor(storage(4, legacy=True), (4,), (1,)),
        ['0'],
        struct.pack('<q', 2) + bytes(16),
    ),
    'legacy list of other storages': lambda path: legacy(
        path, tensor(storage(4, legacy=True), (4,), (1,)), ['1'], struct.pack('<q', 4) + bytes(16)
    ),
    'legacy list of the storage twice': lambda path: legacy(
        path,
        tensor(storage(4, legacy=True), (4,), (1,)),
        ['0', '0'],
        (struct.pack('<q', 4) + bytes(16)) * 2,
    ),
}

#: What would reach whoever prints or walks the content.
ODD: dict[str, Callable[[Path], None]] = {
    'key that steers a terminal': lambda path: archive(path, b'}' + text('\x1b[2Ja') + b'Ns'),
    'text that steers a terminal': lambda path: archive(path, TEXT + text('\x9b1m') + b's'),
    'text that cannot be written': lambda path: archive(path, TEXT + text('\ud800') + b's'),
    'array of text that steers a terminal': lambda path: archive(
        path, array('U1', (2,), b'\x1b\0\0\0a\0\0\0')
    ),
    'array of text that is none': lambda path: archive(path, array('U1', (1,), b'\xff' * 4)),
    'quantized tensor without a scale': lambda path: archive(
        path, tensor(storage(4, kind='QInt8Storage'), (4,), (1,)), {'0': bytes(4)}
    ),
    'tensor without values': lambda path: archive(
        path, tensor(storage(4, place='meta'), (4,), (1,)), {'0': bytes(16)}
    ),
    'class as a value': lambda path: archive(path, TEXT + SET + b's'),
    'function as a value': lambda path: archive(path, TEXT + name('builtins', 'getattr') + b's'),
    'date that is none': lambda path: archive(
        path,
        call(
            name('datetime', 'datetime'),
            call(name('_codecs', 'encode'), text('\x07\xe8\x01\xff' + '\xff' * 6), text('latin1')),
        ),
    ),
}

SPACE = name('types', 'SimpleNamespace') + b')R'
ADDRESS = b'}' + text('data') + b'(' + number(4096) + b'\x88ts'
ADDRESS += text('typestr') + text('|u1') + b's' + text('shape') + number(3) + b'\x85s'
INTERFACE = b'}' + text('__array_interface__') + ADDRESS + b's'

#: What NumPy would take for an array at an address of the file's choosing.
ANYWHERE: dict[str, Callable[[Path], None]] = {
    'namespace at an address': lambda path: archive(path, SPACE + INTERFACE + b'b'),
    'arguments at an address': lambda path: archive(
        path, name('argparse', 'Namespace') + b')\x81' + INTERFACE + b'b'
    ),
    'config at an address': lambda path: archive(path, CONFIG + INTERFACE + b'\x85R'),
    'namespace of a text': lambda path: archive(
        path, SPACE + b'}' + text('__class__') + text('a') + b'sb'
    ),
    'config of a text': lambda path: archive(
        path, CONFIG + b'}' + text('__class__') + text('a') + b's\x85R'
    ),
    'dict that may become a config': lambda path: archive(path, INTERFACE),
    'list of dicts that may': lambda path: archive(path, b']' + INTERFACE + b'a'),
}

FILES = {**COSTLY, **BEYOND, **ODD, **ANYWHERE}
