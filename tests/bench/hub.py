"""The product as it is used: a real Hub with its proxy and the service, embedded sites, people with browsers."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import httpx
import psutil
from federator.ports import free_port

from examples.demo.browser import Browser, StepError
from examples.demo.deployment import CLIENT_ID, Ports
from examples.demo.people import Institution, Person, Researcher, Steward
from examples.demo.stack import ROOT, Stack, running_stack
from tests.bench.nginx import running_nginx
from tests.bench.processes import descendants
from tests.bench.workload import Workload

DATASET = "records"
READY_PATIENCE_S = 120.0
RUN_PATIENCE_S = 400.0
LOGS_ALL = ("sh", "-c", 'exec "$@" --log-level debug', "sh")  # behind the level that JupyterHub gives
LEAVE_PATIENCE_S = 30.0
OVER = ("finished", "failed", "stopped")


class RunFailed(Exception):
    """A run did not finish. The text is for a person."""


@dataclass
class Hub:
    """A running Hub with researchers, one a site, and one person who is data steward of all sites.

    Attributes:
        origin: what people and nodes dial: the Hub's proxy, or nginx in front of it.
        people: logged in, in the order of the sites.
        steward: logged in.
    """

    stack: Stack
    origin: str
    people: Sequence[Browser]
    steward: Browser

    @property
    def state(self) -> Path:
        """The service's folder."""
        return self.stack.folder / "hub" / "federation"

    @cached_property
    def service(self) -> int:
        """Id of the service's process; the aggregators are its children."""
        hub = psutil.Process(self.stack.processes[-1].popen.pid)
        return next(int(one.pid) for one in hub.children(recursive=True) if "hub_service" in one.cmdline())

    def client_kernels(self) -> int:
        """How many Flower client kernels there are, in all notebook servers."""
        servers = psutil.Process(self.stack.processes[-1].popen.pid).children(recursive=True)
        return sum("federator.kernel" in _command(process) for process in servers)

    def aggregators(self) -> list[int]:
        """Ids of every process that the service has started, for whatever project."""
        return descendants(self.service)


@dataclass
class Project:
    """A project whose sites are approved.

    Attributes:
        parts: participation ids, in the order of `people`.
    """

    id: str
    people: Sequence[Browser]
    fab_hash: str = ""
    parts: list[str] = field(default_factory=list)

    @property
    def owner(self) -> Browser:
        return self.people[0]


@dataclass(frozen=True)
class Run:
    """A run that has finished.

    Attributes:
        seconds: from the request that starts it to the event that says it has finished.
        rounds: as the API gives them.
    """

    id: str
    seconds: float
    rounds: list[dict[str, Any]]

    def site_rounds(self) -> dict[str, list[tuple[dict[str, float], dict[str, float]]]]:
        """Site -> the metrics of train and of evaluate, round by round."""
        sites: dict[str, list[tuple[dict[str, float], dict[str, float]]]] = {}
        for one in self.rounds:
            for part in one["sites"]:
                if part["error"]:
                    raise RunFailed(f"{part['site']}, round {one['number']}: {part['error']}")
                sites.setdefault(part["site"], []).append((part["train"], part["evaluate"]))
        return sites


@contextlib.asynccontextmanager
async def running_hub(
    name: str, sites: int, *, proxy_logs_all: bool = False, behind_nginx: bool = False
) -> AsyncIterator[Hub]:
    """A Hub with so many embedded sites; its state and logs lie below test-output/bench.

    Args:
        proxy_logs_all: whether the Hub's proxy writes a line into the Hub's log for each request that it passes on.
        behind_nginx: whether people and nodes dial nginx, which sends the nodes straight to the service.
    """
    people = [_researcher(number) for number in range(1, sites + 1)]
    steward = Steward("steward", "Sam Steward", people[0].institution)
    folder = ROOT / "test-output" / "bench" / name
    port, public_port = free_port(), free_port()
    origin = f"http://127.0.0.1:{public_port if behind_nginx else port}"
    chosen: list[Ports] = []

    def write(target: Path, ports: Ports, proxy_command: Sequence[str]) -> Path:
        chosen.append(ports)
        path = target / "deployment.toml"
        command = [*LOGS_ALL, *proxy_command] if proxy_logs_all else proxy_command
        path.write_text(_deployment(people, steward, ports, command, target, origin))
        return path

    with contextlib.ExitStack() as running:
        stack = running.enter_context(running_stack(folder, write, port=port))
        if behind_nginx:
            running.enter_context(running_nginx(folder / "nginx", public_port, chosen[0]))
        await _introduce([*people, steward], f"http://127.0.0.1:{chosen[0].identity_provider}")
        browsers = [Browser(one.username, one.subject, origin) for one in (*people, steward)]
        try:
            for browser in browsers:
                await browser.log_in()
            yield Hub(stack, origin, browsers[:-1], browsers[-1])
        finally:
            await asyncio.gather(*(browser.close() for browser in browsers))


async def start_servers(people: Sequence[Browser]) -> None:
    await asyncio.gather(*(one.start_server() for one in people))


