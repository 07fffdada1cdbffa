"""How long runs wait and rounds take, from the events of runs in flight. Pure but for what it remembers of open rounds.

A round is over when its run's events go on to another round or phase, or say that the run has finished: then the last
reply in it was its end, whether its model was kept or not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hub_service.domain.runs import EventKind, Run, RunEvent

_FEDERATED = "federated"


@dataclass(frozen=True, slots=True)
class Timed:
    """What some events have told.

    Attributes:
        queued: seconds from asking for the run to its first message; None unless that is among the events.
        rounds: seconds of each federated round that is over now.
    """

    queued: float | None = None
    rounds: tuple[float, ...] = ()


@dataclass(slots=True)
class _Known:
    number: int = 0  # of the open round; 0: none is
    begun: float = 0.0
    replied: float = 0.0
    sent: bool = False  # the run's first message was seen


class RunTimings:
    def __init__(self) -> None:
        self._runs: dict[str, _Known] = {}

    def after(self, run: Run, events: Sequence[RunEvent]) -> Timed:
        """What is known once these events, which follow those of the last call, are there."""
        # What an earlier service has seen of a run that goes on is not known: its queue time is not told twice.
        known = self._runs.setdefault(run.id, _Known(sent=bool(run.round) and not _first_message(events)))
        queued: float | None = None
        ended: list[float] = []
        for event in events:
            if event.kind is EventKind.RESUMED:
                known.number = 0  # what was open is done again
            elif event.kind is EventKind.SENT and event.phase == _FEDERATED and event.round > 0:
                if not known.sent:
                    known.sent, queued = True, event.at - run.created_at.timestamp()
                if event.round != known.number:
                    ended += _closed(known)
                    known.number, known.begun, known.replied = event.round, event.at, 0.0
            elif event.kind is EventKind.REPLY and event.phase == _FEDERATED and event.round == known.number:
                known.replied = max(known.replied, event.at)
            elif event.kind in (EventKind.PHASE, EventKind.FINISHED):
                ended += _closed(known)
        return Timed(queued, tuple(ended))

    def forget(self, run_id: str) -> None:
        """The run has ended."""
        self._runs.pop(run_id, None)


def _first_message(events: Sequence[RunEvent]) -> bool:
    return any(event.kind is EventKind.SENT and event.round <= 1 for event in events)


def _closed(known: _Known) -> list[float]:
    """The seconds of the open round, which is not open any more; none where there is none, or nobody answered in it."""
    seconds = [known.replied - known.begun] if known.number and known.replied else []
    known.number, known.replied = 0, 0.0
    return seconds
