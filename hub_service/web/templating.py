"""The Jinja environment of the pages. Everything that is put into a page is escaped."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

from federator.contract import ApprovalState, ClientState, MemberState, RunStatus, SiteState
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from hub_service.apps.lines import visible
from hub_service.web.highlight import plain_lines, python_lines
from hub_service.web.steps import StepState, current

_TEMPLATES = Path(__file__).parent / "templates"

# Words and Bootstrap colours of every state, so that none is told by colour alone.
BADGES: Mapping[str, tuple[str, str]] = {
    f"member-{MemberState.INVITED}": ("invited", "info"),
    f"member-{MemberState.JOINED}": ("joined", "success"),
    f"member-{MemberState.DECLINED}": ("declined", "secondary"),
    f"member-{MemberState.LEFT}": ("left", "secondary"),
    f"member-{MemberState.REMOVED}": ("removed", "secondary"),
    f"approval-{ApprovalState.WAITING}": ("waits for approval", "warning"),
    f"approval-{ApprovalState.APPROVED_ONCE}": ("one of two has approved", "info"),
    f"approval-{ApprovalState.APPROVED}": ("approved", "success"),
    f"approval-{ApprovalState.LAPSED}": ("approved for other members", "warning"),
    f"approval-{ApprovalState.REJECTED}": ("rejected", "danger"),
    f"approval-{ApprovalState.REVOKED}": ("approval withdrawn", "danger"),
    f"approval-{ApprovalState.EXPIRED}": ("approval expired", "warning"),
    f"client-{ClientState.OFFLINE}": ("client offline", "secondary"),
    f"client-{ClientState.STARTING}": ("client starting", "info"),
    f"client-{ClientState.READY}": ("client ready", "success"),
    f"client-{ClientState.WORKING}": ("client working", "primary"),
    f"client-{ClientState.FAILED}": ("client failed", "danger"),
    f"client-{ClientState.PAUSED}": ("client shut down", "secondary"),
    f"site-{SiteState.WAITING}": ("waiting", "secondary"),
    f"site-{SiteState.RECEIVING}": ("receiving", "info"),
    f"site-{SiteState.COMPUTING}": ("computing", "primary"),
    f"site-{SiteState.SENDING}": ("sending", "info"),
    f"site-{SiteState.FAILED}": ("failed", "danger"),
    f"site-{SiteState.OFFLINE}": ("offline", "warning"),
    "part-works": ("works", "success"),
    "part-fails": ("fails", "danger"),
    f"run-{RunStatus.STARTING}": ("starting", "info"),
    f"run-{RunStatus.WAITING}": ("waiting for sites", "info"),
    f"run-{RunStatus.RUNNING}": ("running", "primary"),
    f"run-{RunStatus.FINISHED}": ("finished", "success"),
    f"run-{RunStatus.FAILED}": ("failed", "danger"),
    f"run-{RunStatus.STOPPED}": ("stopped", "secondary"),
}

# The same for steps: a mark, which a screen reader does not read, and a word, which it does.
STEP_MARKS: Mapping[str, str] = {
    StepState.DONE: "✓",
    StepState.NEXT: "→",
    StepState.WAITING: "…",
    StepState.FAILED: "!",
    StepState.LATER: "",
}
STEP_WORDS: Mapping[str, str] = {
    StepState.DONE: "done",
    StepState.NEXT: "your turn",
    StepState.WAITING: "in progress",
    StepState.FAILED: "needs attention",
    StepState.LATER: "later",
}


class Templates:
    """Renders templates by name, and knows the addresses of pages below the prefix."""

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self._environment = Environment(
            loader=FileSystemLoader(_TEMPLATES),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._environment.globals.update(url=self.url, badges=BADGES, step_marks=STEP_MARKS, step_words=STEP_WORDS)
        self._environment.globals.update(current_step=current)
        self._environment.filters.update(when=when, size=size, percent=percent, time_left=time_left)
        self._environment.filters.update(duration=duration, capitalize_first=capitalize_first)
        self._environment.filters.update(python_lines=python_lines, plain_lines=plain_lines, visible=visible)

    def url(self, *parts: str) -> str:
        """An address below the prefix. Each part is one segment, whatever is in it."""
        return self._prefix + "/".join(quote(part, safe="") for part in parts)

    def render(self, name: str, values: Mapping[str, Any]) -> str:
        return self._environment.get_template(name).render(values)


def when(text: str) -> Markup:
    """A time of the contract, for people: in UTC, until `static/page.js` says it in the reader's own zone."""
    if not text:
        return Markup()
    at = datetime.fromisoformat(text)
    return Markup('<time datetime="{}">{:%-d %b %Y, %H:%M} UTC</time>').format(at.isoformat(timespec="seconds"), at)


def size(count: int) -> str:
    """Bytes, for people."""
    for limit, unit in ((1 << 30, "GB"), (1 << 20, "MB"), (1 << 10, "KB")):
        if count >= limit:
            return f"{count / limit:.1f} {unit}"
    return f"{count} bytes"


def percent(part: int, whole: int) -> int:
    return round(100 * part / whole) if whole else 0


def duration(seconds: float) -> str:
    """For people: two units at most."""
    minutes = int(seconds // 60)
    if minutes < 1:
        return f"{max(0, int(seconds))} s"
    if minutes < 60:
        return f"{minutes} min"
    hours = minutes // 60
    return f"{hours} h {minutes % 60} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"


def capitalize_first(text: str) -> str:
    """As a sentence begins; names in it stay as they are."""
    return text[:1].upper() + text[1:]


def time_left(seconds: float) -> str:
    """An estimate for people: no more exact than it is."""
    if seconds < 10:
        return "a few seconds left"
    if seconds < 90:
        return f"about {round(seconds, -1):.0f} s left"
    minutes = round(seconds / 60)
    return f"about {minutes} min left" if minutes < 90 else f"about {minutes // 60} h {minutes % 60} min left"
