"""What the JSON API takes and gives: models of request bodies, and the operations with their types.

`parse` checks a body; `to_json` writes an answer; `web.openapi` makes the OpenAPI document from `OPERATIONS`.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from functools import cache
from http import HTTPStatus
from typing import Annotated, Any, Literal, TypeVar

from federator.contract import (
    AppPreview,
    AppReview,
    ApprovalRequest,
    AppVersion,
    Assignments,
    ClientState,
    Home,
    ModelFile,
    OutagePolicy,
    Participant,
    PastDecision,
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
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from hub_service.domain.errors import Invalid

MAX_BODY = 1 << 20  # bytes of a JSON body or a form; uploads have their own limit
MAX_UPLOAD = 20 << 20  # bytes of a notebook or an app
MAX_WAIT_S = 55  # of a long poll; proxies often cut one off after a minute


class Body(BaseModel):
    """A request's JSON object: no unknown field, no value of another type."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class NewProject(Body):
    name: str
    description: str = ""


class ProjectSettings(Body):
    """What the project's runs do, from the next one on, when a site falls silent while it is waited for."""

    on_outage: Annotated[OutagePolicy, Field(strict=False)]
    grace_s: Annotated[float, Field(description="For how long it is waited for, in seconds")]


class NewInvitation(Body):
    user: Annotated[str, Field(description="Name of a user of this Hub")]


class NewParticipation(Body):
    dataset: Annotated[str, Field(description="Name of a dataset of one's own site")]


class Decision(Body):
    """A steward's answer to an approval request. The limits are an approval's; a rejection needs a reason.

    At a site that wants two stewards, the first approval is answered with the state "approved-once"; the second must
    have the same limits.
    """

    project_id: str
    fab_hash: str
    site: str
    dataset: str
    state: Literal["approved", "rejected", "revoked"]
    reason: str = ""
    expires_at: Annotated[AwareDatetime | None, Field(description="With a time zone; null: never")] = None
    most_rounds: Annotated[int | None, Field(description="Of one run; null: no limit")] = None
    largest_message: Annotated[
        int | None, Field(description="Bytes that leave the site in one message; null: no limit of the steward's")
    ] = None
    members: Annotated[
        tuple[str, ...] | None,
        Field(description="All who have joined the project: the approval lapses when others join; null: any members"),
    ] = None


class NewRun(Body):
    rounds: int
    compare: Annotated[bool, Field(description="Also train each site alone, for the table of results")] = False
    seed: Annotated[int | None, Field(description="In place of the app's own `seed`")] = None


class NodeKey(Body):
    public_key: Annotated[str, Field(max_length=4096, description="As Flower's node sends it: PEM or OpenSSH text")]


_PackageName = Annotated[str, Field(min_length=1, max_length=200)]


class PackagesReport(Body):
    """What a notebook server of one's own site can import."""

    distributions: Annotated[
        dict[_PackageName, _PackageName], Field(max_length=5000, description="Version by name, as installed")
    ]
    modules: Annotated[tuple[_PackageName, ...], Field(max_length=20000, description="Top-level modules they bring")]


class ClientReport(Body):
    state: ClientState
    detail: Annotated[str, Field(max_length=2000)] = ""


@dataclass(frozen=True, slots=True)
class Query:
    """One query argument of an operation."""

    name: str
    schema: dict[str, Any]
    description: str
    required: bool = False


@dataclass(frozen=True, slots=True)
class Operation:
    """One method of one route. `answer` is a type of the contract, or a media type, or None for no body."""

    method: str
    route: Route
    summary: str
    answer: Any
    body: type[Body] | Literal["application/octet-stream"] | None = None
    status: HTTPStatus = HTTPStatus.OK
    query: tuple[Query, ...] = ()


_BYTES: Literal["application/octet-stream"] = "application/octet-stream"
_EVENTS = "text/event-stream"
_ZIP = "application/zip"
_PEM = "application/x-pem-file"
_METRIC = "Name of a metric of the app, or a key that the answer lists; the main one by default"

