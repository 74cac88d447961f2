"""The two formats of ``torch.save``, read by one parser that trusts nothing in them.

:func:`torch.load` believes the sizes that a file states, and which of two readers of an archive is
right about a record depends on the torch that is installed. Here the archive is read by
:mod:`zipfile` alone, and each storage has to have the size of its record.
"""

from __future__ import annotations

import io
import sys
import zipfile
from collections.abc import Callable
from typing import Any, BinaryIO

import torch
from torch.serialization import MAGIC_NUMBER, PROTOCOL_VERSION

from . import safe_pickle
from .safe_pickle import Budget, Refused, Storage

__all__ = ['ZIP', 'read_torch_file']

ZIP = b'PK\x03\x04'  # What a file of torch.save begins with.
CHUNK = 2**20
LONGEST_KEY = 256


def read_torch_file(stream: BinaryIO, map_location: Any = None) -> Any:
    """Read what :func:`torch.save` wrote, in its format of today or in that before torch 1.6.

    Checksums are verified, which only the newer format has. TorchScript archives and the tar files
    of torch 0.1 are not read.

    Args:
        stream (BinaryIO): Open at its beginning, with ``seek``.
        map_location (Any): As for :func:`torch.load`.

    Returns:
        Any: What was saved.

    Raises:
        safe_pickle.Refused: If the file could harm whoever reads it.
        Exception: Of any kind, if it is damaged or of another format.
    """
    size = stream.seek(0, io.SEEK_END)
    stream.seek(0)
    start = stream.read(len(ZIP))
    stream.seek(0)
    budget = Budget(size)
    place = torch.serialization._get_restore_location(map_location)
    read = _Archive(stream, size, place) if start == ZIP else _Legacy(stream, place)
    content = read.load(budget)
    safe_pickle.check_content(content, budget)
    return content


Place = Callable[[torch.UntypedStorage, str], torch.UntypedStorage]


def _is_reference(reference: tuple, length: int) -> bool:
    """Whether the parts of a persistent id (dtype, key, location, count, ...) are what they are."""
    kinds = (torch.dtype, str, str, int)
    known = len(reference) == length and all(map(isinstance, reference, kinds))
    # On the device 'meta' a tensor would have no values.
    return known and reference[2] != 'meta' and len(reference[1]) < LONGEST_KEY


class _Archive:
    """The zip archive of torch 1.6 and later: a pickle, and a record for each storage."""

    def __init__(self, stream: BinaryIO, size: int, place: Place) -> None:
        self.archive = zipfile.ZipFile(stream)
        self.place = place
        self.storages: dict[str, torch.UntypedStorage] = {}
        records = self.archive.infolist()
        self.records = {record.filename: record for record in records}
        # Stored as they are, so that all records together are no larger than the file.
        if len(self.records) < len(records) or any(
            record.compress_type != zipfile.ZIP_STORED or record.file_size != record.compress_size
            for record in records
        ):
            raise Refused('its archive is compressed or has two records of one name')
        if sum(record.file_size for record in records) > size:
            raise Refused('the records of its archive overlap')
        self.folder = records[0].filename.partition('/')[0] if records else ''
        if self._has('constants.pkl'):
            raise ValueError('it is a TorchScript archive')
        order = self._read('byteorder').decode() if self._has('byteorder') else 'little'
        if order not in ('little', 'big'):
            raise ValueError('its byte order is unknown')
        self.foreign = order != sys.byteorder

    def load(self, budget: Budget) -> Any:
        pickled = io.BytesIO(self._read('data.pkl'))
        return safe_pickle.load(pickled, self._fetch, budget)

    def _has(self, name: str) -> bool:
        return f'{self.folder}/{name}' in self.records

    def _record(self, name: str) -> zipfile.ZipInfo:
        if not self._has(name):
            raise ValueError(f'it has no record {name}')
        return self.records[f'{self.folder}/{name}']

    def _open(self, name: str) -> Any:
        record = self._record(name)
        if record.CRC == 0:  # torch.serialization.set_crc32_options(False) leaves checksums out
            record.CRC = None  # type: ignore[assignment]
        return self.archive.open(record)

    def _read(self, name: str) -> bytes:
        with self._open(name) as content:
            return content.read()

    def _fetch(self, reference: tuple) -> Storage:
        if not _is_reference(reference, 4):
            raise ValueError('it names a storage in an unknown way')
        dtype, key, location, count = reference
        name = f'data/{key}'
        stated = self._record(name).file_size
        if count * dtype.itemsize != stated:
            raise ValueError(f'it states {count} numbers for a storage of {stated} bytes')
        if key not in self.storages:
            content = torch.UntypedStorage(stated, device='cpu')
            with self._open(name) as source:
                _fill(content, source)
            if self.foreign:
                content.byteswap(dtype)
            self.storages[key] = self.place(content, location)
        return Storage(self.storages[key], dtype)


