"""Runs are driven to their end, whatever happens on the way. The test plays the ServerApp and the owner."""

from __future__ import annotations

import asyncio
import errno
import json
import math
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from federator.contract import ApprovalState, ClientState, Conditions, OutagePolicy, RunStatus

from hub_service import reconciler, run_driver
from hub_service.aggregators.events import EVENTS_FILE, MODEL_FILE, SERVERAPP_LOG, round_model_file
from hub_service.audit import Decision
from hub_service.changes import project_topic
from hub_service.domain.errors import DatabaseUnavailable, Unavailable
from hub_service.domain.notices import Notice
from hub_service.domain.runs import LEFT_OUT, EventKind, Run, RunEvent
from hub_service.reconciler import Reconciler
from hub_service.sweeper import Sweeper
from hub_service.turns import Turns
from tests.fakes.aggregators import (
    CannotStop,
    EndsWhileItIsStopped,
    FakeAggregators,
    FakeSuperLink,
    ForgetfulSuperLink,
    IsKilledInItsFirstStart,
    LosesItsEndpoint,
    LosesServerApps,
    NeverStarts,
    OutOfReach,
    RefusingSuperLink,
    SlowToStart,
    SlowToStartRuns,
    SlowToStop,
    reply,
    sent,
)
from tests.fakes.federation import ANNA, BERT, STEWARDS, Federation

PATIENCE_S = 10.0  # a test that waits this long has failed
FINISHED = RunEvent(EventKind.FINISHED, 9.0)
FEDERATED = RunEvent(EventKind.PHASE, 1.0, "federated")


class Stage:
    """A federation with a reconciler at work."""

    def __init__(self, folder: Path, backend: FakeAggregators | None = None, superlink: FakeSuperLink | None = None):
        self.federation = Federation(folder)
        self.backend = backend or FakeAggregators(folder / "projects")
        self.superlink = superlink or FakeSuperLink()
        self.told: list[Notice] = []
        self.reconciler = self.new_reconciler()
        self._task: asyncio.Task[None] | None = None

    def new_reconciler(self) -> Reconciler:
        return Reconciler(
            store=self.federation.store,
            artifacts=self.federation.artifacts,
            backend=self.backend,
            superlink=self.superlink,
            changes=self.federation.changes,
            clock=self.federation.clock,
            poll_s=0.002,
            nodes_wait_s=30.0,
            tell=self.told.append,
        )

    @property
    def sweeper(self) -> Sweeper:
        return Sweeper(
            store=self.federation.store,
            artifacts=self.federation.artifacts,
            backend=self.backend,
            changes=self.federation.changes,
            clock=self.federation.clock,
        )

    async def __aenter__(self) -> Stage:
        self._task = asyncio.create_task(self.reconciler.run())
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.kill()
        await self.reconciler.close()

    async def kill(self) -> None:
        """End the reconciler's loop as a crash of the service would."""
        assert self._task is not None
        self._task.cancel()
        await asyncio.wait({self._task})

    async def started(self, compare: bool = False, rounds: int = 3) -> tuple[str, str]:
        """A run whose ServerApp is up: project id and run id."""
        self.project_id, self.first, self.second = await self.federation.ready_project()
        run_id = self.federation.coordinator.start_run(ANNA, self.project_id, rounds, compare).id
        await self.until(lambda: self.run(run_id).status is RunStatus.WAITING, self.project_id)
        return self.project_id, run_id

    def run(self, run_id: str) -> Run:
        run = self.federation.store.run(run_id)
        assert run is not None
        return run

    def node(self, participation_id: str) -> int:
        node_id = self.federation.participation(participation_id).node_id
        assert node_id is not None
        return node_id

    async def until(self, holds: Callable[[], bool], project_id: str) -> None:
        """Wait, from change to change, until it holds."""
        topic = project_topic(project_id)
        async with asyncio.timeout(PATIENCE_S):
            while True:
                seen = self.federation.changes.revision(topic)
                if holds():
                    return
                await self.federation.changes.wait(topic, seen, PATIENCE_S)

    async def ended(self, project_id: str, run_id: str) -> Run:
        await self.until(lambda: self.run(run_id).status.is_final, project_id)
        return self.run(run_id)

    async def looks(self) -> None:
        """Let the driver look at the run a few times."""
        for _ in range(5):
            await asyncio.sleep(0.004)


@asynccontextmanager
async def stage(folder: Path, **parts: object) -> AsyncIterator[Stage]:
    async with Stage(folder, **parts) as made:  # type: ignore[arg-type]
        yield made


