"""Letters and blobs: a message's records and the data of its arrays, apart and together again."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice

import numpy as np
import pytest
from federator.framing import BadFrame, pack
from federator.parcel import Data, Letter, content_of, letter_of, plain_array
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

WEIGHTS = ArrayRecord({"w": Array(np.arange(6, dtype=np.float32).reshape(2, 3)), "steps": Array(np.array(7))})
BIAS = ArrayRecord({"b": Array(np.zeros(0))})
CONTENT = RecordDict(
    {
        "first": WEIGHTS,
        "metrics": MetricRecord({"loss": 0.5, "lengths": [1, 2]}),
        "config": ConfigRecord({"lr": 0.1, "key": b"\x00", "name": "größe"}),
        "second": BIAS,
    }
)


def data_of(*records: ArrayRecord) -> list[bytes]:
    return [array.data for record in records for array in record.values()]


def taking(data: Sequence[Data]) -> object:
    rest = iter(data)
    return lambda _, count: list(islice(rest, count))


def test_a_content_comes_together_again() -> None:
    letter = letter_of(CONTENT, lambda record: {id(WEIGHTS): "one", id(BIAS): "two"}[id(record)])
    assert letter.blobs == ("one", "two")
    assert Letter.unpacked(letter.packed()) == letter
    blobs = {"one": data_of(WEIGHTS), "two": data_of(BIAS)}
    content = content_of(letter, lambda name, count: blobs[name][:count], plain_array)
    assert content == CONTENT
    assert list(content) == list(CONTENT)


def test_a_letter_has_no_model_data() -> None:
    large = RecordDict({"arrays": ArrayRecord({"w": Array(np.ones(100_000))})})
    assert len(letter_of(large, lambda _: "blob").packed()) < 200


@pytest.mark.parametrize("data", [[], data_of(WEIGHTS)[:1], data_of(WEIGHTS)])
def test_too_few_arrays_are_noticed(data: list[bytes]) -> None:
    letter = letter_of(CONTENT, lambda _: "")
    with pytest.raises(BadFrame, match="arrays, and its blob the data of"):
        content_of(letter, taking(data), plain_array)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\x00",
        pack([b"one part"], {}),
        pack([b"", b"no json"], {}),
        pack([b"", b'{"a": 1}'], {}),
        pack([b"", b"[1]"], {}),
        pack([b"", b"\xff"], {}),
    ],
)
def test_what_is_no_letter_is_refused(body: bytes) -> None:
    with pytest.raises(BadFrame):
        Letter.unpacked(body)


def test_records_that_are_none_are_refused() -> None:
    with pytest.raises(BadFrame, match="cannot be read"):
        content_of(Letter(b"\xff\xff", ()), taking([]), plain_array)  # type: ignore[arg-type]
