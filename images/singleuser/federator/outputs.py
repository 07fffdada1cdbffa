"""What an app's answers hold, and whether they may: at the site, before anything leaves it.

An app's [tool.federator.outputs] lists all that its answers held in a trial (`federator.trial`). It is part of what a
steward approved, so `federator.node` lets nothing else out. Flower's records are read as the mappings they are.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from federator.contract import ANY_LENGTH, DeclaredOutput, output_type, read_outputs

_LONGEST_HEADER = 1024  # bytes, of an array in NumPy's format
_LONGEST_NAMED = 100  # characters of what was not declared that the refusal may name: a key can be data, too
_TYPES = ((bool, "bool"), (int | float, "number"), (str, "text"), (bytes, "bytes"))


class NotDeclared(Exception):
    """An answer holds what its app did not declare; the text is for the app's owner."""


def outputs_of(tools: Mapping[str, Any]) -> tuple[DeclaredOutput, ...]:
    """The declaration in an app's [tool]; none where it declares nothing. Raises ValueError for a broken one."""
    return read_outputs(tools.get("federator", {}).get("outputs", {}))


def seen_in(message_type: str, content: Any) -> Iterator[DeclaredOutput]:
    """Everything in the records of one answer.

    Args:
        content: a Flower RecordDict.
    """
    for record, arrays in content.array_records.items():
        for key, array in arrays.items():
            yield DeclaredOutput(message_type, record, "arrays", key, array.dtype, tuple(array.shape))
    for kind, records in (("metrics", content.metric_records), ("config", content.config_records)):
        for record, values in records.items():
            for key, value in values.items():
                yield DeclaredOutput(message_type, record, kind, key, *_described(value))


def _described(value: Any) -> tuple[str, tuple[int, ...]]:
    if isinstance(value, list):
        return (_described(value[0])[0] if value else "number"), (len(value),)
    return next((name for kind, name in _TYPES if isinstance(value, kind)), type(value).__name__), ()


def merged(seen: Iterable[DeclaredOutput]) -> tuple[DeclaredOutput, ...]:
    """One declaration for all that was seen: a dimension that had several lengths may have any."""
    shapes: dict[tuple[DeclaredOutput, int], set[tuple[int, ...]]] = {}
    for one in seen:
        bare = DeclaredOutput(one.message, one.record, one.kind, one.key, one.dtype)
        shapes.setdefault((bare, len(one.shape)), set()).add(one.shape)
    return tuple(
        DeclaredOutput(
            bare.message,
            bare.record,
            bare.kind,
            bare.key,
            bare.dtype,
            tuple(lengths[0] if len(set(lengths)) == 1 else ANY_LENGTH for lengths in zip(*found, strict=True)),
        )
        for (bare, _), found in shapes.items()
    )


def require_declared(declared: Iterable[DeclaredOutput], message_type: str, content: Any) -> None:
    """Let an answer pass. An app that declares nothing may answer with anything.

    Raises:
        NotDeclared: it holds a record, a key, a type or a shape that was not declared, or more bytes than an array has.
    """
    allowed: dict[tuple[str, str, str, str], list[DeclaredOutput]] = {}
    for one in declared:
        allowed.setdefault(_place(one), []).append(one)
    if not allowed:
        return
    for found in seen_in(message_type, content):
        known = allowed.get(_place(found), [])
        if not any(_fits(found, one) for one in known):
            raise NotDeclared(_refusal(found, known))
    for record, arrays in content.array_records.items():
        for key, array in arrays.items():
            _require_bare(f"{record}/{key}", array)


def _require_bare(name: str, array: Any) -> None:
    """That the bytes are the array's own: an app may write whatever it likes behind a shape that is declared."""
    most = math.prod(array.shape) * np.dtype(array.dtype).itemsize + _LONGEST_HEADER
    if len(array.data) > most:
        raise NotDeclared(
            f"The site kept back an answer: {name[:_LONGEST_NAMED]} has {len(array.data)} bytes, and an array of its "
            f"type and shape has {most} at most. Make arrays by Array(numpy_array) or Array(torch_tensor)."
        )


def _place(output: DeclaredOutput) -> tuple[str, str, str, str]:
    return output.message, output.kind, output.record, output.key


def _fits(found: DeclaredOutput, declared: DeclaredOutput) -> bool:
    return (
        found.dtype == declared.dtype
        and len(found.shape) == len(declared.shape)
        and all(may in (ANY_LENGTH, has) for has, may in zip(found.shape, declared.shape, strict=True))
    )


def _refusal(found: DeclaredOutput, known: list[DeclaredOutput]) -> str:
    what = f"{found.record}/{found.key} ({output_type(found)})"[:_LONGEST_NAMED]
    declared = f"declared is {' or '.join(output_type(one) for one in known)}" if known else "it is not declared"
    return (
        f"The site kept back its answer to “{found.message}”: it holds {what}, and {declared}. Run "
        "federator.try_here() again, so that the trial sees it, and publish a new version for approval."
    )
