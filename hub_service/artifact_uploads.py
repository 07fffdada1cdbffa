"""Brings new apps and models to the bucket, and tries again for as long as the storage is away."""

from __future__ import annotations

import asyncio
import logging

from hub_service.artifacts import Artifacts
from hub_service.domain.errors import Unavailable

log = logging.getLogger(__name__)

FIRST_WAIT_S, LONGEST_WAIT_S = 5.0, 300.0


class Uploads:
    """`run()` is one of the service's background tasks.

    Args:
        first_wait_s: how long to wait after a failure, in seconds; twice as long after each further one.
    """

    def __init__(self, artifacts: Artifacts, *, first_wait_s: float = FIRST_WAIT_S) -> None:
        self._artifacts = artifacts
        self._first_wait_s = first_wait_s

    async def run(self) -> None:
        """Ends when cancelled."""
        loop, put = asyncio.get_running_loop(), asyncio.Event()

        def note() -> None:
            loop.call_soon_threadsafe(put.set)

        self._artifacts.put = note
        wait_s = self._first_wait_s
        while True:
            put.clear()
            try:
                await asyncio.to_thread(self._artifacts.upload)
            except Unavailable as error:
                log.warning("%d artifacts wait for the bucket: %s", self._artifacts.waiting, error.message)
                await asyncio.sleep(wait_s)
                wait_s = min(2 * wait_s, LONGEST_WAIT_S)
                continue
            wait_s = self._first_wait_s
            await put.wait()
