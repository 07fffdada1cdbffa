"""What is shown of a run: its curve as a Plotly figure and the table of results. Pure functions of the contract."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import astuple
from math import isfinite, nan
from typing import Any

from federator.contract import MetricChoice, Metrics, Participant, Round, RunDetail, RunFigures, SiteRound

from hub_service.results.metrics import EXAMPLES, main_metric

FEDERATED = "federated"
ALL_SITES = ""

# Sites differ by colour, by dash and by marker. The colours are told apart by colour-blind people (Okabe and Ito) and
# stand out on white and on the Hub's dark ground.
_COLOURS = ("#3a8fd0", "#009e73", "#cc79a7", "#b59b00", "#56b4e9", "#d55e00")
_DASHES = ("dot", "dash", "dashdot", "longdash")
_MARKERS = ("circle", "square", "diamond", "triangle-up", "x", "cross")
_AGGREGATE_COLOUR = "#f37524"
_TOGETHER_STYLE = {"line": {"color": _AGGREGATE_COLOUR, "width": 4}, "marker": {"size": 8}}
_MB = 1e6  # bytes
# What the curves can show, in the order in which it is offered.
_GROUPS = {"evaluate": "On the sites' test data", "train": "In training"}
_WORK_CHOICES = (
    MetricChoice("work/seconds", "Seconds of work", "The sites' work"),
    MetricChoice("work/bytes-in", "MB sent to the site", "The sites' work"),
    MetricChoice("work/bytes-out", "MB sent by the site", "The sites' work"),
)
_GREY = "#868e96"
_GRID = "rgba(134, 142, 150, 0.25)"


def site_titles(participants: Iterable[Participant], names: Iterable[str]) -> dict[str, str]:
    """A title for each site's name in a run, which is a slug, or a slug and a dataset where a site has several."""
    titles = {one.site: one.site_title or one.site for one in participants if one.site}
    named = {}
    for name in names:
        slug, _, dataset = name.partition("/")
        title = titles.get(slug, slug)
        named[name] = f"{title}, {dataset}" if dataset else title
    return named


def run_figures(run: RunDetail, titles: Mapping[str, str], asked: str = "") -> RunFigures:
    """The curves of one metric, and what else there is to choose.

    Args:
        asked: a key, or the name of one of the app's metrics; "" for the main one, which is also shown for what the
            run does not have, or not yet.
    """
    choices = _choices(run)
    key = _chosen([one.key for one in choices], asked) or _main_key(run)
    if not key:
        return RunFigures("", choices)
    figure = _curves(run, titles, next(one for one in choices if one.key == key))
    figure["layout"]["meta"] = {"metric": key, "metrics": [astuple(one) for one in choices]}
    return RunFigures(key, choices, figure)


def _choices(run: RunDetail) -> tuple[MetricChoice, ...]:
    found = [
        MetricChoice(f"{kind}/{name}", metric_title(name), group)
        for kind, group in _GROUPS.items()
        for name in dict.fromkeys(name for one in _site_rounds(run) for name in _metrics(one, kind))
        if name != EXAMPLES
    ]
    return (*found, *_WORK_CHOICES) if run.rounds else ()


def _chosen(keys: Sequence[str], asked: str) -> str:
    """The key that was asked for by itself or by a metric's name; "" where there is none."""
    return next((key for key in (asked, *(f"{kind}/{asked}" for kind in _GROUPS)) if key in keys), "")


def _main_key(run: RunDetail) -> str:
    """What the sites' test data say; where the app does not evaluate, which a second round shows, how training goes."""
    for kind in _GROUPS if len(run.rounds) > 1 or run.summary.status.is_final else ("evaluate",):
        name = main_metric(_metrics(one, kind) for one in _site_rounds(run))
        if name is not None:
            return f"{kind}/{name}"
    return ""


def _site_rounds(run: RunDetail) -> Iterator[SiteRound]:
    return (one for round_ in run.rounds for one in round_.sites)


def _metrics(one: SiteRound | Round, kind: str) -> Metrics:
    """What a site, or all sites together, reported or did in a round."""
    if kind == "work":
        return {} if isinstance(one, Round) or one.error else _work(one)
    return one.evaluate if kind == "evaluate" else one.train


def _work(one: SiteRound) -> Metrics:
    return {"seconds": one.seconds, "bytes-in": one.bytes_in / _MB, "bytes-out": one.bytes_out / _MB}


def run_figure(run: RunDetail, titles: Mapping[str, str], asked: str = "") -> dict[str, Any] | None:
    """Each site's curve and that of all together, round by round. None before the first value.

    The figure is plain data of Plotly's schema, for `Plotly.react` and for `plotly.graph_objects.Figure` alike. What
    else could be chosen stands in `layout.meta`.
    """
    return run_figures(run, titles, asked).figure


def _curves(run: RunDetail, titles: Mapping[str, str], choice: MetricChoice) -> dict[str, Any]:
    kind, _, name = choice.key.partition("/")
    traces = [
        _trace(titles.get(site, site), _site_points(run, site, kind, name), _site_style(place))
        for place, site in enumerate(run.sites)
    ]
    together = [(one.number, _metrics(one, kind)[name]) for one in run.rounds if _has(_metrics(one, kind), name)]
    if kind != "work":
        traces.append(_trace("All sites", together, _TOGETHER_STYLE))
    title = f"{choice.title} in training" if kind == "train" else choice.title
    return {"data": traces, "layout": _layout(title, run.summary.rounds)}


def _site_points(run: RunDetail, site: str, kind: str, name: str) -> list[tuple[int, float]]:
    return [
        (round_.number, _metrics(one, kind)[name])
        for round_ in run.rounds
        for one in round_.sites
        if one.site == site and _has(_metrics(one, kind), name)
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
        "name": without_markup(name),
        "x": [number for number, _ in points],
        "y": [value for _, value in points],
        "mode": "lines+markers",
        "hovertemplate": "%{y:.4f}",
        **style,
    }


def _layout(title: str, rounds: int) -> dict[str, Any]:
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
        "yaxis": {"title": {"text": without_markup(title)}, "gridcolor": _GRID, "zeroline": False},
    }


def without_markup(text: str) -> str:
    """Plotly reads a few HTML tags in names."""
    return text.replace("&", "&amp;").replace("<", "&lt;")


def metric_title(metric: str) -> str:
    text = metric.replace("_", " ").replace("-", " ")
    return text[:1].upper() + text[1:]
