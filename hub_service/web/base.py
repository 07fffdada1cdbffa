"""What every handler shares: headers, errors as answers, bodies with a limit.

A handler parses, asks the coordinator and answers. It decides nothing and compares no names.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from http import HTTPStatus
from logging import getLogger
from types import TracebackType
from typing import Any, ClassVar, TypeVar

from federator import logs
from federator.contract import API_VERSION, Problem
from jupyterhub.utils import get_browser_protocol
from tornado.http1connection import HTTP1Connection
from tornado.web import HTTPError, RequestHandler, stream_request_body

from hub_service.changes import Changes
from hub_service.coordinator import Coordinator
from hub_service.domain.errors import FederationError, Invalid, TooLarge, TooMany, Unavailable
from hub_service.identity import ApiIdentity
from hub_service.rate_limits import Counted
from hub_service.turns import Turns
from hub_service.web.error_map import STATUS, problem_of, problem_of_status
from hub_service.web.schema import MAX_BODY, MAX_UPLOAD, Body, parse, to_json
from hub_service.web.templating import Templates

log = getLogger(__name__)

API_HEADER = "X-Federation-API"
_HSTS_S = 365 * 86400  # a browser that came by TLS comes by nothing else for a year
# An upload over the limit is read and thrown away up to here, so that the sender hears the answer instead of a reset.
_DRAINED = 512 << 20  # bytes

# Scripts, styles and frames from this origin only, and none that stand in the page itself.
CONTENT_SECURITY_POLICY = "; ".join(
    (
        "default-src 'self'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data: blob:",
        "object-src 'none'",
        "base-uri 'none'",
        "form-action 'self'",
        "frame-ancestors 'self'",
    )
)

_RETRY_AFTER_S = 5  # of what does not answer for now

B = TypeVar("B", bound=Body)

Scrape = Callable[[], Awaitable[bytes]]
"""The service's metrics, in Prometheus' text format."""


async def no_metrics() -> bytes:
    """For where nothing is counted."""
    return b""


@dataclass(frozen=True, slots=True)
class Parts:
    """What handlers are given by `web.routes`."""

    coordinator: Coordinator
    changes: Changes
    templates: Templates
    prefix: str  # where the service is served, with a slash at both ends
    scrape: Scrape
    turns: Turns


class Answering(RequestHandler):
    """Headers and errors of everything that is served below the prefix."""

    goes_first: ClassVar[bool] = True  # before what nodes and runs ask of the service, where a browser asks

    parts: Parts

    def initialize(self, parts: Parts) -> None:
        self.parts = parts
        if self.goes_first and "Authorization" not in self.request.headers:  # scripts and notebook servers send a token
            parts.turns.page_begins(self)
        # A client that follows the redirect after an upload may still name the upload's type, and send no form.
        if self.request.method == "GET" and "Content-Type" in self.request.headers:
            del self.request.headers["Content-Type"]

    def on_finish(self) -> None:
        self.parts.turns.page_ends(self)

    def set_default_headers(self) -> None:
        self.set_header(API_HEADER, str(API_VERSION))
        self.set_header("Content-Security-Policy", CONTENT_SECURITY_POLICY)
        self.set_header("X-Content-Type-Options", "nosniff")
        self.set_header("Referrer-Policy", "same-origin")
        self.set_header("Cache-Control", "no-store")
        if get_browser_protocol(self.request) == "https":
            self.set_header("Strict-Transport-Security", f"max-age={_HSTS_S}")
        self.set_header(logs.REQUEST_ID_HEADER, logs.noted("request_id"))
        self.clear_header("Server")

    def send_error(self, status_code: int = 500, **kwargs: Any) -> None:
        """Called by tornado for every exception: an error with a public text has its own status."""
        error = _exception(kwargs)
        if isinstance(error, FederationError):
            status_code = STATUS[error.code]
            kwargs.pop("reason", None)
        super().send_error(status_code, **kwargs)

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        error = _exception(kwargs)
        if isinstance(error, TooMany):
            self.set_header("Retry-After", str(error.retry_after_s))
        elif isinstance(error, Unavailable):
            self.set_header("Retry-After", str(_RETRY_AFTER_S))
        self.write_problem(
            status_code, problem_of(error) if isinstance(error, FederationError) else problem_of_status(status_code)
        )

    def set_status_of(self, error: FederationError) -> None:
        self.set_status(STATUS[error.code])

    def write_problem(self, status: int, problem: Problem) -> None:
        """Answer with an error: JSON here, a page in `web.pages`."""
        self.set_header("Content-Type", "application/json")
        self.finish(to_json(Problem, problem))

    def log_exception(
        self,
        typ: type[BaseException] | None,
        value: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        """One line for what was told to the person; tornado's log with the stack for everything else."""
        if isinstance(value, FederationError):
            log.info("%s %s: %s %s", self.request.method, self.request.path, value.code, value.debug or value.message)
        elif isinstance(value, HTTPError) and value.status_code < HTTPStatus.INTERNAL_SERVER_ERROR:
            log.info("%s %s: %s", self.request.method, self.request.path, value.status_code)
        else:
            log.error("%s %s failed", self.request.method, self.request.path, exc_info=(typ, value, tb))  # type: ignore[arg-type]


