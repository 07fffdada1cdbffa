"""Each kind of decision is one line of the audit log, with whose it was. A new kind needs a way to it in `WAYS`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from federator.contract import ApprovalState, ModelFile, OutagePolicy, RunStatus, Scope

from hub_service.aggregators.events import MODEL_FILE
from hub_service.artifacts import Artifacts
from hub_service.audit import Decision, fault
from hub_service.backup import back_up, checked, restore
from hub_service.changes import project_topic
from hub_service.domain.runs import EventKind, Run, RunEvent
from hub_service.operations.administration import Repair
from hub_service.reconciler import Reconciler
from hub_service.store.sql import SqlStore
from hub_service.sweeper import Sweeper
from tests.fakes.aggregators import FakeSuperLink, LosesServerApps, reply, sent
from tests.fakes.federation import ANNA, BERT, CARL, PEOPLE, SITES, STEWARDS, Federation, new_key
from tests.fakes.hub_directory import FakeHubDirectory

PATIENCE_S = 10.0
ROBIN = replace(ANNA, name="robin", scopes=ANNA.scopes | {Scope.ADMINISTER})
SERVICE = "service"  # decides where nobody asked
ROUND_ONE = RunEvent(EventKind.PHASE, 1.0, "federated")


@dataclass
class Scene:
    """A project that anna and bert take part in. Site c wants two stewards."""

    folder: Path
    store: SqlStore
    hub: FakeHubDirectory = field(default_factory=lambda: FakeHubDirectory({one.name: {*one.groups} for one in PEOPLE}))

    async def set_up(self) -> Scene:
        sites = {**SITES, "c": replace(SITES["c"], four_eyes=True)}
        self.federation = Federation(self.folder, store=self.store, hub=self.hub, sites=sites)
        self.ask = self.federation.coordinator
        self.project_id, _, self.participation_id = await self.federation.ready_project()  # the second one is bert's
        return self

    def start_run(self) -> str:
        return self.ask.start_run(ANNA, self.project_id, 3, compare=False).id

    def run(self, run_id: str) -> Run:
        run = self.store.run(run_id)
        assert run is not None
        return run

    def finished_run(self) -> str:
        """A run whose three rounds have left a model each."""
        run_id = self.start_run()
        models = []
        for number in (1, 2, 3):
            source = self.folder / f"model-{number}"
            source.write_bytes(b"weights %d" % number)
            models.append(ModelFile(*self.federation.artifacts.put_model(source), number))
        last = models[-1]
        ended = replace(self.run(run_id), status=RunStatus.FINISHED, finished_at=self.federation.clock.now)
        self.store.put_run(
            replace(ended, model_sha256=last.sha256, model_size=last.size, model_round=3, models=tuple(models))
        )
        return run_id

    @asynccontextmanager
    async def driven_run(self) -> AsyncIterator[tuple[str, LosesServerApps]]:
        """A run that the service drives; the way plays its ServerApp."""
        backend = LosesServerApps(self.folder / "projects")
        reconciler = Reconciler(
            store=self.store,
            artifacts=self.federation.artifacts,
            backend=backend,
            superlink=FakeSuperLink(),
            changes=self.federation.changes,
            clock=self.federation.clock,
            poll_s=0.002,
        )
        run_id = self.start_run()
        driving = asyncio.create_task(reconciler.run())
        await self.until(lambda: self.run(run_id).status is RunStatus.WAITING)
        yield run_id, backend
        driving.cancel()
        await asyncio.wait({driving})
        await reconciler.close()

    async def until(self, holds: Callable[[], bool]) -> None:
        topic = project_topic(self.project_id)
        async with asyncio.timeout(PATIENCE_S):
            while True:
                seen = self.federation.changes.revision(topic)
                if holds():
                    return
                await self.federation.changes.wait(topic, seen, PATIENCE_S)


# --- a way to each, from the scene


async def create_project(at: Scene) -> None:
    at.ask.create_project(ANNA, "Another", "")


async def change_project(at: Scene) -> None:
    at.ask.set_outage(ANNA, at.project_id, OutagePolicy.CONTINUE, 60.0)


async def add_app(at: Scene) -> None:
    built = await at.ask.build_app(ANNA, at.project_id, "lungs.ipynb", b"app 2")
    at.ask.add_app(ANNA, at.project_id, built)


async def invite(at: Scene) -> None:
    await at.ask.invite(ANNA, at.project_id, "carl")


async def decline(at: Scene) -> None:
    await invite(at)
    at.ask.decline(CARL, at.project_id)


async def join(at: Scene) -> None:
    await at.federation.invite_and_join(at.project_id, CARL)


async def leave(at: Scene) -> None:
    at.ask.leave(BERT, at.project_id)


async def remove(at: Scene) -> None:
    at.ask.remove_member(ANNA, at.project_id, "bert")


async def leave_site(at: Scene) -> None:
    at.start_run()
    at.hub.people["bert"] = set()
    await at.ask.end_parts_of_the_gone()


async def approve_once(at: Scene) -> None:
    await join(at)
    at.federation.decide(at.project_id, "c")


async def approve(at: Scene) -> None:
    await add_app(at)
    at.federation.decide(at.project_id, "a")


async def reject(at: Scene) -> None:
    await add_app(at)
    at.federation.decide(at.project_id, "a", ApprovalState.REJECTED)


async def revoke(at: Scene) -> None:
    at.federation.decide(at.project_id, "a", ApprovalState.REVOKED)


async def register_node(at: Scene) -> None:
    at.ask.register_node(BERT, at.participation_id, new_key())


async def remove_node(at: Scene) -> None:
    _, participation_id = await at.federation.supernode_project()
    at.ask.register_node(STEWARDS["d"], participation_id, new_key())
    at.ask.remove_node(STEWARDS["d"], participation_id)


async def start_run(at: Scene) -> None:
    at.start_run()


async def ask_to_stop(at: Scene) -> None:
    at.ask.stop_run(ANNA, at.start_run())


async def lose_the_aggregator(at: Scene) -> None:
    async with at.driven_run() as (run_id, backend):
        backend.lose(run_id)
        await at.until(lambda: at.run(run_id).resumed == 1)


async def end_a_round(at: Scene) -> None:
    async with at.driven_run() as (run_id, backend):
        site = next(int(node) for node in at.run(run_id).nodes)
        backend.report(at.project_id, run_id, ROUND_ONE, sent(site, 1), reply(site, 1), sent(site, 2))
        await at.until(lambda: at.run(run_id).round == 2)


async def end_a_run(at: Scene) -> None:
    async with at.driven_run() as (run_id, backend):
        backend.report(at.project_id, run_id, RunEvent(EventKind.FINISHED, 9.0))
        await at.until(lambda: at.run(run_id).status.is_final)


async def download_model(at: Scene) -> None:
    await at.ask.model_path(BERT, at.finished_run())


async def download_record(at: Scene) -> None:
    at.ask.record(BERT, at.finished_run())


async def download_card(at: Scene) -> None:
    at.ask.card(BERT, at.finished_run())


async def download_capsule(at: Scene) -> None:
    await at.ask.capsule(BERT, at.finished_run())


async def repair(at: Scene) -> None:
    await at.ask.repair(ROBIN, Repair.DISCONNECT_CLIENT, at.participation_id)


async def keep_what_was_left(at: Scene) -> None:
    """A run whose model found no room at its end, and does now."""
    run = at.store.run(at.finished_run())
    assert run is not None
    backend = LosesServerApps(at.folder / "projects")
    at.store.put_run(replace(run, model_sha256="", model_size=0))
    folder = backend.run_folder(run.project_id, run.id)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MODEL_FILE).write_bytes(b"weights")
    await Sweeper(
        store=at.store,
        artifacts=at.federation.artifacts,
        backend=backend,
        changes=at.federation.changes,
        clock=at.federation.clock,
    ).sweep()


async def let_models_grow_old(at: Scene) -> None:
    at.finished_run()
    at.federation.clock.advance(hours=25)
    await Sweeper(
        store=at.store,
        artifacts=at.federation.artifacts,
        backend=LosesServerApps(at.folder / "projects"),
        changes=at.federation.changes,
        clock=at.federation.clock,
        keep_rounds=timedelta(days=1),
    ).sweep()


async def delete_project(at: Scene) -> None:
    at.ask.delete_project(ANNA, at.project_id)


async def be_restored(at: Scene) -> None:
    """The scene's store is then the one that was restored."""
    tar, restored = at.folder / "federation.tar", at.folder / "restored"
    with tar.open("wb") as target:
        back_up(target, url_of(at.folder), at.federation.artifacts, at.folder / "state", datetime.now(UTC))
    at.store.close()
    with checked(tar) as backup:
        restore(
            backup,
            restored,
            url_of(restored),
            lambda folder: Artifacts(folder / "artifacts"),
            lambda: SqlStore(url_of(restored)),
            at.federation.clock,
        )
    at.store = SqlStore(url_of(restored))


