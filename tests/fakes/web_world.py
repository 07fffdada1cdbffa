"""The real routes, identity, coordinator, builder and memory store, served on a free port beside a fake Hub."""

from __future__ import annotations

import itertools
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import nbformat
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from federator.contract import (
    SERVICE_PREFIX,
    ApprovalState,
    AppVersion,
    ClientState,
    Dataset,
    Route,
    RunStatus,
    Scope,
    Site,
)
from tornado.httpserver import HTTPServer
from tornado.testing import bind_unused_port

from hub_service.aggregators.serverapp_log import LogPiece, piece_of_bytes
from hub_service.apps.build import AppBuilder
from hub_service.artifacts import Artifacts
from hub_service.changes import Changes, project_topic
from hub_service.coordinator import Coordinator
from hub_service.domain.projects import Principal
from hub_service.domain.quotas import Quotas
from hub_service.domain.runs import EventKind, RunEvent
from hub_service.hub_client import HubClient
from hub_service.identity import HUB_ANSWER_AGE_S, OAuthCallback, ServiceHubOAuth, close_hub_connections
from hub_service.machinery import Machinery
from hub_service.metrics import Metrics
from hub_service.notices.outbox import Outbox
from hub_service.rate_limits import LIMITS, Counted, RateLimits
from hub_service.readiness import Readiness
from hub_service.store.base import Store
from hub_service.store.memory import MemoryStore
from hub_service.turns import Turns
from hub_service.web.routes import make_routes
from hub_service.web.tracing import TracedApplication
from tests.fakes.aggregators import FakeAggregators
from tests.fakes.hub import ADMINISTRATOR, STEWARD, FakeHub, Person

CELL = """
def build_model():
    return None

def load_data(path, config):
    return [], []

def train(model, data, config):
    return {"num-examples": 1}

def evaluate(model, data, config):
    return {"num-examples": 1}
"""

SITES = {
    slug: Site(slug, title, kind, isolates, f"it@{slug}.example", (Dataset("slides"), Dataset("scans")))
    for slug, title, kind, isolates in (
        ("north", "North Hospital", "embedded", False),
        ("south", "South Clinic", "embedded", True),
        ("harbour", "Harbour Institute", "supernode", True),
    )
}


BUILDER = AppBuilder(frozenset({"numpy", "torch"}))

# For tests that ask more often than any person would.
UNLIMITED = dict.fromkeys(Counted, "1000000 per 1 second")


def notebook(source: str = CELL) -> bytes:
    """A notebook with one federated cell, the second."""
    cells = [
        nbformat.v4.new_markdown_cell("# A model"),
        nbformat.v4.new_code_cell(source, metadata={"tags": ["federated"]}),
    ]
    return nbformat.writes(nbformat.v4.new_notebook(cells=cells)).encode()


def public_key() -> str:
    key = ec.generate_private_key(ec.SECP384R1()).public_key()
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