def _bytes_of(content: torch.UntypedStorage) -> torch.Tensor:
    return torch.empty(0, dtype=torch.uint8, device=content.device).set_(content)


def _fill(content: torch.UntypedStorage, source: Any) -> None:
    view = memoryview(_bytes_of(content).numpy())
    while len(view):
        count = source.readinto(view[:CHUNK])
        if not count:
            raise EOFError('a storage is cut short')
        view = view[count:]
    source.read(1)  # the end, where the checksum is compared


class _Legacy:
    """The format before torch 1.6: five pickles, and the storages one after the other."""

    def __init__(self, stream: BinaryIO, place: Place) -> None:
        self.stream = io.BytesIO(stream.read())
        self.left = self.stream.getbuffer().nbytes
        self.place = place
        self.storages: dict[str, Storage] = {}

    def load(self, budget: Budget) -> Any:
        for expected in (MAGIC_NUMBER, PROTOCOL_VERSION):
            if safe_pickle.load(self.stream, budget=budget) != expected:
                raise ValueError('it does not begin as one')
        safe_pickle.load(self.stream, budget=budget)  # what the machine was that wrote it
        content = safe_pickle.load(self.stream, self._fetch, budget)
        keys = safe_pickle.load(self.stream, budget=budget)
        # Each storage that a tensor lies in has to be there: it would be stray memory otherwise.
        named = type(keys) is list and all(type(key) is str for key in keys)
        if not named or sorted(keys) != sorted(self.storages):
            raise ValueError('its list of storages is not that of its tensors')
        position = self.stream.tell()
        # Released whatever happens: Python 3.13 complains of a stream that ends before its view.
        with self.stream.getbuffer() as data:
            for key in keys:
                position = self._fill(self.storages[key], data, position)
        return content

    def _fetch(self, reference: tuple) -> Storage:
        if not _is_reference(reference, 5) or reference[4] is not None:
            raise ValueError('it names a storage in an unknown way')
        dtype, key, location, count = reference[:4]
        if key not in self.storages:
            self.left -= count * dtype.itemsize
            if count < 0 or self.left < 0:
                raise ValueError('its storages are larger than the file')
            content = torch.UntypedStorage(count * dtype.itemsize, device='cpu')
            self.storages[key] = Storage(self.place(content, location), dtype)
        return Storage(self.storages[key].content, dtype)

    @staticmethod
    def _fill(storage: Storage, data: memoryview, position: int) -> int:
        start, length = position + 8, storage.content.nbytes()
        count = int.from_bytes(data[position:start], 'little', signed=True)
        if count * storage.dtype.itemsize != length or start + length > len(data):
            raise EOFError('a storage is cut short')
        if length:
            stored = torch.frombuffer(data[start : start + length], dtype=torch.uint8).clone()
            if sys.byteorder == 'big':
                stored.untyped_storage().byteswap(storage.dtype)
            _bytes_of(storage.content).copy_(stored)
        return start + length
