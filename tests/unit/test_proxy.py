"""What comes back with the Hub's proxy, and which process the Hub may end before it starts one."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from federator.ports import free_port

from examples.demo.stack import PROXY_COMMAND
from spawner import proxy
from spawner.proxy import UPLOADS_SCRIPT, RestoredProxy, proxy_node_options

SERVICE = "http://127.0.0.1:8082"


class WatchedProxy(RestoredProxy):
    """Its routes are noted, where a real one would be told."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.told: dict[str, str] = {}

    async def add_route(self, routespec: str, target: str, data: dict[str, Any]) -> None:
        self.told[routespec] = target


async def test_a_new_proxy_gets_our_routes_before_the_hubs_which_is_everything_elses() -> None:
    hub = SimpleNamespace(routespec="/", host="http://127.0.0.1:8081")
    prefix = "/services/federation/"
    service = SimpleNamespace(name="federation", proxy_spec=prefix, server=SimpleNamespace(host=SERVICE))
    app = SimpleNamespace(hub=hub, subdomain_host="", users={}, _service_map={"federation": service})
    proxy = WatchedProxy(app=app, hub=hub, extra_routes={"/v1/fleet/": SERVICE})
    await proxy.restore_routes()
    assert [*proxy.told.items()] == [("/v1/fleet/", SERVICE), (prefix, SERVICE), ("/", hub.host)]


def test_it_is_looked_after_each_second() -> None:
    assert RestoredProxy().check_running_interval == 1


# Told before the first server of the program listens.
TELL_TIMEOUTS = """
const net = require("node:net");
const listen = net.Server.prototype.listen;
net.Server.prototype.listen = function (...where) {
  console.log(`requestTimeout=${this.requestTimeout}`);
  return listen.apply(this, where);
};
"""


@pytest.mark.needs_node
@pytest.mark.parametrize("folder", ["plain", "with a blank"])
def test_an_upload_may_take_longer_than_nodes_five_minutes(
    folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / folder / UPLOADS_SCRIPT.name
    script.parent.mkdir()
    shutil.copy(UPLOADS_SCRIPT, script)
    (tmp_path / "tell.cjs").write_text(TELL_TIMEOUTS)
    monkeypatch.setattr(proxy, "UPLOADS_SCRIPT", script)
    monkeypatch.setenv("NODE_OPTIONS", f"--require={tmp_path / 'tell.cjs'}")  # what the Hub's admin set stays
    told = []
    with subprocess.Popen(
        [*PROXY_COMMAND, "--ip=127.0.0.1", f"--port={free_port()}", f"--api-port={free_port()}"],
        env={**os.environ, "NODE_OPTIONS": proxy_node_options(), "CONFIGPROXY_AUTH_TOKEN": "a token"},
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("requestTimeout="):
                told.append(int(line.removeprefix("requestTimeout=")))
            if len(told) == 2:  # the public one and the API's
                break
        process.kill()
    assert told == [24 * 3600 * 1000] * 2


class TestPidFile:
    proxy = RestoredProxy(command=["env", "A=1", "/usr/bin/node", "/opt/bin/configurable-http-proxy"])

    def test_a_proxy_is_known_by_its_name(self) -> None:
        code = "input()"
        with subprocess.Popen(
            [sys.executable, "-c", code, "/elsewhere/configurable-http-proxy"], stdin=subprocess.PIPE
        ) as process:
            self.proxy._check_pid(process.pid)
            process.kill()

    def test_another_process_with_its_number_is_let_be(self) -> None:
        with pytest.raises(ProcessLookupError):
            self.proxy._check_pid(os.getpid())

    def test_a_number_that_nobody_has_is_nobodys(self) -> None:
        process = subprocess.Popen([sys.executable, "-c", ""])
        process.wait()
        with pytest.raises(ProcessLookupError):
            self.proxy._check_pid(process.pid)
