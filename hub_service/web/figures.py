"""What is shown of a run: its curve as a Plotly figure and the table of results. Pure functions of the contract."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite, nan
from typing import Any

from federator.contract import Metrics, Participant, RunDetail, Score

FEDERATED = "federated"
ALL_SITES = ""

# What people want to see first, where an app reports several metrics.
_PREFERRED = ("accuracy", "balanced-accuracy", "balanced_accuracy", "auc", "f1", "dice")
_COUNTS = "num-examples"
# Sites differ by colour, by dash and by marker. The colours are told apart by colour-blind people (Okabe and Ito) and
# stand out on white and on the Hub's dark ground.
_COLOURS = ("#3a8fd0", "#009e73", "#cc79a7", "#b59b00", "#56b4e9", "#d55e00")
_DASHES = ("dot", "dash", "dashdot", "longdash")
_MARKERS = ("circle", "square", "diamond", "triangle-up", "x", "cross")
_AGGREGATE_COLOUR = "#f37524"
_TOGETHER_STYLE = {"line": {"color": _AGGREGATE_COLOUR, "width": 4}, "marker": {"size": 8}}
_GREY = "#868e96"
_GRID = "rgba(134, 142, 150, 0.25)"


def is_loss(metric: str) -> bool:
    """Whether less is better."""
    return any(part in metric.lower() for part in ("loss", "error", "mse", "mae"))


def main_metric(measured: Iterable[Metrics]) -> str | None:
    """The one metric to show, of all that an app reported."""
    names = dict.fromkeys(name for metrics in measured for name in metrics if name != _COUNTS)
    for name in _PREFERRED:
        if name in names:
            return name
    return min(names, key=is_loss, default=None)


def site_titles(participants: Iterable[Participant], names: Iterable[str]) -> dict[str, str]:
    """A title for each site's name in a run, which is a slug, or a slug and a dataset where a site has several."""
    titles = {one.site: one.site_title or one.site for one in participants if one.site}
    named = {}
    for name in names:
        slug, _, dataset = name.partition("/")
        title = titles.get(slug, slug)
        named[name] = f"{title}, {dataset}" if dataset else title
    return named


def run_figure(run: RunDetail, titles: Mapping[str, str]) -> dict[str, Any] | None:
    """Each site's curve and that of all together, round by round, on the sites' test data. None before the first value.

    The figure is plain data of Plotly's schema, for `Plotly.react` and for `plotly.graph_objects.Figure` alike.
    """
    metric = main_metric(one.evaluate for round_ in run.rounds for one in round_.sites)
    if metric is None:
        return None
    traces = [
        _trace(titles.get(site, site), _site_points(run, site, metric), _site_style(place))
        for place, site in enumerate(run.sites)
    ]
    together = [(one.number, one.evaluate[metric]) for one in run.rounds if _has(one.evaluate, metric)]
    traces.append(_trace("All sites", together, _TOGETHER_STYLE))
    return {"data": traces, "layout": _layout(metric, run.summary.rounds)}


def _site_points(run: RunDetail, site: str, metric: str) -> list[tuple[int, float]]:
    return [
        (round_.number, one.evaluate[metric])
        for round_ in run.rounds
        for one in round_.sites
        if one.site == site and _has(one.evaluate, metric)
    ]


def _has(metrics: Metrics, metric: str) -> bool:
    """Whether there is a number to show: a diverging model reports none, or infinity."""
    return isfinite(metrics.get(metric, nan))


def _site_style(place: int) -> dict[str, Any]:
    colour = _COLOURS[place % len(_COLOURS)]
    return {
        "line": {"color": colour, "width": 2, "dash": _DASHES[place % len(_DASHES)]},
        "marker": {"color": colour, "size": 7, "symbol": _MARKERS[place % len(_MARKERS)]},
    }


