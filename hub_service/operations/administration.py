"""For the Hub's administrators: the state of everything, and a repair for what can be stuck.

They see that something runs, for whom and since when; they do not see what a project computes. Every repair can be
asked for twice: the second time it finds nothing to do, and says so. Each that did something is a line of the
audit log.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from enum import StrEnum
from typing import Protocol

from federator.contract import ClientState, MemberState, Scope

from hub_service.administration_views import (
    ClientOfProject,
    ErrorLine,
    FederationState,
    Orphan,
    ProjectState,
    RunState,
    SiteState,
)
from hub_service.audit import Decision
from hub_service.changes import LEAVING_TOPIC, RUNS_TOPIC, project_topic, user_topic
from hub_service.domain import policy
from hub_service.domain.clock import utc_text
from hub_service.domain.errors import Invalid, NotFound, Unavailable
from hub_service.domain.projects import Participation, Principal, Project
from hub_service.domain.quotas import Use, stored_bytes
from hub_service.domain.runs import Run, RunTarget
from hub_service.operations.base import Operations
from hub_service.presence import CONNECTED_STATES
from hub_service.service_figures import Figures

OTHER_SITE = "other"  # in figures: one that the deployment does not know any more


class Repair(StrEnum):
    """What an administrator can have done. The values stand in forms and in the audit log."""

    STOP_RUN = "stop-run"  # as its owner can
    RESTART_AGGREGATOR = "restart-aggregator"  # end it; its run resumes behind the last finished round
    END_AGGREGATOR = "end-aggregator"  # one whose project has no run
    DISCONNECT_CLIENT = "disconnect-client"  # its node's key opens nothing any more
    CLEAR_PARTICIPATION = "clear-participation"  # forget its client; its server starts another one
    SEND_NOTICES = "send-notices"  # try those again that were given up
    SWEEP_ARTIFACTS = "sweep-artifacts"  # remove now what no project names any more


class Carried(Protocol):
    """Bytes between the gateway and one participation's node."""

    @property
    def from_node(self) -> int: ...
    @property
    def to_node(self) -> int: ...


