"""Who gets which GPU, from what an engine says of its containers."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import pytest

from spawner.gpu_leases import GpuLeases, GpusTaken, Lease, free_gpu, leases_in
from spawner.labels import GPU_LABEL, SERVER_LABEL, USER_LABEL
from spawner.sites import DockerSite

NOON = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)


def container(gpu: str, user: str, state: str = "running", server: str = "") -> dict[str, Any]:
    """A container as the engine lists it."""
    labels = {GPU_LABEL: gpu, USER_LABEL: user, SERVER_LABEL: server}
    return {"Names": [f"/federation-{user}"], "State": state, "Created": NOON.timestamp(), "Labels": labels}


def site(**changes: Any) -> DockerSite:
    fields = {"engine": "unix:///none", "image": "i:1", "gpus": ("g0", "g1"), **changes}
    return DockerSite(kind="docker", title="A", contact="Ada", **fields)


class ListedContainers:
    """An engine that lists what it is told to, and counts how often it is asked."""

    def __init__(self, *containers: Mapping[str, Any]) -> None:
        self.containers = list(containers)
        self.asked = 0

    async def call(self, method: str, **kwargs: Any) -> list[Mapping[str, Any]]:
        assert (method, kwargs["all"]) == ("containers", True)
        self.asked += 1
        await asyncio.sleep(0)  # as any real engine, it lets others in between
        return list(self.containers)


@pytest.mark.parametrize(
    ("state", "holds"),
    [
        ("running", True),
        ("paused", True),
        ("restarting", True),
        ("exited", False),
        ("dead", False),
        ("removing", False),
    ],
)
def test_a_gpu_is_held_until_its_container_has_ended(state: str, holds: bool) -> None:
    assert bool(leases_in([container("g0", "amara", state)], frozenset())) is holds


def test_a_container_that_was_made_holds_only_while_somebody_starts_it() -> None:
    made = container("g0", "amara", "created")
    assert leases_in([made], frozenset()) == []
    assert [lease.user for lease in leases_in([made], frozenset({"federation-amara"}))] == ["amara"]


def test_a_lease_says_who_and_since_when() -> None:
    (lease,) = leases_in([container("g0", "amara", server="second")], frozenset())
    assert lease == Lease("g0", "amara", "second", NOON)
    assert str(lease) == "g0: amara (second) since 24 Nov 12:00 UTC"


def test_the_least_used_gpu_is_taken_and_none_beyond_its_share() -> None:
    leases = [Lease("g0", "a", "", NOON), Lease("g0", "b", "", NOON), Lease("g1", "c", "", NOON)]
    assert free_gpu(["g0", "g1"], 2, leases) == "g1"
    assert free_gpu(["g0", "g1"], 1, leases) is None
    assert free_gpu(["g0", "g1"], 1, []) == "g0"
    assert free_gpu([], 1, []) is None


async def test_two_who_start_at_once_get_two_gpus() -> None:
    engine = ListedContainers()
    leases = GpuLeases(engine)  # type: ignore[arg-type]

    async def make(user: str, gpu: str) -> str:
        await asyncio.sleep(0)
        engine.containers.append(container(gpu, user))
        return gpu

    def take(user: str) -> Any:
        return leases.take(site(), lambda gpu: make(user, gpu), lambda held: None)

    assert sorted(await asyncio.gather(take("amara"), take("jonas"))) == ["g0", "g1"]
    with pytest.raises(GpusTaken, match=r"g0: amara since .*; g1: jonas since"):
        await take("tom")


async def test_who_waits_gets_the_first_that_is_freed_and_is_told_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spawner.gpu_leases.LOOK_AGAIN_S", 0.01)
    engine = ListedContainers(container("g0", "amara"), container("g1", "jonas"))
    told: list[int] = []

    def waiting(held: Any) -> None:
        told.append(len(held))
        if len(told) == 3:
            engine.containers.pop()

    async def make(gpu: str) -> str:
        return gpu

    got = await GpuLeases(engine).take(site(gpu_wait_s=60), make, waiting)  # type: ignore[arg-type]
    assert (got, told) == ("g1", [2, 2, 2])


async def test_who_waited_in_vain_lets_the_next_look(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spawner.gpu_leases.LOOK_AGAIN_S", 0.01)
    engine = ListedContainers(container("g0", "amara"), container("g1", "jonas"))
    leases = GpuLeases(engine)  # type: ignore[arg-type]

    async def make(gpu: str) -> str:
        raise AssertionError("nothing was free")

    for _ in range(2):
        with pytest.raises(GpusTaken):
            await leases.take(site(gpu_wait_s=0.02), make, lambda held: None)


async def test_who_cannot_even_look_in_time_is_refused_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spawner.gpu_leases.CALL_TIMEOUT_S", 0.01)
    engine = ListedContainers(container("g0", "amara"))
    leases = GpuLeases(engine)  # type: ignore[arg-type]
    entered, leave = asyncio.Event(), asyncio.Event()

    async def slow(gpu: str) -> str:
        entered.set()
        await leave.wait()
        return gpu

    first = asyncio.create_task(leases.take(site(), slow, lambda held: None))
    await entered.wait()
    with pytest.raises(GpusTaken, match="amara"):
        await leases.take(site(), slow, lambda held: None)
    leave.set()
    assert await first == "g1"


async def test_a_start_that_fails_gives_the_turn_back() -> None:
    leases = GpuLeases(ListedContainers())  # type: ignore[arg-type]

    async def fails(gpu: str) -> str:
        raise LookupError(gpu)

    for _ in range(2):
        with pytest.raises(LookupError):
            await leases.take(site(), fails, lambda held: None)


async def test_starting_ends_with_its_block() -> None:
    leases = GpuLeases(ListedContainers(container("g0", "amara", "created")))  # type: ignore[arg-type]
    with leases.starting("federation-amara"):
        assert len(await leases.held()) == 1
    assert await leases.held() == []