async def test_a_look_at_a_run_waits_until_it_is_its_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages go first. What the run has reported meanwhile is seen afterwards."""
    asked, its_turn = asyncio.Event(), asyncio.Event()

    async def wait(_: Turns) -> None:
        asked.set()
        await its_turn.wait()

    monkeypatch.setattr(Turns, "wait", wait)
    async with stage(tmp_path) as at:
        project_id, run_id = await at.started()
        a = at.node(at.first)
        at.backend.report(project_id, run_id, FEDERATED, sent(a, 1), reply(a, 1, loss=1.0, examples=30))
        async with asyncio.timeout(20):
            await asked.wait()
        assert at.run(run_id).phase != "round 1 of 3"
        its_turn.set()
        await at.until(lambda: at.run(run_id).phase == "round 1 of 3", project_id)


async def test_a_run_goes_from_start_to_model(tmp_path: Path) -> None:
    async with stage(tmp_path) as at:
        project_id, run_id = await at.started(compare=True)
        a, b = at.node(at.first), at.node(at.second)
        spec = at.backend.specs[run_id]
        assert spec.node_ids == (a, b)
        assert (spec.rounds, spec.compare, spec.wait_s) == (3, True, 30.0)
        assert at.superlink.runs == [(b"app 1", {"num-server-rounds": 3})]

        at.backend.report(project_id, run_id, RunEvent(EventKind.WAITING, 1.0, text=f"{a},{b}"))
        await at.until(lambda: at.run(run_id).phase == "waiting for a, b", project_id)
        at.backend.report(project_id, run_id, FEDERATED, sent(a, 1), reply(a, 1, loss=1.0, examples=30))
        await at.until(lambda: at.run(run_id).phase == "round 1 of 3", project_id)
        assert at.run(run_id).status is RunStatus.RUNNING
        at.backend.report(project_id, run_id, sent(b, 1), reply(b, 1, loss=2.0, examples=10))
        at.backend.write_model(project_id, run_id, b"weights")
        at.backend.report(project_id, run_id, RunEvent(EventKind.MODEL, 2.0, "federated", 3, size=7))
        at.backend.report(project_id, run_id, RunEvent(EventKind.PHASE, 3.0, "alone", node_id=b))
        await at.until(lambda: at.run(run_id).phase == "b alone", project_id)
        at.backend.report(project_id, run_id, RunEvent(EventKind.PHASE, 3.0, "compare"))
        await at.until(lambda: at.run(run_id).phase == "comparing the models", project_id)
        scores = [
            RunEvent(EventKind.SCORE, 4.0, model=model, node_id=node, metrics={"accuracy": value}, examples=examples)
            for model, node, value, examples in (
                ("federated", a, 0.9, 10),
                ("federated", b, 0.8, 30),
                (str(a), a, 0.7, 10),
                (str(a), b, 0.5, 30),
            )
        ]
        at.backend.report(project_id, run_id, *scores, FINISHED)
        run = await at.ended(project_id, run_id)

        assert (run.status, run.message, run.phase) == (RunStatus.FINISHED, "", "")
        assert run.finished_at == at.federation.clock.now
        assert (run.model_size, run.model_round) == (7, 3)
        assert (await at.federation.coordinator.model_path(BERT, run_id)).read_bytes() == b"weights"
        assert at.backend.stopped == [project_id]
        assert at.federation.store.audit_lines()[-2].action == Decision.RUN_ENDED
        detail = at.federation.coordinator.run(BERT, run_id)
        assert detail.rounds[0].train == {"loss": 1.25}
        table = {(one.model, one.on_site): one.metrics["accuracy"] for one in detail.scores}
        assert table == {
            ("federated", "a"): 0.9,
            ("federated", "b"): 0.8,
            ("federated", ""): pytest.approx(0.825),
            ("a", "a"): 0.7,
            ("a", "b"): 0.5,
            ("a", ""): pytest.approx(0.55),
        }


async def test_the_serverapp_starts_beside_the_superlink(tmp_path: Path) -> None:
    async with stage(tmp_path) as at:
        project_id, run_id = await at.started()
        assert at.backend.started_beside == {project_id: run_id}


async def test_where_a_run_is_near_its_start_is_made_ready(tmp_path: Path) -> None:
    async with stage(tmp_path) as at:
        await at.looks()
        assert at.backend.warmed_up == 0
        project_id, _, _ = await at.federation.ready_project()
        await at.looks()
        assert at.backend.warmed_up
        before = at.backend.warmed_up
        at.federation.coordinator.start_run(ANNA, project_id, 3, False)
        await at.looks()
        assert at.backend.warmed_up > before


async def test_nobody_waits_for_the_processes_of_a_finished_run_but_the_next_one(tmp_path: Path) -> None:
    backend = SlowToStop(tmp_path / "projects")
    async with stage(tmp_path, backend=backend) as at:
        project_id, run_id = await at.started()
        at.backend.report(project_id, run_id, FEDERATED, FINISHED)
        assert (await at.ended(project_id, run_id)).status is RunStatus.FINISHED
        assert backend.stopped == []
        next_run = at.federation.coordinator.start_run(ANNA, project_id, 3, False).id
        await at.looks()
        assert (at.run(next_run).status, list(backend.specs)) == (RunStatus.STARTING, [run_id])
        backend.may_stop.set()
        await at.until(lambda: at.run(next_run).status is RunStatus.WAITING, project_id)
        assert backend.stopped == [project_id]


async def test_processes_that_cannot_be_ended_change_nothing_in_what_the_run_came_to(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    backend = CannotStop(tmp_path / "projects")
    async with stage(tmp_path, backend=backend) as at:
        project_id, run_id = await at.started()
        at.backend.report(project_id, run_id, FEDERATED, FINISHED)
        assert (await at.ended(project_id, run_id)).status is RunStatus.FINISHED
        await at.looks()
        assert at.run(run_id).status is RunStatus.FINISHED
        assert "Operation not permitted" in caplog.text
        backend.permitted = True


async def test_an_app_without_the_key_is_given_no_rounds(tmp_path: Path) -> None:
    async with stage(tmp_path) as at:
        project_id, _, _ = await at.federation.ready_project()
        (version,) = at.federation.store.app_versions(project_id)
        at.federation.store.put_app_version(replace(version, config_keys=("lr",)))
        run_id = at.federation.coordinator.start_run(ANNA, project_id, 3, False).id
        await at.until(lambda: at.run(run_id).status is RunStatus.WAITING, project_id)
        assert at.superlink.runs == [(b"app 1", {})]


async def test_two_projects_run_side_by_side(tmp_path: Path) -> None:
    async with stage(tmp_path) as at:
        first_project, first_run = await at.started()
        second_project, second_run = await at.started()
        at.backend.crash(first_project, first_run, "")
        assert (await at.ended(first_project, first_run)).status is RunStatus.FAILED
        at.backend.report(second_project, second_run, FEDERATED, FINISHED)
        assert (await at.ended(second_project, second_run)).status is RunStatus.FINISHED


async def test_a_failed_serverapp_says_why_with_site_names(tmp_path: Path) -> None:
    async with stage(tmp_path) as at:
        project_id, run_id = await at.started()
        text = f"not all sites connected within 30 s; missing: {at.node(at.second)}"
        at.backend.report(project_id, run_id, RunEvent(EventKind.FAILED, 3.0, text=text))
        run = await at.ended(project_id, run_id)
        assert run.status is RunStatus.FAILED
        assert run.message == "not all sites connected within 30 s; missing: b"


async def test_the_database_never_knows_of_an_event_that_is_not_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a power loss a ServerApp would report on in a shorter file, and what it reports be taken for known."""
    known_at_sync: list[int] = []
    async with stage(tmp_path) as at:
        project_id, run_id = await at.started()

        def note_sync(descriptor: int) -> None:
            known_at_sync.append(at.federation.store.event_count(run_id))

        monkeypatch.setattr("hub_service.aggregators.events.os.fsync", note_sync)
        for number in (1, 2):
            at.backend.report(project_id, run_id, sent(at.node(at.first), number))
            await at.until(lambda number=number: at.run(run_id).round == number, project_id)
            await at.looks()
    assert known_at_sync == [0, 1]


