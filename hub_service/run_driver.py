"""Drives one run from its row in the store to its end. One asyncio task a run, made by the reconciler."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

from federator import logs
from federator.contract import ApprovalState, ClientState, ModelFile, OutagePolicy, RunStatus

from hub_service.aggregators.base import AggregatorBackend, Endpoint, ServerAppSpec
from hub_service.aggregators.events import MODEL_FILE, SERVERAPP_LOG, open_run_file, read_events
from hub_service.aggregators.plan import Plan
from hub_service.aggregators.run_folder import clear_run_folder, unkept_models
from hub_service.aggregators.serverapp_log import trim_log
from hub_service.artifacts import Artifacts
from hub_service.audit import AuditLog, Decision
from hub_service.changes import RUNS_TOPIC, Changes, project_topic
from hub_service.consent import Consent
from hub_service.deletion import named_by
from hub_service.domain.approvals import allows_rounds, rounds_limit
from hub_service.domain.clock import Clock
from hub_service.domain.errors import Conflict, DatabaseUnavailable, FederationError, Invalid, NotFound, Unavailable
from hub_service.domain.notices import Tell, run_ended, site_left_out, site_silent, tell_nobody
from hub_service.domain.projects import Participation
from hub_service.domain.runs import LEFT_OUT, ROUNDS_KEY, SEED_KEY, EventKind, Run, RunEvent, RunTarget
from hub_service.left_models import LEFT, models_to_keep
from hub_service.results.models import RoundModels, best_round
from hub_service.run_history import Overdue, RoundDone, RoundsDone, standing
from hub_service.run_progress import Progress, finite, site_of
from hub_service.run_views import rounds
from hub_service.store.base import Store
from hub_service.turns import Turns

log = logging.getLogger(__name__)

_LONGEST_LOG_LINE = 300
_END_OF_LOG = 64 * 1024  # bytes
MOST_LOSSES = 3
"""So often an aggregator is lost without a finished round in between before the run fails: it may need more memory."""

PATIENCE_S = 600.0
"""How long a run waits for what its aggregator needs to be started again, such as an engine."""

_RETRY_S = 2.0
_LEAST_ROOM = 16 * 1024**2  # bytes; an aggregator that has less to write to is lost again at once
_FOREVER_S = 3600.0  # waiting for a change begins anew after this long
_SOON = 1 / 3  # of the time between two looks


class FlowerControl(Protocol):
    """What a run needs of the project's SuperLink; `hub_service.aggregators.superlink` is the real one."""

    async def register_node(self, public_key: bytes) -> int:
        """Raises Invalid or Conflict for a key that Flower does not take, Unavailable."""

    async def give_key(self, node_id: int, public_key: bytes) -> None:
        """Raises as `register_node`."""

    async def unregister_node(self, node_id: int) -> None: ...

    async def start_run(self, fab: bytes, config: Mapping[str, str | int | float | bool]) -> int: ...


class RunWatch(Protocol):
    """Counts what runs do; `hub_service.metrics` is the real one."""

    def run_moved(self, run: Run, events: Sequence[RunEvent]) -> None:
        """The store has taken these events; `run` is the run after them."""

    def run_ended(self, run: Run) -> None: ...


class NobodyWatches:
    def run_moved(self, run: Run, events: Sequence[RunEvent]) -> None: ...

    def run_ended(self, run: Run) -> None: ...


NOBODY_WATCHES = NobodyWatches()


@dataclass(frozen=True, slots=True)
class Workshop:
    """What every run is driven with.

    Attributes:
        poll_s: how often a run in flight is looked at, in seconds; for a while more often when something happened.
        nodes_wait_s: how long a run waits for its sites' clients, in seconds.
        keep_model_bytes: of the models of its rounds that are kept.
        turns: whose turn it is in the service's thread.
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
    watch: RunWatch = NOBODY_WATCHES
    turns: Turns = field(default_factory=Turns)


@dataclass(slots=True)
class _Kept:
    """What of a run's models is among the artifacts. `trouble`: why not all of it, for a person."""

    sha256: str = ""
    size: int = 0
    rounds: list[ModelFile] = field(default_factory=list)
    trouble: str = ""


class _Lost(Exception):
    """The aggregator is gone. The text is its last words, for a person."""


