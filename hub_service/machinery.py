"""What the service runs beside its data, for whoever looks after it: parts, aggregators, notices, disk, tasks."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hub_service.aggregators.base import AggregatorBackend
from hub_service.domain.errors import Unavailable
from hub_service.notices.outbox import Outbox, Undelivered
from hub_service.readiness import Part, Readiness

LEAST_FREE = 512 * 1024**2  # bytes; with less, a run's model may not find room


@dataclass(frozen=True, slots=True)
class Disk:
    """Bytes of a file system."""

    free: int = 0
    size: int = 0


@dataclass(frozen=True, slots=True)
class Machinery:
    """Made by `hub_service.app`; with nothing in it, there is nothing to look after.

    Attributes:
        readiness: how each part does its work now.
        backend: what runs aggregators.
        outbox: what holds notices.
        state_dir: the service's folder.
        tasks: by name of a background task, whether it runs; the service keeps it up to date.
        last_errors: what went wrong lately, newest last, in the words of the log.
    """

    readiness: Readiness = field(default_factory=lambda: Readiness({}))
    backend: AggregatorBackend | None = None
    outbox: Outbox | None = None
    state_dir: Path | None = None
    tasks: Mapping[str, bool] = field(default_factory=dict)
    last_errors: Sequence[tuple[float, str]] = ()

    async def parts(self) -> tuple[Part, ...]:
        return await self.readiness.parts()

    async def aggregators(self) -> Sequence[str] | None:
        """Ids of the projects whose aggregator runs; None where that cannot be told."""
        if self.backend is None:
            return ()
        try:
            return await self.backend.running()
        except Unavailable:
            return None

    async def end_aggregator(self, project_id: str) -> None:
        """Does nothing where none runs. Raises Unavailable."""
        if self.backend is not None:
            await self.backend.stop(project_id)

    def notices_waiting(self) -> int:
        return 0 if self.outbox is None else self.outbox.waiting

    def undelivered(self) -> Sequence[Undelivered]:
        return () if self.outbox is None else self.outbox.undelivered()

    def send_again(self) -> int:
        """Try again what was given up; how many."""
        return 0 if self.outbox is None else self.outbox.send_again()

    def disk(self) -> Disk:
        """Of the state folder."""
        if self.state_dir is None:
            return Disk()
        usage = shutil.disk_usage(self.state_dir)
        return Disk(usage.free, usage.total)


async def check_disk(state_dir: Path) -> None:
    """A `readiness.Check`. Raises OSError, or Unavailable where the disk is nearly full."""
    free = await asyncio.to_thread(_free, state_dir)
    if free < LEAST_FREE:
        raise Unavailable("The service's disk is nearly full.", debug=f"{free >> 20} MiB are free")


def _free(state_dir: Path) -> int:
    probe = state_dir / ".writable"
    descriptor = os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
    with open(descriptor, "wb") as file:
        file.write(b".")
    probe.unlink(missing_ok=True)
    return shutil.disk_usage(state_dir).free
