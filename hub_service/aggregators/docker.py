"""Aggregators in containers: what a project's owner wrote gets nothing of the service, the Hub or another project.

A project's SuperLink has a container without any network but loopback; a run's ServerApp has one in the same network
namespace. The two reach each other and nobody else, so there is no bridge, no firewall rule, no name and no port to
look after. The service reaches the SuperLink by a Unix socket in a folder that both see: the service and the engine
must share a file system, with the state folder under the same path.

    <state>/projects/<project id>/
        superlink/          the SuperLink's only: node-ids.json, flower/, one socket for each start
        superlink.log
        runs/<run id>/      that run's ServerApp's only: plan.json  events.jsonl  model.safetensors
                            serverapp.log, which it cannot write

Containers outlive the service. What there is and whose it is stands in the engine alone, as labels on the containers;
the next service with the same state folder finds them. Logs are the engine's, limited in size, until a container has
ended; then they are written to the files above, with a last line that says what ended a ServerApp that went too far.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import docker
from docker.errors import APIError, DockerException, ImageNotFound, NotFound
from docker.models.containers import Container
from docker.tls import TLSConfig
from docker.types import LogConfig, Mount, Ulimit

from hub_service.aggregators.base import AggregatorBackend, Endpoint, Limits, ServerAppSpec
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
from hub_service.aggregators.serverapp_log import LogPiece, piece_of_bytes
from hub_service.domain.clock import Clock, NewId
from hub_service.domain.errors import Unavailable

log = logging.getLogger(__name__)

SUPERLINK_COMMAND = ("python", "-m", SUPERLINK_MODULE)
SERVERAPP_COMMAND = ("python", "-m", SERVERAPP_MODULE)

LABEL = "org.notebook-federator."
INSTANCE, PROJECT, ROLE, RUN = LABEL + "instance", LABEL + "project", LABEL + "role", LABEL + "run"
SOCKET, DEADLINE = LABEL + "socket", LABEL + "deadline"
SUPERLINK, SERVERAPP = "superlink", "serverapp"

UNPRIVILEGED = 10001
"""The containers' user and group where the service is root's."""

# Inside the containers; each SuperLink has a loopback of its own, so one port does for all.
_HOST, _PORT = "127.0.0.1", 9091
_SUPERLINK_HOME, _RUN_HOME = "/superlink", "/run-folder"

_PROCESSES = 512
_OPEN_FILES = 4096
_TMP_BYTES = 256 * 1024**2
_CPU_PERIOD_US = 100_000
_LOG_OPTIONS = {"max-size": "1m", "max-file": "2"}
_BLOCK = 4096  # bytes: an empty file counts as this much, since inodes run out too

_OLDEST_API = "1.40"  # Docker 19.03
_CALL_TIMEOUT_S = 30
_THREADS = 4
_LOOK_S, _LONGEST_PAUSE_S = 0.5, 30.0  # between two looks at a container
_RETRY_S = 5.0

_Result = TypeVar("_Result")


@dataclass(slots=True)
class _ServerApp:
    """A run's container, by its id."""

    container: str
    deadline: datetime
    next_look: float = 0.0  # by time.monotonic
    exit_status: int | None = None


@dataclass(slots=True)
class _Aggregator:
    """A project's containers, by their ids."""

    superlink: str
    endpoint: Endpoint
    serverapps: dict[str, _ServerApp] = field(default_factory=dict)  # by run id


