"""What becomes of nodes that a run waits for and that fell silent: the project's policy. Knows nothing of Flower.

    wait      they are waited for, however long
    continue  after the grace time the others go on; with nobody left to go on, it waits
    stop      after the grace time the run fails

Silence counts from a node's last sign of life. One that works for hours is not silent: it sends heartbeats meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from federator.contract import OutagePolicy

Silent = Mapping[int, float]
"""Node id -> seconds since its last sign of life."""


class Outages:
    """Decides by the policy, and says who is waited for. Used by `ObservingGrid` alone.

    Args:
        grace_s: how long a silent node is waited for under "continue" and "stop", in seconds.
        note: told who is waited for now, each time that others are, or one has used up the grace time.
    """

    def __init__(self, policy: OutagePolicy, grace_s: float, note: Callable[[Silent], None]) -> None:
        self.policy = policy
        self.grace_s = grace_s
        self._note = note
        self._noted: dict[int, bool] = {}  # node -> whether its grace time was used up

    def left_out(self, silent: Silent, *, others: bool) -> frozenset[int]:
        """Which of the silent nodes are waited for no longer.

        Args:
            others: whether anybody is left to go on with.
        """
        if self.policy is not OutagePolicy.CONTINUE or not others:
            return frozenset()
        return frozenset(self.overdue(silent))

    def must_stop(self, silent: Silent) -> bool:
        """Whether the run ends for these nodes."""
        return self.policy is OutagePolicy.STOP and bool(self.overdue(silent))

    def overdue(self, silent: Silent) -> list[int]:
        return sorted(node for node, seconds in silent.items() if seconds >= self.grace_s)

    def waiting(self, silent: Silent) -> None:
        """These nodes are waited for; nobody, where there are none."""
        state = {node: seconds >= self.grace_s for node, seconds in silent.items()}
        if state != self._noted:
            self._noted = state
            self._note(silent)
