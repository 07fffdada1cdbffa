"""The floor: the bytes of a round by a plain HTTP client and server on loopback, and nothing else.

    python -m tests.bench.loopback server PORT MEGABYTES
    python -m tests.bench.loopback client URL CLIENT MEGABYTES TIMES       one site

For each round a site fetches the model, sends it back, and fetches the new one; all sites at once.
"""

from __future__ import annotations

import contextlib
import http.client
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

import httpx
import uvicorn
from federator.ports import free_port

from examples.demo.stack import ROOT

CLIENTS = ("httpx", "http.client")
_START_S = 30
_CLIENT_S = 600


def floor(megabytes: int, sites: int, times: int, client: str) -> list[float]:
    """Seconds of each of `times` rounds of `sites` processes with the client of this name."""
    with _server(megabytes) as url:
        command = [sys.executable, "-m", "tests.bench.loopback", "client", url, client, str(megabytes), str(times)]
        processes = [
            subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            for _ in range(sites)
        ]
        try:
            return [_together(processes) for _ in range(times)]
        finally:
            for process in processes:
                process.communicate(timeout=_CLIENT_S)


def _together(processes: list[subprocess.Popen[str]]) -> float:
    """One round: every process says that it is ready, is told to go, and says that it is done."""
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    begun = time.perf_counter()
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "done\n"
    return time.perf_counter() - begun


@contextlib.contextmanager
def _server(megabytes: int) -> Iterator[str]:
    port = free_port()
    command = [sys.executable, "-m", "tests.bench.loopback", "server", str(port), str(megabytes)]
    server = subprocess.Popen(command, cwd=ROOT)
    try:
        _wait_for(f"http://127.0.0.1:{port}/", server)
        yield f"http://127.0.0.1:{port}/model"
    finally:
        server.terminate()
        server.wait()


def _wait_for(url: str, server: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + _START_S
    while time.monotonic() < deadline and server.poll() is None:
        with contextlib.suppress(httpx.TransportError):
            httpx.get(url)
            return
        time.sleep(0.05)
    raise OSError(f"the loopback server did not answer in {_START_S} s")


# --- the server's process


def serve(port: int, megabytes: int) -> None:
    """Gives the same bytes to all, and takes theirs."""
    body = bytes(megabytes * 10**6)

    async def app(scope: dict[str, Any], receive: Callable[[], Any], send: Callable[[Any], Any]) -> None:
        while (message := await receive()).get("more_body"):
            del message
        content = body if scope["method"] == "GET" and scope["path"] == "/model" else b""
        headers = [(b"content-length", str(len(content)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": content})

    uvicorn.run(app, host="127.0.0.1", port=port, log_level="warning", lifespan="off")


# --- a client's process


def take_part(url: str, client: str, megabytes: int, times: int) -> None:
    body = bytes(megabytes * 10**6)
    with _exchange(url, client) as exchange:
        for _ in range(times):
            sys.stdout.write("ready\n")
            sys.stdout.flush()
            sys.stdin.readline()
            for sent, length in ((None, len(body)), (body, 0), (None, len(body))):
                got = exchange(sent)
                assert got == length, f"{got} bytes, not {length}"
            sys.stdout.write("done\n")
            sys.stdout.flush()


@contextlib.contextmanager
def _exchange(url: str, client: str) -> Iterator[Callable[[bytes | None], int]]:
    """A function that sends a body, or fetches where there is none; it returns the length of the answer."""
    if client == "httpx":
        with httpx.Client(timeout=_CLIENT_S) as opened:

            def by_httpx(body: bytes | None) -> int:
                answer = opened.get(url) if body is None else opened.post(url, content=body)
                return len(answer.content)

            yield by_httpx
        return
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(str(parts.hostname), parts.port, timeout=_CLIENT_S)

    def by_http_client(body: bytes | None) -> int:
        connection.request("GET" if body is None else "POST", parts.path, body)
        return len(connection.getresponse().read())

    yield by_http_client
    connection.close()


if __name__ == "__main__":
    if sys.argv[1] == "server":
        serve(int(sys.argv[2]), int(sys.argv[3]))
    else:
        take_part(sys.argv[2], sys.argv[3], int(sys.argv[4]), int(sys.argv[5]))
