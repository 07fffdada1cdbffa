"""What a run's events say: what still holds when its aggregator was lost, which rounds are over, who is silent."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from hub_service.domain.runs import EventKind, RunEvent

_FEDERATED, _COMPARE = "federated", "compare"
_OF_MESSAGES = frozenset({EventKind.SENT, EventKind.REPLY, EventKind.SCORE, EventKind.MODEL})


def standing(events: Iterable[RunEvent]) -> tuple[RunEvent, ...]:
    """The events but for those of rounds that an aggregator had begun when it was lost: these were done again."""
    kept: list[RunEvent] = []
    for event in events:
        if event.kind is EventKind.RESUMED:
            kept = _before(kept, event)
        kept.append(event)
    return tuple(kept)


def _before(events: list[RunEvent], resumed: RunEvent) -> list[RunEvent]:
    place = (resumed.phase, resumed.node_id)
    phases = [index for index, one in enumerate(events) if one.kind is EventKind.PHASE and not one.text]
    begun = next((index for index in phases if (events[index].phase, events[index].node_id) == place), 0)
    later = (index for index in phases if index > begun and (events[index].phase, events[index].node_id) != place)
    end = next(later, len(events))
    return events[:begun] + [one for one in events[begun:end] if not _is_void(one, resumed)]


def _is_void(event: RunEvent, resumed: RunEvent) -> bool:
    """Models are compared from the beginning again."""
    return event.kind in _OF_MESSAGES and (event.round > resumed.round or resumed.phase == _COMPARE)


@dataclass(frozen=True, slots=True)
class RoundDone:
    """A federated round that is over. `nodes` are those whose training counted, in the order of their answers."""

    number: int
    nodes: tuple[int, ...]


@dataclass(slots=True)
class RoundsDone:
    """Which federated rounds are over, from the events as they come.

    A round is over when the events go on to another round or phase, or to the run's end.

    Attributes:
        begun: rounds of all phases, each once, however often it was begun.
    """

    begun: set[tuple[str, int, int]] = field(default_factory=set)
    _open: int = 0
    _has_model: bool = False
    _nodes: list[int] = field(default_factory=list)

    def after(self, events: Iterable[RunEvent]) -> list[RoundDone]:
        """The rounds that are over by these events, which follow those of the last call."""
        done: list[RoundDone] = []
        for event in events:
            if event.kind is EventKind.SENT:
                self.begun.add((event.phase, event.round, 0 if event.phase == _FEDERATED else event.node_id))
            if event.kind is EventKind.RESUMED:
                if event.phase == _FEDERATED and self._open > event.round:
                    self._open = 0
                done += self._closed()
            elif event.kind in (EventKind.FINISHED, EventKind.PHASE) and not event.text:
                done += self._closed()
            elif event.phase == _FEDERATED and event.round > 0:
                done += self._take(event)
        return done

    def at_the_end(self) -> list[RoundDone]:
        """The round that is over although no event says so: the run was ended when it had its model."""
        return self._closed() if self._has_model else []

    def _take(self, event: RunEvent) -> list[RoundDone]:
        if event.kind is EventKind.SENT and event.round != self._open:
            done = self._closed()
            self._open = event.round
            return done
        if event.kind is EventKind.MODEL:
            self._has_model = event.round == self._open
        if event.kind is EventKind.REPLY and event.round == self._open and event.message_type.startswith("train"):
            if event.text:
                self._nodes = [node for node in self._nodes if node != event.node_id]  # left out after all
            elif event.node_id not in self._nodes:
                self._nodes.append(event.node_id)
        return []

    def _closed(self) -> list[RoundDone]:
        number, self._open, self._has_model = self._open, 0, False
        nodes, self._nodes = tuple(self._nodes), []
        return [RoundDone(number, nodes)] if number else []


@dataclass(slots=True)
class Overdue:
    """Which nodes have used up the grace time, from the events as they come: each is named once, until it is back."""

    grace_s: float
    _named: frozenset[str] = frozenset()

    def after(self, event: RunEvent) -> list[str]:
        """The nodes, in decimal, that this event is the first to say so of."""
        if event.kind is EventKind.RESUMED:  # the one that is begun anew counts from its own beginning
            self._named = frozenset()
        if event.kind is not EventKind.OUTAGE:
            return []
        overdue = [node for node, seconds in event.metrics.items() if seconds >= self.grace_s]
        before, self._named = self._named, frozenset(overdue)
        return [node for node in overdue if node not in before]
