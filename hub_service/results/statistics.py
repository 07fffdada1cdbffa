"""How sure a number is: 95 % intervals by bootstrap, from counts or from a share of a known number of examples.

Counts are an app's `confusion`: K*K whole numbers, row by row, a row for each true class. A table is drawn anew from
its own shares, as many examples as it has, at each site for itself; numbers on all sites' data come from the sum of
such draws. A share p of n examples is drawn as n answers of yes or no. Draws begin with a seed, so the same run always
has the same intervals. Where no example was wrong (or none was right) every draw is the same, and the exact bound of
Clopper and Pearson stands in place of an interval without width.

Two models on the same test data are drawn independently of each other: counts do not say which example was which. So an
interval of a difference is rather too wide than too narrow.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import isqrt

import numpy as np
from federator.contract import ClassScore, Interval
from numpy.typing import NDArray

DRAWS = 1000
LEVEL = 0.95

Table = tuple[int, ...]  # K*K counts, row by row
Floats = NDArray[np.float64]

_TAILS = (100 * (1 - LEVEL) / 2, 100 * (1 + LEVEL) / 2)  # percentiles
_KEPT = 4096  # results, each a few numbers; pages ask for the same ones again and again


@dataclass(frozen=True, slots=True)
class Estimate:
    value: float
    interval: Interval


@dataclass(frozen=True, slots=True)
class TableStatistics:
    """What a confusion table says, with intervals."""

    examples: int
    accuracy: Estimate
    balanced_accuracy: Estimate
    classes: tuple[ClassScore, ...]


def is_table(counts: Sequence[int]) -> bool:
    """Whether these are the counts of a confusion table: of two classes or more, and of one example or more."""
    side = isqrt(len(counts))
    return side >= 2 and side * side == len(counts) and min(counts) >= 0 and sum(counts) > 0


def seed_of(*parts: str) -> int:
    """A seed that is the same whenever these texts are."""
    return int.from_bytes(hashlib.sha256("\0".join(parts).encode()).digest()[:8])


def added(tables: Iterable[Table]) -> Table:
    """The sum of tables of the same size."""
    return tuple(int(count) for count in np.sum([*tables], axis=0))


@lru_cache(maxsize=_KEPT)
def of_tables(tables: tuple[Table, ...], seed: int) -> TableStatistics:
    """Of one site's table, or of all sites' tables together, which have one size."""
    whole, drawn = _square(np.asarray(added(tables))), _drawn_tables(tables, seed)
    rows, columns, hits = whole.sum(axis=1), whole.sum(axis=0), np.diagonal(whole)
    recall, precision = _recall(drawn), _precision(drawn)
    return TableStatistics(
        examples=int(whole.sum()),
        accuracy=_estimate(int(hits.sum()), int(whole.sum()), _accuracy(drawn)),
        balanced_accuracy=_balanced_estimate(whole, _balanced(drawn)),
        classes=tuple(
            _class(int(hits[one]), int(rows[one]), int(columns[one]), recall[:, one], precision[:, one])
            for one in range(len(whole))
        ),
    )


@lru_cache(maxsize=_KEPT)
def of_shares(shares: tuple[tuple[float, int], ...], seed: int) -> Estimate:
    """Of shares in [0, 1] and the numbers of examples that they are of, one or more in all: of all together."""
    total = sum(examples for _, examples in shares)
    return _estimate(sum(round(share * n) for share, n in shares), total, _drawn_shares(shares, seed))


@lru_cache(maxsize=_KEPT)
def difference_of_tables(
    ours: tuple[Table, ...], theirs: tuple[Table, ...], measure: str, seeds: tuple[int, int]
) -> Interval:
    """Of `measure`, "accuracy" or "balanced-accuracy": ours less theirs."""
    of = _accuracy if measure == "accuracy" else _balanced
    return _interval(of(_drawn_tables(ours, seeds[0])) - of(_drawn_tables(theirs, seeds[1])))


@lru_cache(maxsize=_KEPT)
def difference_of_shares(
    ours: tuple[tuple[float, int], ...], theirs: tuple[tuple[float, int], ...], seeds: tuple[int, int]
) -> Interval:
    return _interval(_drawn_shares(ours, seeds[0]) - _drawn_shares(theirs, seeds[1]))


# --- drawing


def _drawn_tables(tables: tuple[Table, ...], seed: int) -> Floats:
    """DRAWS tables, each the sum of one draw at each site."""
    rng = np.random.default_rng(seed)
    total = np.zeros((DRAWS, len(tables[0])))
    for table in tables:
        counts = np.asarray(table)
        if examples := int(counts.sum()):
            total += rng.multinomial(examples, counts / examples, size=DRAWS)
    return _square(total)


def _drawn_shares(shares: tuple[tuple[float, int], ...], seed: int) -> Floats:
    rng = np.random.default_rng(seed)
    right = sum(rng.binomial(examples, min(max(share, 0.0), 1.0), size=DRAWS) for share, examples in shares)
    return np.asarray(right / sum(examples for _, examples in shares))


def _square(counts: NDArray[np.generic]) -> Floats:
    side = isqrt(counts.shape[-1])
    return counts.astype(float).reshape(*counts.shape[:-1], side, side)


# --- measures of tables, whose last two axes are true and predicted class; NaN where there is nothing to divide by


def _accuracy(tables: Floats) -> Floats:
    return np.asarray(_hits(tables).sum(axis=-1) / tables.sum(axis=(-1, -2)))


def _recall(tables: Floats) -> Floats:
    return _over(_hits(tables), tables.sum(axis=-1))


def _precision(tables: Floats) -> Floats:
    return _over(_hits(tables), tables.sum(axis=-2))


def _balanced(tables: Floats) -> Floats:
    """The mean recall of the classes that have examples."""
    recall = _recall(tables)
    there = ~np.isnan(recall)
    return np.asarray(np.where(there, recall, 0.0).sum(axis=-1) / there.sum(axis=-1))


def _hits(tables: Floats) -> Floats:
    return np.asarray(np.diagonal(tables, axis1=-2, axis2=-1))


def _over(part: Floats, whole: Floats) -> Floats:
    return np.asarray(np.divide(part, whole, out=np.full(part.shape, np.nan), where=whole > 0))


# --- intervals


def _interval(drawn: Floats) -> Interval:
    low, high = np.nanpercentile(drawn, _TAILS)
    return float(low), float(high)


def _estimate(right: int, examples: int, drawn: Floats) -> Estimate:
    """A share of examples, `right` of them."""
    if right == 0:
        return Estimate(0.0, (0.0, 1 - _bound(examples)))
    if right == examples:
        return Estimate(1.0, (_bound(examples), 1.0))
    return Estimate(right / examples, _interval(drawn))


def _balanced_estimate(whole: Floats, drawn: Floats) -> Estimate:
    value = float(_balanced(whole))
    if value in (0.0, 1.0):
        bound = float(np.mean([_bound(int(examples)) for examples in whole.sum(axis=1) if examples]))
        return Estimate(value, (bound, 1.0) if value else (0.0, 1 - bound))
    return Estimate(value, _interval(drawn))


def _bound(examples: int) -> float:
    """The smallest true share with which all of so many examples are still right once in 40 times."""
    return float(((1 - LEVEL) / 2) ** (1 / examples))


def _class(hits: int, examples: int, predicted: int, recall: Floats, precision: Floats) -> ClassScore:
    found = _estimate(hits, examples, recall) if examples else None
    right = _estimate(hits, predicted, precision) if predicted else None
    return ClassScore(
        examples=examples,
        predicted=predicted,
        recall=found.value if found else None,
        recall_interval=found.interval if found else None,
        precision=right.value if right else None,
        precision_interval=right.interval if right else None,
    )
