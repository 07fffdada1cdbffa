"""What writes where there is no room leaves nothing half-written, and breaks nothing else."""

from __future__ import annotations

import errno
import io
import logging
import os
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from federator import site_log

from hub_service.aggregators.events import EventFile, read_events
from hub_service.domain.runs import EventKind, RunEvent
from hub_service.full_disk import is_full_disk


class HalfAFile(io.FileIO):
    """Takes half of what is written to it, as a disk that becomes full."""

    def write(self, line: Any) -> int:
        return super().write(line[: len(line) // 2])


class FullFile(io.StringIO):
    def write(self, line: str) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_an_event_is_there_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = EventFile(tmp_path)
    first, second, third = (RunEvent(EventKind.WAITING, float(at), text="st-anna") for at in range(3))
    file.write(first)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", lambda path, *_, **__: HalfAFile(path, "ab"))
        with pytest.raises(OSError, match="No space left") as refused:
            file.write(second)
    assert refused.value.errno == errno.ENOSPC
    file.write(third)
    assert read_events(tmp_path)[0] == [first, third]


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (OSError(errno.ENOSPC, ""), True),
        (OSError(errno.EDQUOT, ""), True),
        (OSError(errno.EACCES, ""), False),
        (ValueError(), False),
    ],
)
def test_a_full_disk_is_known_behind_other_errors_too(error: Exception, expected: bool) -> None:
    assert is_full_disk(error) is expected
    outer = RuntimeError("the strategy failed")
    outer.__cause__ = error
    assert is_full_disk(outer) is expected


def test_a_sites_log_without_room_costs_its_lines_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(site_log, "log_path", lambda _: tmp_path / "client.log")
    handler = site_log.open_log("p1")
    assert isinstance(handler, logging.StreamHandler)
    opened = handler.setStream(FullFile())
    assert opened is not None
    opened.close()
    logger = logging.Logger("of this test")
    logger.addHandler(handler)
    said: list[str] = []

    def note(line: str) -> None:
        said.append(line)
        logger.info(line)

    monkeypatch.setattr(sys, "stderr", site_log.AlsoLogged(sys.__stderr__, note))
    printing = threading.Thread(target=lambda: print("epoch 1", file=sys.stderr))  # noqa: T201 - as an app does
    printing.start()
    printing.join()
    assert said == ["epoch 1"]
    handler.close()
