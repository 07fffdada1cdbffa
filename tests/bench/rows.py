"""A row of the table that `make bench` prints."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

HIGHER = "higher"
LOWER = "lower"


@dataclass(frozen=True)
class Peer:
    """The same thing measured elsewhere, in the same run of the bench.

    Attributes:
        values: in the row's unit; empty where it could not be measured.
        ratio_goal: how many times the peer's median ours shall fit into it; None: shown, no goal.
        not_run: why there are no values.
    """

    name: str
    values: Sequence[float] = ()
    ratio_goal: float | None = None
    not_run: str = ""

    def ratio(self, ours: Sequence[float]) -> float | None:
        """The peer's median by ours: more than 1, we are quicker."""
        if not self.values or not ours:
            return None
        return statistics.median(self.values) / statistics.median(ours)


@dataclass(frozen=True)
class Row:
    """One thing that was measured.

    Attributes:
        unit: "s", "ms" or a word.
        values: ours, repeated; empty where it could not be measured.
        goal: the median shall be no more than this; None where the goal is a ratio, or there is none.
        note: said below the name.
        not_run: why there are no values.
        raw: whatever else was seen, for the JSON file.
    """

    name: str
    unit: str = "s"
    values: Sequence[float] = ()
    goal: float | None = None
    peers: Sequence[Peer] = ()
    note: str = ""
    not_run: str = ""
    raw: dict[str, Any] = field(default_factory=dict)

    @property
    def met(self) -> bool | None:
        """Whether the row's own goal is met; None where there is none or nothing was measured."""
        if self.goal is None or not self.values:
            return None
        return statistics.median(self.values) <= self.goal

    def as_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "unit": self.unit,
            **_summary(self.values),
            "goal": self.goal,
            "met": self.met,
            "note": self.note,
            "not_run": self.not_run,
            "peers": [
                {
                    "name": peer.name,
                    **_summary(peer.values),
                    "ratio": peer.ratio(self.values),
                    "ratio_goal": peer.ratio_goal,
                    "not_run": peer.not_run,
                }
                for peer in self.peers
            ],
            "raw": self.raw,
        }


def _summary(values: Sequence[float]) -> dict[str, Any]:
    if not values:
        return {"values": []}
    return {"values": list(values), "min": min(values), "median": statistics.median(values), "max": max(values)}