OPERATIONS: tuple[Operation, ...] = (
    Operation("GET", Route.OPENAPI, "This document", dict[str, Any]),
    Operation("GET", Route.HOME, "What is mine and what waits for me", Home),
    Operation("GET", Route.MY_SITE, "The site I belong to, with its datasets", Site),
    Operation("GET", Route.STARTERS, "Notebooks that a project can begin with", tuple[Starter, ...]),
    Operation("GET", Route.STARTER, "One of them, as a Jupyter notebook", "application/x-ipynb+json"),
    Operation("GET", Route.PROJECTS, "My projects", tuple[ProjectSummary, ...]),
    Operation("PATCH", Route.PROJECT, "Change a project's settings", ProjectDetail, ProjectSettings),
    Operation("POST", Route.PROJECTS, "Create a project", ProjectSummary, NewProject, HTTPStatus.CREATED),
    Operation("GET", Route.PROJECT, "One project", ProjectDetail),
    Operation(
        "DELETE", Route.PROJECT, "Delete a project, for good and for everybody", None, status=HTTPStatus.NO_CONTENT
    ),
    Operation(
        "POST",
        Route.APPS,
        "Add an app version: a notebook or a Flower app as a zip file",
        AppVersion,
        _BYTES,
        HTTPStatus.CREATED,
        (Query("filename", {"type": "string"}, "Name of the uploaded file", required=True),),
    ),
    Operation("GET", Route.APP, "An app version and everything in it", AppReview),
    Operation(
        "POST",
        Route.BUILD,
        "What a notebook or an app would become; nothing is stored",
        AppPreview,
        _BYTES,
        query=(
            Query("filename", {"type": "string"}, "Name of the file", required=True),
            Query("project", {"type": "string"}, "Id of a project, to hear what its sites lack"),
        ),
    ),
    Operation(
        "PUT",
        Route.SITE_PACKAGES,
        "Report what my site's notebook servers have installed",
        None,
        PackagesReport,
        HTTPStatus.NO_CONTENT,
    ),
    Operation("POST", Route.INVITATIONS, "Invite a user", Participant, NewInvitation, HTTPStatus.CREATED),
    Operation("POST", Route.DECLINE, "Decline an invitation", None, status=HTTPStatus.NO_CONTENT),
    Operation("POST", Route.PARTICIPATION, "Take part with a dataset", Participant, NewParticipation),
    Operation("DELETE", Route.PARTICIPATION, "Leave", None, status=HTTPStatus.NO_CONTENT),
    Operation("DELETE", Route.MEMBER, "Remove a member", None, status=HTTPStatus.NO_CONTENT),
    Operation(
        "GET",
        Route.EVENTS,
        "Changes of a project as server-sent events: project, run, figure",
        _EVENTS,
        query=(
            Query("run", {"type": "string"}, "Id of the run to follow; the newest one by default"),
            Query("metric", {"type": "string"}, _METRIC),
        ),
    ),
    Operation("POST", Route.RUNS, "Start a run", RunSummary, NewRun, HTTPStatus.CREATED),
    Operation("GET", Route.RUN, "One run with its rounds and scores", RunDetail),
    Operation(
        "GET",
        Route.RUN_FIGURES,
        "A run's curves for Plotly, and which metrics there are",
        RunFigures,
        query=(Query("metric", {"type": "string"}, _METRIC),),
    ),
    Operation(
        "GET",
        Route.RUN_LOG,
        "What the run's ServerApp printed, its last 64 KB at most",
        RunLog,
        query=(Query("after", {"type": "integer", "minimum": 0}, "Place in the log; `end` of the last answer"),),
    ),
    Operation("POST", Route.RUN_STOP, "Stop a run", RunSummary),
    Operation(
        "GET",
        Route.RUN_RESULT,
        "Each model on each site's test data by one metric, as a heat map",
        RunResult,
        query=(Query("metric", {"type": "string"}, "One of the app's metrics; the main one by default"),),
    ),
    Operation("GET", Route.RUN_MODELS, "The models that are kept of a run, by round", tuple[ModelFile, ...]),
    Operation(
        "GET",
        Route.RUN_MODEL,
        "The global model, as safetensors",
        _BYTES,
        query=(Query("round", {"type": "string"}, "“last”, which is the default, “best”, or a round's number"),),
    ),
    Operation("GET", Route.RUN_RECORD, "How the model came about", dict[str, Any]),
    Operation("GET", Route.RUN_CARD, "The model's card, in Markdown", "text/markdown"),
    Operation("GET", Route.RUN_SIGNED, "The record, signed by the service", SignedRecord),
    Operation("GET", Route.RUN_CAPSULE, "What reproduces the run on stock Flower: a zip file", _ZIP),
    Operation("GET", Route.SIGNING_KEY, "The public key of the service's signatures", _PEM),
    Operation("GET", Route.APPROVALS, "Approval requests at the sites I am a steward of", tuple[ApprovalRequest, ...]),
    Operation("POST", Route.APPROVALS, "Approve, reject or revoke", ApprovalRequest, Decision),
    Operation("GET", Route.DECISIONS, "What my site has decided in a project, newest first", tuple[PastDecision, ...]),
    Operation(
        "GET",
        Route.ASSIGNMENTS,
        "What my notebook server must run",
        Assignments,
        query=(
            Query("version", {"type": "string"}, "Version of the answer that is known already"),
            Query(
                "wait",
                {"type": "number", "minimum": 0, "maximum": MAX_WAIT_S},
                "Seconds to wait for another version",
            ),
        ),
    ),
    Operation(
        "PUT",
        Route.NODE,
        "Register the key of my client's node; as a data steward, that of my site's SuperNode",
        SiteApprovals,
        NodeKey,
    ),
    Operation("DELETE", Route.NODE, "Remove the key of my site's SuperNode", None, status=HTTPStatus.NO_CONTENT),
    Operation("PUT", Route.CLIENT, "Report my client's state", None, ClientReport, HTTPStatus.NO_CONTENT),
    Operation("GET", Route.SITE_APPROVALS, "App versions that may run on my dataset now", SiteApprovals),
    Operation("GET", Route.APPROVED_APP, "The app of one of them, as my client runs it: a zip file", _BYTES),
)

