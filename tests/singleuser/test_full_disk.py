"""A disk is really full in a run, the aggregators' or a site's: it is said, nothing is lost, and it goes on.

The service's own disk: `tests/unit/test_disk_full.py`.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import numpy as np
import pytest
from federator.contract import RunStatus
from numpy.typing import NDArray

from hub_service.domain.runs import EventKind
from tests.fakes.driven_fleet import DrivenFleet, driven_fleet
from tests.fakes.federation import ANNA
from tests.fakes.flower_apps import SERVER, averaging_app
from tests.fakes.full_disk import fill, small_disk

pytestmark = pytest.mark.needs_mounts

ROUNDS = 40
APP = averaging_app("import time\ntime.sleep(0.05)")
LARGE = averaging_app("import time\ntime.sleep(0.05)", SERVER.replace("(2, 3)", "(256, 256)"))


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 MB, where the aggregators' folders are or one site's."""
    with small_disk(tmp_path / "projects", 64) as folder:
        yield folder


@pytest.fixture
async def at(tmp_path: Path, small: Path) -> AsyncIterator[DrivenFleet]:
    async with driven_fleet(tmp_path) as it:
        await it.join(APP)
        yield it


@pytest.fixture
async def expected(at: DrivenFleet) -> dict[str, NDArray[np.generic]]:
    """The model of a run that nothing happens to."""
    run_id = at.start_run(ROUNDS)
    assert (await at.ended(run_id)).status is RunStatus.FINISHED
    return at.model(run_id)


def said(at: DrivenFleet) -> str:
    """Of the run and by its sites' clients."""
    details = [member.states[-1][1] for member in at.members.values()]
    return " ".join([*details, *(run.phase for run in at.federation.store.runs(at.project_id))])


@pytest.mark.parametrize("lost", [False, True], ids=["it lives", "it is lost"])
async def test_a_run_waits_until_its_aggregator_can_write(
    at: DrivenFleet, small: Path, expected: dict[str, NDArray[np.generic]], lost: bool
) -> None:
    run_id = at.start_run(ROUNDS)
    await at.until(lambda: at.run(run_id).round >= 3)
    filler = fill(small)
    if lost:
        at.kill(serverapp=True, superlink=True)
    await at.until(
        lambda: ("waiting: the service's disk is full" if lost else "The service's disk is full") in said(at)
    )
    assert not at.run(run_id).status.is_final
    filler.unlink()
    run = await at.ended(run_id)
    assert (run.status, run.round) == (RunStatus.FINISHED, ROUNDS)
    assert [one.number for one in at.federation.coordinator.run(ANNA, run_id).rounds] == list(range(1, ROUNDS + 1))
    actual = at.model(run_id)
    assert actual.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(actual[name], array)


async def test_a_run_that_is_started_while_there_is_no_room_begins_later(at: DrivenFleet, small: Path) -> None:
    filler = fill(small)
    run_id = at.start_run(ROUNDS)
    await at.until(lambda: "waiting: the service's disk is full" in at.run(run_id).phase)
    filler.unlink()
    run = await at.ended(run_id)
    assert (run.status, run.round, run.resumed) == (RunStatus.FINISHED, ROUNDS, 0)


async def test_a_model_finds_no_room_where_an_event_does(tmp_path: Path, small: Path) -> None:
    """Whoever writes first, gateway or ServerApp: it is no failure of the app's."""
    async with driven_fleet(tmp_path) as at:
        await at.join(LARGE)
        undisturbed = at.start_run(ROUNDS)
        assert (await at.ended(undisturbed)).status is RunStatus.FINISHED
        run_id = at.start_run(ROUNDS)
        await at.until(lambda: at.run(run_id).round >= 3)
        filler = fill(small)
        os.truncate(filler, filler.stat().st_size - (128 << 10))
        await at.until(lambda: "disk is full" in said(at))
        filler.unlink()
        run = await at.ended(run_id)
        assert (run.status, run.round) == (RunStatus.FINISHED, ROUNDS)
        np.testing.assert_array_equal(at.model(run_id)["weight"], at.model(undisturbed)["weight"])


async def test_a_site_that_cannot_unpack_the_app_is_left_out_and_comes_back(tmp_path: Path, small: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    async with driven_fleet(elsewhere) as at:
        await at.join(APP)
        site = at.members["c"]
        await site.stop()
        filler = fill(small)
        site.start(at.fleet.address, small)
        run_id = at.start_run(ROUNDS)

        def errors() -> list[str]:
            return [one.text for one in at.events(run_id) if one.kind is EventKind.REPLY and one.text]

        await at.until(lambda: len(errors()) >= 2)
        filler.unlink()
        run = await at.ended(run_id)
        assert (run.status, run.round) == (RunStatus.FINISHED, ROUNDS)
        assert all("No space left on device" in text for text in errors())
        rounds = at.federation.coordinator.run(ANNA, run_id).rounds
        (left_out,) = [one.site for one in rounds[0].sites if one.error]
        assert f"{left_out} took no part in training in round 1" in at.federation.coordinator.card(ANNA, run_id)
        assert not any(one.error for one in rounds[-1].sites)
