"""A real run, seen live: real nodes, gateway, aggregator and reconciler behind the service's real event stream.

Each round waits at the sites until the test lets it go on: what the stream has shown by then came before.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from federator.contract import ApprovalState, Route
from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets
from tornado.web import Application

from hub_service.aggregators.superlink import SuperLink
from hub_service.domain.runs import EventKind
from hub_service.gateway.gateway import Gateway
from hub_service.gateway.handlers import fleet_routes
from hub_service.reconciler import Reconciler
from hub_service.store.base import Store
from tests.fakes.fleet import Member, local_aggregators
from tests.fakes.hub import FakeHub
from tests.fakes.web_world import World, path, served_world
from tests.web.test_event_streams import received

log = logging.getLogger(__name__)

CELL = """
import time
from pathlib import Path
import numpy as np

CONFIG = {"num-server-rounds": 3}


class Mean:
    def __init__(self):
        self.weights = [np.zeros(1)]

    def get_weights(self):
        return self.weights

    def set_weights(self, weights):
        self.weights = [weight.copy() for weight in weights]


class Slides:
    def __init__(self, path):
        self.path = Path(path)

    def __len__(self):
        return 10


def build_model():
    return Mean()


def load_data(path, config):
    return Slides(path), Slides(path)


def train(model, data, config):
    while not (data.path / f"go-{config['round']}").exists():
        time.sleep(0.005)
    if (data.path / f"break-{config['round']}").exists():
        raise ValueError("the slide has 4 channels")
    return {"loss": 1.0 / config["round"]}


def evaluate(model, data, config):
    return {"accuracy": 0.5}
"""


@dataclass
class Live:
    world: World
    project_id: str
    sites: dict[str, Path]  # the data folder of each
    members: list[Member]

    def let_go(self, number: int) -> None:
        for folder in self.sites.values():
            (folder / f"go-{number}").touch()

    def start(self, rounds: int) -> str:
        return self.world.coordinator.start_run(self.world.principal("ada"), self.project_id, rounds, False).id

    def finished_at(self, run_id: str, number: int) -> float:
        """When the round's last answer was at the aggregator, in seconds since the epoch."""
        return max(
            event.at
            for event in self.world.store.events(run_id)
            if event.kind is EventKind.REPLY and event.round == number
        )


@asynccontextmanager
async def live(folder: Path, store: Store | None = None) -> AsyncIterator[Live]:
    async with served_world(folder, FakeHub(), store=store) as world:
        project_id = world.project()
        fab_hash = world.add_app(project_id, source=CELL)
        await world.coordinator.invite(world.principal("ada"), project_id, "ben")
        backend = local_aggregators(folder / "state")
        world.coordinator._serverapp_log = backend.serverapp_log
        gateway = Gateway(
            grants=world.coordinator.node_grant,
            backend=backend,
            seen=world.coordinator.node_seen,
            cut_off=world.coordinator.node_cut_off,
            moved=world.coordinator.node_moved,
            clock=lambda: datetime.now(UTC),
        )
        server = HTTPServer(Application(fleet_routes(gateway), log_function=lambda _: None))
        sockets = bind_sockets(0, "127.0.0.1")
        server.add_sockets(sockets)
        reconciler = Reconciler(
            store=world.store,
            artifacts=world.artifacts,
            backend=backend,
            superlink=SuperLink,
            changes=world.changes,
            clock=lambda: datetime.now(UTC),
        )
        driving = asyncio.create_task(reconciler.run())
        it = Live(world, project_id, {}, [])
        try:
            for user, steward, site in (("ada", "norma", "north"), ("ben", "sue", "south")):
                world.coordinator.join(world.principal(user), project_id, "slides")
                world.coordinator.decide(
                    world.principal(steward), project_id, fab_hash, "slides", site, ApprovalState.APPROVED
                )
                it.sites[site] = folder / site
                it.sites[site].mkdir()
                member = Member(site, 0.0)
                member.more_config = {"dataset": "slides", "dataset-path": str(it.sites[site])}
                member.approve(world.artifacts.fab(fab_hash))
                participation = world.participation(project_id, user)
                world.coordinator.register_node(world.principal(user), participation, member.public_key)
                member.start(f"127.0.0.1:{sockets[0].getsockname()[1]}", folder)
                it.members.append(member)
            yield it
        finally:
            await asyncio.gather(*(member.stop() for member in it.members))
            await reconciler.close()
            driving.cancel()
            await asyncio.wait({driving})
            server.stop()
            await server.close_all_connections()
            await backend.stop(project_id)
            await gateway.close()
            await backend.close()


