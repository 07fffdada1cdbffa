"""How long a run waits for its sites before its first message: by the clock, and when begun anew by its policy."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from federator.contract import OutagePolicy

from hub_service.aggregators.observing_grid import RunFailed
from hub_service.aggregators.plan import Plan
from hub_service.aggregators.serverapp import wait_for_nodes


class Sites:
    """Grid and observer in one: who is connected, look after look, and who was said to be waited for."""

    def __init__(self, looks: Iterator[set[int]]) -> None:
        self._looks = looks
        self.missing: list[list[int]] = []

    def online(self) -> set[int]:
        return next(self._looks)

    def waiting(self, missing: list[int]) -> None:
        self.missing.append(missing)


def plan(policy: OutagePolicy, patience_s: float) -> Plan:
    return Plan("127.0.0.1:1", 1, (1, 2), patience_s, False, policy, patience_s)


def nobody() -> Iterator[set[int]]:
    while True:
        yield {1}


@pytest.fixture
def late() -> Sites:
    """The second site comes at the third look, long after nobody has any patience left."""
    return Sites(iter([{1}, {1}, {1, 2}]))


def wait(sites: Sites, policy: OutagePolicy, patience_s: float, *, again: bool) -> None:
    wait_for_nodes(sites, sites, plan(policy, patience_s), again=again)  # type: ignore[arg-type]


def test_who_is_missing_is_told_once(late: Sites) -> None:
    wait(late, OutagePolicy.WAIT, 60, again=False)
    assert late.missing == [[2]]


@pytest.mark.parametrize("policy", OutagePolicy)
def test_a_new_run_fails_where_a_site_stays_away(policy: OutagePolicy) -> None:
    with pytest.raises(RunFailed, match="within -1 s; missing: 2"):
        wait(Sites(nobody()), policy, -1, again=False)


def test_a_run_that_is_begun_anew_waits_however_long(late: Sites) -> None:
    wait(late, OutagePolicy.WAIT, -1, again=True)


def test_or_goes_on_without_them_after_the_grace_time() -> None:
    wait(Sites(nobody()), OutagePolicy.CONTINUE, -1, again=True)


def test_or_stops_after_the_grace_time() -> None:
    with pytest.raises(RunFailed, match="missing: 2"):
        wait(Sites(nobody()), OutagePolicy.STOP, -1, again=True)
