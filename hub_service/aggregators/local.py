"""Aggregators as local processes: the embedded default. It isolates projects by process and folder, not by account.

    <state>/projects/<project id>/
        superlink.db  superlink.log     the SuperLink's database (node ids live there) and log
        processes.json                  what runs now: pids, start times and the port, to find it after a restart
        flower/                         FLWR_HOME of both processes
        runs/<run id>/                  events.jsonl  model.safetensors  serverapp.log

The processes outlive the service: a run goes on while the service restarts, and the next service finds it.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from hub_service.aggregators.base import AggregatorBackend, Endpoint, ServerAppSpec
from hub_service.aggregators.events import SERVERAPP_LOG
from hub_service.aggregators.processes import (
    LOST,
    SERVERAPP_MODULE,
    SUPERLINK_LOG,
    SUPERLINK_MODULE,
    answers,
    environment,
    not_started,
    serverapp_arguments,
    superlink_arguments,
)
from hub_service.domain.errors import Unavailable

HOST = "127.0.0.1"
SUPERLINK_COMMAND = (sys.executable, "-m", SUPERLINK_MODULE)
SERVERAPP_COMMAND = (sys.executable, "-m", SERVERAPP_MODULE)

_PORT_ATTEMPTS = 3
_PROBE_S = 0.05
# What a process needs of the service's environment. Everything else, JUPYTERHUB_* above all, is a secret or noise.
_KEPT_ENVIRONMENT = ("PATH", "LANG", "LC_ALL", "TZ", "TMPDIR", "LD_LIBRARY_PATH", "OMP_NUM_THREADS", "SYSTEMROOT")


@dataclass(frozen=True, slots=True)
class _Process:
    """A process known by id and start time, since ids are used again. Leads its own process group."""

    pid: int
    started: float

    @classmethod
    def of(cls, pid: int) -> _Process:
        return cls(pid, psutil.Process(pid).create_time())

    def alive(self) -> bool:
        try:
            process = psutil.Process(self.pid)
            return bool(process.create_time() == self.started and process.status() != psutil.STATUS_ZOMBIE)
        except psutil.NoSuchProcess:
            return False

    def signal_group(self, number: signal.Signals) -> None:
        try:
            os.killpg(self.pid, number)
        except ProcessLookupError:
            return


@dataclass(slots=True)
class _Aggregator:
    endpoint: Endpoint
    superlink: _Process
    serverapps: dict[str, _Process] = field(default_factory=dict)  # by run id


class LocalAggregators(AggregatorBackend):
    """One SuperLink on loopback for each project, and one ServerApp process for each run.

    Args:
        state_dir: the service's folder; see the module's text for what lies below it.
        start_timeout_s: how long a SuperLink may take to answer, in seconds.
        stop_timeout_s: how long a process may take to end before it is killed, in seconds.
    """

    def __init__(
        self,
        state_dir: Path,
        *,
        superlink_command: Sequence[str] = SUPERLINK_COMMAND,
        serverapp_command: Sequence[str] = SERVERAPP_COMMAND,
        start_timeout_s: float = 60.0,
        stop_timeout_s: float = 5.0,
    ) -> None:
        self._projects = state_dir.absolute() / "projects"
        self._superlink_command = tuple(superlink_command)
        self._serverapp_command = tuple(serverapp_command)
        self._start_timeout_s = start_timeout_s
        self._stop_timeout_s = stop_timeout_s
        self._locks: dict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._children: dict[int, asyncio.subprocess.Process] = {}
        self._aggregators = self._find_running()

    async def start(self, project_id: str) -> Endpoint:
        async with self._locks[project_id]:
            aggregator = self._aggregators.get(project_id)
            if aggregator is not None and aggregator.superlink.alive():
                return aggregator.endpoint
            await self._end(project_id)
            folder = self._folder(project_id)
            folder.mkdir(parents=True, exist_ok=True)
            for _ in range(_PORT_ATTEMPTS):
                aggregator = await self._launch_superlink(folder)
                if aggregator is not None:
                    self._aggregators[project_id] = aggregator
                    self._remember(project_id)
                    return aggregator.endpoint
            raise not_started(folder / SUPERLINK_LOG, "it ended at once")

    async def start_serverapp(self, project_id: str, spec: ServerAppSpec) -> None:
        async with self._locks[project_id]:
            aggregator = self._aggregators.get(project_id)
            if aggregator is None:
                raise Unavailable("The project's aggregator does not run.", "Start the run again.")
            if spec.run_id in aggregator.serverapps:
                return
            run_folder = self.run_folder(project_id, spec.run_id)
            run_folder.mkdir(parents=True, exist_ok=True)
            arguments = serverapp_arguments(spec, aggregator.endpoint.address, str(run_folder))
            command = [*self._serverapp_command, *arguments]
            child = await self._spawn(command, self._folder(project_id), run_folder / SERVERAPP_LOG)
            aggregator.serverapps[spec.run_id] = _Process.of(child.pid)
            self._remember(project_id)

    async def serverapp_exit(self, project_id: str, run_id: str) -> int | None:
        aggregator = self._aggregators.get(project_id)
        process = aggregator.serverapps.get(run_id) if aggregator else None
        if process is None:
            return LOST
        if process.alive():
            return None
        child = self._children.get(process.pid)
        return LOST if child is None else await child.wait()

    async def stop(self, project_id: str) -> None:
        async with self._locks[project_id]:
            await self._end(project_id)

    async def running(self) -> Sequence[str]:
        return [project for project, aggregator in self._aggregators.items() if aggregator.superlink.alive()]

    def endpoint(self, project_id: str) -> Endpoint | None:
        aggregator = self._aggregators.get(project_id)
        return aggregator.endpoint if aggregator else None

    def run_folder(self, project_id: str, run_id: str) -> Path:
        return self._folder(project_id) / "runs" / run_id

    async def close(self) -> None:
        """Nothing is held but the processes, which go on."""

    def _folder(self, project_id: str) -> Path:
        return self._projects / project_id

    async def _launch_superlink(self, folder: Path) -> _Aggregator | None:
        """Start a SuperLink and wait for its API. None: it ended by itself, perhaps because its port was taken."""
        endpoint = Endpoint(HOST, _free_port())
        arguments = superlink_arguments(endpoint.host, endpoint.port, str(folder / "superlink.db"))
        log = folder / SUPERLINK_LOG
        try:
            child = await self._spawn([*self._superlink_command, *arguments], folder, log)
        except OSError as error:
            raise not_started(log, f"{error.strerror}: {self._superlink_command[0]}") from error
        process = _Process.of(child.pid)
        ended = asyncio.ensure_future(child.wait())
        answered = asyncio.ensure_future(answers(endpoint))
        done, pending = await asyncio.wait(
            (ended, answered), timeout=self._start_timeout_s, return_when=asyncio.FIRST_COMPLETED
        )
        for task in pending:
            task.cancel()
        if ended in done:
            process.signal_group(signal.SIGKILL)
            return None
        if answered not in done:
            await self._end_processes([process])
            raise not_started(log, f"it did not answer within {self._start_timeout_s:g} s")
        return _Aggregator(endpoint, process)

    async def _spawn(self, command: Sequence[str], folder: Path, log: Path) -> asyncio.subprocess.Process:
        with log.open("ab") as output:
            child = await asyncio.create_subprocess_exec(
                *command,
                cwd=folder,
                env=_environment(folder),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        self._children[child.pid] = child
        return child

    async def _end(self, project_id: str) -> None:
        """End what runs of the project. The endpoint goes first, so that no new request is sent there."""
        aggregator = self._aggregators.pop(project_id, None)
        if aggregator is None:
            return
        await self._end_processes([*aggregator.serverapps.values(), aggregator.superlink])
        self._record(project_id).unlink(missing_ok=True)

    async def _end_processes(self, processes: Sequence[_Process]) -> None:
        for process in processes:
            if process.alive():
                process.signal_group(signal.SIGTERM)
        for process in processes:
            try:
                async with asyncio.timeout(self._stop_timeout_s):
                    await self._ended(process)
            except TimeoutError:
                process.signal_group(signal.SIGKILL)
                await self._ended(process)
            # Its leader is gone; whatever it started is still in the group.
            process.signal_group(signal.SIGKILL)
            self._children.pop(process.pid, None)

    async def _ended(self, process: _Process) -> None:
        child = self._children.get(process.pid)
        if child is not None:
            await child.wait()
        while process.alive():  # noqa: ASYNC110 - started by an earlier service: nobody tells us of its end
            await asyncio.sleep(_PROBE_S)

    def _record(self, project_id: str) -> Path:
        return self._folder(project_id) / "processes.json"

    def _remember(self, project_id: str) -> None:
        aggregator = self._aggregators[project_id]
        record = {
            "port": aggregator.endpoint.port,
            "superlink": [aggregator.superlink.pid, aggregator.superlink.started],
            "serverapps": {run: [process.pid, process.started] for run, process in aggregator.serverapps.items()},
        }
        path = self._record(project_id)
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(record))
        partial.replace(path)

    def _find_running(self) -> dict[str, _Aggregator]:
        """The aggregators that an earlier service left running."""
        found = {}
        for path in self._projects.glob("*/processes.json"):
            aggregator = _recorded(json.loads(path.read_text()))
            if aggregator.superlink.alive():
                found[path.parent.name] = aggregator
            else:
                for process in aggregator.serverapps.values():
                    if process.alive():
                        process.signal_group(signal.SIGKILL)
                path.unlink()
        return found


def _recorded(record: dict[str, Any]) -> _Aggregator:
    return _Aggregator(
        Endpoint(HOST, record["port"]),
        _Process(*record["superlink"]),
        {run: _Process(*process) for run, process in record["serverapps"].items()},
    )


def _environment(folder: Path) -> dict[str, str]:
    kept = {name: os.environ[name] for name in _KEPT_ENVIRONMENT if name in os.environ}
    return kept | environment(str(folder))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])
