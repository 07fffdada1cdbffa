"""`Run.watch()`: a run seen live in a notebook, from the same events and with the same figure as the project's page.

`seen` says what is new, by the service's event stream; a `Screen` shows it. In a notebook that is one output for the
state, one for the curve and one for the logs, each brought up to date in place; elsewhere some lines for each change.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from html import escape
from typing import Any, Protocol

from IPython.core.getipython import get_ipython
from IPython.display import display

from federator import display as render
from federator import service_client as api
from federator.contract import RunDetail, SiteActivity, SiteState
from federator.curve_svg import svg
from federator.delay import Delay

PLOTLY = "application/vnd.plotly.v1+json"  # JupyterLab draws it by the extension that comes with the package plotly
_LINES = 12  # of each log
_LOG_PAUSE = 1.0  # seconds between two looks at the ServerApp's log
_KEPT_LOG = 64 * 1024  # characters
_COLOURS = {
    SiteState.COMPUTING: "#1aa6a6",
    SiteState.RECEIVING: "#3a8fd0",
    SiteState.SENDING: "#3a8fd0",
    SiteState.FAILED: "#d64545",
    SiteState.OFFLINE: "#d9a21b",
}
_QUIET = "#8a8a8a"
_TELLING = (SiteState.FAILED, SiteState.OFFLINE)  # states that the detail is the reason of
_BAR = "#f37524"

Figure = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Seen:
    """A run as it is now. `figure` is Plotly's JSON, None before the first value."""

    run: RunDetail
    figure: Figure | None = None


def seen(service: api.ServiceClient, run_id: str, metric: str, patience: float) -> Iterator[Seen]:
    """The run each time that something of it may have changed, until it has ended.

    Args:
        metric: of the curve; "" for the main one.
        patience: seconds that the service may be away.

    Raises:
        Unreachable: it was away for longer.
        NotFound: one may see the run no longer.
    """
    delay, away_since = Delay(random.random), None
    while True:
        try:
            now = _asked(service, run_id, metric)
            yield now
            if now.run.summary.status.is_final:
                return
            away_since = None
            delay.reset()
            with closing(_told(service, now, metric)) as stream:
                for told in stream:
                    if told.run.summary.status.is_final:
                        break
                    yield told
        except api.Unreachable:
            away_since = away_since or time.monotonic()
            if time.monotonic() - away_since > patience:
                raise
            time.sleep(delay.next())


def _asked(service: api.ServiceClient, run_id: str, metric: str) -> Seen:
    run = service.call(api.get_run(run_id))
    return Seen(run, service.call(api.get_run_figures(run_id, metric)).figure)


def _told(service: api.ServiceClient, now: Seen, metric: str) -> Generator[Seen]:
    """What one stream of events tells. It ends now and then, so that it is asked for anew."""
    run, figure = now.run, now.figure
    for kind, data in service.events(api.get_events(run.project_id, run.summary.id, metric)):
        if kind == "run":
            run = api.read_event(RunDetail, data)
        elif kind == "figure":
            figure = json.loads(data)
        elif kind == "gone":
            return
        yield Seen(run, figure)


class ServerLog:
    """The last lines of the ServerApp's log, read on from where it was."""

    def __init__(self, service: api.ServiceClient, run_id: str) -> None:
        self._service = service
        self._run_id = run_id
        self._text = ""
        self._end = 0
        self._asked_at = -_LOG_PAUSE

    def lines(self, count: int, *, fresh: bool = True) -> list[str]:
        """What is known of it; less where the service does not answer, or was just asked and need not be again."""
        if not fresh and time.monotonic() - self._asked_at < _LOG_PAUSE:
            return self._text.splitlines()[-count:]
        self._asked_at = time.monotonic()
        try:
            piece = self._service.call(api.get_run_log(self._run_id, self._end))
        except api.ServiceError:
            return self._text.splitlines()[-count:]
        before = self._text if piece.start == self._end else ""
        self._text, self._end = (before + piece.text)[-_KEPT_LOG:], piece.end
        return self._text.splitlines()[-count:]


Lines = Callable[[int], "list[str] | None"]  # the last lines of a log; None where there is no such log


class Screen(Protocol):
    """Shows a run. Called with everything that is known, each time that something may be new."""

    def show(self, now: Seen) -> None: ...

    def stopped(self) -> None:
        """The person has looked enough; the run goes on."""


def screen(server_log: ServerLog, site_log: Lines) -> Screen:
    """One that fits where this is run."""
    shell = get_ipython()
    return NotebookScreen(server_log, site_log) if hasattr(shell, "kernel") else TextScreen(print)


class TextScreen:
    """A line for each change, for terminals and scripts."""

    def __init__(self, write: Callable[[str], object]) -> None:
        self._write = write
        self._last = ""

    def show(self, now: Seen) -> None:
        text = run_line(now.run)
        if text != self._last:
            self._last = text
            self._write(text)

    def stopped(self) -> None:
        self._write("You no longer watch; the run goes on.")


