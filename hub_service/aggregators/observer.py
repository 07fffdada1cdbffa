"""What the grid sees, as a run's events; and which replies are left out of the aggregation. Knows nothing of Flower.

`observing_grid` turns Flower's messages into `MessageSeen`s and asks; the strategy never sees a reply that was
found wanting as anything but an error, so that it goes on with the rest.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from hub_service.domain.runs import EventKind, RunEvent

FEDERATED = "federated"
ALONE = "alone"
COMPARE = "compare"

EXAMPLES_KEY = "num-examples"

_NUMERIC = ("float", "bfloat", "complex", "int", "uint", "bool")

ArrayReader = Callable[[], "NDArray[np.generic]"]


@dataclass(frozen=True, slots=True)
class ArraySeen:
    """One array of a message.

    Attributes:
        read: decodes it and may raise ValueError: a site sends what it likes.
        halved: whether it came in half precision.
    """

    dtype: str
    shape: tuple[int, ...]
    read: ArrayReader
    halved: bool = False

    @property
    def is_floating(self) -> bool:
        return self.dtype.startswith(("float", "bfloat", "complex"))

    @property
    def kind(self) -> str:
        """What sums of arrays have to agree in."""
        return "floating" if self.dtype.startswith(("float", "bfloat")) else self.dtype


# Name of the record in the message -> name of the array -> array.
Arrays = Mapping[str, Mapping[str, ArraySeen]]


@dataclass(frozen=True, slots=True)
class MessageSeen:
    """A message to a node, or a node's reply, as far as the observer cares.

    Attributes:
        round: as the app counts from 1; 0 outside rounds.
        lengths: of its metrics that are lists.
        size: bytes of its arrays.
        error: the reason where the reply is an error.
    """

    node_id: int
    message_type: str
    round: int
    arrays: Arrays = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    counts: Mapping[str, list[int]] = field(default_factory=dict)
    lengths: Mapping[str, int] = field(default_factory=dict)
    size: int = 0
    error: str = ""


@dataclass(frozen=True, slots=True)
class _Sent:
    letter: MessageSeen
    at: float


class Observer:
    """Writes the events of one run.

    Args:
        write: takes each event, in order.
        clock: seconds since the epoch.
    """

    def __init__(self, write: Callable[[RunEvent], None], clock: Callable[[], float]) -> None:
        self._write = write
        self._clock = clock
        self._phase = ""
        self._phase_node = 0
        self._sent: dict[str, _Sent] = {}

    @property
    def phase(self) -> str:
        return self._phase

    def enter(self, phase: str, node_id: int = 0) -> None:
        self._phase, self._phase_node = phase, node_id
        self._event(EventKind.PHASE, node_id=node_id)

    def resume(self, phase: str, node_id: int, number: int) -> None:
        """Begin anew behind round `number` of a phase that another process had entered."""
        self._phase, self._phase_node = phase, node_id
        self._event(EventKind.RESUMED, node_id=node_id, round=number)

    def note(self, text: str) -> None:
        """Say something about the present phase, such as why it was left."""
        self._event(EventKind.PHASE, node_id=self._phase_node, text=text)

    def waiting(self, missing: Sequence[int]) -> None:
        self._event(EventKind.WAITING, text=",".join(map(str, missing)))

    def sent(self, message_id: str, letter: MessageSeen) -> None:
        self._sent[message_id] = _Sent(replace(letter, arrays=_without_data(letter.arrays)), self._clock())
        self._event(
            EventKind.SENT,
            round=letter.round,
            message_type=letter.message_type,
            node_id=letter.node_id,
            size=letter.size,
        )

    def replied(self, message_id: str, reply: MessageSeen) -> str:
        """Note a reply. The answer is why it must be left out, or "" for a good one (or an error, which says so)."""
        sent = self._sent.get(message_id)
        if sent is None:
            return ""
        fault = "" if reply.error else fault_of(reply, sent.letter)
        self._reply_event(sent, reply, f"site's answer left out: {fault}" if fault else reply.error)
        return fault

    def left_out(self, message_id: str, fault: str) -> None:
        """Note that a reply already seen was left out after all."""
        sent = self._sent[message_id]
        self._reply_event(sent, sent.letter, f"site's answer left out: {fault}")

    def unanswered(self, message_id: str, why: str = "no answer in the time that the app allows") -> None:
        sent = self._sent[message_id]
        self._reply_event(sent, sent.letter, why)

    def outage(self, silent: Mapping[int, float], number: int) -> None:
        """Which nodes are waited for and silent, and for how many seconds; nobody, where there are none."""
        self._event(
            EventKind.OUTAGE,
            node_id=self._phase_node,
            round=number,
            seconds=max(silent.values(), default=0.0),
            text=",".join(map(str, silent)),
            metrics={str(node): seconds for node, seconds in silent.items()},
        )

    def forget(self, message_ids: Iterable[str]) -> None:
        """Nothing more will be said of these messages: a run may send very many."""
        for message_id in message_ids:
            self._sent.pop(message_id, None)

    def sent_arrays(self, message_id: str) -> Arrays:
        return self._sent[message_id].letter.arrays

    def model(self, size: int, number: int) -> None:
        self._event(EventKind.MODEL, size=size, round=number)

    def score(self, model: str, node_id: int, metrics: Mapping[str, float], counts: Mapping[str, list[int]]) -> None:
        self._event(EventKind.SCORE, model=model, node_id=node_id, counts=dict(counts), **_split(metrics))

    def finished(self) -> None:
        self._event(EventKind.FINISHED)

    def failed(self, text: str) -> None:
        self._event(EventKind.FAILED, text=text)

    def _reply_event(self, sent: _Sent, reply: MessageSeen, text: str) -> None:
        self._event(
            EventKind.REPLY,
            round=sent.letter.round,
            message_type=sent.letter.message_type,
            node_id=sent.letter.node_id,
            seconds=self._clock() - sent.at,
            size=0 if text else reply.size,
            text=text,
            counts={} if text else dict(reply.counts),
            **_split({} if text else reply.metrics),
        )

    def _event(self, kind: EventKind, **fields: object) -> None:
        self._write(RunEvent(kind, at=self._clock(), phase=self._phase, **fields))  # type: ignore[arg-type]


def _without_data(arrays: Arrays) -> Arrays:
    """Names, dtypes and shapes only: a reader holds its array, and so each round's model to the end of the run."""
    return {
        record: {name: replace(array, read=_not_kept) for name, array in named.items()}
        for record, named in arrays.items()
    }