async def test_a_lost_aggregator_is_begun_anew_and_its_open_round_is_void(tmp_path: Path) -> None:
    backend = LosesServerApps(tmp_path / "projects")
    async with stage(tmp_path, backend=backend) as at:
        project_id, run_id = await at.started()
        a, b = at.node(at.first), at.node(at.second)
        backend.report(project_id, run_id, FEDERATED, sent(a, 1), sent(b, 1), reply(b, 1), reply(a, 1), sent(a, 2))
        await at.until(lambda: at.run(run_id).round == 2, project_id)
        backend.report(project_id, run_id, reply(a, 2, loss=9.0))
        backend.lose(run_id)
        await at.until(lambda: len(at.superlink.runs) == 2, project_id)
        run = at.run(run_id)
        assert (run.status, run.phase, run.resumed) == (RunStatus.WAITING, "resuming after round 1", 1)
        assert backend.stopped == [project_id]
        assert backend.specs[run_id].node_ids == (a, b)
        resumed = RunEvent(EventKind.RESUMED, 5.0, "federated", 1)
        backend.report(project_id, run_id, resumed, sent(a, 2), sent(b, 2), reply(a, 2, loss=1.0), FINISHED)
        run = await at.ended(project_id, run_id)
        assert (run.status, run.round, run.resumed) == (RunStatus.FINISHED, 2, 1)
        lines = [(one.action, one.detail) for one in at.federation.store.audit_lines() if one.actor == "service"]
        assert lines[:3] == [
            (Decision.ROUND_FINISHED, {"run": run_id, "round": "1", "sites": "a,b"}),
            (Decision.RUN_RESUMED, {"run": run_id, "times": "1"}),
            (Decision.ROUND_FINISHED, {"run": run_id, "round": "2", "sites": "a"}),
        ]
        assert at.federation.coordinator.run(ANNA, run_id).rounds[1].train == {"loss": 1.0}


async def test_what_a_lost_aggregator_had_ended_is_not_begun_anew(tmp_path: Path) -> None:
    backend = EndsWhileItIsStopped(tmp_path / "projects", FEDERATED, FINISHED)
    async with stage(tmp_path, backend=backend) as at:
        project_id, run_id = await at.started()
        backend.lose(run_id)
        run = await at.ended(project_id, run_id)
        assert (run.status, run.resumed) == (RunStatus.FINISHED, 0)


async def test_the_owner_stops_a_run_that_is_begun_anew(tmp_path: Path) -> None:
    backend = LosesServerApps(tmp_path / "projects")
    async with stage(tmp_path, backend=backend) as at:
        project_id, run_id = await at.started()
        backend.in_order = False
        backend.lose(run_id)
        await at.until(lambda: "waiting for its aggregator" in at.run(run_id).phase, project_id)
        at.federation.coordinator.stop_run(ANNA, run_id)
        assert (await at.ended(project_id, run_id)).status is RunStatus.STOPPED


