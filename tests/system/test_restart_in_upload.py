"""What stands between a node and its aggregator goes away in the middle of a large transfer, and comes back.

The round ends with each site's reply, counted once, and the model is what the sites have sent.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from federator.contract import ClientState
from federator.ports import free_port
from safetensors.numpy import load_file

from examples.demo.stack import PROXY_COMMAND
from hub_service.aggregators.events import MODEL_FILE
from hub_service.domain.runs import EventKind
from hub_service.gateway.gateway import Gateway
from tests.fakes.fleet import PROJECT, Fleet, Member, fleet
from tests.fakes.flower_apps import SERVER, averaging_app
from tests.fakes.holding_front import HOST, HoldingFront, Way

SIZE = 13_000_000  # float32 values
MODEL_BYTES = 4 * SIZE
ROUNDS = 2
TARGETS = {"a": 1, "b": 2}
WITHIN_S = 60.0
NO_ANSWER = "The Hub does not answer; trying again."

# No two transfers have the same bytes: what was sent before spares none of them.
APP = averaging_app(
    "number, run = message.content['config']['server-round'], message.metadata.run_id\n"
    "noise = np.random.default_rng([int(target), number, run]).random(weight.shape, dtype=np.float32)\n"
    "weight = weight_of(message) * np.float32(0.5) + noise",
    SERVER.replace("np.zeros((2, 3), dtype=np.float32)", f"np.random.default_rng(0).random({SIZE}, dtype=np.float32)")
    .replace("FedAvg(", "FedAvg(fraction_evaluate=0.0, ")
    .replace("min_train_nodes=1", "min_train_nodes=2"),
)


def expected_model(run: int) -> np.ndarray:
    """Adding two numbers has one outcome, whatever their order: this is exact."""
    weight = np.random.default_rng(0).random(SIZE, dtype=np.float32)
    for number in range(1, ROUNDS + 1):
        noises = [np.random.default_rng([t, number, run]).random(SIZE, dtype=np.float32) for t in TARGETS.values()]
        a, b = [(weight * np.float32(0.5) + noise) * np.float32(0.5) for noise in noises]
        weight = a + b
    return weight


@dataclass(frozen=True, slots=True)
class Behind:
    """A fleet of two, whose member a speaks through the front."""

    fleet: Fleet
    front: HoldingFront

    @property
    def member(self) -> Member:
        return self.fleet.members["a"]


@contextlib.asynccontextmanager
async def behind(it: Fleet, target: int) -> AsyncIterator[Behind]:
    """Start the members; the front passes on to the port `target`."""
    front = HoldingFront(target)
    await front.come_up()
    try:
        for name, number in TARGETS.items():
            member = it.admit(name, float(number))
            member.approve(APP)
            member.start(front.address if name == "a" else it.address, it.folder)
            await member.reaches(ClientState.READY)
        yield Behind(it, front)
    finally:
        await asyncio.gather(*(member.stop() for member in it.members.values()))
        await front.go_down()


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[Behind]:
    async with fleet(tmp_path) as it, behind(it, it.port) as them:
        yield them
        await it.gateway.close()  # another than the first one, where that was restarted


async def front_is_killed(them: Behind) -> None:
    await them.front.go_down()
    await them.member.says(NO_ANSWER)
    await them.front.come_up()


async def gateway_restarts(them: Behind) -> None:
    """As the service that is started again: the new one remembers nothing."""
    it = them.fleet
    await it.go_away()
    await it.gateway.close()
    them.front.release()
    await them.member.says(NO_ANSWER)
    it.gateway = Gateway(
        grants=it.grants.get,
        backend=it.backend,
        seen=lambda participation, working: it.seen.append((participation, working)),
        cut_off=it.cut_off.append,
        clock=lambda: datetime.now(UTC),
    )
    it.come_back()


@pytest.mark.parametrize("restart", [front_is_killed, gateway_restarts])
@pytest.mark.parametrize("way", [Way.UP, Way.DOWN], ids=["upload", "download"])
async def test_a_transfer_that_is_cut_is_made_again(
    running: Behind, way: Way, restart: Callable[[Behind], Awaitable[None]], request: pytest.FixtureRequest
) -> None:
    hold = running.front.hold(way, MODEL_BYTES // 2)
    await run_with(running, hold.held, restart, request.node.callspec.id)


async def test_a_reply_whose_receipt_is_lost_counts_once(running: Behind) -> None:
    """The aggregator has it, the node does not know, and sends it again, into the next round."""
    hold = running.front.hold(Way.UP, MODEL_BYTES, stopped=Way.DOWN)
    await run_with(running, hold.held, front_is_killed, "receipt")


async def run_with(
    them: Behind, held: asyncio.Event, restart: Callable[[Behind], Awaitable[None]], run_id: str
) -> None:
    """A run in whose first transfer the restart happens, and what must have come of it."""
    it = them.fleet
    members = list(it.members.values())
    flower_run_id = await it.start_run(APP, members, rounds=ROUNDS, run_id=run_id)
    them.member.states.clear()
    async with asyncio.timeout(WITHIN_S):
        await held.wait()
    await restart(them)
    events = await it.end_of_run(run_id)
    assert events[-1].kind is EventKind.FINISHED, events[-1].text
    replies = [event for event in events if event.kind is EventKind.REPLY]
    assert [event.text for event in replies if event.text] == []
    expected = [(number, member.node_id) for number in range(1, ROUNDS + 1) for member in members]
    assert sorted((event.round, event.node_id) for event in replies) == sorted(expected)
    model = load_file(it.backend.run_folder(PROJECT, run_id) / MODEL_FILE)["weight"]
    np.testing.assert_array_equal(model, expected_model(flower_run_id))
    assert {state for state, _ in them.member.states}.isdisjoint({ClientState.FAILED, ClientState.OFFLINE})


@contextlib.asynccontextmanager
async def hub_proxy(port: int, target: int, log: Path) -> AsyncIterator[asyncio.subprocess.Process]:
    """JupyterHub's own proxy, with one route: to the gateway."""
    with log.open("ab") as output:
        process = await asyncio.create_subprocess_exec(
            *PROXY_COMMAND,
            *("--ip", HOST, "--port", str(port), "--api-ip", HOST, "--api-port", str(free_port())),
            *("--default-target", f"http://{HOST}:{target}"),
            env={**os.environ, "CONFIGPROXY_AUTH_TOKEN": "of this test"},
            stdout=output,
            stderr=output,
        )
    try:
        async with asyncio.timeout(WITHIN_S):
            while not await listens(port):  # noqa: ASYNC110 - it tells nobody when it is up
                await asyncio.sleep(0.05)
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def listens(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection(HOST, port)
    except ConnectionError:
        return False
    writer.close()
    return True


@pytest.mark.needs_node
async def test_the_hubs_proxy_is_killed_in_the_middle_of_an_upload(tmp_path: Path) -> None:
    port, log = free_port(), tmp_path / "proxy.log"
    async with (
        fleet(tmp_path) as it,
        contextlib.AsyncExitStack() as proxies,
    ):
        first = await proxies.enter_async_context(hub_proxy(port, it.port, log))

        async def proxy_is_killed(them: Behind) -> None:
            first.kill()
            await first.wait()
            them.front.release()
            await them.member.says(NO_ANSWER)
            await proxies.enter_async_context(hub_proxy(port, it.port, log))

        async with behind(it, port) as them:
            hold = them.front.hold(Way.UP, MODEL_BYTES // 2)
            await run_with(them, hold.held, proxy_is_killed, "r1")


# Site b trains for as long as the test likes.
WAITING_APP = averaging_app(
    "import pathlib, time\n"
    "until = context.node_config.get('trains-until')\n"
    "while until and not pathlib.Path(until).exists():\n"
    "    time.sleep(0.01)",
    SERVER.replace("min_train_nodes=1", "min_train_nodes=2"),
)
SOON_S = 20.0  # a node that waits for what does not come any more would wait for POLL_S


@pytest.mark.needs_node
async def test_a_service_that_ends_behind_a_receipt_is_found_out_soon(tmp_path: Path) -> None:
    """The Hub's proxy does not end an answer that has begun when what is behind it goes away."""
    port, ended = free_port(), tmp_path / "ended"
    async with fleet(tmp_path) as it, hub_proxy(port, it.port, tmp_path / "proxy.log"):
        a, b = (it.admit(name, target) for name, target in TARGETS.items())
        b.more_config["trains-until"] = str(ended)
        for member, address in ((a, f"{HOST}:{port}"), (b, it.address)):
            member.approve(WAITING_APP)
            member.start(address, it.folder)
            await member.reaches(ClientState.READY)
        a.states.clear()
        await it.start_run(WAITING_APP, [a, b], rounds=1)
        await a.says("Waiting for the next message.")
        await it.go_away()
        it.come_back()
        ended.touch()
        events = await it.events(lambda event: event.kind is EventKind.FINISHED, within=SOON_S)
    assert [event.text for event in events if event.kind is EventKind.REPLY and event.text] == []
