"""Whether each part does its work: found out once for all who ask, within a limit, and logged when it changes."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import pytest

from hub_service.domain.errors import Unavailable
from hub_service.machinery import LEAST_FREE, Machinery, check_disk
from hub_service.readiness import Part, Readiness


class Checks:
    def __init__(self) -> None:
        self.error: Exception | None = None
        self.asked = 0

    async def check(self) -> None:
        self.asked += 1
        if self.error is not None:
            raise self.error


async def test_one_look_is_shared_by_all_who_ask() -> None:
    checks = Checks()
    readiness = Readiness({"database": checks.check}, age_s=1000)
    found = await asyncio.gather(*(readiness.parts() for _ in range(5)))
    assert found == [(Part("database"),)] * 5
    assert checks.asked == 1


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (Unavailable("It is away.", debug="at 10.0.0.1"), "at 10.0.0.1"),
        (Unavailable("It is away."), "It is away."),
        (OSError(28, "No space left on device"), "No space left on device"),
        (OSError("odd"), "odd"),
    ],
)
async def test_what_fails_is_named_with_its_reason_and_logged_once(
    error: Exception, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    checks = Checks()
    checks.error = error
    readiness = Readiness({"artifacts": checks.check}, age_s=0)
    with caplog.at_level(logging.INFO):
        assert await readiness.parts() == (Part("artifacts", reason),)
        await readiness.parts()
        assert caplog.text.count("artifacts fails") == 1
        checks.error = None
        (part,) = await readiness.parts()
    assert part.works
    assert "artifacts works again" in caplog.text


async def test_a_part_that_does_not_answer_fails_within_the_limit() -> None:
    async def never() -> None:
        await asyncio.Event().wait()

    (part,) = await Readiness({"aggregators": never}, limit_s=0.01).parts()
    assert part.reason == "no answer within 0.01 s"


async def test_the_disk_is_written_and_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    await check_disk(tmp_path)
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr("hub_service.machinery.LEAST_FREE", 2**62)
    with pytest.raises(Unavailable, match="nearly full"):
        await check_disk(tmp_path)
    with pytest.raises(OSError, match="No such file"):
        await check_disk(tmp_path / "gone")
    assert LEAST_FREE < 2**30


async def test_with_no_machinery_there_is_nothing_to_look_after() -> None:
    machinery = Machinery()
    await machinery.end_aggregator("p1")
    assert (await machinery.parts(), await machinery.aggregators(), machinery.disk().size) == ((), (), 0)
    assert (machinery.notices_waiting(), machinery.undelivered(), machinery.send_again()) == (0, (), 0)
