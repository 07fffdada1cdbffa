"""What an app declares of its answers, in one form in notebook, app and contract; and what a site lets out."""

from __future__ import annotations

import tomllib

import numpy as np
import pytest
import tomli_w
from federator.contract import ANY_LENGTH, DeclaredOutput, outputs_table, read_outputs
from federator.outputs import NotDeclared, merged, require_declared, seen_in
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

WEIGHTS = DeclaredOutput("train", "arrays", "arrays", 'block."0".weight', "float32", (2, 3))
LOSS = DeclaredOutput("train", "metrics", "metrics", "loss", "number")
CONFUSION = DeclaredOutput("evaluate", "metrics", "metrics", "confusion", "number", (4,))


def answer(**records: ArrayRecord | MetricRecord | ConfigRecord) -> RecordDict:
    return RecordDict(dict(records))


def weights(*shape: int, key: str = "w", dtype: str = "float32") -> ArrayRecord:
    return ArrayRecord({key: Array(np.zeros(shape, dtype=dtype))})


def test_a_declaration_survives_toml_in_one_order() -> None:
    forest = DeclaredOutput("train", "arrays", "arrays", "forest", "uint8", (ANY_LENGTH,))
    both = DeclaredOutput("train", "arrays", "arrays", "forest", "float32", (1, 2))
    outputs = (CONFUSION, both, forest, WEIGHTS, LOSS)
    text = tomli_w.dumps(outputs_table(outputs))
    assert set(read_outputs(tomllib.loads(text))) == set(outputs)
    assert tomli_w.dumps(outputs_table(reversed(outputs))) == text
    assert tomli_w.dumps(outputs_table(read_outputs(tomllib.loads(text)))) == text


@pytest.mark.parametrize(
    ("table", "reason"),
    [
        ([], "no table"),
        ({"train": 1}, "“train” is no table"),
        ({"train": {"pickles": {"a": {"b": "number"}}}}, "not “pickles”"),
        ({"train": {"arrays": {"a": {"b": "float32[x]"}}}}, "no type such as"),
        ({"train": {"arrays": {"a": {"b": 4}}}}, "no type such as"),
        ({"train": {"arrays": {"a\n": {"b": "number"}}}}, "no table of names"),
        ({"train": {"arrays": {"a": {f"k{i}": "number" for i in range(10_001)}}}}, "at most 10000"),
    ],
)
def test_what_is_no_declaration_is_named(table: object, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        read_outputs(table)


def test_what_an_answer_holds() -> None:
    content = answer(
        arrays=weights(2, 3),
        metrics=MetricRecord({"loss": 0.5, "confusion": [1, 2, 3, 4]}),
        notes=ConfigRecord({"text": "x", "flag": True, "raw": b"1"}),
    )
    found = {(one.key, one.kind, one.dtype, one.shape) for one in seen_in("train", content)}
    assert found == {
        ("w", "arrays", "float32", (2, 3)),
        ("loss", "metrics", "number", ()),
        ("confusion", "metrics", "number", (4,)),
        ("text", "config", "text", ()),
        ("flag", "config", "bool", ()),
        ("raw", "config", "bytes", ()),
    }


def test_a_dimension_with_several_lengths_is_free() -> None:
    seen = [one for rows in (3, 5) for one in seen_in("train", answer(arrays=weights(rows, 2)))]
    (declared,) = merged(seen)
    assert declared.shape == (ANY_LENGTH, 2)
    require_declared([declared], "train", answer(arrays=weights(100, 2)))


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (answer(arrays=weights(2, 4)), "arrays/w (float32[2,4]), and declared is float32[2,3]"),
        (answer(arrays=weights(2, 3, dtype="float64")), "declared is float32[2,3]"),
        (answer(arrays=weights(6)), "declared is float32[2,3]"),
        (answer(arrays=weights(2, 3, key="rows")), "arrays/rows (float32[2,3]), and it is not declared"),
        (answer(patients=weights(2, 3)), "patients/w (float32[2,3]), and it is not declared"),
        (answer(metrics=MetricRecord({"age": 71})), "metrics/age (number), and it is not declared"),
        (answer(notes=ConfigRecord({"name": "x"})), "notes/name (text), and it is not declared"),
    ],
)
def test_what_was_not_declared_stays_at_the_site(content: RecordDict, named: str) -> None:
    declared = merged(seen_in("train", answer(arrays=weights(2, 3), metrics=MetricRecord({"loss": 1.0}))))
    require_declared(declared, "train", answer(arrays=weights(2, 3), metrics=MetricRecord({"loss": 2})))
    with pytest.raises(NotDeclared) as refused:
        require_declared(declared, "train", content)
    assert named in str(refused.value)
    assert "federator.try_here() again" in str(refused.value)


def test_nothing_is_written_behind_an_array_of_the_declared_shape() -> None:
    declared = list(seen_in("train", answer(arrays=weights(2, 3))))
    honest = Array(np.zeros((2, 3), dtype="float32"))
    longer = Array("float32", (2, 3), honest.stype, honest.data + b"patient 7, " * 500)
    with pytest.raises(NotDeclared, match="arrays/w has 5652 bytes"):
        require_declared(declared, "train", answer(arrays=ArrayRecord({"w": longer})))


def test_each_type_of_message_has_its_own_declaration() -> None:
    declared = list(seen_in("train", answer(arrays=weights(2, 3))))
    with pytest.raises(NotDeclared, match="“evaluate”"):
        require_declared(declared, "evaluate", answer(arrays=weights(2, 3)))


def test_an_app_that_declares_nothing_may_answer_with_anything() -> None:
    require_declared([], "train", answer(rows=weights(1000, 1000)))
