"""How a trial and a preview look: text for consoles, HTML for notebooks. Everything from outside is escaped.

The curve is SVG in the HTML: it needs no library in the notebook, and stays in the saved file.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

from federator.contract import ANY_LENGTH, AppPreview, DeclaredOutput, RunDetail, output_type
from federator.curve_svg import svg
from federator.display import html_table, main_metric, rounds_table, text_table
from federator.trial import TrialResult

# Told apart by colour-blind people (Okabe and Ito); the same as in the service's figures.
_COLOURS = ("#3a8fd0", "#009e73", "#cc79a7", "#b59b00", "#56b4e9", "#d55e00")
_TOGETHER = "#f37524"
_DASHES = ("dot", "dash", "dashdot", "longdash")
_GREY, _GRID = "#868e96", "rgba(134, 142, 150, 0.25)"
_ITEM_BYTES = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8, "bool": 1}
_MOST_ROWS = 40
OUTPUTS_HEAD = ("answer to", "record", "what", "type", "bytes")

Point = tuple[int, float]


# --- a trial


def trial_text(result: TrialResult) -> str:
    head, rows = rounds_table(result.detail)
    parts = [_title(result), text_table(head, rows) if rows else "", _outputs_text(result.outputs)]
    return "\n".join(part for part in parts if part)


def trial_html(result: TrialResult) -> str:
    head, rows = rounds_table(result.detail)
    return (
        f"<p><b>{escape(_title(result))}</b></p>{curve(result.detail)}"
        + (html_table(head, rows) if rows else "")
        + _outputs_html(result.outputs)
        + "<p>Next: <code>federator.publish(name=...)</code> declares these outputs; "
        "Flower clients in notebook servers let nothing else out.</p>"
    )


def progress_html(result: TrialResult) -> str:
    """While it goes."""
    summary = result.detail.summary
    now = f"round {max(summary.round, 1)} of {summary.rounds}"
    doing = f" &ndash; {escape(summary.phase)}" if summary.phase else ""
    return (
        f"<p><b>Trial</b>: <progress value='{_done(result.detail)}' max='{summary.rounds}'></progress> {now}{doing}</p>"
        f"{curve(result.detail)}"
    )


def _done(detail: RunDetail) -> int:
    """Rounds that all sites have finished: those before the last one seen."""
    return max(0, detail.summary.round - 1)


def _title(result: TrialResult) -> str:
    sent = max(result.bytes_by_message.values(), default=0)
    return (
        f"Trial with {len(result.detail.sites)} pretended sites: {len(result.detail.rounds)} rounds in "
        f"{result.seconds:.1f} s, at most {sent:,} bytes of arrays in an answer"
    )


def curve(detail: RunDetail) -> str:
    """Each site's curve and that of all together, as SVG; "" before the first value."""
    metric = main_metric(name for one in detail.rounds for name in (one.evaluate or one.train))
    if metric is None:
        return ""
    traces = [
        _trace(site, _site_points(detail, site, metric), _COLOURS[place % len(_COLOURS)], _DASHES[place % len(_DASHES)])
        for place, site in enumerate(detail.sites)
    ]
    together = ((one.number, one.evaluate.get(metric, one.train.get(metric, math.nan))) for one in detail.rounds)
    traces.append(_trace("all sites", together, _TOGETHER, ""))
    return svg({"data": traces, "layout": _layout(metric, detail.summary.rounds)})


def _site_points(detail: RunDetail, site: str, metric: str) -> Iterable[Point]:
    return (
        (round_.number, one.evaluate.get(metric, one.train.get(metric, math.nan)))
        for round_ in detail.rounds
        for one in round_.sites
        if one.site == site
    )


def _trace(name: str, points: Iterable[Point], colour: str, dash: str) -> dict[str, Any]:
    """A curve of Plotly's schema, as the service's own figures have them. A diverging model's points are left out."""
    shown = [(number, value) for number, value in points if math.isfinite(value)]
    return {
        "name": name,
        "x": [number for number, _ in shown],
        "y": [value for _, value in shown],
        "line": {"color": colour, "width": 2, **({"dash": dash} if dash else {})},
        "marker": {"color": colour, "size": 7, "symbol": "circle"},
    }


