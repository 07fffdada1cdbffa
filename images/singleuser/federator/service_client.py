"""How a notebook server speaks to the Hub's federation service.

A `Request[T]` says what to ask and which type the answer has; the functions below make one for each operation of
`federator.contract.Route`. `ServiceClient` (kernels, notebooks) and `AsyncServiceClient` (the extension) send it:

    with ServiceClient(Access.from_env()) as service:
        detail = service.call(get_project("p1"))

What can go wrong, each with a message and a next step for the person:

    ServiceError
    ├── NotSetUp          this process was not started by a Hub with the federation service
    ├── Unreachable       nobody answered, or something that is not the service did
    ├── NotAllowed        401, 403: the server's token does not open this
    ├── NotFound          404: missing, or not yours
    ├── Refused           any other refusal; `code` is the service's own
    └── WrongVersion      the answer cannot be read: service and client package differ too much
"""

from __future__ import annotations

import asyncio
import os
import secrets
import ssl
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Generic, Self, TypeVar
from urllib.parse import quote

import httpx
from pydantic import TypeAdapter, ValidationError

from federator.contract import (
    API_VERSION,
    AppPreview,
    ApprovalRequest,
    AppVersion,
    Assignments,
    ClientState,
    Env,
    Home,
    ModelFile,
    OutagePolicy,
    Participant,
    Problem,
    ProjectDetail,
    ProjectSummary,
    Route,
    RunDetail,
    RunFigures,
    RunLog,
    RunResult,
    RunSummary,
    SignedRecord,
    Site,
    SiteApprovals,
    Starter,
)
from federator.logs import REQUEST_ID_HEADER

VERSION_HEADER = "X-Federation-API"
TOKEN_VARIABLE = "JUPYTERHUB_API_TOKEN"  # noqa: S105 - the name, not the token
DEFAULT_TIMEOUT = 30.0  # seconds
LONGEST_DETAIL = 1000  # characters that the service keeps of a report; a traceback's last line has no limit
LONGEST_PATIENCE = 60  # seconds that a request is held back altogether because the service is asked too often
STREAM_SILENCE = 45.0  # seconds; a stream of events that is alive says so every 15 s
UPLOAD_TIMEOUT = 300.0  # seconds; building an app from a notebook and fetching a model take longer

T = TypeVar("T")