@dataclass
class World:
    """Everything of one test: the served service, its people, and its insides."""

    hub: FakeHub
    url: str
    store: Store
    artifacts: Artifacts
    changes: Changes
    coordinator: Coordinator
    clock: list[datetime]
    hub_auth: ServiceHubOAuth
    logs: dict[str, bytes]  # of ServerApps, by run
    backend: FakeAggregators
    turns: Turns

    def person(self, name: str) -> Person:
        return self.hub.people[name]

    def principal(self, name: str) -> Principal:
        person = self.person(name)
        return Principal(person.name, person.groups, person.scopes)

    @asynccontextmanager
    async def api(self, name: str | None) -> AsyncIterator[httpx.AsyncClient]:
        """A script of somebody's, with their token; of nobody without a name."""
        headers = self.person(name).headers if name else {}
        async with httpx.AsyncClient(base_url=self.url, headers=headers, timeout=20) as client:
            yield client

    @asynccontextmanager
    async def browser(self, name: str | None) -> AsyncIterator[httpx.AsyncClient]:
        """Somebody's browser: it follows redirects, and logs in through OAuth at its first page."""
        cookies = {"fake-hub-login": name} if name else {}
        async with httpx.AsyncClient(base_url=self.url, cookies=cookies, follow_redirects=True, timeout=20) as client:
            yield client

    # --- states to start from, made by the coordinator as the routes make them

    def project(self, owner: str = "ada", name: str = "Lungs") -> str:
        return self.coordinator.create_project(self.principal(owner), name, "Finds nodules").id

    def add_app(self, project_id: str, owner: str = "ada", source: str = CELL) -> str:
        return self.add_file(project_id, "model.ipynb", notebook(source), owner).fab_hash

    def add_file(self, project_id: str, filename: str, content: bytes, owner: str = "ada") -> AppVersion:
        return self.coordinator.add_app(self.principal(owner), project_id, BUILDER.build(filename, content))

    async def shared_project(self) -> tuple[str, str]:
        """A project of ada's with an app, which ben has joined with "slides", too; all is approved."""
        project_id = self.project()
        fab_hash = self.add_app(project_id)
        await self.coordinator.invite(self.principal("ada"), project_id, "ben")
        for user, steward, site in (("ada", "norma", "north"), ("ben", "sue", "south")):
            self.coordinator.join(self.principal(user), project_id, "slides")
            self.coordinator.decide(
                self.principal(steward), project_id, fab_hash, "slides", site, ApprovalState.APPROVED
            )
        return project_id, fab_hash

    async def tenant(self, folder: Path) -> dict[str, str]:
        """ada's project, which ben has joined, with a finished run; the ids of all in it, as routes name them."""
        project_id, fab_hash = await self.shared_project()
        run_id = self.start_run(project_id)
        self.report_round(project_id, run_id, 1)
        self.finish_run(project_id, run_id, b"weights", folder)
        return {
            "project_id": project_id,
            "fab_hash": fab_hash,
            "run_id": run_id,
            "participation_id": self.participation(project_id, "ben"),
            "user": "ben",
            "site": "south",
            "dataset": "slides",
            "name": "tabular",
        }

    async def supernode_project(self) -> tuple[str, str]:
        """A project of ada's that hana's site, which has no notebook servers, takes part in, with an approved app.

        Ids of the project and of hana's participation.
        """
        project_id = self.project()
        fab_hash = self.add_app(project_id)
        await self.coordinator.invite(self.principal("ada"), project_id, "hana")
        self.coordinator.join(self.principal("hana"), project_id, "slides")
        self.coordinator.decide(
            self.principal("stan"), project_id, fab_hash, "slides", "harbour", ApprovalState.APPROVED
        )
        return project_id, self.participation(project_id, "hana")

    def participation(self, project_id: str, user: str) -> str:
        return next(one.id for one in self.store.participations(project_id) if one.user == user)

    def make_ready(self, project_id: str) -> None:
        """Every participant's client has registered its node and waits for work."""
        for one in self.store.participations(project_id):
            principal = self.principal(one.user)
            self.coordinator.register_node(principal, one.id, public_key().encode())
            self.coordinator.report_client(principal, one.id, ClientState.READY, "")

    def start_run(self, project_id: str, rounds: int = 3) -> str:
        self.make_ready(project_id)
        run = self.coordinator.start_run(self.principal("ada"), project_id, rounds, compare=True)
        nodes = {str(10 + place): site for place, site in enumerate(self._run(run.id).sites.values())}
        self.store.put_run(replace(self._run(run.id), status=RunStatus.RUNNING, nodes=nodes))
        return run.id

    def _run(self, run_id: str) -> Any:
        return self.store.run(run_id)

    def report_round(self, project_id: str, run_id: str, number: int) -> None:
        """As the reconciler does when the aggregator has reported a round."""
        self.store.add_events(
            run_id,
            [
                RunEvent(
                    EventKind.REPLY,
                    at=float(number),
                    phase="federated",
                    round=number,
                    message_type="evaluate",
                    node_id=int(node),
                    metrics={"accuracy": 0.6 + 0.05 * number + 0.03 * place, "loss": 1.0 / number},
                    examples=100 + place,
                    seconds=0.5,
                    size=2048,
                )
                for place, node in enumerate(self._run(run_id).nodes)
            ],
        )
        self.store.put_run(
            replace(self._run(run_id), round=number, phase=f"round {number} of {self._run(run_id).rounds}")
        )
        self.changes.announce(project_topic(project_id))

    def finish_run(self, project_id: str, run_id: str, model: bytes, folder: Path) -> None:
        """The run ends with a model and with the table of results."""
        source = folder / f"{run_id}.safetensors"
        source.write_bytes(model)
        sha256, size = self.artifacts.put_model(source)
        nodes = list(self._run(run_id).nodes)
        self.store.add_events(
            run_id,
            [
                RunEvent(
                    EventKind.SCORE,
                    at=9.0,
                    phase="compare",
                    node_id=int(on),
                    model=of,
                    metrics={"accuracy": 0.9 if of == "federated" else 0.7 + 0.01 * int(of)},
                    examples=100,
                )
                for of in ("federated", *nodes)
                for on in nodes
            ],
        )
        run = replace(self._run(run_id), status=RunStatus.FINISHED, phase="finished", finished_at=self.clock[0])
        self.store.put_run(replace(run, model_sha256=sha256, model_size=size, model_round=run.rounds))
        self.changes.announce(project_topic(project_id))


