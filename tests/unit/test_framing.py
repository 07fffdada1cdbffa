"""Frames: what is packed comes out again, and nothing else does."""

from __future__ import annotations

import struct

import pytest
from federator import framing
from federator.framing import BadFrame, Reader, first_part, framed, pack, size_of, split, split_view, unpack


def part(content: bytes) -> bytes:
    return struct.pack(">Q", len(content)) + content


@pytest.mark.parametrize(
    ("messages", "objects"),
    [([], {}), ([b""], {}), ([b"a", b""], {"id": b""}), ([b"x" * 1000], {"one": b"\x00" * 9, "two": b"2"})],
)
def test_what_is_packed_comes_out_again(messages: list[bytes], objects: dict[str, bytes]) -> None:
    assert unpack(pack(messages, objects), messages=len(messages)) == (messages, objects)


def test_the_first_part_is_read_as_soon_as_it_is_here() -> None:
    body = pack([b"envelope", b"run"], {"id": b"content"})
    assert first_part(body, limit=8) == (b"envelope", 16)
    assert [first_part(body[:end], limit=8) for end in (0, 7, 8, 15)] == [None] * 4
    with pytest.raises(BadFrame, match="8 bytes; 7 are allowed"):
        first_part(body, limit=7)


def test_parts_are_written_and_read_without_a_copy() -> None:
    parts = [b"letter", memoryview(b"data"), b""]
    body = b"".join(framed(parts))
    assert len(body) == size_of(parts)
    assert split(body) == parts
    views = split_view(memoryview(body))
    assert views == parts
    assert all(view.obj is body for view in views)


@pytest.mark.parametrize("step", [1, 3, 8, 1000])
def test_a_body_is_taken_apart_as_it_comes_in(step: int) -> None:
    parts = [b"", b"envelope", b"x" * 100, b""]
    body = b"".join(framed(parts))
    reader = Reader(part_limit=100)
    found = [one for start in range(0, len(body), step) for one in reader.feed(body[start : start + step])]
    reader.end()
    assert found == parts


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b"\x00\x00\x00", "ends within a length"),
        (part(b"whole") + part(b"cut")[:-1], "ends within its part 2"),
        (part(b"")[:-1], "ends within a length"),
        (struct.pack(">Q", 3), "ends within its part 1"),
        (part(b"four"), "part 1 of the body has 4 bytes; 3 are allowed"),
    ],
)
def test_a_body_that_is_cut_short_or_too_long_is_noticed(body: bytes, text: str) -> None:
    with pytest.raises(BadFrame, match=text):
        read_whole(body, part_limit=3 if b"four" in body else 100)


def read_whole(body: bytes, part_limit: int) -> None:
    reader = Reader(part_limit)
    reader.feed(body)
    reader.end()


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b"", "0 parts, not 1"),
        (b"\x00\x00\x00", "ends within a length"),
        (part(b"whole")[:-1], "ends within its part 1"),
        (struct.pack(">Q", 2**63) + b"x", "ends within its part 1"),
        (part(b"message") + part(b"id"), "has no content"),
        (part(b"message") + part(b"\xff") + part(b""), "id is none"),
        (part(b"message") + part(b"i" * 257) + part(b""), "id is none"),
    ],
)
def test_what_was_not_packed_is_refused(body: bytes, text: str) -> None:
    with pytest.raises(BadFrame, match=text):
        unpack(body, messages=1)


def test_a_body_of_very_many_parts_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(framing, "PARTS_AT_MOST", 3)
    assert unpack(part(b"") * 3, messages=3)
    with pytest.raises(BadFrame, match="more than 3 parts"):
        unpack(part(b"") * 4, messages=4)
    with pytest.raises(BadFrame, match="more than 3 parts"):
        Reader(part_limit=1).feed(part(b"") * 4)
