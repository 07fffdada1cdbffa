"""A real server of an embedded site: where it runs, what it is given, and what its token may do."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from federator.contract import Env, Scope
from jupyterhub.spawner import Spawner

from spawner.site_spawner import INHERITED
from tests.fakes.in_process_hub import InProcessHub
from tests.hub.actors import HUB_SECRET, Browser

STEWARD = "ingrid"  # whoever has most rights: a steward's server must not carry them


@dataclass
class Running:
    browser: Browser
    spawner: Spawner
    environment: dict[str, str]
    spawn_page: str


@pytest.fixture(scope="module")
async def server(hub: InProcessHub) -> AsyncIterator[Running]:
    """A server that its owner started from the Hub's page."""
    browser = Browser(hub.bind_url.rstrip("/"))
    await browser.log_in(STEWARD)
    page = await browser.http.get("/hub/spawn")
    spawner = hub.users[STEWARD].spawner
    async with asyncio.timeout(60):
        async with browser.http.stream("GET", f"/hub/api/users/{STEWARD}/server/progress") as progress:
            await progress.aread()
    assert spawner.ready
    environment = dict(
        entry.split("=", 1) for entry in Path(f"/proc/{spawner.pid}/environ").read_text().split("\0") if entry
    )
    yield Running(browser, spawner, environment, page.text)
    await browser.http.aclose()


async def identity_of(hub: InProcessHub, token: str) -> dict[str, list[str]]:
    async with httpx.AsyncClient(base_url=hub.bind_url.rstrip("/")) as api:
        answer = await api.get("/hub/api/user", headers={"Authorization": f"token {token}"})
        identity: dict[str, list[str]] = answer.raise_for_status().json()
        return identity


def test_the_page_says_that_the_site_isolates_nothing(server: Running) -> None:
    assert "St. Anna Hospital is an embedded site: it isolates nothing." in server.spawn_page


def test_its_port_is_none_that_the_system_gives_to_others_while_it_starts(server: Running) -> None:
    lowest_given = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    assert server.spawner.port < lowest_given


def test_nothing_of_the_hubs_environment_is_inherited_that_is_not_named(server: Running) -> None:
    set_by_us = {*Env, "FLWR_TELEMETRY_ENABLED", "OMP_NUM_THREADS"}
    set_by_the_hub = {"HOME", "USER", "SHELL", "JPY_API_TOKEN"}
    others = set(server.environment) - set_by_us - set_by_the_hub - set(INHERITED)
    assert {name for name in others if not name.startswith("JUPYTERHUB_")} == set()


def test_no_secret_of_the_hub_is_given(hub: InProcessHub, server: Running) -> None:
    given = " ".join(server.environment.values())
    assert HUB_SECRET not in given
    assert hub._service_map["federation"].api_token not in given
    assert hub.cookie_secret.hex() not in given


def test_home_and_datasets_are_the_sites(server: Running, state: Path) -> None:
    home = state / "sites" / "st-anna" / STEWARD
    assert server.environment["HOME"] == str(home)
    assert home.stat().st_mode & 0o077 == 0
    assert server.environment[Env.SITE] == "st-anna"
    assert json.loads(server.environment[Env.DATASETS]) == {"biopsies": str(state / "data" / "st-anna")}


async def test_the_server_shows_the_home_folder(server: Running, state: Path) -> None:
    (state / "sites" / "st-anna" / STEWARD / "mine.txt").write_text("mine")
    await server.browser.http.get(f"/user/{STEWARD}/lab")  # logs in to the server; its API does not redirect
    files = (await server.browser.http.get(f"/user/{STEWARD}/api/contents")).json()["content"]
    assert "mine.txt" in {file["name"] for file in files}


async def test_a_servers_token_may_take_part_and_never_approve(hub: InProcessHub, server: Running) -> None:
    identity = await identity_of(hub, server.environment["JUPYTERHUB_API_TOKEN"])
    scopes = set(identity["scopes"])
    assert identity["groups"] == ["site-st-anna", "steward-st-anna"]
    assert {Scope.ACCESS, Scope.USE} <= scopes
    assert not {Scope.APPROVE, Scope.ADMINISTER} & scopes
    assert f"users:activity!user={STEWARD}" in scopes
    assert f"access:servers!server={STEWARD}/" in scopes


async def test_the_service_accepts_the_servers_token(server: Running) -> None:
    url = server.environment[Env.SERVICE_URL]
    token = {"Authorization": f"token {server.environment['JUPYTERHUB_API_TOKEN']}"}
    async with httpx.AsyncClient() as client:
        assert (await client.get(url, headers=token)).json()["name"] == STEWARD


async def test_the_flower_client_can_run_in_the_server(server: Running) -> None:
    command = Path(f"/proc/{server.spawner.pid}/cmdline").read_text()
    assert "federator.extension=True" in command
    assert "FederatorKernelManager" in command


async def test_a_server_that_ends_at_once_is_not_waited_for(hub: InProcessHub, browser: Browser) -> None:
    await browser.log_in("tom")
    spawner = hub.users["tom"].spawner
    spawner.cmd = ["false"]
    page = await browser.http.get("/hub/spawn")
    assert page.status_code == httpx.codes.INTERNAL_SERVER_ERROR
    assert "Your server ended while it was starting, with status 1" in page.text
    assert "admin@federation.example" in page.text


async def test_the_next_hub_would_know_a_process_that_does_not_listen_yet(hub: InProcessHub, browser: Browser) -> None:
    await browser.log_in("grace")
    spawner = hub.users["grace"].spawner
    spawner.cmd = ["sh", "-c", "exec sleep 60"]
    starting = asyncio.create_task(browser.http.get("/hub/spawn"))
    async with asyncio.timeout(30):
        while "pid" not in (spawner.orm_spawner.state or {}):  # noqa: ASYNC110 - the database tells nobody
            await asyncio.sleep(0.05)
    assert spawner.pending == "spawn"
    spawner.proc.kill()
    await starting
