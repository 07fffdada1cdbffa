"""What the observer makes of messages, and which replies it leaves out."""

from __future__ import annotations

import weakref
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from hub_service.aggregators.observer import (
    ALONE,
    FEDERATED,
    ArraySeen,
    MessageSeen,
    Observer,
    fault_of,
    odd_lengths,
    odd_ones_out,
)
from hub_service.domain.runs import EventKind, RunEvent


class StoppedClock:
    """Stands still until it is set."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def seen(array: NDArray[np.generic]) -> ArraySeen:
    return ArraySeen(array.dtype.name, array.shape, lambda: array)


def letter(**arrays: NDArray[np.generic]) -> MessageSeen:
    return MessageSeen(7, "train", 1, arrays={"arrays": {name: seen(array) for name, array in arrays.items()}})


SENT = letter(weight=np.zeros((2, 3), np.float32))


@pytest.fixture
def events() -> list[RunEvent]:
    return []


@pytest.fixture
def clock() -> StoppedClock:
    return StoppedClock()


@pytest.fixture
def observer(events: list[RunEvent], clock: StoppedClock) -> Observer:
    return Observer(events.append, clock)


def test_a_good_reply_is_reported_with_its_metrics_examples_and_duration(
    observer: Observer, events: list[RunEvent], clock: StoppedClock
) -> None:
    observer.enter(FEDERATED)
    observer.sent("m1", SENT)
    clock.now += 2.5
    reply = MessageSeen(7, "train", 0, SENT.arrays, {"loss": 0.5, "num-examples": 12}, size=24)
    assert observer.replied("m1", reply) == ""
    assert events[-1] == RunEvent(
        EventKind.REPLY,
        at=102.5,
        phase=FEDERATED,
        round=1,
        message_type="train",
        node_id=7,
        metrics={"loss": 0.5},
        examples=12,
        seconds=2.5,
        size=24,
    )


def test_an_error_reply_is_reported_with_its_reason_and_is_no_fault(observer: Observer, events: list[RunEvent]) -> None:
    observer.sent("m1", SENT)
    assert observer.replied("m1", MessageSeen(7, "train", 0, error="OSError: no file")) == ""
    assert events[-1].text == "OSError: no file"


def test_a_reply_left_out_is_reported_as_such_without_its_metrics(observer: Observer, events: list[RunEvent]) -> None:
    observer.sent("m1", SENT)
    bad = letter(weight=np.full((2, 3), np.nan, np.float32))
    fault = observer.replied("m1", bad)
    assert fault == "array 'weight' has NaN"
    assert events[-1].text == "site's answer left out: array 'weight' has NaN"
    assert (events[-1].metrics, events[-1].size) == ({}, 0)


def test_a_reply_to_nothing_that_was_sent_is_not_reported(observer: Observer, events: list[RunEvent]) -> None:
    assert observer.replied("unknown", SENT) == ""
    assert events == []


def test_an_unanswered_message_is_reported(observer: Observer, events: list[RunEvent]) -> None:
    observer.sent("m1", SENT)
    observer.unanswered("m1")
    assert (events[-1].kind, events[-1].node_id) == (EventKind.REPLY, 7)
    assert events[-1].text == "no answer in the time that the app allows"


def test_an_outage_says_how_long_each_node_is_silent(observer: Observer, events: list[RunEvent]) -> None:
    observer.outage({7: 3.0, 8: 61.5}, 2)
    assert (events[-1].text, events[-1].seconds, events[-1].metrics) == ("7,8", 61.5, {"7": 3.0, "8": 61.5})


def test_a_note_belongs_to_the_phase_and_its_node(observer: Observer, events: list[RunEvent]) -> None:
    observer.enter(ALONE, 7)
    observer.note("it cannot")
    assert [(event.kind, event.phase, event.node_id, event.text) for event in events] == [
        (EventKind.PHASE, ALONE, 7, ""),
        (EventKind.PHASE, ALONE, 7, "it cannot"),
    ]


def test_waiting_names_the_missing_nodes(observer: Observer, events: list[RunEvent]) -> None:
    observer.waiting([3, 5])
    assert (events[-1].kind, events[-1].text) == (EventKind.WAITING, "3,5")


@pytest.mark.parametrize(
    ("array", "fault"),
    [
        (np.ones((2, 3), np.float32), ""),
        (np.ones((2, 3), np.float64), ""),
        (np.full((2, 3), np.inf, np.float32), "array 'weight' has an infinite value"),
        (np.full((2, 3), np.nan, np.float32), "array 'weight' has NaN"),
        (np.ones((3, 2), np.float32), "array 'weight' has shape [3, 2], not [2, 3]"),
        (np.full((2, 3), 3e38, np.float32), ""),  # their sum is infinite, none of them is
        (np.array([[np.inf, -np.inf, 0]] * 2, np.float32), "array 'weight' has an infinite value"),
        (np.ones((9,), np.uint8), ""),  # boosted trees grow
    ],
)
def test_faults_of_an_array(array: NDArray[np.generic], fault: str) -> None:
    assert fault_of(letter(weight=array), SENT) == fault


def test_an_array_that_was_not_sent_is_still_looked_at_for_nan() -> None:
    assert fault_of(letter(delta=np.array([np.nan])), SENT) == "array 'delta' has NaN"


def test_an_array_that_cannot_be_read_is_a_fault() -> None:
    def unreadable() -> NDArray[np.generic]:
        raise ValueError("pickled")

    reply = MessageSeen(7, "train", 1, arrays={"arrays": {"weight": ArraySeen("float32", (2, 3), unreadable)}})
    assert fault_of(reply, SENT) == "array 'weight' cannot be read"


def test_an_array_of_another_shape_than_it_says_is_a_fault() -> None:
    lying = ArraySeen("float32", (2, 3), lambda: np.zeros((1,), np.float32))
    reply = MessageSeen(7, "train", 1, arrays={"arrays": {"weight": lying}})
    assert fault_of(reply, SENT) == "array 'weight' has shape [1], not [2, 3] as it says"


@pytest.mark.parametrize("examples", [float("nan"), float("inf"), -1.0])
def test_a_weight_that_would_spoil_the_average_is_a_fault(examples: float) -> None:
    reply = MessageSeen(7, "train", 1, metrics={"num-examples": examples})
    assert "num-examples" in fault_of(reply, SENT)


def test_a_reply_with_other_names_than_the_rest_is_odd() -> None:
    good, short, long = (
        letter(a=np.ones(1), b=np.ones(1)),
        letter(a=np.ones(1)),
        letter(**{x: np.ones(1) for x in "abc"}),
    )
    sent = dict.fromkeys(("1", "2", "3"), good.arrays)
    assert odd_ones_out({"1": good.arrays, "2": short.arrays, "3": long.arrays}, sent) == {
        "2": "array 'b' is missing",
        "3": "array 'c' was not asked for",
    }


def test_nobody_is_odd_where_all_have_other_names() -> None:
    sent = dict.fromkeys(("1", "2"), letter(a=np.ones(1)).arrays)
    part = letter(b=np.ones(1)).arrays
    assert odd_ones_out({"1": part, "2": part}, sent) == {}


def test_replies_without_arrays_are_not_odd() -> None:
    sent = dict.fromkeys(("1", "2"), letter(a=np.ones(1)).arrays)
    assert odd_ones_out({"1": {}, "2": {}}, sent) == {}


def test_an_infinite_value_in_half_precision_has_its_cause_named() -> None:
    infinite = seen(np.full((2, 3), np.inf, np.float32))
    reply = MessageSeen(7, "train", 0, {"arrays": {"weight": infinite}})
    assert fault_of(reply, SENT) == "array 'weight' has an infinite value"
    reply = MessageSeen(7, "train", 0, {"arrays": {"weight": replace(infinite, halved=True)}})
    assert fault_of(reply, SENT).endswith("an infinite value; half precision, which ends at 65504, may be the cause")


def test_a_model_that_was_sent_is_not_kept(observer: Observer) -> None:
    """A run has as many as it has rounds."""
    array = np.zeros((2, 3), np.float32)
    gone = weakref.ref(array)
    observer.sent("m1", letter(weight=array))
    del array
    assert gone() is None
    assert observer.sent_arrays("m1")["arrays"]["weight"].shape == (2, 3)


def test_counts_are_reported_beside_the_metrics(observer: Observer, events: list[RunEvent]) -> None:
    observer.enter(FEDERATED)
    observer.sent("m1", SENT)
    assert observer.replied("m1", replace(SENT, counts={"confusion": [1, 0, 0, 2]})) == ""
    assert events[-1].counts == {"confusion": [1, 0, 0, 2]}
    observer.score("federated", 7, {"num-examples": 3}, {"confusion": [1, 0, 0, 2]})
    assert (events[-1].kind, events[-1].examples) == (EventKind.SCORE, 3)
    assert events[-1].counts == {"confusion": [1, 0, 0, 2]}
    observer.left_out("m1", "odd")
    assert events[-1].counts == {}


def test_a_list_of_another_length_than_most_have_is_left_out() -> None:
    """Flower's mean takes lists of one length only: a site with other classes would end the run."""
    lengths = {"a": {"confusion": 4, "curve": 3}, "b": {"confusion": 9}, "c": {"confusion": 4}, "d": {}}
    assert odd_lengths(lengths) == {"b": "metric 'confusion' has 9 numbers, and 4 at other sites"}
    assert odd_lengths({}) == odd_lengths({"a": {"confusion": 4}, "c": {"confusion": 4}}) == {}
