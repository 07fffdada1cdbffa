"""The result table of a run, from its SCORE events: values, intervals, classes, and what separates the models.

Called by `hub_service.run_views`. Pure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from math import isclose

from federator.contract import Difference, Interval, Labels, Metrics, Score

from hub_service.domain.runs import EventKind, Run, RunEvent
from hub_service.results import statistics
from hub_service.results.metrics import is_loss, is_share
from hub_service.run_progress import site_of

ALL_SITES = ""
FEDERATED = "federated"
CONFUSION = "confusion"
FROM_COUNTS, FROM_SHARE = "counts", "share"
ACCURACY, BALANCED = "accuracy", "balanced-accuracy"

# An app's own value and that of its counts are the same number where they differ by no more than rounding.
_ROUNDING = 1e-4


def places(run: Run) -> Callable[[str], int]:
    """For sorting: sites in the order of the run's participations, then what the run does not know."""
    order = {site: place for place, site in enumerate(run.sites.values())}
    return lambda site: order.get(site, len(order))


def scores(run: Run, events: Iterable[RunEvent]) -> tuple[Score, ...]:
    """Each model on each site's test data, then on all of it together."""
    table: dict[str, list[Score]] = {}
    for event in events:
        if event.kind is EventKind.SCORE:
            model = event.model if event.model == FEDERATED else site_of(run, int(event.model))
            counts = {name: tuple(values) for name, values in event.counts.items()}
            cell = Score(model, site_of(run, event.node_id), event.metrics, event.examples, counts)
            table.setdefault(model, []).append(cell)
    place = places(run)
    for cells in table.values():
        cells.sort(key=lambda cell: place(cell.on_site))
    return tuple(score for cells in table.values() for score in _with_statistics(run.id, cells))


def _with_statistics(run_id: str, cells: Sequence[Score]) -> list[Score]:
    """One model's cells, and the cell of all together, with intervals."""
    of_sites = [_measured(run_id, cell, [cell]) for cell in cells]
    together = replace(
        cells[0],
        on_site=ALL_SITES,
        metrics=weighted([(cell.metrics, cell.examples) for cell in of_sites]),
        examples=sum(cell.examples for cell in cells),
        counts=_counts_together(cells),
    )
    return [*of_sites, _measured(run_id, together, cells)]


def _counts_together(cells: Sequence[Score]) -> dict[str, tuple[int, ...]]:
    """Sums of what every site reported in the same length."""
    shared = set.intersection(*(set(cell.counts) for cell in cells))
    same = (name for name in cells[0].counts if name in shared and len({len(one.counts[name]) for one in cells}) == 1)
    return {name: statistics.added(cell.counts[name] for cell in cells) for name in same}


def _measured(run_id: str, cell: Score, parts: Sequence[Score]) -> Score:
    """The cell with what its counts, or the shares of its parts, say.

    Args:
        parts: the sites' cells that make up this one; itself for a site's own.
    """
    seed = statistics.seed_of(run_id, cell.model, cell.on_site)
    metrics, intervals, made_from = dict(cell.metrics), dict[str, Interval](), dict[str, str]()
    classes = cell.classes
    if statistics.is_table(cell.counts.get(CONFUSION, ())):
        of_table = statistics.of_tables(tables_of(parts), seed)
        classes = of_table.classes
        for measure, estimate in ((ACCURACY, of_table.accuracy), (BALANCED, of_table.balanced_accuracy)):
            name = _name_of(metrics, measure)
            if name not in metrics or _is_of_counts(name, measure, parts):
                metrics[name], intervals[name], made_from[name] = estimate.value, estimate.interval, FROM_COUNTS
    for name in metrics.keys() - intervals.keys():
        if shares := _shares(name, parts):
            intervals[name], made_from[name] = statistics.of_shares(shares, seed).interval, FROM_SHARE
    ordered = {name: intervals[name] for name in metrics if name in intervals}
    return replace(cell, metrics=metrics, intervals=ordered, made_from=made_from, classes=classes)


def tables_of(parts: Sequence[Score]) -> tuple[statistics.Table, ...]:
    return tuple(part.counts[CONFUSION] for part in parts)


