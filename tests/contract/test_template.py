"""The template of local aggregators' processes: what it forks, what outlives it, and how one does without it."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import cast

import psutil
import pytest

from hub_service.aggregators import local
from hub_service.aggregators.base import ServerAppSpec
from hub_service.aggregators.local import LocalAggregators
from hub_service.aggregators.processes import LOST, SERVERAPP_MODULE, SUPERLINK_MODULE
from hub_service.aggregators.superlink import SuperLink
from hub_service.aggregators.template import Forked, Order, Template, _Running
from tests.fakes.aggregator_places import processes_below
from tests.fakes.fleet import local_aggregators
from tests.fakes.flower_apps import averaging_app

PROJECT = "p1"
PATIENCE_S = 30.0

# A template whose forks do what a test orders, and which needs none of the imports.
SMALL = """
import os, sys, time, types
import numpy.random
for name in ("serverapp", "superlink_process"):
    sys.modules[f"hub_service.aggregators.{name}"] = types.SimpleNamespace(main=None, preload=lambda: None)
from hub_service.aggregators import template_process

def draw():
    print(numpy.random.random())

def tell():
    print(sorted(os.environ), os.getcwd(), sys.argv, os.getsid(0) == os.getpgid(0) == os.getpid())
    print("input:", sys.stdin.read())

template_process._MAINS = {"draw": draw, "tell": tell, "sleep": lambda: time.sleep(600), "fail": lambda: 3}
template_process._LAZY = ()
"""
SERVES = SMALL + "sys.exit(template_process.main())"
HAS_A_THREAD = (
    SMALL
    + "import threading\nthreading.Thread(target=time.sleep, args=(600,), daemon=True).start()\n"
    + ("sys.exit(template_process.main())")
)
# The real one, whose forks write down their environment before they become what they are.
TELLS = """
import os, sys
from pathlib import Path
from typing import cast
from hub_service.aggregators import template_process

def telling(module, main):
    def tell():
        Path(module).write_text(str(dict(os.environ)))
        return main()
    return tell