class DockerAggregators(AggregatorBackend):
    """One SuperLink's container for each project, and one ServerApp's for each run.

    Every method but `endpoint` and `run_folder` raises Unavailable where the engine does not answer or refuses, except
    `serverapp_exit` and `stop`: an engine that is restarted ends no run, and what it did not remove is removed later.

    Args:
        state_dir: the service's folder; see the module's text for what lies below it. Its path tells the containers of
            services that share an engine apart.
        engine: the engine's address, unix:///path or tcp://host:port.
        tls_dir: a folder with ca.pem, cert.pem and key.pem for an engine that asks for TLS.
        image: what both containers run; it is on the engine already.
        limits: hold for each container; a ServerApp that goes over one is ended, and the last line of its log says why.
        start_timeout_s: how long a SuperLink may take to answer, in seconds.
        stop_timeout_s: how long a container may take to end before it is killed, in seconds.
    """

    def __init__(
        self,
        state_dir: Path,
        *,
        engine: str,
        tls_dir: Path | None,
        image: str,
        limits: Limits,
        clock: Clock,
        new_id: NewId,
        superlink_command: Sequence[str] = SUPERLINK_COMMAND,
        serverapp_command: Sequence[str] = SERVERAPP_COMMAND,
        start_timeout_s: float = 60.0,
        stop_timeout_s: int = 5,
    ) -> None:
        self._projects = state_dir.absolute() / "projects"
        self._instance = instance_of(state_dir)
        self._engine = _Engine(engine, tls_dir)
        self._image = image
        self._limits = limits
        self._clock = clock
        self._new_id = new_id
        self._superlink_command = tuple(superlink_command)
        self._serverapp_command = tuple(serverapp_command)
        self._start_timeout_s = start_timeout_s
        self._stop_timeout_s = stop_timeout_s
        self._locks: dict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._starts = asyncio.Semaphore(STARTS_AT_ONCE)
        self._adopting = asyncio.Lock()
        self._adopted = False
        self._aggregators: dict[str, _Aggregator] = {}
        self._later: dict[str, asyncio.Task[None]] = {}  # by project: the removal that the engine did not do at once

    def warm_up(self) -> None:
        """A container takes what it needs from its image: there is nothing to begin."""

    async def start(self, project_id: str, run_id: str | None = None) -> Endpoint:
        async with self._locks[project_id], self._starts:
            await self._adopt()
            aggregator = self._aggregators.get(project_id)
            if aggregator is None or not await self._engine.call(partial(_runs, aggregator.superlink)):
                await self._end(project_id)
                aggregator = await self._launch_superlink(project_id, run_id)
            if run_id is not None:
                await self._launch_serverapp(project_id, run_id, aggregator)
            failure = await self._failure_to_come_up(aggregator)
            if failure:
                await self._end(project_id)
                raise not_started(self._folder(project_id) / SUPERLINK_LOG, failure)
            self._aggregators[project_id] = aggregator
            return aggregator.endpoint

    async def start_serverapp(self, project_id: str, spec: ServerAppSpec) -> None:
        async with self._locks[project_id]:
            await self._adopt()
            aggregator = self._aggregators.get(project_id)
            if aggregator is None:
                raise Unavailable("The project's aggregator does not run.", "Start the run again.")
            await self._launch_serverapp(project_id, spec.run_id, aggregator)
            try:
                Plan.of(spec, aggregator.endpoint.address).write(self.run_folder(project_id, spec.run_id))
            except OSError as error:
                raise disk_refuses(error) from error

    async def serverapp_exit(self, project_id: str, run_id: str) -> int | None:
        await self._adopt()
        aggregator = self._aggregators.get(project_id)
        serverapp = aggregator.serverapps.get(run_id) if aggregator else None
        if aggregator is None or serverapp is None:
            return LOST
        started = time.monotonic()
        if serverapp.exit_status is None and started >= serverapp.next_look:
            serverapp.next_look = float("inf")
            try:
                serverapp.exit_status = await self._engine.call(
                    partial(self._look, aggregator, serverapp, self.run_folder(project_id, run_id))
                )
            except Unavailable as error:
                log.warning("run %s goes on unwatched: %s", run_id, error.debug or error.message)
            finally:
                ended = time.monotonic()
                # A run folder with very many files takes long to count: that must not keep the threads busy.
                serverapp.next_look = ended + min(max(_LOOK_S, 10 * (ended - started)), _LONGEST_PAUSE_S)
        return serverapp.exit_status

    async def serverapp_log(self, project_id: str, run_id: str, after: int) -> LogPiece:
        aggregator = self._aggregators.get(project_id)
        serverapp = aggregator.serverapps.get(run_id) if aggregator else None
        if serverapp is None or serverapp.exit_status is not None:
            return await super().serverapp_log(project_id, run_id, after)
        try:
            return piece_of_bytes(await self._engine.call(partial(_running_log, serverapp.container)), after)
        except Unavailable as error:
            log.warning("run %s: no log: %s", run_id, error.debug or error.message)
            return LogPiece()

    async def stop(self, project_id: str) -> None:
        async with self._locks[project_id]:
            try:
                await self._adopt()
                await self._end(project_id)
            except Unavailable as error:
                log.warning("project %s: removed later: %s", project_id, error.debug or error.message)
                self._aggregators.pop(project_id, None)
                if project_id not in self._later:
                    self._later[project_id] = asyncio.create_task(self._end_later(project_id))

    async def check(self) -> None:
        await self._engine.call(lambda client: client.images.get(self._image))

    async def running(self) -> Sequence[str]:
        await self._adopt()
        try:
            alive = await self._engine.call(self._live_superlinks)
        except Unavailable as error:
            log.warning("taking all aggregators for running: %s", error.debug or error.message)
            return list(self._aggregators)
        return [project for project, aggregator in self._aggregators.items() if aggregator.superlink in alive]

    def endpoint(self, project_id: str) -> Endpoint | None:
        aggregator = self._aggregators.get(project_id)
        return aggregator.endpoint if aggregator else None

    def project_folder(self, project_id: str) -> Path:
        return self._folder(project_id)

    def run_folder(self, project_id: str, run_id: str) -> Path:
        return self._folder(project_id) / "runs" / run_id

    def newest_run_folder(self, project_id: str) -> Path | None:
        aggregator = self._aggregators.get(project_id)
        newest = next(reversed(aggregator.serverapps), None) if aggregator else None
        return self.run_folder(project_id, newest) if newest else None

    async def close(self) -> None:
        for task in self._later.values():
            task.cancel()
        await asyncio.gather(*self._later.values(), return_exceptions=True)
        self._engine.close()

    def _folder(self, project_id: str) -> Path:
        return self._projects / project_id

    # --- starting

    async def _launch_superlink(self, project_id: str, run_id: str | None) -> _Aggregator:
        folder = self._folder(project_id)
        endpoint = Endpoint(_HOST, _PORT, folder / SUPERLINK / f"{self._new_id()}.sock")
        _make_for_container(folder / SUPERLINK)
        _empty_log(folder / SUPERLINK_LOG)
        settings = self._superlink(project_id, endpoint, run_id)
        return _Aggregator(await self._engine.call(partial(_launch, settings)), endpoint)

    async def _launch_serverapp(self, project_id: str, run_id: str, aggregator: _Aggregator) -> None:
        """Start the run's ServerApp where it was not started yet. It waits for its plan."""
        if run_id in aggregator.serverapps:
            return
        deadline = self._clock() + timedelta(hours=self._limits.hours)
        settings = self._serverapp(project_id, run_id, aggregator, deadline)
        aggregator.serverapps[run_id] = _ServerApp(await self._engine.call(partial(_launch, settings)), deadline)

    async def _failure_to_come_up(self, aggregator: _Aggregator) -> str:
        """Wait until the SuperLink answers; return why it does not, or ""."""
        answered = asyncio.ensure_future(answers(aggregator.endpoint))
        try:
            async with asyncio.timeout(self._start_timeout_s):
                while not answered.done():
                    await asyncio.wait({answered}, timeout=_LOOK_S)
                    if not answered.done() and not await self._engine.call(partial(_runs, aggregator.superlink)):
                        return "it ended at once"
        except TimeoutError:
            return f"it did not answer within {self._start_timeout_s:g} s"
        finally:
            answered.cancel()
            await asyncio.wait({answered})
        return ""

    def _superlink(self, project_id: str, endpoint: Endpoint, run_id: str | None) -> dict[str, Any]:
        """What the engine is asked to make for a project's SuperLink."""
        assert endpoint.socket is not None  # noqa: S101 - ours always has one
        arguments = superlink_arguments(endpoint.host, endpoint.port, f"{_SUPERLINK_HOME}/{NODE_IDS}", run_id)
        return self._container(
            project_id,
            SUPERLINK,
            project_id,
            labels={SOCKET: endpoint.socket.name},
            entrypoint=self._superlink_command,
            command=["--unix-socket", f"{_SUPERLINK_HOME}/{endpoint.socket.name}", *arguments],
            home=_SUPERLINK_HOME,
            mounts=[Mount(_SUPERLINK_HOME, str(endpoint.socket.parent), type="bind")],
            network_mode="none",
            run_id=run_id,
        )

    def _serverapp(self, project_id: str, run_id: str, aggregator: _Aggregator, deadline: datetime) -> dict[str, Any]:
        """What the engine is asked to make for a run's ServerApp. Makes the run folder."""
        folder = self.run_folder(project_id, run_id)
        _make_for_container(folder)
        _empty_log(folder / SERVERAPP_LOG)
        try:
            Plan.forget(folder)
        except OSError as error:
            raise disk_refuses(error) from error
        return self._container(
            project_id,
            SERVERAPP,
            run_id,
            labels={RUN: run_id, DEADLINE: deadline.isoformat()},
            entrypoint=self._serverapp_command,
            command=serverapp_arguments(_RUN_HOME),
            home=_RUN_HOME,
            mounts=[
                Mount(_RUN_HOME, str(folder), type="bind"),
                # The service writes the log and believes it: no link may take its place.
                Mount(f"{_RUN_HOME}/{SERVERAPP_LOG}", str(folder / SERVERAPP_LOG), type="bind", read_only=True),
            ],
            network_mode=f"container:{aggregator.superlink}",
            run_id=run_id,
        )

    def _container(
        self,
        project_id: str,
        role: str,
        name: str,
        *,
        labels: Mapping[str, str],
        entrypoint: Sequence[str],
        command: Sequence[str],
        home: str,
        mounts: Sequence[Mount],
        network_mode: str,
        run_id: str | None,
    ) -> dict[str, Any]:
        """What both have in common: whose they are, and that they may do as little as possible."""
        limits = self._limits
        uid, gid = _user()
        return {
            "image": self._image,
            "name": f"nf-{self._instance}-{role}-{name}",
            "labels": {INSTANCE: self._instance, PROJECT: project_id, ROLE: role, **labels},
            "entrypoint": list(entrypoint),
            "command": list(command),
            "environment": environment(home, project_id, run_id) | {"OMP_NUM_THREADS": str(max(1, round(limits.cpus)))},
            "working_dir": home,
            "user": f"{uid}:{gid}",
            "mounts": list(mounts),
            "network_mode": network_mode,
            "read_only": True,
            "tmpfs": {"/tmp": f"size={_TMP_BYTES},mode=1777"},  # noqa: S108 - the container's own
            "cap_drop": ["ALL"],
            "security_opt": ["no-new-privileges"],
            "init": True,
            "pids_limit": _PROCESSES,
            "mem_limit": limits.memory_bytes,
            "memswap_limit": limits.memory_bytes,
            "cpu_period": _CPU_PERIOD_US,
            "cpu_quota": int(limits.cpus * _CPU_PERIOD_US),
            "ulimits": [
                Ulimit(name="nofile", soft=_OPEN_FILES, hard=_OPEN_FILES),
                Ulimit(name="fsize", soft=limits.disk_bytes, hard=limits.disk_bytes),
                Ulimit(name="core", soft=0, hard=0),
            ],
            "log_config": LogConfig(type=LogConfig.types.JSON, config=_LOG_OPTIONS),
            "restart_policy": {"Name": "no"},
        }

    # --- looking, in one of the engine's threads

    def _look(
        self, aggregator: _Aggregator, serverapp: _ServerApp, folder: Path, client: docker.DockerClient
    ) -> int | None:
        """The ServerApp's exit status, or None while it runs within its limits. One that does not is killed.

        One whose SuperLink is gone is as good as lost.
        """
        try:
            container = client.containers.get(serverapp.container)
            excess = self._excess(serverapp, folder) if _is_running(container) else ""
            if excess:
                container.kill()
                container.wait(timeout=_CALL_TIMEOUT_S)
                container.reload()
        except NotFound:
            return LOST
        if _is_running(container):
            return None if _runs(aggregator.superlink, client) else LOST
        _save_log(container, folder / SERVERAPP_LOG, excess)
        return LOST if container.status == "created" else int(container.attrs["State"]["ExitCode"])

    def _excess(self, serverapp: _ServerApp, folder: Path) -> str:
        """Which limit a running ServerApp has gone over, as the last line of its log; "" if none."""
        if self._clock() > serverapp.deadline:
            return f"It ran for more than {self._limits.hours:g} hours and was ended."
        try:
            size = _size(folder, enough=self._limits.disk_bytes)
        except OSError as error:
            return f"It made a folder that cannot be counted ({error.strerror}) and was ended."
        if size > self._limits.disk_bytes:
            return f"It wrote more than {_gigabytes(self._limits.disk_bytes)} to its run folder and was ended."
        return ""

    def _live_superlinks(self, client: docker.DockerClient) -> frozenset[str]:
        labels = [f"{INSTANCE}={self._instance}", f"{ROLE}={SUPERLINK}"]
        found = client.containers.list(filters={"label": labels, "status": "running"}, sparse=True)
        return frozenset(container.id for container in found)

    # --- finding what an earlier service left

    async def _adopt(self) -> None:
        async with self._adopting:
            if not self._adopted:
                self._aggregators = await self._engine.call(self._find)
                self._adopted = True

    def _find(self, client: docker.DockerClient) -> dict[str, _Aggregator]:
        """The aggregators whose SuperLink runs. What is left of others is removed."""
        of_project: dict[str, list[Container]] = defaultdict(list)
        for container in self._ours(client):
            of_project[container.labels[PROJECT]].append(container)
        found = {}
        for project_id, containers in of_project.items():
            superlink = next((one for one in containers if one.labels[ROLE] == SUPERLINK and _is_running(one)), None)
            if superlink is None:
                self._remove_all(project_id, client)
                continue
            socket = self._folder(project_id) / SUPERLINK / superlink.labels[SOCKET]
            serverapps = {
                one.labels[RUN]: _ServerApp(one.id, datetime.fromisoformat(one.labels[DEADLINE]))
                for one in containers
                if one.labels[ROLE] == SERVERAPP
            }
            found[project_id] = _Aggregator(superlink.id, Endpoint(_HOST, _PORT, socket), serverapps)
        return found

    def _ours(self, client: docker.DockerClient, *labels: str) -> Sequence[Container]:
        wanted = [f"{INSTANCE}={self._instance}", *labels]
        found: Sequence[Container] = client.containers.list(all=True, filters={"label": wanted}, ignore_removed=True)
        return found

    # --- ending

    async def _end(self, project_id: str) -> None:
        """Remove what there is of the project. The endpoint goes first, so that no new request is sent there."""
        self._aggregators.pop(project_id, None)
        if later := self._later.pop(project_id, None):
            later.cancel()
        await self._engine.call(partial(self._remove_all, project_id))

    async def _end_later(self, project_id: str) -> None:
        """Do what the engine did not do when it was asked. A start does it too, and ends this."""
        while True:
            await asyncio.sleep(_RETRY_S)
            async with self._locks[project_id]:
                try:
                    await self._engine.call(partial(self._remove_all, project_id))
                except Unavailable:
                    continue
                self._later.pop(project_id, None)
                return

    def _remove_all(self, project_id: str, client: docker.DockerClient) -> None:
        containers = self._ours(client, f"{PROJECT}={project_id}")
        with ThreadPoolExecutor(max(1, len(containers))) as each:
            list(each.map(self._remove, containers))
        for socket in (self._folder(project_id) / SUPERLINK).glob("*.sock"):
            socket.unlink()

    def _remove(self, container: Container) -> None:
        """Let it end, keep its log, and leave nothing of it."""
        project_id = container.labels[PROJECT]
        if container.labels[ROLE] == SUPERLINK:
            log_file = self._folder(project_id) / SUPERLINK_LOG
        else:
            log_file = self.run_folder(project_id, container.labels[RUN]) / SERVERAPP_LOG
        try:
            container.stop(timeout=self._stop_timeout_s)
            _save_log(container, log_file)
            container.remove(v=True, force=True)
        except NotFound:
            return


