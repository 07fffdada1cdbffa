"""Every strategy that Flower ships runs, with its own names of arrays and its own ways to use the replies."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator

import numpy as np
import pytest
from federator.contract import ClientState
from flwr.serverapp import strategy
from safetensors.numpy import load_file

from hub_service.aggregators.base import ServerAppSpec
from hub_service.aggregators.events import MODEL_FILE
from hub_service.aggregators.superlink import SuperLink
from hub_service.domain.runs import EventKind, RunEvent
from tests.fakes.fleet import PROJECT, Fleet, fleet
from tests.fakes.strategies_app import SHAPES, SITES, TREES, strategies_app

ROUNDS = 2
# All that Flower has: one that is new to it fails until `strategies_app` has options for it.
STRATEGIES = sorted(set(strategy.__all__) - {"Result", "Strategy"})
ONE_SITE_A_ROUND = frozenset({"FedXgbCyclic"})


@pytest.fixture(scope="module")
async def running(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Fleet]:
    async with fleet(tmp_path_factory.mktemp("strategies")) as it:
        for number in range(SITES):
            await it.start_node(f"site-{number}", 1.0 + number, strategies_app()).reaches(ClientState.READY)
        yield it


async def run(it: Fleet, name: str) -> list[RunEvent]:
    nodes = await it.register(*it.members.values())
    superlink = SuperLink(await it.backend.start(PROJECT))
    flower_run_id = await superlink.start_run(strategies_app(), {"num-server-rounds": ROUNDS, "strategy": name})
    await it.backend.start_serverapp(PROJECT, ServerAppSpec(name, flower_run_id, nodes, ROUNDS, False, 30.0))
    return await it.end_of_run(name)


@pytest.mark.parametrize("name", STRATEGIES)
async def test_the_strategy_runs_to_its_end(running: Fleet, name: str) -> None:
    events = await run(running, name)
    assert events[-1].kind is EventKind.FINISHED, events[-1].text
    replies = [event for event in events if event.kind is EventKind.REPLY]
    assert [event.text for event in replies if event.text] == []
    answering = 1 if name in ONE_SITE_A_ROUND else SITES
    seen = [(event.round, event.message_type) for event in replies]
    assert seen == [(number, kind) for number in (1, 2) for kind in ("train", "evaluate") for _ in range(answering)]
    assert [event.round for event in events if event.kind is EventKind.MODEL] == [1, 2]
    model = load_file(running.backend.run_folder(PROJECT, name) / MODEL_FILE)
    if name.startswith("FedXgb"):
        assert_trees(model, expected={"FedXgbBagging": SITES * ROUNDS, "FedXgbCyclic": 1}[name])
    else:
        assert {key: values.shape for key, values in model.items()} == SHAPES
        assert all(np.isfinite(values).all() and values.any() for values in model.values())


def assert_trees(model: dict[str, np.ndarray], expected: int) -> None:
    """Bagging puts all trees into one model; in a cycle each site hands on its own, and ours grow but one."""
    (values,) = model.values()
    assert (list(model), values.dtype) == ([TREES], np.uint8)
    trees = json.loads(values.tobytes())["learner"]["gradient_booster"]["model"]["trees"]
    assert [tree["id"] for tree in trees] == list(range(expected))
