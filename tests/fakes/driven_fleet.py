"""A whole federation without a Hub: coordinator, reconciler, gateway, aggregators and nodes, as the service wires them.

The service can be restarted, and its aggregators killed, at any time.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import psutil
from federator.contract import ClientState
from numpy.typing import NDArray
from safetensors.numpy import load_file

from hub_service.aggregators.base import AggregatorBackend
from hub_service.aggregators.events import read_events
from hub_service.aggregators.superlink import SuperLink
from hub_service.domain.projects import Principal
from hub_service.domain.runs import Run, RunEvent
from hub_service.gateway.gateway import Gateway
from hub_service.reconciler import Reconciler
from tests.fakes.aggregator_places import listens, processes_below
from tests.fakes.federation import ANNA, BERT, CARL, Federation
from tests.fakes.fleet import Fleet, Member, local_aggregators, stop_all

PEOPLE: tuple[tuple[Principal, str, float], ...] = ((ANNA, "a", 1.0), (BERT, "b", 3.0), (CARL, "c", 8.0))
PATIENCE_S = 120.0


class DrivenFleet:
    """What a test drives.

    Args:
        app: the FAB that the sites have approved.
        backend: makes the aggregators' backend, as each service does at its start.
    """

    def __init__(self, folder: Path, backend: Callable[[], AggregatorBackend]) -> None:
        self.folder = folder
        self._make_backend = backend
        self.federation = Federation(folder)
        self.federation.coordinator._clock = self.federation.clock
        self.members: dict[str, Member] = {}
        self.project_id = ""
        self._reconciling: asyncio.Task[None] | None = None

    async def start_service(self) -> None:
        self.backend = self._make_backend()
        coordinator = self.federation.coordinator
        self.gateway = Gateway(
            grants=coordinator.node_grant,
            backend=self.backend,
            seen=coordinator.node_seen,
            cut_off=coordinator.node_cut_off,
            moved=coordinator.node_moved,
            clock=lambda: datetime.now(UTC),
        )
        self.reconciler = Reconciler(
            store=self.federation.store,
            artifacts=self.federation.artifacts,
            backend=self.backend,
            superlink=SuperLink,
            changes=self.federation.changes,
            clock=self.federation.clock,
        )
        self._reconciling = asyncio.create_task(self.reconciler.run())
        if not hasattr(self, "fleet"):
            self.fleet = Fleet(self.folder, self.backend, self.gateway, None)
        else:
            self.fleet.backend, self.fleet.gateway = self.backend, self.gateway
            self.fleet.come_back()

    async def end_service(self) -> None:
        """As a service that is killed or upgraded: what it has started goes on."""
        await self.fleet.go_away()
        assert self._reconciling is not None
        self._reconciling.cancel()
        await asyncio.wait({self._reconciling})
        await self.reconciler.close()
        await self.gateway.close()
        await self.backend.close()

    async def end_aggregators(self) -> None:
        for project_id in await self.backend.running():
            await self.backend.stop(project_id)

    async def join(self, app: bytes) -> None:
        """All three sites take part in a project with this app, approved and connected."""
        self.project_id = self.federation.new_project(fab=app)
        for who, site, target in PEOPLE:
            if who is ANNA:
                participation_id = self.federation.join(self.project_id, who)
            else:
                participation_id = await self.federation.invite_and_join(self.project_id, who)
            self.federation.decide(self.project_id, site)
            member = self.members.get(site)
            if member is not None:
                await member.stop()
            member = self.members[site] = Member(site, target)
            member.approve(app)
            self.federation.coordinator.register_node(who, participation_id, member.public_key)
            member.start(self.fleet.address, self.folder)
            await member.reaches(ClientState.READY)

    def start_run(self, rounds: int, *, compare: bool = False) -> str:
        return self.federation.coordinator.start_run(ANNA, self.project_id, rounds, compare).id

    def run(self, run_id: str) -> Run:
        run = self.federation.store.run(run_id)
        assert run is not None
        return run

    @property
    def run_folder(self) -> Path:
        return self.folder / "projects" / self.project_id / "runs"

    def events(self, run_id: str) -> list[RunEvent]:
        return read_events(self.run_folder / run_id)[0]

    async def until(self, holds: Callable[[], bool], within: float = PATIENCE_S) -> None:
        async with asyncio.timeout(within):
            while not holds():  # noqa: ASYNC110 - another process writes a file
                await asyncio.sleep(0.005)

    async def ended(self, run_id: str) -> Run:
        await self.until(lambda: self.run(run_id).status.is_final)
        await self.until(lambda: not processes_below(self.folder / "projects" / self.run(run_id).project_id))
        return self.run(run_id)

    def model(self, run_id: str) -> dict[str, NDArray[np.generic]]:
        return dict(load_file(self.federation.artifacts.model(self.run(run_id).model_sha256)))

    def processes(self, *, serverapp: bool = True, superlink: bool = True) -> Sequence[psutil.Process]:
        """The aggregator's, by what they have open: a SuperLink listens."""
        found = []
        for process in processes_below(self.folder / "projects" / self.project_id):
            with suppress(psutil.Error):
                if superlink if listens(process) else serverapp:
                    found.append(process)
        return found

    def kill(self, *, serverapp: bool, superlink: bool) -> float:
        return kill(self.processes(serverapp=serverapp, superlink=superlink))


def kill(processes: Sequence[psutil.Process]) -> float:
    """SIGKILL; when that was, by the clock of events."""
    for process in processes:
        with suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)
    return time.time()


@asynccontextmanager
async def driven_fleet(
    folder: Path, backend: Callable[[], AggregatorBackend] | None = None
) -> AsyncIterator[DrivenFleet]:
    """A federation that leaves no process behind. Its aggregators are local ones where no others are given."""
    it = DrivenFleet(folder, backend or (lambda: local_aggregators(folder)))
    await it.start_service()
    async with AsyncExitStack() as at_the_end:  # whatever one of these raises, the others are done
        at_the_end.push_async_callback(it.end_aggregators)
        at_the_end.push_async_callback(it.end_service)
        at_the_end.push_async_callback(stop_all, it.members)
        yield it