def instance_of(state_dir: Path) -> str:
    """What the containers of the service with this state folder are labelled with."""
    return hashlib.sha256(bytes(state_dir.absolute())).hexdigest()[:16]


class _Engine:
    """The engine's client. It blocks, so it is called in threads of its own, never on the event loop."""

    def __init__(self, address: str, tls_dir: Path | None) -> None:
        self._address = address
        self._tls_dir = tls_dir
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="aggregators' engine")
        self._connecting = asyncio.Lock()
        self._client: docker.DockerClient | None = None

    async def call(self, work: Callable[[docker.DockerClient], _Result]) -> _Result:
        """Do the work in a thread. A caller that is cancelled waits for the thread: what it does is done or not begun.

        Raises Unavailable, with the reason, where the engine does not answer or refuses.
        """
        async with self._connecting:
            if self._client is None:
                self._client = await self._in_thread(self._connect)
        return await self._in_thread(partial(work, self._client))

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)
        if self._client is not None:
            self._client.close()

    async def _in_thread(self, work: Callable[[], _Result]) -> _Result:
        working = asyncio.get_running_loop().run_in_executor(self._threads, work)
        try:
            return await asyncio.shield(working)
        except asyncio.CancelledError:
            await asyncio.wait({working})
            raise
        except ImageNotFound as error:
            raise _without_image(error) from error
        except APIError as error:
            raise _refused(error) from error
        except (DockerException, OSError) as error:  # what requests raises is an OSError
            raise Unavailable(
                "The engine that aggregators run on does not answer.",
                f"Ask the Hub's administrators whether Docker runs at {self._address}.",
                debug=f"{self._address}: {error}",
            ) from error

    def _connect(self) -> docker.DockerClient:
        """A client that speaks the engine's version of the API."""
        asking = self._client_of(_OLDEST_API)
        try:
            version = asking.api.version(api_version=False)["ApiVersion"]
        finally:
            asking.close()
        return self._client_of(version)

    def _client_of(self, version: str) -> docker.DockerClient:
        client = docker.DockerClient(
            base_url=self._address, version=version, timeout=_CALL_TIMEOUT_S, tls=self._tls() or False
        )
        # REQUESTS_CA_BUNDLE in the environment would take the place of the engine's own authority.
        client.api.trust_env = False
        return client

    def _tls(self) -> TLSConfig | None:
        if self._tls_dir is None:
            return None
        ca, cert, key = (str(self._tls_dir / name) for name in ("ca.pem", "cert.pem", "key.pem"))
        return TLSConfig(ca_cert=ca, client_cert=(cert, key), verify=True)


