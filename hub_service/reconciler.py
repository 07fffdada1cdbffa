"""Drives runs and aggregators from what is to what is wanted. Safe to restart: all it knows stands in the store.

Runs and aggregators outlive the service: the next one goes on with them, and begins anew what was lost meanwhile.

One task for each run in flight, so that one project's trouble is no other's. With no run in flight nothing is polled.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from federator.contract import RunStatus

from hub_service.aggregators.base import AggregatorBackend, Endpoint
from hub_service.aggregators.run_folder import clear_run_folder, unkept_models
from hub_service.artifacts import Artifacts
from hub_service.changes import RUNS_TOPIC, Changes
from hub_service.domain.clock import Clock
from hub_service.domain.errors import DatabaseUnavailable, Unavailable
from hub_service.domain.notices import Tell, tell_nobody
from hub_service.domain.runs import Run
from hub_service.results.models import KEEP_BYTES
from hub_service.run_driver import NOBODY_WATCHES, FlowerControl, RunDriver, RunWatch, Workshop
from hub_service.store.base import Store
from hub_service.turns import Turns

log = logging.getLogger(__name__)

POLL_S = 0.15
_RETRY_S = 5.0  # where aggregators run does not answer
_DATABASE_RETRY_S = 1.0
NODES_WAIT_S = 120.0
_FOREVER_S = 3600.0  # waiting for a change begins anew after this long

_OUR_FAULT = "The service made a mistake in this run. Start it again; if it fails again, tell the Hub's administrator."


class Reconciler:
    """`run()` is the service's one background task for runs; `close()` ends what it has started in this process.

    Args:
        superlink: makes the client for the SuperLink at an endpoint.
        poll_s: how often a run in flight is looked at, in seconds.
        nodes_wait_s: how long a run waits for its sites' clients, in seconds.
        keep_model_bytes: of the models of one run's rounds that are kept.
        turns: whose turn it is in the service's thread.
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
        watch: RunWatch = NOBODY_WATCHES,
        keep_model_bytes: int = KEEP_BYTES,
        turns: Turns | None = None,
    ) -> None:
        self._store = store
        self._backend = backend
        self._changes = changes
        self._workshop = Workshop(
            store,
            artifacts,
            backend,
            superlink,
            changes,
            clock,
            poll_s,
            nodes_wait_s,
            keep_model_bytes,
            tell,
            watch,
            turns or Turns(),
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
            try:
                unfinished = self._store.unfinished_runs()
            except DatabaseUnavailable as error:
                log.warning("no new run is looked for: %s", error.message)
                await asyncio.sleep(_DATABASE_RETRY_S)
                continue
            for run in unfinished:
                if run.project_id not in self._drivers:
                    self._start(run)
            if await self._changes.wait(RUNS_TOPIC, seen, _FOREVER_S) != seen:
                self._backend.warm_up()  # clients come and go, stewards decide: a run is near

    async def close(self) -> None:
        """Drive no run any more. Runs and their aggregators go on: the next service takes them over."""
        drivers, self._drivers = self._drivers, {}
        for driver in drivers.values():
            driver.cancel()
        if drivers:
            await asyncio.wait(drivers.values())

    async def _take_over(self) -> None:
        """End the aggregators of runs that have ended. The others are gone on with, or begun anew, by their drivers."""
        unfinished = {run.project_id for run in self._store.unfinished_runs()}
        for project_id in set(await self._backend.running()) - unfinished:
            await self._backend.stop(project_id)

    def _start(self, run: Run) -> None:
        driver = asyncio.create_task(self._drive(run.id), name=f"run {run.id}")
        self._drivers[run.project_id] = driver

        def ended(_: asyncio.Task[None]) -> None:
            self._drivers.pop(run.project_id, None)
            self._changes.announce(RUNS_TOPIC)  # the project's next run may have been asked for meanwhile

        driver.add_done_callback(ended)

    async def _drive(self, run_id: str) -> None:
        """Drive one run to its end. While the database is gone the run goes on by itself; then it is taken up again, as
        by a service that has just started."""
        while True:
            try:
                await self._drive_while_there_is_a_database(run_id)
                return
            except DatabaseUnavailable as error:
                log.warning("run %s waits for the database: %s", run_id, error.message)
            await asyncio.sleep(_DATABASE_RETRY_S)

    async def _drive_while_there_is_a_database(self, run_id: str) -> None:
        """A mistake of ours ends that run, never the service."""
        run = self._store.run(run_id)
        if run is not None and run.status.is_final:  # kept, but the database went before it could say so
            await self._backend.stop(run.project_id)
            folder = self._backend.run_folder(run.project_id, run.id)
            await asyncio.to_thread(clear_run_folder, folder, unkept_models(folder, run))
            return
        driver = RunDriver(self._workshop, run_id)
        driving = asyncio.create_task(driver.drive(), name=f"driver of run {run_id}")
        try:
            await asyncio.wait({driving})
        finally:
            driving.cancel()
            await asyncio.wait({driving})
        if error := driving.exception():
            if isinstance(error, DatabaseUnavailable):
                raise error
            log.error("run %s was lost", run_id, exc_info=error)
            run = self._store.run(run_id)
            if run is not None and not run.status.is_final:
                await driver.end(RunStatus.FAILED, _OUR_FAULT)
