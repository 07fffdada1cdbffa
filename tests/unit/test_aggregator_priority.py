"""One project's sums come after everybody's pages, however the machine shares its processors out."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from hub_service.aggregators.processes import NICENESS

GROUP = Path("/proc/self/autogroup")
LOWERED = f"""
import json, os, pathlib
from hub_service.aggregators.processes import lower_priority
lower_priority({NICENESS})
group = pathlib.Path("{GROUP}")
print(json.dumps([os.nice(0), group.read_text() if group.exists() else ""]))
"""


@pytest.fixture(scope="module")
def lowered() -> tuple[int, str]:
    """The niceness of a process that was lowered in a session of its own, and what the system says of the session."""
    command = [sys.executable, "-c", LOWERED]
    said = subprocess.run(command, check=True, capture_output=True, text=True, start_new_session=True).stdout
    niceness, group = json.loads(said)
    return int(niceness), str(group)


def test_the_process_comes_later(lowered: tuple[int, str]) -> None:
    assert lowered[0] >= NICENESS


def test_its_session_does_too(lowered: tuple[int, str]) -> None:
    if not lowered[1]:
        pytest.skip("this machine does not group processes by session")
    _, _, niceness = lowered[1].split()
    assert int(niceness) == NICENESS
