"""What an error looks like over HTTP: a status for each code, and one body for all of them."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus

from federator.contract import Problem

from hub_service.domain.errors import ErrorCode, FederationError

STATUS: Mapping[ErrorCode, HTTPStatus] = {
    ErrorCode.UNAUTHENTICATED: HTTPStatus.UNAUTHORIZED,
    ErrorCode.NOT_FOUND: HTTPStatus.NOT_FOUND,
    ErrorCode.FORBIDDEN: HTTPStatus.FORBIDDEN,
    ErrorCode.INVALID: HTTPStatus.BAD_REQUEST,
    ErrorCode.CONFLICT: HTTPStatus.CONFLICT,
    ErrorCode.TOO_LARGE: HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    ErrorCode.TOO_MANY: HTTPStatus.TOO_MANY_REQUESTS,
    ErrorCode.UNAVAILABLE: HTTPStatus.SERVICE_UNAVAILABLE,
}

# Statuses that the web server itself answers with, before or instead of a handler.
_OF_STATUS: Mapping[int, Problem] = {
    HTTPStatus.BAD_REQUEST: Problem("invalid", "The request cannot be read.", "Check its address and its body."),
    HTTPStatus.FORBIDDEN: Problem("forbidden", "Your login does not allow this.", "Reload the page and try again."),
    HTTPStatus.NOT_FOUND: Problem("not-found", "There is nothing at this address.", "Start from your projects."),
    HTTPStatus.METHOD_NOT_ALLOWED: Problem(
        "method-not-allowed", "This address does not take that method.", "See the API's description for those it takes."
    ),
}
_INTERNAL = Problem(
    "internal",
    "Something went wrong in the federation service.",
    "Try again; if it happens again, tell the Hub's administrators when it happened.",
)


def problem_of(error: FederationError) -> Problem:
    """The body for an error that has a public text, which may quote what somebody sent."""
    return Problem(error.code, _sendable(error.message), _sendable(error.next_step))


def _sendable(text: str) -> str:
    """A half of a character, as JSON can name one, has no bytes in UTF-8."""
    return text.encode("utf-8", errors="replace").decode("utf-8")


def problem_of_status(status: int) -> Problem:
    """The body for an error that has none: what the status says, and nothing of the cause."""
    return _OF_STATUS.get(status, _INTERNAL)
