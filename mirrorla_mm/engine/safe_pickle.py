"""A pickle module that can build the contents of a checkpoint and nothing else.

A pickle is a program: it may name any importable function and call it. PyTorch's answer,
``weights_only=True``, refuses every checkpoint of mmengine, because those hold a
:class:`~mmengine.logging.HistoryBuffer`, NumPy arrays and ``getattr`` besides tensors, and
allow-listing ``getattr`` there would hand it to every file. This module takes the other way: it is
passed to ``torch.load`` as ``pickle_module`` (so that it works with any torch) and closes each door
by which a pickle reaches code:

* A global is looked up in a table, never imported. What mmengine's files need of dangerous
  functions is served by stand-ins: ``getattr`` yields a mere string and only for the four
  statistics of a ``HistoryBuffer``; NumPy's constructors make plain arrays and scalars, never of
  objects.
* Only functions of that table are called, only classes of it are instantiated.
* State is set on the listed types alone, by functions that check it, never by ``__setstate__`` or
  ``setattr`` of the pickle's choosing; ``list``, ``dict`` and ``set`` operations ask for exactly
  these types.
* Opcodes that checkpoints do not need (extension registry, ``INST``, ``OBJ``, out-of-band buffers)
  do not exist.
"""

from __future__ import annotations

import codecs
import collections
import pathlib
import pickle
from argparse import Namespace
from collections.abc import Callable
from typing import Any, BinaryIO

import numpy as np
import torch
from mmengine.config import ConfigDict
from mmengine.logging import HistoryBuffer

__all__ = ['ForbiddenGlobal', 'Unpickler', 'load']


class ForbiddenGlobal(pickle.UnpicklingError):
    """The pickle names something that is not in the table, or misuses what is.

    Args:
        name (str): What it asked for, such as ``os.system``.
    """

    def __init__(self, name: str) -> None:
        # Escaped, for a name in a hostile file may hold terminal control codes.
        self.name = ascii(name)[1:-1][:120]
        super().__init__(self.name)


class _ConfigNode(dict):
    """Inert stand-in for ``yacs.config.CfgNode``, which Swin-like repositories save."""


def _check(condition: bool, name: str) -> None:
    if not condition:
        raise ForbiddenGlobal(name)


_STATISTICS = ('min', 'max', 'current', 'mean')  # HistoryBuffer's own


# --- Functions that a pickle may call -----------------------------------------------------------


def _history_statistic(owner: Any, name: str) -> str:
    """What ``getattr`` is in mmengine's files: ``HistoryBuffer.mean`` and its three siblings."""
    known = owner is HistoryBuffer and name in _STATISTICS
    _check(known, f'getattr(..., {name!r})')
    return name


def _encode(text: str, encoding: str) -> bytes:
    """What ``_codecs.encode`` is there: how protocol 2 writes bytes."""
    _check(type(text) is str and encoding == 'latin1', f'_codecs.encode(..., {encoding!r})')
    return codecs.latin_1_encode(text)[0]


def _dtype(code: str, *_: Any) -> np.dtype:
    """A boolean, numeric or text dtype; a copy, as its byte order is set afterwards."""
    _check(
        type(code) is str and code[:1] in tuple('biufcSU') and code[1:].isdigit(),
        f'numpy.dtype({code!r})',
    )
    return np.dtype(code, copy=True)


def _is_plain(dtype: Any) -> bool:
    return isinstance(dtype, np.dtype) and dtype.kind in 'biufcSU'


def _array(subtype: Any, shape: Any, code: Any) -> np.ndarray:
    """The empty array that ``numpy``'s ``_reconstruct`` hands to :func:`_set_array`."""
    _check(subtype is np.ndarray, 'numpy.ndarray subclass')
    return np.ndarray.__new__(np.ndarray, (0,), 'b')


def _scalar(dtype: Any, raw: Any) -> Any:
    _check(
        _is_plain(dtype) and type(raw) is bytes and len(raw) == dtype.itemsize,
        'numpy scalar of objects',
    )
    return np.ndarray((), dtype, raw)[()]


def _config_dict(content: Any) -> ConfigDict:
    _check(type(content) is dict, 'mmengine ConfigDict of something else than a dict')
    return ConfigDict(content)


def _default_dict(factory: Any = None) -> collections.defaultdict:
    known = any(factory is kind for kind in (None, dict, list, set, int, float))
    _check(known, 'collections.defaultdict with another factory')
    return collections.defaultdict(factory)


def _empty_bytes() -> bytes:
    """What protocol 2 calls ``bytes`` for; other content goes through :func:`_encode`."""
    return b''


def _path(*parts: str) -> pathlib.Path:
    return pathlib.Path(*parts)


