"""Checks of sites without an engine that answers; `tests/system/test_site_setup.py` has the others."""

from __future__ import annotations

import asyncio
import socket
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from spawner.admin import checks
from spawner.admin.certificates import EngineHost, issue
from spawner.admin.checks import Outcome, Result, check_site, node_result
from spawner.deployment import Hub
from spawner.sites import DockerSite, EmbeddedSite, Site, SupernodeSite, SwarmSite

HUB = Hub(bind_url="http://10.77.2.1:8000", data_dir=Path("state"), admin_contact="Robin")
PEOPLE = {"title": "St. Anna", "contact": "Ingrid"}


async def results_of(site: Site) -> list[Result]:
    checking = check_site("st-anna", site, HUB, now=lambda: datetime.now(UTC), new_id=lambda: "0")
    return [result async for result in checking]


@pytest.mark.parametrize(
    "site",
    [EmbeddedSite(kind="embedded", work_dir=Path("work"), **PEOPLE), SupernodeSite(kind="supernode", **PEOPLE)],
)
async def test_a_site_without_an_engine_has_nothing_to_look_at(site: Site) -> None:
    (result,) = await results_of(site)
    assert result.outcome is Outcome.SKIPPED


@pytest.mark.parametrize(
    ("kind", "skipped"),
    [
        (
            "docker",
            {"TLS", "clock", "image", "image contents", "datasets", "GPUs", "network", "isolation", "server port"},
        ),
        ("swarm", {"TLS", "clock", "node"}),
    ],
)
async def test_an_engine_that_nobody_has_started(tmp_path: Path, kind: str, skipped: set[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed_soon:
        engine = f"tcp://127.0.0.1:{closed_soon.getsockname()[1]}"
    issued = issue(tmp_path, "st-anna", EngineHost.of_url(engine), now=datetime.now(UTC))
    settings = {"engine": engine, "tls_dir": issued.tls_dir, "image": "a:1", **PEOPLE}
    site = DockerSite(kind="docker", **settings) if kind == "docker" else SwarmSite(kind="swarm", **settings)
    results = {result.part: result for result in await results_of(site)}
    assert results["engine"].outcome is Outcome.FAILED
    assert "it cannot be reached" in results["engine"].seen
    assert "Ask Ingrid: does the engine run" in results["engine"].next_step
    assert results["certificates"].outcome is Outcome.OK
    assert {part for part, result in results.items() if result.outcome is Outcome.SKIPPED} == skipped


def node(name: str, *, site: str | None = None, state: str = "ready", availability: str = "active") -> dict[str, Any]:
    labels = {} if site is None else {"site": site}
    return {
        "Description": {"Hostname": name},
        "Spec": {"Labels": labels, "Availability": availability},
        "Status": {"State": state},
    }


@pytest.mark.parametrize(
    ("nodes", "outcome", "seen"),
    [
        ([node("m"), node("a", site="st-anna")], Outcome.OK, "a has the label site=st-anna; it is ready, active"),
        ([node("m"), node("v", site="vall-verde")], Outcome.FAILED, "these have: none"),
        ([node("a", site="st-anna"), node("b", site="st-anna")], Outcome.FAILED, "these have: a, b"),
        ([node("a", site="st-anna", state="down")], Outcome.FAILED, "it is down, active"),
        ([node("a", site="st-anna", availability="drain")], Outcome.FAILED, "it is ready, drain"),
    ],
)
def test_one_node_of_a_swarm_is_the_sites(nodes: list[dict[str, Any]], outcome: Outcome, seen: str) -> None:
    result = node_result("st-anna", nodes, "Ingrid")
    assert result.outcome is outcome
    assert seen in result.seen
    assert bool(result.next_step) == (outcome is not Outcome.OK)


async def test_a_look_from_inside_a_server_ends_in_time_where_the_engine_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    hung, begun = threading.Event(), threading.Event()

    def hang(under_test: checks.SiteUnderTest) -> list[Any]:
        begun.set()
        hung.wait(30)
        return []

    monkeypatch.setattr(checks, "_probe", hang)
    monkeypatch.setattr(checks, "CLEAN_UP_S", 0.1)
    site = DockerSite(kind="docker", engine="unix:///not/asked", image="a:1", **PEOPLE)
    under_test = checks.SiteUnderTest(
        "st-anna", site, HUB, checks.engine_of(site), lambda: datetime.now(UTC), lambda: "0"
    )
    looking = asyncio.create_task(checks._isolation(under_test))
    try:
        assert await asyncio.to_thread(begun.wait, 10)
        looking.cancel()
        async with asyncio.timeout(10):
            await asyncio.wait({looking})
        assert looking.cancelled()
    finally:
        hung.set()