async def test_an_aggregator_is_waited_for_but_not_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As when an engine is restarted."""
    monkeypatch.setattr(run_driver, "_RETRY_S", 0.01)
    backend = LosesServerApps(tmp_path / "projects")
    async with stage(tmp_path, backend=backend) as at:
        project_id, run_id = await at.started()
        backend.in_order = False
        backend.lose(run_id)
        await at.until(lambda: "waiting for its aggregator" in at.run(run_id).phase, project_id)
        backend.in_order = True
        await at.until(lambda: len(at.superlink.runs) == 2, project_id)
        monkeypatch.setattr(run_driver, "PATIENCE_S", 0.05)
        backend.in_order = False
        backend.report(project_id, run_id, FEDERATED, sent(at.node(at.first), 1))
        backend.lose(run_id)
        run = await at.ended(project_id, run_id)
        assert (run.status, run.message) == (RunStatus.FAILED, "The engine is away.")


async def test_a_serverapp_that_is_lost_again_and_again_is_told_by_its_last_words(tmp_path: Path) -> None:
    async with stage(tmp_path) as at:
        project_id, run_id = await at.started()
        at.backend.report(project_id, run_id, FEDERATED, sent(at.node(at.first), 1))
        at.backend.crash(project_id, run_id, "Traceback...\n\x1b[31mMemoryError: too large\x1b[0m\n\n")
        run = await at.ended(project_id, run_id)
        assert run.status is RunStatus.FAILED
        assert "The aggregator was lost 3 times without a finished round." in run.message
        assert run.resumed == 2
        assert "MemoryError: too large" in run.message
        assert "\x1b" not in run.message
        assert "Start the run again" in run.message
        assert run.round == 1
        assert at.federation.store.event_count(run_id) == 2


@pytest.mark.parametrize("log", ["", "\n\n"])
async def test_a_serverapp_that_ends_in_silence(tmp_path: Path, log: str) -> None:
    async with stage(tmp_path) as at:
        project_id, run_id = await at.started()
        at.backend.crash(project_id, run_id, log)
        assert "last words" not in (await at.ended(project_id, run_id)).message


async def test_a_serverapp_that_never_wrote_a_log(tmp_path: Path) -> None:
    async with stage(tmp_path) as at:
        project_id, run_id = await at.started()
        at.backend.exits[run_id] = -1
        assert "lost 3 times" in (await at.ended(project_id, run_id)).message


async def test_what_was_written_just_before_the_exit_counts(tmp_path: Path) -> None:
    async with stage(tmp_path) as at:
        project_id, run_id = await at.started()
        at.backend.report(project_id, run_id, FEDERATED, FINISHED)
        at.backend.exits[run_id] = 0
        assert (await at.ended(project_id, run_id)).status is RunStatus.FINISHED


async def test_an_aggregator_that_does_not_start_fails_the_run(tmp_path: Path) -> None:
    async with stage(tmp_path, backend=NeverStarts(tmp_path / "projects")) as at:
        project_id, _, _ = await at.federation.ready_project()
        run_id = at.federation.coordinator.start_run(ANNA, project_id, 3, False).id
        run = await at.ended(project_id, run_id)
        assert run.status is RunStatus.FAILED
        assert run.message == "The project's aggregator did not start. Ask the Hub's administrators."


async def test_an_aggregator_that_is_killed_while_it_starts_is_started_once_more(tmp_path: Path) -> None:
    backend = IsKilledInItsFirstStart(tmp_path / "projects")
    async with stage(tmp_path, backend=backend) as at:
        project_id, run_id = await at.started()
        at.backend.report(project_id, run_id, FEDERATED, FINISHED)
        assert (await at.ended(project_id, run_id)).status is RunStatus.FINISHED
        assert backend.starts == 2


async def test_a_missing_app_fails_the_run(tmp_path: Path) -> None:
    async with stage(tmp_path) as at:
        project_id, _, _ = await at.federation.ready_project()
        (tmp_path / "artifacts" / "fabs" / at.federation.newest_hash(project_id)).unlink()
        run_id = at.federation.coordinator.start_run(ANNA, project_id, 3, False).id
        run = await at.ended(project_id, run_id)
        assert run.status is RunStatus.FAILED
        assert "app is not on the service's disk" in run.message


async def test_keys_that_flower_does_not_take_fail_those_clients(tmp_path: Path) -> None:
    async with stage(tmp_path, superlink=RefusingSuperLink()) as at:
        project_id, first, _ = await at.federation.ready_project()
        run_id = at.federation.coordinator.start_run(ANNA, project_id, 3, False).id
        run = await at.ended(project_id, run_id)
        assert "No site's client could be connected" in run.message
        assert at.federation.participation(first).client is ClientState.FAILED
        assert "Restart the Flower client kernel" in at.federation.participation(first).client_detail
        assert at.federation.participation(first).public_key is None


async def test_the_owner_stops_a_run_in_flight(tmp_path: Path) -> None:
    async with stage(tmp_path) as at:
        project_id, run_id = await at.started()
        at.backend.write_model(project_id, run_id, b"weights of round 1")
        at.backend.report(project_id, run_id, FEDERATED, sent(at.node(at.first), 2))
        await at.until(lambda: at.run(run_id).round == 2, project_id)
        at.federation.coordinator.stop_run(ANNA, run_id)
        run = await at.ended(project_id, run_id)
        assert (run.status, run.message) == (RunStatus.STOPPED, "Stopped in round 2.")
        assert at.backend.stopped == [project_id]
        assert run.model_sha256


@pytest.mark.parametrize("failed", [False, True])
async def test_the_last_round_of_a_run_that_did_not_finish_is_in_the_audit_log(tmp_path: Path, failed: bool) -> None:
    async with stage(tmp_path) as at:
        project_id, run_id = await at.started()
        a = at.node(at.first)
        kept = [RunEvent(EventKind.MODEL, 2.0, "federated", number, size=7) for number in (1, 2)]
        at.backend.report(project_id, run_id, FEDERATED, sent(a, 1), reply(a, 1), kept[0])
        at.backend.report(project_id, run_id, sent(a, 2), reply(a, 2), kept[1])
        await at.until(lambda: at.run(run_id).model_round == 2, project_id)
        if failed:
            at.backend.report(project_id, run_id, RunEvent(EventKind.FAILED, 3.0, text="KeyError"))
        else:
            at.federation.coordinator.stop_run(ANNA, run_id)
        await at.ended(project_id, run_id)
        done = [one.detail for one in at.federation.store.audit_lines() if one.action == Decision.ROUND_FINISHED]
        assert [(one["round"], one["sites"]) for one in done] == [("1", "a"), ("2", "a")]


async def test_the_owner_stops_a_run_that_has_not_begun(tmp_path: Path) -> None:
    backend = SlowToStart(tmp_path / "projects")
    async with stage(tmp_path, backend=backend) as at:
        project_id, _, _ = await at.federation.ready_project()
        run_id = at.federation.coordinator.start_run(ANNA, project_id, 3, False).id
        async with asyncio.timeout(PATIENCE_S):
            await backend.asked.wait()
        at.federation.coordinator.stop_run(ANNA, run_id)
        run = await at.ended(project_id, run_id)
        assert (run.status, run.message) == (RunStatus.STOPPED, "Stopped before the first round.")
        assert backend.specs == {}


async def test_leaving_in_the_middle_of_a_run_takes_the_node_out(tmp_path: Path) -> None:
    async with stage(tmp_path) as at:
        project_id, run_id = await at.started()
        node_id = at.node(at.second)
        at.federation.coordinator.leave(BERT, project_id)
        await at.until(lambda: at.superlink.unregistered == [node_id], project_id)
        assert at.federation.participation(at.second).public_key is None
        at.backend.report(project_id, run_id, FEDERATED, reply(node_id, 1, text="the node is gone"), FINISHED)
        assert (await at.ended(project_id, run_id)).status is RunStatus.FINISHED
        (site,) = at.federation.coordinator.run(ANNA, run_id).rounds[0].sites
        assert (site.site, site.error) == ("b", "the node is gone")


async def test_a_withdrawn_approval_takes_the_node_out_and_a_new_one_lets_a_new_key_in(tmp_path: Path) -> None:
    async with stage(tmp_path) as at:
        project_id, run_id = await at.started()
        old = at.node(at.second)
        at.federation.decide(project_id, "b", ApprovalState.REVOKED)
        await at.until(lambda: at.superlink.unregistered == [old], project_id)
        at.federation.decide(project_id, "b")
        key = at.federation.connect(BERT, at.second)
        await at.until(lambda: at.federation.participation(at.second).node_id is not None, project_id)
        assert at.superlink.nodes[key] == at.node(at.second) == old
        assert at.run(run_id).nodes[str(at.node(at.second))] == "b"


async def test_a_site_leaves_a_run_that_goes_on_for_more_rounds_than_it_allows(tmp_path: Path) -> None:
    """An app may do more rounds than it was asked for."""
    async with stage(tmp_path) as at:
        project_id, run_id = await at.started(rounds=3)
        a, b = at.node(at.first), at.node(at.second)
        fab_hash = at.federation.newest_hash(project_id)
        at.federation.coordinator.decide(
            STEWARDS["b"],
            project_id,
            fab_hash,
            "scans",
            "b",
            ApprovalState.APPROVED,
            conditions=Conditions(most_rounds=3),
        )
        at.backend.report(project_id, run_id, FEDERATED, sent(a, 3), sent(b, 3))
        await at.until(lambda: at.run(run_id).round == 3, project_id)
        await at.looks()
        assert at.superlink.unregistered == []
        at.backend.report(project_id, run_id, sent(a, 4))
        await at.until(lambda: at.superlink.unregistered == [b], project_id)
        assert at.run(run_id).message == "b has left the run: its approval allows 3 rounds at most."


async def test_the_end_of_a_run_is_told_to_who_started_it(tmp_path: Path) -> None:
    async with stage(tmp_path) as at:
        project_id, run_id = await at.started()
        at.backend.report(project_id, run_id, RunEvent(EventKind.FAILED, 1.0, text="KeyError: 'patient 4711'"))
        run = await at.ended(project_id, run_id)
        assert "4711" in run.message
        (notice,) = at.told
        assert (notice.subject, notice.users) == ("Lungs: run 1 has failed", ("anna",))
        assert "4711" not in notice.text


async def test_the_project_says_what_a_run_does_in_an_outage(tmp_path: Path) -> None:
    async with stage(tmp_path) as at:
        project_id, at.first, _ = await at.federation.ready_project()
        at.federation.coordinator.set_outage(ANNA, project_id, OutagePolicy.CONTINUE, 60.0)
        run_id = at.federation.coordinator.start_run(ANNA, project_id, 3, False).id
        await at.until(lambda: at.run(run_id).status is RunStatus.WAITING, project_id)
        at.federation.coordinator.set_outage(ANNA, project_id, OutagePolicy.STOP, 5.0)  # for the next run
        spec = at.backend.specs[run_id]
        assert (spec.on_outage, spec.grace_s) == (OutagePolicy.CONTINUE, 60.0)
        detail = at.federation.coordinator.run(ANNA, run_id)
        assert (detail.on_outage, detail.grace_s) == (OutagePolicy.CONTINUE, 60.0)


@pytest.mark.parametrize("on_outage", [OutagePolicy.WAIT, OutagePolicy.STOP])
async def test_the_owner_is_told_once_the_grace_time_is_over(tmp_path: Path, on_outage: OutagePolicy) -> None:
    """Not before, and of nodes that we know only: a project's own code writes the events."""
    async with stage(tmp_path) as at:
        project_id, at.first, _ = await at.federation.ready_project()
        at.federation.coordinator.set_outage(ANNA, project_id, on_outage, 60.0)
        run_id = at.federation.coordinator.start_run(ANNA, project_id, 3, False).id
        await at.until(lambda: at.run(run_id).status is RunStatus.WAITING, project_id)
        a = at.node(at.first)
        silent = RunEvent(EventKind.OUTAGE, 100.0, "federated", 1, seconds=3.0, text=str(a), metrics={str(a): 3.0})
        at.backend.report(project_id, run_id, FEDERATED, sent(a, 1), silent)
        await at.until(lambda: "waiting for a, silent since" in at.run(run_id).phase, project_id)
        assert at.told == []
        overdue = replace(silent, seconds=60.0, metrics={str(a): 60.0, "see http://evil.example": 60.0})
        at.backend.report(project_id, run_id, overdue, overdue)
        at.backend.report(project_id, run_id, sent(a, 2))
        await at.until(lambda: at.run(run_id).round == 2, project_id)
        expected = [("Lungs: run 1 waits for a", ("anna",))] if on_outage is OutagePolicy.WAIT else []
        assert [(notice.subject, notice.users) for notice in at.told] == expected


