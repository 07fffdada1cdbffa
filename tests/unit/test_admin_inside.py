"""The scripts that a check runs in a site's containers, run here: where a folder can be written, they say so."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from spawner.admin.checks import Outcome, dataset_result
from spawner.admin.containers import source_of


def printed_by(script: str, *arguments: str) -> Any:
    command = [sys.executable, "-c", source_of(script), *arguments]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def test_a_dataset_that_can_be_written_is_told_and_left_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "class-a").mkdir()
    (tmp_path / "class-a" / "1.txt").write_text("1", encoding="utf-8")
    (tmp_path / "class-b").mkdir()
    told = printed_by("dataset", str(tmp_path))
    assert told == {"entries": 2, "most": 1000, "unreadable": None, "write_refused": None}
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["1.txt", "class-a", "class-b"]


@pytest.mark.parametrize(
    ("told", "outcome", "seen"),
    [
        (
            {"write_refused": None, "unreadable": "x: Permission denied"},
            Outcome.FAILED,
            "a server could write into /srv",
        ),
        (
            {"unreadable": "/data/b/x: Permission denied"},
            Outcome.FAILED,
            "user 1000 may not read /data/b/x: Permission",
        ),
        ({"entries": 0}, Outcome.WARNING, "/srv is empty"),
        ({"entries": 1000}, Outcome.OK, "/srv, entries: at least 1000, readable; a write is refused (read-only file"),
        ({}, Outcome.OK, "/srv, entries: 3, readable"),
    ],
)
def test_what_is_told_of_a_dataset(told: dict[str, object], outcome: Outcome, seen: str) -> None:
    fine = {"entries": 3, "most": 1000, "unreadable": None, "write_refused": "Read-only file system"}
    result = dataset_result("dataset b", "/srv", fine | told, "Ingrid")
    assert result.outcome is outcome
    assert result.seen.startswith(seen)
    assert ("Ingrid" in result.next_step) == (outcome is not Outcome.OK)


def test_a_dataset_that_is_not_there(tmp_path: Path) -> None:
    told = printed_by("dataset", str(tmp_path / "gone"))
    assert told["unreadable"] == f"{tmp_path / 'gone'}: No such file or directory"
    assert told["write_refused"] == "No such file or directory"


def test_a_large_dataset_is_not_counted_to_its_end(tmp_path: Path) -> None:
    for number in range(1001):
        (tmp_path / str(number)).touch()
    assert printed_by("dataset", str(tmp_path))["entries"] == 1000


def test_who_runs_there_and_with_what() -> None:
    told = printed_by("about")
    assert told["client"] == version("notebook-federator-client")
    assert 0 < told["memory_free"] <= told["memory_total"]
    assert told["disk_free"] >= 0


def test_a_container_without_a_gpu_names_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    assert printed_by("gpu") == {"names": []}


def test_a_gpu_is_named_by_its_own_tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text('#!/bin/sh\necho "NVIDIA H100, 81559 MiB"\n', encoding="utf-8")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert printed_by("gpu") == {"names": ["NVIDIA H100, 81559 MiB"]}