class Followed:
    """What a project's event stream has told."""

    def __init__(self, stream: AsyncIterator[tuple[str, Any]]) -> None:
        self._stream = stream
        self._latest: dict[str, Any] = {}

    async def until(self, kind: str, wanted: Callable[[Any], bool]) -> Any:
        """The newest event of the kind, once it is as wanted."""
        async with asyncio.timeout(60):
            while kind not in self._latest or not wanted(self._latest[kind]):
                got, data = await anext(self._stream)
                self._latest[got] = data
        return self._latest[kind]


@asynccontextmanager
async def followed(it: Live) -> AsyncIterator[Followed]:
    """The project's events, as a member who is not the owner gets them."""
    address = path(Route.EVENTS, project_id=it.project_id)
    async with it.world.api("ben") as api, api.stream("GET", address) as response:
        yield Followed(received(response))


def states(run: Any) -> dict[str, str]:
    return {one["site"]: f"{one['state']} {one['task']}".strip() for one in run["activity"]}


BOTH_TRAIN = {"north": "computing train", "south": "computing train"}


def has_points(number: int) -> Callable[[Any], bool]:
    return lambda figure: all(len(trace["x"]) == number for trace in figure["data"])


async def until_ready(stream: Followed) -> None:
    await stream.until("project", lambda project: all(one["client"] == "ready" for one in project["participants"]))


async def test_a_round_is_seen_before_the_next_one_ends(tmp_path: Path) -> None:
    async with live(tmp_path) as it, followed(it) as stream:
        await until_ready(stream)
        run_id = it.start(3)
        late = []
        for number in (1, 2, 3):
            # All sites hold the round up: what is shown now was shown while it went.
            run = await stream.until("run", lambda run: states(run) == BOTH_TRAIN)
            assert run["summary"]["status"] == "running"
            assert (run["seconds_left"] is not None) == (number > 1)
            it.let_go(number)
            await stream.until("figure", has_points(number))
            late.append(time.time() - it.finished_at(run_id, number))
        log.info("seconds from a round's last answer to its curve in the stream: %s", late)
        run = await stream.until("run", lambda run: run["summary"]["status"] == "finished")
        assert run["bytes_in"] > 0
        assert run["bytes_out"] > 0
        async with it.world.api("ben") as api:
            printed = (await api.get(path(Route.RUN_LOG, run_id=run_id))).json()["text"]
        assert "ROUND 3" in printed
        assert str(tmp_path) not in printed
        assert "127.0.0.1" not in printed


async def test_a_failing_site_is_named_with_its_cause(tmp_path: Path) -> None:
    async with live(tmp_path) as it, followed(it) as stream:
        await until_ready(stream)
        (it.sites["south"] / "break-1").touch()
        it.start(2)
        it.let_go(1)
        run = await stream.until("run", lambda run: any(one["detail"] for one in run["activity"]))
        assert run["summary"]["status"] == "running"
        (cause,) = (one["detail"] for one in run["activity"] if one["site"] == "south")
        assert cause.startswith("ValueError: the slide has 4 channels (")
        assert "Traceback" not in cause
        (error,) = (one["error"] for one in run["rounds"][0]["sites"] if one["site"] == "south")
        assert error == cause
        it.let_go(2)
        run = await stream.until("run", lambda run: run["summary"]["status"] == "finished")
        assert run["activity"] == []
