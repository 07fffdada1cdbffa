"""Several byte strings in one HTTP body: a message of Flower together with all its objects. Standard library only.

Both ends of a node's connection import this module, and both ends of an aggregator's.

    body   = part*
    part   = length (8 bytes, big-endian) content
    parts  = the messages, whose number both ends know, and then each object's id and content in turn
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence

PARTS_AT_MOST = 200_000  # a body of empty parts would else become very many strings
ID_AT_MOST = 256  # bytes; Flower's ids are sha256 in hex

_LENGTH = struct.Struct(">Q")


class BadFrame(ValueError):
    """The body is not what `pack` makes. The text says why."""


def pack(messages: Sequence[bytes], objects: Mapping[str, bytes]) -> bytes:
    """One body of these messages and objects (id -> content)."""
    parts: list[bytes] = []
    for content in messages:
        parts += (_LENGTH.pack(len(content)), content)
    for object_id, content in objects.items():
        name = object_id.encode("ascii")
        parts += (_LENGTH.pack(len(name)), name, _LENGTH.pack(len(content)), content)
    return b"".join(parts)


def unpack(body: bytes, messages: int) -> tuple[list[bytes], dict[str, bytes]]:
    """The messages and the objects of a body that must have `messages` messages. Raises BadFrame."""
    parts = list(_parts(body))
    if len(parts) < messages:
        raise BadFrame(f"the body has {len(parts)} parts, not {messages} or more")
    rest = parts[messages:]
    if len(rest) % 2:
        raise BadFrame("the body's last object has no content")
    return parts[:messages], {_object_id(name): content for name, content in zip(rest[::2], rest[1::2], strict=True)}


def first(body: bytes) -> bytes:
    """The body's first message, without a look at the rest. Raises BadFrame."""
    for part in _parts(body):
        return part
    raise BadFrame("the body is empty")


def _parts(body: bytes) -> Iterator[bytes]:
    start = number = 0
    while start < len(body):
        number += 1
        if number > PARTS_AT_MOST:
            raise BadFrame(f"the body has more than {PARTS_AT_MOST} parts")
        begin = start + _LENGTH.size
        if begin > len(body):
            raise BadFrame("the body ends within a length")
        (length,) = _LENGTH.unpack_from(body, start)
        if length > len(body) - begin:
            raise BadFrame(f"the body ends within its part {number}")
        start = begin + length
        yield body[begin:start]


def _object_id(name: bytes) -> str:
    if len(name) > ID_AT_MOST or not name.isascii():
        raise BadFrame("an object's id is none")
    return name.decode("ascii")
