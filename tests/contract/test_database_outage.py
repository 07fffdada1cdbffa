"""PostgreSQL is stopped and started below a service at work: what people read, and that nothing is lost or doubled."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager
from http import HTTPStatus
from pathlib import Path

import pytest
from federator.contract import Route, RunStatus

from hub_service import reconciler as reconciler_module
from hub_service.audit import Decision
from hub_service.domain.errors import DatabaseUnavailable
from hub_service.domain.runs import EventKind, Run, RunEvent
from hub_service.reconciler import Reconciler
from hub_service.store import database as database_module
from hub_service.store.sql import SqlStore
from tests.fakes.aggregators import FakeAggregators, FakeSuperLink, reply, sent
from tests.fakes.federation import ANNA, Federation
from tests.fakes.hub import FakeHub
from tests.fakes.postgresql import Cluster
from tests.fakes.web_world import World, path, plain, served_world

pytestmark = pytest.mark.needs_postgresql

PATIENCE_S = 60.0
ROUNDS = 30


@pytest.fixture
def server(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """The server, up again after the test. Whoever waits for it looks often."""
    monkeypatch.setattr(database_module, "_LOOK_EVERY_S", 0.05)
    monkeypatch.setattr(reconciler_module, "_DATABASE_RETRY_S", 0.05)
    yield cluster
    if not cluster.is_up:
        cluster.start()


@pytest.fixture
def store(server: Cluster) -> Iterator[SqlStore]:
    store = SqlStore(server.empty_database())
    yield store
    store.close()


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while True:
            try:
                if true():
                    return
            except DatabaseUnavailable:
                pass
            await asyncio.sleep(0.01)


def is_there(store: SqlStore) -> bool:
    store.projects()
    return True


class TestRuns:
    @pytest.fixture
    def federation(self, tmp_path: Path, store: SqlStore) -> Federation:
        return Federation(tmp_path, store=store)

    @pytest.fixture
    def backend(self, tmp_path: Path) -> FakeAggregators:
        return FakeAggregators(tmp_path / "projects")

    @asynccontextmanager
    async def driven(self, federation: Federation, backend: FakeAggregators) -> AsyncIterator[tuple[str, str]]:
        """Ids of a project and of its run, which waits for its sites."""
        reconciler = Reconciler(
            store=federation.store,
            artifacts=federation.artifacts,
            backend=backend,
            superlink=FakeSuperLink(),
            changes=federation.changes,
            clock=federation.clock,
            poll_s=0.002,
        )
        driving = asyncio.create_task(reconciler.run())
        try:
            project_id, _, _ = await federation.ready_project()
            run_id = federation.coordinator.start_run(ANNA, project_id, ROUNDS, False).id
            await until(lambda: status(federation, run_id) is RunStatus.WAITING)
            yield project_id, run_id
        finally:
            driving.cancel()
            await asyncio.wait({driving})
            await reconciler.close()

    async def test_what_happened_meanwhile_is_taken_in_when_it_is_back(
        self, federation: Federation, backend: FakeAggregators, server: Cluster, store: SqlStore
    ) -> None:
        async with self.driven(federation, backend) as (project_id, run_id):
            backend.report(project_id, run_id, *events_of_round(1))
            await until(lambda: store.event_count(run_id) == 3)
            server.stop()
            backend.report(project_id, run_id, *events_of_round(2))
            await self._the_service_notices(store)
            backend.report(project_id, run_id, RunEvent(EventKind.FINISHED, 9.0))
            backend.write_model(project_id, run_id, b"model")
            server.start()
            await until(lambda: status(federation, run_id) is RunStatus.FINISHED)
            kinds = [event.kind for event in store.events(run_id)]
            assert kinds == [
                *(event.kind for event in events_of_round(1)),
                *(event.kind for event in events_of_round(2)),
                EventKind.FINISHED,
            ]
            ended = [line for line in store.audit_lines() if line.action == Decision.RUN_ENDED]
            assert len(ended) == 1
            assert len(backend.specs) == 1

    async def test_a_run_whose_stop_is_watched_for_is_not_stopped_by_an_outage(
        self, federation: Federation, backend: FakeAggregators, server: Cluster, store: SqlStore
    ) -> None:
        async with self.driven(federation, backend) as (project_id, run_id):
            store._forget()  # nothing is known from memory
            server.stop("immediate")
            federation.changes.announce(reconciler_module.RUNS_TOPIC)
            await self._the_service_notices(store)
            server.start()
            await until(lambda: is_there(store))
            backend.report(project_id, run_id, *events_of_round(1))
            await until(lambda: store.event_count(run_id) == 3)
            assert status(federation, run_id) is RunStatus.RUNNING

    async def test_a_blink_while_a_stop_is_looked_for_is_no_stop(
        self, federation: Federation, backend: FakeAggregators, store: SqlStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        blinked = asyncio.Event()
        look = store.run

        def run(run_id: str) -> Run | None:
            task = asyncio.current_task()
            watches = task is not None and getattr(task.get_coro(), "__name__", "") == "_until_stop_is_wanted"
            if watches and not blinked.is_set():
                blinked.set()
                raise DatabaseUnavailable("The service's database does not answer.")
            return look(run_id)

        async with self.driven(federation, backend) as (project_id, run_id):
            monkeypatch.setattr(store, "run", run)
            federation.changes.announce(reconciler_module.RUNS_TOPIC)
            async with asyncio.timeout(PATIENCE_S):
                await blinked.wait()
            backend.report(project_id, run_id, *events_of_round(1))
            await until(lambda: store.event_count(run_id) == 3)
            assert status(federation, run_id) is RunStatus.RUNNING

    async def test_a_blink_while_events_are_kept_is_no_failure(
        self, federation: Federation, backend: FakeAggregators, store: SqlStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        keep = store.add_events
        attempts: list[str] = []

        def add_events(run_id: str, events: Iterable[RunEvent]) -> None:
            keep(run_id, events)
            attempts.append(run_id)
            if len(attempts) == 1:
                raise DatabaseUnavailable("The service's database does not answer.")

        async with self.driven(federation, backend) as (project_id, run_id):
            monkeypatch.setattr(store, "add_events", add_events)
            backend.report(project_id, run_id, *events_of_round(1))
            await until(lambda: len(attempts) > 1)
            await until(lambda: store.event_count(run_id) == 3)
            assert status(federation, run_id) is RunStatus.RUNNING

    async def test_a_run_that_is_asked_for_right_after_starts_once(
        self, federation: Federation, backend: FakeAggregators, server: Cluster, store: SqlStore
    ) -> None:
        async with self.driven(federation, backend) as (project_id, run_id):
            backend.report(project_id, run_id, RunEvent(EventKind.FINISHED, 9.0))
            await until(lambda: status(federation, run_id) is RunStatus.FINISHED)
            server.stop()
            with pytest.raises(DatabaseUnavailable):
                federation.coordinator.start_run(ANNA, project_id, 3, False)
            server.start()
            await until(lambda: is_there(store))
            second = federation.coordinator.start_run(ANNA, project_id, 3, False).id
            await until(lambda: status(federation, second) is RunStatus.WAITING)
            assert [run.id for run in store.runs(project_id)] == [run_id, second]
            assert set(backend.specs) == {run_id, second}

    @pytest.mark.random_kills
    async def test_no_event_is_lost_or_doubled_however_often_and_whenever_it_goes(
        self, federation: Federation, backend: FakeAggregators, server: Cluster, store: SqlStore
    ) -> None:
        draw = random.Random(6)  # noqa: S311
        async with self.driven(federation, backend) as (project_id, run_id):

            async def report() -> None:
                for number in range(1, ROUNDS + 1):
                    for event in events_of_round(number):
                        backend.report(project_id, run_id, event)
                        await asyncio.sleep(draw.random() * 0.02)
                backend.report(project_id, run_id, RunEvent(EventKind.FINISHED, 9.0))

            reporting = asyncio.create_task(report())
            for mode in ("fast", "immediate", "immediate", "fast", "immediate"):
                await asyncio.sleep(draw.random() * 0.1)
                await asyncio.to_thread(server.stop, mode)
                await asyncio.sleep(draw.random() * 0.1)
                await asyncio.to_thread(server.start)
            await reporting
            await until(lambda: status(federation, run_id) is RunStatus.FINISHED)
            wanted = [event for number in range(1, ROUNDS + 1) for event in events_of_round(number)]
            assert list(store.events(run_id))[:-1] == wanted
            assert len([line for line in store.audit_lines() if line.action == Decision.RUN_ENDED]) == 1

    async def _the_service_notices(self, store: SqlStore) -> None:
        await until(store._database._gone.is_set)


def events_of_round(number: int) -> tuple[RunEvent, ...]:
    return sent(7000, number), reply(7000, number, loss=1.0 / number), reply(7001, number, loss=2.0 / number)


def status(federation: Federation, run_id: str) -> RunStatus:
    run = federation.store.run(run_id)
    assert run is not None
    return run.status


class TestPages:
    @pytest.fixture
    async def world(self, tmp_path: Path, store: SqlStore) -> AsyncIterator[World]:
        async with served_world(tmp_path, FakeHub(), store=store) as world:
            yield world

    async def test_they_say_so_and_when_to_come_again(self, world: World, server: Cluster, store: SqlStore) -> None:
        project_id = world.project()
        store._forget()
        server.stop()
        async with world.browser("ada") as browser, world.api("ada") as api:
            page = await browser.get(f"projects/{project_id}")
            assert page.status_code == HTTPStatus.SERVICE_UNAVAILABLE
            assert "database does not answer" in page.text
            assert "Nothing was changed. Try again in a minute" in page.text
            assert int(page.headers["Retry-After"]) > 0
            asked = await api.get(path(Route.PROJECT, project_id=project_id))
            told = await api.post(path(Route.PROJECTS), json={"name": "Skin"})
            for answer in (asked, told):
                assert answer.status_code == HTTPStatus.SERVICE_UNAVAILABLE
                assert plain(answer)["code"] == "unavailable"
                assert "psycopg" not in answer.text
                assert "Retry-After" in answer.headers
            server.start()
            await until(lambda: is_there(store))
            assert [one["name"] for one in plain(await api.get(path(Route.PROJECTS)))] == ["Lungs"]
            assert (await api.post(path(Route.PROJECTS), json={"name": "Skin"})).status_code == HTTPStatus.CREATED
            assert (await browser.get(f"projects/{project_id}")).status_code == HTTPStatus.OK

    async def test_a_stream_that_is_open_goes_on(self, world: World, server: Cluster, store: SqlStore) -> None:
        project_id = world.project()
        async with (
            world.api("ada") as api,
            api.stream("GET", path(Route.EVENTS, project_id=project_id)) as stream,
            asyncio.timeout(PATIENCE_S),
        ):
            lines = stream.aiter_lines()
            assert await anext(lines) == "event: project"
            store._forget()
            server.stop()
            world.changes.announce(f"project:{project_id}")
            while await anext(lines) != ": still here":
                pass
            server.start()
            await until(lambda: is_there(store))
            world.add_app(project_id)
            while "lungs" not in (line := await anext(lines)).lower():
                assert "gone" not in line
        assert store.app_versions(project_id)

    @pytest.mark.parametrize("text", ["N\x00UL", "\x00"])
    async def test_a_text_that_cannot_be_kept_is_a_bad_request(self, world: World, text: str) -> None:
        project_id = world.project()
        async with world.api("ada") as api:
            created = await api.post(path(Route.PROJECTS), json={"name": f"a{text}"})
            described = await api.post(path(Route.PROJECTS), json={"name": "a", "description": text})
            invited = await api.post(path(Route.INVITATIONS, project_id=project_id), json={"user": text})
            found = await api.get(path(Route.PROJECT, project_id="a%00"))
        assert created.status_code == described.status_code == HTTPStatus.BAD_REQUEST
        assert invited.status_code in (HTTPStatus.BAD_REQUEST, HTTPStatus.NOT_FOUND)
        assert found.status_code == HTTPStatus.NOT_FOUND
