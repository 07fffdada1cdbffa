"""What comes back with the Hub's proxy, and which process the Hub may end before it starts one."""

from __future__ import annotations

import os
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from spawner.proxy import RestoredProxy

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
