"""Frames: what is packed comes out again, and nothing else does."""

from __future__ import annotations

import struct

import pytest
from federator import framing
from federator.framing import BadFrame, first, pack, unpack


def part(content: bytes) -> bytes:
    return struct.pack(">Q", len(content)) + content


@pytest.mark.parametrize(
    ("messages", "objects"),
    [([], {}), ([b""], {}), ([b"a", b""], {"id": b""}), ([b"x" * 1000], {"one": b"\x00" * 9, "two": b"2"})],
)
def test_what_is_packed_comes_out_again(messages: list[bytes], objects: dict[str, bytes]) -> None:
    assert unpack(pack(messages, objects), messages=len(messages)) == (messages, objects)


def test_the_first_message_is_read_alone() -> None:
    assert first(pack([b"envelope", b"run"], {"id": b"content"})) == b"envelope"
    assert first(part(b"envelope") + b"no part") == b"envelope"


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


def test_an_empty_body_has_no_first_message() -> None:
    with pytest.raises(BadFrame, match="empty"):
        first(b"")
