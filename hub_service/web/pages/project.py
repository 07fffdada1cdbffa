"""Pages: one project, its forms, and its app versions."""

from __future__ import annotations

from federator.contract import OutagePolicy

from hub_service.domain.errors import FederationError, Forbidden, Invalid, NotFound
from hub_service.web.assets import PLOTLY
from hub_service.web.hub_address import hub_address
from hub_service.web.pages.base import PageHandler, Refusal, UploadPage
from hub_service.web.pages.view import project_view, render_sections


class ProjectFrame(PageHandler):
    """Shows the project's page, for the page itself and for its forms where they are refused."""

    def show_project(self, project_id: str, refusal: Refusal | None = None) -> None:
        run_id = self.get_query_argument("run", "")
        view = project_view(self.parts.coordinator, self.principal, project_id, run_id)
        sections = render_sections(
            self.parts.templates,
            view,
            hub=self.hub_auth.hub_prefix,
            xsrf=self.xsrf_token.decode("ascii"),
            address=hub_address(self.request),
            kept=refusal.kept if refusal else {},
        )
        self.render_page(
            "project.html", view=view, run_id=run_id, sections=sections, refusal=refusal, plotly_file=PLOTLY
        )

    def refuse_form(self, project_id: str, form: str, error: FederationError, **kept: str) -> None:
        """Show the project again with the message at the form; what is not the person's to see stays an error."""
        if isinstance(error, NotFound):
            raise error
        self.show_project(project_id, self.refuse(form, error, **kept))


class ProjectPage(ProjectFrame):
    def get(self, project_id: str) -> None:
        self.show_project(project_id)


class VersionForm(UploadPage, ProjectFrame):
    async def post(self, project_id: str) -> None:
        try:
            await self.received()
            built = await self.parts.coordinator.build_app(self.principal, project_id, *self.file("app"))
            version = self.parts.coordinator.add_app(self.principal, project_id, built)
        except FederationError as error:
            if not hasattr(self, "principal"):
                raise
            self.refuse_form(project_id, "version", error)
            return
        self.go("projects", project_id, said=f"Version {version.number} is added. Each site's data steward is asked.")


class InviteForm(ProjectFrame):
    async def post(self, project_id: str) -> None:
        user = self.field("user").strip()
        try:
            await self.parts.coordinator.invite(self.principal, project_id, user)
        except FederationError as error:
            self.refuse_form(project_id, "invite", error, user=user)
            return
        self.go("projects", project_id, said=f"{user} is invited. They see it on their federation page.")


class JoinForm(ProjectFrame):
    def post(self, project_id: str) -> None:
        dataset = self.field("dataset")
        try:
            self.parts.coordinator.join(self.principal, project_id, dataset)
        except FederationError as error:
            self.refuse_form(project_id, "join", error, dataset=dataset)
            return
        self.go("projects", project_id, said=f"You take part with “{dataset}”, once your site's data steward agrees.")


class DeclineForm(ProjectFrame):
    def post(self, project_id: str) -> None:
        try:
            self.parts.coordinator.decline(self.principal, project_id)
        except FederationError as error:
            self.refuse_form(project_id, "join", error)
            return
        self.go("", said="The invitation is declined.")


class LeaveForm(ProjectFrame):
    def post(self, project_id: str) -> None:
        try:
            self.parts.coordinator.leave(self.principal, project_id)
        except FederationError as error:
            self.refuse_form(project_id, "participants", error)
            return
        self.go("", said="You no longer take part. Your Flower client has ended.")


class RemoveForm(ProjectFrame):
    def post(self, project_id: str) -> None:
        user = self.field("user")
        try:
            self.parts.coordinator.remove_member(self.principal, project_id, user)
        except FederationError as error:
            self.refuse_form(project_id, "participants", error)
            return
        self.go("projects", project_id, said=f"{user} is removed.")


class OutageForm(ProjectFrame):
    def post(self, project_id: str) -> None:
        on_outage, grace_s = self.field("on_outage"), self.field("grace_s")
        try:
            policy = OutagePolicy(on_outage)
        except ValueError:
            error = Invalid("There is no such choice.", "Choose one of the list.")
            self.refuse_form(project_id, "outage", error, on_outage=on_outage, grace_s=grace_s)
            return
        try:
            self.parts.coordinator.set_outage(self.principal, project_id, policy, self.whole_number("grace_s"))
        except FederationError as error:
            self.refuse_form(project_id, "outage", error, on_outage=on_outage, grace_s=grace_s)
            return
        self.go("projects", project_id, said="Saved. It holds for runs that are started from now on.")


class RunForm(ProjectFrame):
    def post(self, project_id: str) -> None:
        rounds, compare, seed = self.field("rounds"), self.field("compare"), self.field("seed")
        try:
            self.parts.coordinator.start_run(
                self.principal,
                project_id,
                self.whole_number("rounds"),
                compare=bool(compare),
                seed=self.whole_number("seed") if seed.strip() else None,
            )
        except FederationError as error:
            self.refuse_form(project_id, "run", error, rounds=rounds, compare=compare, seed=seed)
            return
        self.go("projects", project_id, said="The run is starting.")


class StopForm(ProjectFrame):
    def post(self, project_id: str) -> None:
        try:
            self.parts.coordinator.stop_run(self.principal, self.field("run"))
        except FederationError as error:
            self.refuse_form(project_id, "run", error)
            return
        self.go("projects", project_id, said="The run is being stopped.")


class DeletePage(PageHandler):
    """Says what is lost with a project, and deletes it for whoever writes its name."""

    def get(self, project_id: str) -> None:
        self._show(project_id)

    def post(self, project_id: str) -> None:
        name = self.parts.coordinator.contents(self.principal, project_id).project.name
        try:
            if self.field("name").strip() != name:
                raise Invalid("That is not the project's name.", "Write the name as it stands above.")
            self.parts.coordinator.delete_project(self.principal, project_id)
        except FederationError as error:
            self._show(project_id, self.refuse("delete", error))
            return
        self.go("", said=f"“{name}” is deleted.")

    def _show(self, project_id: str, refusal: Refusal | None = None) -> None:
        contents = self.parts.coordinator.contents(self.principal, project_id)
        self.render_page("delete_project.html", contents=contents, refusal=refusal)


class VersionPage(PageHandler):
    """Everything in an app version, for the project's members."""

    async def get(self, project_id: str, fab_hash: str) -> None:
        review = self.parts.coordinator.app_review(self.principal, project_id, fab_hash)
        try:
            project = self.parts.coordinator.project(self.principal, project_id)
        except (NotFound, Forbidden):
            project = None  # a steward of a site that was asked, who is no member
        await self.render_code("version.html", review.files, review=review, project=project, project_id=project_id)


_PROJECT = r"projects/(?P<project_id>[^/]+)"

ROUTES = (
    (_PROJECT, ProjectPage),
    (f"{_PROJECT}/apps", VersionForm),
    (f"{_PROJECT}/apps/(?P<fab_hash>[^/]+)", VersionPage),
    (f"{_PROJECT}/invitations", InviteForm),
    (f"{_PROJECT}/participation", JoinForm),
    (f"{_PROJECT}/decline", DeclineForm),
    (f"{_PROJECT}/leave", LeaveForm),
    (f"{_PROJECT}/remove", RemoveForm),
    (f"{_PROJECT}/runs", RunForm),
    (f"{_PROJECT}/stop", StopForm),
    (f"{_PROJECT}/outage", OutageForm),
    (f"{_PROJECT}/delete", DeletePage),
)