async def test_the_owner_is_told_of_a_site_that_was_left_out(tmp_path: Path) -> None:
    async with stage(tmp_path) as at:
        project_id, run_id = await at.started()
        a, b = at.node(at.first), at.node(at.second)
        gone = RunEvent(EventKind.REPLY, 9.0, "federated", 1, "train", a, text=f"{LEFT_OUT} for 120 s")
        at.backend.report(project_id, run_id, FEDERATED, sent(a, 1), sent(b, 1), gone, sent(b, 2))
        await at.until(lambda: at.run(run_id).round == 2, project_id)
        assert [notice.subject for notice in at.told] == ["Lungs: run 1 goes on without a"]
        first, second = at.federation.coordinator.run(ANNA, run_id).rounds
        assert (first.absent, second.absent) == ((), ("a",))
        assert first.sites[0].error == f"{LEFT_OUT} for 120 s"


async def test_a_client_with_a_new_key_stays_the_node_that_it_was(tmp_path: Path) -> None:
    async with stage(tmp_path) as at:
        project_id, _ = await at.started()
        old = at.node(at.first)
        key = at.federation.connect(ANNA, at.first)
        await at.until(lambda: at.federation.participation(at.first).node_id is not None, project_id)
        assert at.superlink.nodes[key] == at.node(at.first) == old
        assert at.superlink.unregistered == []
        assert at.federation.participation(at.first).public_key == key


async def supernode_in_a_run(at: Stage) -> tuple[str, str]:
    """A run in flight of a site without notebook servers: project id and participation id."""
    project_id, participation_id = await at.federation.supernode_project()
    at.federation.connect(STEWARDS["d"], participation_id)
    run_id = at.federation.coordinator.start_run(ANNA, project_id, 3, False).id
    await at.until(lambda: at.run(run_id).status is RunStatus.WAITING, project_id)
    return project_id, participation_id


async def test_a_removed_key_takes_the_supernode_out_of_the_run(tmp_path: Path) -> None:
    async with stage(tmp_path) as at:
        _, participation_id = await supernode_in_a_run(at)
        node_id = at.node(participation_id)
        at.federation.coordinator.remove_node(STEWARDS["d"], participation_id)
        async with asyncio.timeout(PATIENCE_S):
            while at.superlink.unregistered != [node_id]:
                await at.looks()
        (node,) = at.federation.coordinator.site_nodes(STEWARDS["d"])
        assert (node.fingerprint, node.key_by) == ("", "")