def _name_of(metrics: Mapping[str, float], measure: str) -> str:
    """As the app calls this measure, else our name."""
    return next((name for name in metrics if name.replace("_", "-") == measure), measure)


def _is_of_counts(name: str, measure: str, parts: Sequence[Score]) -> bool:
    """Whether the app's metric of this name is, at each site, what its counts say. It may mean something else by it."""
    return all(
        name not in part.metrics
        or isclose(part.metrics[name], _of_counts(part.counts[CONFUSION], measure), abs_tol=_ROUNDING)
        for part in parts
    )


def _of_counts(table: statistics.Table, measure: str) -> float:
    found = statistics.of_tables((table,), 0) if statistics.is_table(table) else None
    if found is None:
        return float("nan")
    return (found.accuracy if measure == ACCURACY else found.balanced_accuracy).value


def _shares(name: str, parts: Sequence[Score]) -> tuple[tuple[float, int], ...]:
    """The metric of each part and its examples, where it is a share of them everywhere; else nothing."""
    if not is_share(name) or not all(part.examples > 0 and 0 <= part.metrics.get(name, -1) <= 1 for part in parts):
        return ()
    return tuple((part.metrics[name], part.examples) for part in parts)


def differences(run_id: str, table: Sequence[Score]) -> tuple[Difference, ...]:
    """For each metric, the federated model less the best of the models of single sites, on all test data."""
    together = {score.model: score for score in table if score.on_site == ALL_SITES}
    federated = together.pop(FEDERATED, None)
    if federated is None:
        return ()
    found = []
    for metric, value in federated.metrics.items():
        alone = {model: one.metrics[metric] for model, one in together.items() if metric in one.metrics}
        if alone:
            best = (min if is_loss(metric) else max)(alone, key=lambda model: alone[model])
            interval = _difference_interval(run_id, table, metric, best)
            verdict = _verdict(interval, is_loss(metric))
            found.append(Difference(metric, best, value - alone[best], interval, verdict))
    return tuple(found)


def _difference_interval(run_id: str, table: Sequence[Score], metric: str, best: str) -> Interval | None:
    ours, theirs = ([one for one in table if one.model == model] for model in (FEDERATED, best))
    how = {one.made_from.get(metric) for one in (*ours, *theirs) if one.on_site == ALL_SITES}
    seeds = statistics.seed_of(run_id, FEDERATED, ALL_SITES), statistics.seed_of(run_id, best, ALL_SITES)
    our_sites, their_sites = ([one for one in cells if one.on_site != ALL_SITES] for cells in (ours, theirs))
    if how == {FROM_COUNTS}:
        measure = metric.replace("_", "-")
        return statistics.difference_of_tables(tables_of(our_sites), tables_of(their_sites), measure, seeds)
    if how == {FROM_SHARE}:
        return statistics.difference_of_shares(_shares(metric, our_sites), _shares(metric, their_sites), seeds)
    return None


def _verdict(interval: Interval | None, less_is_better: bool) -> str:
    if interval is None:
        return "unknown"
    low, high = interval
    if low <= 0 <= high:
        return "not-separated"
    return "better" if (high < 0) == less_is_better else "worse"


def labels(table: Sequence[Score]) -> tuple[Labels, ...]:
    """Each site's test examples by true class. Every model has met the same ones; the first says it."""
    first = next((score.model for score in table), None)
    return tuple(
        Labels(score.on_site, tuple(one.examples for one in score.classes))
        for score in table
        if score.model == first and score.on_site != ALL_SITES and score.classes
    )


def weighted(parts: Sequence[tuple[Metrics, int]]) -> Metrics:
    """Each metric's mean weighted by examples, over the parts that have it; a plain mean where nobody counted."""
    names = dict.fromkeys(name for metrics, _ in parts for name in metrics)
    return {name: _weighted_mean([(metrics[name], n) for metrics, n in parts if name in metrics]) for name in names}


def _weighted_mean(values: Sequence[tuple[float, int]]) -> float:
    total = sum(weight for _, weight in values)
    if total == 0:
        return sum(value for value, _ in values) / len(values)
    return sum(value * weight for value, weight in values) / total
