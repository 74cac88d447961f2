"""An unpickler that can build the contents of a checkpoint and nothing else.

A pickle is a program: it may name any importable function and call it. PyTorch's answer,
``weights_only=True``, refuses every checkpoint of mmengine, because those hold a
:class:`~mmengine.logging.HistoryBuffer`, NumPy arrays and ``getattr`` besides tensors, and
allow-listing ``getattr`` there would hand it to every file. This module closes each door by which a
pickle reaches code:

* A global is looked up in a table, never imported. Dangerous functions that mmengine's files name
  have stand-ins: ``getattr`` yields six harmless attributes of mmengine, NumPy's constructors make
  plain arrays and scalars, never of objects.
* Only functions of that table are called, only classes of it are instantiated.
* State is set on the listed types alone, by functions that check it, never by ``__setstate__`` or
  ``setattr`` of the pickle's choosing; ``list``, ``dict`` and ``set`` operations ask for exactly
  these types.
* Opcodes that checkpoints do not need (extension registry, ``INST``, ``OBJ``, out-of-band buffers)
  do not exist.

A small file cannot cost much either. A :class:`Budget` in proportion to the file pays for opcodes
and for every byte that a call makes; only plain keys are hashed, nothing nested; and
:func:`check_content` refuses cycles, great depth and structures that are small in the file but grow
when they are walked, and objects with attributes such as ``__array_interface__``, by which NumPy
would read any memory.

A user who trusts a class allows it with :func:`torch.serialization.add_safe_globals`.
"""

from __future__ import annotations

import codecs
import collections
import datetime
import math
import pathlib
import pickle
import types
from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
import torch
from mmengine.config import ConfigDict
from mmengine.logging import HistoryBuffer
from mmengine.optim.scheduler.param_scheduler import OneCycleParamScheduler

from .errors import CONTROL

__all__ = [
    'Budget',
    'ForbiddenGlobal',
    'Refused',
    'Storage',
    'Unpickler',
    'check_content',
    'load',
]

MIB = 2**20
ITEM = 64  # What an item of a container costs, in bytes.
BITS_OF_A_KEY = 60  # Integers below 2**61 - 1 are their own hash, so that few of them collide.
DEPTH = 100  # Configs nest some 20 deep; functions that recurse over a checkpoint manage 300.
DIMENSIONS = 64  # NumPy's own limit
TUPLE_KEYS = 10_000  # The hash of a tuple can be forged: a dict of n such keys takes n**2 steps.


class Refused(pickle.UnpicklingError):
    """The pickle would harm whoever uses what it builds; the message says how."""


class ForbiddenGlobal(Refused):
    """The pickle names something that is not in the table, or misuses what is.

    Args:
        name (str): What it asked for, such as ``os.system``.
        can_be_allowed (bool): Whether it is a class or function that the user could allow.
    """

    def __init__(self, name: str, can_be_allowed: bool = False) -> None:
        # Escaped, for a name in a hostile file may hold terminal control codes.
        self.name = ascii(name)[1:-1][:120]
        self.can_be_allowed = can_be_allowed
        super().__init__(self.name)


class Budget:
    """The cost that a file may have, in proportion to its size.

    Args:
        size (int): Bytes of the file.
    """

    def __init__(self, size: int) -> None:
        self.bytes = 16 * size + 16 * MIB
        self.operations = size // 16 + MIB // 2
        self.tuple_keys = TUPLE_KEYS

    def spend(self, count: int) -> None:
        """Pay for that many bytes of memory.

        Raises:
            Refused: If they are more than the file may take.
        """
        self.bytes -= count
        if self.bytes < 0:
            raise Refused('it is small, but would take much memory')

    def step(self) -> None:
        """Pay for one operation.

        Raises:
            Refused: If they are more than the file may take.
        """
        self.operations -= 1
        if self.operations < 0:
            raise Refused('it is small, but would take long to read')


@dataclass(frozen=True)
class Storage:
    """The memory of a tensor, as a persistent id of the pickle names it."""

    content: torch.UntypedStorage
    dtype: torch.dtype


class _ConfigNode(dict):
    """Inert stand-in for ``yacs.config.CfgNode``, which Swin-like repositories save."""


def _check(condition: bool, name: str) -> None:
    if not condition:
        raise ForbiddenGlobal(name)


def _shown(value: Any) -> str:
    """A value for a message; what nests could take for ever to write out."""
    return repr(value[:40]) if type(value) is str else f'a {_type_name(value)}'


