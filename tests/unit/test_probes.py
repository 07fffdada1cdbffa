"""The probes at an engine that goes away; `tests/system/test_isolation.py` tries them at real ones."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import IPv4Address
from types import SimpleNamespace
from typing import Any

import pytest
import requests

from spawner.site import probes
from spawner.site.isolation import Endpoint
from spawner.site.probes import ProbeError, Targets, run_probes

HUB = Endpoint(IPv4Address("192.0.2.1"), 8000)


class GoneContainer:
    """Its engine answers nothing any more."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def start(self) -> None:
        self.asked.append("start")

    def wait(self, *, timeout: float | None = None) -> dict[str, int]:
        assert timeout is not None, "this would wait for ever"
        raise requests.exceptions.ReadTimeout("Read timed out.")

    def remove(self, *, force: bool) -> None:
        self.asked.append("remove")
        raise requests.exceptions.ConnectionError("Connection aborted.")


def test_an_engine_that_goes_away_is_told_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def nothing_else(*args: Any, **kwargs: Any) -> Iterator[Targets]:
        yield Targets(hub=HUB, host_addresses=["192.0.2.2"], broadcast="192.0.2.255")

    monkeypatch.setattr(probes, "surroundings", nothing_else)
    container = GoneContainer()
    client: Any = SimpleNamespace(containers=SimpleNamespace(create=lambda *_, **__: container))
    with pytest.raises(ProbeError, match="the engine does not answer any more"):
        run_probes(client, "notebook:1", "federation", HUB)
    assert container.asked == ["start", "remove"]


class LeavingNetwork:
    """Made, and not removed any more."""

    id = "network-1"
    attrs = {"IPAM": {"Config": [{"Subnet": "192.0.2.0/24", "Gateway": "192.0.2.1"}]}}  # noqa: RUF012

    def remove(self) -> None:
        raise requests.exceptions.ConnectionError("Connection aborted.")


def test_what_cannot_be_removed_is_told_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def neighbour(*args: Any) -> Iterator[None]:
        yield

    monkeypatch.setattr(probes, "_neighbour", neighbour)
    network = LeavingNetwork()
    some: Any = SimpleNamespace(prune=lambda **_: None, get=lambda _: network, create=lambda *_, **__: network)
    client: Any = SimpleNamespace(containers=some, networks=some)
    with (
        pytest.raises(ProbeError, match="the engine does not answer any more"),
        probes.surroundings(client, "notebook:1", "federation", HUB),
    ):
        pass