async def test_a_withdrawn_approval_uses_a_supernodes_key_up(tmp_path: Path) -> None:
    """Flower never takes it back: the steward is told that a new pair is needed."""
    async with stage(tmp_path) as at:
        project_id, participation_id = await supernode_in_a_run(at)
        at.federation.decide(project_id, "d", ApprovalState.REVOKED)
        await at.until(lambda: at.federation.participation(participation_id).public_key is None, project_id)
        (node,) = at.federation.coordinator.site_nodes(STEWARDS["d"])
        assert (node.fingerprint, node.key_by) == ("", STEWARDS["d"].name)
        at.federation.decide(project_id, "d")
        shown = at.federation.coordinator.project(ANNA, project_id).participants[1]
        assert "no more. Waits for" in shown.detail
        assert "a new key" in shown.detail


async def test_a_busy_superlink_is_asked_again(tmp_path: Path) -> None:
    async with stage(tmp_path, superlink=ForgetfulSuperLink()) as at:
        project_id, _ = await at.started()
        node_id = at.node(at.second)
        at.federation.coordinator.leave(BERT, project_id)
        await at.until(lambda: at.superlink.unregistered == [node_id], project_id)


async def test_metrics_that_are_no_numbers_are_named_and_left_out(tmp_path: Path) -> None:
    async with stage(tmp_path) as at:
        project_id, run_id = await at.started()
        folder = at.backend.run_folder(project_id, run_id)
        event = {
            "kind": "reply",
            "at": 1.0,
            "phase": "federated",
            "round": 1,
            "message_type": "evaluate",
            "node_id": at.node(at.first),
            "metrics": {"loss": math.nan, "accuracy": 0.5, "auc": math.inf},
            "examples": 4,
        }
        (folder / "events.jsonl").write_text(json.dumps(event) + "\n")
        at.backend.report(project_id, run_id, FINISHED)
        await at.ended(project_id, run_id)
        (federated,) = at.federation.coordinator.run(ANNA, run_id).rounds
        assert federated.evaluate == {"accuracy": 0.5}
        assert federated.sites[0].error == "auc, loss are not finite numbers"


