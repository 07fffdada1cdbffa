"""Server-sent events of a project: for its page the sections that changed, for scripts the project and its run.

A stream waits for one topic, and looks again at each change and at each heartbeat. Every now and then it asks the Hub
whether the login still counts. It ends when the viewer may no longer look, or after a while.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterable
from typing import ClassVar

from federator.contract import ProjectDetail, Route, RunDetail
from tornado.iostream import StreamClosedError

from hub_service.domain.errors import DatabaseUnavailable, FederationError
from hub_service.web.base import ApiHandler
from hub_service.web.hub_address import hub_address
from hub_service.web.pages.view import ProjectView, project_view, render_sections
from hub_service.web.schema import to_json

HEARTBEAT_S = 15.0
LONGEST_STREAM_S = 600.0
LOGIN_LOOK_S = 1.5  # with the Hub's own time, what was revoked there ends a stream within two seconds
# Between two looks, so that a burst of changes is one look. At the longest, a round is still seen within a second.
SHORTEST_PAUSE_S, LONGEST_PAUSE_S = 0.2, 0.6
_SHARE = 0.25  # of the service's time that all looks together may take, where the pauses permit


Event = tuple[str, str, str]  # what it is, which one of these, its data
GONE: Event = ("gone", "", "{}")  # the viewer may not look any more


def pause_s(looked_s: float, followers: int) -> float:
    """How long a follower waits until it looks again: with many, or dear looks, longer, so that pages stay quick."""
    return min(max(SHORTEST_PAUSE_S, looked_s * followers / _SHARE), LONGEST_PAUSE_S)


class EventStream(ApiHandler):
    """Asks `changes` for the next change, looks, and sends what is new. Subclasses say what there is to send."""

    goes_first = False
    heartbeat_s: ClassVar[float] = HEARTBEAT_S
    login_look_s: ClassVar[float] = LOGIN_LOOK_S

    _waiting: asyncio.Task[int] | None = None

    async def follow(self, project_id: str, shown: Callable[[ProjectView], Iterable[Event]]) -> None:
        """Answer with the events of a project.

        Args:
            shown: everything that the viewer could be shown now; what was sent before is left out.
        """
        chosen = self.get_query_argument("run", ""), self.get_query_argument("metric", "")
        topic = self.parts.coordinator.watch_topic(self.principal, project_id)
        self.set_header("Content-Type", "text/event-stream")
        self.set_header("X-Accel-Buffering", "no")
        self._sent: dict[str, str] = {}
        try:
            with self.parts.changes.followed():
                await self._send_changes(topic, project_id, chosen, shown)
        except StreamClosedError:
            return  # the viewer has gone

    async def _send_changes(
        self, topic: str, project_id: str, chosen: tuple[str, str], shown: Callable[[ProjectView], Iterable[Event]]
    ) -> None:
        loop = asyncio.get_running_loop()
        ends = loop.time() + LONGEST_STREAM_S
        self._known_at = loop.time()
        while loop.time() < ends:
            await self.parts.turns.wait()
            seen = self.parts.changes.revision(topic)
            begun = loop.time()
            try:
                events = list(shown(project_view(self.parts.coordinator, self.principal, project_id, *chosen)))
            except FederationError as error:
                if not self._sent:
                    raise
                if not isinstance(error, DatabaseUnavailable):
                    await self._send([GONE])
                    return
                events = []  # what is shown stands until the next look
            looked_s = loop.time() - begun
            await self._send(events)
            if not await self._changed(topic, seen):
                return
            await asyncio.sleep(pause_s(looked_s, self.parts.changes.followers))
            if not await self._login_counts():
                return

    async def _send(self, events: Iterable[Event]) -> None:
        """Send what differs from what was sent, or a comment that keeps the connection open."""
        written = False
        for kind, name, data in events:
            if self._sent.get(f"{kind} {name}") != data:
                self._sent[f"{kind} {name}"] = data
                self.write(f"event: {kind}\ndata: {data}\n\n")
                written = True
        if not written:
            self.write(": still here\n\n")
        await self.flush()

    async def _changed(self, topic: str, seen: int) -> bool:
        """Wait for a change or a heartbeat. False if the viewer has gone, or may not look any more."""
        loop = asyncio.get_running_loop()
        beats_at = loop.time() + self.heartbeat_s
        while self.parts.changes.revision(topic) == seen and (left_s := beats_at - loop.time()) > 0:
            wait_s = min(left_s, max(0.0, self._known_at + self.login_look_s - loop.time()))
            self._waiting = asyncio.ensure_future(self.parts.changes.wait(topic, seen, wait_s))
            done, _ = await asyncio.wait({self._waiting})
            if any(task.cancelled() for task in done) or not await self._login_counts():
                return False
            if self.parts.changes.closed:
                break
        return True

    async def _login_counts(self) -> bool:
        """Ask the Hub, where that was long ago. False if the login counts no more, of which the viewer is told."""
        loop = asyncio.get_running_loop()
        if loop.time() - self._known_at < self.login_look_s:
            return True
        known = await self.is_still_known()
        self._known_at = loop.time()
        if not known:
            await self._send([GONE])
        return known

    def on_connection_close(self) -> None:
        """Called by tornado when the viewer goes."""
        if self._waiting is not None:
            self._waiting.cancel()


class ApiEvents(EventStream):
    """`project`: a ProjectDetail; `run`: the newest RunDetail, or that of `run=`; `figure`: its curve for Plotly."""

    async def get(self, project_id: str) -> None:
        await self.follow(project_id, self._shown)

    def _shown(self, view: ProjectView) -> Iterable[Event]:
        yield "project", "", to_json(ProjectDetail, view.project).decode()
        if view.run is not None:
            yield "run", "", to_json(RunDetail, view.run).decode()
        if view.figure is not None:
            yield "figure", "", json.dumps(view.figure)


class PageEvents(EventStream):
    """`section`: HTML for one part of the page; `figure`: the curve for Plotly."""

    async def get(self, project_id: str) -> None:
        await self.follow(project_id, self._shown)

    def _shown(self, view: ProjectView) -> Iterable[Event]:
        sections = render_sections(
            self.parts.templates,
            view,
            hub=self.hub_auth.hub_prefix,
            xsrf=self.xsrf_token.decode("ascii"),
            address=hub_address(self.request),
            kept={},
        )
        for name, section in sections.items():
            yield "section", name, json.dumps({"id": name, "html": section.html, "digest": section.digest})
        if view.figure is not None:
            yield "figure", "", json.dumps(view.figure)


API_ROUTES = ((Route.EVENTS, ApiEvents),)
PAGE_ROUTES = ((r"projects/(?P<project_id>[^/]+)/events", PageEvents),)