def _layout(metric: str, rounds: int) -> dict[str, Any]:
    return {
        "font": {"color": _GREY},
        "xaxis": {"title": {"text": "Round"}, "range": [0.5, max(rounds, 2) + 0.5]},
        "yaxis": {"title": {"text": metric}, "gridcolor": _GRID},
    }


# --- declared outputs


def output_rows(outputs: Iterable[DeclaredOutput]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = [
        (one.message, one.record, one.key, output_type(one), _bytes_of(one)) for one in outputs
    ]
    return rows if len(rows) <= _MOST_ROWS else [*rows[:_MOST_ROWS], (f"and {len(rows) - _MOST_ROWS} more", *[""] * 4)]


def _bytes_of(output: DeclaredOutput) -> str:
    if output.kind != "arrays":
        return ""
    if ANY_LENGTH in output.shape:
        return "grows"
    digits = "".join(character for character in output.dtype if character.isdigit())
    size = _ITEM_BYTES.get(output.dtype, int(digits or 8) // 8)
    return f"{math.prod(output.shape) * size:,}"


def _outputs_text(outputs: Sequence[DeclaredOutput]) -> str:
    return text_table(OUTPUTS_HEAD, output_rows(outputs)) if outputs else ""


def _outputs_html(outputs: Sequence[DeclaredOutput]) -> str:
    return html_table(OUTPUTS_HEAD, output_rows(outputs), caption="What would leave a site") if outputs else ""


# --- a preview


_NOT_DECLARED = "What leaves a site is not declared. federator.try_here() shows it, and publish() then declares it."


def preview_text(app: AppPreview) -> str:
    cells = "\n\n".join(f"--- cell {cell.number}\n{cell.source.rstrip()}" for cell in app.cells)
    return "\n".join([_app_title(app), *_facts(app), _outputs_text(app.outputs) or _NOT_DECLARED, cells]).rstrip()


def preview_html(app: AppPreview) -> str:
    facts = "".join(f"<li>{escape(fact)}</li>" for fact in _facts(app))
    cells = "".join(
        f"<details><summary>Cell {cell.number} leaves this notebook</summary><pre>{escape(cell.source)}</pre></details>"
        for cell in app.cells
    )
    outputs = _outputs_html(app.outputs) or f"<p>{escape(_NOT_DECLARED)}</p>"
    return f"<p><b>{escape(_app_title(app))}</b></p><ul>{facts}</ul>{cells}{outputs}"


def _app_title(app: AppPreview) -> str:
    return f"{app.title}: a Flower app of {len(app.files)} files, {app.size:,} bytes, hash {app.fab_hash[:12]}"


def _cells_word(cells: Sequence[object]) -> str:
    return "cell" if len(cells) == 1 else "cells"


def _facts(app: AppPreview) -> list[str]:
    leaving = ", ".join(str(cell.number) for cell in app.cells)
    private = ", ".join(map(str, app.private_cells))
    facts = [
        f"Leaves this notebook: {_cells_word(app.cells)} {leaving}. No output, no data." if leaving else "",
        f"Stays private: {_cells_word(app.private_cells)} {private}." if private else "",
        f"Needs: {', '.join(app.dependencies)}; imports {', '.join(app.imports) or 'nothing'}.",
        f"Configuration: {', '.join(f'{key} = {value}' for key, value in app.config.items())}.",
    ]
    facts += [_packages(one.site_title, one.known, one.lacking) for one in app.packages]
    return [fact for fact in (*facts, *(f"Look at this: {warning}" for warning in app.warnings)) if fact]


def _packages(title: str, known: bool, lacking: Sequence[str]) -> str:
    if not known:
        return f"{title}: what its image has is not known yet."
    if lacking:
        return f"{title}'s image has no {', '.join(lacking)}; ask its admin, or leave it out."
    return f"{title} has all that is needed."
