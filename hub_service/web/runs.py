"""API: runs, while they go."""

from __future__ import annotations

from http import HTTPStatus

from federator.contract import Route, RunDetail, RunFigures, RunLog, RunSummary

from hub_service.web.base import ApiHandler, number_argument
from hub_service.web.figures import run_figures, site_titles
from hub_service.web.schema import NewRun

_LONGEST_LOG = 2.0**53  # bytes; places beyond it are no whole numbers


class RunsHandler(ApiHandler):
    def post(self, project_id: str) -> None:
        body = self.body(NewRun)
        run = self.parts.coordinator.start_run(self.principal, project_id, body.rounds, body.compare, body.seed)
        self.answer(RunSummary, run, HTTPStatus.CREATED)


class RunHandler(ApiHandler):
    def get(self, run_id: str) -> None:
        self.answer(RunDetail, self.parts.coordinator.run(self.principal, run_id))


class RunFiguresHandler(ApiHandler):
    def get(self, run_id: str) -> None:
        run = self.parts.coordinator.run(self.principal, run_id)
        participants = self.parts.coordinator.project(self.principal, run.project_id).participants
        titles = site_titles(participants, run.sites)
        self.answer(RunFigures, run_figures(run, titles, self.get_query_argument("metric", "")))


class RunLogHandler(ApiHandler):
    async def get(self, run_id: str) -> None:
        after = number_argument(self, "after", 0, 0, _LONGEST_LOG)
        self.answer(RunLog, await self.parts.coordinator.run_log(self.principal, run_id, int(after)))


class RunStopHandler(ApiHandler):
    def post(self, run_id: str) -> None:
        self.answer(RunSummary, self.parts.coordinator.stop_run(self.principal, run_id))


ROUTES = (
    (Route.RUNS, RunsHandler),
    (Route.RUN, RunHandler),
    (Route.RUN_FIGURES, RunFiguresHandler),
    (Route.RUN_LOG, RunLogHandler),
    (Route.RUN_STOP, RunStopHandler),
)