def _launch(settings: dict[str, Any], client: docker.DockerClient) -> str:
    """Make and start a container; return its id. One that does not start is removed."""
    container = client.containers.create(**settings)
    try:
        container.start()
    except APIError:
        container.remove(v=True, force=True)
        raise
    return str(container.id)


def _runs(container_id: str, client: docker.DockerClient) -> bool:
    try:
        return _is_running(client.containers.get(container_id))
    except NotFound:
        return False


def _is_running(container: Container) -> bool:
    return container.status not in ("created", "exited", "dead")


def _user() -> tuple[int, int]:
    """Whom the containers run as: the service's account, which owns their folders; for root somebody without rights."""
    return (os.geteuid(), os.getegid()) if os.geteuid() else (UNPRIVILEGED, UNPRIVILEGED)


def _make_for_container(folder: Path) -> None:
    """Make the folder and hand it to the containers' user. Raises Unavailable where the disk refuses."""
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        os.chown(folder, *_user())
    except OSError as error:
        raise disk_refuses(error) from error


def _empty_log(path: Path) -> None:
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600))
    except OSError as error:
        raise disk_refuses(error) from error


def _running_log(container: str, client: docker.DockerClient) -> bytes:
    """What the engine keeps of a container's output, which `_LOG_OPTIONS` bound."""
    try:
        return bytes(client.containers.get(container).logs())
    except NotFound:
        return b""


