"""The supervisor's decisions, with stand-in kernels and a service over real HTTP."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from federator.contract import Assignment, ClientState
from federator.service_client import Access, AsyncServiceClient
from federator.supervisor import CannotStart, Supervisor
from federator.tiles import Tiles

from tests.fakes.service import TOKEN, FakeService

KERNEL = "0f0c4a52-6b5d-4c55-9f43-111111111111"
ASSIGNMENT = Assignment("part1", "proj1", "Histo", "north", "slides", KERNEL, "ab" * 32)


class StandInKernels:
    """Kernels that are only names. `refuse`: the reason that each start is refused with.

    Unlike the kernel manager they do not say that they have started: a test does.
    """

    def __init__(self) -> None:
        self.running: set[str] = set()
        self.refuse = ""
        self.deaf = False  # answers nothing that it is told
        self.told: list[Assignment] = []
        self.attempts = 0

    def running_clients(self) -> set[str]:
        return set(self.running)

    async def start_client(self, assignment: Assignment) -> None:
        self.attempts += 1
        if self.refuse:
            raise CannotStart(self.refuse)
        self.running.add(assignment.kernel_id)

    async def tell_client(self, assignment: Assignment) -> bool:
        self.told.append(assignment)
        return not self.deaf

    async def stop_client(self, kernel_id: str) -> None:
        self.running.discard(kernel_id)


class Bench:
    """A supervisor at work and everything around it."""

    def __init__(self, service: FakeService, home: Path) -> None:
        self.service = service
        self.kernels = StandInKernels()
        self.activity = 0
        self.http = AsyncServiceClient(Access(service.url, TOKEN))
        self.supervisor = Supervisor(
            service=self.http,
            kernels=self.kernels,
            tiles=Tiles(home / "kernels"),
            log=logging.getLogger("test"),
            spread=lambda: 0.0,
            note_activity=self._note,
        )
        self.task: asyncio.Task[None] | None = None

    def _note(self) -> None:
        self.activity += 1

    def start(self) -> None:
        self.task = asyncio.create_task(self.supervisor.run())

    async def stop(self) -> None:
        if self.task is not None:
            self.task.cancel()
            await asyncio.gather(self.task, return_exceptions=True)
        await self.http.close()

    async def until(self, holds: Callable[[], object]) -> None:
        async with asyncio.timeout(15):
            while not holds():  # noqa: ASYNC110 - looks at plain attributes of stand-ins
                await asyncio.sleep(0.01)

    def wait_for(self, holds: Callable[[FakeService], object]) -> Awaitable[object]:
        return asyncio.to_thread(self.service.wait_for, holds)


@pytest.fixture
def service() -> Iterator[FakeService]:
    with FakeService().running() as fake:
        yield fake


@pytest.fixture
async def bench(service: FakeService, tmp_path: Path) -> AsyncIterator[Bench]:
    made = Bench(service, tmp_path)
    yield made
    await made.stop()


async def test_a_home_without_space_does_not_keep_clients_from_running(
    service: FakeService, bench: Bench, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "kernels").write_text("a file where the folder should be: nothing can be written")
    service.assign(ASSIGNMENT)
    bench.start()
    await bench.until(lambda: KERNEL in bench.kernels.running)
    assert "tiles could not be written" in caplog.text


async def test_a_refused_start_is_tried_again_until_withdrawn(service: FakeService, bench: Bench) -> None:
    bench.kernels.refuse = "not today"
    service.assign(ASSIGNMENT)
    bench.start()
    await bench.until(lambda: bench.kernels.attempts >= 2)
    assert set(service.wait_for(lambda s: s.details("part1", ClientState.FAILED))) == {"not today"}
    service.withdraw("part1")
    await bench.until(lambda: bench.supervisor.by_kernel(KERNEL) is None)
    tried = bench.kernels.attempts
    bench.kernels.refuse = ""
    service.assign(replace(ASSIGNMENT, participation_id="part2", project_id="proj2", kernel_id="other"))
    await bench.until(lambda: bench.kernels.running)
    assert bench.kernels.running == {"other"}
    assert bench.kernels.attempts == tried + 1


async def test_a_client_keeps_its_server_active_while_the_service_is_away(service: FakeService, bench: Bench) -> None:
    """It may be in the middle of a round that lasts hours: no culler is to take its server for idle."""
    service.assign(ASSIGNMENT)
    bench.start()
    await bench.until(lambda: bench.kernels.running)
    service.answer_all_with(503)
    noted = bench.activity
    await bench.until(lambda: bench.activity > noted + 1)


async def test_a_pause_ends_the_attempts(service: FakeService, bench: Bench) -> None:
    bench.kernels.refuse = "not today"
    service.assign(ASSIGNMENT)
    bench.start()
    await bench.until(lambda: bench.kernels.attempts)
    bench.supervisor.paused(KERNEL)
    await bench.wait_for(lambda s: s.details("part1", ClientState.PAUSED))
    tried = bench.kernels.attempts
    service.assign(replace(ASSIGNMENT, fab_hash="cd" * 32))
    await bench.until(lambda: bench.supervisor.by_kernel(KERNEL) == replace(ASSIGNMENT, fab_hash="cd" * 32))
    await asyncio.sleep(0)
    assert bench.kernels.attempts == tried
    bench.supervisor.started(KERNEL)
    assert bench.activity


async def test_what_concerns_no_assignment_is_not_reported(service: FakeService, bench: Bench) -> None:
    bench.start()
    await bench.until(lambda: bench.supervisor.answered)
    bench.supervisor.paused("ordinary")
    bench.supervisor.not_restarted("ordinary", "gone")
    service.assign(ASSIGNMENT)
    await bench.until(lambda: bench.kernels.running)
    bench.supervisor.started(KERNEL)
    await bench.wait_for(lambda s: s.reports)
    assert {who for who, _, _ in service.reports} == {"part1"}


async def test_a_report_that_the_service_refuses_is_dropped(
    service: FakeService, bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    service.assign(ASSIGNMENT)
    bench.start()
    await bench.until(lambda: bench.kernels.running)
    take = service.report
    monkeypatch.setattr(service, "report", lambda *_: service.site_approvals("unknown"))
    bench.supervisor.started(KERNEL)
    await bench.until(lambda: "did not take a report" in caplog.text)
    monkeypatch.setattr(service, "report", take)
    bench.supervisor.died(KERNEL, "out of memory")
    assert await bench.wait_for(lambda s: s.details("part1", ClientState.FAILED)) == ["out of memory"]
    assert service.details("part1", ClientState.STARTING) == []


async def test_reports_outlast_an_absence_of_the_service(service: FakeService, bench: Bench) -> None:
    service.assign(ASSIGNMENT)
    bench.start()
    await bench.until(lambda: bench.kernels.running)
    service.answer_all_with(502)
    bench.supervisor.died(KERNEL, "first")
    bench.supervisor.died(KERNEL, "second")
    await bench.wait_for(lambda s: s.requests >= 4)
    service.answer_all_with(None)
    assert await bench.wait_for(lambda s: s.details("part1", ClientState.FAILED)) == ["second"]


async def test_a_service_that_does_not_hear_the_farewell_is_not_waited_for(
    service: FakeService, bench: Bench, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    service.assign(ASSIGNMENT)
    bench.start()
    await bench.until(lambda: bench.kernels.running)
    monkeypatch.setattr("federator.supervisor.OFFLINE_REPORT_TIMEOUT", 0.1)
    monkeypatch.setattr(service, "report", lambda *_: service.wait_for_end(10))
    await bench.stop()
    assert "did not answer in time" in caplog.text


async def test_a_proxy_that_holds_no_questions_is_not_flooded(
    service: FakeService, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "wait_for_news", lambda version, seconds: service.current_assignments())
    bench.start()
    await bench.wait_for(lambda s: s.requests >= 2)
    async with asyncio.timeout(5):
        before = service.requests
        await asyncio.sleep(0.5)
    assert service.requests - before <= 1


async def test_a_running_kernel_hears_of_a_newer_version_once(service: FakeService, bench: Bench) -> None:
    service.assign(ASSIGNMENT)
    bench.start()
    await bench.until(lambda: bench.kernels.running)
    bench.supervisor.started(KERNEL)
    newer = replace(ASSIGNMENT, fab_hash="cd" * 32)
    service.assign(newer)
    await bench.until(lambda: bench.kernels.told)
    await another_answer(service, bench)
    assert bench.kernels.told == [newer]


async def test_a_kernel_that_did_not_answer_is_told_again(service: FakeService, bench: Bench) -> None:
    service.assign(ASSIGNMENT)
    bench.start()
    await bench.until(lambda: bench.kernels.running)
    bench.supervisor.started(KERNEL)
    bench.kernels.deaf = True
    newer = replace(ASSIGNMENT, fab_hash="cd" * 32)
    service.assign(newer)
    await bench.until(lambda: bench.kernels.told)
    bench.kernels.deaf = False
    await another_answer(service, bench)
    assert bench.kernels.told == [newer, newer]


async def another_answer(service: FakeService, bench: Bench) -> None:
    """The service tells of one more assignment, and the supervisor has acted on that."""
    service.assign(replace(ASSIGNMENT, participation_id="part2", project_id="proj2", kernel_id="other"))
    await bench.until(lambda: "other" in bench.kernels.running)
