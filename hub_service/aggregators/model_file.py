"""The global model as a safetensors file. Dtypes and shapes are kept as the app sent them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save

_DTYPES = frozenset({"bool", "uint8", "int8", "int16", "uint16", "int32", "uint32", "int64", "uint64"}) | frozenset(
    {"float16", "float32", "float64"}
)


def write_model(path: Path, arrays: Mapping[str, NDArray[Any]], metadata: Mapping[str, str]) -> tuple[str, int]:
    """Replace the file in one step, so that a reader finds the old model or the new one; return its sha256 and size.

    Raises ValueError naming the array whose dtype the format has no word for.
    """
    for name, array in arrays.items():
        if array.dtype.name not in _DTYPES:
            raise ValueError(f"array '{name}' is of dtype {array.dtype}, which a safetensors file cannot hold")
    data = save({name: np.ascontiguousarray(array) for name, array in arrays.items()}, dict(metadata))
    partial = path.with_suffix(".partial")
    partial.write_bytes(data)
    partial.replace(path)
    return hashlib.sha256(data).hexdigest(), len(data)