async def test_a_mistake_of_ours_fails_that_run_only(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with stage(tmp_path) as at:
        project_id, run_id = await at.started()
        with monkeypatch.context() as mistaken:
            mistaken.setattr(at.backend, "serverapp_exit", None)
            run = await at.ended(project_id, run_id)
        assert run.status is RunStatus.FAILED
        assert "The service made a mistake" in run.message
        assert "was lost" in caplog.text
        next_project, next_run = await at.started()
        at.backend.report(next_project, next_run, FINISHED)
        assert (await at.ended(next_project, next_run)).status is RunStatus.FINISHED


async def test_a_run_that_has_ended_leaves_its_events_and_its_log(tmp_path: Path) -> None:
    async with stage(tmp_path) as at:
        project_id, run_id = await at.started()
        folder = at.backend.run_folder(project_id, run_id)
        at.backend.write_model(project_id, run_id, b"weights")
        (folder / "app").mkdir()
        (folder / SERVERAPP_LOG).write_text("said\n")
        at.backend.report(project_id, run_id, FINISHED)
        run = await at.ended(project_id, run_id)
        await at.looks()
        assert {path.name for path in folder.iterdir()} == {EVENTS_FILE, SERVERAPP_LOG}
        assert (await at.federation.coordinator.model_path(ANNA, run.id)).read_bytes() == b"weights"


async def test_a_run_whose_end_was_written_down_unnoticed_is_cleared_up_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The database took the end, and went before it said so."""
    monkeypatch.setattr(reconciler, "_DATABASE_RETRY_S", 0.01)
    async with stage(tmp_path) as at:
        project_id, run_id = await at.started()
        transaction = at.federation.store.transaction
        open_ones: list[object] = []

        @contextmanager
        def unanswered() -> Iterator[None]:
            with transaction():
                open_ones.append(None)
                yield
                open_ones.pop()
            if not open_ones and at.run(run_id).status.is_final:
                raise DatabaseUnavailable("The service's database does not answer.")

        monkeypatch.setattr(at.federation.store, "transaction", unanswered)
        at.backend.write_model(project_id, run_id, b"weights")
        at.backend.report(project_id, run_id, FINISHED)
        async with asyncio.timeout(PATIENCE_S):
            while at.backend.stopped != [project_id]:
                await at.looks()
        await at.looks()
        assert {path.name for path in at.backend.run_folder(project_id, run_id).iterdir()} == {EVENTS_FILE}


async def test_a_runs_model_goes_with_its_project(tmp_path: Path) -> None:
    async with stage(tmp_path) as at:
        project_id, run_id = await at.started()
        at.backend.write_model(project_id, run_id, b"weights")
        at.backend.report(project_id, run_id, FINISHED)
        await at.ended(project_id, run_id)
        at.federation.coordinator.delete_project(ANNA, project_id)
        await at.sweeper.sweep()
        assert at.federation.artifacts.names() == {}


def has_no_room(_: Path) -> tuple[str, int]:
    raise Unavailable("The service cannot write to its disk.")


class TestModelsThatCannotBeKept:
    @pytest.fixture(autouse=True)
    def impatient(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(run_driver, "_RETRY_S", 0.01)

    @pytest.fixture
    def kept(self, tmp_path: Path) -> Path:
        return tmp_path / "artifacts" / "models"

    async def finished(self, at: Stage) -> tuple[str, str, Path]:
        """A run of two rounds that is over but for its models: project, run, and its folder."""
        project_id, run_id = await at.started()
        folder = at.backend.run_folder(project_id, run_id)
        at.backend.write_model(project_id, run_id, b"weights 2")
        for number in (1, 2):
            (folder / round_model_file(number)).write_bytes(b"weights %d" % number)
            at.backend.report(project_id, run_id, RunEvent(EventKind.MODEL, 2.0, "federated", number, size=9))
        at.backend.report(project_id, run_id, FINISHED)
        await at.until(lambda: "its models cannot be kept yet" in at.run(run_id).phase, project_id)
        return project_id, run_id, folder

    async def stopped(self, at: Stage, kept: Path) -> tuple[str, Run, Path]:
        """Its owner does not wait for room: project, run, and its folder."""
        kept.rmdir()
        project_id, run_id, folder = await self.finished(at)
        at.federation.coordinator.stop_run(ANNA, run_id)
        return project_id, await at.ended(project_id, run_id), folder

    async def test_the_run_waits_until_they_can(self, tmp_path: Path, kept: Path) -> None:
        async with stage(tmp_path) as at:
            kept.rmdir()
            project_id, run_id, _ = await self.finished(at)
            assert "whether the disk is full" in at.run(run_id).phase
            kept.mkdir()
            run = await at.ended(project_id, run_id)
            assert (run.status, run.message, [one.round for one in run.models]) == (RunStatus.FINISHED, "", [1, 2])
            assert at.federation.artifacts.model(run.model_sha256).read_bytes() == b"weights 2"

    async def test_an_owner_who_does_not_wait_loses_no_file(self, tmp_path: Path, kept: Path) -> None:
        async with stage(tmp_path) as at:
            project_id, run, folder = await self.stopped(at, kept)
            assert (run.status, run.model_sha256) == (RunStatus.FINISHED, "")
            assert "The model could not be kept: The service cannot write to its disk." in run.message
            await at.looks()
            assert at.backend.stopped == [project_id]
            assert {path.name for path in folder.glob("*.safetensors")} == {
                MODEL_FILE,
                round_model_file(1),
                round_model_file(2),
            }

    async def test_what_was_left_is_kept_when_there_is_room(self, tmp_path: Path, kept: Path) -> None:
        async with stage(tmp_path) as at:
            _, run, folder = await self.stopped(at, kept)
            kept.mkdir()
            with pytest.MonkeyPatch.context() as full:
                full.setattr(at.federation.artifacts, "put_model", has_no_room)
                await at.sweeper.sweep()
            assert (at.run(run.id), len(list(folder.glob("*.safetensors")))) == (run, 3)
            await at.sweeper.sweep()
            run = at.run(run.id)
            assert at.federation.artifacts.model(run.model_sha256).read_bytes() == b"weights 2"
            assert [(one.round, one.size) for one in run.models] == [(1, 9), (2, 9)]
            assert run.message.endswith("It was kept later, when there was room.")
            assert list(folder.glob("*.safetensors")) == []
            line = at.federation.store.audit_lines()[-1]
            assert (line.action, line.detail["model"], line.detail["rounds"]) == (
                "models-kept",
                run.model_sha256,
                "1 2",
            )

    async def test_a_project_that_is_deleted_while_they_are_copied_stays_deleted(
        self, tmp_path: Path, kept: Path
    ) -> None:
        async with stage(tmp_path) as at:
            project_id, run, _ = await self.stopped(at, kept)
            kept.mkdir()
            put_model, loop = at.federation.artifacts.put_model, asyncio.get_running_loop()

            async def delete() -> None:
                if at.federation.store.project(project_id) is not None:
                    at.federation.coordinator.delete_project(ANNA, project_id)

            def put_and_delete(source: Path) -> tuple[str, int]:
                found = put_model(source)
                asyncio.run_coroutine_threadsafe(delete(), loop).result(PATIENCE_S)
                return found

            with pytest.MonkeyPatch.context() as slow:
                slow.setattr(at.federation.artifacts, "put_model", put_and_delete)
                await at.sweeper.sweep()
            assert at.federation.store.run(run.id) is None
            assert at.federation.store.audit_lines()[-1].action == "project-deleted"

    async def test_one_that_cannot_costs_no_other(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        async with stage(tmp_path) as at:
            put_model = at.federation.artifacts.put_model

            def put_but_for_one(source: Path) -> tuple[str, int]:
                if source.name == round_model_file(2):
                    raise Unavailable("The service cannot write to its disk.")
                return put_model(source)

            monkeypatch.setattr(at.federation.artifacts, "put_model", put_but_for_one)
            project_id, run_id, folder = await self.finished(at)
            at.federation.coordinator.stop_run(ANNA, run_id)
            run = await at.ended(project_id, run_id)
            assert at.federation.artifacts.model(run.model_sha256).read_bytes() == b"weights 2"
            assert [one.round for one in run.models] == [1]
            assert "A round's model could not be kept" in run.message
            await at.looks()
            assert (folder / round_model_file(2)).exists()
            monkeypatch.setattr(at.federation.artifacts, "put_model", put_model)
            await at.sweeper.sweep()
            assert [one.round for one in at.run(run_id).models] == [1, 2]
            assert at.run(run_id).model_sha256 == run.model_sha256

    async def test_the_next_service_goes_on_waiting(self, tmp_path: Path, kept: Path) -> None:
        at = Stage(tmp_path)
        async with at:
            kept.rmdir()
            project_id, run_id, _ = await self.finished(at)
        at.reconciler = at.new_reconciler()
        async with at:
            kept.mkdir()
            run = await at.ended(project_id, run_id)
        assert (run.status, run.resumed, len(run.models)) == (RunStatus.FINISHED, 0, 2)


class TestRestart:
    async def test_the_end_of_the_service_leaves_its_runs_to_the_next_one(self, tmp_path: Path) -> None:
        at = Stage(tmp_path)
        async with at:
            project_id, run_id = await at.started()
        assert at.run(run_id).status is RunStatus.WAITING
        assert await at.backend.running() == [project_id]
        assert at.backend.stopped == []
        at.reconciler = at.new_reconciler()
        async with at:
            at.backend.report(project_id, run_id, FINISHED)
            run = await at.ended(project_id, run_id)
        assert (run.status, run.resumed) == (RunStatus.FINISHED, 0)

    async def test_a_run_whose_aggregator_lives_is_gone_on_with(self, tmp_path: Path) -> None:
        async with Stage(tmp_path) as at:
            project_id, run_id = await at.started()
            at.backend.report(project_id, run_id, FEDERATED, sent(at.node(at.first), 1))
            await at.until(lambda: at.run(run_id).round == 1, project_id)
            await at.kill()
            for driver in at.reconciler._drivers.values():
                driver.cancel()
            await at.looks()
            at.backend.report(project_id, run_id, reply(at.node(at.first), 1, loss=1.0))
            node_id = at.node(at.second)
            at.federation.coordinator.leave(BERT, project_id)

            at.reconciler = at.new_reconciler()
            async with at:
                await at.until(lambda: at.superlink.unregistered == [node_id], project_id)
                at.backend.report(project_id, run_id, FINISHED)
                assert (await at.ended(project_id, run_id)).status is RunStatus.FINISHED
            kinds = [event.kind for event in at.federation.store.events(run_id)]
            assert kinds == [EventKind.PHASE, EventKind.SENT, EventKind.REPLY, EventKind.FINISHED]

    async def test_a_site_that_is_silent_is_told_of_once(self, tmp_path: Path) -> None:
        at = Stage(tmp_path)
        async with at:
            project_id, run_id = await at.started()
            a, b = at.node(at.first), at.node(at.second)
            silent = RunEvent(EventKind.OUTAGE, 900.0, "federated", 1, text=str(a), metrics={str(a): 900.0})
            at.backend.report(project_id, run_id, FEDERATED, sent(a, 1), silent)
            await at.until(lambda: "waiting for a" in at.run(run_id).phase, project_id)
        at.reconciler = at.new_reconciler()
        async with at:
            both = replace(silent, text=f"{a},{b}", metrics={str(a): 950.0, str(b): 1.0})
            at.backend.report(project_id, run_id, both)
            await at.until(lambda: "waiting for a, b" in at.run(run_id).phase, project_id)
        assert [notice.subject for notice in at.told] == ["Lungs: run 1 waits for a"]

    async def test_a_run_whose_aggregator_died_is_begun_anew_and_idle_ones_are_stopped(self, tmp_path: Path) -> None:
        at = Stage(tmp_path)
        project_id, _, _ = await at.federation.ready_project()
        run_id = at.federation.coordinator.start_run(ANNA, project_id, 3, False).id
        at.federation.store.put_run(replace(at.run(run_id), status=RunStatus.RUNNING))
        await at.backend.start("idle")
        async with at:
            await at.until(lambda: run_id in at.backend.specs, project_id)
            at.backend.report(project_id, run_id, FINISHED)
            run = await at.ended(project_id, run_id)
        assert (run.status, run.resumed) == (RunStatus.FINISHED, 1)
        assert "idle" in at.backend.stopped

    async def test_a_service_that_is_killed_while_it_begins_a_run_anew_leaves_that_to_the_next_one(
        self, tmp_path: Path
    ) -> None:
        """SuperLink and ServerApp are up by then, and the ServerApp waits for its plan."""
        backend, superlink = LosesServerApps(tmp_path / "projects"), SlowToStartRuns()
        async with Stage(tmp_path, backend, superlink) as at:
            project_id, run_id = await at.started()
            at.backend.report(project_id, run_id, FEDERATED, sent(at.node(at.first), 1))
            await at.until(lambda: at.run(run_id).round == 1, project_id)
            superlink.may_start.clear()
            backend.lose(run_id)
            async with asyncio.timeout(PATIENCE_S):
                await superlink.asked.wait()
            backend.exits.clear()
            await at.kill()
            for driver in at.reconciler._drivers.values():
                driver.cancel()
            await at.looks()
            superlink.may_start.set()
            at.reconciler = at.new_reconciler()
            async with at:
                await at.until(lambda: len(superlink.runs) == 2, project_id)
                at.backend.report(project_id, run_id, FINISHED)
                run = await at.ended(project_id, run_id)
        assert (run.status, run.resumed) == (RunStatus.FINISHED, 2)

    async def test_a_run_that_was_only_asked_for_is_started(self, tmp_path: Path) -> None:
        at = Stage(tmp_path)
        project_id, _, _ = await at.federation.ready_project()
        run_id = at.federation.coordinator.start_run(ANNA, project_id, 3, False).id
        async with at:
            await at.until(lambda: at.run(run_id).status is RunStatus.WAITING, project_id)
            at.backend.report(project_id, run_id, FINISHED)
            assert (await at.ended(project_id, run_id)).status is RunStatus.FINISHED

    async def test_an_aggregator_that_is_always_gone_before_the_first_look_fails_the_run(self, tmp_path: Path) -> None:
        async with Stage(tmp_path, backend=LosesItsEndpoint(tmp_path / "projects")) as at:
            project_id, _, _ = await at.federation.ready_project()
            run_id = at.federation.coordinator.start_run(ANNA, project_id, 3, False).id
            assert "lost 3 times" in (await at.ended(project_id, run_id)).message


async def test_runs_wait_until_it_is_known_what_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A service that comes up before the engine takes no run for lost."""
    monkeypatch.setattr(reconciler, "_RETRY_S", 0.01)
    backend = OutOfReach(tmp_path / "projects")
    async with Stage(tmp_path, backend=backend) as at:
        project_id, _, _ = await at.federation.ready_project()
        run_id = at.federation.coordinator.start_run(ANNA, project_id, 3, False).id
        await asyncio.sleep(0.05)
        assert at.run(run_id).status is RunStatus.STARTING
        backend.reachable = True
        await at.until(lambda: at.run(run_id).status is RunStatus.WAITING, project_id)
    assert backend.stopped == []


async def test_events_that_cannot_be_read_now_are_read_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where the service has too many files open."""
    loop, refused = asyncio.get_running_loop(), asyncio.Event()

    def refuse(*_: object) -> None:
        loop.call_soon_threadsafe(refused.set)
        raise OSError(errno.EMFILE, "Too many open files")

    async with stage(tmp_path) as at:
        project_id, run_id = await at.started()
        with monkeypatch.context() as short:
            short.setattr(run_driver, "read_events", refuse)
            async with asyncio.timeout(PATIENCE_S):
                await refused.wait()  # no look is left that began before
                at.backend.report(project_id, run_id, FEDERATED, FINISHED)
                refused.clear()
                await refused.wait()
        run = await at.ended(project_id, run_id)
        assert (run.status, run.resumed) == (RunStatus.FINISHED, 0)


async def test_what_is_no_event_ends_the_run_with_the_reason(tmp_path: Path) -> None:
    async with stage(tmp_path) as at:
        project_id, run_id = await at.started()
        (at.backend.run_folder(project_id, run_id) / EVENTS_FILE).write_text("nonsense\n")
        run = await at.ended(project_id, run_id)
        assert run.status is RunStatus.FAILED
        assert "no event" in run.message
