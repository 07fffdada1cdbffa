"""A Flower message in parts: its records without their arrays, and the bytes of each array record beside them.

Flower sends each array as chunks that are hashed, named, asked for and copied one by one. Between this project's own
nodes and aggregators a message is a letter, which is small, and a blob for each of its array records, which is written
to a file once, read by whoever needs it, and never decoded on its way.

    letter   [records without array data, names of the blobs]     in the frames of `federator.framing`
    blob     [data of each array of one record, in order]         the same

A letter may have a third part, "half": the data of its float32 and float64 arrays travel as float16. It describes the
arrays as they were; whoever unpacks one makes them so again, and answers in the same way.

An aggregator's blobs have names that are never used again: whoever has had a blob need not fetch it again. The blobs of
a node's answer follow its letter, and need no names. Both ends import this module.
"""

from __future__ import annotations

import io
import json
import math
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from tokenize import TokenError
from typing import Any, Literal

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from flwr.common.constant import SType
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.proto.recorddict_pb2 import Array as ArrayProto
from flwr.proto.recorddict_pb2 import ArrayRecord as ArrayRecordProto
from flwr.proto.recorddict_pb2 import RecordDict as RecordDictProto
from google.protobuf.message import DecodeError
from numpy.typing import NDArray

from federator.framing import BadFrame, Data, pack, size_of, split

_LONGEST_HEADER = 64 * 1024  # bytes of a .npy header, as far as it is read here
_READ_HEADER = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
_LENGTH_SIZE = {(1, 0): 2, (2, 0): 4}  # bytes that say how long a header is
_HEADERS_KEPT = 1000
# NumPy reads a header as Python. Two threads that do so at once may end in a SystemError ("AST constructor recursion
# depth mismatch", python/cpython#106905), in CPython 3.11.
_HEADER_READER = threading.Lock()
_HALF = b"half"
_HALVED = frozenset({"float32", "float64"})

TakeBlob = Callable[[str, int], Sequence[Data]]
"""Gives the data of all arrays of the blob with this name; how many there must be stands beside it."""

MakeArray = Callable[[ArrayProto, Data, bool], Array]
"""Makes an array of its description (dtype, shape, stype) and its data, which may be in half precision."""


@dataclass(frozen=True, slots=True)
class Letter:
    """A message's records without array data.

    Attributes:
        records: a Flower RecordDict, serialized, whose arrays are empty.
        blobs: the name of the blob of each of its array records, in order.
        half: whether the data of arrays that `may_halve` are in half precision.
    """

    records: bytes
    blobs: tuple[str, ...]
    half: bool = False

    def packed(self) -> bytes:
        """As long as a multiple of 8: what follows is where the processor reads numbers best."""
        parts = [self.records, json.dumps(self.blobs).encode(), *([_HALF] if self.half else [])]
        parts[1] += b" " * (-size_of(parts) % 8)
        return pack(parts, {})

    @classmethod
    def unpacked(cls, body: bytes) -> Letter:
        """Raises BadFrame for what `packed` does not make."""
        try:
            records, names, *half = split(body)
            blobs = json.loads(names)
        except (ValueError, RecursionError) as error:
            raise BadFrame(f"this is no letter: {error}") from error
        if not isinstance(blobs, list) or not all(isinstance(name, str) for name in blobs):
            raise BadFrame("the letter does not name its blobs")
        if half not in ([], [_HALF]):
            raise BadFrame("the letter's data are in a form that is not known here")
        return cls(records, tuple(blobs), bool(half))


def letter_of(content: RecordDict, name: Callable[[ArrayRecord], str], *, half: bool = False) -> Letter:
    """The letter of a message's content. `name` is asked for the blob of each array record, in order."""
    proto = RecordDictProto()
    blobs = []
    for key, record in content.items():
        if isinstance(record, ArrayRecord):
            blobs.append(name(record))
            proto.items.add(key=key, array_record=_described(record))
        else:
            proto.items.extend(recorddict_to_proto(RecordDict({key: record})).items)
    return Letter(proto.SerializeToString(), tuple(blobs), half)


def content_of(letter: Letter, take: TakeBlob, make: MakeArray) -> RecordDict:
    """A message's content. `take` is asked for each blob in order.

    Raises BadFrame where the letter cannot be read, or the arrays are not as many as it says.
    """
    names = iter(letter.blobs)
    content = RecordDict()
    for item in _items(letter.records):
        if item.WhichOneof("value") == "array_record":
            described = item.array_record.items
            content[item.key] = _array_record(described, take(next(names, ""), len(described)), make, letter.half)
        else:
            content[item.key] = _record(item)
    return content


def plain_array(described: ArrayProto, data: Data, halved: bool) -> Array:
    """An array whose data is in memory. Raises ValueError for halved data that are no array."""
    if halved:
        return Array(widened(np.load(io.BytesIO(data), allow_pickle=False), described.dtype))
    return Array(described.dtype, tuple(described.shape), described.stype, bytes(data))


def may_halve(array: Array | ArrayProto) -> bool:
    """Whether the array's data are what half precision makes smaller."""
    return array.stype == SType.NUMPY and array.dtype in _HALVED


