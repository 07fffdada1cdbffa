"""A site that is lost while a run goes on: real nodes, in processes that are killed, and a real SuperLink."""

from __future__ import annotations

import asyncio
import random
import signal
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
from federator.contract import ClientState, OutagePolicy
from safetensors.numpy import load_file

from hub_service.aggregators.events import MODEL_FILE
from hub_service.domain.runs import EventKind, RunEvent
from tests.fakes.fleet import PROJECT, Fleet, fleet
from tests.fakes.flower_apps import SERVER, averaging_app
from tests.fakes.node_process import Site, approve
from tests.reliability import measuring

# Trains for as long as the folder has a file of the site and round; says so by another file.
TRAIN = """
import time
from pathlib import Path
folder, number = Path({folder!r}), message.content["config"]["server-round"]
(folder / f"{{context.node_config['site']}}-trains-{{number}}").touch()
while (folder / f"{{context.node_config['site']}}-holds-{{number}}").exists():
    time.sleep(0.02)
"""
NAMES = ("a", "b", "c")
GRACE_S = 3.0  # more than a client needs to come back after its connection was lost


class Scene:
    """Three sites, of which the last holds its training of round 2.

    Attributes:
        measured: where to put times, for tests of a fault with a name.
    """

    def __init__(self, it: Fleet, server: str, train: str = "") -> None:
        self.it = it
        self.measured: dict[str, Any] = {}
        self.run_id = "r1"
        self.app = averaging_app(train or TRAIN.format(folder=str(it.folder)), server)
        approve(it, self.app)
        self.sites = [Site(it, name, target) for target, name in enumerate(NAMES, start=1)]
        self.lost = self.sites[-1]

    def hold(self, number: int, site: str = "c") -> None:
        (self.it.folder / f"{site}-holds-{number}").touch()

    def release(self, number: int, site: str = "c") -> None:
        (self.it.folder / f"{site}-holds-{number}").unlink()

    async def trains(self, number: int, site: str = "c") -> None:
        """Wait until the site has begun to train."""
        async with asyncio.timeout(60):
            while not (self.it.folder / f"{site}-trains-{number}").exists():  # noqa: ASYNC110 - written by the app
                await asyncio.sleep(0.02)

    async def is_watched(self, site: str = "c") -> None:
        """Wait until the gateway holds the heartbeat of a site that trains: from then on its end is noticed at once."""
        async with asyncio.timeout(60):
            while [working for name, working in self.it.seen if name == site][-2:] != [True, True]:  # noqa: ASYNC110
                await asyncio.sleep(0.02)

    async def start(self, policy: OutagePolicy, rounds: int = 3, grace_s: float = GRACE_S) -> None:
        await asyncio.gather(*(site.start() for site in self.sites))
        await asyncio.gather(*(site.says(ClientState.READY) for site in self.sites))
        await self.start_run(policy, rounds, grace_s)

    async def start_run(self, policy: OutagePolicy, rounds: int, grace_s: float) -> None:
        wanted: dict[str, Any] = {"run_id": self.run_id, "rounds": rounds, "on_outage": policy, "grace_s": grace_s}
        await self.it.start_run(self.app, self.sites, **wanted)  # type: ignore[arg-type]

    async def event(self, wanted: Callable[[RunEvent], bool]) -> RunEvent:
        return next(filter(wanted, await self.it.events(wanted, self.run_id)))

    async def model_at_its_end(self) -> tuple[list[RunEvent], dict[str, bytes]]:
        """Of a run that finishes by itself: its events, and the bits of its model."""
        events = await self.it.end_of_run(self.run_id)
        assert events[-1].kind is EventKind.FINISHED, events[-1]
        arrays = load_file(self.it.backend.run_folder(PROJECT, self.run_id) / MODEL_FILE)
        return events, {name: array.tobytes() for name, array in arrays.items()}


@asynccontextmanager
async def scene(folder: Path, server: str = SERVER, train: str = "", fault: str = "") -> AsyncIterator[Scene]:
    """Args: fault: what the test is a try of, in the words of the table. What becomes of the block is written down."""
    async with fleet(folder) as it:
        it_all = Scene(it, server, train)
        try:
            with measuring(fault) if fault else nullcontext(it_all.measured) as it_all.measured:
                yield it_all
        finally:
            await asyncio.gather(*(site.end() for site in it_all.sites))


def answers(events: list[RunEvent], site: Site, message_type: str = "train") -> dict[int, str]:
    """Round -> the error of the site's answer, "" for a good one. Fails where a round has two."""
    found: dict[int, str] = {}
    for event in events:
        if (event.kind, event.node_id, event.message_type) == (EventKind.REPLY, site.node_id, message_type):
            assert event.round not in found
            found[event.round] = event.text
    return found


def waited_for(site: Site) -> Callable[[RunEvent], bool]:
    return lambda event: event.kind is EventKind.OUTAGE and event.text == str(site.node_id)


