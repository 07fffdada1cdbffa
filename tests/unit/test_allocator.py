"""What a process that makes and frees whole models asks of the C library, looked at in such a process."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys

import pytest
from federator import allocator

from hub_service.aggregators.processes import environment

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library than glibc")

MODEL = 100 * 10**6  # bytes
FREES_MODELS = """
import json, resource
from federator import allocator

def model():
    return [b"x" * 10**7 for _ in range(10)]

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()

for _ in range(3):
    model()
before = faults()
model()
again = faults() - before
kept = resident()
allocator.give_back()
print(json.dumps({"faults": again, "kept": kept, "left": resident()}))
"""


def measured(environ: dict[str, str]) -> dict[str, int]:
    command = [sys.executable, "-c", FREES_MODELS]
    said = subprocess.run(command, env={**os.environ, **environ}, check=True, capture_output=True, text=True).stdout
    found: dict[str, int] = json.loads(said)
    return found


def test_a_model_is_made_where_the_one_before_was_freed() -> None:
    """Not in pages that the system has to clear first."""
    pages = MODEL // os.sysconf("SC_PAGE_SIZE")
    assert measured(allocator.settings({}))["faults"] < pages / 100


def test_what_is_kept_is_given_back() -> None:
    found = measured(allocator.settings({}))
    assert found["kept"] > MODEL
    assert found["left"] < found["kept"] - 0.9 * MODEL


def test_an_aggregators_processes_are_started_so() -> None:
    assert environment("/home")[allocator.VARIABLE] == allocator.settings(os.environ)[allocator.VARIABLE]


def test_the_word_of_the_site_goes_first() -> None:
    assert allocator.settings({allocator.VARIABLE: "glibc.malloc.check=1"}) == {
        allocator.VARIABLE: "glibc.malloc.check=1"
    }