class RunDriver:
    """One run. `drive` returns when it has ended; cancelled, it leaves the run unfinished and its processes alive."""

    def __init__(self, workshop: Workshop, run_id: str) -> None:
        self._store = workshop.store
        self._artifacts = workshop.artifacts
        self._backend = workshop.backend
        self._superlink = workshop.superlink
        self._turns = workshop.turns
        self._changes = workshop.changes
        self._clock = workshop.clock
        self._poll_s = workshop.poll_s
        self._nodes_wait_s = workshop.nodes_wait_s
        self._tell = workshop.tell
        self._watch = workshop.watch
        self._keep_model_bytes = workshop.keep_model_bytes
        self._consent = Consent(workshop.store, workshop.clock)
        self._audit = AuditLog(workshop.store, workshop.clock)
        self._run_id = run_id
        self._registered: dict[str, tuple[bytes, int]] = {}  # participation id -> key and node id at the SuperLink
        self._models = RoundModels(Path(), 0)
        self._rounds, self._overdue = RoundsDone(), Overdue(0.0)
        self._offset = self._taken = 0  # in the event file; of its events, those that an earlier look took
        self._losses, self._begun_at_loss = 0, 0  # without a new round; how many rounds were begun at the last one
        self._nodes_seen_at = (-1, 0)  # revision of RUNS_TOPIC and round when nodes were last brought up to date

    @property
    def _run(self) -> Run:
        run = self._store.run(self._run_id)
        if run is None:
            raise NotFound("The run is gone.", debug=self._run_id)
        return run

    async def drive(self) -> None:
        """Start the run, or go on with one that an earlier service started, until it ends or the owner stops it."""
        logs.note(run=self._run_id, project=self._run.project_id)
        work = asyncio.create_task(self._work())
        stop = asyncio.create_task(self._until_stop_is_wanted())
        try:
            await asyncio.wait((work, stop), return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (work, stop):
                task.cancel()
            await asyncio.wait((work, stop))
        if not stop.cancelled():
            stop.result()  # raises where nobody could tell whether a stop is wanted
        if work.cancelled():
            done = self._run.round
            await self.end(
                RunStatus.STOPPED, f"Stopped in round {done}." if done else "Stopped before the first round."
            )
            return
        status, message = work.result()
        await self.end(status, message)

    def _ended_before(self) -> tuple[RunStatus, str] | None:
        """How the run ended where an earlier service knew that, and was ended itself before it had kept the models."""
        progress = Progress(self._run).after(self._store.events(self._run_id)[-1:])
        return None if progress.outcome is None else (progress.outcome, progress.run.message)

    async def _until_stop_is_wanted(self) -> None:
        while self._run.target is not RunTarget.STOPPED:
            await self._changes.wait(RUNS_TOPIC, self._changes.revision(RUNS_TOPIC), _FOREVER_S)

    async def _work(self) -> tuple[RunStatus, str]:
        try:
            if self._run.status is RunStatus.STARTING:
                await self._begin()
            if outcome := self._ended_before():
                return outcome
            while True:
                self._read_from_the_start()
                try:
                    return await self._follow()
                except _Lost as lost:
                    if outcome := await self._begin_anew(str(lost)):
                        return outcome
        except DatabaseUnavailable:  # the reconciler drives the run again once it is back
            raise
        except FederationError as error:
            log.warning("run %s failed: %s", self._run_id, error.debug or error.message)
            return RunStatus.FAILED, f"{error.message} {error.next_step}".strip()

    # --- beginning

    async def _begin(self) -> None:
        await self._until_there_is_room()
        try:
            await self._launch()
        except Unavailable as error:  # it may have been killed while it started; one that never starts fails twice
            log.warning("run %s is begun once more: %s", self._run_id, error.debug or error.message)
            await self._backend.stop(self._run.project_id)
            self._registered, self._nodes_seen_at = {}, (-1, 0)
            await self._launch()
        self._put(replace(self._run, status=RunStatus.WAITING, phase="waiting for the sites' clients"))
        log.info("run %s of project %s started with %d sites", self._run_id, self._run.project_id, len(self._run.nodes))

    async def _launch(self) -> None:
        """Start the aggregator and let it begin, or begin anew. What of it runs already is left as it is."""
        run = self._run
        fab = await asyncio.to_thread(self._artifacts.fab, run.fab_hash)
        superlink = self._superlink(await self._backend.start(run.project_id, run.id))
        await self._update_nodes(superlink)
        run = self._run
        node_ids = self._node_ids(run)
        if not node_ids:
            raise Conflict("No site's client could be connected.", "See the participants for the reason.")
        flower_run_id = await superlink.start_run(fab, self._config(run))
        log.info("run %s is Flower's run %d", run.id, flower_run_id)
        spec = ServerAppSpec(
            run_id=run.id,
            flower_run_id=flower_run_id,
            node_ids=node_ids,
            rounds=run.rounds,
            compare=run.compare,
            wait_s=self._nodes_wait_s,
            on_outage=run.on_outage,
            grace_s=run.grace_s,
        )
        await self._backend.start_serverapp(run.project_id, spec)

    def _node_ids(self, run: Run) -> tuple[int, ...]:
        """Of the sites that take part, in their order; those whose client is away for now included."""
        known = {one.id: self._node_of(one) for one in self._store.participations(run.project_id)}
        away = {one.id for one in self._store.participations(run.project_id) if not self._may_take_part(one)}
        node_ids = (known.get(one) for one in run.sites if one in self._registered or one not in away)
        return tuple(node_id for node_id in node_ids if node_id is not None)

    async def _begin_anew(self, last_words: str) -> tuple[RunStatus, str] | None:
        """Start the aggregator again, behind the last round that was finished.

        Returns how the run ended where it had ended before its aggregator did. Raises Unavailable where it was lost too
        often, or cannot be started again.
        """
        await self._backend.stop(self._run.project_id)
        progress, _ = await self._look()
        if progress.outcome is not None:
            return progress.outcome, progress.run.message
        waited = await self._until_there_is_room()
        begun = len(self._rounds.begun)
        if waited:
            self._losses = 0  # not the app's doing
        self._losses = 1 if begun > self._begun_at_loss else self._losses + 1
        self._begun_at_loss = begun
        if self._losses >= MOST_LOSSES:
            raise Unavailable(
                f"The aggregator was lost {self._losses} times without a finished round. {last_words}".strip(),
                "Start the run again; if it happens again, look at the app's strategy.",
            )
        run = self._run
        log.warning("run %s: the aggregator is gone and is begun anew. %s", run.id, last_words)
        phase = f"resuming after round {max(0, run.round - 1)}"
        with self._store.transaction():
            self._store.put_run(replace(run, status=RunStatus.WAITING, phase=phase, resumed=run.resumed + 1))
            self._audit.note("service", Decision.RUN_RESUMED, run.project_id, run=run.id, times=str(run.resumed + 1))
        self._changes.announce(project_topic(run.project_id))
        await self._launch_in_time()
        return None

    async def _until_there_is_room(self) -> bool:
        """Return once the run can write; whether its disk was full. It waits until somebody makes room or stops it."""
        waited = False
        while self._room() < self._needed_room():
            if not waited:
                log.warning("run %s waits: its disk is full", self._run_id)
                words = "waiting: the service's disk is full. Ask the Hub's administrator for room"
                self._put(replace(self._run, phase=words))
            waited = True
            await asyncio.sleep(_RETRY_S)
        return waited

    def _room(self) -> int:
        """Bytes that are free where the run writes, or will."""
        folder = self._backend.run_folder(self._run.project_id, self._run_id)
        return shutil.disk_usage(next(one for one in (folder, *folder.parents) if one.exists())).free

    def _needed_room(self) -> int:
        """Bytes that a round takes: the model for the sites, an answer of each, the checkpoint, the model to keep."""
        model = self._model_file(self._run)
        return max(_LEAST_ROOM, (len(self._run.sites) + 3) * model.stat().st_size if model.exists() else 0)

    async def _launch_in_time(self) -> None:
        """Begin anew as soon as that can be. Raises Unavailable where it cannot for long."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + PATIENCE_S
        while True:
            self._registered, self._nodes_seen_at = {}, (-1, 0)
            try:
                await self._launch()
            except Unavailable as error:
                if loop.time() > deadline:
                    raise
                log.warning("run %s is not begun anew yet: %s", self._run_id, error.debug or error.message)
                self._put(replace(self._run, phase=f"waiting for its aggregator: {error.message}"))
                await asyncio.sleep(_RETRY_S)
                await self._backend.stop(self._run.project_id)
            else:
                return

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
        folder = self._backend.run_folder(run.project_id, run.id)
        # An earlier service that ended while it began anew may have told the new ServerApp nothing.
        if endpoint is None or not Plan.stands_in(folder):
            raise _Lost
        superlink = self._superlink(endpoint)
        self._remember_nodes(run)
        pause_s = self._poll_s
        while True:
            # Asked before reading: what the ServerApp wrote before its end is read after it.
            exit_status = await self._backend.serverapp_exit(run.project_id, run.id)
            await self._turns.wait()
            progress, fresh = await self._look()
            if progress.outcome is not None:
                return progress.outcome, progress.run.message
            if exit_status is not None and not fresh:
                raise _Lost(self._last_words(run))
            try:
                await self._update_nodes(superlink)
            except Unavailable as error:  # tried again at the next look; a SuperLink that is gone ends its ServerApp
                log.warning("run %s: %s", run.id, error.debug or error.message)
            # Where things happen fast, the next look comes soon.
            pause_s = self._poll_s * _SOON if fresh else min(2 * pause_s, self._poll_s)
            await asyncio.sleep(pause_s)

    def _read_from_the_start(self) -> None:
        """Begin with the events that the store has: what they mean for the rest is not kept elsewhere."""
        run = self._run
        self._offset, self._taken = 0, self._store.event_count(run.id)
        self._rounds, self._overdue = RoundsDone(), Overdue(run.grace_s)
        folder = self._backend.run_folder(run.project_id, run.id)
        self._models = RoundModels(folder, self._keep_model_bytes)

    async def _look(self) -> tuple[Progress, bool]:
        """Take what the ServerApp has reported since the last look: the run as it is now, and whether there was any."""
        run = self._run
        folder = self._backend.run_folder(run.project_id, run.id)
        try:
            fresh, self._offset = await asyncio.to_thread(read_events, folder, self._offset)
        except OSError as error:  # the service has too many files open, say: tried again at the next look
            log.warning("run %s cannot be looked at: %s", run.id, error)
            return Progress(run), False
        trim_log(folder)
        self._note_models(fresh)
        known, new = fresh[: self._taken], fresh[self._taken :]
        self._taken -= len(known)
        self._rounds.after(known)
        for event in known:
            self._overdue.after(event)
        return self._take(new), bool(fresh)

    def _note_models(self, events: list[RunEvent]) -> None:
        spent = [self._models.add(one.round, one.size) for one in events if one.kind is EventKind.MODEL]
        if any(spent):
            self._models.prune(self._best_round([*self._store.events(self._run_id), *events]))

    def _best_round(self, events: Sequence[RunEvent]) -> int:
        number, _ = best_round(rounds(self._run, standing(events)))
        return number

    def _take(self, events: list[RunEvent]) -> Progress:
        progress = Progress(self._run).after(events)
        if events:
            with self._store.transaction():
                self._store.add_events(self._run_id, [finite(event) for event in events])
                self._store.put_run(progress.run)
                self._note_rounds(progress.run, self._rounds.after(events))
            self._watch.run_moved(progress.run, events)
            self._tell_of_outages(progress.run, events)
            self._changes.announce(project_topic(progress.run.project_id))
        return progress

    def _note_rounds(self, run: Run, done: Sequence[RoundDone]) -> None:
        """A line of the audit log for each round that is over: which sites' answers are in its model."""
        for one in done:
            sites = ",".join(sorted(site_of(run, node_id) for node_id in one.nodes))
            self._audit.note(
                "service", Decision.ROUND_FINISHED, run.project_id, run=run.id, round=str(one.number), sites=sites
            )

    def _tell_of_outages(self, run: Run, events: Sequence[RunEvent]) -> None:
        """Tell the owner of sites that have used up the grace time. Sites are named by what we know of the nodes."""
        project = self._store.project(run.project_id)
        if project is None:
            return
        for event in events:
            silent = [run.nodes[node] for node in self._overdue.after(event) if node in run.nodes]
            if silent and run.on_outage is not OutagePolicy.STOP:
                self._tell(site_silent(project, run, ", ".join(silent)))
            if event.kind is EventKind.REPLY and event.text.startswith(LEFT_OUT) and str(event.node_id) in run.nodes:
                self._tell(site_left_out(project, run, run.nodes[str(event.node_id)]))

    def _last_words(self, run: Run) -> str:
        """The last line of the ServerApp's log: mostly the exception that ended it."""
        try:
            with open_run_file(self._backend.run_folder(run.project_id, run.id), SERVERAPP_LOG) as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - _END_OF_LOG))
                lines = file.read(_END_OF_LOG).decode("utf-8", errors="replace").split("\n")
        except OSError:
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
            if known_key is not None and key is None:
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
        """A key that Flower does not take is that client's failure, not the run's; it opens nothing any more.

        A client that comes back with another key stays the node that it was: plans and strategies name it by its id.
        """
        node_id = self._node_of(participation)
        try:
            if node_id is None:
                node_id = await superlink.register_node(key)
            else:
                await superlink.give_key(node_id, key)
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

    def _node_of(self, participation: Participation) -> int | None:
        """The node that the participation is already; None for one that is none yet."""
        if participation.id in self._registered:
            return self._registered[participation.id][1]
        run = self._run
        place = run.sites.get(participation.id)
        return next((int(node) for node, site in run.nodes.items() if site == place), None)

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
        kept = await self._keep_models(self._run)
        run = replace(
            self._run,
            status=status,
            message=f"{message} {kept.trouble}".strip(),
            phase="",
            finished_at=self._clock(),
            model_sha256=kept.sha256,
            model_size=kept.size,
            models=tuple(kept.rounds),
        )
        project = self._store.project(run.project_id)
        done = RoundsDone()
        done.after(self._store.events(run.id))
        with self._store.transaction():
            self._store.put_run(run)
            self._note_rounds(run, done.at_the_end())
            self._audit.note(
                "service", Decision.RUN_ENDED, run.project_id, run=run.id, status=status, model=run.model_sha256
            )
        self._artifacts.written(*named_by((), [run]))
        self._watch.run_ended(run)
        self._changes.announce(project_topic(run.project_id))
        log.info("run %s of project %s: %s", run.id, run.project_id, status)
        if project is not None:
            self._tell(run_ended(project, run))
        await self._backend.stop(run.project_id)
        folder = self._backend.run_folder(run.project_id, run.id)
        await asyncio.to_thread(clear_run_folder, folder, unkept_models(folder, run) if kept.trouble else ())

    async def _keep_models(self, run: Run) -> _Kept:
        """The last model, then those of the rounds. Whatever could not be kept stays in the run folder."""
        kept = _Kept()
        try:
            kept.sha256, kept.size = await self._keep(self._model_file(run))
            folder = self._backend.run_folder(run.project_id, run.id)
            events = self._store.events(run.id)
            for number, path in models_to_keep(folder, run, events, self._keep_model_bytes).items():
                with contextlib.suppress(NotFound):
                    kept.rounds.append(ModelFile(*await self._keep(path), number))
        except NotFound:  # it ended before its first round did
            return kept
        except Unavailable as error:
            what = "A round's model" if kept.sha256 else "The model"
            kept.trouble = f"{what} could not be kept: {error.message} {error.next_step} {LEFT}"
        return kept

    async def _keep(self, model: Path) -> tuple[str, int]:
        """Keep one model, as soon as the disk takes it: the owner, who may stop the run, is told that it waits.

        Raises NotFound where there is none, Unavailable where the owner does not wait.
        """
        while True:
            seen = self._changes.revision(RUNS_TOPIC)
            try:
                return await asyncio.to_thread(self._artifacts.put_model, model)
            except Unavailable as error:
                if self._run.target is RunTarget.STOPPED:
                    raise
                self._say(f"waiting: its models cannot be kept yet. {error.message} {error.next_step}", error)
            await self._changes.wait(RUNS_TOPIC, seen, _RETRY_S)

    def _say(self, phase: str, error: Unavailable) -> None:
        if self._run.phase != phase:
            log.warning("run %s waits: %s %s", self._run_id, error.message, error.debug)
            self._put(replace(self._run, phase=phase))

    def _model_file(self, run: Run) -> Path:
        """The last model that was written: a run that was stopped or failed has one too, after its first round."""
        return self._backend.run_folder(run.project_id, run.id) / MODEL_FILE

    def _put(self, run: Run) -> None:
        self._store.put_run(run)
        self._changes.announce(project_topic(run.project_id))