_STATISTICS = ('min', 'max', 'current', 'mean')  # HistoryBuffer's own
_ANNEALING = ('_annealing_cos', '_annealing_linear')  # pure functions of three numbers


# --- Functions that a pickle may call -----------------------------------------------------------


def _attribute(owner: Any, name: str) -> Any:
    """``getattr`` as mmengine's files use it: the name of a statistic, a schedule's function."""
    if owner is OneCycleParamScheduler and name in _ANNEALING:
        return getattr(owner, name)
    _check(owner is HistoryBuffer and name in _STATISTICS, f'getattr(..., {_shown(name)})')
    return name


def _encode(text: str, encoding: str) -> bytes:
    """``_codecs.encode`` as protocol 2 uses it: how it writes bytes."""
    _check(type(text) is str and encoding == 'latin1', f'_codecs.encode(..., {_shown(encoding)})')
    return codecs.latin_1_encode(text)[0]


def _dtype(code: str, *_: Any) -> np.dtype:
    """A boolean, numeric or text dtype; a copy, as its byte order is set afterwards."""
    _check(
        type(code) is str and code[:1] in tuple('biufcSU') and code[1:].isdigit(),
        f'numpy.dtype({_shown(code)})',
    )
    return np.dtype(code, copy=True)


def _is_plain(dtype: Any) -> bool:
    return isinstance(dtype, np.dtype) and dtype.kind in 'biufcSU'


def _check_array(shape: Any, dtype: Any, raw: Any) -> None:
    _check(_is_plain(dtype) and type(raw) in (bytes, bytearray), 'numpy array of objects')
    sound = type(shape) is tuple and len(shape) <= DIMENSIONS
    sound = sound and all(type(n) is int and n >= 0 for n in shape)
    # Items of no size would make a huge array of nothing.
    sized = sound and math.prod(shape) * dtype.itemsize == len(raw)
    _check(sized and (dtype.itemsize > 0 or math.prod(shape) <= 1), 'numpy array of this shape')


def _array(subtype: Any, shape: Any, code: Any) -> np.ndarray:
    """The empty array that ``numpy``'s ``_reconstruct`` hands to :func:`_set_array`."""
    _check(subtype is np.ndarray, 'numpy.ndarray subclass')
    return np.ndarray.__new__(np.ndarray, (0,), 'b')


def _array_of_buffer(raw: Any, dtype: Any, shape: Any, order: Any, axes: Any = None) -> np.ndarray:
    """An array as protocol 5 writes it, with its own memory."""
    _check_array(shape, dtype, raw)
    flat = np.frombuffer(raw, dtype).copy()
    if order == 'K' and axes is not None:
        _check(type(axes) is tuple and len(axes) == len(shape), 'numpy array of these axes')
        return flat.reshape(shape).transpose(axes)
    _check(order in ('C', 'F'), 'numpy array of this order')
    return flat.reshape(shape, order=order)


def _scalar(dtype: Any, raw: Any) -> Any:
    _check(
        _is_plain(dtype) and type(raw) is bytes and len(raw) == dtype.itemsize,
        'numpy scalar of objects',
    )
    return np.ndarray((), dtype, raw)[()]


def _config_dict(content: Any) -> ConfigDict:
    """A ``ConfigDict`` of these items as they are: its constructor would copy what they hold."""
    _check(type(content) is dict, 'mmengine ConfigDict of something else than a dict')
    config = ConfigDict()
    dict.update(config, content)
    return config


def _default_dict(factory: Any = None) -> collections.defaultdict:
    known = any(factory is kind for kind in (None, dict, list, set, int, float, str, bool))
    _check(known, 'collections.defaultdict with another factory')
    return collections.defaultdict(factory)


def _ordered_dict(pairs: Any = ()) -> collections.OrderedDict:
    sound = type(pairs) in (list, tuple) and all(
        type(pair) in (list, tuple) and len(pair) == 2 and type(pair[0]) is str for pair in pairs
    )
    _check(sound, 'collections.OrderedDict of something else than pairs')
    return collections.OrderedDict(pairs)


def _counter(counts: Any = None) -> collections.Counter:
    _check(counts is None or type(counts) is dict, 'collections.Counter of no dict')
    counter: collections.Counter = collections.Counter()
    dict.update(counter, counts or {})
    return counter


def _deque(items: Any = (), length: Any = None) -> collections.deque:
    _check(type(items) in (list, tuple), 'collections.deque of no list')
    _check(length is None or type(length) is int, 'collections.deque of no length')
    _check_flat(items)
    return collections.deque(items, length)


