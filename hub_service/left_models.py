"""Models that a run wrote: which of its rounds' are kept, and what becomes of those that could not be when it ended.

A run waits until its models can be kept. Where its owner stops it instead, they stay in its folder: `LeftModels`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from federator.contract import ModelFile

from hub_service.aggregators.events import MODEL_FILE
from hub_service.aggregators.run_folder import unkept_models
from hub_service.artifacts import Artifacts
from hub_service.audit import AuditLog, Decision
from hub_service.changes import Changes, project_topic
from hub_service.deletion import named_by
from hub_service.domain.errors import NotFound, Unavailable
from hub_service.domain.runs import EventKind, Run, RunEvent
from hub_service.results.models import RoundModels, best_round
from hub_service.run_history import standing
from hub_service.run_views import rounds
from hub_service.store.base import Store

log = logging.getLogger(__name__)

LEFT = "It stays on the service's disk; every few hours the service looks whether there is room, and keeps it then."
KEPT_LATER = "It was kept later, when there was room."


def models_to_keep(folder: Path, run: Run, events: Sequence[RunEvent], budget: int) -> dict[int, Path]:
    """The files of those of a run's rounds whose models are kept for good, by round.

    Args:
        folder: the run's.
        events: all of the run's.
        budget: bytes that they may have together.
    """
    there = RoundModels(folder, budget)
    held = standing(events)
    for event in held:
        if event.kind is EventKind.MODEL:
            there.add(event.round, event.size)
    best, _ = best_round(rounds(run, held))
    return there.to_keep(best)


class LeftModels:
    """Keeps what was left in the folders of runs that have ended. Called by the sweeper."""

    def __init__(self, store: Store, artifacts: Artifacts, changes: Changes, audit: AuditLog, budget: int) -> None:
        self._store = store
        self._artifacts = artifacts
        self._changes = changes
        self._audit = audit
        self._budget = budget

    async def keep(self, run: Run, folder: Path) -> set[str]:
        """Keep what there is room for now. Returns the names of the files that have to stay in the folder."""
        left = unkept_models(folder, run)
        if not left:
            return left
        kept = run
        try:
            if MODEL_FILE in left and not run.model_sha256:
                with suppress(NotFound):
                    sha256, size = await self._put(folder / MODEL_FILE)
                    kept = replace(kept, model_sha256=sha256, model_size=size)
            for number, path in models_to_keep(folder, run, self._store.events(run.id), self._budget).items():
                if path.name in left:
                    with suppress(NotFound):
                        kept = replace(kept, models=(*kept.models, ModelFile(*await self._put(path), number)))
        except Unavailable as error:
            log.info("models of run %s are still not kept: %s %s", run.id, error.message, error.debug)
            left = unkept_models(folder, kept)
        else:
            kept = replace(kept, message=kept.message.replace(LEFT, KEPT_LATER))
            left = set()
        if kept != run and not self._note(run, kept):
            return unkept_models(folder, run)
        return left

    async def _put(self, model: Path) -> tuple[str, int]:
        return await asyncio.to_thread(self._artifacts.put_model, model)

    def _note(self, before: Run, run: Run) -> bool:
        """Write it down, unless the run was deleted or changed while its models were copied."""
        added = sorted(model.round for model in run.models if model not in before.models)
        self._artifacts.written(*named_by((), [run]))  # from here on the database says whether they are needed
        with self._store.transaction():
            if self._store.run(run.id) != before:
                return False
            self._store.put_run(run)
            self._audit.note(
                "service",
                Decision.MODELS_KEPT,
                run.project_id,
                run=run.id,
                model=run.model_sha256,
                rounds=" ".join(map(str, added)),
            )
        self._changes.announce(project_topic(run.project_id))
        return True
