"""One stock app, seed and number of rounds, through stock Flower and through ours: the same model, bit for bit."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from federator.contract import ClientState
from safetensors.numpy import load_file

from hub_service.aggregators.base import ServerAppSpec
from hub_service.aggregators.events import MODEL_FILE
from hub_service.aggregators.superlink import SuperLink
from hub_service.domain.runs import EventKind, RunEvent
from tests.fakes.fleet import PROJECT, Fleet, fleet
from tests.fakes.seeded_app import seeded_app
from tests.fakes.stock_federation import stock_federation

SITES = ("a", "b", "c")
ROUNDS = 3
SEED = 20230119
STOCK_WITHIN_S = 240.0
TURN_WITHIN_S = 60.0


@dataclass(frozen=True, slots=True)
class Seen:
    """One array, to be compared: two are equal where every bit is."""

    dtype: str
    shape: tuple[int, ...]
    sha256: str


def seen(arrays: Mapping[str, np.ndarray]) -> dict[str, Seen]:
    return {
        name: Seen(values.dtype.name, values.shape, hashlib.sha256(values.tobytes()).hexdigest())
        for name, values in arrays.items()
    }


def seen_in(path: Path) -> dict[str, Seen]:
    with np.load(path) as arrays:
        return seen(arrays)


async def stock_result(folder: Path) -> dict[str, Seen]:
    result = folder / "model.npz"
    async with stock_federation(folder, SITES) as endpoint:
        config = {"num-server-rounds": ROUNDS, "seed": SEED, "sorted": True, "result": str(result)}
        await SuperLink(endpoint).start_run(seeded_app(), config)
        try:
            async with asyncio.timeout(STOCK_WITHIN_S):
                while not result.exists():  # noqa: ASYNC110 - Flower tells nobody of a run's end
                    await asyncio.sleep(0.1)
        except TimeoutError:
            pytest.fail("\n".join(log.read_text(errors="replace")[-2000:] for log in folder.glob("*.log")))
    return seen_in(result)


@pytest.fixture(scope="module")
async def ours(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Fleet]:
    async with fleet(tmp_path_factory.mktemp("ours")) as it:
        for site in SITES:
            await it.start_node(site, 0.0, seeded_app()).reaches(ClientState.READY)
        yield it


@dataclass(frozen=True, slots=True)
class Result:
    """The model that the app ended with, and the one that is kept of the run."""

    ended_with: dict[str, Seen]
    kept: dict[str, Seen]


@pytest.fixture(scope="module")
async def in_order(ours: Fleet) -> Result:
    """A run whose app puts the replies in order."""
    await start(ours, "in-order", {"sorted": True})
    return await our_result(ours, "in-order")


async def start(it: Fleet, run_id: str, config: Mapping[str, str | bool]) -> None:
    nodes = await it.register(*it.members.values())
    superlink = SuperLink(await it.backend.start(PROJECT))
    given = {"num-server-rounds": ROUNDS, "seed": SEED, "result": str(it.folder / f"{run_id}.npz"), **config}
    flower_run_id = await superlink.start_run(seeded_app(), given)
    await it.backend.start_serverapp(PROJECT, ServerAppSpec(run_id, flower_run_id, nodes, ROUNDS, False, 30.0))


async def our_result(it: Fleet, run_id: str) -> Result:
    events = await it.end_of_run(run_id)
    assert events[-1].kind is EventKind.FINISHED, events[-1].text
    assert [event.round for event in events if event.kind is EventKind.MODEL] == list(range(1, ROUNDS + 1))
    kept = load_file(it.backend.run_folder(PROJECT, run_id) / MODEL_FILE)
    return Result(seen_in(it.folder / f"{run_id}.npz"), seen(kept))


async def test_the_model_is_that_of_stock_flower_bit_for_bit(in_order: Result, tmp_path: Path) -> None:
    """Sums of floating numbers depend on their order, and Flower's replies have none: the app sorts them by site."""
    assert in_order.ended_with == await stock_result(tmp_path)


async def test_the_model_that_is_kept_is_the_one_that_the_app_ended_with(in_order: Result) -> None:
    """With its dtypes and shapes: a counter has no dimension."""
    assert in_order.ended_with["norm.num_batches_tracked"].shape == ()
    assert in_order.kept == in_order.ended_with


async def test_the_model_does_not_depend_on_the_order_in_which_sites_answer(ours: Fleet) -> None:
    """FedAvg as it is: two runs whose replies come in opposite orders end with the same bits."""
    forward = await result_of_turns(ours, "forward", SITES)
    assert await result_of_turns(ours, "backward", SITES[::-1]) == forward


async def result_of_turns(it: Fleet, run_id: str, order: Sequence[str]) -> dict[str, Seen]:
    """The model of a run in which, in every round, each site answers after the reply of the one before has come."""
    turns = it.folder / f"turns-{run_id}"
    turns.mkdir()
    await start(it, run_id, {"sorted": False, "turns": str(turns)})
    in_turn = [it.members[site].node_id for site in order]
    for number in range(1, ROUNDS + 1):
        for site, node_id in zip(order, in_turn, strict=True):
            (turns / f"{number}-{site}").touch()
            await it.events(lambda event, at=(number, node_id): is_reply(event, *at), run_id, TURN_WITHIN_S)
    result = await our_result(it, run_id)
    replies = [event for event in await it.end_of_run(run_id) if event.kind is EventKind.REPLY]
    assert [event.node_id for event in replies] == in_turn * ROUNDS
    return result.ended_with


def is_reply(event: RunEvent, number: int, node_id: int) -> bool:
    return event.kind is EventKind.REPLY and (event.round, event.node_id) == (number, node_id)
