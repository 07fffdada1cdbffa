"""A run as the store has it."""

from __future__ import annotations

from datetime import UTC, datetime

from federator.contract import RunStatus

from hub_service.domain.runs import Run, RunTarget

RUN = Run(
    id="r1",
    project_id="p1",
    number=1,
    fab_hash="f" * 64,
    rounds=2,
    compare=True,
    target=RunTarget.FINISHED,
    status=RunStatus.RUNNING,
    phase="",
    message="",
    started_by="anna",
    sites={"t1": "north", "t2": "east"},
    created_at=datetime(2026, 3, 1, tzinfo=UTC),
    finished_at=None,
    model_sha256="",
    model_size=0,
    model_round=0,
    nodes={"11": "north", "22": "east"},
)
