"""Every strategy of Flower's goes on from its checkpoint as if nothing had happened, wherever it was lost."""

from __future__ import annotations

import importlib
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.serverapp import strategy
from flwr.serverapp.strategy import FedAvg, Result, Strategy

from hub_service.aggregators.checkpoint import Checkpoints, Place, generators, put_generators, seed_generators
from hub_service.aggregators.mailbox import Mailbox
from hub_service.aggregators.strategy_calls import Calls, StrategyCalls
from tests.fakes.in_memory_grid import RUN_ID, InMemoryGrid, LoadedApp, loaded, task_identity
from tests.fakes.strategies_app import SITES, strategies_app

STRATEGIES = sorted(set(strategy.__all__) - {"Result", "Strategy"})
ROUNDS = 3


class ProcessLost(Exception):
    """Stands for SIGKILL."""


class MortalGrid(InMemoryGrid):
    """Dies with message `last`."""

    last = 10**9

    def _deliver(self, message: Message) -> str:
        if len(self.sent) == self.last:
            raise ProcessLost
        return super()._deliver(message)


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LoadedApp]:
    with loaded(strategies_app(), tmp_path_factory.mktemp("app")) as app, task_identity():
        yield app


@pytest.fixture(autouse=True)
def own_numbers() -> Iterator[None]:
    before = generators()
    yield
    put_generators(before)


class Run:
    """One run's ServerApp processes, one after the other, in this process."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        self.folder = folder
        self.results: list[ArrayRecord] = []
        self.kept: list[int] = []

    def process(self, work: Any) -> None:
        checkpoints = Checkpoints(self.folder, Mailbox(self.folder))
        found = checkpoints.read()
        seed_generators(checkpoints.seed())

        def keep(calls: Calls, number: int) -> None:
            self.kept.append(number)
            checkpoints.write(Place(round=number), calls)

        with StrategyCalls(found.calls if found else Calls, keep, lambda _: None, self.results.append).followed():
            work()


@pytest.mark.parametrize("name", STRATEGIES)
def test_each_strategy_goes_on_with_the_round_it_was_in(app: LoadedApp, name: str, tmp_path: Path) -> None:
    config: dict[str, Any] = {"strategy": name, "num-server-rounds": ROUNDS}
    folders = {node: tmp_path / f"site-{node}" for node in range(1, SITES + 1)}

    def grid(last: int = 10**9) -> MortalGrid:
        made = MortalGrid(app.client, folders, config)
        made.last = last
        for node, context in made._contexts.items():
            context.node_config["target"] = float(node)
        return made

    def serve(grid: MortalGrid) -> None:
        app.server(grid, Context(RUN_ID, 1, {}, RecordDict(), config))

    whole = grid()
    undisturbed = Run(tmp_path / "undisturbed")
    undisturbed.process(lambda: serve(whole))
    in_round = len(whole.sent) // ROUNDS
    for lost_with in (in_round, 2 * in_round - 1):
        disturbed = Run(tmp_path / f"lost-{lost_with}")
        (disturbed.folder / "checkpoint").mkdir()
        seed = (undisturbed.folder / "checkpoint" / "seed").read_bytes()
        (disturbed.folder / "checkpoint" / "seed").write_bytes(seed)
        with pytest.raises(ProcessLost):
            disturbed.process(lambda lost_with=lost_with: serve(grid(lost_with)))
        rest = grid()
        disturbed.process(lambda rest=rest: serve(rest))
        assert len(rest.sent) == len(whole.sent) - lost_with // in_round * in_round
        for one in (undisturbed, disturbed):
            assert len(one.results) == 1
        for key, array in undisturbed.results[0].items():
            np.testing.assert_array_equal(array.numpy(), disturbed.results[0][key].numpy())


# --- strategies of an app's own


class Silent(InMemoryGrid):
    """Nobody takes part: the strategy makes its own arrays."""

    def __init__(self) -> None:
        super().__init__(None, {}, {})  # type: ignore[arg-type]


def arrays_of(value: float) -> ArrayRecord:
    return ArrayRecord({"w": Array(np.array([value]))})


def counting(lost_in: int = 0) -> type[Strategy]:
    """A strategy with a start of its own, whose arrays are what it has drawn; lost in the middle of a round."""

    class Counting(FedAvg):
        def __init__(self) -> None:
            super().__init__(train_metrics_aggr_fn=lambda replies, key: MetricRecord())
            self.lock = threading.Lock()
            self.drawn: list[float] = []
            self.central: list[int] = []

        def start(self, grid: Any, rounds: int) -> Result:  # type: ignore[override]
            config = ConfigRecord({"rate": 1.0})
            return super().start(grid, arrays_of(0), rounds, train_config=config, evaluate_fn=self.evaluated)

        def evaluated(self, number: int, arrays: ArrayRecord) -> MetricRecord:
            self.central.append(number)
            return MetricRecord({"value": float(arrays["w"].numpy()[0])})

        def configure_train(
            self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Any
        ) -> list[Message]:
            config["rate"] = float(config["rate"]) / 2
            self.rate = config["rate"]
            return []

        def aggregate_train(self, server_round: int, replies: Any) -> tuple[ArrayRecord, MetricRecord]:
            if server_round == lost_in:
                raise ProcessLost
            self.drawn.append(float(np.random.random()))
            return arrays_of(sum(self.drawn) + self.rate), MetricRecord({"rate": self.rate})

        def configure_evaluate(self, *_: Any) -> list[Message]:
            return []

    return Counting


def test_an_apps_own_strategy_with_what_cannot_be_kept(tmp_path: Path) -> None:
    """Its lock and its lambda are made anew; what it has drawn, seen and lowered is as it was."""
    results: list[Result] = []

    def work(lost_in: int = 0, calls: int = 1) -> None:
        for _ in range(calls):
            results.append(counting(lost_in)().start(Silent(), 3))

    checkpoints = Checkpoints(tmp_path, Mailbox(tmp_path))
    lost: list[str] = []

    def keep(calls: Calls, number: int) -> None:
        lost.extend(calls.leave_out_what_cannot_be_kept())
        checkpoints.write(Place(round=number), calls)

    seed_generators([1])
    with StrategyCalls(Calls, lambda *_: None, lambda _: None, lambda _: None).followed():
        work()
    seed_generators([1])
    with pytest.raises(ProcessLost), StrategyCalls(Calls, keep, lambda _: None, lambda _: None).followed():
        work(lost_in=3)
    found = checkpoints.read()
    assert found is not None
    assert found.place.round == 2
    assert set(lost) == {"lock"}
    with StrategyCalls(found.calls, keep, lambda _: None, lambda _: None).followed():
        work()
    undisturbed, disturbed = results
    assert undisturbed.train_metrics_clientapp == disturbed.train_metrics_clientapp
    assert undisturbed.evaluate_metrics_serverapp == disturbed.evaluate_metrics_serverapp
    assert list(undisturbed.evaluate_metrics_serverapp) == [0, 1, 2, 3]
    np.testing.assert_array_equal(undisturbed.arrays["w"].numpy(), disturbed.arrays["w"].numpy())


def test_a_start_that_had_returned_returns_the_same_again(tmp_path: Path) -> None:
    kept: list[Calls] = []
    told: list[ArrayRecord] = []
    with StrategyCalls(Calls, lambda calls, _: kept.append(calls), lambda _: None, told.append).followed():
        first = FedAvg(fraction_train=0.0, fraction_evaluate=0.0)
        first.start(Silent(), arrays_of(1), 1)
        result = first.start(Silent(), arrays_of(2), 1, evaluate_fn=lambda number, _: MetricRecord({"n": number}))
    after = np.random.random()
    np.random.seed(0)
    with StrategyCalls(lambda: kept[-1], lambda *_: None, lambda _: None, told.append).followed():
        again = FedAvg(fraction_train=0.0, fraction_evaluate=0.0)
        again.start(Silent(), arrays_of(1), 1)
        assert again.start(Silent(), arrays_of(2), 1) is result
    assert np.random.random() == after
    assert not hasattr(Strategy.start, "__wrapped__")


OWN_CLASSES = """
from dataclasses import dataclass
from enum import Enum

