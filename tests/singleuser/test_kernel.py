"""The client kernel: a real process with the real node in it, against a service and a gateway over real HTTP."""

from __future__ import annotations

import asyncio
import queue
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from federator import allocator, site_log
from federator.client import FlowerClient
from federator.contract import Assignment, ClientState
from federator.service_client import Access, NotFound, ServiceClient
from federator.tiles import Tiles, spec_name
from jupyter_client import AsyncKernelClient, AsyncKernelManager
from tornado.web import HTTPError

from tests.fakes.node import HangingNode, StandInNode, node_without_flower
from tests.fakes.notebook_server import use_home
from tests.fakes.service import TOKEN, FakeService

KERNEL = "0f0c4a52-6b5d-4c55-9f43-111111111111"
ASSIGNMENT = Assignment("part1", "proj1", "Histo <pathology>", "north", "slides", KERNEL, "ab" * 32)


@pytest.fixture
def service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeService]:
    """A service with one assignment, in whose environment this process stands."""
    use_home(monkeypatch, tmp_path)
    with FakeService().running() as fake:
        for name, value in fake.environment().items():
            monkeypatch.setenv(name, value)
        fake.add_project("proj1", "Histo <pathology>")
        fake.assign(ASSIGNMENT)
        Tiles(tmp_path / "jupyter_data_dir" / "kernels").show([ASSIGNMENT])
        yield fake


class Kernel:
    """A running client kernel and a connection to it."""

    def __init__(self, manager: Any, client: AsyncKernelClient) -> None:
        self.manager = manager
        self.client = client
        self.printed = asyncio.Event()  # a cell has printed something

    async def run(self, code: str) -> dict[str, Any]:
        """Execute a cell; returns its texts by MIME type, or {"error": name}."""
        result: dict[str, Any] = {}

        def collect(message: dict[str, Any]) -> None:
            if message["msg_type"] == "execute_result":
                result.update(message["content"]["data"])
            elif message["msg_type"] == "stream":
                self.printed.set()

        reply = await self.client.execute_interactive(code, output_hook=collect, timeout=20)
        if reply["content"]["status"] == "error":
            return {"error": reply["content"]["ename"], "text": reply["content"]["traceback"]}
        return result


@asynccontextmanager
async def client_kernel(kernel_id: str = KERNEL) -> AsyncIterator[Kernel]:
    """Start it as a program without a notebook server does (papermill, nbclient)."""
    manager = AsyncKernelManager(kernel_name=spec_name("proj1"))
    await manager.start_kernel(kernel_id=kernel_id)
    client = manager.client()
    client.start_channels()
    try:
        await client.wait_for_ready(timeout=30)
        yield Kernel(manager, client)
    finally:
        client.stop_channels()
        await manager.shutdown_kernel(now=True)


async def reported(service: FakeService, state: ClientState, after: int = 0) -> int:
    return await asyncio.to_thread(service.wait_for_report, "part1", state, after)


async def test_the_node_registers_a_key_and_waits_for_a_run(service: FakeService) -> None:
    async with client_kernel() as kernel:
        await reported(service, ClientState.READY)
        key = load_pem_public_key(service.public_keys["part1"][0].encode())
        assert isinstance(key, ec.EllipticCurvePublicKey)
        assert key.curve.name == "secp256r1"
        shown = await kernel.run("client")
    assert "ready" in shown["text/plain"]
    assert "Histo <pathology>" in shown["text/plain"]
    assert "Histo &lt;pathology&gt;" in shown["text/html"]


async def test_its_log_is_kept_for_its_person(service: FakeService) -> None:
    async with client_kernel() as kernel:
        await reported(service, ClientState.READY)
        await kernel.run(
            "import threading\nwork = threading.Thread(target=print, args=('epoch 1',))\nwork.start()\nwork.join()"
        )
        await kernel.run("print('a cell')")
    text = site_log.log_path("proj1").read_text()
    assert text.endswith(" epoch 1\n")
    assert "a cell" not in text


async def test_the_banner_says_whose_client_it_is(service: FakeService) -> None:
    async with client_kernel() as kernel:
        info = await kernel.client.kernel_info(reply=True, timeout=20)
    assert "Histo <pathology>" in info["content"]["banner"]


