"""An engine that is not there, one that hangs, one that is no engine; and that it delays nobody else."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from spawner import engines
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


class FetchingEngine(ThreadingHTTPServer):
    """Answers at once, but for fetches of images: these take until `fetched` is set, and are counted."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Fetching)
        self.address = f"tcp://127.0.0.1:{self.server_port}"
        self.fetches: list[str] = []
        self.begun = threading.Semaphore(0)
        self.fetched = threading.Event()

    async def has_begun(self, count: int) -> None:
        for _ in range(count):
            assert await asyncio.to_thread(self.begun.acquire, timeout=10)


class _Fetching(BaseHTTPRequestHandler):
    server: FetchingEngine

    def do_GET(self) -> None:
        self._answer({"ApiVersion": "1.40"})

    def do_POST(self) -> None:
        self.server.fetches.append(self.path)
        self.server.begun.release()
        self.server.fetched.wait(10)
        with contextlib.suppress(OSError):  # who does not wait any more
            self._answer({})

    def _answer(self, value: dict[str, str]) -> None:
        body = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Nobody reads it."""


@pytest.fixture
def fetching() -> Iterator[FetchingEngine]:
    with FetchingEngine() as engine:
        threading.Thread(target=engine.serve_forever, daemon=True).start()
        yield engine
        engine.fetched.set()
        engine.shutdown()


async def test_an_image_is_fetched_once_for_all_who_want_it(fetching: FetchingEngine) -> None:
    engine = Engine(fetching.address, None)
    first = asyncio.create_task(engine.pull("notebook", "1.0"))
    await fetching.has_begun(1)
    first.cancel()  # a start that was given up
    with pytest.raises(asyncio.CancelledError):
        await first
    later = [asyncio.create_task(engine.pull("notebook", "1.0")) for _ in range(3)]
    await engine.call("version")
    fetching.fetched.set()
    await asyncio.gather(*later)
    assert len(fetching.fetches) == 1
    await engine.pull("notebook", "1.0")  # that fetch is over
    assert len(fetching.fetches) == 2


async def test_an_engine_that_fetches_images_answers_other_calls(fetching: FetchingEngine) -> None:
    engine = Engine(fetching.address, None)
    pulls = [asyncio.create_task(engine.pull("notebook", f"{number}.0")) for number in range(4)]
    await fetching.has_begun(4)
    async with asyncio.timeout(5):
        assert await engine.call("version") == {"ApiVersion": "1.40"}
    fetching.fetched.set()
    await asyncio.gather(*pulls)


async def test_a_fetch_that_nothing_is_heard_of_ends(fetching: FetchingEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "SILENCE_S", 0.1)
    with pytest.raises(EngineUnavailable, match="did not answer"):
        await Engine(fetching.address, None).pull("notebook", "1.0")
