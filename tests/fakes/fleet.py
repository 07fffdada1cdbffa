"""Aggregators, a gateway and nodes in this process, as the service and the kernels put them together."""

from __future__ import annotations

import asyncio
import hashlib
import ssl
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

from cryptography.hazmat.primitives.asymmetric import ec
from federator.contract import ClientState, Conditions, OutagePolicy
from federator.node import Node
from federator.service_client import NotFound, Unreachable
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets
from tornado.web import RequestHandler

from hub_service.aggregators.base import AggregatorBackend, ServerAppSpec
from hub_service.aggregators.events import read_events
from hub_service.aggregators.local import LocalAggregators
from hub_service.aggregators.superlink import SuperLink
from hub_service.domain.projects import GRACE_S, NodeGrant
from hub_service.domain.runs import EventKind, RunEvent
from hub_service.gateway.gateway import Gateway
from hub_service.gateway.handlers import CHUNK_SIZE, fleet_routes
from hub_service.site_stages import Stage
from hub_service.web.tracing import TracedApplication
from tests.fakes.measured import module_command

PROJECT = "p1"
STOP_S = 60.0  # at most: a thread that outlives its test is told as the next one's fault


class Member:
    """One site's node and what it told of itself."""

    def __init__(self, name: str, target: float) -> None:
        self.name = name
        self.target = target
        self.private_key = ec.generate_private_key(ec.SECP256R1())
        self.public_key = public_key_to_bytes(self.private_key.public_key())
        self.approved: set[str] = set()
        self.service_away = False  # it says of no app whether that is approved
        self.more_config: dict[str, str] = {}  # of the node, besides its target and site
        self.conditions = Conditions()  # of every approval
        self.apps: dict[str, bytes] = {}  # by hash, as the service has them
        self.fetched: list[str] = []  # hashes of apps that the node asked the service for
        self.states: list[tuple[ClientState, str]] = []
        self.node_id = 0
        self._wanted = ""
        self.node: Node | None = None
        self._changed = asyncio.Event()
        self._loop = asyncio.get_running_loop()

    def _on_state(self, state: ClientState, detail: str) -> None:
        self.states.append((state, detail))
        self._loop.call_soon_threadsafe(self._changed.set)

    def approve(self, app: bytes) -> str:
        """As this site's steward; the app's hash. The service has the app from now on."""
        fab_hash = hashlib.sha256(app).hexdigest()
        self.apps[fab_hash] = app
        self.approved.add(fab_hash)
        return fab_hash

    def _approvals(self) -> dict[str, Conditions]:
        if self.service_away:
            raise Unreachable("The service does not answer.")
        return dict.fromkeys(self.approved, self.conditions)

    def _fetch_app(self, fab_hash: str) -> bytes:
        self.fetched.append(fab_hash)
        if fab_hash not in self.apps:
            raise NotFound("There is no such app.")
        return self.apps[fab_hash]

    def prepare(self, fab_hash: str) -> None:
        """As its kernel: before or after its start."""
        self._wanted = fab_hash
        if self.node is not None:
            self.node.prepare(fab_hash)

    def start(self, address: str, tmp: Path) -> None:
        self.node = Node(
            address,
            tls=False,
            root_certificates=None,
            private_key=self.private_key,
            approvals=self._approvals,
            fetch_app=self._fetch_app,
            node_config={"target": self.target, "site": self.name, **self.more_config},
            on_state=self._on_state,
            work_folder=tmp,
        )
        if self._wanted:
            self.node.prepare(self._wanted)
        self.node.start()

    async def reaches(self, state: ClientState, within: float = 30.0) -> str:
        """Wait until the node has been in the state; return the text it gave."""
        return (await self._report(lambda seen, _: seen is state, within))[1]

    async def says(self, text: str, within: float = 30.0) -> ClientState:
        """Wait until the node has given the text; return the state it was in."""
        return (await self._report(lambda _, detail: detail == text, within))[0]

    async def _report(self, wanted: Callable[[ClientState, str], bool], within: float) -> tuple[ClientState, str]:
        async with asyncio.timeout(within):
            while True:
                for state, detail in self.states:
                    if wanted(state, detail):
                        return state, detail
                self._changed.clear()
                await self._changed.wait()

    async def stop(self) -> None:
        if self.node is not None:
            await asyncio.to_thread(self.node.stop, STOP_S)


