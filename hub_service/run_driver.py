"""Drives one run from its row in the store to its end. One asyncio task a run, made by the reconciler."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from federator.contract import ApprovalState, ClientState, ModelFile, RunStatus

from hub_service.aggregators.base import AggregatorBackend, Endpoint, ServerAppSpec
from hub_service.aggregators.events import MODEL_FILE, SERVERAPP_LOG, open_run_file, read_events
from hub_service.aggregators.mail import clear_mail
from hub_service.aggregators.serverapp_log import trim_log
from hub_service.artifacts import Artifacts
from hub_service.audit import AuditLog, Decision
from hub_service.changes import RUNS_TOPIC, Changes, project_topic
from hub_service.consent import Consent
from hub_service.domain.approvals import allows_rounds, rounds_limit
from hub_service.domain.clock import Clock
from hub_service.domain.errors import Conflict, FederationError, Invalid, NotFound, Unavailable
from hub_service.domain.notices import Tell, run_ended, tell_nobody
from hub_service.domain.projects import Participation
from hub_service.domain.runs import ROUNDS_KEY, SEED_KEY, EventKind, Run, RunEvent, RunTarget
from hub_service.results.models import RoundModels, best_round
from hub_service.run_progress import Progress, finite
from hub_service.run_views import rounds
from hub_service.store.base import Store

log = logging.getLogger(__name__)

_LONGEST_LOG_LINE = 300
_END_OF_LOG = 64 * 1024  # bytes
_FOREVER_S = 3600.0  # waiting for a change begins anew after this long
_SOON = 0.125  # of the time between two looks


class FlowerControl(Protocol):
    """What a run needs of the project's SuperLink; `hub_service.aggregators.superlink` is the real one."""

    async def register_node(self, public_key: bytes) -> int:
        """Raises Invalid or Conflict for a key that Flower does not take, Unavailable."""

    async def unregister_node(self, node_id: int) -> None: ...

    async def start_run(self, fab: bytes, config: Mapping[str, str | int | float | bool]) -> int: ...


@dataclass(frozen=True, slots=True)
class Workshop:
    """What every run is driven with.

    Attributes:
        poll_s: how often a run in flight is looked at, in seconds; for a while more often when something happened.
        nodes_wait_s: how long a run waits for its sites' clients, in seconds.
        keep_model_bytes: of the models of its rounds that are kept.
    """

    store: Store
    artifacts: Artifacts
    backend: AggregatorBackend
    superlink: Callable[[Endpoint], FlowerControl]
    changes: Changes
    clock: Clock
    poll_s: float
    nodes_wait_s: float
    keep_model_bytes: int
    tell: Tell = tell_nobody