def _check_flat(items: Any) -> None:
    """Refuse containers in a deque: nested deques overflow the stack when they are freed."""
    _check(all(_children(item) is None for item in items), 'collections.deque of containers')


def _of_integers(kind: type) -> Callable:
    """``range`` or ``slice``, whose nested ones would overflow the stack when they are freed."""

    def build(*args: Any) -> Any:
        _check(all(n is None or type(n) is int for n in args), f'{kind.__name__} of no integers')
        return kind(*args)

    return build


def _complex(real: Any = 0.0, imag: Any = 0.0) -> complex:
    _check(type(real) is float and type(imag) is float, 'complex of no numbers')
    return complex(real, imag)


def _bytes() -> bytes:
    """``bytes`` as protocol 2 calls it; other content goes through :func:`_encode`."""
    return b''


def _bytearray(content: Any = b'') -> bytearray:
    _check(type(content) is bytes, 'bytearray of no bytes')
    return bytearray(content)


def _time_delta(*args: Any) -> datetime.timedelta:
    _check(all(type(n) is int for n in args), 'datetime.timedelta of no integers')
    return datetime.timedelta(*args)


def _time_zone(offset: Any) -> datetime.timezone:
    return datetime.timezone(offset)


def _moment(kind: type) -> Callable:
    """A date or time; its bytes are trusted by C, ``replace`` checks each field."""

    def build(raw: Any, *zone: Any) -> Any:
        sound = all(type(part) is datetime.timezone for part in zone)
        _check(type(raw) is bytes and sound, f'datetime.{kind.__name__} of no bytes')
        return kind(raw, *zone).replace()

    return build


def _name_space() -> types.SimpleNamespace:
    return types.SimpleNamespace()


def _path(*parts: Any) -> pathlib.Path:
    _check(all(type(part) is str for part in parts), 'pathlib.Path of no text')
    return pathlib.Path(*parts)


def _size(numbers: Any = ()) -> torch.Size:
    sound = type(numbers) is tuple and all(type(n) is int for n in numbers)
    _check(sound, 'torch.Size of no tuple')
    return torch.Size(numbers)


def _device(kind: Any, *index: Any) -> torch.device:
    _check(type(kind) is str and all(type(n) is int for n in index), 'torch.device of no text')
    return torch.device(kind, *index)


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> torch.Tensor:
    _check(type(storage) is Storage, 'a tensor without a storage')
    return _view(storage.content, storage.dtype, offset, size, stride)


def _tensor_v2(
    storage: Any, offset: Any, size: Any, stride: Any, grad: Any, hooks: Any, metadata: Any = None
) -> torch.Tensor:
    _check(not metadata, 'a lazily conjugated tensor')
    return _tensor(storage, offset, size, stride).requires_grad_(grad is True)


def _tensor_v3(
    storage: Any, offset: Any, size: Any, stride: Any, grad: Any, hooks: Any, dtype: Any, *_: Any
) -> torch.Tensor:
    _check(type(storage) is Storage and isinstance(dtype, torch.dtype), 'a tensor without a dtype')
    view = _view(storage.content, dtype, offset, size, stride)
    return view.requires_grad_(grad is True)


def _view(
    content: torch.UntypedStorage, dtype: torch.dtype, offset: Any, size: Any, stride: Any
) -> torch.Tensor:
    """A tensor over a storage, within it: ``set_`` would let a storage grow instead."""
    for numbers in (size, stride):
        _check(
            isinstance(numbers, tuple) and all(type(n) is int and n >= 0 for n in numbers),
            'a tensor of no shape',
        )
    _check(type(offset) is int and offset >= 0 and len(size) == len(stride), 'a tensor of no shape')
    last = offset + sum((n - 1) * step for n, step in zip(size, stride))
    if 0 not in size and (last + 1) * dtype.itemsize > content.nbytes():
        raise Refused('it has a tensor that is larger than its storage')
    return torch.empty((0,), dtype=dtype, device=content.device).set_(content, offset, size, stride)


def _parameter(data: Any, grad: Any, *_: Any) -> torch.nn.Parameter:
    """A parameter; attributes that somebody gave it are left behind."""
    _check(type(data) is torch.Tensor, 'a parameter of no tensor')
    return torch.nn.Parameter(data, requires_grad=grad is True)


