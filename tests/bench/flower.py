"""Stock Flower of the pinned version: its SuperLink and three SuperNodes, which start a process for each app."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import httpx
from federator.ports import free_port
from flwr.common.serde import user_config_to_proto
from flwr.proto.control_pb2 import ListNodesRequest, ListNodesResponse, StartRunRequest, StartRunResponse
from flwr.proto.fab_pb2 import Fab
from google.protobuf.message import Message

from tests.bench.timings import SiteRounds, Times
from tests.bench.workload import Workload

NAME = f"stock Flower {version('flwr')}"
_PATIENCE_S = 900.0
_LOOK_S = 0.1
_STOP_S = 15.0
_PROTOBUF = "application/protobuf"


class FlowerFailed(Exception):
    """Stock Flower did not do it. The text is for a person."""


@dataclass(frozen=True)
class FlowerRun:
    """Seconds from the request that starts it to the ServerApp's end, and what the sites noted."""

    seconds: float
    sites: SiteRounds


@dataclass
class Flower:
    """A running SuperLink with its SuperNodes."""

    folder: Path
    address: str

    def run(self, workload: Workload) -> FlowerRun:
        """Run the workload to its end. Raises FlowerFailed if that does not come."""
        times = self.folder / f"times-{time.monotonic_ns()}.json"
        config = user_config_to_proto({"times-file": str(times), "num-server-rounds": workload.rounds})
        begun = time.perf_counter()
        request = StartRunRequest(fab=Fab(content=workload.fab()), override_config=config)
        self._ask("start-run", request, StartRunResponse())
        while not _whole(times):
            if time.perf_counter() - begun > _PATIENCE_S:
                raise FlowerFailed(f"the run did not end in {_PATIENCE_S:.0f} s; see {self.folder}")
            time.sleep(_LOOK_S)
        return FlowerRun(time.perf_counter() - begun, _by_site(json.loads(times.read_text())))

    def wait_for_nodes(self, count: int) -> None:
        begun = time.perf_counter()
        while time.perf_counter() - begun < _PATIENCE_S:
            with contextlib.suppress(httpx.TransportError):
                nodes = self._ask("list-nodes", ListNodesRequest(), ListNodesResponse()).nodes_info
                if sum(node.status == "online" for node in nodes) == count:
                    return
            time.sleep(_LOOK_S)
        raise FlowerFailed(f"{count} SuperNodes did not come online; see {self.folder}")

    def _ask(self, operation: str, request: Message, answer: Message) -> Message:
        headers = {"content-type": _PROTOBUF, "accept": _PROTOBUF}
        url = f"http://{self.address}/v1/control/{operation}"
        response = httpx.post(url, content=request.SerializeToString(), headers=headers, timeout=60)
        if response.is_error:
            raise FlowerFailed(f"{operation}: {response.text}")
        answer.ParseFromString(response.content)
        return answer


@contextlib.contextmanager
def running_flower(folder: Path, sites: int) -> Iterator[Flower]:
    """A SuperLink whose SuperNodes are online. Nothing outlives the block."""
    folder.mkdir(parents=True)
    port = free_port()
    flower = Flower(folder, f"127.0.0.1:{port}")
    superlink = ["flower-superlink", "--insecure", "--port", str(port), "--disable-runtime-dependency-installation"]
    node = ["flower-supernode", "--insecure", "--superlink", flower.address]
    processes: list[subprocess.Popen[bytes]] = []
    try:
        processes.append(_start(superlink, folder, "superlink"))
        for number in range(1, sites + 1):
            processes.append(_start([*node, "--port", str(free_port())], folder, f"supernode-{number}"))
        flower.wait_for_nodes(sites)
        yield flower
    finally:
        _stop(processes)


def _start(command: Sequence[str], folder: Path, name: str) -> subprocess.Popen[bytes]:
    """Each with a home of its own and in a group of its own: the processes that it starts go with it."""
    home = folder / name
    home.mkdir()
    scripts = Path(sys.executable).parent
    with (folder / f"{name}.log").open("wb") as log:
        return subprocess.Popen(
            [str(scripts / command[0]), *command[1:]],
            cwd=home,
            env={
                **os.environ,
                "PATH": os.pathsep.join((str(scripts), os.environ["PATH"])),
                "FLWR_HOME": str(home),
                "FLWR_TELEMETRY_ENABLED": "0",
            },
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


def _stop(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    for process in reversed(processes):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
    for process in processes:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=_STOP_S)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _whole(path: Path) -> bool:
    """Whether the ServerApp has written all of its notes."""
    try:
        json.loads(path.read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return False
    return True


def _by_site(notes: dict[str, list[list[Times]]]) -> SiteRounds:
    sites: dict[str, list[tuple[Times, Times]]] = {}
    for trained, evaluated in zip(notes["train"], notes["evaluate"], strict=True):
        evaluations = {one["node"]: one for one in evaluated}
        for one in trained:
            sites.setdefault(str(one["node"]), []).append((one, evaluations[one["node"]]))
    return sites
