"""What JupyterLab's status bar shows of this server's Flower clients: asked of the service, answered as JSON.

`labextension/static/remoteEntry.js` asks `<base URL>/federator/status` while its page is looked at.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from http import HTTPStatus
from urllib.parse import quote

from jupyter_server.base.handlers import APIHandler
from tornado.web import HTTPError, authenticated

from federator import service_client as api
from federator.contract import SERVICE_PREFIX, Assignment, ClientState, ProjectDetail

STATUS_PATH = "/federator/status"


@dataclass(frozen=True, slots=True)
class ClientStatus:
    """One client, in words for a line."""

    project: str
    state: ClientState
    detail: str  # such as "round 3 of 10"; "" where the state says it all
    url: str  # the project's page on the Hub


@dataclass(frozen=True, slots=True)
class LabStatus:
    projects_url: str
    clients: tuple[ClientStatus, ...]


def hub_page(*segments: str) -> str:
    """The address of one of the service's pages, for a browser that shows this server.

    The Hub is at the server's own host, unless it gives each server a host of its own: then it says JUPYTERHUB_HOST.
    """
    path = "/".join(quote(segment, safe="") for segment in segments)
    return f"{os.environ.get('JUPYTERHUB_HOST', '')}{SERVICE_PREFIX}{path}"


async def lab_status(service: api.AsyncServiceClient, assignments: tuple[Assignment, ...]) -> LabStatus:
    """Ask the service what the clients do: each tells it in a process of its own, past this server."""
    clients = await asyncio.gather(*(_client_status(service, one) for one in assignments))
    return LabStatus(hub_page(), tuple(clients))


async def _client_status(service: api.AsyncServiceClient, assignment: Assignment) -> ClientStatus:
    url = hub_page("projects", assignment.project_id)
    try:
        project = await service.call(api.get_project(assignment.project_id))
    except api.ServiceError:
        return ClientStatus(assignment.project_name, ClientState.OFFLINE, "the Hub does not answer", url)
    mine = next((one for one in project.participants if one.participation_id == assignment.participation_id), None)
    state = ClientState.OFFLINE if mine is None else mine.client
    return ClientStatus(project.name, state, _detail(state, project), url)


def _detail(state: ClientState, project: ProjectDetail) -> str:
    run = project.runs[0] if project.runs else None
    return run.phase if state is ClientState.WORKING and run is not None and not run.status.is_final else ""


class StatusHandler(APIHandler):
    """Answers JupyterLab of this server; 404 in a server that no federation has started."""

    def initialize(self, status: Callable[[], Awaitable[LabStatus] | None]) -> None:
        self._status = status

    @authenticated
    async def get(self) -> None:
        asked = self._status()
        if asked is None:
            raise HTTPError(HTTPStatus.NOT_FOUND, "No Hub with the federation service has started this server.")
        self.finish(asdict(await asked))
