"""From the notes that the measured app makes at each site to the overhead of a round."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise

Times = Mapping[str, float]  # `begun` and `inside`, as `app/benchapp/work.py` notes them
SiteRounds = Mapping[str, Sequence[tuple[Times, Times]]]  # site -> train and evaluate, round by round


def overheads(sites: SiteRounds) -> list[float]:
    """Seconds from the begin of a train call to that of the next, less what was spent inside train and evaluate.

    Of each site and each round after the first; of the first too where there is nothing else.
    """
    return [overhead for rounds in sites.values() for overhead in _overheads(rounds)]


def busy_shares(sites: SiteRounds) -> list[float]:
    """Share of a round in which at least one site is inside train or evaluate; of each round but the first and last.

    A round goes from the first site's begin of a train call to the first one's of the next. All are of one machine.
    """
    begins = [min(train["begun"] for train, _ in one) for one in zip(*sites.values(), strict=True)]
    spans = sorted(
        (times["begun"], times["begun"] + times["inside"])
        for rounds in sites.values()
        for one in rounds
        for times in one
    )
    return [_covered(spans, begin, end) / (end - begin) for begin, end in pairwise(begins[1:])]


def _covered(spans: Iterable[tuple[float, float]], begin: float, end: float) -> float:
    """How much of the time between begin and end lies in a span; they are in order, and may overlap."""
    covered, reached = 0.0, begin
    for start, stop in spans:
        reached_now = min(stop, end)
        covered += max(0.0, reached_now - max(start, reached))
        reached = max(reached, reached_now)
    return covered


def _overheads(rounds: Sequence[tuple[Times, Times]]) -> list[float]:
    found = [
        after["begun"] - train["begun"] - train["inside"] - evaluate["inside"]
        for (train, evaluate), (after, _) in pairwise(rounds)
    ]
    return found[1:] or found
