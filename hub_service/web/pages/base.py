"""What pages share: the frame around them, messages from one page to the next, and forms."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

from federator import logs
from federator.contract import Problem, Site, SourceFile
from tornado.escape import json_encode
from tornado.httputil import HTTPInputError, parse_body_arguments
from tornado.web import HTTPError

from hub_service.domain.errors import FederationError, Forbidden, Invalid, TooLarge
from hub_service.identity import PageIdentity
from hub_service.web.assets import HUB_SCRIPT, HUB_STYLE
from hub_service.web.base import Answering, Upload
from hub_service.web.error_map import problem_of
from hub_service.web.hub_address import hub_address
from hub_service.web.schema import MAX_BODY

_FLASH = "federation-flash"
MOST_SHOWN = 4_000_000  # characters of an app's files on one page
_LINE = 50  # characters that a line takes besides its own
_LONGEST_SAID = 600  # characters; a browser drops a cookie of more than 4 KB


@dataclass(frozen=True, slots=True)
class Refusal:
    """A form that could not be done: which one, why, and what the person had put into it."""

    form: str
    problem: Problem
    kept: Mapping[str, str] = field(default_factory=dict)


def left_out(files: Iterable[SourceFile]) -> frozenset[str]:
    """Paths of the files that a page which shows the others has no room for."""
    left, too_much = MOST_SHOWN, set()
    for file in files:
        size = len(file.text) + _LINE * file.text.count("\n")
        if size > left:
            too_much.add(file.path)
        else:
            left -= size
    return frozenset(too_much)


class PageHandler(Answering, PageIdentity):
    """A page. Forms are posted and answered by a redirect, or shown again with the message."""

    def render_page(self, name: str, **values: Any) -> None:
        self.set_header("Content-Type", "text/html; charset=UTF-8")
        self.finish(self.parts.templates.render(name, {**self.frame(), **values}))

    async def render_code(self, name: str, files: Iterable[SourceFile], **values: Any) -> None:
        """As `render_page`, for a page with an app's files: in a thread, for they may be long.

        The template's `left_out` has the paths of those that are too much for a page.
        """
        given = {**self.frame(), **values, "left_out": left_out(files)}
        page = await asyncio.to_thread(self.parts.templates.render, name, given)
        self.set_header("Content-Type", "text/html; charset=UTF-8")
        self.finish(page)

    def frame(self) -> dict[str, Any]:
        """What the frame around every page shows. `principal` is missing where the error came before the login."""
        principal = getattr(self, "principal", None)
        return {
            "user": principal.name if principal else None,
            "hub": self.hub_auth.hub_prefix,
            "hub_style": HUB_STYLE,
            "hub_script": HUB_SCRIPT,
            "flash": self._take_flash(),
            "xsrf": self.xsrf_token.decode("ascii"),
            "address": hub_address(self.request),
            "administers": principal is not None and self.parts.coordinator.administers(principal),
        }

    def write_problem(self, status: int, problem: Problem) -> None:
        self.render_page(
            "error.html",
            status=status,
            reason=HTTPStatus(status).phrase,
            problem=problem,
            request_id=logs.noted("request_id"),
        )

    # --- messages to the next page

    def go(self, *segments: str, said: str = "", kind: str = "success", next_step: str = "") -> None:
        """Redirect to a page below the prefix, which then shows what was said."""
        if said:
            text = json_encode({"kind": kind, "text": said[:_LONGEST_SAID], "next_step": next_step[:_LONGEST_SAID]})
            self.set_secure_cookie(
                _FLASH, text, expires_days=None, path=self.parts.prefix, httponly=True, samesite="Lax"
            )
        self.redirect(self.parts.templates.url(*segments), status=HTTPStatus.SEE_OTHER)

    def _take_flash(self) -> dict[str, str] | None:
        signed = self.get_secure_cookie(_FLASH, max_age_days=1)
        if signed is None:
            return None
        self.clear_cookie(_FLASH, path=self.parts.prefix)
        flash: dict[str, str] = json.loads(signed)
        return flash

    # --- forms

    def field(self, name: str) -> str:
        """A field of the form, "" if it was not sent. Raises TooLarge."""
        if len(self.request.body) > MAX_BODY:
            raise TooLarge(f"The form has more than {MAX_BODY >> 20} MB.", "Send less.")
        return self.get_body_argument(name, "", strip=False).replace("\r\n", "\n")

    def whole_number(self, name: str) -> int:
        """A number field of the form. Raises Invalid."""
        text = self.field(name).strip()
        if not (text.isascii() and text.isdigit() and len(text) < 10):
            raise Invalid(f"“{text[:20]}” is not a whole number.", "Put in a number such as 5.")
        return int(text)

    def refuse(self, form: str, error: FederationError, **kept: str) -> Refusal:
        """What the page shows at the form. The status is the error's."""
        self.set_status_of(error)
        return Refusal(form, problem_of(error), kept)

    def my_site(self) -> Site | None:
        """The person's site, or None where the Hub places them at none."""
        try:
            return self.parts.coordinator.my_site(self.principal)
        except Forbidden:
            return None


class UploadPage(Upload, PageHandler):
    """A page with a form that sends a file. Its XSRF token is in the address too, for a file over the limit."""

    def read_arguments(self, content: bytes) -> None:
        """Read the form's fields. What is no form has none."""
        arguments = self.request.body_arguments
        try:
            parse_body_arguments(self.request.headers.get("Content-Type", ""), content, arguments, self.request.files)
        except HTTPInputError:
            arguments.clear()
        for name, values in arguments.items():
            self.request.arguments.setdefault(name, []).extend(values)

    def chosen(self, name: str) -> bool:
        """Whether a file was chosen in this field."""
        files = self.request.files.get(name)
        return bool(files and files[-1]["filename"])

    def file(self, name: str) -> tuple[str, bytes]:
        """Name and content of the file that was chosen. Raises Invalid if none was."""
        if not self.chosen(name):
            raise Invalid("No notebook or app was chosen.", "Choose an .ipynb file, or a Flower app as a zip file.")
        last = self.request.files[name][-1]
        return last["filename"], last["body"]


class NoSuchPage(PageHandler):
    """Every path that is no page."""

    async def prepare(self) -> None:
        await super().prepare()
        if not self._finished:
            raise HTTPError(HTTPStatus.NOT_FOUND)
