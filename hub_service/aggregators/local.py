"""Aggregators as local processes: the embedded default. It isolates projects by process and folder, not by account.

    <state>/projects/<project id>/
        node-ids.json  superlink.log    the SuperLink's memory of its nodes' ids, and its log
        processes.json                  what runs now: pids, start times and the port, to find it after a restart
        flower/                         FLWR_HOME of both processes
        runs/<run id>/                  plan.json  events.jsonl  model.safetensors  serverapp.log
    <state>/template/template.log       of the process that they are forked from

The processes outlive the service: a run goes on while the service restarts, and the next service finds it.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import socket
import sys
from collections import defaultdict
from collections.abc import Awaitable, Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from hub_service.aggregators.base import AggregatorBackend, Endpoint, ServerAppSpec
from hub_service.aggregators.events import SERVERAPP_LOG
from hub_service.aggregators.plan import Plan
from hub_service.aggregators.processes import (
    LOST,
    NODE_IDS,
    SERVERAPP_MODULE,
    STARTS_AT_ONCE,
    SUPERLINK_LOG,
    SUPERLINK_MODULE,
    answers,
    disk_refuses,
    environment,
    not_started,
    serverapp_arguments,
    superlink_arguments,
)
from hub_service.aggregators.template import TEMPLATE_COMMAND, TEMPLATE_MODULE, Order, Template
from hub_service.domain.errors import Unavailable

log = logging.getLogger(__name__)

HOST = "127.0.0.1"
SUPERLINK_COMMAND = (sys.executable, "-m", SUPERLINK_MODULE)
SERVERAPP_COMMAND = (sys.executable, "-m", SERVERAPP_MODULE)

# In a command line; a fork's is its template's.
_MODULES = frozenset((SUPERLINK_MODULE, SERVERAPP_MODULE, TEMPLATE_MODULE))
_PORT_ATTEMPTS = 3
_PROBE_S = 0.05
# What a process needs of the service's environment. Everything else, JUPYTERHUB_* above all, is a secret or noise.
_KEPT_ENVIRONMENT = ("PATH", "LANG", "LC_ALL", "TZ", "TMPDIR", "LD_LIBRARY_PATH", "SYSTEMROOT")
# Averaging is bound by memory, and many aggregators share the machine. With more, a template could not be forked.
_THREADS = "1"


@dataclass(frozen=True, slots=True)
class _Process:
    """A process known by id and start time, since ids are used again. Leads its own process group."""

    pid: int
    started: float

    @classmethod
    def of(cls, pid: int) -> _Process:
        """The process that was just started."""
        try:
            return cls(pid, psutil.Process(pid).create_time())
        except psutil.NoSuchProcess:  # it has ended already
            return cls(pid, 0.0)

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
    answers: bool  # has done so once
    serverapps: dict[str, _Process] = field(default_factory=dict)  # by run id

    @property
    def processes(self) -> list[_Process]:
        return [*self.serverapps.values(), self.superlink]


class LocalAggregators(AggregatorBackend):
    """One SuperLink on loopback for each project, and one ServerApp process for each run.

    Args:
        state_dir: the service's folder; see the module's text for what lies below it.
        template_command: starts the process that the others are forked from. None: there is none.
        superlink_command, serverapp_command: start the two where there is no template.
        start_timeout_s: how long a SuperLink may take to answer, in seconds.
        stop_timeout_s: how long a process may take to end before it is killed, in seconds.
    """

    def __init__(
        self,
        state_dir: Path,
        *,
        template_command: Sequence[str] | None = TEMPLATE_COMMAND,
        superlink_command: Sequence[str] = SUPERLINK_COMMAND,
        serverapp_command: Sequence[str] = SERVERAPP_COMMAND,
        start_timeout_s: float = 60.0,
        stop_timeout_s: float = 5.0,
    ) -> None:
        self._projects = state_dir.absolute() / "projects"
        self._commands = {SUPERLINK_MODULE: tuple(superlink_command), SERVERAPP_MODULE: tuple(serverapp_command)}
        self._start_timeout_s = start_timeout_s
        self._stop_timeout_s = stop_timeout_s
        self._template = _template(template_command, state_dir.absolute() / "template") if template_command else None
        self._locks: dict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._starts = asyncio.Semaphore(STARTS_AT_ONCE)
        # By pid, what waits for the exit status; of processes that this service started.
        self._exits: dict[int, Callable[[], Awaitable[int]]] = {}
        self._aggregators = self._find_running()

    def warm_up(self) -> None:
        if self._template is not None:
            self._template.warm_up()

    async def start(self, project_id: str, run_id: str | None = None) -> Endpoint:
        async with self._locks[project_id], self._starts:
            for _ in range(_PORT_ATTEMPTS):
                aggregator = self._aggregators.get(project_id)
                if aggregator is None or not aggregator.superlink.alive():
                    aggregator = await self._launch_superlink(project_id, run_id)
                try:
                    if run_id is not None:
                        await self._launch_serverapp(project_id, run_id, aggregator)
                    await self._until_it_answers(project_id, aggregator)
                finally:
                    if not aggregator.answers:
                        await self._end(project_id)
                if aggregator.answers:
                    return aggregator.endpoint
            raise not_started(self._folder(project_id) / SUPERLINK_LOG, "it ended at once")

    async def start_serverapp(self, project_id: str, spec: ServerAppSpec) -> None:
        async with self._locks[project_id]:
            aggregator = self._aggregators.get(project_id)
            if aggregator is None:
                raise Unavailable("The project's aggregator does not run.", "Start the run again.")
            run_folder = self.run_folder(project_id, spec.run_id)
            await self._launch_serverapp(project_id, spec.run_id, aggregator)
            with _writing():
                Plan.of(spec, aggregator.endpoint.address).write(run_folder)

    async def serverapp_exit(self, project_id: str, run_id: str) -> int | None:
        aggregator = self._aggregators.get(project_id)
        process = aggregator.serverapps.get(run_id) if aggregator else None
        if aggregator is None or process is None:
            return LOST
        if process.alive():
            return None if aggregator.superlink.alive() else LOST
        exit_status = self._exits.get(process.pid)
        return LOST if exit_status is None else await exit_status()

    async def stop(self, project_id: str) -> None:
        async with self._locks[project_id]:
            await self._end(project_id)

    async def check(self) -> None:
        """Processes of this machine need nothing that could be away."""

    async def running(self) -> Sequence[str]:
        return [project for project, aggregator in self._aggregators.items() if aggregator.superlink.alive()]

    def endpoint(self, project_id: str) -> Endpoint | None:
        aggregator = self._aggregators.get(project_id)
        return aggregator.endpoint if aggregator and aggregator.answers else None

    def project_folder(self, project_id: str) -> Path:
        return self._folder(project_id)

    def run_folder(self, project_id: str, run_id: str) -> Path:
        return self._folder(project_id) / "runs" / run_id

    def newest_run_folder(self, project_id: str) -> Path | None:
        aggregator = self._aggregators.get(project_id)
        newest = next(reversed(aggregator.serverapps), None) if aggregator else None
        return self.run_folder(project_id, newest) if newest else None

    async def close(self) -> None:
        if self._template is not None:
            await self._template.close()

    def _folder(self, project_id: str) -> Path:
        return self._projects / project_id

    async def _launch_superlink(self, project_id: str, run_id: str | None) -> _Aggregator:
        await self._end(project_id)
        folder = self._folder(project_id)
        with _writing():
            folder.mkdir(parents=True, exist_ok=True)
        endpoint = Endpoint(HOST, _free_port())
        arguments = superlink_arguments(endpoint.host, endpoint.port, str(folder / NODE_IDS), run_id)
        log_file = folder / SUPERLINK_LOG
        try:
            process = await self._spawn(SUPERLINK_MODULE, arguments, folder, log_file, run_id)
        except OSError as error:
            raise not_started(log_file, f"{error.strerror}: {self._commands[SUPERLINK_MODULE][0]}") from error
        aggregator = _Aggregator(endpoint, process, answers=False)
        self._aggregators[project_id] = aggregator
        try:
            self._remember(project_id)
        except Unavailable:
            await self._end(project_id)  # the next service would not find it
            raise
        return aggregator

    async def _launch_serverapp(self, project_id: str, run_id: str, aggregator: _Aggregator) -> None:
        """Start the run's ServerApp where it was not started yet. It waits for its plan."""
        if run_id in aggregator.serverapps:
            return
        run_folder = self.run_folder(project_id, run_id)
        with _writing():
            run_folder.mkdir(parents=True, exist_ok=True)
            Plan.forget(run_folder)
        arguments = serverapp_arguments(str(run_folder))
        log_file = run_folder / SERVERAPP_LOG
        try:
            process = await self._spawn(SERVERAPP_MODULE, arguments, self._folder(project_id), log_file, run_id)
        except OSError as error:
            raise not_started(log_file, f"{error.strerror}: {self._commands[SERVERAPP_MODULE][0]}") from error
        aggregator.serverapps[run_id] = process
        try:
            self._remember(project_id)
        except Unavailable:
            del aggregator.serverapps[run_id]
            await self._end_processes([process])  # the next service would start another beside it
            raise

    async def _until_it_answers(self, project_id: str, aggregator: _Aggregator) -> None:
        """Wait for the SuperLink's API. Returns too where it has ended by itself, perhaps because its port was taken.

        Raises Unavailable where it does neither in time.
        """
        if aggregator.answers:
            return
        ended = asyncio.ensure_future(self._ended(aggregator.superlink))
        answered = asyncio.ensure_future(answers(aggregator.endpoint))
        try:
            done, _ = await asyncio.wait(
                (ended, answered), timeout=self._start_timeout_s, return_when=asyncio.FIRST_COMPLETED
            )
        finally:
            ended.cancel()
            answered.cancel()
        if answered in done and ended not in done:
            aggregator.answers = True
            try:
                self._remember(project_id)
            except Unavailable:
                aggregator.answers = False
                raise
        if not done:
            reason = f"it did not answer within {self._start_timeout_s:g} s"
            raise not_started(self._folder(project_id) / SUPERLINK_LOG, reason)

    async def _spawn(
        self, module: str, arguments: Sequence[str], folder: Path, log_file: Path, run_id: str | None
    ) -> _Process:
        """Start a process, by the template where there is one. Raises OSError."""
        if self._template is not None:
            order = Order(module, arguments, str(folder), _environment(folder, run_id), str(log_file))
            if (forked := await self._template.fork(order)) is not None:
                self._exits[forked.pid] = forked.wait
                return _Process.of(forked.pid)
        with log_file.open("ab") as output:
            child = await asyncio.create_subprocess_exec(
                *self._commands[module],
                *arguments,
                cwd=folder,
                env=_environment(folder, run_id),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        self._exits[child.pid] = child.wait
        return _Process.of(child.pid)

    async def _end(self, project_id: str) -> None:
        """End what runs of the project. The endpoint goes first, so that no new request is sent there."""
        aggregator = self._aggregators.pop(project_id, None)
        if aggregator is None:
            return
        await self._end_processes(aggregator.processes)
        self._record(project_id).unlink(missing_ok=True)

    async def _end_processes(self, processes: Sequence[_Process]) -> None:
        """End them with all that they have started.

        The id of one that ended unseen may be another's by now, and its group another's group.
        """
        alive = [process for process in processes if process.alive()]
        for process in alive:
            process.signal_group(signal.SIGTERM)
        for process in processes:
            if process not in alive and process.pid not in self._exits and not self._has_left_some(process):
                continue
            try:
                async with asyncio.timeout(self._stop_timeout_s):
                    await self._ended(process)
            except TimeoutError:
                process.signal_group(signal.SIGKILL)
                await self._ended(process)
            # Its leader is gone; whatever it started is still in the group.
            process.signal_group(signal.SIGKILL)
            self._exits.pop(process.pid, None)

    def _has_left_some(self, process: _Process) -> bool:
        """Whether processes that work in our folders are in the group of one that has ended."""
        for one in psutil.process_iter(["cwd"]):
            with suppress(ProcessLookupError):
                ours = one.info["cwd"] and Path(one.info["cwd"]).is_relative_to(self._projects)
                if ours and os.getpgid(one.pid) == process.pid:
                    return True
        return False

    async def _ended(self, process: _Process) -> None:
        exit_status = self._exits.get(process.pid)
        if exit_status is not None:
            await exit_status()
        while process.alive():  # noqa: ASYNC110 - started by an earlier service or template: nobody tells us of its end
            await asyncio.sleep(_PROBE_S)

    def _record(self, project_id: str) -> Path:
        return self._folder(project_id) / "processes.json"

    def _remember(self, project_id: str) -> None:
        """Raises Unavailable where the disk refuses."""
        aggregator = self._aggregators[project_id]
        record = {
            "port": aggregator.endpoint.port,
            "answers": aggregator.answers,
            "superlink": [aggregator.superlink.pid, aggregator.superlink.started],
            "serverapps": {run: [process.pid, process.started] for run, process in aggregator.serverapps.items()},
        }
        path = self._record(project_id)
        partial = path.with_suffix(".partial")
        with _writing():
            partial.write_text(json.dumps(record))
            partial.replace(path)

    def _find_running(self) -> dict[str, _Aggregator]:
        """The aggregators that an earlier service left running."""
        found = {}
        for path in self._projects.glob("*/processes.json"):
            try:
                aggregator = _recorded(json.loads(path.read_text()))
            except (ValueError, KeyError, TypeError) as error:  # a machine that loses power may leave an empty one
                log.warning("%s cannot be read, and counts as absent: %s", path, error)
                path.unlink()
                continue
            if aggregator.superlink.alive():
                found[path.parent.name] = aggregator
            else:
                for process in aggregator.serverapps.values():
                    if process.alive():
                        process.signal_group(signal.SIGKILL)
                path.unlink()
        self._end_unrecorded({one.pid for aggregator in found.values() for one in aggregator.processes})
        return found

    def _end_unrecorded(self, recorded: Collection[int]) -> None:
        """A service that was killed may have started a process and not written it down: it would be started twice."""
        for process in psutil.process_iter(["pid", "cwd", "cmdline"]):
            folder, command = process.info["cwd"], process.info["cmdline"] or ()
            ours = folder and Path(folder).is_relative_to(self._projects) and not _MODULES.isdisjoint(command)
            if ours and process.pid not in recorded and _leads_its_group(process.pid):
                log.warning("process %d in %s was not written down, and is ended", process.pid, folder)
                _Process.of(process.pid).signal_group(signal.SIGKILL)


def _recorded(record: dict[str, Any]) -> _Aggregator:
    return _Aggregator(
        Endpoint(HOST, record["port"]),
        _Process(*record["superlink"]),
        record["answers"],
        {run: _Process(*process) for run, process in record["serverapps"].items()},
    )


@contextmanager
def _writing() -> Iterator[None]:
    """Raises Unavailable where the disk refuses what is done inside."""
    try:
        yield
    except OSError as error:
        raise disk_refuses(error) from error


def _leads_its_group(pid: int) -> bool:
    """Not so what an app has started: it ends with its ServerApp's group."""
    try:
        return os.getpgid(pid) == pid
    except ProcessLookupError:
        return False


def _environment(folder: Path, run_id: str | None = None) -> dict[str, str]:
    kept = {name: os.environ[name] for name in _KEPT_ENVIRONMENT if name in os.environ}
    return kept | environment(str(folder), folder.name, run_id) | {"OMP_NUM_THREADS": _THREADS}


def _template(command: Sequence[str], folder: Path) -> Template:
    return Template(command, environment=_environment(folder), folder=folder)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])
