"""Nothing listens but what the table "Sockets" of docs/access.md has, where it says, and all of that does.

A whole journey runs on the real stack; meanwhile all of its processes are looked at, again and again.
"""

from __future__ import annotations

import re
import signal
import socket
import stat
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from federator.ports import free_port

from examples.demo.display import Display
from examples.demo.people import RESEARCHERS, STEWARDS
from examples.demo.scenario import Study, run_journey
from examples.demo.stack import Stack
from hub_service.aggregators.processes import superlink_arguments
from tests.conftest import ROOT
from tests.system.watching import Watch
from tests.web.access_table import DOCUMENT

pytestmark = pytest.mark.needs_node

SAMPLE_EVERY_S = 0.2
PATIENCE_S = 60.0
BY_A_FREE_PORT = "127.0.0.1, a free port"
# What a process is, by its command line. The first that fits.
KINDS: tuple[tuple[str, str], ...] = (
    (r"configurable-http-proxy", "the Hub's proxy"),
    (r"-m jupyterhub -f ", "the Hub"),
    (r"-m hub_service$", "the service"),
    (r"aggregators\.(superlink|template)_process", "a SuperLink as a process (the embedded default)"),
    (r"ipykernel_launcher|-m federator\.kernel", "a kernel of an embedded site"),
    (r"jupyterhub-singleuser|jupyterhub\.singleuser", "a notebook server of an embedded site"),
    (r"examples\.demo\.identity_provider", "the demonstration's identity provider"),
)
NOT_OURS = "the demonstration's identity provider"
ELSEWHERE = {"a SuperLink in a container", "an engine's API"}  # the stack has neither


def told() -> dict[str, str]:
    """The table: what listens -> where."""
    section = DOCUMENT.read_text("utf-8").split("\n## Sockets\n", 1)[1].split("\n## ", 1)[0]
    rows = [line.strip("|").split("|") for line in section.splitlines() if line.startswith("| ")]
    return {what.strip(): where.replace("`", "").strip() for what, where, *_ in rows[1:]}


class Sockets:
    """What listens -> where, of the processes that were looked at."""

    def __init__(self, stack: Stack) -> None:
        self.seen: dict[str, set[str]] = {}
        self._ports = named_ports(stack)

    def look(self, process: psutil.Process) -> None:
        for where in listening(process, self._ports):
            self.seen.setdefault(self._name(process, where), set()).add(where)

    @staticmethod
    def _name(process: psutil.Process, where: str) -> str:
        line = " ".join(process.cmdline())
        name = next((name for pattern, name in KINDS if re.search(pattern, line)), line)
        return f"{name}'s own API" if where.endswith("proxy_api_port") else name


def named_ports(stack: Stack) -> dict[int, str]:
    hub = tomllib.loads((stack.folder / "deployment.toml").read_text("utf-8"))["hub"]
    ports = {hub[name]: f"127.0.0.1, {name}" for name in ("hub_port", "service_port", "proxy_api_port")}
    return ports | {int(hub["bind_url"].rpartition(":")[2]): "bind_url"}


def listening(process: psutil.Process, ports: Mapping[int, str]) -> Iterator[str]:
    """Where, in the table's words. An address that is not loopback is written out."""
    for one in process.net_connections("all"):
        if one.family == socket.AF_UNIX:
            if one.laddr:
                yield socket_file(str(one.laddr))
        elif one.status == psutil.CONN_LISTEN or (one.type == socket.SOCK_DGRAM and not one.raddr):
            kind = "" if one.type == socket.SOCK_STREAM else "UDP "
            named = ports.get(one.laddr.port, BY_A_FREE_PORT)
            yield kind + named if one.laddr.ip == "127.0.0.1" else f"{kind}{one.laddr.ip}, {named}"


def socket_file(name: str) -> str:
    path = Path(name)
    if not path.exists():
        return f"a Unix socket {name}"  # an abstract one: no mode closes it
    modes = (stat.S_IMODE(one.stat().st_mode) for one in (path, path.parent))
    return "a Unix socket of mode {:04o} in a folder of mode {:04o}".format(*modes)


async def test_what_listens_is_what_the_table_has(stack: Stack, study: Study) -> None:
    found = Sockets(stack)
    with Watch(stack, found.look, SAMPLE_EVERY_S):
        await run_journey(stack.origin, replace(study, title="Listened to"), RESEARCHERS, STEWARDS, Display())
    seen = {what: where for what, where in found.seen.items() if what != NOT_OURS}
    assert seen == {what: {where} for what, where in told().items() if what not in ELSEWHERE}


def test_the_socket_of_a_container_is_for_its_own_account(tmp_path: Path) -> None:
    """The same program, without the container. Its TCP port is on loopback, which a container has for itself."""
    folder, port = tmp_path / "superlink", free_port()
    folder.mkdir(mode=0o700)
    path = folder / "a.sock"
    command = [sys.executable, "-m", "hub_service.aggregators.superlink_process"]
    arguments = ["--unix-socket", str(path), *superlink_arguments("127.0.0.1", port, str(folder / "node-ids.json"))]
    with subprocess.Popen([*command, *arguments], cwd=ROOT) as process:
        try:
            deadline = time.monotonic() + PATIENCE_S
            while len(found := set(listening(psutil.Process(process.pid), {}))) < 2:
                assert process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.05)
        finally:
            process.send_signal(signal.SIGTERM)
    assert found == {BY_A_FREE_PORT, told()["a SuperLink in a container"]}