async def new_project(hub: Hub, name: str, workload: Workload, people: Sequence[Browser]) -> Project:
    """A project of this app in which all these people take part, approved at each site."""
    owner, *others = people
    created = await owner.post("api/projects", {"name": name, "description": ""})
    project = Project(created["id"], people)
    path = f"api/projects/{project.id}"
    project.fab_hash = await _upload(hub, project, workload)
    for one in others:
        await owner.post(f"{path}/invitations", {"user": one.username})
    for one in people:
        part = await one.post(f"{path}/participation", {"dataset": DATASET})
        project.parts.append(part["participation_id"])
        await hub.steward.post(
            "api/approvals",
            {
                "project_id": project.id,
                "fab_hash": project.fab_hash,
                "site": part["site"],
                "dataset": DATASET,
                "state": "approved",
                "reason": "A measurement.",
            },
        )
    return project


async def _upload(hub: Hub, project: Project, workload: Workload) -> str:
    app = hub.stack.folder / "benchapp.fab"
    app.write_bytes(workload.fab())
    version = await project.owner.upload(f"api/projects/{project.id}/apps", app)
    return str(version["fab_hash"])


async def all_ready(project: Project) -> None:
    """Wait until every participant's client stands ready."""
    states: list[str] = []
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(READY_PATIENCE_S):
            async for kind, data in project.owner.watch(project.id):
                if kind != "project":
                    continue
                states = [f"{one['user']} {one['client']} {one['detail']}" for one in data["participants"]]
                if all(one["client"] in ("ready", "working") for one in data["participants"]):
                    return
    raise StepError(f"Not every client got ready in {READY_PATIENCE_S:.0f} s: {'; '.join(states)}")


async def run(project: Project, rounds: int) -> Run:
    """Start a run and wait until it has finished.

    Raises:
        RunFailed: it ended otherwise, or not in time.
    """
    begun = time.perf_counter()
    started = await project.owner.post(f"api/projects/{project.id}/runs", {"rounds": rounds, "compare": False})
    summary: dict[str, Any] = {}
    try:
        async with asyncio.timeout(RUN_PATIENCE_S):
            async for kind, data in project.owner.watch(project.id):
                if kind == "run" and data["summary"]["id"] == started["id"]:
                    summary = data["summary"]
                    if summary["status"] in OVER:
                        break
    except TimeoutError:
        raise RunFailed(f"the run did not end in {RUN_PATIENCE_S:.0f} s: {summary}") from None
    seconds = time.perf_counter() - begun
    if summary["status"] != "finished":
        raise RunFailed(f"the run {summary['status']}: {summary['message']}")
    detail = await project.owner.get(f"api/runs/{started['id']}")
    return Run(started["id"], seconds, detail["rounds"])


async def leave(hub: Hub, project: Project) -> None:
    """Everybody's participation ends, and with it their client kernel; wait until its memory is free."""
    for one in project.people:
        await one.request("DELETE", f"api/projects/{project.id}/participation")
    deadline = time.monotonic() + LEAVE_PATIENCE_S
    while hub.client_kernels() and time.monotonic() < deadline:  # noqa: ASYNC110 - no event tells of another's process
        await asyncio.sleep(0.2)


def _command(process: psutil.Process) -> list[str]:
    try:
        return list(process.cmdline())
    except psutil.Error:  # it ended in between
        return []


def _researcher(number: int) -> Researcher:
    slug = f"site-{number:02}"
    return Researcher(
        f"user-{number:02}", f"Person {number}", Institution(f"Hospital {number}", f"{slug}.example", slug)
    )


async def _introduce(people: Sequence[Person], provider: str) -> None:
    """Make them known to the identity provider."""
    async with httpx.AsyncClient(base_url=provider) as http:
        for one in people:
            (await http.put(f"/users/{one.subject}", json=one.claims())).raise_for_status()


def _deployment(
    people: Sequence[Person], steward: Person, ports: Ports, proxy_command: Sequence[str], folder: Path, origin: str
) -> str:
    provider = f"http://127.0.0.1:{ports.identity_provider}"
    lines = [
        "[hub]",
        f'bind_url = "http://127.0.0.1:{ports.public}"',
        f'public_url = "{origin}"',
        'data_dir = "hub"',
        'admin_contact = "the bench"',
        f"hub_port = {ports.hub}",
        f"service_port = {ports.service}",
        f"proxy_api_port = {ports.proxy_api}",
        f"proxy_command = {json.dumps(list(proxy_command))}",
        "[sso]",
        'preset = "generic"',
        f'client_id = "{CLIENT_ID}"',
        f'authorize_url = "{provider}/oauth2/authorize"',
        f'token_url = "{provider}/oauth2/token"',
        f'userdata_url = "{provider}/userinfo"',
        'admins = ["nobody"]',
        "[sso.institutions]",
        *(f'"{one.institution.domain}" = "{one.site}"' for one in people),
    ]
    for one in people:
        data = folder / "data" / one.site
        data.mkdir(parents=True)
        lines += [
            f"[sso.stewards.{one.site}]",
            f'users = ["{steward.username}"]',
            f"[sites.{one.site}]",
            'kind = "embedded"',
            f'title = "{one.site_title}"',
            'contact = "the bench"',
            f'work_dir = "sites/{one.site}"',
            f"[sites.{one.site}.datasets.{DATASET}]",
            'title = "Records"',
            'description = "Nothing: the app makes its own data."',
            f"path = {json.dumps(str(data))}",
        ]
    return "\n".join(lines) + "\n"