def halved(values: NDArray[Any], *, beyond: Literal["ignore", "raise"]) -> bytes:
    """The data of an array that `may_halve`, in half precision.

    Args:
        beyond: what to do with finite numbers that are too large: let them become infinite, or raise
            FloatingPointError.
    """
    with np.errstate(all="ignore", over=beyond):
        half = values.astype(np.float16)
    return npy_bytes(half)


def widened(values: NDArray[Any], dtype: str) -> NDArray[Any]:
    """The array as its letter describes it. One that did not come in half precision stays as it is."""
    return values.astype(dtype) if values.dtype == np.float16 else values


def npy_view(data: Data) -> NDArray[Any]:
    """The array of a .npy file's bytes, read-only and without a copy where its header permits.

    Raises ValueError for data that are no array.
    """
    version = np.lib.format.read_magic(io.BytesIO(data[: np.lib.format.MAGIC_LEN]))
    if version not in _READ_HEADER:
        return _loaded(data)
    begins = np.lib.format.MAGIC_LEN + _LENGTH_SIZE[version]
    ends = begins + int.from_bytes(data[np.lib.format.MAGIC_LEN : begins], "little")
    header = bytes(data[np.lib.format.MAGIC_LEN : min(ends, _LONGEST_HEADER)])
    shape, fortran_order, dtype = _read_header(version, header)
    if dtype.hasobject:
        raise ValueError("the array has objects, which could run code")
    count = math.prod(shape)
    if min(shape, default=0) < 0:
        raise ValueError(f"the array says that its shape is {shape}")
    if count == 0:
        return np.empty(shape, dtype)
    flat = np.frombuffer(data, dtype, count, ends)
    flat.flags.writeable = False
    return flat.reshape(shape, order="F" if fortran_order else "C")


@lru_cache(_HEADERS_KEPT)
def _read_header(version: tuple[int, int], header: bytes) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, order and dtype; the arrays of a model have the same in each round. Raises ValueError."""
    with _HEADER_READER:
        try:
            return _READ_HEADER[version](io.BytesIO(header))
        except TokenError as error:
            raise ValueError(str(error)) from error


def npy_bytes(values: NDArray[Any]) -> bytes:
    """What `numpy.save` writes, with one copy of the numbers instead of three."""
    file = io.BytesIO()
    plain = type(values) is np.ndarray and values.dtype.isbuiltin == 1 and not values.dtype.hasobject
    if plain and values.flags.c_contiguous and values.size:
        np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(values))
        return file.getvalue() + values.reshape(-1).view(np.uint8).data
    np.save(file, values, allow_pickle=False)
    return file.getvalue()


def _loaded(data: Data) -> NDArray[Any]:
    array: NDArray[Any] = np.load(io.BytesIO(data), allow_pickle=False)
    return array


def _from_numpy_ndarray(_: type[Array], ndarray: NDArray[Any]) -> Array:
    return Array(str(ndarray.dtype), tuple(ndarray.shape), SType.NUMPY, npy_bytes(ndarray))


def _numpy(array: Array) -> NDArray[Any]:
    if array.stype != SType.NUMPY:
        raise TypeError(f"arrays of the kind '{array.stype}' are not NumPy's")
    view = npy_view(array.data)
    return view if view.flags.owndata else view.copy(order="K")


# An app makes and reads its arrays through Flower, whose own ways copy them two or three times. Bytes and numbers are
# the same.
Array.from_numpy_ndarray = classmethod(_from_numpy_ndarray)  # type: ignore[assignment]
Array.numpy = _numpy  # type: ignore[assignment]


def _described(record: ArrayRecord) -> ArrayRecordProto:
    items: Iterable[ArrayRecordProto.Item] = (
        ArrayRecordProto.Item(key=key, value=ArrayProto(dtype=one.dtype, shape=one.shape, stype=one.stype))
        for key, one in record.items()
    )
    return ArrayRecordProto(items=items)


def _items(records: bytes) -> Iterable[RecordDictProto.Item]:
    try:
        proto = RecordDictProto.FromString(records)
    except DecodeError as error:
        raise BadFrame(f"the letter's records cannot be read: {error}") from error
    items: Iterable[RecordDictProto.Item] = proto.items
    return items


def _record(item: RecordDictProto.Item) -> ArrayRecord | MetricRecord | ConfigRecord:
    """Raises BadFrame for one that Flower cannot read: it expects what its own writer makes."""
    try:
        return recorddict_from_proto(RecordDictProto(items=[item]))[item.key]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise BadFrame(f"the letter's record '{item.key}' cannot be read: {error}") from error


def _array_record(
    described: Sequence[ArrayRecordProto.Item], data: Sequence[Data], make: MakeArray, half: bool
) -> ArrayRecord:
    if len(described) != len(data):
        raise BadFrame(f"a record has {len(described)} arrays, and its blob the data of {len(data)}")
    record = ArrayRecord()  # from a dictionary, Flower would copy each array
    for item, one in zip(described, data, strict=True):
        record[item.key] = make(item.value, one, half and may_halve(item.value))
    return record