template_process._MAINS = {module: telling(module, main) for module, main in template_process._MAINS.items()}
sys.exit(template_process.main())
"""
BREAKS = "raise OSError('libtorch.so: cannot open shared object file')"
NEVER_READY = "import time; time.sleep(600)"


def command(text: str) -> tuple[str, ...]:
    return (sys.executable, "-c", text)


@asynccontextmanager
async def template(
    folder: Path, text: str = SERVES, idle_s: float = 600.0, ready_s: float = PATIENCE_S
) -> AsyncIterator[Template]:
    environment = {"PATH": os.environ["PATH"], "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    made = Template(command(text), environment=environment, folder=folder / "template", idle_s=idle_s, ready_s=ready_s)
    try:
        yield made
    finally:
        await made.close()


def order(folder: Path, module: str, *arguments: str) -> Order:
    return Order(module, arguments, str(folder), {"FLWR_HOME": "there"}, str(folder / f"{module}.log"))


async def forked(made: Template, what: Order) -> Forked:
    process = await made.fork(what)
    assert process is not None
    return process


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not holds():  # noqa: ASYNC110 - another process
            await asyncio.sleep(0.01)


def templates(folder: Path) -> Sequence[psutil.Process]:
    return processes_below(folder / "template")


async def test_a_fork_is_what_the_order_says(tmp_path: Path) -> None:
    async with template(tmp_path) as made:
        process = await forked(made, order(tmp_path, "tell", "--port", "1"))
        assert await process.wait() == 0
        said = (tmp_path / "tell.log").read_text()
        assert said == f"['FLWR_HOME'] {tmp_path} ['tell', '--port', '1'] True\ninput: \n"
        assert await (await forked(made, order(tmp_path, "fail"))).wait() == 3
        sleeper = await forked(made, order(tmp_path, "sleep"))
        os.kill(sleeper.pid, 9)
        assert await sleeper.wait() == -9


async def test_forks_draw_random_numbers_of_their_own(tmp_path: Path) -> None:
    async with template(tmp_path) as made:
        for process in [await forked(made, order(tmp_path, "draw")) for _ in range(3)]:
            await process.wait()
        assert len(set((tmp_path / "draw.log").read_text().split())) == 3


class AnswersAtOnce:
    """A template process whose fork has ended by the time that somebody reads of it."""

    def __init__(self) -> None:
        self.stdin = self
        self.stdout = asyncio.StreamReader()

    def write(self, ordered: bytes) -> None:
        number = json.loads(ordered)["order"]
        for said in ({"order": number, "pid": 77}, {"pid": 77, "status": 3}):
            self.stdout.feed_data(json.dumps(said).encode() + b"\n")

    def close(self) -> None:
        self.stdout.feed_eof()

    async def wait(self) -> int:
        return 0


async def test_a_fork_that_ends_at_once_is_known_by_its_status(tmp_path: Path) -> None:
    running = _Running(cast("asyncio.subprocess.Process", AnswersAtOnce()), lambda: None)
    process = await running.fork(order(tmp_path, "fail"))
    assert process is not None
    assert await process.wait() == 3
    await running.end()


async def test_it_ends_when_nobody_needs_it_and_comes_back(tmp_path: Path) -> None:
    async with template(tmp_path, idle_s=0.2) as made:
        sleeper = await forked(made, order(tmp_path, "sleep"))
        await asyncio.sleep(0.5)
        assert len(templates(tmp_path)) == 1
        os.kill(sleeper.pid, 9)
        await until(lambda: not templates(tmp_path))
        made.warm_up()
        await until(lambda: len(templates(tmp_path)) == 1)
        await until(lambda: not templates(tmp_path))
        assert await (await forked(made, order(tmp_path, "fail"))).wait() == 3


async def test_a_fork_that_nobody_waits_for_any_more_is_killed(tmp_path: Path) -> None:
    async with template(tmp_path) as made:
        await forked(made, order(tmp_path, "fail"))
        asking = asyncio.create_task(made.fork(order(tmp_path, "sleep")))
        while not made._starting.result()._ordered:  # type: ignore[union-attr]  # noqa: ASYNC110 - it has asked
            await asyncio.sleep(0)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        await until(lambda: processes_below(tmp_path) == templates(tmp_path) and not made._starting.result().busy)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("text", "reason"),
    [(HAS_A_THREAD, "2 threads after the imports"), (BREAKS, "libtorch.so"), (NEVER_READY, "no reason given")],
    ids=["thread", "breaks", "never ready"],
)
async def test_one_that_cannot_be_had_is_named_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, text: str, reason: str
) -> None:
    async with template(tmp_path, text, ready_s=2.0 if text is NEVER_READY else PATIENCE_S) as made:
        assert await made.fork(order(tmp_path, "draw")) is None
        assert await made.fork(order(tmp_path, "draw")) is None
        (line,) = caplog.messages
        assert reason in line
        assert not templates(tmp_path)


# --- the local backend


@pytest.fixture
async def backend(tmp_path: Path) -> AsyncIterator[LocalAggregators]:
    backend = local_aggregators(tmp_path)
    yield backend
    await backend.stop(PROJECT)
    await backend.close()


async def absent_run(backend: LocalAggregators, run_id: str) -> None:
    """A run whose one site does not come."""
    superlink = SuperLink(await backend.start(PROJECT, run_id))
    flower_run_id = await superlink.start_run(averaging_app(), {})
    await backend.start_serverapp(PROJECT, ServerAppSpec(run_id, flower_run_id, (1,), 1, False, 600.0))


async def test_forks_know_no_secret_and_outlive_the_service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUPYTERHUB_API_TOKEN", "hush")
    backend = LocalAggregators(tmp_path, template_command=command(TELLS))
    await absent_run(backend, "r1")
    for module in (SUPERLINK_MODULE, SERVERAPP_MODULE):
        told = tmp_path / "projects" / PROJECT / module
        await until(lambda told=told: told.exists() and told.read_text().endswith("}"))
        assert "FLWR_HOME" in told.read_text()
        assert "hush" not in told.read_text()
    processes = processes_below(tmp_path / "projects")
    (parent,) = templates(tmp_path)
    assert [process.ppid() for process in processes] == [parent.pid, parent.pid]
    # Not a fork's: what the kernel shows of it is what its template was started with.
    assert b"hush" not in Path(f"/proc/{parent.pid}/environ").read_bytes()
    await backend.close()
    assert not templates(tmp_path)

    later = local_aggregators(tmp_path)
    assert await later.running() == [PROJECT]
    assert await later.serverapp_exit(PROJECT, "r1") is None
    await later.stop(PROJECT)
    assert processes_below(tmp_path) == []
    await later.close()


async def test_aggregators_go_on_when_the_template_dies_and_new_ones_start(
    tmp_path: Path, backend: LocalAggregators
) -> None:
    await absent_run(backend, "r1")
    (parent,) = templates(tmp_path)
    parent.kill()
    await until(lambda: not templates(tmp_path))
    assert await backend.running() == [PROJECT]
    assert await backend.serverapp_exit(PROJECT, "r1") is None
    for process in processes_below(tmp_path / "projects"):
        process.kill()
    await until(lambda: not processes_below(tmp_path / "projects"))
    assert await backend.serverapp_exit(PROJECT, "r1") == LOST
    await absent_run(backend, "r2")
    assert len(processes_below(tmp_path / "projects")) == 2
    assert len(templates(tmp_path)) == 1


async def test_without_a_template_aggregators_start_all_the_same(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    backend = LocalAggregators(tmp_path, template_command=("/no/such/python",))
    await absent_run(backend, "r1")
    assert "aggregators start without a template, and slower: No such file or directory: /no/such/python" in caplog.text
    assert len(processes_below(tmp_path / "projects")) == 2
    await backend.stop(PROJECT)
    assert processes_below(tmp_path) == []
    await backend.close()


async def test_a_start_that_is_given_up_leaves_nothing(tmp_path: Path) -> None:
    backend = LocalAggregators(
        tmp_path, template_command=None, superlink_command=command(NEVER_READY), serverapp_command=command(NEVER_READY)
    )
    starting = asyncio.create_task(backend.start(PROJECT, "r1"))
    await until(lambda: len(processes_below(tmp_path)) == 2)
    assert backend.endpoint(PROJECT) is None
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert processes_below(tmp_path) == []


async def test_no_more_start_at_once_than_the_machine_can_bear(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "STARTS_AT_ONCE", 1)
    backend = LocalAggregators(tmp_path, template_command=None, superlink_command=command(NEVER_READY))
    first = asyncio.create_task(backend.start("p1"))
    second = asyncio.create_task(backend.start("p2"))
    await until(lambda: len(processes_below(tmp_path)) == 1)
    assert processes_below(tmp_path / "projects" / "p2") == []
    first.cancel()
    await until(lambda: len(processes_below(tmp_path / "projects" / "p2")) == 1)
    second.cancel()
    for ended in await asyncio.gather(first, second, return_exceptions=True):
        assert isinstance(ended, asyncio.CancelledError)
    assert processes_below(tmp_path) == []
