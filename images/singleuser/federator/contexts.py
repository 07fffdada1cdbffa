"""The Flower contexts of the runs that a node works for: what an app puts into `context.state` is there at its next
message.

An aggregator that was lost and begun anew asks for its open round again. What the app had noted of that round is taken
back then: it works from the state that it had before, and the run comes out as if nothing had happened.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field

from flwr.app import Context, RecordDict
from flwr.supercore.run import Run

_KEPT_RUNS = 4  # the newest; a message of an older run begins with a fresh context
_KEPT_STATES = 4  # the messages of one round, and a few more

Ask = tuple[str, str]
"""What a message asks for: its type and its round."""


@dataclass(slots=True)
class _Kept:
    context: Context
    pending_at: str  # when the aggregator took the run: another time, another aggregator
    before: deque[tuple[Ask, RecordDict]] = field(default_factory=lambda: deque(maxlen=_KEPT_STATES))


class RunContexts:
    """Those of the newest runs. Used by the node's working thread alone."""

    def __init__(self) -> None:
        self._runs: OrderedDict[int, _Kept] = OrderedDict()

    def of(self, run: Run, ask: Ask, make: Callable[[], Context]) -> Context:
        """The run's context for this message.

        Args:
            make: makes a fresh one.
        """
        kept = self._runs.get(run.run_id)
        if kept is None:
            kept = self._runs[run.run_id] = _Kept(make(), run.pending_at)
            while len(self._runs) > _KEPT_RUNS:
                self._runs.popitem(last=False)
        if kept.pending_at != run.pending_at:
            kept.pending_at = run.pending_at
            self._take_back(kept, ask)
        kept.before.append((ask, _copied(kept.context.state)))
        return kept.context

    def _take_back(self, kept: _Kept, ask: Ask) -> None:
        """Put the state as it was before this was asked last, if it was."""
        asked = [one for one, _ in kept.before]
        if ask not in asked:
            return
        while True:
            one, state = kept.before.pop()
            if one == ask:
                kept.context.state = state
                return


def _copied(state: RecordDict) -> RecordDict:
    """Its records' own copies. Arrays are shared: Flower's have no way to change them in place."""
    return RecordDict({name: record.copy() for name, record in state.items()})
