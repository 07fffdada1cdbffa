"""Where aggregators run in tests: how the backend is made there, what is alive there, and how to do it harm."""

from __future__ import annotations

import asyncio
import os
import signal
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psutil
from docker.models.containers import Container

from hub_service.aggregators.base import AggregatorBackend, Limits
from hub_service.aggregators.docker import INSTANCE, ROLE, DockerAggregators, instance_of
from tests.fakes.engines import client_of
from tests.fakes.fleet import local_aggregators

IMAGE = "notebook-federator/aggregator:test"


class Place(ABC):
    """One service's state folder, whose aggregators run in one way."""

    def __init__(self, state_dir: Path) -> None:
        self.state_dir = state_dir

    @abstractmethod
    def backend(self) -> AggregatorBackend:
        """As a service that was just started makes it; close it."""

    @abstractmethod
    def alive(self) -> int:
        """How many SuperLinks and ServerApps run."""

    @abstractmethod
    async def kill_superlink(self) -> None:
        """Return when the one SuperLink is gone."""


class LocalPlace(Place):
    def backend(self) -> AggregatorBackend:
        return local_aggregators(self.state_dir)

    def alive(self) -> int:
        return len(processes_below(self.state_dir / "projects"))

    async def kill_superlink(self) -> None:
        (process,) = (one for one in processes_below(self.state_dir / "projects") if listens(one))
        os.kill(process.pid, signal.SIGKILL)
        await asyncio.to_thread(psutil.wait_procs, [process], timeout=10)


class DockerPlace(Place):
    """Args: engine: the engine's address. Its containers are looked at directly, whatever the backend is given."""

    def __init__(self, state_dir: Path, engine: str) -> None:
        super().__init__(state_dir)
        self.engine = engine
        self.hours_later = 0
        """How much the backends' clock is ahead."""

    def backend(self, **changes: Any) -> DockerAggregators:
        settings = {
            "engine": self.engine,
            "tls_dir": None,
            "image": IMAGE,
            "limits": Limits(memory_bytes=1024**3, disk_bytes=256 * 1024**2),
            "clock": lambda: datetime.now(UTC) + timedelta(hours=self.hours_later),
            "new_id": lambda: str(uuid.uuid4()),
        }
        return DockerAggregators(self.state_dir, **(settings | changes))

    @contextmanager
    def containers(self, role: str = "", *, all_states: bool = True) -> Iterator[list[Container]]:
        """This service's containers, for as long as the context is open."""
        with closing(client_of(self.engine)) as client:
            labels = [f"{INSTANCE}={instance_of(self.state_dir)}", *([f"{ROLE}={role}"] if role else [])]
            yield client.containers.list(all=all_states, filters={"label": labels}, ignore_removed=True)

    def alive(self) -> int:
        with self.containers(all_states=False) as running:
            return len(running)

    async def kill_superlink(self) -> None:
        with self.containers("superlink") as (superlink,):
            superlink.kill()
            superlink.wait()


def listens(process: psutil.Process) -> bool:
    """A SuperLink does, a ServerApp does not."""
    return any(one.status == psutil.CONN_LISTEN for one in process.net_connections())


def processes_below(folder: Path) -> list[psutil.Process]:
    """The processes that work in the folder: a fork's command line is its template's."""
    return [
        process
        for process in psutil.process_iter(["cwd", "status"])
        if process.info["status"] != psutil.STATUS_ZOMBIE
        and process.info["cwd"] is not None
        and Path(process.info["cwd"]).is_relative_to(folder)
    ]