def _trace(name: str, points: Sequence[tuple[int, float]], style: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "type": "scatter",
        "name": _without_markup(name),
        "x": [number for number, _ in points],
        "y": [value for _, value in points],
        "mode": "lines+markers",
        "hovertemplate": "%{y:.4f}",
        **style,
    }


def _layout(metric: str, rounds: int) -> dict[str, Any]:
    return {
        "margin": {"l": 56, "r": 12, "t": 8, "b": 44},
        "height": 340,
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"color": _GREY, "size": 13},
        "hovermode": "x unified",
        "hoverlabel": {"bgcolor": "#343a40", "font": {"color": "#ffffff"}},
        "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
        "xaxis": {
            "title": {"text": "Round"},
            "range": [0.5, max(rounds, 2) + 0.5],
            "tickformat": "d",
            "dtick": max(1, rounds // 10),
            "gridcolor": _GRID,
            "zeroline": False,
        },
        "yaxis": {"title": {"text": metric_title(metric)}, "gridcolor": _GRID, "zeroline": False},
    }


def _without_markup(text: str) -> str:
    """Plotly reads a few HTML tags in names."""
    return text.replace("&", "&amp;").replace("<", "&lt;")


def metric_title(metric: str) -> str:
    text = metric.replace("_", " ").replace("-", " ")
    return text[:1].upper() + text[1:]


@dataclass(frozen=True, slots=True)
class TableCell:
    value: float | None
    examples: int
    best: bool  # of its column


@dataclass(frozen=True, slots=True)
class TableRow:
    title: str
    federated: bool
    cells: tuple[TableCell, ...]


@dataclass(frozen=True, slots=True)
class ResultTable:
    """Each model on all test data together, which a narrow window must show first, and on each site's."""

    metric: str
    columns: tuple[str, ...]
    rows: tuple[TableRow, ...]
    conclusion: str  # one sentence; "" while there is nothing to compare


def result_table(run: RunDetail, titles: Mapping[str, str]) -> ResultTable | None:
    """The table of a run's scores. None while there are none."""
    metric = main_metric(score.metrics for score in run.scores)
    if metric is None:
        return None
    by_place = {(score.model, score.on_site): score for score in run.scores}
    models = [FEDERATED, *(site for site in run.sites if any(score.model == site for score in run.scores))]
    columns = [ALL_SITES, *run.sites]
    best = {column: _best(run.scores, column, metric) for column in columns}
    rows = tuple(
        TableRow(
            title="Federated" if model == FEDERATED else f"{titles.get(model, model)} alone",
            federated=model == FEDERATED,
            cells=tuple(_cell(by_place.get((model, column)), metric, best[column]) for column in columns),
        )
        for model in models
    )
    return ResultTable(
        metric=metric_title(metric),
        columns=("All sites", *(titles.get(site, site) for site in run.sites)),
        rows=rows,
        conclusion=_conclusion(run.scores, metric, titles),
    )


def _cell(score: Score | None, metric: str, best: float | None) -> TableCell:
    value = score.metrics[metric] if score is not None and _has(score.metrics, metric) else None
    return TableCell(value, 0 if score is None else score.examples, value is not None and value == best)


def _best(scores: Iterable[Score], column: str, metric: str) -> float | None:
    values = [score.metrics[metric] for score in scores if score.on_site == column and _has(score.metrics, metric)]
    return (min if is_loss(metric) else max)(values, default=None)


def _conclusion(scores: Iterable[Score], metric: str, titles: Mapping[str, str]) -> str:
    on_all = {
        one.model: one.metrics[metric] for one in scores if one.on_site == ALL_SITES and _has(one.metrics, metric)
    }
    federated = on_all.pop(FEDERATED, None)
    if federated is None or not on_all:
        return ""
    best = (min if is_loss(metric) else max)(on_all, key=lambda site: on_all[site])
    return (
        f"On the test data of all sites together, the federated model has {metric_title(metric).lower()}"
        f" {federated:.3f}; the best single site, {titles.get(best, best)}, has {on_all[best]:.3f} alone."
    )
