"""API: what came out of a run."""

from __future__ import annotations

import asyncio
import json
import tempfile
from collections.abc import Iterator
from typing import IO

from federator.contract import ModelFile, Route, RunResult, SignedRecord
from tornado.iostream import StreamClosedError

from hub_service.operations.results import LAST
from hub_service.web.base import ApiHandler
from hub_service.web.figures import site_titles
from hub_service.web.result_figures import run_result
from hub_service.web.schema import to_json

_PIECE = 1 << 20  # bytes of a file that are in memory at once


class DownloadHandler(ApiHandler):
    """Answers with a file that the browser saves."""

    def name_file(self, name: str, media_type: str) -> None:
        self.set_header("Content-Type", media_type)
        self.set_header("Content-Disposition", f'attachment; filename="{name}"')

    async def send(self, file: IO[bytes]) -> None:
        self.set_header("Content-Length", file.seek(0, 2))
        file.seek(0)
        try:
            for piece in pieces(file):
                self.write(piece)
                await self.flush()
        except StreamClosedError:
            return  # whoever downloads has gone


class RunResultHandler(ApiHandler):
    def get(self, run_id: str) -> None:
        run = self.parts.coordinator.run(self.principal, run_id)
        project = self.parts.coordinator.project(self.principal, run.project_id)
        titles = site_titles(project.participants, run.sites)
        self.answer(RunResult, run_result(run, titles, self.get_query_argument("metric", "")))


class RunModelsHandler(ApiHandler):
    def get(self, run_id: str) -> None:
        self.answer(tuple[ModelFile, ...], self.parts.coordinator.models(self.principal, run_id))


class RunModelHandler(DownloadHandler):
    async def get(self, run_id: str) -> None:
        which = self.get_query_argument("round", LAST)
        path = await self.parts.coordinator.model_path(self.principal, run_id, which)
        suffix = "" if which == LAST else f"-{which}"
        self.name_file(f"{run_id}{suffix}.safetensors", "application/octet-stream")
        with path.open("rb") as file:
            await self.send(file)


class RunRecordHandler(DownloadHandler):
    def get(self, run_id: str) -> None:
        record = self.parts.coordinator.record(self.principal, run_id)
        self.name_file(f"{run_id}.json", "application/json")
        self.finish(json.dumps(record, indent=2))


class RunCardHandler(DownloadHandler):
    def get(self, run_id: str) -> None:
        card = self.parts.coordinator.card(self.principal, run_id)
        self.name_file(f"{run_id}.md", "text/markdown; charset=UTF-8")
        self.finish(card)


class RunSignedHandler(DownloadHandler):
    def get(self, run_id: str) -> None:
        signed = self.parts.coordinator.signed_record(self.principal, run_id)
        self.name_file(f"{run_id}-signed.json", "application/json")
        self.finish(to_json(SignedRecord, signed))


class RunCapsuleHandler(DownloadHandler):
    async def get(self, run_id: str) -> None:
        capsule = await self.parts.coordinator.capsule(self.principal, run_id)
        self.name_file(f"{run_id}-capsule.zip", "application/zip")
        with tempfile.TemporaryFile() as file:
            await asyncio.to_thread(capsule.write, file)
            await self.send(file)


class SigningKeyHandler(ApiHandler):
    def get(self) -> None:
        self.set_header("Content-Type", "application/x-pem-file")
        self.finish(self.parts.coordinator.signing_key())


def pieces(file: IO[bytes]) -> Iterator[bytes]:
    """A file's content from where it stands, piece by piece."""
    while piece := file.read(_PIECE):
        yield piece


ROUTES = (
    (Route.RUN_RESULT, RunResultHandler),
    (Route.RUN_MODELS, RunModelsHandler),
    (Route.RUN_MODEL, RunModelHandler),
    (Route.RUN_RECORD, RunRecordHandler),
    (Route.RUN_CARD, RunCardHandler),
    (Route.RUN_SIGNED, RunSignedHandler),
    (Route.RUN_CAPSULE, RunCapsuleHandler),
    (Route.SIGNING_KEY, SigningKeyHandler),
)