def _tensor_with_attributes(rebuild: Any, kind: Any, args: Any, state: Any) -> torch.Tensor:
    """A tensor that somebody gave attributes, as FSDP does; they are left behind."""
    plain = _is_one_of(rebuild, _REBUILD) and kind in (torch.Tensor, torch.nn.Parameter)
    _check(plain and type(args) is tuple, 'a subclass of torch.Tensor')
    return rebuild(*args)


# --- State that a pickle may set ----------------------------------------------------------------


def _set_ordered_dict(target: collections.OrderedDict, state: dict) -> None:
    """Keep the version metadata of a state dict; other attributes could shadow methods."""
    if type(state.get('_metadata')) in (dict, collections.OrderedDict):
        target._metadata = state['_metadata']  # type: ignore[attr-defined]


def _set_history(target: HistoryBuffer, state: dict) -> None:
    """Restore the two logs; the statistics are this process's own, not the file's."""
    logs = [state.get(key) for key in ('_log_history', '_count_history')]
    _check(
        all(isinstance(log, np.ndarray) and log.ndim == 1 for log in logs)
        and all(log.dtype.kind in 'biuf' for log in logs)
        and len(logs[0]) == len(logs[1]),
        'HistoryBuffer without its two arrays',
    )
    length = state.get('max_length')
    _check(type(length) is int and length > 0, 'HistoryBuffer with a max_length that is no length')
    target.__init__(max_length=length)  # type: ignore[misc]
    target._log_history, target._count_history = logs


def _set_array(target: np.ndarray, state: tuple) -> None:
    _, shape, dtype, _, raw = state
    _check_array(shape, dtype, raw)
    target.__setstate__(state)


def _set_dtype(target: np.dtype, state: tuple) -> None:
    """Set the byte order, the only thing that may differ from what :func:`_dtype` made."""
    expected = target.__reduce__()[2]
    same = (
        len(state) == len(expected)
        and state[2:] == expected[2:]
        and state[1] in ('<', '>', '|', '=')
    )
    _check(same, 'numpy.dtype with changed layout')
    target.__setstate__((expected[0], state[1], *expected[2:]))


def _set_namespace(target: Namespace | types.SimpleNamespace, state: dict) -> None:
    target.__dict__.update((str(key), value) for key, value in state.items())


def _set_nothing(target: Any, state: Any) -> None:
    """Ignore the private attributes of a configuration node."""


# --- The tables -----------------------------------------------------------------------------------

