"""What a ServerApp does between the phases of a run, and what it leaves to the next one where it is lost there."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord
from flwr.serverapp.strategy import Strategy

from hub_service.aggregators.checkpoint import Checkpoints, generators, put_generators
from hub_service.aggregators.mailbox import Mailbox
from hub_service.aggregators.observer import Observer
from hub_service.aggregators.plan import Plan
from hub_service.aggregators.serverapp import Phases
from hub_service.domain.runs import RunEvent

COMPARED = Plan("", 7, (1, 2), 30.0, compare=True)


class ProcessLost(Exception):
    """Stands for SIGKILL."""


class QuietGrid:
    """Sends nothing."""

    rounds = 1
    model = ArrayRecord({"w": Array(np.ones(1))})
    last_evaluate = None

    def show(self, nodes: Any) -> None: ...

    def note_strategy(self, strategy: Strategy) -> None: ...

    def note_result(self, arrays: ArrayRecord) -> None: ...


class QuietApp:
    def run(self, grid: QuietGrid) -> None: ...


@pytest.fixture(autouse=True)
def own_numbers() -> Any:
    before = generators()
    yield
    put_generators(before)


class FillsTheDisk(QuietApp):
    """Where a site trains alone."""

    def __init__(self) -> None:
        self.runs = 0

    def run(self, grid: QuietGrid) -> None:
        self.runs += 1
        if self.runs > 1:
            raise ValueError("cannot save the plots") from OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_is_no_fault_of_the_site_that_trains_alone(tmp_path: Path) -> None:
    """The run waits for room, and goes on with this site."""
    checkpoints = Checkpoints(tmp_path, Mailbox(tmp_path))
    events: list[RunEvent] = []
    parts: Any = FillsTheDisk(), QuietGrid(), Observer(events.append, lambda: 0.0)
    with pytest.raises(ValueError, match="cannot save"):
        Phases(*parts, checkpoints, None, lambda: None).run(COMPARED)
    found = checkpoints.read()
    assert found is not None
    assert [(one.phase, one.node) for one in found.place.finished] == [("federated", 0)]
    assert [one.text for one in events if one.text] == []


def test_a_process_that_is_lost_before_its_model_is_written_has_not_finished_the_phase(tmp_path: Path) -> None:
    """The next one sees the model again, and writes it."""

    def lost() -> None:
        raise ProcessLost

    checkpoints = Checkpoints(tmp_path, Mailbox(tmp_path))
    parts: Any = QuietApp(), QuietGrid(), Observer(lambda _: None, lambda: 0.0)
    with pytest.raises(ProcessLost):
        Phases(*parts, checkpoints, None, lost).run(COMPARED)
    assert Checkpoints(tmp_path, Mailbox(tmp_path)).read() is None
    Phases(*parts, checkpoints, None, lambda: None).run(COMPARED)
    found = Checkpoints(tmp_path, Mailbox(tmp_path)).read()
    assert found is not None
    assert found.place.finished[0].phase == "federated"
