"""API: projects, what a person sees of them, and the site a person belongs to."""

from __future__ import annotations

from http import HTTPStatus

from federator.contract import Home, ProjectDetail, ProjectSummary, Route, Site

from hub_service.web.base import ApiHandler
from hub_service.web.openapi import document
from hub_service.web.schema import NewProject, ProjectSettings


class OpenApiHandler(ApiHandler):
    def get(self) -> None:
        self.finish(document(self.parts.prefix))


class HomeHandler(ApiHandler):
    def get(self) -> None:
        self.answer(Home, self.parts.coordinator.home(self.principal))


class MySiteHandler(ApiHandler):
    def get(self) -> None:
        self.answer(Site, self.parts.coordinator.my_site(self.principal))


class ProjectsHandler(ApiHandler):
    def get(self) -> None:
        self.answer(tuple[ProjectSummary, ...], self.parts.coordinator.home(self.principal).projects)

    def post(self) -> None:
        body = self.body(NewProject)
        project = self.parts.coordinator.create_project(self.principal, body.name, body.description)
        self.answer(ProjectSummary, project, HTTPStatus.CREATED)


class ProjectHandler(ApiHandler):
    def get(self, project_id: str) -> None:
        self.answer(ProjectDetail, self.parts.coordinator.project(self.principal, project_id))

    def patch(self, project_id: str) -> None:
        body = self.body(ProjectSettings)
        detail = self.parts.coordinator.set_outage(self.principal, project_id, body.on_outage, body.grace_s)
        self.answer(ProjectDetail, detail)

    def delete(self, project_id: str) -> None:
        self.parts.coordinator.delete_project(self.principal, project_id)
        self.done()


ROUTES = (
    (Route.OPENAPI, OpenApiHandler),
    (Route.HOME, HomeHandler),
    (Route.MY_SITE, MySiteHandler),
    (Route.PROJECTS, ProjectsHandler),
    (Route.PROJECT, ProjectHandler),
)
