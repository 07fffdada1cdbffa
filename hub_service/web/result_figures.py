"""What a run came to, for people: each model on each site's test data, as tables, sentences and a heat map.

Pure functions of the contract. The page and the notebook show the same heat map, by `Route.RUN_RESULT`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite, nan
from textwrap import wrap
from typing import Any

from federator.contract import ClassScore, Difference, Interval, Metrics, RunDetail, RunResult, Score

from hub_service.results.metrics import EXAMPLES, is_loss, main_metric
from hub_service.web.figures import ALL_SITES, FEDERATED, metric_title, without_markup

_GREY = "#868e96"
# From pale to dark, readable with black and with white ink; one hue, so that colour-blind people see the order.
_SCALE = ((0.0, "#e7f0f8"), (0.5, "#74add1"), (1.0, "#1f4e79"))
_ROW_HEIGHT, _FRAME_HEIGHT = 44, 90  # pixels
_NAME_WIDTH = 14  # letters of a line


@dataclass(frozen=True, slots=True)
class TableCell:
    value: float | None
    examples: int
    best: bool  # of its column
    interval: Interval | None = None


@dataclass(frozen=True, slots=True)
class TableRow:
    title: str
    federated: bool
    cells: tuple[TableCell, ...]


@dataclass(frozen=True, slots=True)
class ResultTable:
    """Each model on all test data together, which a narrow window must show first, and on each site's."""

    key: str  # the metric, as the app calls it
    metric: str  # its title
    columns: tuple[str, ...]
    rows: tuple[TableRow, ...]
    conclusion: str  # one sentence; "" while there is nothing to compare
    intervals: str  # what they were made from, or that there are none
    less_is_better: bool


@dataclass(frozen=True, slots=True)
class ClassRow:
    model: str
    number: int  # the class, as the app counts: 0, 1, ...
    score: ClassScore


@dataclass(frozen=True, slots=True)
class LabelRow:
    site: str
    shares: tuple[tuple[int, float], ...]  # of each class: examples, and their share


@dataclass(frozen=True, slots=True)
class ResultView:
    """Everything of a run's result: a table for each metric, the main one first."""

    tables: tuple[ResultTable, ...]
    classes: tuple[ClassRow, ...]  # of each model, on all test data
    labels: tuple[LabelRow, ...]


def result_view(run: RunDetail, titles: Mapping[str, str]) -> ResultView:
    """The run's tables; none while there are no scores."""
    return ResultView(
        tables=tuple(_table(run, titles, metric) for metric in metrics_of(run)),
        classes=tuple(
            ClassRow(_model_title(score.model, titles), number, one)
            for model in _models(run)
            for score in run.scores
            if (score.model, score.on_site) == (model, ALL_SITES)
            for number, one in enumerate(score.classes)
        ),
        labels=tuple(
            LabelRow(titles.get(one.site, one.site), tuple((n, n / max(1, sum(one.examples))) for n in one.examples))
            for one in run.labels
        ),
    )


def result_table(run: RunDetail, titles: Mapping[str, str], metric: str = "") -> ResultTable | None:
    """The table of one metric, the main one by default. None while there are no scores, or for an unknown metric."""
    chosen = metric or next(iter(metrics_of(run)), "")
    return _table(run, titles, chosen) if chosen in metrics_of(run) else None


def run_result(run: RunDetail, titles: Mapping[str, str], metric: str = "") -> RunResult:
    """The result by one metric: the main one by default, and for a metric that the run does not have."""
    metrics = metrics_of(run)
    chosen = metric if metric in metrics else next(iter(metrics), "")
    table = result_table(run, titles, chosen)
    if table is None:
        return RunResult("", ())
    return RunResult(chosen, metrics, table.conclusion, table.intervals, _heat_map(table))


def metrics_of(run: RunDetail) -> tuple[str, ...]:
    """All metrics of the scores, the main one first."""
    names = dict.fromkeys(name for score in run.scores for name in score.metrics if name != EXAMPLES)
    main = main_metric(score.metrics for score in run.scores)
    return tuple(sorted(names, key=lambda name: name != main))


def _models(run: RunDetail) -> list[str]:
    """The federated model, then each site's alone, in the order of the run's sites."""
    found = dict.fromkeys(score.model for score in run.scores)
    known = [FEDERATED, *run.sites]
    return [*(one for one in known if one in found or one == FEDERATED), *(one for one in found if one not in known)]


def _model_title(model: str, titles: Mapping[str, str]) -> str:
    return "Federated" if model == FEDERATED else f"{titles.get(model, model)} alone"


def _table(run: RunDetail, titles: Mapping[str, str], metric: str) -> ResultTable:
    by_place = {(score.model, score.on_site): score for score in run.scores}
    columns = [ALL_SITES, *run.sites]
    best = {column: _best(run.scores, column, metric) for column in columns}
    rows = tuple(
        TableRow(
            title=_model_title(model, titles),
            federated=model == FEDERATED,
            cells=tuple(_cell(by_place.get((model, column)), metric, best[column]) for column in columns),
        )
        for model in _models(run)
    )
    return ResultTable(
        key=metric,
        metric=metric_title(metric),
        columns=("All sites", *(titles.get(site, site) for site in run.sites)),
        rows=rows,
        conclusion=conclusion(run, metric, titles),
        intervals=_about_intervals(run.scores, metric),
        less_is_better=is_loss(metric),
    )


