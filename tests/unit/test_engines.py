"""An engine that is not there, one that hangs, one that is no engine; and that it delays nobody else."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from spawner.engines import REST_S, Engine, EngineUnavailable, engine_of
from spawner.sites import DockerSite


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class HangingEngine:
    """Takes connections and says nothing."""

    def __init__(self, listener: socket.socket, path: Path) -> None:
        self.address = f"unix://{path}"
        self._listener = listener

    def connections(self) -> int:
        """How many there were since this was last asked."""
        count = 0
        while True:
            try:
                connection, _ = self._listener.accept()
            except BlockingIOError:
                return count
            connection.close()
            count += 1


@pytest.fixture
def hanging(tmp_path: Path) -> Iterator[HangingEngine]:
    path = tmp_path / "hangs.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.setblocking(False)
        listener.bind(str(path))
        listener.listen()
        yield HangingEngine(listener, path)


async def test_an_engine_that_is_not_there_is_told_with_the_cause() -> None:
    with pytest.raises(EngineUnavailable, match=r"it cannot be reached: .*Connection refused"):
        await Engine("tcp://127.0.0.1:9", None).call("ping")


async def test_an_engine_that_hangs_is_told_after_its_time(hanging: HangingEngine) -> None:
    with pytest.raises(EngineUnavailable, match="did not answer within 0 s"):
        await Engine(hanging.address, None, call_timeout_s=0.05).call("ping")


async def test_after_a_failure_nobody_waits_for_a_while(hanging: HangingEngine) -> None:
    clock = Clock()
    engine = Engine(hanging.address, None, call_timeout_s=0.05, clock=clock)
    expected = [1, 0, 1]  # the second is told at once
    for connections, now in zip(expected, (0, REST_S - 1, REST_S + 1), strict=True):
        clock.now = now
        with pytest.raises(EngineUnavailable, match="did not answer"):
            await engine.call("ping")
        assert hanging.connections() == connections


async def test_certificates_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    with pytest.raises(EngineUnavailable, match="its certificates cannot be used"):
        await Engine("tcp://127.0.0.1:9", tmp_path).call("ping")


def test_there_is_no_client_before_the_engine_was_reached() -> None:
    with pytest.raises(EngineUnavailable, match="not reached it yet"):
        _ = Engine("tcp://127.0.0.1:9", None).client


def test_a_site_keeps_its_engine_and_shares_it_with_no_other() -> None:
    def site(engine: str) -> DockerSite:
        return DockerSite(kind="docker", title="A", contact="Ada", engine=engine, image="i:1")

    assert engine_of(site("unix:///a")) is engine_of(site("unix:///a"))
    assert engine_of(site("unix:///a")) is not engine_of(site("unix:///b"))