def _not_kept() -> NDArray[np.generic]:
    raise ValueError("what was sent is not kept")


def _split(metrics: Mapping[str, float]) -> dict[str, object]:
    """An event's `metrics` and `examples` from a reply's metrics."""
    examples = metrics.get(EXAMPLES_KEY, 0)
    return {
        "metrics": {name: value for name, value in metrics.items() if name != EXAMPLES_KEY},
        "examples": int(examples) if math.isfinite(examples) else 0,
    }


def fault_of(reply: MessageSeen, sent: MessageSeen) -> str:
    """Why a reply would spoil the aggregate, or "". The text names the array.

    Shapes are compared for floating arrays only: an app may grow others from round to round (boosted trees do).
    """
    examples = reply.metrics.get(EXAMPLES_KEY)
    if examples is not None and not (math.isfinite(examples) and examples >= 0):
        return f"'{EXAMPLES_KEY}' is {examples}"
    if EXAMPLES_KEY in reply.lengths:
        return f"'{EXAMPLES_KEY}' is a list"
    for record, arrays in reply.arrays.items():
        expected = sent.arrays.get(record, {})
        for name, array in arrays.items():
            if fault := _array_fault(name, array, expected.get(name)):
                return fault
    return ""


def _array_fault(name: str, array: ArraySeen, expected: ArraySeen | None) -> str:
    if not array.dtype.startswith(_NUMERIC):
        return ""
    if array.is_floating and expected is not None and array.shape != expected.shape:
        return f"array '{name}' has shape {list(array.shape)}, not {list(expected.shape)}"
    try:
        values = array.read()
    except ValueError:
        return f"array '{name}' cannot be read"
    if values.shape != array.shape:
        return f"array '{name}' has shape {list(values.shape)}, not {list(array.shape)} as it says"
    if values.dtype.name != array.dtype:
        return f"array '{name}' is of dtype {values.dtype.name}, not {array.dtype} as it says"
    if not array.is_floating or _surely_finite(values):
        return ""
    if np.isnan(values).any():
        return f"array '{name}' has NaN"
    if np.isinf(values).any():
        cause = "; half precision, which ends at 65504, may be the cause" if array.halved else ""
        return f"array '{name}' has an infinite value{cause}"
    return ""


