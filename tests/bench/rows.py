"""A row of the table that `make bench` prints."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Row:
    """Repeated measurements of one thing.

    Attributes:
        values: in seconds.
        against: measurements of the same thing in the same run, to which these are compared.
        goal: in words.
    """

    name: str
    values: Sequence[float]
    against: Sequence[float] = ()
    goal: str = ""

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def ratio(self) -> float | None:
        """Of the medians; None where there is nothing to compare with."""
        return self.median / statistics.median(self.against) if self.against else None

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "median": self.median, "ratio": self.ratio}