WAYS: Mapping[Decision, tuple[str, Callable[[Scene], Awaitable[None]]]] = {
    Decision.PROJECT_CREATED: ("anna", create_project),
    Decision.PROJECT_CHANGED: ("anna", change_project),
    Decision.APP_ADDED: ("anna", add_app),
    Decision.INVITED: ("anna", invite),
    Decision.DECLINED: ("carl", decline),
    Decision.JOINED: ("carl", join),
    Decision.LEFT: ("bert", leave),
    Decision.REMOVED: ("anna", remove),
    Decision.LEFT_SITE: (SERVICE, leave_site),
    Decision.APPROVED_ONCE: ("steward-c", approve_once),
    Decision.APPROVED: ("steward-a", approve),
    Decision.REJECTED: ("steward-a", reject),
    Decision.REVOKED: ("steward-a", revoke),
    Decision.NODE_REGISTERED: ("bert", register_node),
    Decision.NODE_REMOVED: ("steward-d", remove_node),
    Decision.RUN_STARTED: ("anna", start_run),
    Decision.RUN_STOP_ASKED: ("anna", ask_to_stop),
    Decision.RUN_RESUMED: (SERVICE, lose_the_aggregator),
    Decision.ROUND_FINISHED: (SERVICE, end_a_round),
    Decision.RUN_ENDED: (SERVICE, end_a_run),
    Decision.MODEL_DOWNLOADED: ("bert", download_model),
    Decision.RECORD_DOWNLOADED: ("bert", download_record),
    Decision.CARD_DOWNLOADED: ("bert", download_card),
    Decision.CAPSULE_DOWNLOADED: ("bert", download_capsule),
    Decision.REPAIRED: ("robin", repair),
    Decision.MODELS_KEPT: (SERVICE, keep_what_was_left),
    Decision.MODELS_REMOVED: (SERVICE, let_models_grow_old),
    Decision.PROJECT_DELETED: ("anna", delete_project),
    Decision.RESTORED: (SERVICE, be_restored),
}


def url_of(folder: Path) -> str:
    return f"sqlite:///{folder / 'federation.db'}"


@pytest.mark.parametrize("decision", Decision)
async def test_every_decision_is_one_line_of_a_whole_log(tmp_path: Path, decision: Decision) -> None:
    assert decision in WAYS, "say how it is taken, and by whom"
    actor, way = WAYS[decision]
    at = await Scene(tmp_path, SqlStore(url_of(tmp_path))).set_up()
    keys = [one.public_key for one in at.store.participations(at.project_id)]
    before = len(at.store.audit_lines())
    await way(at)
    lines = at.store.audit_lines()
    at.store.close()
    assert fault(lines) is None
    assert [(one.actor, one.action) for one in lines[before:] if one.action == decision] == [(actor, decision)]
    assert not [key for key in keys if key is not None and key.decode() in repr(lines)]
