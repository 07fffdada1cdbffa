"""Removes what nobody needs any more: what deleted projects leave behind, models past their time, leftovers of crashes.

What is to be removed for good was written down before (`Artifacts.note_leaving`), so a crash in the middle only puts it
off until the next start. Anything else goes only when it has been of no use for long: a database that was restored, or
named wrongly, must not cost the models of another.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Iterable
from dataclasses import replace
from datetime import timedelta

from federator.contract import ModelFile

from hub_service.aggregators.base import AggregatorBackend
from hub_service.aggregators.run_folder import clear_run_folder
from hub_service.artifacts import INCOMING, Artifacts, model_name
from hub_service.audit import AuditLog, Decision
from hub_service.changes import LEAVING_TOPIC, Changes
from hub_service.deletion import named_by
from hub_service.domain.clock import Clock
from hub_service.domain.errors import Unavailable
from hub_service.domain.runs import Run
from hub_service.left_models import LeftModels
from hub_service.results.models import KEEP_BYTES, best_round
from hub_service.run_history import standing
from hub_service.run_views import rounds
from hub_service.store.base import Store

log = logging.getLogger(__name__)

LOOK_EVERY_S = 6 * 3600.0
UNNAMED_AFTER = timedelta(days=7)
INCOMING_AFTER = timedelta(days=1)


class Sweeper:
    """`run()` is one of the service's background tasks.

    Args:
        keep_rounds: how long after a run's end the models of its rounds are kept; its last and its best one are kept
            as long as the project. None: all of them are.
        keep_model_bytes: of the models of one run's rounds that are kept.
    """

    def __init__(
        self,
        *,
        store: Store,
        artifacts: Artifacts,
        backend: AggregatorBackend,
        changes: Changes,
        clock: Clock,
        keep_rounds: timedelta | None = None,
        keep_model_bytes: int = KEEP_BYTES,
    ) -> None:
        self._store = store
        self._artifacts = artifacts
        self._backend = backend
        self._changes = changes
        self._clock = clock
        self._keep_rounds = keep_rounds
        self._audit = AuditLog(store, clock)
        self._left = LeftModels(store, artifacts, changes, self._audit, keep_model_bytes)

    async def run(self) -> None:
        """Sweep at once, when a project is deleted, and every few hours. Ends when cancelled."""
        while True:
            seen = self._changes.revision(LEAVING_TOPIC)
            try:
                await self.sweep()
            except Unavailable as error:  # what is left then is still left at the next look
                log.warning("not everything was removed: %s %s", error.message, error.debug)
            await self._changes.wait(LEAVING_TOPIC, seen, LOOK_EVERY_S)

    async def sweep(self) -> None:
        """Remove all that is to be removed now. Raises Unavailable where something could not be."""
        await self._clear_run_folders()
        await self._remove_old_rounds()
        await self._remove_leaving()
        await self._remove_unnamed()

    async def _clear_run_folders(self) -> None:
        """Of runs that have ended: a service may have ended before it could, or a disk may have had no room."""
        for run in self._all_runs():
            if run.status.is_final:
                folder = self._backend.run_folder(run.project_id, run.id)
                await asyncio.to_thread(clear_run_folder, folder, await self._left.keep(run, folder))

    async def _remove_leaving(self) -> None:
        leaving = await asyncio.to_thread(self._artifacts.leaving)
        for project_id, names in leaving.items():
            if self._store.project(project_id) is None:  # else the service ended before the project was deleted
                await self._backend.forget(project_id)
                await self._remove(names)
                log.info("nothing is left of project %s", project_id)
            await asyncio.to_thread(self._artifacts.has_left, project_id)

    async def _remove_old_rounds(self) -> None:
        if self._keep_rounds is None:
            return
        before = self._clock() - self._keep_rounds
        for run in self._all_runs():
            if run.models and run.finished_at is not None and run.finished_at < before:
                kept = tuple(self._kept_for_good(run))
                if kept != run.models:
                    await self._remove_rounds(run, kept)

    def _kept_for_good(self, run: Run) -> Iterable[ModelFile]:
        best, _ = best_round(rounds(run, standing(self._store.events(run.id))))
        last = max(model.round for model in run.models)
        return (model for model in run.models if model.round in (best, last) or model.sha256 == run.model_sha256)

    async def _remove_rounds(self, run: Run, kept: tuple[ModelFile, ...]) -> None:
        gone = [model for model in run.models if model not in kept]
        with self._store.transaction():
            self._store.put_run(replace(run, models=kept))
            self._audit.note(
                "service",
                Decision.MODELS_REMOVED,
                run.project_id,
                run=run.id,
                rounds=" ".join(str(model.round) for model in gone),
            )
        # Where this is cut short, they are unnamed and go later.
        await self._remove([model_name(model.sha256) for model in gone])

    async def _remove_unnamed(self) -> None:
        there = await asyncio.to_thread(self._artifacts.names)
        named = self._named()
        if not named:  # more likely another's database than a service that has kept things and names none of them
            return
        now = self._clock()
        past = {name: (now - since).days for name, since in there.items() if now - since > _spared(name)}
        for name in past.keys() - named:
            log.info("removing %s, which nothing has named for %d days", name, past[name])
        await self._remove(past)

    async def _remove(self, names: Collection[str]) -> None:
        """Remove those that nothing names now. What is put meanwhile stays."""
        self._artifacts.let_go(set(names) - self._named())
        await asyncio.to_thread(self._artifacts.remove)

    def _named(self) -> set[str]:
        named = set[str]()
        for project in self._store.projects():
            named |= named_by(self._store.app_versions(project.id), self._store.runs(project.id))
        return named

    def _all_runs(self) -> list[Run]:
        return [run for project in self._store.projects() for run in self._store.runs(project.id)]


def _spared(name: str) -> timedelta:
    return INCOMING_AFTER if name.rpartition("/")[2].startswith(INCOMING) else UNNAMED_AFTER