def _save_log(container: Container, path: Path, last_line: str = "") -> None:
    """Write an ended container's log into its empty file. A file that has it already, with its last line, is kept.

    A disk that refuses costs the log: it must not keep the container.
    """
    if container.attrs["State"]["OOMKilled"]:
        last_line = (
            f"It needed more than {_gigabytes(container.attrs['HostConfig']['Memory'])} of memory and was ended."
        )
    lines = [*container.logs().splitlines(), last_line.encode()]
    try:
        with open(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600), "r+b") as file:
            if not file.read(1):
                file.write(b"".join(line + b"\n" for line in lines if line))
    except OSError as error:
        log.warning("no %s: %s", path, error.strerror)


def _size(folder: Path, enough: int) -> int:
    """Bytes that a folder takes on disk while somebody writes to it. Counts no further than `enough`.

    What was deleted while it is open is not counted; only quotas of the file system see that.
    Raises OSError for a folder that its owner has closed or nested too deep to be counted.
    """
    size = 0
    folders = [str(folder)]
    while folders and size <= enough:
        try:
            with os.scandir(folders.pop()) as entries:
                for entry in entries:
                    size += max(_BLOCK, entry.stat(follow_symlinks=False).st_blocks * 512)
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(entry.path)
        except (FileNotFoundError, NotADirectoryError):  # gone since it was listed
            continue
    return size


def _gigabytes(size: int) -> str:
    return f"{size / 1024**3:.3g} GB"


def _without_image(error: ImageNotFound) -> Unavailable:
    return Unavailable(
        "The engine that aggregators run on does not have their image.",
        f"Ask the Hub's administrators to bring it there, with `docker pull` or `docker load`: {error.explanation}",
        debug=str(error),
    )


def _refused(error: APIError) -> Unavailable:
    explanation = str(error.explanation)
    if "no space left on device" in explanation:
        return Unavailable(
            "The engine that aggregators run on has no room left on its disk.",
            "Ask the Hub's administrators to make room there.",
            debug=str(error),
        )
    return Unavailable(
        "The engine that aggregators run on refused.",
        f"Start the run again; if it fails again, show this to the Hub's administrators: {explanation}",
        debug=str(error),
    )
