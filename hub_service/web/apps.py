"""API: a project's app versions."""

from __future__ import annotations

from http import HTTPStatus

from federator.contract import AppReview, AppVersion, Route

from hub_service.domain.errors import Invalid
from hub_service.web.base import ApiHandler, Upload


class AppsHandler(Upload, ApiHandler):
    async def post(self, project_id: str) -> None:
        content = await self.received()
        filename = self.get_query_argument("filename", "")
        if not filename:
            raise Invalid("The upload has no file name.", "Send it in the query: ?filename=my-notebook.ipynb")
        built = await self.parts.coordinator.build_app(self.principal, project_id, filename, content)
        version = self.parts.coordinator.add_app(self.principal, project_id, built)
        self.answer(AppVersion, version, HTTPStatus.CREATED)


class AppHandler(ApiHandler):
    def get(self, project_id: str, fab_hash: str) -> None:
        self.answer(AppReview, self.parts.coordinator.app_review(self.principal, project_id, fab_hash))


ROUTES = ((Route.APPS, AppsHandler), (Route.APP, AppHandler))
