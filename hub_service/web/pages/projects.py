"""Pages: my projects, and a new one."""

from __future__ import annotations

from hub_service.domain.errors import FederationError
from hub_service.web.pages.base import PageHandler, Refusal, UploadPage


class ProjectsPage(PageHandler):
    def get(self) -> None:
        self.render_page("projects.html", home=self.parts.coordinator.home(self.principal), site=self.my_site())


class NewProjectPage(UploadPage):
    def get(self) -> None:
        self._show(None)

    def _show(self, refusal: Refusal | None) -> None:
        self.render_page("new_project.html", refusal=refusal, site=self.my_site())

    async def post(self) -> None:
        """Create the project, then add the app. A refused app leaves a project to which another can be added."""
        kept: dict[str, str] = {}
        try:
            await self.received()
            kept = {"name": self.field("name"), "description": self.field("description")}
            app = self.file("app")
            project = self.parts.coordinator.create_project(self.principal, kept["name"], kept["description"])
        except FederationError as error:
            if not hasattr(self, "principal"):
                raise
            self._show(self.refuse("new", error, **kept))
            return
        try:
            self.parts.coordinator.add_app(self.principal, project.id, *app)
        except FederationError as error:
            said = f"The project is created, but {app[0]} cannot be its app: {error.message}"
            self.go("projects", project.id, said=said, kind="danger", next_step=error.next_step)
            return
        self.go("projects", project.id, said="The project is created. Now take part with your data and invite others.")


ROUTES = ((r"", ProjectsPage), (r"projects/new", NewProjectPage))