class ServiceError(Exception):
    """Base of what a person is told when an operation did not work."""

    def __init__(self, message: str, next_step: str = "", *, code: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.next_step = next_step
        self.code = code

    def __str__(self) -> str:
        return f"{self.message} {self.next_step}".strip()

    def _render_traceback_(self) -> list[str]:
        """IPython's hook: show the person two lines rather than our stack."""
        return [line for line in (self.message, self.next_step) if line]


class NotSetUp(ServiceError):
    pass


class Unreachable(ServiceError):
    pass


class NotAllowed(ServiceError):
    pass


class NotFound(ServiceError):
    pass


class Refused(ServiceError):
    pass


class WrongVersion(ServiceError):
    pass


@dataclass(frozen=True, slots=True)
class Access:
    """Where the service is and the token that opens it. The token is left out of the repr."""

    url: str
    token: str = field(repr=False)

    @classmethod
    def from_env(cls, environ: Mapping[str, str] = os.environ) -> Access:
        """Read what the spawner set on the notebook server.

        Raises:
            NotSetUp: the service's address or the server's token is missing.
        """
        url, token = environ.get(Env.SERVICE_URL, ""), environ.get(TOKEN_VARIABLE, "")
        missing = [name for name, value in ((Env.SERVICE_URL, url), (TOKEN_VARIABLE, token)) if not value]
        if missing:
            raise NotSetUp(
                f"This notebook server is not part of a federation ({' and '.join(missing)} not set).",
                "Start your server from a JupyterHub that offers the federation service, and run this there.",
            )
        return cls(url=url if url.endswith("/") else f"{url}/", token=token)


@dataclass(frozen=True, slots=True)
class Request(Generic[T]):
    """One operation of the API. `answer` is the type of its JSON answer; `bytes` and `None` are taken as they are."""

    method: str
    path: str
    answer: Any
    query: Mapping[str, str] = field(default_factory=dict)
    json: Mapping[str, Any] | None = None
    content: bytes | None = None
    timeout: float = DEFAULT_TIMEOUT  # seconds


def _path(route: Route, **parts: str) -> str:
    """The route with its `{...}` filled in; a name with a slash stays one part."""
    return route.format(**{name: quote(value, safe="") for name, value in parts.items()})


def get_home() -> Request[Home]:
    return Request("GET", Route.HOME, Home)


def get_my_site() -> Request[Site]:
    return Request("GET", Route.MY_SITE, Site)


def get_starters() -> Request[tuple[Starter, ...]]:
    return Request("GET", Route.STARTERS, tuple[Starter, ...])


def get_starter(name: str) -> Request[bytes]:
    """A notebook file."""
    return Request("GET", _path(Route.STARTER, name=name), bytes)


def create_project(name: str, description: str) -> Request[ProjectSummary]:
    return Request("POST", Route.PROJECTS, ProjectSummary, json={"name": name, "description": description})


def get_project(project_id: str) -> Request[ProjectDetail]:
    return Request("GET", _path(Route.PROJECT, project_id=project_id), ProjectDetail)


def set_outage(project_id: str, on_outage: OutagePolicy, grace_s: float) -> Request[ProjectDetail]:
    body = {"on_outage": on_outage, "grace_s": grace_s}
    return Request("PATCH", _path(Route.PROJECT, project_id=project_id), ProjectDetail, json=body)


def add_app(project_id: str, filename: str, content: bytes) -> Request[AppVersion]:
    return Request(
        "POST",
        _path(Route.APPS, project_id=project_id),
        AppVersion,
        query={"filename": filename},
        content=content,
        timeout=UPLOAD_TIMEOUT,
    )


def build(filename: str, content: bytes, project_id: str = "") -> Request[AppPreview]:
    """What a notebook or a zipped app would become. `project_id`: hear what its sites lack, too."""
    query = {"filename": filename, **({"project": project_id} if project_id else {})}
    return Request("POST", Route.BUILD, AppPreview, query=query, content=content, timeout=UPLOAD_TIMEOUT)


def report_packages(distributions: Mapping[str, str], modules: Sequence[str]) -> Request[None]:
    """Tell the service what this server's image has, for the checks of apps' dependencies."""
    body = {"distributions": dict(distributions), "modules": list(modules)}
    return Request("PUT", Route.SITE_PACKAGES, None, json=body)


def invite(project_id: str, user: str) -> Request[Participant]:
    return Request("POST", _path(Route.INVITATIONS, project_id=project_id), Participant, json={"user": user})


def decline(project_id: str) -> Request[None]:
    return Request("POST", _path(Route.DECLINE, project_id=project_id), None)


def join(project_id: str, dataset: str) -> Request[Participant]:
    return Request("POST", _path(Route.PARTICIPATION, project_id=project_id), Participant, json={"dataset": dataset})


def leave(project_id: str) -> Request[None]:
    return Request("DELETE", _path(Route.PARTICIPATION, project_id=project_id), None)


def remove_member(project_id: str, user: str) -> Request[None]:
    return Request("DELETE", _path(Route.MEMBER, project_id=project_id, user=user), None)


def get_approvals() -> Request[tuple[ApprovalRequest, ...]]:
    return Request("GET", Route.APPROVALS, tuple[ApprovalRequest, ...])


def start_run(project_id: str, rounds: int, compare: bool, seed: int | None = None) -> Request[RunSummary]:
    body = {"rounds": rounds, "compare": compare} | ({} if seed is None else {"seed": seed})
    return Request("POST", _path(Route.RUNS, project_id=project_id), RunSummary, json=body)


def stop_run(run_id: str) -> Request[RunSummary]:
    return Request("POST", _path(Route.RUN_STOP, run_id=run_id), RunSummary)


def get_run(run_id: str) -> Request[RunDetail]:
    return Request("GET", _path(Route.RUN, run_id=run_id), RunDetail)


def get_run_figures(run_id: str, metric: str) -> Request[RunFigures]:
    return Request("GET", _path(Route.RUN_FIGURES, run_id=run_id), RunFigures, query={"metric": metric})


def get_run_log(run_id: str, after: int) -> Request[RunLog]:
    return Request("GET", _path(Route.RUN_LOG, run_id=run_id), RunLog, query={"after": str(after)})


def get_events(project_id: str, run_id: str, metric: str) -> Request[None]:
    """Server-sent events of a project and one of its runs, for `ServiceClient.events`."""
    path = _path(Route.EVENTS, project_id=project_id)
    return Request("GET", path, None, query={"run": run_id, "metric": metric}, timeout=STREAM_SILENCE)


def get_run_result(run_id: str, metric: str) -> Request[RunResult]:
    return Request("GET", _path(Route.RUN_RESULT, run_id=run_id), RunResult, query={"metric": metric})


def get_models(run_id: str) -> Request[tuple[ModelFile, ...]]:
    return Request("GET", _path(Route.RUN_MODELS, run_id=run_id), tuple[ModelFile, ...])


def get_model(run_id: str, which: str = "last") -> Request[bytes]:
    """`which`: "last", "best", or a round's number."""
    path = _path(Route.RUN_MODEL, run_id=run_id)
    return Request("GET", path, bytes, query={"round": which}, timeout=UPLOAD_TIMEOUT)


def get_card(run_id: str) -> Request[bytes]:
    """Markdown in UTF-8."""
    return Request("GET", _path(Route.RUN_CARD, run_id=run_id), bytes)


def get_signed(run_id: str) -> Request[SignedRecord]:
    return Request("GET", _path(Route.RUN_SIGNED, run_id=run_id), SignedRecord)


def get_signing_key() -> Request[bytes]:
    """PEM."""
    return Request("GET", Route.SIGNING_KEY, bytes)


def get_capsule(run_id: str) -> Request[bytes]:
    return Request("GET", _path(Route.RUN_CAPSULE, run_id=run_id), bytes, timeout=UPLOAD_TIMEOUT)


def get_record(run_id: str) -> Request[dict[str, Any]]:
    return Request("GET", _path(Route.RUN_RECORD, run_id=run_id), dict[str, Any])


def get_assignments(version: str, wait: int) -> Request[Assignments]:
    """Ask for what differs from `version`, waiting up to `wait` seconds for a change."""
    return Request(
        "GET",
        Route.ASSIGNMENTS,
        Assignments,
        query={"version": version, "wait": str(wait)},
        timeout=wait + DEFAULT_TIMEOUT,
    )


def register_node(participation_id: str, public_key: bytes) -> Request[SiteApprovals]:
    """Tell the service the key that this client's node signs with; an earlier key stops working."""
    return Request(
        "PUT",
        _path(Route.NODE, participation_id=participation_id),
        SiteApprovals,
        json={"public_key": public_key.decode("ascii")},
    )


def report_client(participation_id: str, state: ClientState, detail: str = "") -> Request[None]:
    return Request(
        "PUT",
        _path(Route.CLIENT, participation_id=participation_id),
        None,
        json={"state": state.value, "detail": detail[:LONGEST_DETAIL]},
    )


def get_site_approvals(participation_id: str) -> Request[SiteApprovals]:
    return Request("GET", _path(Route.SITE_APPROVALS, participation_id=participation_id), SiteApprovals)


def get_approved_app(participation_id: str, fab_hash: str) -> Request[bytes]:
    """The FAB of an app version that may run on the participation's dataset now."""
    path = _path(Route.APPROVED_APP, participation_id=participation_id, fab_hash=fab_hash)
    return Request("GET", path, bytes, timeout=UPLOAD_TIMEOUT)


class ServiceClient:
    """Sends requests and waits for the answers. Use as a context manager, or `close()`. Safe between threads."""

    def __init__(self, access: Access) -> None:
        self._http = httpx.Client(**_http_options(access))

    def call(self, request: Request[T]) -> T:
        """Send one request and return its answer.

        Raises:
            ServiceError: see the module's tree.
        """
        patience = _Patience()
        while True:
            try:
                response = self._http.request(**_arguments(request))
            except httpx.HTTPError as error:
                raise _unreachable(error) from error
            wait_s = patience.wait_s(response)
            if not wait_s:
                return _answer(request, response)
            time.sleep(wait_s)

    def events(self, request: Request[None]) -> Iterator[tuple[str, str]]:
        """Kind and data of each event of a stream, until it ends; ("", "") where it only says that it is alive.

        Raises:
            ServiceError: as `call`; Unreachable where the stream breaks.
        """
        try:
            with self._http.stream(**_arguments(request)) as response:
                if not response.is_success:
                    response.read()
                    raise _error(response)
                _check_version(response)
                yield from _events(response.iter_lines())
        except httpx.HTTPError as error:
            raise _unreachable(error) from error

    def close(self) -> None:
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class AsyncServiceClient:
    """`ServiceClient` for the notebook server's event loop."""

    def __init__(self, access: Access) -> None:
        self._http = httpx.AsyncClient(**_http_options(access))

    async def call(self, request: Request[T]) -> T:
        """Send one request and return its answer.

        Raises:
            ServiceError: see the module's tree.
        """
        patience = _Patience()
        while True:
            try:
                response = await self._http.request(**_arguments(request))
            except httpx.HTTPError as error:
                raise _unreachable(error) from error
            wait_s = patience.wait_s(response)
            if not wait_s:
                return _answer(request, response)
            await asyncio.sleep(wait_s)

    async def close(self) -> None:
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


class _Patience:
    """Does what a service asks for that is asked too often: comes back after Retry-After, but not for ever.

    Nothing of a request that was answered with 429 has happened, so each may be sent again.
    """

    def __init__(self) -> None:
        self._left_s = LONGEST_PATIENCE

    def wait_s(self, response: httpx.Response) -> int:
        """How long to wait before the same request is sent again, in seconds; 0 for an answer to be taken as it is."""
        told = response.headers.get("Retry-After", "")
        if response.status_code != httpx.codes.TOO_MANY_REQUESTS or not told.isdecimal():
            return 0
        wait_s = max(1, int(told))
        if wait_s > self._left_s:
            return 0
        self._left_s -= wait_s
        return wait_s


def _http_options(access: Access) -> dict[str, Any]:
    return {
        "base_url": access.url,
        "headers": {"Authorization": f"token {access.token}", "Accept": "application/json"},
        # Python's own defaults: the system's certificates, and SSL_CERT_FILE where the site has its own authority.
        "verify": ssl.create_default_context(),
        # A redirect is a login page: the service itself answers 401 or 403.
        "follow_redirects": False,
    }


def _arguments(request: Request[Any]) -> dict[str, Any]:
    return {
        "method": request.method,
        "url": str(request.path),
        "params": dict(request.query),
        "json": request.json,
        "content": request.content,
        "timeout": request.timeout,
        "headers": {REQUEST_ID_HEADER: secrets.token_hex(8)},
    }


def _unreachable(error: httpx.HTTPError) -> Unreachable:
    return Unreachable(
        f"The federation service does not answer ({type(error).__name__}).",
        "It may be restarting: try again in a minute. If it stays away, tell the Hub's administrators.",
    )


def _answer(request: Request[T], response: httpx.Response) -> T:
    if not response.is_success:
        raise _error(response)
    _check_version(response)
    if request.answer is None or request.answer is bytes:
        return response.content if request.answer is bytes else None  # type: ignore[return-value]
    try:
        parsed: T = _reader(request.answer).validate_json(response.content)
    except ValidationError as error:
        raise WrongVersion(
            f"The federation service's answer to {request.method} {request.path} could not be read.",
            "Restart your server to get the current client; if that does not help, tell the Hub's administrators.",
        ) from error
    return parsed


def _events(lines: Iterable[str]) -> Iterator[tuple[str, str]]:
    kind = ""
    for line in lines:
        field_, _, value = line.partition(": ")
        if field_ == "event":
            kind = value
        elif field_ == "data":
            yield kind, value
        elif line.startswith(":"):
            yield "", ""


def read_event(answer: Any, data: str) -> Any:
    """The data of an event whose kind has this type. Raises WrongVersion."""
    try:
        return _reader(answer).validate_json(data)
    except ValidationError as error:
        raise WrongVersion(
            "The federation service sent an event that could not be read.",
            "Restart your server to get the current client; if that does not help, tell the Hub's administrators.",
        ) from error


@cache
def _reader(answer: Any) -> TypeAdapter[Any]:
    return TypeAdapter(answer)


def _check_version(response: httpx.Response) -> None:
    spoken = response.headers.get(VERSION_HEADER)
    if spoken is None:
        raise Unreachable(
            f"Something other than the federation service answers at {response.url.copy_with(query=None)}.",
            "Tell the Hub's administrators: this server has the service's address wrong, or a proxy stands before it.",
        )
    if spoken != str(API_VERSION):
        raise WrongVersion(
            f"The federation service speaks version {spoken} of its API, this server version {API_VERSION}.",
            "Restart your server to get the current client; if that does not help, tell the Hub's administrators.",
        )


def _error(response: httpx.Response) -> ServiceError:
    """The exception for an answer that is not a success."""
    problem = _problem(response)
    status = response.status_code
    if problem is not None:
        kind = {401: NotAllowed, 403: NotAllowed, 404: NotFound, 502: Unreachable, 503: Unreachable, 504: Unreachable}
        next_step = problem.next_step
        if status >= httpx.codes.INTERNAL_SERVER_ERROR and (known := response.headers.get(REQUEST_ID_HEADER)):
            next_step = f"{next_step} If you ask for help, say {known}.".strip()
        return kind.get(status, Refused)(problem.message, next_step, code=problem.code)
    if status in (401, 403) or response.is_redirect:
        return NotAllowed(
            "The federation service does not accept this server's token.",
            "Stop and start your server in the Hub's control panel; if that does not help, ask the Hub's"
            " administrators whether your role may use the federation service.",
        )
    return Unreachable(
        f"The federation service does not answer (status {status}).",
        "It may be restarting: try again in a minute. If it stays away, tell the Hub's administrators.",
    )


def _problem(response: httpx.Response) -> Problem | None:
    try:
        problem: Problem = _reader(Problem).validate_json(response.content)
    except ValidationError:
        return None
    return problem