B = TypeVar("B", bound=Body)


def parse(model: type[B], body: bytes) -> B:
    """Read a JSON body. Raises Invalid, naming the first field that is wrong."""
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        field = ".".join(str(part) for part in first["loc"])
        raise Invalid(
            f"{field}: {first['msg']}." if field else f"The body is not as described: {first['msg']}.",
            f"Send a JSON object with {_fields(model)}.",
        ) from None


def _fields(model: type[Body]) -> str:
    return ", ".join(
        name if field.is_required() else f"{name} (may be left out)" for name, field in model.model_fields.items()
    )


def parse_time(text: str) -> datetime:
    """Read a time with a zone. Raises Invalid."""
    try:
        return adapter(AwareDatetime).validate_python(text, strict=False)  # type: ignore[no-any-return]
    except ValidationError:
        raise Invalid("The end date is not a date.", "Choose a day, or leave it empty.") from None


def key_bytes(text: str) -> bytes:
    """Read a node's key as it was typed. Raises Invalid."""
    try:
        return text.encode("ascii")
    except UnicodeEncodeError:
        raise Invalid("public_key: not a key.", "Send the node's public key as ASCII text.") from None


@cache
def adapter(answer: Any) -> TypeAdapter[Any]:
    return TypeAdapter(answer)


def to_json(answer: Any, value: object) -> bytes:
    """Write a value of a type of the contract."""
    return adapter(answer).dump_json(value)