def add_people(hub: FakeHub) -> None:
    hub.add("ada", "site-north")
    hub.add("ben", "site-south")
    hub.add("cleo", "site-south")
    hub.add("norma", "site-north", "steward-north", scopes=STEWARD)
    hub.add("sue", "site-south", "steward-south", scopes=STEWARD)
    hub.add("hana", "site-harbour")
    hub.add("stan", "site-harbour", "steward-harbour", scopes=STEWARD)
    hub.add("nowhere")
    hub.add("visitor", "site-north", scopes=frozenset({Scope.ACCESS}))
    hub.add("outsider", "site-north", scopes=frozenset())
    hub.add("robot", "site-north", kind="service")
    hub.add("prometheus", scopes=frozenset({Scope.ACCESS, Scope.READ_METRICS}), kind="service")
    hub.add("robin", scopes=ADMINISTRATOR)


@asynccontextmanager
async def served_world(
    folder: Path,
    hub: FakeHub,
    limits: Mapping[Counted, str] = LIMITS,
    quotas: Quotas | None = None,
    store: Store | None = None,
) -> AsyncIterator[World]:
    """The service on a free port, with a store in memory where none is given."""
    sock, port = bind_unused_port()
    url = f"http://127.0.0.1:{port}"
    add_people(hub)
    changes, store, artifacts = Changes(), store or MemoryStore(), Artifacts(folder / "artifacts")
    clock = [datetime(2026, 11, 23, 12, tzinfo=UTC)]
    ids, request_ids = itertools.count(1), itertools.count(1)

    def tick() -> datetime:
        clock[0] += timedelta(milliseconds=1)
        return clock[0]

    logs: dict[str, bytes] = {}
    turns = Turns()

    async def serverapp_log(project_id: str, run_id: str, after: int) -> LogPiece:
        return piece_of_bytes(logs.get(run_id, b""), after)

    backend, metrics, tasks = FakeAggregators(folder / "runs"), Metrics(SITES), {"reconciler": True}
    outbox = Outbox((), lambda notice: "")
    machinery = Machinery(
        Readiness({"aggregators": backend.check}), backend, outbox, folder, tasks, ((0.0, "It broke."),)
    )
    coordinator = Coordinator(
        store=store,
        artifacts=artifacts,
        hub=HubClient(f"{url}/hub/api", "token-of-the-service"),
        builder=BUILDER,
        sites=SITES,
        changes=changes,
        clock=tick,
        new_id=lambda: f"00000000-0000-4000-8000-{next(ids):012d}",
        admin_contact="the admin",
        serverapp_log=serverapp_log,
        machinery=machinery,
        quotas=quotas,
    )

    async def scrape() -> bytes:
        return metrics.text(await coordinator.figures({}))

    hub_auth = ServiceHubOAuth(
        api_url=f"{url}/hub/api",
        api_token=hub.service.token,
        base_url=SERVICE_PREFIX,
        hub_host="",
        hub_prefix="/hub/",
        oauth_client_id="service-federation",
        oauth_redirect_uri=f"{SERVICE_PREFIX}oauth_callback",
        access_scopes={str(Scope.ACCESS)},
        cache_max_age=HUB_ANSWER_AGE_S,
    )
    application = TracedApplication(
        [
            (f"{SERVICE_PREFIX}oauth_callback", OAuthCallback),
            *make_routes(coordinator=coordinator, changes=changes, scrape=scrape, turns=turns),
        ],
        hub_auth=hub_auth,
        cookie_secret=b"a secret for tests, 32 bytes long",
        rate_limits=RateLimits(limits),
        xsrf_cookies=True,
        log_function=lambda handler: None,
        new_id=lambda: f"request-{next(request_ids)}",
    )
    hub.serve_in(application)
    server = HTTPServer(application)
    server.add_sockets([sock])
    try:
        yield World(
            hub, url + SERVICE_PREFIX, store, artifacts, changes, coordinator, clock, hub_auth, logs, backend, turns
        )
    finally:
        server.stop()
        await server.close_all_connections()
        await close_hub_connections()


def path(route: Route, **ids: str) -> str:
    return str(route).format(**ids)


def plain(response: httpx.Response) -> Any:
    """A JSON answer, or what it was instead."""
    return json.loads(response.content) if response.content else None
