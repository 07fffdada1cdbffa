"""Drives runs and aggregators from what is to what is wanted. Safe to restart: all it knows stands in the store.

One task for each run in flight, so that one project's trouble is no other's. With no run in flight nothing is polled.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from federator.contract import RunStatus

from hub_service.aggregators.base import AggregatorBackend, Endpoint
from hub_service.artifacts import Artifacts
from hub_service.changes import RUNS_TOPIC, Changes
from hub_service.domain.clock import Clock
from hub_service.domain.errors import Unavailable
from hub_service.domain.notices import Tell, tell_nobody
from hub_service.domain.runs import Run
from hub_service.results.models import KEEP_BYTES
from hub_service.run_driver import FlowerControl, RunDriver, Workshop
from hub_service.store.base import Store

log = logging.getLogger(__name__)

POLL_S = 0.15
_RETRY_S = 5.0  # where aggregators run does not answer
NODES_WAIT_S = 120.0
_FOREVER_S = 3600.0  # waiting for a change begins anew after this long

_RESTARTED = "The service was restarted during the run. Start the run again."
_OUR_FAULT = "The service made a mistake in this run. Start it again; if it fails again, tell the Hub's administrator."


class Reconciler:
    """`run()` is the service's one background task for runs; `close()` ends it and what it has started.

    Args:
        superlink: makes the client for the SuperLink at an endpoint.
        poll_s: how often a run in flight is looked at, in seconds.
        nodes_wait_s: how long a run waits for its sites' clients, in seconds.
        keep_model_bytes: of the models of one run's rounds that are kept.
    """

    def __init__(
        self,
        *,
        store: Store,
        artifacts: Artifacts,
        backend: AggregatorBackend,
        superlink: Callable[[Endpoint], FlowerControl],
        changes: Changes,
        clock: Clock,
        poll_s: float = POLL_S,
        nodes_wait_s: float = NODES_WAIT_S,
        tell: Tell = tell_nobody,
        keep_model_bytes: int = KEEP_BYTES,
    ) -> None:
        self._store = store
        self._backend = backend
        self._changes = changes
        self._workshop = Workshop(
            store, artifacts, backend, superlink, changes, clock, poll_s, nodes_wait_s, keep_model_bytes, tell
        )
        self._drivers: dict[str, asyncio.Task[None]] = {}  # by project

    async def run(self) -> None:
        """Take over what an earlier service left, then drive every run that is asked for. Ends when cancelled."""
        while True:
            try:
                await self._take_over()
                break
            except Unavailable as error:  # whether those runs go on is not known before
                log.warning("no run is driven yet: %s %s", error.message, error.next_step)
                await asyncio.sleep(_RETRY_S)
        while True:
            seen = self._changes.revision(RUNS_TOPIC)
            for run in self._store.unfinished_runs():
                if run.project_id not in self._drivers:
                    self._start(run)
            if await self._changes.wait(RUNS_TOPIC, seen, _FOREVER_S) != seen:
                self._backend.warm_up()  # clients come and go, stewards decide: a run is near

    async def close(self) -> None:
        """End the runs in flight, with a word to their owners, and every aggregator."""
        drivers, self._drivers = self._drivers, {}
        for driver in drivers.values():
            driver.cancel()
        if drivers:
            await asyncio.wait(drivers.values())
        for run in self._store.unfinished_runs():
            await RunDriver(self._workshop, run.id).end(RunStatus.FAILED, _RESTARTED)
        try:
            running = await self._backend.running()
        except Unavailable as error:
            log.warning("aggregators are left to the next service: %s", error.message)
            return
        for project_id in running:
            await self._backend.stop(project_id)

    async def _take_over(self) -> None:
        """Go on with runs whose aggregator has outlived the earlier service; end all others, and idle aggregators."""
        running = set(await self._backend.running())
        unfinished = self._store.unfinished_runs()
        for project_id in running - {run.project_id for run in unfinished}:
            await self._backend.stop(project_id)
        for run in unfinished:
            if run.status is not RunStatus.STARTING and run.project_id not in running:
                await RunDriver(self._workshop, run.id).end(RunStatus.FAILED, _RESTARTED)

    def _start(self, run: Run) -> None:
        driver = asyncio.create_task(self._drive(run.id), name=f"run {run.id}")
        self._drivers[run.project_id] = driver

        def ended(_: asyncio.Task[None]) -> None:
            self._drivers.pop(run.project_id, None)
            self._changes.announce(RUNS_TOPIC)  # the project's next run may have been asked for meanwhile

        driver.add_done_callback(ended)

    async def _drive(self, run_id: str) -> None:
        """Drive one run to its end. A mistake of ours ends that run, never the service."""
        driver = RunDriver(self._workshop, run_id)
        driving = asyncio.create_task(driver.drive(), name=f"driver of run {run_id}")
        try:
            await asyncio.wait({driving})
        finally:
            driving.cancel()
            await asyncio.wait({driving})
        if error := driving.exception():
            log.error("run %s was lost", run_id, exc_info=error)
            run = self._store.run(run_id)
            if run is not None and not run.status.is_final:
                await driver.end(RunStatus.FAILED, _OUR_FAULT)
