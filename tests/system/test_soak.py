"""Five projects at once for a long time, a fault each minute, cullers on: no lost round, no leak, no zombie.

Ten minutes as a matter of course, five in CI; `make chaos` takes two hours. One project trains for minutes in each
round without printing a word, which to a culler looks idle.
"""

from __future__ import annotations

import asyncio
import random
import statistics
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import pytest

from examples.demo.people import RESEARCHERS
from examples.demo.stack import Stack
from tests.fakes.paced_app import paced_app
from tests.reliability import SOAK, measuring
from tests.system import chaos
from tests.system.chaos import FAULTS, Kind, Machine, People, Project
from tests.system.culling import cull_kernels, servers_are_culled
from tests.system.test_recovery import AT_REST, SEED, stack

__all__ = ["stack"]

pytestmark = [pytest.mark.needs_node, pytest.mark.timeout(5 * 3600)]  # its length is an option

PROJECTS = 5
ROUNDS, LONG_ROUNDS = 8, 2
PACES_S = (0.5, 1.0, 2.0, 4.0)
FAULTS_EVERY_S = 60.0
LOSES_AGGREGATORS = (chaos.REBOOT, "aggregator killed")
SAMPLES_EVERY_S = 5.0
ALWAYS_THERE = {Kind.HUB, Kind.SERVICE, Kind.SERVER, Kind.KERNEL}
# Of a process of one kind, in the mean; a fault begins it anew, small.
MOST_GROWTH = 1.5
ALLOWANCE_BYTES = 64 << 20


@dataclass
class Soak:
    """What goes on, and what was seen of it."""

    machine: Machine
    people: People
    ends: float
    expected: Mapping[int, Mapping[str, bytes]]  # rounds -> model
    random: random.Random
    longest_round_s: float
    lost_at: float = 0.0  # all aggregators, the last time
    faults: list[str] = field(default_factory=list)
    runs: Counter[str] = field(default_factory=Counter)  # project's name -> how many
    rounds: int = 0
    memory: list[dict[Kind, int]] = field(default_factory=list)

    def is_over(self) -> bool:
        return time.monotonic() > self.ends

    async def run_again_and_again(self, project: Project, rounds: int, pace_s: float) -> None:
        while not self.runs[project.id] or time.monotonic() + rounds * pace_s < self.ends:
            await project.ready()
            run_id = await project.start_whatever_happens(rounds, SEED)
            detail = await project.end_of(run_id)
            if len(detail["sites"]) < len(RESEARCHERS):
                continue  # a fault came between: a run begins with the sites that are connected, and the app wants all
            chaos.check_rounds(detail, rounds)
            assert await project.model_whatever_happens(run_id) == self.expected[rounds]
            self.runs[project.id] += 1
            self.rounds += rounds

    def may_lose(self) -> bool:
        """A run is given up that loses its aggregator three times in one round: the long one must get through some."""
        return time.monotonic() > self.lost_at + 2.2 * self.longest_round_s

    async def disturb(self) -> None:
        await asyncio.sleep(FAULTS_EVERY_S / 2)
        while time.monotonic() < self.ends - FAULTS_EVERY_S / 2:
            next_at = time.monotonic() + FAULTS_EVERY_S * self.random.uniform(0.5, 1.5)
            fault = self.random.choice([one for one in FAULTS if one not in LOSES_AGGREGATORS or self.may_lose()])
            if fault in LOSES_AGGREGATORS:
                self.lost_at = time.monotonic()
            self.faults.append(fault)
            print(f"{datetime.now(UTC):%H:%M:%S} {fault}")  # noqa: T201 - shown where it fails
            await FAULTS[fault].strike(self.machine)
            if fault == chaos.REBOOT:
                await self.people.start_servers()
            await asyncio.sleep(max(0.0, next_at - time.monotonic()))

    async def sample(self) -> None:
        while not self.is_over():
            self.memory.append(await asyncio.to_thread(self.machine.memory))
            await asyncio.sleep(SAMPLES_EVERY_S)

    def growth(self) -> dict[str, tuple[int, int]]:
        """By kind, the median of the first and of the last third of the time, in bytes."""
        third = len(self.memory) // 3
        growth = {}
        for kind in (Kind.HUB, Kind.PROXY, Kind.SERVICE, Kind.AGGREGATOR, Kind.SERVER, Kind.KERNEL):
            first, last = (
                [one[kind] for one in part if kind in one] for part in (self.memory[:third], self.memory[-third:])
            )
            if first and last:
                growth[str(kind)] = int(statistics.median(first)), int(statistics.median(last))
        return growth


@pytest.fixture(scope="module")
async def them(stack: Stack) -> AsyncIterator[People]:
    cull_kernels(stack)
    async with servers_are_culled(stack), chaos.people(stack.origin) as people:
        await people.start_servers()
        await people.researchers[0].start_kernel()  # nobody uses it
        yield people


@pytest.mark.random_kills
async def test_nothing_is_lost_in_a_long_time(
    stack: Stack, them: People, tmp_path: Path, pytestconfig: pytest.Config
) -> None:
    machine = Machine(stack)
    seconds = 60.0 * pytestconfig.getoption("soak_minutes")
    paces = (*PACES_S, min(600.0, seconds / 6))
    projects = [
        await chaos.new_project(
            them, f"Soak {number}", paced_app(len(RESEARCHERS), pace), "steps", tmp_path, seconds + chaos.PATIENCE_S
        )
        for number, pace in enumerate(paces, start=1)
    ]
    quick, long = projects[0], projects[-1]
    expected = {}
    for rounds in (ROUNDS, LONG_ROUNDS):
        run_id = await quick.start(rounds, SEED)
        chaos.check_rounds(await quick.end_of(run_id), rounds)
        expected[rounds] = await quick.model_of(run_id)

    seed = random.SystemRandom().randrange(10**6)
    print(f"seed {seed}")  # noqa: T201 - shown where it fails
    soak = Soak(machine, them, time.monotonic() + seconds, expected, random.Random(seed), paces[-1])  # noqa: S311
    with measuring(SOAK) as measured:
        measured |= {"seed": seed, "seconds": seconds, "faults": soak.faults}
        try:
            async with asyncio.TaskGroup() as tasks:
                for project, pace_s in zip(projects, paces, strict=True):
                    rounds = LONG_ROUNDS if project is long else ROUNDS
                    tasks.create_task(soak.run_again_and_again(project, rounds, pace_s))
                tasks.create_task(soak.disturb())
                tasks.create_task(soak.sample())
        finally:
            growth = soak.growth()
            runs = {f"project {number}": soak.runs[project.id] for number, project in enumerate(projects, start=1)}
            measured |= {"runs": runs, "rounds": soak.rounds, "memory": growth}

        await chaos.settled(machine, {**AT_REST, Kind.KERNEL: PROJECTS * len(RESEARCHERS)})
        assert all(soak.runs[project.id] for project in projects)
        assert "seconds of inactivity" in stack.log("hub").read_text(errors="replace"), "no kernel was culled at all"
        assert growth.keys() >= ALWAYS_THERE
        for kind, (before, after) in growth.items():
            assert after < MOST_GROWTH * before + ALLOWANCE_BYTES, (kind, before, after)
