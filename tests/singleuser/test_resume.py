"""An aggregator that is killed at any time is begun anew by itself, and the model is as if nothing had happened.

`RESUME_SEED` repeats what the tests drew; `RESUME_KILLS` is how often each run is disturbed.
"""

from __future__ import annotations

import os
import random
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from statistics import median

import numpy as np
import pytest
from federator.contract import ClientState, RunStatus

from hub_service.domain.runs import EventKind, RunEvent
from hub_service.run_history import standing
from tests.fakes.driven_fleet import DrivenFleet, driven_fleet, kill
from tests.fakes.federation import ANNA
from tests.fakes.flower_apps import SERVER, averaging_app
from tests.reliability import measuring

SEED = int(os.environ.get("RESUME_SEED", 0)) or random.SystemRandom().randrange(10**6)
KILLS = int(os.environ.get("RESUME_KILLS", "2"))
ROUNDS = max(4, KILLS + 2)
RECOVERY_S = 10.0
TRAIN = "import time\ntime.sleep(0.1)"

# Its own start, its own memory beside Flower's, in classes of its own, a learning rate that decays, and what no pickle
# can hold.
OWN_STRATEGY = SERVER.replace(
    "app = ServerApp()",
    """
class Mood(Enum):
    CALM = "calm"
    WILD = "wild"


@dataclass
class Seen:
    means: list


class Remembering(FedAvg):
    def __init__(self, **named):
        super().__init__(**named, train_metrics_aggr_fn=lambda replies, key: None)
        self.seen = Seen([])
        self.mood = Mood.CALM
        self.lock = __import__("threading").Lock()

    def start(self, grid, arrays, num_rounds):
        config = ConfigRecord({"rate": 1.0})
        return super().start(grid, arrays, num_rounds, train_config=config, evaluate_fn=self.central)

    def central(self, server_round, arrays):
        return MetricRecord({"mean": float(arrays["weight"].numpy().mean())})

    def configure_train(self, server_round, arrays, config, grid):
        config["rate"] *= 0.5
        return super().configure_train(server_round, arrays, config, grid)

    def aggregate_train(self, server_round, replies):
        arrays, metrics = super().aggregate_train(server_round, replies)
        assert isinstance(self.seen, Seen)
        self.seen.means.append(float(arrays["weight"].numpy().mean()))
        self.mood = Mood.WILD if self.mood is Mood.CALM else Mood.CALM
        noise = np.random.normal(size=(2, 3)).astype(np.float32) + np.float32(sum(self.seen.means))
        noise += np.float32(self.mood is Mood.CALM)
        return ArrayRecord({"weight": Array(arrays["weight"].numpy() + noise)}), metrics


app = ServerApp()
""",
).replace(
    "import numpy as np\nfrom flwr.app import Array, ArrayRecord",
    "from dataclasses import dataclass\nfrom enum import Enum\n"
    "import numpy as np\nfrom flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord",
)
APPS = {
    "FedAvg": averaging_app(TRAIN),
    "FedAdam": averaging_app(TRAIN, SERVER.replace("FedAvg", "FedAdam")),
    "own strategy": averaging_app(
        TRAIN,
        OWN_STRATEGY.replace("strategy = FedAvg(", "np.random.seed(7)\n    strategy = Remembering("),
    ),
}


