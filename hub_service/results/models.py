"""The models of a run's rounds: which is best, which are kept, and how they get from the run folder into the artifacts.

The ServerApp leaves each round's model in the run folder as another name of the same file, so that costs nothing but
its bytes. While the run goes, `RoundModels.prune` removes what is beyond the budget; at its end the rest is kept. The
run folder is the owner's code's to write in: names and plain files only are taken from it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from math import isfinite
from pathlib import Path

from federator.contract import Round

from hub_service.aggregators.events import round_model_file
from hub_service.results.metrics import is_loss, main_metric

KEEP_BYTES = 1024**3  # of one run's rounds, besides its last model


def best_round(rounds: Sequence[Round]) -> tuple[int, str]:
    """The round whose model did best on all sites' test data, and the metric that says so; 0 and "" where none does."""
    metric = main_metric(one.evaluate for one in rounds)
    if metric is None:
        return 0, ""
    measured = {
        one.number: one.evaluate[metric] for one in rounds if metric in one.evaluate and isfinite(one.evaluate[metric])
    }
    if not measured:
        return 0, ""
    return (min if is_loss(metric) else max)(measured, key=lambda number: measured[number]), metric


def kept_rounds(sizes: dict[int, int], best: int, budget: int) -> set[int]:
    """Of the rounds with these sizes in bytes: the last and the best one always, then the newest that fit."""
    if not sizes:
        return set()
    kept = {max(sizes)} | ({best} & sizes.keys())
    room = budget - sum(sizes[one] for one in kept)
    for number in sorted(sizes.keys() - kept, reverse=True):
        room -= sizes[number]
        if room < 0:
            break
        kept.add(number)
    return kept


class RoundModels:
    """Those of one run that its folder holds now.

    Args:
        budget: bytes that they may have together.
    """

    def __init__(self, folder: Path, budget: int) -> None:
        self._folder = folder
        self._budget = budget
        self._sizes: dict[int, int] = {}

    def add(self, number: int, size: int) -> bool:
        """Note that a round's model was written. True where the budget is spent: then `prune`."""
        if type(number) is int and type(size) is int:  # as the owner's code says: anything
            self._sizes[number] = size
        return sum(self._sizes.values()) > self._budget

    def prune(self, best: int) -> None:
        """Remove what the budget has no room for."""
        for number in self._sizes.keys() - kept_rounds(self._sizes, best, self._budget):
            del self._sizes[number]
            self._remove(number)

    def to_keep(self, best: int) -> dict[int, Path]:
        """Their files, by round. Sizes are what is there, not what was said."""
        actual = {number: size for number in self._sizes if (size := self._size(number)) is not None}
        return {one: self._folder / round_model_file(one) for one in sorted(kept_rounds(actual, best, self._budget))}

    def _size(self, number: int) -> int | None:
        try:
            return (self._folder / round_model_file(number)).lstat().st_size
        except OSError:  # not there, or a number whose name is too long for the disk
            return None

    def _remove(self, number: int) -> None:
        # The owner's code may have put anything there, a folder for one: it goes with the run folder.
        with contextlib.suppress(OSError):
            (self._folder / round_model_file(number)).unlink()