def _cell(score: Score | None, metric: str, best: float | None) -> TableCell:
    if score is None:
        return TableCell(None, 0, best=False)
    value = score.metrics[metric] if _has(score.metrics, metric) else None
    return TableCell(value, score.examples, value is not None and value == best, score.intervals.get(metric))


def _has(metrics: Metrics, metric: str) -> bool:
    """Whether there is a number to show: a diverging model reports none, or infinity."""
    return isfinite(metrics.get(metric, nan))


def _best(scores: Iterable[Score], column: str, metric: str) -> float | None:
    values = [score.metrics[metric] for score in scores if score.on_site == column and _has(score.metrics, metric)]
    return (min if is_loss(metric) else max)(values, default=None)


def _about_intervals(scores: Iterable[Score], metric: str) -> str:
    sources = {score.made_from[metric] for score in scores if metric in score.made_from}
    if not sources:
        return "No intervals: the app returns no counts for this metric from which to make them."
    made_from = "confusion counts" if sources == {"counts"} else "the share and the number of examples"
    return f"In brackets: 95 % intervals, by bootstrap from {made_from}."


# --- the concluding sentence


def conclusion(run: RunDetail, metric: str, titles: Mapping[str, str]) -> str:
    """The federated model against the best single site. What an interval does not separate is called no win."""
    on_all = {one.model: one for one in run.scores if one.on_site == ALL_SITES and _has(one.metrics, metric)}
    federated = on_all.pop(FEDERATED, None)
    if federated is None or not on_all:
        return ""
    best = (min if is_loss(metric) else max)(on_all, key=lambda site: on_all[site].metrics[metric])
    difference = next((one for one in run.differences if (one.metric, one.best_site) == (metric, best)), None)
    return (
        f"On the test data of all sites together, the federated model has {metric_title(metric).lower()}"
        f" {_with_interval(federated, metric)}; the best single site, {titles.get(best, best)}, has"
        f" {_with_interval(on_all[best], metric)} alone. {_verdict(difference)}"
    )


def _with_interval(score: Score, metric: str) -> str:
    interval = score.intervals.get(metric)
    return f"{score.metrics[metric]:.3f}{f' {interval_text(interval)}' if interval else ''}"


def interval_text(interval: Interval) -> str:
    return f"[{interval[0]:.3f}, {interval[1]:.3f}]"


def _verdict(difference: Difference | None) -> str:
    if difference is None or difference.interval is None:
        return "Whether they really differ is not known: there is no interval for this metric."
    text = f"{difference.difference:+.3f} {interval_text(difference.interval)}"
    return {
        "better": f"The federated model is better (difference {text}).",
        "worse": f"The single site is better (difference {text}).",
    }.get(difference.verdict, f"These test data do not tell the two apart (difference {text}).")


# --- the heat map


def _heat_map(table: ResultTable) -> dict[str, Any]:
    rows: Sequence[TableRow] = table.rows[::-1]  # Plotly begins at the bottom
    return {
        "data": [
            {
                "type": "heatmap",
                "x": [without_markup(column) for column in table.columns],
                "y": [without_markup(row.title) for row in rows],
                "z": [[cell.value for cell in row.cells] for row in rows],
                "text": [["" if cell.value is None else f"{cell.value:.3f}" for cell in row.cells] for row in rows],
                "customdata": [[_hover(cell) for cell in row.cells] for row in rows],
                "texttemplate": "%{text}",
                "hovertemplate": "%{y}<br>on %{x}: %{text}%{customdata[0]}<br>%{customdata[1]} examples<extra></extra>",
                "hoverongaps": False,
                "colorscale": [list(stop) for stop in _SCALE],
                "reversescale": table.less_is_better,
                "showscale": False,  # each cell has its number, and a telephone has no room
                "xgap": 2,
                "ygap": 2,
            }
        ],
        "layout": {
            "margin": {"l": 8, "r": 8, "t": 8, "b": 8},
            "height": _FRAME_HEIGHT + _ROW_HEIGHT * len(rows),
            "paper_bgcolor": "rgba(0,0,0,0)",
            "plot_bgcolor": "rgba(0,0,0,0)",
            "font": {"color": _GREY, "size": 13},
            "xaxis": {
                **_axis(table.columns),
                "tickangle": 0,
                "title": {"text": without_markup(f"{table.metric} on the test data of each"), "font": {"size": 12}},
            },
            "yaxis": _axis([row.title for row in rows]),
        },
    }


def _axis(names: Sequence[str]) -> dict[str, Any]:
    """An axis of these names, in lines that leave room for the cells."""
    lines = [[without_markup(line) for line in wrap(name, _NAME_WIDTH, break_long_words=False)] for name in names]
    return {
        "type": "category",
        "automargin": True,
        "tickvals": [without_markup(name) for name in names],
        "ticktext": ["<br>".join(one) for one in lines],
        "tickfont": {"size": 11},
    }


def _hover(cell: TableCell) -> tuple[str, int]:
    """Intervals are too wide for the cells of a telephone."""
    return (f" {interval_text(cell.interval)}" if cell.interval else "", cell.examples)
