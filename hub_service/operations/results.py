"""What came out of a run, for its project's members: models, record, card, signature, capsule. Audited."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

from federator.contract import ModelFile, SignedRecord

from hub_service import run_views
from hub_service.audit import Decision
from hub_service.domain.errors import Invalid, NotFound
from hub_service.domain.policy import Action
from hub_service.domain.projects import Principal
from hub_service.domain.runs import Run
from hub_service.operations.runs import RunOperations
from hub_service.results.capsule import Capsule
from hub_service.results.card import model_card

LAST, BEST = "last", "best"


class ResultOperations(RunOperations):
    """Models, records and what is made of them."""

    def models(self, principal: Principal, run_id: str) -> tuple[ModelFile, ...]:
        """The models that are kept of a run, by round."""
        return self._run_detail(self._enter_run(principal, Action.SEE_RUNS, run_id)[0]).models

    async def model_path(self, principal: Principal, run_id: str, which: str = LAST) -> Path:
        """Where one of the run's models lies, for a download; the audit log notes it.

        Args:
            which: "last", "best", or a round's number.

        Raises NotFound while there is none, or where it was not kept; Invalid for another `which`.
        """
        run, _ = self._enter_run(principal, Action.DOWNLOAD, run_id)
        if not run.model_sha256:
            raise NotFound("This run has no model.", "A run has a model once its first round is done and it has ended.")
        sha256 = self._model_sha256(run, which)
        path = await asyncio.to_thread(self._artifacts.model, sha256)
        self._audit.note(principal.name, Decision.MODEL_DOWNLOADED, run.project_id, run=run.id, model=sha256)
        return path

    def _model_sha256(self, run: Run, which: str) -> str:
        if which == LAST:
            return run.model_sha256
        if which == BEST:
            number = self._run_detail(run).best_round
            if not number:
                raise NotFound("No round can be told to be the best.", "The app reports no metric of its test data.")
        elif which.isascii() and which.isdigit() and len(which) < 10:
            number = int(which)
        else:
            raise Invalid("There is no such model.", "Ask for “last”, “best” or a round's number.")
        found = {run.model_round: run.model_sha256} | {one.round: one.sha256 for one in run.models}
        if number not in found:
            has = ", ".join(map(str, sorted(found)))
            raise NotFound(f"The model of round {number} was not kept.", f"There are those of rounds {has}.")
        return found[number]

    def record(self, principal: Principal, run_id: str) -> dict[str, Any]:
        """What belongs beside the run's model, in JSON's own types."""
        run, _ = self._enter_run(principal, Action.DOWNLOAD, run_id)
        self._audit.note(principal.name, Decision.RECORD_DOWNLOADED, run.project_id, run=run.id)
        return self._record(run)

    def signed_record(self, principal: Principal, run_id: str) -> SignedRecord:
        """The record with the service's signature over it and the model's hash."""
        run, _ = self._enter_run(principal, Action.DOWNLOAD, run_id)
        self._audit.note(principal.name, Decision.RECORD_DOWNLOADED, run.project_id, run=run.id)
        return self._signing_key.sign(self._record(run), run.model_sha256)

    def card(self, principal: Principal, run_id: str) -> str:
        """The model's card, in Markdown."""
        run, _ = self._enter_run(principal, Action.DOWNLOAD, run_id)
        self._audit.note(principal.name, Decision.CARD_DOWNLOADED, run.project_id, run=run.id)
        return model_card(self._record(run))

    async def capsule(self, principal: Principal, run_id: str) -> Capsule:
        """What reproduces the run on stock Flower. Raises NotFound where the run has no model to compare with."""
        run, _ = self._enter_run(principal, Action.DOWNLOAD, run_id)
        if not run.model_sha256:
            raise NotFound("This run has no model.", "A capsule reproduces a model: there must be one.")
        signed = self._signing_key.sign(self._record(run), run.model_sha256)
        self._audit.note(
            principal.name, Decision.CAPSULE_DOWNLOADED, run.project_id, run=run.id, model=run.model_sha256
        )
        return Capsule(
            fab=await asyncio.to_thread(self._artifacts.fab, run.fab_hash),
            model=await asyncio.to_thread(self._artifacts.model, run.model_sha256),
            signed=signed,
            sites=tuple(run.sites.values()),
            config=run_views.run_config(run, self._version(run.project_id, run.fab_hash)),
        )

    def signing_key(self) -> str:
        """The public key of the service's signatures, PEM. Everybody may have it."""
        return self._signing_key.public_pem

    def _record(self, run: Run) -> dict[str, Any]:
        project = self._store.project(run.project_id)
        if project is None:
            raise NotFound("The project is gone.", debug=run.id)
        taking_part = [one for one in self._store.participations(project.id) if one.id in run.sites]
        version = self._version(project.id, run.fab_hash)
        record = run_views.record(project, run, version, taking_part, self._run_detail(run), self._aggregator_image)
        plain: dict[str, Any] = json.loads(json.dumps(record))
        return plain