@pytest.fixture(scope="module")
async def at(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[DrivenFleet]:
    async with driven_fleet(tmp_path_factory.mktemp("driven")) as it:
        yield it


@pytest.fixture(autouse=True)
def told_what_was_drawn(capsys: pytest.CaptureFixture[str]) -> Iterator[None]:
    yield
    with capsys.disabled():
        print(f"\nRESUME_SEED={SEED} RESUME_KILLS={KILLS}")  # noqa: T201 - a failure is repeated with it


def of_round(events: list[RunEvent], number: int) -> list[RunEvent]:
    return [one for one in standing(events) if one.round == number and one.kind in (EventKind.SENT, EventKind.REPLY)]


async def resumed(at: DrivenFleet, run_id: str, killed: float) -> tuple[RunEvent, float]:
    """The event that says so, and how long after the kill the first message was sent."""

    def since(kind: EventKind) -> list[RunEvent]:
        return [one for one in at.events(run_id) if one.kind is kind and one.at > killed]

    await at.until(lambda: bool(since(EventKind.RESUMED)))
    back = since(EventKind.RESUMED)[0]
    await at.until(lambda: any(one.at > back.at for one in since(EventKind.SENT)))
    sent = next(one for one in since(EventKind.SENT) if one.at > back.at)
    return back, sent.at - killed


def assert_same_model(at: DrivenFleet, one: str, other: str) -> None:
    expected, actual = at.model(one), at.model(other)
    assert expected.keys() == actual.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(array, actual[name])


@pytest.mark.random_kills
@pytest.mark.parametrize("name", APPS)
async def test_killed_at_random_points_the_model_is_the_same_bit_for_bit(
    at: DrivenFleet, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    draw = random.Random(f"{SEED} {name}")  # noqa: S311 - no secret
    await at.join(APPS[name])
    undisturbed = at.start_run(ROUNDS)
    assert (await at.ended(undisturbed)).status is RunStatus.FINISHED
    assert at.run(undisturbed).resumed == 0
    run_id = at.start_run(ROUNDS)
    recoveries = []
    with ExitStack() as kills:  # whether each of them held shows at the end of the run
        for number in sorted(draw.sample(range(1, ROUNDS), KILLS)):  # in the last one, the run might be over before
            when = draw.randrange(1, len(of_round(at.events(undisturbed), number)))
            serverapp, superlink = draw.choice([(True, False), (False, True), (True, True)])
            await at.until(lambda: bool(at.events(run_id)))
            aim = at.processes(serverapp=serverapp, superlink=superlink)  # to find them takes long
            assert aim
            await at.until(lambda number=number, when=when: len(of_round(at.events(run_id), number)) >= when)
            measured = kills.enter_context(measuring(f"aggregator alone killed, {name}"))
            killed = kill(aim)
            back, seconds = await resumed(at, run_id, killed)
            measured["again_s"] = seconds
            assert back.round in (number - 1, number)
            recoveries.append(seconds)
        run = await at.ended(run_id)
        assert (run.status, run.round, run.resumed) == (RunStatus.FINISHED, ROUNDS, KILLS)
        assert_same_model(at, undisturbed, run_id)
        rounds = [one.evaluate for one in at.federation.coordinator.run(ANNA, run_id).rounds]
        assert rounds == [one.evaluate for one in at.federation.coordinator.run(ANNA, undisturbed).rounds]
    with capsys.disabled():
        print(f"\n{name}: {KILLS} kills, median {median(recoveries):.2f} s, worst {max(recoveries):.2f} s")  # noqa: T201
    assert max(recoveries) < RECOVERY_S


async def test_a_run_survives_the_whole_machine_in_each_phase(at: DrivenFleet) -> None:
    """Service, SuperLink and ServerApp are killed in the rounds, while a site trains alone, and in the comparison."""
    await at.join(APPS["FedAvg"])
    undisturbed = at.start_run(2, compare=True)
    await at.ended(undisturbed)
    run_id = at.start_run(2, compare=True)
    for phase, kind in (("federated", EventKind.REPLY), ("alone", EventKind.REPLY), ("compare", EventKind.SCORE)):
        await at.until(
            lambda phase=phase, kind=kind: any(one.phase == phase and one.kind is kind for one in at.events(run_id))
        )
        await at.end_service()
        killed = at.kill(serverapp=True, superlink=True)
        await at.start_service()
        back, _ = await resumed(at, run_id, killed)
        before = {"federated": "federated", "alone": "federated", "compare": "alone"}[phase]
        assert back.phase in (phase, before)
    run = await at.ended(run_id)
    assert (run.status, run.resumed) == (RunStatus.FINISHED, 3)
    assert_same_model(at, undisturbed, run_id)

    def table(run_id: str) -> list[tuple[str, str, float]]:
        scores = at.federation.coordinator.run(ANNA, run_id).scores
        return [(one.model, one.on_site, one.metrics["distance"]) for one in scores]

    assert table(run_id) == table(undisturbed)


async def test_a_run_goes_on_while_the_service_is_away(at: DrivenFleet) -> None:
    await at.join(APPS["FedAvg"])
    run_id = at.start_run(4)
    await at.until(lambda: any(one.kind is EventKind.REPLY for one in at.events(run_id)))
    await at.end_service()
    await at.start_service()
    run = await at.ended(run_id)
    assert (run.status, run.round, run.resumed) == (RunStatus.FINISHED, 4, 0)


async def test_a_site_in_the_middle_of_its_training_is_not_waited_for(at: DrivenFleet) -> None:
    """It comes online at the new aggregator at once, its old answer is not wanted, and its client is not to blame."""
    await at.join(averaging_app("import time\ntime.sleep(4)"))
    run_id = at.start_run(1)
    await at.until(lambda: len([one for one in at.events(run_id) if one.kind is EventKind.SENT]) == 3)
    killed = at.kill(serverapp=False, superlink=True)
    _, seconds = await resumed(at, run_id, killed)
    assert seconds < RECOVERY_S
    assert (await at.ended(run_id)).status is RunStatus.FINISHED
    for member in at.members.values():
        assert not [detail for state, detail in member.states if state is ClientState.FAILED]