class RunDriver:
    """One run. `drive` returns when it has ended; cancelled, it leaves the run unfinished and its processes alive."""

    def __init__(self, workshop: Workshop, run_id: str) -> None:
        self._store = workshop.store
        self._artifacts = workshop.artifacts
        self._backend = workshop.backend
        self._superlink = workshop.superlink
        self._changes = workshop.changes
        self._clock = workshop.clock
        self._poll_s = workshop.poll_s
        self._nodes_wait_s = workshop.nodes_wait_s
        self._tell = workshop.tell
        self._keep_model_bytes = workshop.keep_model_bytes
        self._consent = Consent(workshop.store, workshop.clock)
        self._audit = AuditLog(workshop.store, workshop.clock)
        self._run_id = run_id
        self._registered: dict[str, tuple[bytes, int]] = {}  # participation id -> key and node id at the SuperLink
        self._nodes_seen_at = (-1, 0)  # revision of RUNS_TOPIC and round when nodes were last brought up to date

    @property
    def _run(self) -> Run:
        run = self._store.run(self._run_id)
        if run is None:
            raise NotFound("The run is gone.", debug=self._run_id)
        return run

    async def drive(self) -> None:
        """Start the run, or go on with one that an earlier service started, until it ends or the owner stops it."""
        work = asyncio.create_task(self._work())
        stop = asyncio.create_task(self._until_stop_is_wanted())
        try:
            await asyncio.wait((work, stop), return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (work, stop):
                task.cancel()
            await asyncio.wait((work, stop))
        if work.cancelled():
            done = self._run.round
            await self.end(
                RunStatus.STOPPED, f"Stopped in round {done}." if done else "Stopped before the first round."
            )
            return
        status, message = work.result()
        await self.end(status, message)

    async def _until_stop_is_wanted(self) -> None:
        while self._run.target is not RunTarget.STOPPED:
            await self._changes.wait(RUNS_TOPIC, self._changes.revision(RUNS_TOPIC), _FOREVER_S)

    async def _work(self) -> tuple[RunStatus, str]:
        try:
            if self._run.status is RunStatus.STARTING:
                await self._begin()
            return await self._follow()
        except FederationError as error:
            log.warning("run %s failed: %s", self._run_id, error.debug or error.message)
            return RunStatus.FAILED, f"{error.message} {error.next_step}".strip()

    # --- beginning

    async def _begin(self) -> None:
        run = self._run
        fab = self._artifacts.fab(run.fab_hash)
        superlink = self._superlink(await self._backend.start(run.project_id, run.id))
        await self._update_nodes(superlink)
        run = self._run
        node_ids = tuple(self._registered[one][1] for one in run.sites if one in self._registered)
        if not node_ids:
            raise Conflict("No site's client could be connected.", "See the participants for the reason.")
        flower_run_id = await superlink.start_run(fab, self._config(run))
        spec = ServerAppSpec(
            run_id=run.id,
            flower_run_id=flower_run_id,
            node_ids=node_ids,
            rounds=run.rounds,
            compare=run.compare,
            wait_s=self._nodes_wait_s,
        )
        await self._backend.start_serverapp(run.project_id, spec)
        self._put(replace(self._run, status=RunStatus.WAITING, phase="waiting for the sites' clients"))
        log.info("run %s of project %s started with %d sites", run.id, run.project_id, len(node_ids))

    def _config(self, run: Run) -> dict[str, str | int | float | bool]:
        """Flower refuses keys that the app's own config does not have."""
        wanted = {ROUNDS_KEY: run.rounds} | ({} if run.seed is None else {SEED_KEY: run.seed})
        for version in self._store.app_versions(run.project_id):
            if version.fab_hash == run.fab_hash:
                return {key: value for key, value in wanted.items() if key in version.config_keys}
        return {}

    # --- following

    async def _follow(self) -> tuple[RunStatus, str]:
        run = self._run
        endpoint = self._backend.endpoint(run.project_id)
        if endpoint is None:
            raise Unavailable("The project's aggregator is gone.", "Start the run again.")
        superlink = self._superlink(endpoint)
        self._remember_nodes(run)
        folder = self._backend.run_folder(run.project_id, run.id)
        offset, taken = 0, self._store.event_count(run.id)  # by an earlier service
        pause_s = self._poll_s
        models = RoundModels(folder, self._keep_model_bytes)
        while True:
            # Asked before reading: what the ServerApp wrote before its end is read after it.
            exit_status = await self._backend.serverapp_exit(run.project_id, run.id)
            fresh, offset = read_events(folder, offset)
            trim_log(folder)
            self._note_models(models, fresh)
            progress = self._take(fresh[taken:])
            taken = max(0, taken - len(fresh))
            if progress.outcome is not None:
                return progress.outcome, progress.run.message
            if exit_status is not None and not fresh:
                raise Unavailable(
                    f"The aggregator ended before the run did. {self._last_words(run)}".strip(),
                    "Start the run again; if it happens again, look at the app's strategy.",
                    debug=f"exit status {exit_status}",
                )
            try:
                await self._update_nodes(superlink)
            except Unavailable as error:  # tried again at the next look; a SuperLink that is gone ends its ServerApp
                log.warning("run %s: %s", run.id, error.debug or error.message)
            # Where things happen fast, the next look comes soon.
            pause_s = self._poll_s * _SOON if fresh else min(2 * pause_s, self._poll_s)
            await asyncio.sleep(pause_s)

    def _note_models(self, models: RoundModels, events: list[RunEvent]) -> None:
        spent = [models.add(one.round, one.size) for one in events if one.kind is EventKind.MODEL]
        if any(spent):
            models.prune(self._best_round([*self._store.events(self._run_id), *events]))

    def _best_round(self, events: Sequence[RunEvent]) -> int:
        number, _ = best_round(rounds(self._run, events))
        return number

    def _take(self, events: list[RunEvent]) -> Progress:
        progress = Progress(self._run).after(events)
        if events:
            with self._store.transaction():
                self._store.add_events(self._run_id, [finite(event) for event in events])
                self._store.put_run(progress.run)
            self._changes.announce(project_topic(progress.run.project_id))
        return progress

    def _last_words(self, run: Run) -> str:
        """The last line of the ServerApp's log: mostly the exception that ended it."""
        try:
            with open_run_file(self._backend.run_folder(run.project_id, run.id), SERVERAPP_LOG) as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - _END_OF_LOG))
                lines = file.read(_END_OF_LOG).decode("utf-8", errors="replace").split("\n")
        except FileNotFoundError:
            return ""
        spoken = [line.strip() for line in lines if line.strip()]
        words = "".join(character for character in spoken[-1] if character.isprintable()) if spoken else ""
        return f"Its last words: “{words[:_LONGEST_LOG_LINE]}”." if words else ""

    # --- nodes

    async def _update_nodes(self, superlink: FlowerControl) -> None:
        """Let the SuperLink know exactly the nodes that may take part now. Does nothing while nothing has changed."""
        run = self._run
        seen = (self._changes.revision(RUNS_TOPIC), run.round)  # a condition may be for fewer rounds than this
        if seen == self._nodes_seen_at:
            return
        for participation in self._store.participations(self._run.project_id):
            key = participation.public_key if self._may_take_part(participation) else None
            known_key, known_node = self._registered.get(participation.id, (None, 0))
            if known_key is not None and known_key != key:
                self._name_round_limit(participation)
                await superlink.unregister_node(known_node)
                del self._registered[participation.id]
                self._retire_key(participation.id, known_key)
            if key is not None and known_key != key:
                await self._register(superlink, participation, key)
        self._nodes_seen_at = seen

    def _name_round_limit(self, participation: Participation) -> None:
        """Say in the run why a site is left out of its further rounds, where it is for their number."""
        run = self._run
        conditions = self._consent.conditions(participation, run.fab_hash)
        if participation.active and not allows_rounds(conditions, max(run.rounds, run.round)):
            place = run.sites.get(participation.id, participation.site)
            text = rounds_limit(f"{place} has left the run", conditions)
            self._put(replace(run, message=f"{run.message} {text}".strip()))

    def _remember_nodes(self, run: Run) -> None:
        """The nodes that an earlier service registered for this run."""
        for one in self._store.participations(run.project_id):
            if one.public_key is not None and one.node_id is not None and str(one.node_id) in run.nodes:
                self._registered.setdefault(one.id, (one.public_key, one.node_id))

    def _may_take_part(self, participation: Participation) -> bool:
        run = self._run
        approved = participation.active and self._consent.state(participation, run.fab_hash) is ApprovalState.APPROVED
        conditions = self._consent.conditions(participation, run.fab_hash)
        # An app may do more rounds than it was asked for.
        return approved and allows_rounds(conditions, max(run.rounds, run.round))

    async def _register(self, superlink: FlowerControl, participation: Participation, key: bytes) -> None:
        """A key that Flower does not take is that client's failure, not the run's; it opens nothing any more."""
        try:
            node_id = await superlink.register_node(key)
        except (Invalid, Conflict) as error:
            detail = f"{error.message} {error.next_step}".strip()
            self._retire_key(participation.id, key)
            self._put_participation(participation.id, client=ClientState.FAILED, client_detail=detail)
            return
        self._registered[participation.id] = (key, node_id)
        self._put_participation(participation.id, node_id=node_id)
        run = self._run
        if participation.id in run.sites:
            self._put(replace(run, nodes={**run.nodes, str(node_id): run.sites[participation.id]}))

    def _retire_key(self, participation_id: str, key: bytes) -> None:
        """Forget a key that was unregistered: Flower never takes it back, so the client must come with a new one."""
        participation = self._store.participation(participation_id)
        if participation is not None and participation.public_key == key:
            self._put_participation(participation_id, public_key=None, node_id=None)

    def _put_participation(self, participation_id: str, **changes: object) -> None:
        """Change what the store has now: it may have changed while the SuperLink was asked."""
        participation = self._store.participation(participation_id)
        if participation is not None:
            self._store.put_participation(replace(participation, **changes))  # type: ignore[arg-type]
            self._changes.announce(project_topic(participation.project_id))

    # --- the end

    async def end(self, status: RunStatus, message: str) -> None:
        """Keep the model, give the run its final status and end the project's processes.

        Nobody waits for the processes: the project's next run begins when this has returned.
        """
        run = self._run
        models: tuple[ModelFile, ...] = ()
        try:
            sha256, size = await asyncio.to_thread(self._artifacts.put_model, self._model_file(run))
            models = await self._round_models(run)
        except NotFound:  # it ended before its first round did
            sha256, size = "", 0
        except Unavailable as error:
            sha256, size = "", 0
            message = f"{message} The model could not be kept: {error.message} {error.next_step}".strip()
        run = replace(
            self._run,
            status=status,
            message=message,
            phase="",
            finished_at=self._clock(),
            model_sha256=sha256,
            model_size=size,
            models=models,
        )
        with self._store.transaction():
            self._store.put_run(run)
            self._audit.note("service", Decision.RUN_ENDED, run.project_id, run=run.id, status=status, model=sha256)
        self._changes.announce(project_topic(run.project_id))
        log.info("run %s of project %s: %s", run.id, run.project_id, status)
        project = self._store.project(run.project_id)
        if project is not None:
            self._tell(run_ended(project, run))
        await self._backend.stop(run.project_id)
        await asyncio.to_thread(clear_mail, self._backend.run_folder(run.project_id, run.id))

    def _model_file(self, run: Run) -> Path:
        """The last model that was written: a run that was stopped or failed has one too, after its first round."""
        return self._backend.run_folder(run.project_id, run.id) / MODEL_FILE

    async def _round_models(self, run: Run) -> tuple[ModelFile, ...]:
        """Keep those of the rounds that there is room for. Raises Unavailable."""
        events = self._store.events(run.id)
        models = RoundModels(self._backend.run_folder(run.project_id, run.id), self._keep_model_bytes)
        for event in events:
            if event.kind is EventKind.MODEL:
                models.add(event.round, event.size)
        return await asyncio.to_thread(models.collect, self._artifacts, self._best_round(events))

    def _put(self, run: Run) -> None:
        self._store.put_run(run)
        self._changes.announce(project_topic(run.project_id))
