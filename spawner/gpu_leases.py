"""Which server has which GPU of a site.

The truth is on the site's engine: a server's container carries the id of its GPU as a label, and holds it for as long
as it is there and not ended. So nothing is lost or given twice when the Hub restarts, a server crashes, or both: there
is no record that could differ from what runs. Between looking and making the container nobody else looks: one Hub
drives an engine, and each engine has one lock.
"""

from __future__ import annotations

import asyncio
import functools
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypeVar

from spawner.engines import CALL_TIMEOUT_S, Engine
from spawner.labels import GPU_LABEL, SERVER_LABEL, USER_LABEL
from spawner.sites import DockerSite

LOOK_AGAIN_S = 2.0
_ENDED = frozenset({"exited", "dead", "removing"})
_MADE = "created"

_Made = TypeVar("_Made")


@dataclass(frozen=True, slots=True)
class Lease:
    """One server's hold on a GPU. `server` is empty for the person's default server; `since` is the engine's time."""

    gpu: str
    user: str
    server: str
    since: datetime

    def __str__(self) -> str:
        who = f"{self.user} ({self.server})" if self.server else self.user
        return f"{self.gpu}: {who} since {self.since:%d %b %H:%M} UTC"


class GpusTaken(Exception):
    """No GPU of the site is free. `leases` says who has which."""

    def __init__(self, leases: Sequence[Lease]) -> None:
        super().__init__("; ".join(map(str, leases)))
        self.leases = tuple(leases)


def leases_in(containers: Iterable[Mapping[str, Any]], being_started: frozenset[str]) -> list[Lease]:
    """The leases that an engine's containers stand for, in the order of the GPUs.

    Args:
        containers: as the engine lists them, ended ones included.
        being_started: names of containers that this Hub is starting. One that was made and that nobody starts is
            what a Hub left that crashed in between: it holds nothing.
    """
    leases = [
        Lease(
            labels[GPU_LABEL],
            labels.get(USER_LABEL, "somebody"),
            labels.get(SERVER_LABEL, ""),
            datetime.fromtimestamp(container["Created"], UTC),
        )
        for container in containers
        if GPU_LABEL in (labels := container["Labels"] or {}) and _holds(container, being_started)
    ]
    return sorted(leases, key=lambda lease: (lease.gpu, lease.since))


def _holds(container: Mapping[str, Any], being_started: frozenset[str]) -> bool:
    if container["State"] == _MADE:
        return not being_started.isdisjoint(name.removeprefix("/") for name in container["Names"])
    return container["State"] not in _ENDED


def free_gpu(gpus: Sequence[str], servers_per_gpu: int, leases: Iterable[Lease]) -> str | None:
    """The GPU with the fewest servers, the first declared among equals; None if all have as many as they may."""
    taken = Counter(lease.gpu for lease in leases)
    free = [gpu for gpu in gpus if taken[gpu] < servers_per_gpu]
    return min(free, key=lambda gpu: taken[gpu], default=None)


class GpuLeases:
    """The GPUs of one engine. Use `leases_of` to get it."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._turn = asyncio.Lock()
        self._being_started: set[str] = set()

    @contextmanager
    def starting(self, container: str) -> Iterator[None]:
        """While a container of this name is being made and started, being made is enough to hold a GPU."""
        self._being_started.add(container)
        try:
            yield
        finally:
            self._being_started.discard(container)

    async def held(self) -> list[Lease]:
        """Who has what now. Raises EngineUnavailable and docker.errors.APIError."""
        found = await self._engine.call("containers", all=True, filters={"label": GPU_LABEL})
        return leases_in(found, frozenset(self._being_started))

    async def take(
        self, site: DockerSite, make: Callable[[str], Awaitable[_Made]], waiting: Callable[[Sequence[Lease]], None]
    ) -> _Made:
        """Find a free GPU and make the container that holds it. Those who wait are served in their order.

        Args:
            make: makes the container, labelled with the GPU that it is given.
            waiting: is told who has the GPUs, each time that none is free.

        Raises:
            GpusTaken: none was free for `site.gpu_wait_s`.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + site.gpu_wait_s
        try:
            async with asyncio.timeout_at(deadline + CALL_TIMEOUT_S):
                await self._turn.acquire()
        except TimeoutError:
            raise GpusTaken(await self.held()) from None
        try:
            while True:
                leases = await self.held()
                gpu = free_gpu(site.gpus, site.servers_per_gpu, leases)
                if gpu is not None:
                    return await make(gpu)
                remaining = deadline - loop.time()
                if remaining <= 0:
                    raise GpusTaken(leases)
                waiting(leases)
                await asyncio.sleep(min(LOOK_AGAIN_S, remaining))
        finally:
            self._turn.release()


@functools.cache
def leases_of(engine: Engine) -> GpuLeases:
    """The leases on an engine's GPUs; the same object at each call, since it has the lock."""
    return GpuLeases(engine)