def _exception(kwargs: dict[str, Any]) -> BaseException | None:
    info = kwargs.get("exc_info")
    return info[1] if info else None


class ApiHandler(Answering, ApiIdentity):
    """A JSON route for people and scripts."""

    def body(self, model: type[B]) -> B:
        """The request's body. Raises Invalid or TooLarge."""
        content = self.request.body
        if len(content) > MAX_BODY:
            raise TooLarge(f"The body has more than {MAX_BODY >> 20} MB.", "Send less.")
        return parse(model, content)

    def answer(self, answer: Any, value: object, status: HTTPStatus = HTTPStatus.OK) -> None:
        """Answer with a value of a type of the contract."""
        self.set_status(status)
        self.set_header("Content-Type", "application/json")
        self.finish(to_json(answer, value))

    def done(self) -> None:
        """Answer that it is done and that there is nothing to say about it."""
        self.set_status(HTTPStatus.NO_CONTENT)
        self.finish()


class NoSuchApi(ApiHandler):
    """Every path that is no route. A stranger hears nothing of which paths exist."""

    async def prepare(self) -> None:
        await super().prepare()
        raise HTTPError(HTTPStatus.NOT_FOUND)


@stream_request_body
class Upload(ApiIdentity):
    """Takes a body of up to `most_bytes` and holds no more of it in memory, whatever is sent; of a stranger's, nothing.

    Put first among a handler's bases. Whether it may be done is found out once the body is there: a form's XSRF token
    is in it, and a sender who is refused while still sending sees a broken connection instead of the reason.
    """

    counted = Counted.UPLOAD
    most_bytes = MAX_UPLOAD

    async def prepare(self) -> None:
        """Raises TooMany for an address that has asked too often without a login."""
        self._keeps = False
        if self.request.method in ("GET", "HEAD"):
            await self._identify()
        else:
            self._keeps = await self.has_known_login()
        self._content = bytearray()
        self._sent = 0  # bytes
        if isinstance(self.request.connection, HTTP1Connection):
            self.request.connection.set_max_body_size(_DRAINED)

    def data_received(self, chunk: bytes) -> None:
        """Called by tornado for each piece of the body."""
        self._sent += len(chunk)
        if self._sent > self.most_bytes or not self._keeps:
            self._content.clear()
        else:
            self._content += chunk

    async def received(self) -> bytes:
        """The whole body; each method that takes one calls this before anything else.

        Raises why the person is refused, then TooLarge.
        """
        content = bytes(self._content)
        self.read_arguments(content)
        await self._identify()
        if not self._keeps:
            raise Unavailable("The Hub did not say who you are while the file came in.", "Send it again.")
        if self._sent > self.most_bytes:
            raise TooLarge(
                f"The file has more than {MAX_UPLOAD >> 20} MB.",
                "Clear the notebook's outputs and leave data and weights out, then upload it again.",
            )
        return content

    async def _identify(self) -> None:
        identified: Awaitable[None] | None = super().prepare()
        if identified is not None:
            await identified

    def read_arguments(self, content: bytes) -> None:
        """Called before the person is identified. Forms read their fields here."""


def number_argument(handler: RequestHandler, name: str, default: float, low: float, high: float) -> float:
    """A number from the query, between `low` and `high`. Raises Invalid."""
    text = handler.get_query_argument(name, "")
    if not text:
        return default
    try:
        number = float(text)
    except ValueError:
        raise Invalid(f"{name} is not a number.", f"Send a number between {low:g} and {high:g}.") from None
    if not low <= number <= high:
        raise Invalid(f"{name} is {number:g}.", f"Send a number between {low:g} and {high:g}.")
    return number
