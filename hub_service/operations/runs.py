"""Runs: asked for here, driven by `hub_service.reconciler`; their results and downloads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from federator.contract import ApprovalState, MemberState, RunDetail, RunStatus, RunSummary

from hub_service import run_views, views
from hub_service.audit import Decision
from hub_service.changes import RUNS_TOPIC, project_topic
from hub_service.domain.errors import Conflict, Invalid, NotFound
from hub_service.domain.policy import Action, Role
from hub_service.domain.projects import Participation, Principal, Project
from hub_service.domain.runs import Run, RunTarget
from hub_service.operations.base import Operations
from hub_service.presence import CONNECTED_STATES

MOST_ROUNDS = 1000


class RunOperations(Operations):
    """Start, stop, show, download."""

    def start_run(self, principal: Principal, project_id: str, rounds: int, compare: bool) -> RunSummary:
        """Ask for a run of the newest version with every site that is ready; the reconciler starts it.

        Raises Invalid for a bad number of rounds, Conflict if a run is in flight, or no app or no site is ready.
        """
        project, _, role = self._enter(principal, Action.START, project_id)
        if not 1 <= rounds <= MOST_ROUNDS:
            raise Invalid(f"A run has 1 to {MOST_ROUNDS} rounds.", "Choose a number in that range.")
        runs = self._store.runs(project.id)
        if any(not run.status.is_final for run in runs):
            raise Conflict("A run of this project is in flight.", "Wait for its end, or stop it.")
        versions = self._store.app_versions(project.id)
        if not versions:
            raise Conflict("The project has no app yet.", "Add a notebook or a Flower app first.")
        run = Run(
            id=self._new_id(),
            project_id=project.id,
            number=len(runs) + 1,
            fab_hash=versions[-1].fab_hash,
            rounds=rounds,
            compare=compare,
            target=RunTarget.FINISHED,
            status=RunStatus.STARTING,
            phase="starting the aggregator",
            message="",
            started_by=principal.name,
            sites=self._ready_sites(project, role, versions[-1].fab_hash),
            created_at=self._clock(),
            finished_at=None,
            model_sha256="",
            model_size=0,
            model_round=0,
        )
        with self._store.transaction():
            self._store.put_run(run)
            self._audit.note(
                principal.name, Decision.RUN_STARTED, project.id, run=run.id, fab=run.fab_hash, rounds=str(rounds)
            )
        self._changes.announce(project_topic(project.id), RUNS_TOPIC)
        return views.run_summary(run)

    def _ready_sites(self, project: Project, role: Role, fab_hash: str) -> dict[str, str]:
        """Participation ids and site names of those that can work now. Raises Conflict, saying why, if none."""
        active = [one for one in self._store.participations(project.id) if one.active]
        ready = [one for one in active if self._is_ready(one, fab_hash)]
        if ready:
            return _site_names(ready)
        waiting = [
            f"{one.user} ({one.site_title}): {one.detail}" if one.site_title else f"{one.user}: {one.detail}"
            for one in self._views.participants(project, role)
            if one.state in (MemberState.INVITED, MemberState.JOINED)
        ]
        raise Conflict("No site is ready for a run yet.", " ".join(waiting))

    def _is_ready(self, participation: Participation, fab_hash: str) -> bool:
        return (
            participation.public_key is not None
            and self._consent.state(participation, fab_hash) is ApprovalState.APPROVED
            and self._presence.state(participation) in CONNECTED_STATES
        )

    def stop_run(self, principal: Principal, run_id: str) -> RunSummary:
        """Ask for a run's end; the reconciler stops it. Raises Conflict for a run that has ended."""
        run, _ = self._enter_run(principal, Action.STOP, run_id)
        if run.status.is_final:
            raise Conflict("The run has ended already.")
        run = replace(run, target=RunTarget.STOPPED, phase="stopping")
        with self._store.transaction():
            self._store.put_run(run)
            self._audit.note(principal.name, Decision.RUN_STOP_ASKED, run.project_id, run=run.id)
        self._changes.announce(project_topic(run.project_id), RUNS_TOPIC)
        return views.run_summary(run)

    def run(self, principal: Principal, run_id: str) -> RunDetail:
        run, _ = self._enter_run(principal, Action.SEE_RUNS, run_id)
        return self._run_detail(run)

    def _run_detail(self, run: Run) -> RunDetail:
        version = self._version(run.project_id, run.fab_hash)
        return run_views.run_detail(run, version.number, self._store.events(run.id))

    def model_path(self, principal: Principal, run_id: str) -> Path:
        """Where the run's model lies, for a download; the audit log notes it. Raises NotFound while there is none."""
        run, _ = self._enter_run(principal, Action.DOWNLOAD, run_id)
        if not run.model_sha256:
            raise NotFound("This run has no model.", "A run has a model once its first round is done and it has ended.")
        path = self._artifacts.model(run.model_sha256)
        self._audit.note(principal.name, Decision.MODEL_DOWNLOADED, run.project_id, run=run.id, model=run.model_sha256)
        return path

    def record(self, principal: Principal, run_id: str) -> dict[str, object]:
        """What belongs beside the run's model, in JSON's own types."""
        run, project = self._enter_run(principal, Action.DOWNLOAD, run_id)
        taking_part = [one for one in self._store.participations(project.id) if one.id in run.sites]
        version = self._version(project.id, run.fab_hash)
        self._audit.note(principal.name, Decision.RECORD_DOWNLOADED, project.id, run=run.id)
        return run_views.record(project, run, version, taking_part, self._run_detail(run))


def _site_names(participations: Sequence[Participation]) -> dict[str, str]:
    """A name for each participation's place: the site, and the dataset too where a site takes part with several."""
    slugs = [one.site for one in participations]
    return {one.id: one.site if slugs.count(one.site) == 1 else f"{one.site}/{one.dataset}" for one in participations}