class AdministrationOperations(Operations):
    """See the module's text."""

    def administers(self, principal: Principal) -> bool:
        """Whether the person may see the administrators' page."""
        return Scope.ADMINISTER in principal.scopes

    async def federation_state(self, principal: Principal) -> FederationState:
        """Raises Forbidden for everybody else."""
        policy.require_scope(principal, Scope.ADMINISTER)
        machinery = self._machinery
        parts, aggregators = await machinery.parts(), await machinery.aggregators()
        projects, runs = self._store.projects(), self._store.unfinished_runs()
        names = {project.id: project.name for project in projects}
        states = [self._project_state(project) for project in projects]
        return FederationState(
            parts=parts,
            disk=machinery.disk(),
            sites=[self._site_state(slug, runs) for slug in self._sites],
            projects=states,
            runs=[self._run_state(run, names, aggregators) for run in runs],
            aggregators=None if aggregators is None else len(aggregators),
            orphans=[Orphan(one, names.get(one, "")) for one in _orphans(aggregators or (), runs)],
            clients=[self._client(one, names) for project in projects for one in self._known_clients(project)],
            notices_waiting=machinery.notices_waiting(),
            undelivered=machinery.undelivered(),
            quotas=self._uses_of_all(projects, runs, sum(state.stored for state in states)),
            errors=[
                ErrorLine(utc_text(datetime.fromtimestamp(at, UTC)), text)
                for at, text in reversed(tuple(machinery.last_errors))
            ],
        )

    def _site_state(self, slug: str, runs: Sequence[Run]) -> SiteState:
        site, packages = self._sites[slug], self._store.site_packages(slug)
        participations = self._store.active_participations_at(slug)
        states = [self._presence.state(one) for one in participations]
        here = {one.id for one in participations}
        return SiteState(
            slug=slug,
            title=site.title,
            kind=site.kind,
            participations=len(states),
            connected=sum(state in CONNECTED_STATES for state in states),
            failed=states.count(ClientState.FAILED),
            runs=sum(not here.isdisjoint(run.sites) for run in runs),
            packages=0 if packages is None else len(packages.distributions),
            reported_at="" if packages is None else utc_text(packages.reported_at),
        )

    def _project_state(self, project: Project) -> ProjectState:
        runs = self._store.runs(project.id)
        stored = Use("", stored_bytes(self._store.app_versions(project.id), runs), self._quotas.quotas.project_bytes)
        return ProjectState(
            id=project.id,
            name=project.name,
            owner=project.owner,
            members=sum(
                one.state in (MemberState.JOINED, MemberState.INVITED) for one in self._store.members(project.id)
            ),
            sites=len({one.site for one in self._store.participations(project.id) if one.active}),
            runs=len(runs),
            stored=stored.used,
            near=stored.near,
        )

    def _run_state(self, run: Run, names: Mapping[str, str], aggregators: Sequence[str] | None) -> RunState:
        return RunState(
            id=run.id,
            project_id=run.project_id,
            project_name=names.get(run.project_id, ""),
            number=run.number,
            status=run.status,
            phase=run.phase,
            created_at=utc_text(run.created_at),
            seconds=(self._clock() - run.created_at).total_seconds(),
            resumed=run.resumed,
            sites=len(run.sites),
            has_aggregator=None if aggregators is None else run.project_id in aggregators,
            stopping=run.target is RunTarget.STOPPED,
        )

    def _known_clients(self, project: Project) -> list[Participation]:
        """Those that are, or were, connected: the others wait for a person, not for a repair."""
        return [
            one
            for one in self._store.participations(project.id)
            if one.active and (one.public_key is not None or one.client is not ClientState.OFFLINE)
        ]

    def _client(self, participation: Participation, names: Mapping[str, str]) -> ClientOfProject:
        return ClientOfProject(
            participation_id=participation.id,
            project_name=names.get(participation.project_id, ""),
            user=participation.user,
            site_title=self._views.site_title(participation.site),
            state=self._presence.state(participation),
            has_key=participation.public_key is not None,
        )

    def _uses_of_all(self, projects: Sequence[Project], runs: Sequence[Run], stored: int) -> list[Use]:
        """What is used of the quotas that hold for all, and of the others by whoever uses most."""
        quotas = self._quotas.quotas
        owners = [project.owner for project in projects]
        owner_of = {project.id: project.owner for project in projects}
        in_flight = [owner_of.get(run.project_id, "") for run in runs]
        return [
            Use("runs in flight", len(runs), quotas.runs),
            Use("stored by all projects", stored, quotas.all_bytes, in_bytes=True),
            *_busiest("projects of", owners, quotas.projects_per_user),
            *_busiest("runs in flight in projects of", in_flight, quotas.runs_per_user),
            *_busiest("runs in flight at", _sites_of(runs), quotas.runs_per_site),
        ]

    # --- repairs

    async def repair(self, principal: Principal, repair: Repair, target: str) -> str:
        """Do it, and say what was done.

        Args:
            target: id of the run, the project or the participation; "" for SEND_NOTICES and SWEEP_ARTIFACTS.

        Raises Forbidden for everybody but administrators, NotFound for what is not there, Unavailable where aggregators
        cannot be reached.
        """
        policy.require_scope(principal, Scope.ADMINISTER)
        repairs: Mapping[Repair, Callable[[Principal, str], Awaitable[str]]] = {
            Repair.STOP_RUN: self._stop_any_run,
            Repair.RESTART_AGGREGATOR: self._restart_aggregator,
            Repair.END_AGGREGATOR: self._end_orphan,
            Repair.DISCONNECT_CLIENT: self._disconnect_client,
            Repair.CLEAR_PARTICIPATION: self._clear_participation,
            Repair.SEND_NOTICES: self._send_notices,
            Repair.SWEEP_ARTIFACTS: self._sweep_artifacts,
        }
        return await repairs[repair](principal, target)

    async def _stop_any_run(self, principal: Principal, run_id: str) -> str:
        run = self._store.run(run_id)
        if run is None:
            raise _gone("run")
        if run.status.is_final:
            return "The run has ended already."
        if run.target is RunTarget.STOPPED:
            return "The run is being stopped already."
        with self._store.transaction():
            self._store.put_run(replace(run, target=RunTarget.STOPPED, phase="stopping"))
            self._note(principal, Repair.STOP_RUN, run.project_id, run=run.id)
        self._changes.announce(project_topic(run.project_id), RUNS_TOPIC)
        return "The run is being stopped."

    async def _restart_aggregator(self, principal: Principal, project_id: str) -> str:
        running = await self._running()
        run = next((one for one in self._store.unfinished_runs() if one.project_id == project_id), None)
        if run is None:
            return "The project has no run in flight, so nothing is begun anew."
        if project_id not in running:
            return "The aggregator is not running; it is being begun anew already."
        self._note(principal, Repair.RESTART_AGGREGATOR, project_id, run=run.id)
        await self._machinery.end_aggregator(project_id)
        return "The aggregator was ended. The run goes on behind its last finished round."

    async def _end_orphan(self, principal: Principal, project_id: str) -> str:
        if project_id not in _orphans(await self._running(), self._store.unfinished_runs()):
            return "No such aggregator runs without a run any more."
        self._note(principal, Repair.END_AGGREGATOR, project_id)
        await self._machinery.end_aggregator(project_id)
        return "The aggregator was ended."

    async def _running(self) -> Sequence[str]:
        running = await self._machinery.aggregators()
        if running is None:
            raise Unavailable("Which aggregators run is not known now.", "Try again once their engine answers.")
        return running

    async def _disconnect_client(self, principal: Principal, participation_id: str) -> str:
        participation = self._active(participation_id)
        if participation.public_key is None:
            return "The client has no key: it is disconnected already."
        disconnected = replace(participation, public_key=None, node_id=None, client=ClientState.OFFLINE)
        self._put_repaired(principal, Repair.DISCONNECT_CLIENT, disconnected)
        return f"The client of {participation.user} is disconnected."

    async def _clear_participation(self, principal: Principal, participation_id: str) -> str:
        participation = self._active(participation_id)
        if participation.public_key is None and participation.client is ClientState.OFFLINE:
            return "There is nothing to clear."
        cleared = replace(
            participation,
            public_key=None,
            node_id=None,
            client=ClientState.OFFLINE,
            client_detail="",
            kernel_id=self._new_id(),
        )
        self._put_repaired(principal, Repair.CLEAR_PARTICIPATION, cleared)
        return f"The client of {participation.user} is forgotten. Their server, if it runs, starts another one."

    async def _send_notices(self, principal: Principal, _: str) -> str:
        again = self._machinery.send_again()
        if not again:
            return "No notice waits to be sent again."
        self._note(principal, Repair.SEND_NOTICES, "", deliveries=str(again))
        return f"{again} {'delivery is' if again == 1 else 'deliveries are'} tried again."

    async def _sweep_artifacts(self, principal: Principal, _: str) -> str:
        """`hub_service.sweeper` looks at once; it removes nothing that anything names."""
        self._note(principal, Repair.SWEEP_ARTIFACTS, "")
        self._changes.announce(LEAVING_TOPIC)
        return "What is left of deleted projects and of old models is being removed."

    def _active(self, participation_id: str) -> Participation:
        participation = self._store.participation(participation_id)
        if participation is None or not participation.active:
            raise _gone("participation")
        return participation

    def _put_repaired(self, principal: Principal, repair: Repair, participation: Participation) -> None:
        with self._store.transaction():
            self._store.put_participation(participation)
            self._note(principal, repair, participation.project_id, participation=participation.id)
        self._presence.forget(participation.id)
        self._stages.forget(participation.id)
        self._changes.announce(project_topic(participation.project_id), user_topic(participation.user), RUNS_TOPIC)

    def _note(self, principal: Principal, repair: Repair, project_id: str, **detail: str) -> None:
        self._audit.note(principal.name, Decision.REPAIRED, project_id, repair=repair, **detail)

    # --- for the metrics

    async def figures(self, traffic: Mapping[str, Carried]) -> Figures:
        """What is looked up when the metrics are asked for.

        Args:
            traffic: by participation, as the gateway counts it.
        """
        machinery, runs = self._machinery, self._store.unfinished_runs()
        aggregators = await machinery.aggregators()
        statuses = [run.status for run in runs]
        clients: dict[tuple[str, ClientState], int] = {}
        for slug in self._sites:
            states = [self._presence.state(one) for one in self._store.active_participations_at(slug)]
            clients |= {(slug, state): states.count(state) for state in ClientState}
        return Figures(
            runs={status: statuses.count(status) for status in set(statuses)},
            clients=clients,
            traffic=self._traffic_by_site(traffic),
            aggregators=None if aggregators is None else len(aggregators),
            orphans=len(_orphans(aggregators or (), runs)),
            notices=machinery.notices_waiting(),
            undelivered=sum(one.count for one in machinery.undelivered()),
            disk=machinery.disk(),
            followers=self._changes.followers,
            tasks=dict(machinery.tasks),
        )

    def _traffic_by_site(self, traffic: Mapping[str, Carried]) -> dict[tuple[str, str], int]:
        totals = {(slug, direction): 0 for slug in (*self._sites, OTHER_SITE) for direction in ("in", "out")}
        for participation_id, carried in traffic.items():
            participation = self._store.participation(participation_id)
            site = participation.site if participation is not None and participation.site in self._sites else OTHER_SITE
            totals[site, "in"] += carried.to_node
            totals[site, "out"] += carried.from_node
        return totals


def repair_of(text: str) -> Repair:
    """Raises Invalid for what is no repair."""
    try:
        return Repair(text)
    except ValueError:
        raise Invalid("There is no such repair.", "Use the buttons of the page.") from None


def _gone(what: str) -> NotFound:
    return NotFound(f"There is no such {what} any more.", "Reload the page to see what is there now.")


def _orphans(aggregators: Sequence[str], runs: Sequence[Run]) -> list[str]:
    in_flight = {run.project_id for run in runs}
    return [project_id for project_id in aggregators if project_id not in in_flight]


def _sites_of(runs: Sequence[Run]) -> list[str]:
    """Each site once for each run that it takes part in."""
    return [site for run in runs for site in sorted({one.partition("/")[0] for one in run.sites.values()})]


def _busiest(of: str, names: Sequence[str], most: int) -> list[Use]:
    """The use of whoever has most; nothing where nobody has anything."""
    if not names:
        return []
    name = max(sorted(set(names)), key=names.count)
    return [Use(f"{of} {name}", names.count(name), most)]