class Fleet:
    """What a test drives."""

    def __init__(self, folder: Path, backend: AggregatorBackend, gateway: Gateway, tls: ssl.SSLContext | None) -> None:
        self.folder = folder
        self.backend = backend
        self.gateway = gateway
        self._tls = tls
        self._answered = asyncio.Event()
        self.requests: list[tuple[str, float]] = []  # operation of each that was answered, and how long that took
        self.server = self._server()
        sockets = bind_sockets(0, "127.0.0.1")
        self.port = sockets[0].getsockname()[1]
        self.address = f"127.0.0.1:{self.port}"
        self.server.add_sockets(sockets)
        self.grants: dict[bytes, NodeGrant] = {}
        self.seen: list[tuple[str, bool]] = []
        self.cut_off: list[str] = []  # participations
        self.moved: list[tuple[str, Stage]] = []
        self.members: dict[str, Member] = {}

    async def go_away(self) -> None:
        """As a Hub that is restarted."""
        self.server.stop()
        await self.server.close_all_connections()

    def come_back(self) -> None:
        self.server = self._server()
        self.server.add_sockets(bind_sockets(self.port, "127.0.0.1"))

    def _server(self) -> HTTPServer:
        application = TracedApplication(
            fleet_routes(self.gateway), log_function=self._note_request, new_id=lambda: uuid4().hex
        )
        return HTTPServer(application, ssl_options=self._tls, chunk_size=CHUNK_SIZE)

    def _note_request(self, handler: RequestHandler) -> None:
        self.requests.append((handler.request.path.rpartition("/")[2], handler.request.request_time()))
        self._answered.set()

    async def answers(self, count: int, within: float = 30.0) -> list[tuple[str, float]]:
        """The next `count` requests that are answered."""
        before = len(self.requests)
        async with asyncio.timeout(within):
            while len(self.requests) < before + count:
                self._answered.clear()
                await self._answered.wait()
        return self.requests[before : before + count]

    def admit(self, name: str, target: float = 0.0) -> Member:
        """A member whose key opens the project."""
        member = Member(name, target)
        self.members[name] = member
        self.grants[member.public_key] = NodeGrant(name, PROJECT, None)
        return member

    def start_node(self, name: str, target: float, fab: bytes) -> Member:
        member = self.admit(name, target)
        member.approve(fab)
        member.start(self.address, self.folder)
        return member

    async def register(self, *members: Member) -> tuple[int, ...]:
        superlink = SuperLink(await self.backend.start(PROJECT))
        for member in members:
            member.node_id = await superlink.register_node(member.public_key)
        return tuple(member.node_id for member in members)

    async def start_run(
        self,
        fab: bytes,
        members: list[Member],
        *,
        rounds: int = 2,
        compare: bool = False,
        run_id: str = "r1",
        on_outage: OutagePolicy = OutagePolicy.WAIT,
        grace_s: float = GRACE_S,
    ) -> int:
        nodes = await self.register(*members)
        superlink = SuperLink(await self.backend.start(PROJECT))
        flower_run_id = await superlink.start_run(fab, {"num-server-rounds": rounds})
        spec = ServerAppSpec(run_id, flower_run_id, nodes, rounds, compare, 30.0, on_outage=on_outage, grace_s=grace_s)
        await self.backend.start_serverapp(PROJECT, spec)
        return flower_run_id

    async def events(
        self, until: Callable[[RunEvent], bool], run_id: str = "r1", within: float = 90.0
    ) -> list[RunEvent]:
        """All events of the run, once one of them is as asked. Fails with the log if the ServerApp ends before."""
        folder = self.backend.run_folder(PROJECT, run_id)
        async with asyncio.timeout(within):
            while True:
                exit_status = await self.backend.serverapp_exit(PROJECT, run_id)
                events, _ = read_events(folder)
                if any(map(until, events)):
                    return events
                if exit_status is not None:
                    raise AssertionError((folder / "serverapp.log").read_text()[-3000:])
                await asyncio.sleep(0.05)

    async def end_of_run(self, run_id: str = "r1") -> list[RunEvent]:
        return await self.events(lambda event: event.kind in (EventKind.FINISHED, EventKind.FAILED), run_id)


def local_aggregators(folder: Path) -> LocalAggregators:
    """As the service makes them; measured where this process is."""
    return LocalAggregators(
        folder,
        template_command=module_command("hub_service.aggregators.template_process"),
        superlink_command=module_command("hub_service.aggregators.superlink_process"),
        serverapp_command=module_command("hub_service.aggregators.serverapp"),
    )


@asynccontextmanager
async def fleet(
    folder: Path, *, backend: AggregatorBackend | None = None, tls: ssl.SSLContext | None = None, **options: Any
) -> AsyncIterator[Fleet]:
    """A fleet that leaves no process behind. Its aggregators are local ones where no others are given."""
    its_own = backend is None
    backend = backend or local_aggregators(folder)
    it: Fleet
    gateway = Gateway(
        grants=lambda key: it.grants.get(key),
        backend=backend,
        seen=lambda participation, working: it.seen.append((participation, working)),
        cut_off=lambda participation: it.cut_off.append(participation),
        moved=lambda participation, stage: it.moved.append((participation, stage)),
        clock=lambda: datetime.now(UTC),
        **options,
    )
    it = Fleet(folder, backend, gateway, tls)
    async with AsyncExitStack() as at_the_end:  # whatever one of these raises, the others are done
        if its_own:
            at_the_end.push_async_callback(backend.close)
        at_the_end.push_async_callback(gateway.close)
        at_the_end.push_async_callback(backend.stop, PROJECT)
        at_the_end.push_async_callback(it.go_away)
        at_the_end.push_async_callback(stop_all, it.members)
        yield it


async def stop_all(members: Mapping[str, Member]) -> None:
    """Each of them, before the first failure is told."""
    ends = await asyncio.gather(*(member.stop() for member in members.values()), return_exceptions=True)
    for failed in filter(None, ends):
        raise failed