_REBUILD: dict[str, Callable] = {
    '_rebuild_tensor': _tensor,
    '_rebuild_tensor_v2': _tensor_v2,
    '_rebuild_tensor_v3': _tensor_v3,
    '_rebuild_parameter': _parameter,
    '_rebuild_parameter_with_state': _parameter,
}
_FUNCTIONS: dict[tuple[str, str], Callable] = {
    ('builtins', 'getattr'): _attribute,
    ('builtins', 'complex'): _complex,
    ('builtins', 'bytes'): _bytes,
    ('builtins', 'bytearray'): _bytearray,
    ('builtins', 'range'): (_range := _of_integers(range)),
    ('builtins', 'xrange'): _range,
    ('builtins', 'slice'): _of_integers(slice),
    ('_codecs', 'encode'): _encode,
    ('collections', 'OrderedDict'): _ordered_dict,
    ('collections', 'Counter'): _counter,
    ('collections', 'defaultdict'): _default_dict,
    ('collections', 'deque'): _deque,
    ('datetime', 'timedelta'): _time_delta,
    ('datetime', 'timezone'): _time_zone,
    ('numpy', 'dtype'): _dtype,
    ('types', 'SimpleNamespace'): _name_space,
    ('mmengine.config.config', 'ConfigDict'): _config_dict,
    ('torch', 'Size'): _size,
    ('torch', 'device'): _device,
    ('torch._tensor', '_rebuild_from_type_v2'): _tensor_with_attributes,
    **{('datetime', k.__name__): _moment(k) for k in (datetime.date, datetime.time)},
    ('datetime', 'datetime'): _moment(datetime.datetime),
    **{(f'numpy.{core}.multiarray', '_reconstruct'): _array for core in ('core', '_core')},
    **{(f'numpy.{core}.multiarray', 'scalar'): _scalar for core in ('core', '_core')},
    **{(f'numpy.{core}.numeric', '_frombuffer'): _array_of_buffer for core in ('core', '_core')},
    **{('torch._utils', name): function for name, function in _REBUILD.items()},
    **{
        (module, kind): _path
        for module in ('pathlib', 'pathlib._local')
        for kind in ('PosixPath', 'WindowsPath')
    },
}
_CLASSES: dict[tuple[str, str], type] = {
    ('argparse', 'Namespace'): Namespace,
    ('mmengine.logging.history_buffer', 'HistoryBuffer'): HistoryBuffer,
    ('yacs.config', 'CfgNode'): _ConfigNode,
}
# A set is built by a call, but what it hashes is checked by the unpickler.
_SETS: dict[tuple[str, str], type] = {
    ('builtins', 'set'): set,
    ('builtins', 'frozenset'): frozenset,
}
# A tensor of these needs a quantizer, which no file of weights brings along.
_QUANTIZED = (torch.qint8, torch.quint8, torch.qint32, torch.quint4x2, torch.quint2x4)
# Named, but neither called nor instantiated: as arguments of the functions above.
_CONSTANTS: dict[tuple[str, str], Any] = {
    ('numpy', 'ndarray'): np.ndarray,
    ('torch', 'Tensor'): torch.Tensor,
    ('torch.nn.parameter', 'Parameter'): torch.nn.Parameter,
    **{('builtins', kind.__name__): kind for kind in (dict, list, int, float, str, bool)},
    ('builtins', 'long'): int,  # as protocol 2 writes it
    ('builtins', 'unicode'): str,
    ('mmengine.optim.scheduler.param_scheduler', 'OneCycleParamScheduler'): OneCycleParamScheduler,
    **{
        (
            'mmengine.optim.scheduler.param_scheduler',
            f'OneCycleParamScheduler.{name}',
        ): getattr(OneCycleParamScheduler, name)
        for name in _ANNEALING
    },
    **{('mmengine.logging.history_buffer', f'HistoryBuffer.{name}'): name for name in _STATISTICS},
    **{
        ('torch', name): value
        for name, value in vars(torch).items()
        if isinstance(value, torch.dtype) and value not in _QUANTIZED
    },
    # A kind of storage stands for its dtype.
    **{
        ('torch', name): dtype
        for name, dtype in torch.storage._storage_type_to_dtype_map().items()
        if dtype not in _QUANTIZED
    },
    ('torch.storage', 'UntypedStorage'): torch.uint8,
    ('torch', 'UntypedStorage'): torch.uint8,
}
_GLOBALS: dict[tuple[str, str], Any] = {**_CONSTANTS, **_CLASSES, **_SETS, **_FUNCTIONS}

_CALLABLE = frozenset(map(id, _FUNCTIONS.values()))

_SETTERS: dict[type, Callable[[Any, Any], None]] = {
    collections.OrderedDict: _set_ordered_dict,
    HistoryBuffer: _set_history,
    np.ndarray: _set_array,
    Namespace: _set_namespace,
    types.SimpleNamespace: _set_namespace,
    _ConfigNode: _set_nothing,
}
_MAPPINGS = (
    dict,
    collections.OrderedDict,
    collections.Counter,
    collections.defaultdict,
    _ConfigNode,
)
_SEQUENCES = (list, collections.deque)

# Opcodes that only move data about. LONG4 is not among them: no honest number needs 256 bytes.
_HARMLESS = """
    PROTO FRAME STOP MARK POP POP_MARK DUP GLOBAL STACK_GLOBAL NONE NEWTRUE NEWFALSE BININT BININT1
    BININT2 LONG1 BINFLOAT BINSTRING SHORT_BINSTRING BINBYTES SHORT_BINBYTES BINBYTES8
    BINUNICODE SHORT_BINUNICODE BINUNICODE8 TUPLE EMPTY_TUPLE TUPLE1 TUPLE2 TUPLE3 LIST EMPTY_LIST
    EMPTY_DICT EMPTY_SET BINGET LONG_BINGET BINPUT LONG_BINPUT MEMOIZE
"""


def _is_one_of(item: Any, table: dict) -> bool:
    """Whether an item of the stack is a value of a table, by identity."""
    return any(item is value for value in table.values())


def _allowed() -> dict[str, Any]:
    """Types that the user allows, by their full names.

    Not torch's own entries, and nothing that this module reads in its own way: onedl's mmengine and
    many a guide allow ``getattr``, ``ndarray`` and ``HistoryBuffer`` for torch's loader.
    """
    allowed = {}
    for entry in torch.serialization.get_safe_globals():
        item, name = entry if isinstance(entry, tuple) else (entry, _full_name(entry))
        if not name.startswith('torch.') and tuple(name.rsplit('.', 1)) not in _GLOBALS:
            allowed[name] = item
    return allowed


