"""A process of an embedded site that the Hub knows from its database only: its number may be another's by now."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from types import SimpleNamespace

import psutil
import pytest

from spawner.site_spawner import EmbeddedSiteSpawner


@pytest.fixture
def process() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "60"]) as process:
        yield process
        process.kill()


def born(process: subprocess.Popen[bytes]) -> float:
    return float(psutil.Process(process.pid).create_time())


def spawner_of(state: dict[str, object]) -> EmbeddedSiteSpawner:
    spawner = EmbeddedSiteSpawner(user=SimpleNamespace(name="amara"), orm_spawner=SimpleNamespace(name="", server=None))
    spawner.load_state(state)
    return spawner


async def test_another_process_with_the_servers_number_is_left_alone(process: subprocess.Popen[bytes]) -> None:
    spawner = spawner_of({"pid": process.pid, "born": born(process) - 3600})
    assert await spawner.poll() == 0
    await spawner.stop(now=True)
    assert process.poll() is None


async def test_a_server_is_found_again(process: subprocess.Popen[bytes]) -> None:
    kept = {"pid": process.pid, "born": born(process), "site": "st-anna"}
    spawner = spawner_of(kept)
    assert await spawner.poll() is None
    assert spawner.get_state() == kept


async def test_one_that_has_ended_is_not(process: subprocess.Popen[bytes]) -> None:
    spawner = spawner_of({"pid": process.pid, "born": born(process)})
    process.kill()
    process.wait()
    assert await spawner.poll() == 0
