"""The service in a process of its own, with a project in it: what a fuzzer asks, and whose memory is all its own.

    python -m tests.fakes.fuzzed_service FOLDER

Writes one line of JSON to standard output: where it is, its people's headers, and the ids of what it has. Ends with its
standard input.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from subprocess import PIPE, Popen

import psutil

from hub_service.store.sql import SqlStore
from tests.fakes.hub import FakeHub
from tests.fakes.web_world import UNLIMITED, served_world

MODULE = "tests.fakes.fuzzed_service"


@dataclass(frozen=True)
class Served:
    """Where the service is, and what it has."""

    url: str
    pid: int
    headers: dict[str, dict[str, str]]  # by person
    ids: dict[str, str]  # of what is in the project, by the name of the path's parameter

    def memory(self) -> int:
        """Bytes that are resident."""
        resident: int = psutil.Process(self.pid).memory_info().rss
        return resident


@contextmanager
def fuzzed_service(folder: Path) -> Iterator[Served]:
    with Popen([sys.executable, "-m", MODULE, str(folder)], stdin=PIPE, stdout=PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, "the service ended at once"
        told = json.loads(line)
        yield Served(pid=process.pid, **told)
        process.stdin.close()


async def serve(folder: Path) -> None:
    store = SqlStore(f"sqlite:///{folder / 'federation.db'}")  # rows in memory would be growth
    async with served_world(folder, FakeHub(), UNLIMITED, store=store) as world:
        told = {"url": world.url, "headers": {name: one.headers for name, one in world.hub.people.items()}}
        sys.stdout.write(json.dumps(told | {"ids": await world.tenant(folder)}) + "\n")
        sys.stdout.flush()
        await asyncio.to_thread(sys.stdin.read)
    store.close()


if __name__ == "__main__":
    asyncio.run(serve(Path(sys.argv[1])))