def _surely_finite(values: NDArray[np.generic]) -> bool:
    """Whether the sum is a number, which it is not where one of the values is none: one look at good arrays, not four.

    The sum of large numbers may be infinite, too, so False says nothing.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        return bool(np.isfinite(values.sum()))


def odd_ones_out(replies: Mapping[str, Arrays], sent: Mapping[str, Arrays]) -> dict[str, str]:
    """Replies whose arrays have other names than were sent, where another reply has the same: id -> what is odd.

    If no reply has the names that were sent, the app means it so and nobody is left out.
    """
    odd = {}
    for message_id, arrays in replies.items():
        expected, actual = _names(sent[message_id]), _names(arrays)
        if actual and actual != expected:
            odd[message_id] = _difference(expected, actual)
    answering = [message_id for message_id, arrays in replies.items() if _names(arrays)]
    return odd if len(odd) < len(answering) else {}


def odd_lengths(replies: Mapping[str, Mapping[str, int]]) -> dict[str, str]:
    """Replies with a list of another length than most others have: id -> what is odd. No mean can be made of them.

    Args:
        replies: for each reply's id, the lists among its metrics and their lengths.
    """
    odd = {}
    for name in dict.fromkeys(name for lengths in replies.values() for name in lengths):
        found = Counter(lengths[name] for lengths in replies.values() if name in lengths)
        (most_have, _), *others = found.most_common()
        for message_id, lengths in replies.items():
            if others and lengths.get(name, most_have) != most_have:
                odd[message_id] = f"metric '{name}' has {lengths[name]} numbers, and {most_have} at other sites"
    return odd


def odd_parts(replies: Mapping[str, frozenset[str]]) -> dict[str, str]:
    """Replies without a part that at least half of all have, or with one that fewer have: id -> what is odd.

    Flower's strategies end the run where replies differ in that. If all are odd, the app means it so and nobody is left
    out.

    Args:
        replies: for each reply's id, the parts that its content has, as a person reads them.
    """
    having = Counter(part for parts in replies.values() for part in parts)
    usual = frozenset(part for part, number in having.items() if 2 * number >= len(replies))
    odd = {}
    for message_id, parts in replies.items():
        if missing := usual - parts:
            odd[message_id] = f"{min(missing)} is missing"
        elif extra := parts - usual:
            odd[message_id] = f"{min(extra)} is not what other sites send"
    return odd if len(odd) < len(replies) else {}


def _names(arrays: Arrays) -> frozenset[tuple[str, str]]:
    return frozenset((record, name) for record, named in arrays.items() for name in named)


def _difference(expected: frozenset[tuple[str, str]], actual: frozenset[tuple[str, str]]) -> str:
    missing = sorted(name for _, name in expected - actual)
    if missing:
        return f"array '{missing[0]}' is missing"
    return f"array '{min(name for _, name in actual - expected)}' was not asked for"
