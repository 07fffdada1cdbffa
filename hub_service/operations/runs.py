"""Runs: asked for here, driven by `hub_service.reconciler`; their results and downloads."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from federator.contract import ApprovalState, MemberState, RunDetail, RunLog, RunStatus, RunSummary

from hub_service import run_views, views
from hub_service.audit import Decision
from hub_service.changes import RUNS_TOPIC, project_topic
from hub_service.domain.approvals import allows_rounds, rounds_limit
from hub_service.domain.errors import Conflict, Invalid
from hub_service.domain.policy import Action, Role
from hub_service.domain.projects import AppVersion, Participation, Principal, Project
from hub_service.domain.runs import LARGEST_SEED, MOST_ROUNDS, SEED_KEY, Run, RunTarget
from hub_service.log_text import cleaned
from hub_service.operations.base import Operations
from hub_service.presence import CONNECTED_STATES
from hub_service.run_activity import with_activity
from hub_service.run_history import standing
from hub_service.run_progress import with_site_names
from hub_service.site_stages import StageSince


class RunOperations(Operations):
    """Start, stop, show, download."""

    def start_run(
        self, principal: Principal, project_id: str, rounds: int, compare: bool, seed: int | None = None
    ) -> RunSummary:
        """Ask for a run of the newest version with every site that is ready; the reconciler starts it.

        Args:
            seed: in place of the app's own, where its config has a `seed`.

        Raises Invalid for a bad number of rounds or a seed that the app does not take, Conflict if a run is in flight,
        or no app or no site is ready.
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
        _check_seed(seed, versions[-1])
        sites = self._ready_sites(project, role, versions[-1].fab_hash, rounds)
        self._quotas.require_run(project, sites)
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
            message=" ".join(self._round_limits(project, versions[-1].fab_hash, rounds).values()),
            started_by=principal.name,
            sites=sites,
            created_at=self._clock(),
            finished_at=None,
            model_sha256="",
            model_size=0,
            model_round=0,
            seed=seed,
            on_outage=project.on_outage,
            grace_s=project.grace_s,
        )
        with self._store.transaction():
            self._store.put_run(run)
            self._audit.note(
                principal.name, Decision.RUN_STARTED, project.id, run=run.id, fab=run.fab_hash, rounds=str(rounds)
            )
        self._changes.announce(project_topic(project.id), RUNS_TOPIC)
        return views.run_summary(run)

    def _ready_sites(self, project: Project, role: Role, fab_hash: str, rounds: int) -> dict[str, str]:
        """Participation ids and site names of those that can work now. Raises Conflict, saying why, if none."""
        active = [one for one in self._store.participations(project.id) if one.active]
        limits = self._round_limits(project, fab_hash, rounds)
        ready = [one for one in active if one.id not in limits and self._is_ready(one, fab_hash)]
        if ready:
            return _site_names(ready)
        waiting = [
            f"{one.user} ({one.site_title}): {one.detail}" if one.site_title else f"{one.user}: {one.detail}"
            for one in self._views.participants(project, role)
            if one.state in (MemberState.INVITED, MemberState.JOINED) and one.participation_id not in limits
        ]
        raise Conflict("No site is ready for a run yet.", " ".join([*limits.values(), *waiting]))

    def _round_limits(self, project: Project, fab_hash: str, rounds: int) -> dict[str, str]:
        """Participations whose approval does not allow so many rounds, each with the reason for the project's members.

        They are left out of the run, as those that are not ready.
        """
        limits = {}
        for one in self._store.participations(project.id):
            conditions = self._consent.conditions(one, fab_hash)
            approved = one.active and self._consent.state(one, fab_hash) is ApprovalState.APPROVED
            if approved and not allows_rounds(conditions, rounds):
                title = self._views.site_title(one.site)
                limits[one.id] = rounds_limit(f"{title} takes no part", conditions)
        return limits

    def _is_ready(self, participation: Participation, fab_hash: str) -> bool:
        return (
            participation.public_key is not None
            and not self._views.lacking(participation.site, self._version(participation.project_id, fab_hash))
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
        events = standing(self._store.events(run.id))
        detail = replace(
            run_views.run_detail(run, version.number, events), seed=run_views.run_config(run, version).get(SEED_KEY)
        )
        return with_activity(
            detail, run, events, stages=self._stages_at(run), offline=self._offline_at(run), now=self._clock()
        )

    def _stages_at(self, run: Run) -> dict[str, StageSince]:
        known = {site: self._stages.of(participation_id) for participation_id, site in run.sites.items()}
        return {site: stage for site, stage in known.items() if stage is not None}

    def _offline_at(self, run: Run) -> dict[str, str]:
        """The run's sites whose client is not connected, with what their server said of it."""
        participations = {one.id: one for one in self._store.participations(run.project_id)}
        offline = {}
        for participation_id, site in run.sites.items():
            one = participations.get(participation_id)
            if one is None or not one.active:
                offline[site] = "It no longer takes part."
            elif self._presence.state(one) not in CONNECTED_STATES:
                offline[site] = one.client_detail
        return offline

    async def run_log(self, principal: Principal, run_id: str, after: int) -> RunLog:
        """What the run's ServerApp has printed behind a place in its log, for the project's members."""
        run, _ = self._enter_run(principal, Action.SEE_RUNS, run_id)
        piece = await self._serverapp_log(run.project_id, run.id, after)
        text = await asyncio.to_thread(
            cleaned, piece.data.decode("utf-8", errors="replace"), partial(with_site_names, run)
        )
        return RunLog(text, piece.start, piece.end)


def _check_seed(seed: int | None, version: AppVersion) -> None:
    if seed is None:
        return
    if SEED_KEY not in version.config_keys:
        raise Invalid(
            "This app takes no seed.", f"Give its [tool.flwr.app.config] a “{SEED_KEY}”, or leave the field empty."
        )
    if not 0 <= seed < LARGEST_SEED:
        raise Invalid(f"A seed is a whole number from 0 to {LARGEST_SEED - 1}.", "Choose one in that range.")


def _site_names(participations: Sequence[Participation]) -> dict[str, str]:
    """A name for each participation's place: the site, and the dataset too where a site takes part with several."""
    slugs = [one.site for one in participations]
    return {one.id: one.site if slugs.count(one.site) == 1 else f"{one.site}/{one.dataset}" for one in participations}
