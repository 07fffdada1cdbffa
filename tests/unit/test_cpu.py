"""How many threads a client kernel's libraries start: by what this process may use, not by what the machine has."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from federator.cpu import usable_cores

HERE = "docker/abc"


@pytest.fixture(autouse=True)
def large_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))


class Groups:
    """Control groups as the kernel shows them, below a folder."""

    def __init__(self, folder: Path, own: str) -> None:
        self.mounted = folder / "cgroup"
        self.own = folder / "own"
        self.own.write_text(own)

    def write(self, path: str, text: str) -> None:
        (self.mounted / path).parent.mkdir(parents=True, exist_ok=True)
        (self.mounted / path).write_text(f"{text}\n")

    def cores(self, **environ: str) -> int:
        return usable_cores(environ, self.own, self.mounted)


@pytest.fixture
def version_2(tmp_path: Path) -> Groups:
    return Groups(tmp_path, f"0::/{HERE}\n")


@pytest.fixture
def version_1(tmp_path: Path) -> Groups:
    lines = ("12:memory", "5:cpu,cpuacct", "3:cpuset", "1:name=systemd")
    return Groups(tmp_path, "".join(f"{line}:/{HERE}\n" for line in lines))


def test_without_limits_it_is_what_the_scheduler_gives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert Groups(tmp_path, "").cores() == 64
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 5})
    assert Groups(tmp_path, "").cores() == 2


@pytest.mark.parametrize(("text", "cores"), [("2", 2), ("2.5", 3), ("0.5", 1), ("128", 64), ("0", 64), ("none", 64)])
def test_the_hubs_word(tmp_path: Path, text: str, cores: int) -> None:
    assert Groups(tmp_path, "").cores(CPU_LIMIT=text) == cores


@pytest.mark.parametrize(("text", "cores"), [("200000 100000", 2), ("150000 100000", 2), ("max 100000", 64)])
def test_the_quota_of_version_2(version_2: Groups, text: str, cores: int) -> None:
    version_2.write(f"{HERE}/cpu.max", text)
    assert version_2.cores() == cores


def test_the_narrowest_group_around_counts(version_2: Groups) -> None:
    version_2.write(f"{HERE}/cpu.max", "max 100000")
    version_2.write("docker/cpu.max", "300000 100000")
    version_2.write("cpu.max", "800000 100000")
    assert version_2.cores() == 3
    assert version_2.cores(CPU_LIMIT="2") == 2
    assert version_2.cores(CPU_LIMIT="2", OMP_NUM_THREADS="1") == 1


def test_in_a_container_the_uppermost_group_is_its_own(version_2: Groups) -> None:
    """Its name on the machine leads nowhere there."""
    version_2.write("cpu.max", "400000 100000")
    assert version_2.cores() == 4


@pytest.mark.parametrize(("quota", "cores"), [("200000", 2), ("-1", 64)])
@pytest.mark.parametrize("folder", [f"cpu,cpuacct/{HERE}", "cpu,cpuacct"])
def test_the_quota_of_version_1(version_1: Groups, folder: str, quota: str, cores: int) -> None:
    version_1.write(f"{folder}/cpu.cfs_quota_us", quota)
    version_1.write(f"{folder}/cpu.cfs_period_us", "100000")
    assert version_1.cores() == cores


def test_a_limit_that_cannot_be_read_is_none(version_2: Groups) -> None:
    version_2.write(f"{HERE}/cpu.max", "much")
    assert version_2.cores() == 64


def test_this_process_has_a_core() -> None:
    assert usable_cores(os.environ) >= 1
