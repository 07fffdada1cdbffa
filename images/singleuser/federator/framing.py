"""Several byte strings in one HTTP body or file: a message of Flower with all that belongs to it.

Standard library only. Both ends of a node's connection import this module, and both ends of an aggregator's.

    body   = part*
    part   = length (8 bytes, big-endian) content

Where objects go along, the parts are the messages, whose number both ends know, and then each object's id and content
in turn.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TypeVar

PARTS_AT_MOST = 200_000  # a body of empty parts would else become very many strings
ID_AT_MOST = 256  # bytes; Flower's ids are sha256 in hex

Data = bytes | memoryview

_Body = TypeVar("_Body", bytes, memoryview)

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


def framed(contents: Iterable[Data]) -> Iterator[Data]:
    """What to write for these parts, one after the other; nothing is copied."""
    for content in contents:
        yield _LENGTH.pack(len(content))
        yield content


def size_of(contents: Iterable[Data]) -> int:
    """Bytes of what `framed` yields."""
    return sum(_LENGTH.size + len(content) for content in contents)


def split(body: bytes) -> list[bytes]:
    """All parts of a body. Raises BadFrame."""
    return list(_parts(body))


def split_view(body: memoryview) -> list[memoryview]:
    """As `split`, without copying: the parts are views of the body."""
    return list(_parts(body))


class Reader:
    """Takes a body apart while it comes in.

    Args:
        part_limit: bytes of one part; more is a BadFrame.
    """

    def __init__(self, part_limit: int) -> None:
        self._part_limit = part_limit
        self._chunks: list[Data] = []
        self._held = 0  # bytes in `_chunks`
        self._wanted = _LENGTH.size
        self._in_content = False
        self._number = 0

    def feed(self, chunk: bytes) -> list[bytes]:
        """Take the next bytes; return the parts that are whole with them. Raises BadFrame."""
        parts = []
        rest = memoryview(chunk)
        while self._held + len(rest) >= self._wanted:
            needed = self._wanted - self._held
            self._chunks.append(rest[:needed])
            rest = rest[needed:]
            whole = b"".join(self._chunks)
            self._chunks, self._held = [], 0
            if self._in_content:
                parts.append(whole)
                self._expect(_LENGTH.size, in_content=False)
            else:
                self._begin(_LENGTH.unpack(whole)[0])
        if rest:
            self._chunks.append(rest)
            self._held += len(rest)
        return parts

    def end(self) -> None:
        """The body is over. Raises BadFrame where that is within a part."""
        if self._held or self._in_content:
            where = f"its part {self._number}" if self._in_content else "a length"
            raise BadFrame(f"the body ends within {where}")

    def _begin(self, length: int) -> None:
        self._number += 1
        if self._number > PARTS_AT_MOST:
            raise BadFrame(f"the body has more than {PARTS_AT_MOST} parts")
        if length > self._part_limit:
            raise BadFrame(f"part {self._number} of the body has {length} bytes; {self._part_limit} are allowed")
        self._expect(length, in_content=True)

    def _expect(self, length: int, *, in_content: bool) -> None:
        self._wanted, self._in_content = length, in_content


def unpack(body: bytes, messages: int) -> tuple[list[bytes], dict[str, bytes]]:
    """The messages and the objects of a body that must have `messages` messages. Raises BadFrame."""
    parts = list(_parts(body))
    if len(parts) < messages:
        raise BadFrame(f"the body has {len(parts)} parts, not {messages} or more")
    rest = parts[messages:]
    if len(rest) % 2:
        raise BadFrame("the body's last object has no content")
    return parts[:messages], {_object_id(name): content for name, content in zip(rest[::2], rest[1::2], strict=True)}


def first_part(beginning: bytes | bytearray, limit: int) -> tuple[bytes, int] | None:
    """The first part of a body whose beginning is here, and where it ends; None while it is not whole.

    Raises BadFrame for a part of more than `limit` bytes.
    """
    if len(beginning) < _LENGTH.size:
        return None
    (length,) = _LENGTH.unpack_from(beginning)
    if length > limit:
        raise BadFrame(f"part 1 of the body has {length} bytes; {limit} are allowed")
    end = _LENGTH.size + length
    return (bytes(beginning[_LENGTH.size : end]), end) if len(beginning) >= end else None


def _parts(body: _Body) -> Iterator[_Body]:
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