async def test_the_last_run_is_shown_with_this_sites_metrics(service: FakeService) -> None:
    run = service.start_run("proj1", 2, False)
    service.finish_round(run.id)
    async with client_kernel() as kernel:
        shown = await kernel.run("client")
    assert "round 1 of 2" in shown["text/plain"]
    assert "accuracy 0.5100" in shown["text/plain"]


async def test_interrupts_stop_a_cell_and_never_the_kernel(service: FakeService) -> None:
    async with client_kernel() as kernel:
        await reported(service, ClientState.READY)
        await kernel.manager.interrupt_kernel()
        cell = asyncio.create_task(kernel.run("import time; print('begun', flush=True); time.sleep(60)"))
        await kernel.printed.wait()
        await kernel.manager.interrupt_kernel()
        assert (await cell)["error"] == "KeyboardInterrupt"
        assert (await kernel.run("1 + 1"))["text/plain"] == "2"


async def test_an_interrupt_leaves_the_kernels_other_processes_alone(service: FakeService) -> None:
    """A training has some. They are in the kernel's process group."""
    async with client_kernel() as kernel:
        await kernel.run("from subprocess import PIPE, Popen; worker = Popen(['cat'], stdin=PIPE, stdout=PIPE)")
        cell = asyncio.create_task(kernel.run("import time; print('begun', flush=True); time.sleep(60)"))
        await kernel.printed.wait()
        await kernel.manager.interrupt_kernel()
        assert (await cell)["error"] == "KeyboardInterrupt"
        assert (await kernel.run("worker.communicate(b'alive')[0]"))["text/plain"] == "b'alive'"


async def test_pause_and_resume(service: FakeService) -> None:
    async with client_kernel() as kernel:
        seen = await reported(service, ClientState.READY)
        await kernel.run("client.pause()")
        seen = await reported(service, ClientState.PAUSED, after=seen)
        assert "paused" in (await kernel.run("client"))["text/plain"]
        await kernel.run("client.resume()")
        await reported(service, ClientState.READY, after=seen)
        assert len(set(service.public_keys["part1"])) == 2


async def test_leave_ends_the_participation(service: FakeService) -> None:
    async with client_kernel() as kernel:
        await kernel.run("client.leave()")
        assert service.assignments == {}


