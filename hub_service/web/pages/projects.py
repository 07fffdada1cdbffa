"""Pages: my projects, and a new one: choose, see what leaves, create."""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import PurePath

from hub_service.domain.errors import FederationError, Invalid, TooLarge
from hub_service.operations.builder import BuiltApp
from hub_service.web.pages.base import PageHandler, Refusal, UploadPage
from hub_service.web.schema import MAX_UPLOAD
from hub_service.web.steps import Step, StepState

_FIELDS_BESIDE_THE_FILE = 64 << 10  # bytes


class ProjectsPage(PageHandler):
    def get(self) -> None:
        self.render_page("projects.html", home=self.parts.coordinator.home(self.principal), site=self.my_site())


class Doing(StrEnum):
    """What the button of the form asks for; a form without one creates."""

    PREVIEW = "preview"
    BACK = "back"
    CREATE = "create"


@dataclass(frozen=True, slots=True)
class Draft:
    """What was put into the form so far. The page carries the file along, as a browser keeps no file of a form."""

    name: str = ""
    description: str = ""
    filename: str = ""
    content: bytes = b""

    @property
    def encoded(self) -> str:
        return base64.b64encode(self.content).decode("ascii")

    @property
    def has_file(self) -> bool:
        return bool(self.filename)


def form_steps(doing: Doing) -> tuple[Step, ...]:
    """The steps of a new project, at the form or at its preview."""
    choosing = doing is not Doing.PREVIEW
    return (
        Step("Choose", StepState.NEXT if choosing else StepState.DONE, "a notebook or a Flower app", ""),
        Step("Preview", StepState.LATER if choosing else StepState.NEXT, "what leaves, what stays", ""),
        Step("Invite", StepState.LATER, "colleagues at other sites", ""),
        Step("Approve", StepState.LATER, "each site's data steward", ""),
        Step("Run", StepState.LATER, "and watch it learn", ""),
    )


class NewProjectPage(UploadPage):
    most_bytes = MAX_UPLOAD * 4 // 3 + _FIELDS_BESIDE_THE_FILE  # a file that is carried along is in base64

    def get(self) -> None:
        self._show_form(Draft(), None)

    def _show_form(self, draft: Draft, refusal: Refusal | None) -> None:
        self.render_page(
            "new_project.html",
            draft=draft,
            refusal=refusal,
            site=self.my_site(),
            starters=self.parts.coordinator.starters(self.principal),
            steps=form_steps(Doing.BACK),
            most_bytes=MAX_UPLOAD,
        )

    async def post(self) -> None:
        """Preview, go back or create. Whatever is refused, what was put in stays in the form, the file too."""
        draft = Draft()
        try:
            await self.received()
            draft = replace(draft, name=self.field("name"), description=self.field("description"))
            draft = self._with_file(draft)
            doing = self._doing()
            if doing is Doing.BACK:
                self._show_form(draft, None)
            elif doing is Doing.PREVIEW:
                await self._show_preview(draft, await self._built(draft))
            else:
                self._create(draft, await self._built(draft))
        except FederationError as error:
            if not hasattr(self, "principal"):
                raise
            self._show_form(draft, self.refuse("new", error))

    def _doing(self) -> Doing:
        text = self.field("step") or Doing.CREATE
        if text not in list(Doing):
            raise Invalid("This form has no such step.", "Use the buttons of the page.")
        return Doing(text)

    def _with_file(self, draft: Draft) -> Draft:
        """The draft with the starter or the file that was chosen, or with the file that the page carried along."""
        starter = self.field("starter")
        if starter:
            filename, content = self.parts.coordinator.starter(self.principal, starter)
            titles = {one.name: one.title for one in self.parts.coordinator.starters(self.principal)}
            return replace(draft, name=draft.name.strip() or titles[starter], filename=filename, content=content)
        if not self.chosen("app") and self.field("kept_filename"):
            filename, content = self.field("kept_filename"), self._carried()
        elif self.chosen("app") or self._doing() is not Doing.BACK:
            filename, content = self.file("app")
        else:
            return draft
        if len(content) > MAX_UPLOAD:
            raise TooLarge(
                f"{filename} has more than {MAX_UPLOAD >> 20} MB.",
                "Clear the notebook's outputs and leave data and weights out, then choose it again.",
            )
        return replace(draft, filename=filename, content=content)

    def _carried(self) -> bytes:
        try:
            return base64.b64decode(self.get_body_argument("kept_content", ""), validate=True)
        except binascii.Error:
            raise Invalid("The file did not come along unharmed.", "Choose it again.") from None

    async def _built(self, draft: Draft) -> BuiltApp:
        """Nothing is created for an app that cannot be built."""
        return await self.parts.coordinator.build_app(self.principal, "", draft.filename, draft.content)

    async def _show_preview(self, draft: Draft, built: BuiltApp) -> None:
        preview = self.parts.coordinator.preview_app(self.principal, "", built)
        draft = replace(draft, name=draft.name.strip() or PurePath(draft.filename).stem)
        steps = form_steps(Doing.PREVIEW)
        await self.render_code("new_project_preview.html", preview.files, draft=draft, preview=preview, steps=steps)

    def _create(self, draft: Draft, built: BuiltApp) -> None:
        project = self.parts.coordinator.create_project_of(self.principal, draft.name, draft.description, built)
        self.go("projects", project.id, said="The project is created. Now take part with your data and invite others.")


ROUTES = ((r"", ProjectsPage), (r"projects/new", NewProjectPage))
