"""API: runs and their results."""

from __future__ import annotations

import json
from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path

from federator.contract import Route, RunDetail, RunSummary

from hub_service.web.base import ApiHandler
from hub_service.web.schema import NewRun

_PIECE = 1 << 20  # bytes of a model that are in memory at once


class RunsHandler(ApiHandler):
    def post(self, project_id: str) -> None:
        body = self.body(NewRun)
        run = self.parts.coordinator.start_run(self.principal, project_id, body.rounds, body.compare)
        self.answer(RunSummary, run, HTTPStatus.CREATED)


class RunHandler(ApiHandler):
    def get(self, run_id: str) -> None:
        self.answer(RunDetail, self.parts.coordinator.run(self.principal, run_id))


class RunStopHandler(ApiHandler):
    def post(self, run_id: str) -> None:
        self.answer(RunSummary, self.parts.coordinator.stop_run(self.principal, run_id))


class RunModelHandler(ApiHandler):
    async def get(self, run_id: str) -> None:
        path = self.parts.coordinator.model_path(self.principal, run_id)
        self.set_header("Content-Type", "application/octet-stream")
        self.set_header("Content-Disposition", f'attachment; filename="{run_id}.safetensors"')
        self.set_header("Content-Length", path.stat().st_size)
        for piece in pieces(path):
            self.write(piece)
            await self.flush()


class RunRecordHandler(ApiHandler):
    def get(self, run_id: str) -> None:
        record = self.parts.coordinator.record(self.principal, run_id)
        self.set_header("Content-Type", "application/json")
        self.set_header("Content-Disposition", f'attachment; filename="{run_id}.json"')
        self.finish(json.dumps(record, indent=2))


def pieces(path: Path) -> Iterator[bytes]:
    """A file's content, piece by piece."""
    with path.open("rb") as file:
        while piece := file.read(_PIECE):
            yield piece


ROUTES = (
    (Route.RUNS, RunsHandler),
    (Route.RUN, RunHandler),
    (Route.RUN_STOP, RunStopHandler),
    (Route.RUN_MODEL, RunModelHandler),
    (Route.RUN_RECORD, RunRecordHandler),
)
