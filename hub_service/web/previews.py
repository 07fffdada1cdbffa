"""API: what an app would become, and what a site's notebook servers have."""

from __future__ import annotations

from federator.contract import AppPreview, Route

from hub_service.domain.errors import Invalid
from hub_service.web.base import ApiHandler, Upload
from hub_service.web.schema import PackagesReport


class BuildHandler(Upload, ApiHandler):
    async def post(self) -> None:
        content = await self.received()
        filename = self.get_query_argument("filename", "")
        if not filename:
            raise Invalid("The upload has no file name.", "Send it in the query: ?filename=my-notebook.ipynb")
        project_id = self.get_query_argument("project", "")
        coordinator = self.parts.coordinator
        built = await coordinator.build_app(self.principal, project_id, filename, content)
        self.answer(AppPreview, coordinator.preview_app(self.principal, project_id, built))


class SitePackagesHandler(ApiHandler):
    def put(self) -> None:
        report = self.body(PackagesReport)
        self.parts.coordinator.report_packages(self.principal, report.distributions, report.modules)
        self.done()


ROUTES = ((Route.BUILD, BuildHandler), (Route.SITE_PACKAGES, SitePackagesHandler))
