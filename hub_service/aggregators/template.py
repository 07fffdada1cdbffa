"""The service's side of `template_process.py`: one process that stands for all projects and forks on order.

It is started when aggregators are likely to be needed and ends when none was for a while, so an idle service has no
process of it. Where it cannot be started, or dies, aggregators start without it: slower, and nothing else.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hub_service.aggregators.processes import LOST

log = logging.getLogger(__name__)

TEMPLATE_MODULE = "hub_service.aggregators.template_process"
TEMPLATE_COMMAND = (sys.executable, "-m", TEMPLATE_MODULE)

_IDLE_S = 900.0
_READY_S = 60.0  # a machine may be busy
_RETRY_S = 600.0  # what could not be started is not tried again for so long
_LOG_LINES = 3


@dataclass(frozen=True, slots=True)
class Order:
    """One process.

    Attributes:
        module: the SuperLink's or the ServerApp's.
        folder: its working directory.
        environment: all of it.
        log: the file that its output is appended to.
    """

    module: str
    arguments: Sequence[str]
    folder: str
    environment: Mapping[str, str]
    log: str


@dataclass(frozen=True, slots=True)
class Forked:
    """A process that the template has started. `wait` returns its exit status, LOST where the template died before."""

    pid: int
    wait: Callable[[], Awaitable[int]]


class _Running:
    """One template process that is ready."""

    def __init__(self, process: asyncio.subprocess.Process, rest: Callable[[], None]) -> None:
        self._process = process
        self._rest = rest
        self._numbers = itertools.count(1)
        self._ordered: dict[int, asyncio.Future[Forked | str]] = {}
        self._children: dict[int, asyncio.Future[int]] = {}
        self._listening = asyncio.create_task(self._listen(), name="template of aggregators")

    @property
    def alive(self) -> bool:
        return not self._listening.done()

    @property
    def busy(self) -> bool:
        return bool(self._ordered or self._children)

    async def fork(self, order: Order) -> Forked | None:
        """None where the template could not; the reason is logged."""
        assert self._process.stdin is not None  # noqa: S101 - it was started with a pipe
        number = next(self._numbers)
        answer = self._ordered[number] = asyncio.get_running_loop().create_future()
        self._process.stdin.write(json.dumps({"order": number, **asdict(order)}).encode() + b"\n")
        try:
            outcome: Forked | str = await asyncio.shield(answer)
        except asyncio.CancelledError:
            answer.add_done_callback(_kill)  # nobody would know of it
            raise
        if isinstance(outcome, str):
            log.warning("an aggregator's process is started without the template: %s", outcome)
            return None
        return outcome

    async def end(self) -> None:
        """End the template; what it has started goes on."""
        assert self._process.stdin is not None  # noqa: S101 - as above
        self._process.stdin.close()
        await self._listening

    async def _listen(self) -> None:
        assert self._process.stdout is not None  # noqa: S101 - as above
        async for line in self._process.stdout:
            self._hear(json.loads(line))
        await self._process.wait()
        for answer in self._ordered.values():
            answer.set_result("it has died")
        for ended in self._children.values():
            ended.set_result(LOST)
        self._ordered, self._children = {}, {}

    def _hear(self, said: Mapping[str, Any]) -> None:
        if "status" in said:
            if ended := self._children.pop(said["pid"], None):
                ended.set_result(said["status"])
            self._rest()
            return
        answer = self._ordered.pop(said["order"])
        answer.set_result(self._forked(said["pid"]) if "pid" in said else said["error"])

    def _forked(self, pid: int) -> Forked:
        """It may have ended before whoever ordered it hears of it."""
        ended = self._children[pid] = asyncio.get_running_loop().create_future()
        return Forked(pid, lambda: asyncio.shield(ended))


class Template:
    """Starts, watches and ends the template process.

    Args:
        command: how it is started.
        environment: all of its environment; of its forks only what is read at import counts.
        folder: its working directory, where its log is too.
        idle_s: it ends when nothing that it has forked ran, and nobody asked for it, for so long, in seconds.
        ready_s: how long it may take to be ready, in seconds.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        environment: Mapping[str, str],
        folder: Path,
        idle_s: float = _IDLE_S,
        ready_s: float = _READY_S,
    ) -> None:
        self._command = tuple(command)
        self._environment = dict(environment)
        self._folder = folder
        self._idle_s = idle_s
        self._ready_s = ready_s
        self._starting: asyncio.Task[_Running | None] | None = None
        self._not_before = 0.0  # by the event loop's clock
        self._bedtime: asyncio.TimerHandle | None = None
        self._ending: asyncio.Task[None] | None = None

    def warm_up(self) -> None:
        """Begin to start it where it does not run; let it stay for another while."""
        loop = asyncio.get_running_loop()
        if not self._lives() and loop.time() >= self._not_before:
            self._starting = loop.create_task(self._start(), name="start of the template of aggregators")
        self._rest()

    async def fork(self, order: Order) -> Forked | None:
        """Start a process. None where the template cannot be had; why is logged."""
        self.warm_up()
        if self._starting is None:
            return None
        running = await asyncio.shield(self._starting)
        return None if running is None or not running.alive else await running.fork(order)

    async def close(self) -> None:
        """End the template; what it has started goes on."""
        if self._bedtime is not None:
            self._bedtime.cancel()
        starting, self._starting = self._starting, None
        if starting is not None and (running := await starting) is not None:
            await running.end()
        if self._ending is not None:
            await self._ending

    def _lives(self) -> bool:
        """Whether it runs or is being started."""
        if self._starting is None or not self._starting.done():
            return self._starting is not None
        running = self._starting.result()
        return running is not None and running.alive

    def _rest(self) -> None:
        """Begin the idle time anew."""
        if self._bedtime is not None:
            self._bedtime.cancel()
        self._bedtime = asyncio.get_running_loop().call_later(self._idle_s, self._end_if_idle)

    def _end_if_idle(self) -> None:
        if self._starting is None:
            return
        if not self._starting.done():
            self._rest()
            return
        running = self._starting.result()
        if running is not None and not running.busy:  # one that is busy rests when what it has forked ends
            self._starting = None
            self._ending = asyncio.create_task(running.end(), name="end of the template of aggregators")

    async def _start(self) -> _Running | None:
        """Return once it is ready. None where it does not get there: it is not tried again for some time."""
        log_file = self._folder / "template.log"
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            process = await self._launch(log_file)
        except OSError as error:
            reason = f"{error.strerror}: {error.filename or self._command[0]}"
        else:
            if await self._is_ready(process):
                return _Running(process, self._rest)
            reason = " | ".join(log_file.read_text(errors="replace").splitlines()[-_LOG_LINES:]) or "no reason given"
        log.warning("aggregators start without a template, and slower: %s", reason)
        self._not_before = asyncio.get_running_loop().time() + _RETRY_S
        return None

    async def _launch(self, log_file: Path) -> asyncio.subprocess.Process:
        with log_file.open("wb") as output:
            return await asyncio.create_subprocess_exec(
                *self._command,
                cwd=self._folder,
                env=self._environment,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=output,
                start_new_session=True,
            )

    async def _is_ready(self, process: asyncio.subprocess.Process) -> bool:
        """Whether its first word has come. One that does not get ready is ended."""
        assert process.stdout is not None  # noqa: S101 - it was started with a pipe
        try:
            async with asyncio.timeout(self._ready_s):
                if await process.stdout.readline():
                    return True
        except TimeoutError:
            process.kill()
        await process.communicate()
        return False


def _kill(answer: asyncio.Future[Forked | str]) -> None:
    outcome = answer.result()
    if isinstance(outcome, Forked):
        with suppress(ProcessLookupError):
            os.kill(outcome.pid, signal.SIGKILL)
