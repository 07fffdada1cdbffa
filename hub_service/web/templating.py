"""The Jinja environment of the pages. Everything that is put into a page is escaped."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

from federator.contract import ApprovalState, ClientState, MemberState, RunStatus
from jinja2 import Environment, FileSystemLoader, StrictUndefined

_TEMPLATES = Path(__file__).parent / "templates"

# Words and Bootstrap colours of every state, so that none is told by colour alone.
BADGES: Mapping[str, tuple[str, str]] = {
    f"member-{MemberState.INVITED}": ("invited", "info"),
    f"member-{MemberState.JOINED}": ("joined", "success"),
    f"member-{MemberState.DECLINED}": ("declined", "secondary"),
    f"member-{MemberState.LEFT}": ("left", "secondary"),
    f"member-{MemberState.REMOVED}": ("removed", "secondary"),
    f"approval-{ApprovalState.WAITING}": ("waits for approval", "warning"),
    f"approval-{ApprovalState.APPROVED}": ("approved", "success"),
    f"approval-{ApprovalState.REJECTED}": ("rejected", "danger"),
    f"approval-{ApprovalState.REVOKED}": ("approval withdrawn", "danger"),
    f"approval-{ApprovalState.EXPIRED}": ("approval expired", "warning"),
    f"client-{ClientState.OFFLINE}": ("client offline", "secondary"),
    f"client-{ClientState.STARTING}": ("client starting", "info"),
    f"client-{ClientState.READY}": ("client ready", "success"),
    f"client-{ClientState.WORKING}": ("client working", "primary"),
    f"client-{ClientState.FAILED}": ("client failed", "danger"),
    f"client-{ClientState.PAUSED}": ("client shut down", "secondary"),
    f"run-{RunStatus.STARTING}": ("starting", "info"),
    f"run-{RunStatus.WAITING}": ("waiting for sites", "info"),
    f"run-{RunStatus.RUNNING}": ("running", "primary"),
    f"run-{RunStatus.FINISHED}": ("finished", "success"),
    f"run-{RunStatus.FAILED}": ("failed", "danger"),
    f"run-{RunStatus.STOPPED}": ("stopped", "secondary"),
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
        self._environment.globals.update(url=self.url, badges=BADGES)
        self._environment.filters.update(when=when, size=size, percent=percent)

    def url(self, *parts: str) -> str:
        """An address below the prefix. Each part is one segment, whatever is in it."""
        return self._prefix + "/".join(quote(part, safe="") for part in parts)

    def render(self, name: str, values: Mapping[str, Any]) -> str:
        return self._environment.get_template(name).render(values)


def when(text: str) -> str:
    """A time of the contract, for people."""
    return f"{datetime.fromisoformat(text):%-d %b %Y, %H:%M} UTC" if text else ""


def size(count: int) -> str:
    """Bytes, for people."""
    for limit, unit in ((1 << 30, "GB"), (1 << 20, "MB"), (1 << 10, "KB")):
        if count >= limit:
            return f"{count / limit:.1f} {unit}"
    return f"{count} bytes"


def percent(part: int, whole: int) -> int:
    return round(100 * part / whole) if whole else 0