class NotebookScreen:
    """Outputs of one cell, each replaced when it has changed."""

    def __init__(self, server_log: ServerLog, site_log: Lines) -> None:
        self._server_log = server_log
        self._site_log = site_log
        self._outputs: dict[str, tuple[Any, dict[str, Any]]] = {}

    def show(self, now: Seen) -> None:
        self._put("state", {"text/html": run_html(now.run), "text/plain": run_line(now.run)})
        self._put("curve", curve_bundle(now))
        server = self._server_log.lines(_LINES, fresh=now.run.summary.status.is_final)
        self._put("logs", logs_bundle(server, self._site_log(_LINES)))

    def stopped(self) -> None:
        self._put("end", {"text/plain": "You no longer watch; the run goes on."})

    def _put(self, name: str, bundle: dict[str, Any]) -> None:
        handle, shown = self._outputs.get(name, (None, None))
        if bundle == shown:
            return
        if handle is None:
            handle = display(bundle, raw=True, display_id=True)  # type: ignore[no-untyped-call]
        else:
            handle.update(bundle, raw=True)
        self._outputs[name] = handle, bundle


def curve_bundle(now: Seen) -> dict[str, Any]:
    """The curves: as SVG while they grow (see `curve_svg`), then as Plotly's own figure for what can draw it."""
    if now.figure is None:
        return {"text/html": "", "text/plain": ""}
    bundle: dict[str, Any] = {"text/html": svg(now.figure), "text/plain": ""}
    if now.run.summary.status.is_final:
        bundle[PLOTLY] = {**now.figure, "config": {"responsive": True, "displayModeBar": False}}
    return bundle


def logs_bundle(server: list[str] | None, site: list[str] | None) -> dict[str, Any]:
    logs = [("ServerApp", server), ("This site's client; these lines stay at the site", site)]
    shown = [(title, lines) for title, lines in logs if lines]
    return {
        "text/html": "".join(_log_html(title, lines) for title, lines in shown),
        "text/plain": "\n".join("\n".join((f"{title}:", *lines)) for title, lines in shown),
    }


def _log_html(title: str, lines: list[str]) -> str:
    text = escape("\n".join(lines))
    style = "max-height:16em; overflow:auto; white-space:pre-wrap; overflow-wrap:anywhere; font-size:85%; margin:0"
    return f"<div style='margin-top:.5em'><b>{escape(title)}</b><pre style='{style}'>{text}</pre></div>"


def run_line(run: RunDetail) -> str:
    """Where the run stands, what each site does and how long it may take yet, in one line for each."""
    words = [render.run_words(run.summary)]
    if run.seconds_left is not None:
        words.append(time_left(run.seconds_left))
    sites = [f"  {one.site}: {_state_words(one)}" for one in run.activity]
    return "\n".join([", ".join(words), *sites])


def _state_words(one: SiteActivity) -> str:
    words = f"{one.state.value} {one.task}".strip()
    if not one.detail:
        return words
    return f"{words}: {one.detail}" if one.state in _TELLING else f"{words}; failed before: {one.detail}"


def run_html(run: RunDetail) -> str:
    """The state of the run, its progress and what each site does. Everything from outside is escaped."""
    dot = f"<span style='color:{render.colour(run.summary.status)}'>&#9679;</span>"
    parts = [f"<p>{dot} <b>{escape(render.run_words(run.summary))}</b></p>"]
    if not run.summary.status.is_final:
        parts.append(_bar_html(run))
    if run.activity:
        parts.append(_activity_html(run))
    elif run.bytes_in:
        parts.append(f"<p>{size(run.bytes_in)} to the sites, {size(run.bytes_out)} from them</p>")
    return "".join(parts)


def _bar_html(run: RunDetail) -> str:
    done = min(100, round(100 * run.summary.round / run.summary.rounds)) if run.summary.rounds else 0
    left = f"<div>{escape(time_left(run.seconds_left))}</div>" if run.seconds_left is not None else ""
    track = "height:6px; border-radius:3px; background:rgba(134,142,150,.3); max-width:40em; margin:.25em 0"
    fill = f"height:6px; border-radius:3px; background:{_BAR}; width:{done}%"
    return (
        f"<div role='progressbar' aria-label='Rounds' aria-valuenow='{run.summary.round}' aria-valuemin='0'"
        f" aria-valuemax='{run.summary.rounds}' style='{track}'><div style='{fill}'></div></div>"
        f"{left}"
    )


def _activity_html(run: RunDetail) -> str:
    left = "text-align:left"
    head = "".join(f"<th style='{left}'>{name}</th>" for name in ("site", "now", "to the site", "from the site"))
    rows = "".join(
        f"<tr><td style='{left}'>{escape(one.site)}</td>"
        f"<td style='{left}'><span style='color:{_COLOURS.get(one.state, _QUIET)}'>&#9679;</span>"
        f" {escape(_state_words(one))}</td>"
        f"<td style='{left}'>{size(one.bytes_in)}</td><td style='{left}'>{size(one.bytes_out)}</td></tr>"
        for one in run.activity
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"


def time_left(seconds: float) -> str:
    """An estimate for people: no more exact than it is."""
    if seconds < 10:
        return "a few seconds left"
    if seconds < 90:
        return f"about {round(seconds, -1):.0f} s left"
    minutes = round(seconds / 60)
    return f"about {minutes} min left" if minutes < 90 else f"about {minutes // 60} h {minutes % 60} min left"


def size(count: int) -> str:
    """Bytes, for people."""
    for limit, unit in ((1 << 30, "GB"), (1 << 20, "MB"), (1 << 10, "KB")):
        if count >= limit:
            return f"{count / limit:.1f} {unit}"
    return f"{count} bytes"