def round_ended(number: int) -> Callable[[RunEvent], bool]:
    return lambda event: event.kind is EventKind.MODEL and event.round == number


def replied(site: Site, number: int) -> Callable[[RunEvent], bool]:
    return lambda event: (event.kind, event.node_id, event.round) == (EventKind.REPLY, site.node_id, number)


async def test_wait_goes_on_with_the_site_once_it_is_back(tmp_path: Path, attempt: int) -> None:
    """Its new client is the same node, and is handed the message that the old one had."""
    async with scene(tmp_path, fault="site killed while it trains: wait") as at:
        at.hold(2)
        await at.start(OutagePolicy.WAIT, grace_s=1.0)
        await at.trains(2)
        await at.is_watched()
        await at.lost.kill()
        killed_at = time.time()
        outage = await at.event(waited_for(at.lost))
        assert outage.round == 2
        assert outage.at - outage.seconds == pytest.approx(killed_at, abs=3.0)
        at.measured["told_s"] = outage.at - killed_at
        await at.event(lambda event: waited_for(at.lost)(event) and event.seconds >= 1.0)  # for the owner's notice
        assert not any(map(round_ended(2), await at.it.events(waited_for(at.lost))))
        at.release(2)
        started_at = time.time()
        await at.lost.start()
        events = await at.it.end_of_run()
        assert events[-1].kind is EventKind.FINISHED
        for site in at.sites:
            assert answers(events, site) == {1: "", 2: "", 3: ""}
        assert [event.text for event in events if event.kind is EventKind.OUTAGE][-1] == ""
        at.measured["rejoined_s"] = next(filter(replied(at.lost, 2), events)).at - started_at


@pytest.mark.random_kills
@pytest.mark.parametrize("policy", [OutagePolicy.WAIT, OutagePolicy.CONTINUE])
async def test_a_site_killed_at_a_random_moment_is_counted_once(
    tmp_path: Path, policy: OutagePolicy, attempt: int
) -> None:
    """It is begun anew before the grace time is over: it takes part in every round, once, and the model shows it."""
    seed = random.SystemRandom().randrange(10**6)
    draw = random.Random(seed)  # noqa: S311 - no secret
    fault = f"site killed at a random moment: {policy}"
    async with scene(tmp_path, train="import time\ntime.sleep(0.3)", fault=fault) as at:
        await at.start(policy, rounds=4, grace_s=60.0)
        _, undisturbed = await at.model_at_its_end()
        at.run_id = "r2"
        await at.start_run(policy, rounds=4, grace_s=60.0)
        number, at_s = draw.randint(1, 3), draw.uniform(0, 0.6)
        print(f"seed {seed}: {at_s:.2f} s into round {number}")  # noqa: T201 - shown where it fails
        await at.event(lambda event: event.kind is EventKind.SENT and event.round == number)
        await asyncio.sleep(at_s)
        await at.lost.kill()
        started_at = time.time()
        await at.lost.start()
        events, model = await at.model_at_its_end()
        for site in at.sites:
            assert answers(events, site) == {1: "", 2: "", 3: "", 4: ""}
        assert model == undisturbed
        back = next(event for event in events if event.at > started_at and event.node_id == at.lost.node_id)
        at.measured["rejoined_s"] = back.at - started_at


async def test_continue_leaves_the_site_out_and_lets_it_back_in(tmp_path: Path, attempt: int) -> None:
    async with scene(tmp_path, fault=f"site killed while it trains: go on after {GRACE_S:g} s") as at:
        at.hold(2)
        at.hold(3, "a")  # until the lost site is back
        await at.start(OutagePolicy.CONTINUE, rounds=4)
        await at.trains(2)
        await at.is_watched()
        await at.lost.kill()
        killed_at = time.time()
        ended = await at.event(round_ended(2))
        at.measured["told_s"] = ended.at - killed_at
        assert GRACE_S <= ended.at - killed_at < GRACE_S + 10
        await at.trains(3, "a")
        at.release(2)
        started_at = time.time()
        await at.lost.start()
        await at.lost.says(ClientState.READY)
        at.measured["rejoined_s"] = time.time() - started_at
        at.release(3, "a")
        events = await at.it.end_of_run()
        assert events[-1].kind is EventKind.FINISHED
        assert answers(events, at.sites[0]) == {1: "", 2: "", 3: "", 4: ""}
        mine = answers(events, at.lost)
        assert set(mine) == {1, 2, 4}
        assert mine[2].startswith("left out: nothing was heard of this site for")
        assert mine[1] == mine[4] == ""


