"""What the published figures are made of: a try that fails is in them, and in one table."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import pytest

from tests import reliability
from tests.reliability import SOAK, measuring, report


@pytest.fixture(autouse=True)
def _nothing_measured_yet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reliability, "RELIABILITY", tmp_path)


def a_try(name: str, *, holds: bool, **times: object) -> None:
    with measuring(name) as measured:
        measured.update(times)
        assert holds


def rows(name: str) -> list[str]:
    return [line for line in report() if line.startswith(f"| {name} |")]


def test_a_try_that_failed_counts_as_one_in_which_something_was_lost() -> None:
    a_try("proxy killed", holds=True, at_s=0.5, back_s=1.0, later_s=2.0)
    with pytest.raises(AssertionError):
        a_try("proxy killed", holds=False, at_s=0.1, back_s=3.0)
    assert rows("proxy killed") == ["| proxy killed | 2 | 2.0 s, 3.0 s | 2.0 s, 2.0 s | 1 |"]


def test_a_fault_that_never_got_as_far_as_its_times_is_there_too() -> None:
    with pytest.raises(AssertionError):
        a_try("Hub killed", holds=False, at_s=0.1)
    assert rows("Hub killed") == ["| Hub killed | 1 | 1 |"]


@pytest.mark.parametrize(("held", "words"), [(True, "9 rounds in all; nothing was lost."), (False, "DID NOT HOLD")])
def test_a_soak_says_whether_it_held(held: bool, words: str) -> None:
    with nullcontext() if held else pytest.raises(AssertionError):
        a_try(SOAK, holds=held, seconds=60, seed=1, faults=["proxy killed"], runs={"a": 3}, rounds=9, memory={})
    assert words in "\n".join(report())
