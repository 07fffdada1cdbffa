"""The global model as a safetensors file. Dtypes and shapes are kept as the app sent them.

The library makes the whole file in memory, and a copy of each array; a model of a gigabyte is written here piece by
piece instead. The format: https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import contextlib
import json
import os
import struct
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

_DTYPES = {
    "bool": "BOOL",
    "uint8": "U8",
    "int8": "I8",
    "int16": "I16",
    "uint16": "U16",
    "int32": "I32",
    "uint32": "U32",
    "int64": "I64",
    "uint64": "U64",
    "float16": "F16",
    "float32": "F32",
    "float64": "F64",
}
_ALIGNED_TO = 8  # bytes, the longest number


def write_model(path: Path, arrays: Mapping[str, NDArray[Any]], metadata: Mapping[str, str]) -> int:
    """Replace the file in one step, so that a reader finds the old model or the new one; return its size in bytes.

    Raises ValueError naming the array whose dtype the format has no word for.
    """
    for name, array in arrays.items():
        if array.dtype.name not in _DTYPES:
            raise ValueError(f"array '{name}' is of dtype {array.dtype}, which a safetensors file cannot hold")
    partial = path.with_suffix(".partial")
    with partial.open("wb") as file:
        for piece in _pieces(arrays, metadata):
            file.write(piece)
        size = file.tell()
    partial.replace(path)
    return size


def keep_model(path: Path, kept: Path) -> None:
    """Let the model stay, under another name, when `write_model` replaces it. Where there are no links, it goes."""
    kept.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        os.link(path, kept)


class ModelWriter:
    """Writes models while the next round goes on, one at a time.

    Args:
        write: writes a model, given its arrays and the number of its round; called in a thread.
    """

    def __init__(self, write: Callable[[Mapping[str, NDArray[Any]], int], None]) -> None:
        self._write = write
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="model")
        self._last: Future[None] | None = None

    def write(self, arrays: Mapping[str, NDArray[Any]], number: int) -> None:
        """Begin to write, once the model before is written. Nobody may change the arrays. Raises as `wait`."""
        self.wait()
        self._last = self._thread.submit(self._write, arrays, number)

    def wait(self) -> None:
        """Return when everything is written. Raises what `write` raised in its thread."""
        last, self._last = self._last, None
        if last is not None:
            last.result()


def _pieces(arrays: Mapping[str, NDArray[Any]], metadata: Mapping[str, str]) -> Iterator[bytes | memoryview]:
    """The file's bytes: length of the header, header, and the arrays, those with the longest numbers first."""
    names = sorted(arrays, key=lambda name: (-arrays[name].itemsize, name))
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name in names:
        array = arrays[name]
        start, end = end, end + array.nbytes
        header[name] = {"dtype": _DTYPES[array.dtype.name], "shape": array.shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % _ALIGNED_TO)
    yield struct.pack("<Q", len(text)) + text
    for name in names:
        yield _data(arrays[name])


def _data(array: NDArray[Any]) -> memoryview:
    return np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<")).reshape(-1).view(np.uint8).data