async def test_stop_ends_the_run_and_keeps_the_last_model(tmp_path: Path, attempt: int) -> None:
    async with scene(tmp_path, fault=f"site killed while it trains: stop after {GRACE_S:g} s") as at:
        at.hold(2)
        await at.start(OutagePolicy.STOP)
        await at.trains(2)
        await at.is_watched()
        await at.lost.kill()
        killed_at = time.time()
        events = await at.it.end_of_run()
        assert events[-1].kind is EventKind.FAILED
        assert events[-1].text == (
            f"node {at.lost.node_id}: nothing was heard for {GRACE_S:g} s, and this project's runs stop then. "
            "The model of the last finished round is kept."
        )
        assert [event.round for event in events if event.kind is EventKind.MODEL] == [1]
        assert (at.it.backend.run_folder(PROJECT, "r1") / MODEL_FILE).exists()
        at.measured["told_s"] = events[-1].at - killed_at


async def test_with_nobody_left_it_waits(tmp_path: Path) -> None:
    """Under “continue”, too: a round without any answer would be lost."""
    async with scene(tmp_path) as at:
        for name in NAMES:
            at.hold(2, name)
        await at.start(OutagePolicy.CONTINUE, rounds=2, grace_s=1.0)
        await asyncio.gather(*(at.trains(2, name) for name in NAMES))
        await asyncio.gather(*(at.is_watched(name) for name in NAMES))
        await asyncio.gather(*(site.kill() for site in at.sites))
        await at.event(lambda event: event.kind is EventKind.OUTAGE and event.text.count(",") == 2)
        for name in NAMES:
            at.release(2, name)
        await asyncio.gather(*(site.start() for site in at.sites))
        events = await at.it.end_of_run()
        assert events[-1].kind is EventKind.FINISHED
        assert any(answers(events, site)[2] == "" for site in at.sites)


async def test_a_strategy_that_wants_all_sites_waits_and_says_so(tmp_path: Path) -> None:
    server = SERVER.replace("min_train_nodes=1, min_evaluate_nodes=1, min_available_nodes=1", "min_available_nodes=3")
    async with scene(tmp_path, server) as at:
        at.hold(2)
        await at.start(OutagePolicy.CONTINUE)
        await at.trains(2)
        await at.is_watched()
        await at.lost.kill()
        await at.event(lambda event: event.message_type == "train" and event.text.startswith("left out"))
        # The evaluation of round 2 wants three sites.
        await at.event(lambda event: waited_for(at.lost)(event) and event.seconds > GRACE_S)
        outages = [event for event in await at.it.events(waited_for(at.lost)) if event.kind is EventKind.OUTAGE]
        assert len(outages) < 6  # said once, however often the strategy asks
        at.release(2)
        await at.lost.start()
        assert (await at.it.end_of_run())[-1].kind is EventKind.FINISHED


async def test_a_site_that_works_long_is_never_dropped(tmp_path: Path) -> None:
    """With a grace time that is shorter than the training."""
    async with scene(tmp_path) as at:
        at.hold(1)
        await at.start(OutagePolicy.CONTINUE, rounds=1, grace_s=0.5)
        await at.trains(1)
        await asyncio.sleep(5)  # the training itself: nothing happens meanwhile
        at.release(1)
        events = await at.it.end_of_run()
        assert events[-1].kind is EventKind.FINISHED
        assert answers(events, at.lost) == {1: ""}
        assert not any(event.kind is EventKind.OUTAGE for event in events)


async def test_a_site_that_hangs_is_silent(tmp_path: Path) -> None:
    """Its connections stay, and nobody speaks: Flower's heartbeats tell. Woken up, it goes on where it was."""
    async with scene(tmp_path) as at:
        at.hold(2)
        await at.start(OutagePolicy.WAIT)
        await at.trains(2)
        await at.lost.kill(signal.SIGSTOP)
        await at.event(waited_for(at.lost))
        await at.lost.kill(signal.SIGCONT)
        at.release(2)
        events = await at.it.end_of_run()
        assert events[-1].kind is EventKind.FINISHED
        assert answers(events, at.lost) == {1: "", 2: "", 3: ""}


async def test_two_clients_with_one_key_are_counted_once(tmp_path: Path) -> None:
    """A copy of a client, key and all: both work, one answer counts."""
    async with scene(tmp_path) as at:
        at.hold(2)
        await at.start(OutagePolicy.WAIT)
        await at.trains(2)
        await at.lost.start(same_key=True)
        await at.lost.says(ClientState.WORKING)
        at.release(2)
        events = await at.it.end_of_run()
        assert events[-1].kind is EventKind.FINISHED
        assert answers(events, at.lost) == {1: "", 2: "", 3: ""}
        assert sum(event.kind is EventKind.MODEL for event in events) == 3


async def test_two_clients_of_one_participation_the_older_is_refused(tmp_path: Path) -> None:
    async with scene(tmp_path) as at:
        at.hold(2)
        await at.start(OutagePolicy.WAIT)
        await at.trains(2)
        older = at.lost.processes[-1]
        await at.lost.start()
        await at.lost.says(ClientState.FAILED, "does not accept this client any more", client=0)
        assert older.returncode is None  # the kernel stays, with the reason
        at.release(2)
        events = await at.it.end_of_run()
        assert events[-1].kind is EventKind.FINISHED
        assert answers(events, at.lost) == {1: "", 2: "", 3: ""}