def _full_name(item: Any) -> str:
    return f'{item.__module__}.{item.__qualname__}'


def _type_name(item: Any) -> str:
    """The full name of a class, or of an object's class."""
    return _full_name(item if isinstance(item, type) else type(item))


def _cost(item: Any) -> int:
    """Bytes that a copy of an item takes, without what it refers to."""
    if type(item) in (str, bytes, bytearray):
        return len(item)
    if type(item) in (list, tuple, dict, set):
        return ITEM * len(item)
    return 0


_PLAIN_KEYS = (
    bool,
    float,
    type(None),
    torch.dtype,
    torch.device,
    np.integer,
    np.float64,
    np.float32,
    np.bool_,
)


class _Metered(dict):
    """Opcode to method; what is missing does not exist, and each look-up is paid for."""

    def __init__(self, methods: dict[int, Callable], budget: Budget) -> None:
        super().__init__(methods)
        self._step = budget.step

    def __getitem__(self, opcode: int) -> Any:
        self._step()
        return super().__getitem__(opcode)

    def __missing__(self, opcode: int) -> Any:
        raise pickle.UnpicklingError(f'it holds the opcode {bytes([opcode])!r}')


class Unpickler(pickle._Unpickler):  # type: ignore[name-defined]
    """CPython's unpickler in Python, reduced to the tables of this module.

    Args:
        file (BinaryIO): In memory (:class:`io.BytesIO`), for a pickle may ask for any length.
        fetch (Callable, optional): Gives the :class:`Storage` of a persistent id.
        budget (Budget, optional): Defaults to that of a file of 16 MiB.

    Raises:
        Refused: If the pickle asks for anything else, or for more than its budget.
        pickle.UnpicklingError: If it holds another opcode.
    """

    def __init__(
        self,
        file: BinaryIO,
        fetch: Callable[[tuple], Storage] | None = None,
        budget: Budget | None = None,
    ) -> None:
        super().__init__(file, encoding='utf-8')  # text that Python 2 wrote
        self.budget = budget or Budget(16 * MIB)
        self.dispatch = _Metered(type(self).dispatch, self.budget)
        self.fetch = fetch
        self.allowed = _allowed()

    def persistent_load(self, reference: tuple) -> Storage:
        """Fetch a storage; the other kind of reference could write source patches."""
        storage = type(reference) is tuple and reference[:1] in (('storage',), (b'storage',))
        _check(storage and self.fetch is not None, 'a persistent id that is no storage')
        return self.fetch(reference[1:])  # type: ignore[misc]

    def find_class(self, module: str, name: str) -> Any:
        """Look a global up in the tables; nothing is imported, dots in names mean nothing."""
        module = {'__builtin__': 'builtins', 'torch.tensor': 'torch._tensor'}.get(module, module)
        if (module, name) in _GLOBALS:
            return _GLOBALS[module, name]
        if f'{module}.{name}' in self.allowed:
            return self.allowed[f'{module}.{name}']
        raise ForbiddenGlobal(f'{module}.{name}', can_be_allowed=True)

    def load_reduce(self) -> None:
        """Call a function of the table, or what the user allows."""
        function, args = self.stack[-2:]
        _check(type(args) is tuple, f'call of {_type_name(function)}')
        self.budget.spend(_cost(args) + sum(map(_cost, args)))
        if _is_one_of(function, _SETS):
            self._check_keys(args[0] if args else ())
        elif id(function) not in _CALLABLE:
            _check(_is_one_of(function, self.allowed), f'call of {_type_name(function)}')
        super().load_reduce()
        result = self.stack[-1]
        if isinstance(result, torch.Tensor):
            # Views of one storage may be many, and larger than it: whoever copies them pays.
            self.budget.spend(result.numel() * result.element_size())
        elif type(result) is range:
            self.budget.spend(abs(result.stop - result.start) // abs(result.step))

    def load_newobj(self) -> None:
        """Instantiate a class of the table without arguments, or what the user allows."""
        cls, args = self.stack[-2:]
        _check(
            (_is_one_of(cls, _CLASSES) and args == ()) or _is_one_of(cls, self.allowed),
            f'instance of {_type_name(cls)}',
        )
        super().load_newobj()

    def load_build(self) -> None:
        """Set the state of an object by this module's function for its type."""
        state, target = self.stack[-1], self.stack[-2]
        kind = type(target)
        setter = _set_dtype if isinstance(target, np.dtype) else _SETTERS.get(kind)
        if setter is None and _is_one_of(kind, self.allowed):
            super().load_build()
            return
        if setter is None:
            raise ForbiddenGlobal(f'state of {_type_name(target)}')
        _check(
            type(state) is (dict if setter not in (_set_dtype, _set_array) else tuple),
            f'state of {kind.__name__}',
        )
        self.budget.spend(_cost(state) + (sum(map(_cost, state)) if type(state) is tuple else 0))
        setter(target, state)
        self.stack.pop()

    @staticmethod
    def _check_target(target: Any, *kinds: type) -> None:
        _check(type(target) in kinds, f'item of {_type_name(target)}')

    def _check_sequence(self, target: Any, items: list) -> None:
        self._check_target(target, *_SEQUENCES)
        if type(target) is collections.deque:
            _check_flat(items)

    def _check_keys(self, keys: Any) -> None:
        """Let only plain keys be hashed: nested ones can take for ever, or overflow the stack."""
        _check(type(keys) in (list, tuple), f'set of {_type_name(keys)}')
        for key in keys:
            self._check_key(key)

    def _check_key(self, key: Any) -> None:
        sound = True
        if isinstance(key, (str, bytes, pathlib.PurePath)):
            self.budget.spend(len(str(key)))
        elif type(key) is int:
            sound = key.bit_length() <= BITS_OF_A_KEY
        elif type(key) in (tuple, torch.Size):
            self.budget.tuple_keys -= 1
            sound = self.budget.tuple_keys >= 0 and len(key) < DEPTH
            for item in key if sound else ():
                sound = sound and not isinstance(item, tuple)
                self._check_key(item if sound else None)
        else:
            sound = isinstance(key, _PLAIN_KEYS)
        if not sound:
            raise Refused(f'it has a key of the type {type(key).__name__} that no checkpoint needs')

    def load_append(self) -> None:
        """Append to a list."""
        self._check_sequence(self.stack[-2], self.stack[-1:])
        super().load_append()

    def load_appends(self) -> None:
        """Extend a list."""
        self._check_sequence(self.metastack[-1][-1], self.stack)
        super().load_appends()

    def load_dict(self) -> None:
        """Build a dict of all that follows the mark."""
        self._check_keys(self.stack[::2])
        super().load_dict()

    def load_setitem(self) -> None:
        """Set an item of a mapping."""
        self._check_target(self.stack[-3], *_MAPPINGS)
        self._check_key(self.stack[-2])
        super().load_setitem()

    def load_setitems(self) -> None:
        """Set items of a mapping."""
        self._check_target(self.metastack[-1][-1], *_MAPPINGS)
        self._check_keys(self.stack[::2])
        super().load_setitems()

    def load_additems(self) -> None:
        """Add items to a set."""
        self._check_target(self.metastack[-1][-1], set)
        self._check_keys(self.stack)
        super().load_additems()

    def load_frozenset(self) -> None:
        """Build a frozen set of all that follows the mark."""
        self._check_keys(self.stack)
        super().load_frozenset()

    def load_bytearray8(self) -> None:
        """Read bytes that may be changed; CPython's method takes the memory before it reads."""
        length = int.from_bytes(self.read(8), 'little')
        self.append(bytearray(self.read(length)))

    dispatch = {
        opcode: pickle._Unpickler.dispatch[opcode]  # type: ignore[attr-defined]
        for opcode in (getattr(pickle, name)[0] for name in _HARMLESS.split())
    }
    dispatch |= {
        pickle.REDUCE[0]: load_reduce,
        pickle.NEWOBJ[0]: load_newobj,
        pickle.BUILD[0]: load_build,
        pickle.APPEND[0]: load_append,
        pickle.APPENDS[0]: load_appends,
        pickle.DICT[0]: load_dict,
        pickle.SETITEM[0]: load_setitem,
        pickle.SETITEMS[0]: load_setitems,
        pickle.ADDITEMS[0]: load_additems,
        pickle.FROZENSET[0]: load_frozenset,
        pickle.BYTEARRAY8[0]: load_bytearray8,
        pickle.BINPERSID[0]: pickle._Unpickler.load_binpersid,  # type: ignore[attr-defined]
    }


# --- The result as a whole ------------------------------------------------------------------------

_LEAVES = (
    type(None),
    bool,
    int,
    float,
    complex,
    str,
    bytes,
    bytearray,
    range,
    slice,
    datetime.date,
    datetime.time,
    datetime.timedelta,
    datetime.timezone,
    pathlib.PurePath,
    np.ndarray,
    np.generic,
    np.dtype,
    torch.Tensor,
    torch.dtype,
    torch.device,
    HistoryBuffer,
)


_NAMESPACES = (Namespace, types.SimpleNamespace)


def _children(item: Any) -> list | None:
    """Items of a container; None of a leaf."""
    if isinstance(item, dict):
        metadata = getattr(item, '_metadata', None)
        own = [*dict.keys(item), *dict.values(item)]
        return own if metadata is None or isinstance(item, ConfigDict) else [*own, metadata]
    if isinstance(item, (list, tuple, set, frozenset, collections.deque)):
        return list(item)
    if isinstance(item, _NAMESPACES):
        return [*item.__dict__.keys(), *item.__dict__.values()]
    return None


def _check_names(item: Any) -> None:
    """Keep names of Python's own from objects: NumPy reads the memory that they tell it to.

    A ``ConfigDict`` gives its items as attributes, and mmengine makes one of any dict. In a plain
    dict text and numbers may stay: NumPy asks for no address in them, and Detectron2's files have
    ``__author__``.
    """
    names = vars(item) if isinstance(item, _NAMESPACES) else item
    if not isinstance(names, dict):
        return
    plain = names is item and type(item) is not ConfigDict
    harmless = (str, int, float, type(None)) if plain else ()
    for name, value in dict.items(names):
        special = isinstance(name, str) and name.startswith('__') and name.endswith('__')
        if special and not isinstance(value, harmless):
            raise Refused(f'it holds {ascii(str(name))[:60]}, a name that only Python may give')


def check_content(content: Any, budget: Budget) -> None:
    """Make sure that whoever walks over, prints or copies what was read gets to an end.

    Args:
        content (Any): What :class:`Unpickler` built.
        budget (Budget): What is left of the file's.

    Raises:
        Refused: If it holds itself, nests deeper than 100, is larger by shared parts than the
            budget allows, holds text with terminal control codes, a name by which Python asks
            objects what they are, or a part of the unpickler's.
    """
    harmless = tuple(kind for kind in _allowed().values() if isinstance(kind, type))
    leaves = (*_LEAVES, *harmless)
    limit = budget.bytes // ITEM
    known: dict[int, tuple[int, int]] = {}  # of each item: its depth and size when unfolded
    path: list[tuple[Any, list, list[int]]] = []  # a container, what is left of it, its measures
    open_ids: set[int] = set()

    def enter(item: Any) -> tuple[int, int] | None:
        """The depth and size of an item, or None where it has to be walked first."""
        if id(item) in known:
            return known[id(item)]
        children = _children(item)
        if children is None:
            _check_leaf(item, leaves)
            known[id(item)] = 0, 1
            return 0, 1
        _check_names(item)
        if id(item) in open_ids:
            raise Refused('it holds a container that holds itself')
        open_ids.add(id(item))
        path.append((item, children, [0, 1]))
        return None

    enter(content)
    while path:
        item, rest, measures = path[-1]
        if len(path) > DEPTH:
            raise Refused(f'it nests deeper than {DEPTH} levels')
        if rest:
            found = enter(rest[-1])
            if found is None:
                continue
            rest.pop()
            measures[0] = max(measures[0], found[0])
            measures[1] += found[1]
            if measures[1] > limit:
                raise Refused('it is small, but grows without end when it is unfolded')
            continue
        path.pop()
        open_ids.discard(id(item))
        known[id(item)] = measures[0] + 1, measures[1]
        if measures[0] + len(path) >= DEPTH:
            raise Refused(f'it nests deeper than {DEPTH} levels')


def _check_leaf(item: Any, leaves: tuple[type, ...]) -> None:
    text = str(item) if isinstance(item, (str, pathlib.PurePath)) else ''
    if isinstance(item, np.ndarray) and item.dtype.kind == 'U':
        text = ''.join(map(str, item.ravel()))
    if CONTROL.search(text):
        raise Refused('it holds text with control codes of a terminal')
    if not isinstance(item, leaves) and not _is_one_of(item, _ANNEALING_FUNCTIONS):
        raise Refused(f'it holds a {_type_name(item)} as a value')


_ANNEALING_FUNCTIONS = {name: getattr(OneCycleParamScheduler, name) for name in _ANNEALING}


def load(
    file: BinaryIO,
    fetch: Callable[[tuple], Storage] | None = None,
    budget: Budget | None = None,
) -> Any:
    """Read one pickle of plain data, as :func:`pickle.load` does; see :class:`Unpickler`."""
    return Unpickler(file, fetch, budget).load()
