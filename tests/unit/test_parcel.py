"""Letters and blobs: a message's records and the data of its arrays, apart and together again."""

from __future__ import annotations

import io
from collections.abc import Sequence
from itertools import islice

import numpy as np
import pytest
from federator import parcel
from federator.framing import BadFrame, pack, split
from federator.parcel import Data, Letter, content_of, halved, letter_of, may_halve, npy_bytes, npy_view, plain_array
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from flwr.proto.recorddict_pb2 import MetricRecord as MetricRecordProto
from flwr.proto.recorddict_pb2 import RecordDict as RecordDictProto

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
        pack([b"", b"[]", b"quarter"], {}),
        pack([b"", b"[]", b"half", b"half"], {}),
    ],
)
def test_what_is_no_letter_is_refused(body: bytes) -> None:
    with pytest.raises(BadFrame):
        Letter.unpacked(body)


def test_records_that_are_none_are_refused() -> None:
    with pytest.raises(BadFrame, match="cannot be read"):
        content_of(Letter(b"\xff\xff", ()), taking([]), plain_array)  # type: ignore[arg-type]


# --- half precision


def through_half(array: Array) -> Array:
    """What comes of an array on its way."""
    letter = letter_of(RecordDict({"arrays": ArrayRecord({"w": array})}), lambda _: "", half=True)
    data = halved(array.numpy(), beyond="raise") if may_halve(array) else array.data
    return content_of(Letter.unpacked(letter.packed()), lambda *_: [data], plain_array).array_records["arrays"]["w"]


def test_an_exact_letter_says_nothing_of_precision() -> None:
    letter = letter_of(CONTENT, lambda _: "")
    assert [part.rstrip(b" ") for part in split(letter.packed())] == [letter.records, b'["", ""]']
    assert Letter.unpacked(letter_of(CONTENT, lambda _: "", half=True).packed()).half


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", [(), (0, 3), (1,), (40, 5)])
def test_a_floating_array_comes_back_near_to_what_it_was(dtype: str, shape: tuple[int, ...]) -> None:
    values = np.asarray(np.random.default_rng(0).normal(size=shape), dtype)
    for array in (Array(values), Array(np.asfortranarray(values))):
        assert len(halved(values, beyond="raise")) <= len(array.data) - values.nbytes + 2 * values.size
        came = through_half(array)
        assert (came.dtype, came.shape, came.stype) == (array.dtype, array.shape, array.stype)
        assert came.numpy().dtype == values.dtype
        np.testing.assert_allclose(came.numpy(), values, rtol=1e-3, atol=1e-6)
        assert values.size < 2 or not np.array_equal(came.numpy(), values)


@pytest.mark.parametrize(
    "dtype", ["float16", "int8", "int64", "uint8", "bool", "complex64", "complex128", ">f4", ">f8", "longdouble", "U3"]
)
def test_other_arrays_come_back_as_they_were(dtype: str) -> None:
    array = Array(np.arange(6).reshape(2, 3).astype(dtype))
    assert through_half(array) == array


def test_an_array_of_the_apps_own_kind_comes_back_as_it_was() -> None:
    array = Array("float32", (1,), "my-own", b"abc")
    assert through_half(array) == array


def test_an_answer_that_is_exact_all_the_same_is_taken() -> None:
    """As from whoever says that it is in half precision, and sends an array as it is."""
    letter = letter_of(CONTENT, lambda _: "", half=True)
    assert content_of(letter, taking(data_of(WEIGHTS, BIAS)), plain_array) == CONTENT  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("size", [1, 7, 1000])
def test_numbers_that_half_precision_has_no_room_for_are_noticed(dtype: str, size: int) -> None:
    values = np.zeros(size, dtype)
    values[size // 2] = -1e5
    with pytest.raises(FloatingPointError):
        halved(values, beyond="raise")
    assert np.load(io.BytesIO(halved(values, beyond="ignore")))[size // 2] == -np.inf


def test_what_is_infinite_or_no_number_already_passes() -> None:
    values = np.array([np.inf, -np.inf, np.nan, 65504, 1e-30], np.float32)
    came = through_half(Array(values)).numpy()
    np.testing.assert_array_equal(came, np.array([np.inf, -np.inf, np.nan, 65504, 0], np.float32))


@pytest.mark.parametrize(
    "values",
    [
        np.arange(6, dtype=np.float32).reshape(2, 3),
        np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        np.arange(12)[::2],
        np.array(7),
        np.zeros((0, 3)),
        np.array([1, 2], dtype=">i4"),
        np.array(["größe", "b"]),
        np.array([True, False]),
        np.array([1 + 2j]),
        np.array([(1, 2.0)], dtype=[("a", "i4"), ("größe", "f8")]),
    ],
)
@pytest.mark.filterwarnings("ignore:Stored array in format")
def test_an_array_has_the_bytes_that_numpy_writes(values: np.ndarray) -> None:
    file = io.BytesIO()
    np.save(file, values, allow_pickle=False)
    assert npy_bytes(values) == file.getvalue() == Array(values).data
    again = Array(values).numpy()
    assert again.dtype == values.dtype
    assert np.array_equal(again, values)
    assert again.flags.writeable


def test_an_array_that_comes_in_each_round_has_its_header_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    data = npy_bytes(np.arange(6, dtype=np.float32).reshape(3, 2))
    npy_view(data)
    monkeypatch.setattr(parcel, "_READ_HEADER", {(1, 0): None, (2, 0): None})
    np.testing.assert_array_equal(npy_view(data), np.load(io.BytesIO(data)))


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
def test_each_version_of_the_format_is_read(version: tuple[int, int]) -> None:
    values, file = np.arange(6.0).reshape(3, 2), io.BytesIO()
    np.lib.format.write_array(file, values, version)
    np.testing.assert_array_equal(npy_view(file.getvalue()), values)


@pytest.mark.parametrize("size", [5, 9, 11, 60, 127])
def test_an_array_that_ends_within_its_header_is_none(size: int) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - NumPy's words
        npy_view(npy_bytes(np.zeros(3))[:size])


def test_objects_are_no_array() -> None:
    with pytest.raises(ValueError, match="Object arrays cannot be saved"):
        npy_bytes(np.array([object()]))


NO_VALUE = RecordDictProto(items=[RecordDictProto.Item(key="a", metric_record=MetricRecordProto(items=[{"key": "b"}]))])


@pytest.mark.parametrize(
    "body",
    [
        pack([b"", b"[" * 100_000], {}),
        pack([RecordDictProto(items=[RecordDictProto.Item(key="a")]).SerializeToString(), b"[]"], {}),
        pack([NO_VALUE.SerializeToString(), b"[]"], {}),
    ],
    ids=["names that do not end", "a record of no kind", "a metric without a value"],
)
def test_a_letter_that_flower_stumbles_over_is_no_letter(body: bytes) -> None:
    """Else a site's answer would end the ServerApp of all."""
    with pytest.raises(BadFrame):
        content_of(Letter.unpacked(body), lambda *_: [], plain_array)