# --- State that a pickle may set ----------------------------------------------------------------


def _set_ordered_dict(target: collections.OrderedDict, state: dict) -> None:
    """Keep the version metadata of a state dict; other attributes could shadow methods."""
    if '_metadata' in state:
        target._metadata = state['_metadata']  # type: ignore[attr-defined]


def _set_history(target: HistoryBuffer, state: dict) -> None:
    """Restore the two logs; the statistics are this process's own, not the file's."""
    for key in ('_log_history', '_count_history'):
        _check(
            isinstance(state.get(key), np.ndarray), f'HistoryBuffer with a {key} that is no array'
        )
    _check(
        type(state.get('max_length')) is int, 'HistoryBuffer with a max_length that is no integer'
    )
    target.__init__(max_length=state['max_length'])  # type: ignore[misc]
    target._log_history = state['_log_history']
    target._count_history = state['_count_history']


def _set_array(target: np.ndarray, state: tuple) -> None:
    _, shape, dtype, _, raw = state
    _check(_is_plain(dtype) and type(raw) is bytes, 'numpy array of objects')
    _check(
        type(shape) is tuple and all(type(n) is int and n >= 0 for n in shape),
        'numpy array of this shape',
    )
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


def _set_namespace(target: Namespace, state: dict) -> None:
    target.__dict__.update((str(key), value) for key, value in state.items())


def _set_nothing(target: Any, state: Any) -> None:
    """Ignore the private attributes of a configuration node."""


# --- The tables -----------------------------------------------------------------------------------

_REBUILD = {
    name: getattr(torch._utils, name)
    for name in (
        '_rebuild_tensor',
        '_rebuild_tensor_v2',
        '_rebuild_tensor_v3',
        '_rebuild_parameter',
    )
    if hasattr(torch._utils, name)
}


def _tensor_with_attributes(rebuild: Any, kind: Any, args: Any, state: Any) -> torch.Tensor:
    """A tensor that somebody gave attributes, as FSDP does; they are left behind."""
    plain = _is_one_of(rebuild, _REBUILD) and kind is torch.Tensor and type(args) is tuple
    _check(plain, 'a subclass of torch.Tensor')
    return rebuild(*args)


