"""Each part of the stack is killed at a random moment of a run, again and again: the run ends as if nothing had been.

With the same bits: that no finished round was lost and none counted twice shows in the model. `make chaos` tries each
fault more often. What was measured stands below test-output/reliability.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import shutil
import sqlite3
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from federator.ports import free_port

from examples.demo.deployment import DatasetFolder
from examples.demo.people import RESEARCHERS
from examples.demo.stack import Stack, embedded_sites, running_stack
from hub_service.store.database import Database
from hub_service.store.migrating import VERSION_TABLE, make
from tests.fakes.paced_app import paced_app
from tests.reliability import measuring
from tests.system import chaos
from tests.system.chaos import Kind, Machine, People, Project
from tests.system.conftest import OUTPUT

pytestmark = [pytest.mark.needs_node, pytest.mark.timeout(900)]

ROUNDS = 6
PACE_S = 0.8
SEED = 20230119
BASELINE = "0003"
AT_REST = {
    Kind.HUB: 1,
    Kind.PROXY: 1,
    Kind.KEEPER: 1,
    Kind.SERVICE: 1,
    Kind.SERVER: len(RESEARCHERS),
    Kind.KERNEL: len(RESEARCHERS),
}


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Its own: what the other tests do with theirs is not disturbed."""
    data = tmp_path_factory.mktemp("data")
    folders = {one.site: data / one.site for one in RESEARCHERS}
    for folder in folders.values():
        folder.mkdir()
    dataset = DatasetFolder("steps", "Steps", "Nothing: the app makes its own.", folders)
    with running_stack(OUTPUT / "recovery", embedded_sites(dataset), port=free_port()) as running:
        yield running
    Machine(running).sweep()


@pytest.fixture(scope="module")
async def them(stack: Stack) -> AsyncIterator[People]:
    async with chaos.people(stack.origin) as people:
        await people.start_servers()
        yield people


@dataclass(frozen=True)
class Undisturbed:
    """A project, and what its run gives and takes when nothing happens."""

    project: Project
    model: dict[str, bytes]
    seconds: float


@pytest.fixture(scope="module")
async def undisturbed(stack: Stack, them: People, tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    app, folder = paced_app(len(RESEARCHERS), PACE_S), tmp_path_factory.mktemp("app")
    project = await chaos.new_project(them, "Recovery", app, "steps", folder, chaos.PATIENCE_S)
    began = time.monotonic()
    run_id = await project.start(ROUNDS, SEED)
    chaos.check_rounds(await project.end_of(run_id), ROUNDS)
    seconds = time.monotonic() - began
    await chaos.settled(Machine(stack), AT_REST)
    return Undisturbed(project, await project.model_of(run_id), seconds)


async def test_a_run_survives_an_upgrade_of_the_service(stack: Stack, undisturbed: Undisturbed, tmp_path: Path) -> None:
    """The service is asked to end in the middle of a run; the next one finds a database of an older schema."""
    machine, project = Machine(stack), undisturbed.project
    with measuring("service upgraded in mid-run"):
        async with project.run(ROUNDS, SEED) as run_id:
            await project.round_of(run_id, 2)
            (hub,), (keeper,), (service,) = (machine.processes()[one] for one in (Kind.HUB, Kind.KEEPER, Kind.SERVICE))
            hub.suspend()  # it would begin the next service before the database is replaced
            keeper.terminate()
            service.wait(chaos.PATIENCE_S)
            await asyncio.to_thread(make_older, machine.state / "federation.db", tmp_path / "older.db")
            hub.resume()
            await machine.answers()
            chaos.check_rounds(await project.end_of(run_id), ROUNDS)
            assert await project.model_of(run_id) == undisturbed.model
            await all_at_rest(machine, project)


async def all_at_rest(machine: Machine, project: Project) -> None:
    """The processes first: a client kernel that was killed last may not have failed yet in anybody's eyes."""
    await chaos.settled(machine, AT_REST)
    await project.ready()


def make_older(path: Path, older: Path) -> None:
    """Replace a database by one that has its rows in the schema of the last service before migrations."""
    database = Database(f"sqlite:///{older}")
    make(database, BASELINE)
    database.close()
    with contextlib.closing(sqlite3.connect(older)) as connection, connection:
        connection.execute("PRAGMA foreign_keys = OFF")
        connection.execute("ATTACH ? AS newer", [str(path)])
        tables = connection.execute("SELECT name FROM main.sqlite_master WHERE type = 'table'").fetchall()
        for (table,) in tables:
            columns = ", ".join(f'"{one[1]}"' for one in connection.execute(f"PRAGMA main.table_info({table})"))
            if table not in (VERSION_TABLE, "schema_version", "sqlite_sequence"):
                connection.execute(f"INSERT INTO main.{table} ({columns}) SELECT {columns} FROM newer.{table}")  # noqa: S608
        connection.execute(f"DROP TABLE main.{VERSION_TABLE}")
        connection.execute("DELETE FROM main.schema_version")
        connection.execute("INSERT INTO main.schema_version VALUES (3)")
    for old in path.parent.glob(f"{path.name}-*"):
        old.unlink()
    shutil.copy(older, path)


@pytest.mark.random_kills
@pytest.mark.parametrize("fault", chaos.FAULTS)
async def test_a_run_survives(stack: Stack, undisturbed: Undisturbed, fault: str, attempt: int) -> None:
    machine, project = Machine(stack), undisturbed.project
    seed = random.SystemRandom().randrange(10**6)
    draw = random.Random(seed)  # noqa: S311
    needs_aggregator = Kind.AGGREGATOR in chaos.FAULTS[fault].kills
    # An aggregator ends with its run: it is killed in a round, the last but one at the latest, or while it starts.
    number = draw.randrange(ROUNDS) if needs_aggregator else 0
    wait_s = draw.uniform(0, PACE_S if needs_aggregator else undisturbed.seconds)
    print(f"{fault}, {wait_s:.2f} s into round {number} (seed {seed})")  # noqa: T201 - shown where it fails
    async with project.run(ROUNDS, SEED) as run_id:
        began = time.monotonic()
        with measuring(fault) as measured:
            await project.round_of(run_id, number)
            await asyncio.sleep(wait_s)
            measured["at_s"] = time.monotonic() - began
            measured["back_s"] = await chaos.FAULTS[fault].strike(machine)
            if fault == chaos.REBOOT:
                await project.people.start_servers()
            chaos.check_rounds(await project.end_of(run_id), ROUNDS)
            measured["later_s"] = time.monotonic() - began - undisturbed.seconds
            if needs_aggregator and number:
                assert machine.times_begun_anew(run_id) >= 1
            assert await project.model_of(run_id) == undisturbed.model
            await all_at_rest(machine, project)


async def test_nothing_is_left_of_a_stack_that_was_stopped(stack: Stack, undisturbed: Undisturbed) -> None:
    """The last one: not even of those that lost their parents in the faults above, and of a run in flight."""
    await undisturbed.project.ready()
    await undisturbed.project.round_of(await undisturbed.project.start(ROUNDS, SEED), 1)
    await asyncio.to_thread(stack.stop)
    await chaos.settled(Machine(stack), {})
