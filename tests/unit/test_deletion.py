"""A deleted project is gone, whatever happens in the middle; what is old goes too, and nothing else."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from federator.contract import ModelFile, RunStatus, Scope

from hub_service.aggregators.events import EVENTS_FILE, MODEL_FILE, SERVERAPP_LOG, round_model_file
from hub_service.artifacts import Artifacts
from hub_service.audit import Decision, fault
from hub_service.changes import LEAVING_TOPIC, user_topic
from hub_service.domain.errors import Conflict, Forbidden, NotFound, Unavailable
from hub_service.domain.notices import Notice, NoticeKind
from hub_service.domain.runs import EventKind, RunEvent
from hub_service.store.base import Store
from hub_service.store.memory import MemoryStore
from hub_service.sweeper import INCOMING_AFTER, UNNAMED_AFTER, Sweeper
from tests.fakes.aggregators import CannotStop, FakeAggregators
from tests.fakes.federation import ANNA, BERT, CARL, Federation


class World:
    """A federation with what sweeps behind it, and the notices that were sent."""

    def __init__(self, folder: Path, *, store: Store | None = None, keep_rounds: timedelta | None = None) -> None:
        self.told: list[Notice] = []
        self.federation = Federation(folder, store=store, tell=self.told.append)
        self.backend = FakeAggregators(folder / "runs")
        self.sweeper = Sweeper(
            store=self.federation.store,
            artifacts=self.federation.artifacts,
            backend=self.backend,
            changes=self.federation.changes,
            clock=self.federation.clock,
            keep_rounds=keep_rounds,
        )

    def finished_run(self, project_id: str, folder: Path, rounds: int = 3) -> str:
        """A run whose models are kept, one a round; round 2 did best."""
        run_id = self.federation.coordinator.start_run(ANNA, project_id, rounds, compare=False).id
        models = []
        for number in range(1, rounds + 1):
            source = folder / f"source-{number}"
            source.write_bytes(b"%s %d" % (run_id.encode(), number))
            models.append(ModelFile(*self.federation.artifacts.put_model(source), number))
            self.federation.artifacts.written(f"models/{models[-1].sha256}")
        run = self.federation.store.run(run_id)
        assert run is not None
        node = {"7": "a", "8": "b"}
        self.federation.store.put_run(
            replace(
                run,
                status=RunStatus.FINISHED,
                finished_at=self.federation.clock.now,
                model_sha256=models[-1].sha256,
                model_size=models[-1].size,
                model_round=rounds,
                models=tuple(models),
                nodes=node,
            )
        )
        for number in range(1, rounds + 1):
            accuracy = 0.9 if number == 2 else 0.5
            self.federation.store.add_events(
                run_id,
                [
                    RunEvent(
                        EventKind.REPLY,
                        1.0,
                        "federated",
                        number,
                        "evaluate",
                        7,
                        metrics={"accuracy": accuracy},
                        examples=9,
                    )
                ],
            )
        return run_id

    def files(self) -> set[str]:
        return set(self.federation.artifacts.names())


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


async def test_nothing_of_a_deleted_project_is_left(world: World, tmp_path: Path) -> None:
    federation = world.federation
    project_id, first, second = await federation.ready_project()
    world.finished_run(project_id, tmp_path)
    other = federation.new_project(BERT, b"app 1")  # the same FAB
    run_folder = world.backend.run_folder(project_id, "r")
    run_folder.mkdir(parents=True)
    (run_folder / "closed").mkdir()
    (run_folder / "closed" / "file").touch()
    (run_folder / "closed").chmod(0)
    key = federation.participation(first).public_key
    assert key is not None
    seen = federation.changes.revision(user_topic("bert")), federation.changes.revision(LEAVING_TOPIC)

    federation.coordinator.delete_project(ANNA, project_id)
    assert federation.coordinator.node_grant(key) is None
    with pytest.raises(NotFound):
        federation.coordinator.project(ANNA, project_id)
    with pytest.raises(NotFound):
        federation.coordinator.site_approvals(BERT, second)
    assert (federation.changes.revision(user_topic("bert")), federation.changes.revision(LEAVING_TOPIC)) != seen
    assert [(one.kind, one.users) for one in world.told if one.kind is NoticeKind.PROJECT_DELETED] == [
        (NoticeKind.PROJECT_DELETED, ("bert",))
    ]
    line = federation.store.audit_lines()[-1]
    assert (line.actor, line.action) == ("anna", Decision.PROJECT_DELETED)
    assert line.detail == {"members": "2", "sites": "2", "versions": "1", "runs": "1", "models": "3"}
    assert fault(federation.store.audit_lines()) is None

    await world.sweeper.sweep()
    assert world.files() == {f"fabs/{federation.newest_hash(other)}"}
    assert not run_folder.parent.exists()
    assert federation.artifacts.leaving() == {}
    assert project_id in world.backend.stopped


async def test_who_may_delete(world: World) -> None:
    federation = world.federation
    project_id, _, _ = await federation.ready_project()
    with pytest.raises(Forbidden, match="owner"):
        federation.coordinator.delete_project(BERT, project_id)
    for unknown in (project_id, "nothing"):
        with pytest.raises(NotFound, match="no such project"):
            federation.coordinator.delete_project(CARL, unknown)
    admin = replace(CARL, scopes=CARL.scopes | {Scope.ADMINISTER})
    with pytest.raises(NotFound):
        federation.coordinator.delete_project(admin, "nothing")
    federation.coordinator.delete_project(admin, project_id)
    assert federation.store.projects() == []


async def test_a_run_in_flight_is_stopped_first(world: World) -> None:
    project_id, _, _ = await world.federation.ready_project()
    world.federation.coordinator.start_run(ANNA, project_id, 1, compare=False)
    with pytest.raises(Conflict, match="in flight"):
        world.federation.coordinator.delete_project(ANNA, project_id)
    assert world.federation.artifacts.leaving() == {}


async def test_a_crash_before_the_rows_are_gone_deletes_nothing(tmp_path: Path) -> None:
    class Breaks(MemoryStore):
        def delete_project(self, project_id: str) -> None:
            super().delete_project(project_id)
            raise Unavailable("The database does not answer.")

    world = World(tmp_path, store=Breaks())
    project_id, _, _ = await world.federation.ready_project()
    world.finished_run(project_id, tmp_path)
    before = world.files()
    with pytest.raises(Unavailable):
        world.federation.coordinator.delete_project(ANNA, project_id)
    assert list(world.federation.artifacts.leaving()) == [project_id]
    await world.sweeper.sweep()
    assert world.files() == before
    assert world.federation.artifacts.leaving() == {}
    assert world.federation.coordinator.project(ANNA, project_id).runs


async def test_a_crash_after_the_rows_are_gone_is_finished_by_the_next_service(tmp_path: Path) -> None:
    world = World(tmp_path)
    project_id, _, _ = await world.federation.ready_project()
    world.finished_run(project_id, tmp_path)
    world.federation.coordinator.delete_project(ANNA, project_id)
    refusing = CannotStop(tmp_path / "runs")
    broken = Sweeper(
        store=world.federation.store,
        artifacts=world.federation.artifacts,
        backend=refusing,
        changes=world.federation.changes,
        clock=world.federation.clock,
    )
    with pytest.raises(PermissionError):
        await broken.sweep()
    assert world.files()
    after = World(tmp_path, store=world.federation.store)
    await after.sweeper.sweep()
    assert after.files() == set()


async def test_models_of_old_rounds_go_and_the_last_and_the_best_stay(tmp_path: Path) -> None:
    world = World(tmp_path, keep_rounds=timedelta(days=30))
    project_id, _, _ = await world.federation.ready_project()
    run_id = world.finished_run(project_id, tmp_path, rounds=4)
    world.federation.clock.advance(days=29)
    await world.sweeper.sweep()
    assert len(world.files()) == 5
    world.federation.clock.advance(days=2)
    await world.sweeper.sweep()
    run = world.federation.store.run(run_id)
    assert run is not None
    assert [model.round for model in run.models] == [2, 4]
    assert world.files() == {f"models/{one.sha256}" for one in run.models} | {
        f"fabs/{world.federation.newest_hash(project_id)}"
    }
    lines = len(world.federation.store.audit_lines())
    line = world.federation.store.audit_lines()[-1]
    assert (line.actor, line.action, line.detail) == ("service", "models-removed", {"run": run_id, "rounds": "1 3"})
    assert (await world.federation.coordinator.model_path(ANNA, run_id, "2")).exists()
    with pytest.raises(NotFound, match="not kept"):
        await world.federation.coordinator.model_path(ANNA, run_id, "1")
    await world.sweeper.sweep()
    assert len(world.federation.store.audit_lines()) == lines + 1  # of the download


async def test_a_round_that_was_begun_anew_is_not_the_best_for_what_it_was_before(tmp_path: Path) -> None:
    """Its model is another one by now."""
    world = World(tmp_path, keep_rounds=timedelta(days=30))
    project_id, _, _ = await world.federation.ready_project()
    run_id = world.finished_run(project_id, tmp_path, rounds=4)
    run = world.federation.store.run(run_id)
    assert run is not None
    world.federation.store.add_events(
        run_id,
        [
            RunEvent(EventKind.REPLY, 0.0, "federated", 3, "evaluate", 8, metrics={"accuracy": 1.0}, examples=900),
            RunEvent(EventKind.RESUMED, 0.5, "federated", 2),
            RunEvent(EventKind.REPLY, 1.0, "federated", 3, "evaluate", 7, metrics={"accuracy": 0.5}, examples=9),
        ],
    )
    world.federation.clock.advance(days=31)
    await world.sweeper.sweep()
    run = world.federation.store.run(run_id)
    assert run is not None
    assert [model.round for model in run.models] == [2, 4]


async def test_folders_of_runs_that_have_ended_are_cleared(world: World, tmp_path: Path) -> None:
    """As after a crash between a run's end and that."""
    project_id, _, _ = await world.federation.ready_project()
    ended = world.finished_run(project_id, tmp_path)
    in_flight = world.federation.coordinator.start_run(ANNA, project_id, 1, compare=False).id
    for run_id in (ended, in_flight):
        folder = world.backend.run_folder(project_id, run_id)
        (folder / "app").mkdir(parents=True)
        for name in (EVENTS_FILE, SERVERAPP_LOG, MODEL_FILE, round_model_file(3), round_model_file(9)):
            (folder / name).touch()
    await world.sweeper.sweep()
    left = {path.name for path in world.backend.run_folder(project_id, ended).iterdir()}
    assert left == {EVENTS_FILE, SERVERAPP_LOG}
    assert len(list(world.backend.run_folder(project_id, in_flight).iterdir())) == 6