_FUNCTIONS: dict[tuple[str, str], Callable] = {
    ('builtins', 'getattr'): _history_statistic,
    ('builtins', 'set'): set,
    ('builtins', 'frozenset'): frozenset,
    ('builtins', 'complex'): complex,
    ('builtins', 'bytes'): _empty_bytes,
    ('_codecs', 'encode'): _encode,
    ('collections', 'OrderedDict'): collections.OrderedDict,
    ('collections', 'Counter'): collections.Counter,
    ('collections', 'defaultdict'): _default_dict,
    ('numpy', 'dtype'): _dtype,
    ('mmengine.config.config', 'ConfigDict'): _config_dict,
    ('torch', 'Size'): torch.Size,
    ('torch._tensor', '_rebuild_from_type_v2'): _tensor_with_attributes,
    ('torch', 'device'): torch.device,
    **{(f'numpy.{core}.multiarray', '_reconstruct'): _array for core in ('core', '_core')},
    **{(f'numpy.{core}.multiarray', 'scalar'): _scalar for core in ('core', '_core')},
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
# Named, but neither called nor instantiated: as arguments of the functions above.
_CONSTANTS: dict[tuple[str, str], Any] = {
    ('numpy', 'ndarray'): np.ndarray,
    ('torch', 'Tensor'): torch.Tensor,
    **{('builtins', kind.__name__): kind for kind in (dict, list, int, float)},
    **{('mmengine.logging.history_buffer', f'HistoryBuffer.{name}'): name for name in _STATISTICS},
    **{
        ('torch', name): value
        for name, value in vars(torch).items()
        if isinstance(value, torch.dtype)
    },
}
_GLOBALS: dict[tuple[str, str], Any] = {**_CONSTANTS, **_CLASSES, **_FUNCTIONS}

_SETTERS: dict[type, Callable[[Any, Any], None]] = {
    collections.OrderedDict: _set_ordered_dict,
    HistoryBuffer: _set_history,
    np.ndarray: _set_array,
    Namespace: _set_namespace,
    _ConfigNode: _set_nothing,
}
_MAPPINGS = (
    dict,
    collections.OrderedDict,
    collections.Counter,
    collections.defaultdict,
    _ConfigNode,
)

# Opcodes that only move data about.
_HARMLESS = """
    PROTO FRAME STOP MARK POP POP_MARK DUP GLOBAL STACK_GLOBAL NONE NEWTRUE NEWFALSE BININT BININT1
    BININT2 LONG1 LONG4 BINFLOAT BINSTRING SHORT_BINSTRING BINBYTES SHORT_BINBYTES BINBYTES8
    BINUNICODE SHORT_BINUNICODE BINUNICODE8 TUPLE EMPTY_TUPLE TUPLE1 TUPLE2 TUPLE3 LIST EMPTY_LIST
    DICT EMPTY_DICT EMPTY_SET FROZENSET BINGET LONG_BINGET BINPUT LONG_BINPUT MEMOIZE
"""


class _Dispatch(dict):
    """Opcode to method; what is missing does not exist."""

    def __missing__(self, opcode: int) -> Any:
        raise pickle.UnpicklingError(f'it holds the opcode {bytes([opcode])!r}')


def _is_one_of(item: Any, table: dict) -> bool:
    """Whether an item of the stack is a value of a table, by identity."""
    return any(item is value for value in table.values())


def _type_name(item: Any) -> str:
    return f'{type(item).__module__}.{type(item).__qualname__}'


class Unpickler(pickle._Unpickler):  # type: ignore[name-defined]
    """CPython's unpickler in Python, reduced to the tables of this module.

    Raises:
        ForbiddenGlobal: If the pickle asks for anything else.
        pickle.UnpicklingError: If it holds another opcode.
    """

    def find_class(self, module: str, name: str) -> Any:
        """Look a global up in the table; nothing is imported, dots in names mean nothing."""
        module = {'__builtin__': 'builtins'}.get(module, module)
        if (module, name) not in _GLOBALS:
            raise ForbiddenGlobal(f'{module}.{name}')
        return _GLOBALS[module, name]

    def load_reduce(self) -> None:
        """Call a function of the table."""
        function, args = self.stack[-2:]
        _check(
            _is_one_of(function, _FUNCTIONS) and type(args) is tuple,
            f'call of {_type_name(function)}',
        )
        super().load_reduce()

    def load_newobj(self) -> None:
        """Instantiate a class of the table, without arguments."""
        cls, args = self.stack[-2:]
        _check(_is_one_of(cls, _CLASSES) and args == (), f'instance of {_type_name(cls)}')
        super().load_newobj()

    def load_build(self) -> None:
        """Set the state of an object by this module's function for its type."""
        state, target = self.stack.pop(), self.stack[-1]
        kind = type(target)
        setter = _set_dtype if isinstance(target, np.dtype) else _SETTERS.get(kind)
        if setter is None:
            raise ForbiddenGlobal(f'state of {_type_name(target)}')
        _check(
            type(state) is (dict if setter not in (_set_dtype, _set_array) else tuple),
            f'state of {kind.__name__}',
        )
        setter(target, state)

    @staticmethod
    def _check_target(target: Any, *kinds: type) -> None:
        _check(type(target) in kinds, f'item of {_type_name(target)}')

    def load_append(self) -> None:
        """Append to a list."""
        self._check_target(self.stack[-2], list)
        super().load_append()

    def load_appends(self) -> None:
        """Extend a list."""
        self._check_target(self.metastack[-1][-1], list)
        super().load_appends()

    def load_setitem(self) -> None:
        """Set an item of a mapping."""
        self._check_target(self.stack[-3], *_MAPPINGS)
        super().load_setitem()

    def load_setitems(self) -> None:
        """Set items of a mapping."""
        self._check_target(self.metastack[-1][-1], *_MAPPINGS)
        super().load_setitems()

    def load_additems(self) -> None:
        """Add items to a set."""
        self._check_target(self.metastack[-1][-1], set)
        super().load_additems()

    def load_binpersid(self) -> None:
        """Let torch fetch a storage; the other kind of reference could write source patches."""
        reference = self.stack[-1]
        storage = type(reference) is tuple and reference[:1] in (('storage',), (b'storage',))
        _check(storage, 'a persistent id that is no storage')
        super().load_binpersid()

    dispatch = _Dispatch(
        (opcode, pickle._Unpickler.dispatch[opcode])  # type: ignore[attr-defined]
        for opcode in (getattr(pickle, name)[0] for name in _HARMLESS.split())
    )
    dispatch |= {
        pickle.REDUCE[0]: load_reduce,
        pickle.NEWOBJ[0]: load_newobj,
        pickle.BUILD[0]: load_build,
        pickle.APPEND[0]: load_append,
        pickle.APPENDS[0]: load_appends,
        pickle.SETITEM[0]: load_setitem,
        pickle.SETITEMS[0]: load_setitems,
        pickle.ADDITEMS[0]: load_additems,
        pickle.BINPERSID[0]: load_binpersid,
    }


def load(file: BinaryIO, **kwargs: Any) -> Any:
    """Read one pickle, as :func:`pickle.load` does."""
    return Unpickler(file, **kwargs).load()
