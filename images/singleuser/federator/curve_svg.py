"""A run's curves as SVG, drawn from the same Plotly figure that the project's page shows.

JupyterLab's Plotly renderer draws an output once and never again (jupyterlab-plotly 6.9: `renderModel` returns where it
has drawn). So while a run goes the curves are SVG, which every front end replaces without a flicker.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from html import escape
from typing import Any

Figure = Mapping[str, Any]

WIDTH, HEIGHT = 720, 340
_LEFT, _RIGHT, _BOTTOM = 64, 14, 44
_LEGEND_TOP, _LEGEND_LINE, _LETTER = 16, 20, 7.2  # a letter's width, more or less
_TICKS = 5
_DASHES = {"dot": "2 4", "dash": "9 5", "dashdot": "9 4 2 4", "longdash": "14 6"}
_FALLBACK = "#868e96"


def svg(figure: Figure) -> str:
    """The curves as one `<svg>` element. Names and titles are escaped."""
    traces = [trace for trace in figure["data"] if trace["x"]]
    layout = figure["layout"]
    legend, top = _legend(traces)
    xs = _Axis(layout["xaxis"]["range"], _LEFT, WIDTH - _RIGHT)
    ys = _Axis(_padded([y for trace in traces for y in trace["y"]]), HEIGHT - _BOTTOM, top)
    colour, grid = layout["font"]["color"], layout["yaxis"]["gridcolor"]
    parts = [
        *_grid(xs, ys, grid),
        _label(WIDTH / 2, HEIGHT - 8, layout["xaxis"]["title"]["text"], "middle"),
        f'<g transform="translate(14 {(top + HEIGHT - _BOTTOM) / 2:.0f}) rotate(-90)">'
        + _label(0, 0, layout["yaxis"]["title"]["text"], "middle")
        + "</g>",
        *legend,
        *(_curve(trace, xs, ys) for trace in traces),
    ]
    title = escape(_plain(layout["yaxis"]["title"]["text"]))
    return (
        f'<svg role="img" aria-label="{title} of each site, round by round" viewBox="0 0 {WIDTH} {HEIGHT}"'
        f' style="width:100%;max-width:{WIDTH}px;height:auto" font-family="sans-serif" font-size="13"'
        f' fill="{escape(colour)}">{"".join(parts)}</svg>'
    )


class _Axis:
    """From values to places on the screen."""

    def __init__(self, ends: Sequence[float], start: float, end: float) -> None:
        self.low, self.high = map(float, ends)
        self._start = start
        self._scale = (end - start) / (self.high - self.low)

    def __call__(self, value: float) -> float:
        return round(self._start + (value - self.low) * self._scale, 1)

    def ticks(self, *, whole: bool = False) -> Iterator[float]:
        """Round numbers within the axis."""
        step = _round_step((self.high - self.low) / _TICKS)
        step = max(1.0, round(step)) if whole else step
        number = math.ceil(self.low / step)
        while number * step <= self.high:
            yield number * step
            number += 1


def _round_step(rough: float) -> float:
    """The next of 1, 2 or 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(rough))
    return next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * 0.999)


def _padded(values: Sequence[float]) -> tuple[float, float]:
    """A range with some room around the values."""
    low, high = min(values, default=0.0), max(values, default=1.0)
    room = (high - low) * 0.08 or abs(high) * 0.05 or 0.5
    return low - room, high + room


def _grid(xs: _Axis, ys: _Axis, colour: str) -> Iterator[str]:
    bottom, top = ys(ys.low), ys(ys.high)
    left, right = xs(xs.low), xs(xs.high)
    for tick in ys.ticks():
        yield f'<path d="M{left} {ys(tick)}H{right}" stroke="{escape(colour)}"/>'
        yield _label(left - 6, ys(tick) + 4, f"{tick:.4g}", "end")
    for tick in xs.ticks(whole=True):
        yield f'<path d="M{xs(tick)} {bottom}V{top}" stroke="{escape(colour)}"/>'
        yield _label(xs(tick), bottom + 18, f"{tick:.0f}", "middle")


def _legend(traces: Sequence[Figure]) -> tuple[list[str], int]:
    """The names above the curves, in as many lines as they need, and where the curves may begin."""
    parts, x, y = [], float(_LEFT), _LEGEND_TOP
    for trace in traces:
        width = 40 + _LETTER * len(_plain(trace["name"]))
        if x > _LEFT and x + width > WIDTH - _RIGHT:
            x, y = _LEFT, y + _LEGEND_LINE
        parts += [_line(trace, f"M{x} {y - 4}h22"), _mark(trace, x + 11, y - 4), _label(x + 28, y, trace["name"])]
        x += width + 10
    return parts, y + 14


def _curve(trace: Figure, xs: _Axis, ys: _Axis) -> str:
    points = [(xs(x), ys(y)) for x, y in zip(trace["x"], trace["y"], strict=True)]
    path = "M" + "L".join(f"{x} {y}" for x, y in points)
    return _line(trace, path) + "".join(_mark(trace, x, y) for x, y in points)


def _line(trace: Figure, path: str) -> str:
    line = trace.get("line", {})
    dash = _DASHES.get(line.get("dash", ""), "")
    dashed = f' stroke-dasharray="{dash}"' if dash else ""
    colour, width = escape(line.get("color", _FALLBACK)), line.get("width", 2)
    return f'<path d="{path}" fill="none" stroke="{colour}" stroke-width="{width}" stroke-linejoin="round"{dashed}/>'


_MARKS: Mapping[str, Callable[[float, float, float], str]] = {
    "circle": lambda x, y, r: f"M{x - r:.1f} {y}a{r} {r} 0 1 0 {2 * r} 0a{r} {r} 0 1 0 {-2 * r} 0",
    "square": lambda x, y, r: f"M{x - r:.1f} {y - r:.1f}h{2 * r}v{2 * r}h{-2 * r}z",
    "diamond": lambda x, y, r: f"M{x} {y - 1.3 * r:.1f}l{1.3 * r:.1f} {1.3 * r:.1f}l{-1.3 * r:.1f} {1.3 * r:.1f}"
    f"l{-1.3 * r:.1f} {-1.3 * r:.1f}z",
    "triangle-up": lambda x, y, r: f"M{x} {y - 1.2 * r:.1f}l{1.2 * r:.1f} {2.2 * r:.1f}h{-2.4 * r:.1f}z",
    "x": lambda x, y, r: f"M{x - r:.1f} {y - r:.1f}l{2 * r} {2 * r}m0 {-2 * r}l{-2 * r} {2 * r}",
    "cross": lambda x, y, r: f"M{x - r:.1f} {y}h{2 * r}M{x} {y - r:.1f}v{2 * r}",
}


def _mark(trace: Figure, x: float, y: float) -> str:
    marker = trace.get("marker", {})
    colour = escape(marker.get("color") or trace.get("line", {}).get("color", _FALLBACK))
    shape = _MARKS[marker.get("symbol", "circle")](x, y, marker.get("size", 7) / 2)
    return f'<path d="{shape}" fill="{colour}" stroke="{colour}"/>'


def _label(x: float, y: float, text: str, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(_plain(text))}</text>'


def _plain(text: str) -> str:
    """A name as it was before it was made safe for Plotly, which reads a few tags."""
    return text.replace("&lt;", "<").replace("&amp;", "&")