async def test_its_libraries_start_as_many_threads_as_there_are_cores_for_it(
    service: FakeService, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the site or the person has not said how many."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setenv("CPU_LIMIT", "1")
    async with client_kernel() as kernel:
        assert (await kernel.run("import os; os.environ['OMP_NUM_THREADS']"))["text/plain"] == "'1'"
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    async with client_kernel() as kernel:
        assert (await kernel.run("import os; os.environ['OMP_NUM_THREADS']"))["text/plain"] == "'7'"


async def test_it_keeps_the_memory_of_one_model_for_the_next(
    service: FakeService, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the site or the person has not said otherwise."""
    monkeypatch.delenv(allocator.VARIABLE, raising=False)
    async with client_kernel() as kernel:
        said = (await kernel.run(f"import os; os.environ['{allocator.VARIABLE}']"))["text/plain"]
    assert said == repr(allocator.settings({})[allocator.VARIABLE])


async def test_shutdown_takes_less_than_two_seconds(service: FakeService) -> None:
    async with client_kernel() as kernel:
        await reported(service, ClientState.READY)
        started = time.monotonic()
        await kernel.manager.shutdown_kernel()
        assert time.monotonic() - started < 2
        assert not await kernel.manager.is_alive()


async def test_a_participation_that_has_ended_is_told(service: FakeService, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "register_node", lambda participation_id, public_key: service.project("gone"))
    async with client_kernel() as kernel:
        await reported(service, ClientState.FAILED)
        assert "There is no such project" in (await kernel.run("client"))["text/plain"]


async def test_a_kernel_id_that_is_not_assigned_is_refused(service: FakeService) -> None:
    with pytest.raises(HTTPError, match="not asked to run"):
        async with client_kernel(KERNEL.replace("1", "2")):
            pass


async def test_started_by_hand_it_says_what_is_missing(service: FakeService) -> None:
    ended = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-m", "federator.kernel"], capture_output=True, text=True, timeout=60
    )
    assert ended.returncode == 1
    assert "needs an assignment" in ended.stderr
    assert "Traceback" not in ended.stderr


class TestFlowerClient:
    """The object alone, with stand-in nodes."""

    @pytest.fixture
    def make(self, service: FakeService) -> Iterator[Callable[[Any], FlowerClient]]:
        made: list[FlowerClient] = []

        def make(node: Any) -> FlowerClient:
            made.append(FlowerClient(ASSIGNMENT, access, node))
            return made[-1]

        with ServiceClient(Access(service.url, TOKEN)) as access:
            yield make
            for client in made:
                client.close(5)

    def test_interrupt_reaches_the_node(self, service: FakeService, make: Callable[[Any], FlowerClient]) -> None:
        node = StandInNode()
        client = make(node.made)
        client.interrupt()
        client.start()
        assert node.started.wait(10)
        client.interrupt()
        assert node.interrupts == 1

    def test_the_node_prepares_the_newest_app_now_and_when_it_is_started_again(
        self, service: FakeService, make: Callable[[Any], FlowerClient]
    ) -> None:
        node = StandInNode()
        client = make(node.made)
        client.start()
        assert node.started.wait(10)
        client.reassign(replace(ASSIGNMENT, fab_hash="cd" * 32))
        assert node.prepared == ["ab" * 32, "cd" * 32]
        client.pause()
        node.started.clear()
        client.reassign(replace(ASSIGNMENT, fab_hash="ef" * 32))
        client.resume()
        assert node.started.wait(10)
        assert node.prepared == ["ab" * 32, "cd" * 32, "ef" * 32]

    def test_a_stopping_node_reports_nothing_more(
        self, service: FakeService, make: Callable[[Any], FlowerClient]
    ) -> None:
        node = StandInNode()
        client = make(node.made)
        client.start()
        assert node.started.wait(10)
        client.pause()
        service.wait_for_report("part1", ClientState.PAUSED)
        assert client.state is ClientState.PAUSED
        assert service.details("part1", ClientState.OFFLINE) == []

    def test_what_the_gateway_sees_by_itself_is_not_reported(
        self, service: FakeService, make: Callable[[Any], FlowerClient]
    ) -> None:
        node = StandInNode()
        client = make(node.made)
        client.start()
        assert node.started.wait(10)
        say = node.on_state
        assert say is not None
        say(ClientState.READY, "Waiting for a run.")
        service.wait_for_report("part1", ClientState.READY)
        say(ClientState.WORKING, "train, round 1")
        say(ClientState.READY, "Waiting for the next message.")
        assert client.detail == "Waiting for the next message."
        say(ClientState.FAILED, "The app failed.")
        service.wait_for_report("part1", ClientState.FAILED)
        say(ClientState.WORKING, "train, round 2")
        service.wait_for_report("part1", ClientState.WORKING)
        assert [state for _, state, _ in service.reports] == [
            ClientState.READY,
            ClientState.FAILED,
            ClientState.WORKING,
        ]

    def test_stop_waits_no_longer_than_told(self, service: FakeService, make: Callable[[Any], FlowerClient]) -> None:
        node = HangingNode()
        client = make(node.made)
        client.start()
        assert node.started.wait(10)
        client.stop(0.2)
        assert node.told == [0.2]

    def test_stopped_while_it_joins_no_node_starts(
        self, service: FakeService, make: Callable[[Any], FlowerClient]
    ) -> None:
        node = StandInNode()
        service.answer_all_with(503)
        client = make(node.made)
        client.start()
        service.wait_for(lambda s: s.requests >= 2)
        assert client.state is ClientState.STARTING
        assert "does not answer" in client.detail
        client.stop(1)
        service.answer_all_with(None)
        assert not node.started.wait(1)

    def test_reports_wait_for_a_service_that_is_away(
        self, service: FakeService, make: Callable[[Any], FlowerClient]
    ) -> None:
        service.answer_all_with(503)
        client = make(StandInNode().made)
        client.pause()
        service.wait_for(lambda s: s.requests >= 1)
        service.answer_all_with(None)
        service.wait_for_report("part1", ClientState.PAUSED)

    def test_resume_starts_a_new_node_and_only_after_a_pause(
        self, service: FakeService, make: Callable[[Any], FlowerClient], one_more: Any
    ) -> None:
        client = make(one_more)
        client.start()
        service.wait_for(lambda s: s.public_keys)
        client.resume()
        client.pause()
        client.resume()
        service.wait_for(lambda s: len(s.public_keys["part1"]) == 2)
        client.leave()
        assert service.assignments == {}

    @pytest.fixture
    def nodes(self) -> queue.SimpleQueue[StandInNode]:
        """Those that `one_more` has made."""
        return queue.SimpleQueue()

    @pytest.fixture
    def one_more(self, nodes: queue.SimpleQueue[StandInNode]) -> Callable[[Any, Any], StandInNode]:
        def made(private_key: Any, on_state: Any) -> StandInNode:
            node = StandInNode().made(private_key, on_state)
            nodes.put(node)
            return node

        return made

    @staticmethod
    def next_started(nodes: queue.SimpleQueue[StandInNode]) -> StandInNode:
        node = nodes.get(timeout=10)
        assert node.started.wait(10)
        return node

    def test_a_client_whose_right_comes_back_joins_again(
        self,
        service: FakeService,
        make: Callable[[Any], FlowerClient],
        monkeypatch: pytest.MonkeyPatch,
        nodes: queue.SimpleQueue[StandInNode],
        one_more: Any,
    ) -> None:
        """Not before the service wants it."""
        monkeypatch.setattr("federator.client._FIRST_REJOIN", 0.01)
        make(one_more).start()
        node = self.next_started(nodes)
        service.withdraw("part1")
        node.end_refused()
        service.wait_for(lambda s: s.asked.count("api/assignments") >= 2)
        assert len(service.public_keys["part1"]) == 1
        service.assign(ASSIGNMENT)
        self.next_started(nodes)
        assert len(service.public_keys["part1"]) == 2

    def test_two_kernels_take_a_participation_from_each_other_ever_more_seldom(
        self,
        service: FakeService,
        make: Callable[[Any], FlowerClient],
        monkeypatch: pytest.MonkeyPatch,
        nodes: queue.SimpleQueue[StandInNode],
        one_more: Any,
    ) -> None:
        first_s, times = 0.01, 6
        monkeypatch.setattr("federator.client._FIRST_REJOIN", first_s)
        make(one_more).start()
        begun = time.monotonic()
        for _ in range(times):
            self.next_started(nodes).end_refused()
        self.next_started(nodes)
        assert time.monotonic() - begun >= first_s * (2**times - 1) / 2

    @pytest.mark.parametrize("wanted_by", ["its person", "its server"])
    def test_a_refused_client_that_is_wanted_joins_again_at_once(
        self,
        service: FakeService,
        make: Callable[[Any], FlowerClient],
        monkeypatch: pytest.MonkeyPatch,
        nodes: queue.SimpleQueue[StandInNode],
        one_more: Any,
        wanted_by: str,
    ) -> None:
        monkeypatch.setattr("federator.client._FIRST_REJOIN", 3600.0)
        client = make(one_more)
        client.start()
        self.next_started(nodes).end_refused()
        if wanted_by == "its person":
            client.resume()
        else:
            client.reassign(replace(ASSIGNMENT, fab_hash="cd" * 32))
        newest = self.next_started(nodes)
        assert newest.prepared == [client.assignment.fab_hash]

    def test_a_refused_client_that_is_paused_stays_so(
        self,
        service: FakeService,
        make: Callable[[Any], FlowerClient],
        monkeypatch: pytest.MonkeyPatch,
        nodes: queue.SimpleQueue[StandInNode],
        one_more: Any,
    ) -> None:
        monkeypatch.setattr("federator.client._FIRST_REJOIN", 0.2)
        client = make(one_more)
        client.start()
        self.next_started(nodes).end_refused()
        client.pause()
        client.close(5)
        assert nodes.empty()
        assert client.state is ClientState.PAUSED

    def test_a_refused_registration_is_final(
        self, service: FakeService, make: Callable[[Any], FlowerClient], caplog: pytest.LogCaptureFixture
    ) -> None:
        service.withdraw("part1")
        node = StandInNode()
        client = make(node.made)
        client.start()
        service.wait_for(lambda s: s.requests >= 2)  # the registration, and the report of its end
        assert client.state is ClientState.FAILED
        assert "no such participation" in client._repr_html_()
        assert not node.started.is_set()

    def test_without_flower_the_site_is_told(self, service: FakeService, make: Callable[[Any], FlowerClient]) -> None:
        client = make(node_without_flower)
        client.start()
        service.wait_for_report("part1", ClientState.FAILED)
        assert "flwr is not installed" in client.detail

    def test_a_project_that_cannot_be_left_is_said(
        self, service: FakeService, make: Callable[[Any], FlowerClient]
    ) -> None:
        service.projects.clear()
        client = make(StandInNode().made)
        with pytest.raises(NotFound):
            client.leave()
        assert "starting" in repr(client)