from flwr.serverapp.strategy import FedAvg


class Mood(Enum):
    CALM = 1
    WILD = 2


@dataclass
class Seen:
    rounds: list


class Own(FedAvg):
    def __init__(self, lost_in):
        super().__init__()
        self.seen, self.mood = Seen([]), Mood.CALM
        self.lost_in = lambda server_round: server_round == lost_in

    def configure_train(self, server_round, arrays, config, grid):
        if self.lost_in(server_round):
            raise KeyboardInterrupt
        assert isinstance(self.seen, Seen)
        self.seen.rounds.append(server_round)
        self.mood = {Mood.CALM: Mood.WILD, Mood.WILD: Mood.CALM}[self.mood]
        return []

    def configure_evaluate(self, *_):
        return []
"""


def test_what_is_of_the_apps_own_classes_is_so_after_a_loss_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each process loads the app's modules itself, and after the checkpoint is found."""
    (tmp_path / "own_classes.py").write_text(OWN_CLASSES)
    monkeypatch.syspath_prepend(tmp_path)
    run = Run(tmp_path / "run")

    strategies: list[Any] = []

    def work(lost_in: int) -> None:
        monkeypatch.delitem(sys.modules, "own_classes", raising=False)
        strategies.append(importlib.import_module("own_classes").Own(lost_in))
        strategies[-1].start(Silent(), arrays_of(0), 3)

    with pytest.raises(KeyboardInterrupt):
        run.process(lambda: work(lost_in=3))
    run.process(lambda: work(lost_in=0))
    assert strategies[-1].seen.rounds == [1, 2, 3]
    assert strategies[-1].mood.name == "WILD"


def test_an_override_may_return_what_it_likes() -> None:
    with StrategyCalls(Calls, lambda *_: None, lambda _: None, lambda _: None).followed():

        class Odd(FedAvg):
            def start(self) -> str:  # type: ignore[override]
                return "done"

        assert Odd().start() == "done"