async def test_leftovers_go_when_they_have_been_of_no_use_for_long(world: World, tmp_path: Path) -> None:
    federation = world.federation
    project_id = federation.new_project()
    fab = f"fabs/{federation.newest_hash(project_id)}"
    crashed = tmp_path / "artifacts" / "models" / ".incoming-x"
    crashed.write_bytes(b"part")
    orphan = Artifacts(tmp_path / "artifacts").put_fab(b"nobody's")  # an earlier service

    def aged(path: Path, age: timedelta) -> None:
        at = (federation.clock.now - age).timestamp()
        os.utime(path, (at, at))

    orphan_path = tmp_path / "artifacts" / "fabs" / orphan
    aged(crashed, INCOMING_AFTER - timedelta(hours=1))
    aged(orphan_path, UNNAMED_AFTER - timedelta(hours=1))
    await world.sweeper.sweep()
    assert world.files() == {fab, f"fabs/{orphan}", "models/.incoming-x"}
    federation.clock.advance(hours=2)
    await world.sweeper.sweep()
    assert world.files() == {fab}


async def test_what_comes_while_it_is_removed_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model of a run that ends just now, and an app that a second project adds: another project left the same."""
    world = World(tmp_path)
    federation = world.federation
    project_id, _, _ = await federation.ready_project()
    run_id = world.finished_run(project_id, tmp_path)
    run = federation.store.run(run_id)
    assert run is not None
    federation.coordinator.delete_project(ANNA, project_id)
    federation.artifacts.put_model(tmp_path / "source-3")  # its run is not written down yet
    remove = federation.artifacts.remove

    def add_then_remove() -> None:
        if not federation.store.projects():
            federation.new_project(BERT, b"app 1")
        remove()

    monkeypatch.setattr(federation.artifacts, "remove", add_then_remove)
    await world.sweeper.sweep()
    assert world.files() == {f"models/{run.model_sha256}", f"fabs/{run.fab_hash}"}


async def test_another_databases_artifacts_are_left_alone(tmp_path: Path) -> None:
    first = World(tmp_path)
    first.federation.new_project()
    wrong = World(tmp_path, store=MemoryStore())
    wrong.federation.clock.advance(days=365)
    await wrong.sweeper.sweep()
    assert len(first.files()) == 1


def test_what_is_leaving_is_on_the_disk(world: World, tmp_path: Path) -> None:
    world.federation.artifacts.note_leaving("p1", {"fabs/b", "fabs/a"})
    assert json.loads((tmp_path / "artifacts" / "leaving" / "p1.json").read_text()) == ["fabs/a", "fabs/b"]
    world.federation.artifacts.has_left("p1")
    world.federation.artifacts.has_left("p1")
    assert world.federation.artifacts.leaving() == {}
