"""Everything that can go wrong and be told to a person.

    FederationError                     code, public text, what to do next; debug text for the log only
    ├── Unauthenticated                 the Hub knows nobody by what was sent
    ├── NotFound                        missing, or not yours: the two look alike
    ├── Forbidden                       you are a member, but this is somebody else's to do
    ├── Invalid                         what was sent cannot be used (InvalidNotebook, InvalidApp are in `apps`)
    ├── Conflict                        right in itself, but not in the present state
    ├── TooLarge                        over a limit that the text names
    ├── TooMany                         asked too often; `retry_after_s` says when to come again
    └── Unavailable                     a part of the system does not answer; trying again may help
        └── DatabaseUnavailable         nothing was changed, nothing can be read: whoever has time tries again
            └── DatabaseInUse           another service has the database

`web.error_map` gives each code its HTTP status; a test holds that the map is complete.
"""

from __future__ import annotations

from enum import StrEnum


class ErrorCode(StrEnum):
    UNAUTHENTICATED = "unauthenticated"
    NOT_FOUND = "not-found"
    FORBIDDEN = "forbidden"
    INVALID = "invalid"
    CONFLICT = "conflict"
    TOO_LARGE = "too-large"
    TOO_MANY = "too-many"
    UNAVAILABLE = "unavailable"


class FederationError(Exception):
    """Base of all errors with a public text.

    Args:
        message: what happened, for the person. No secret, no other tenant's name, no stack trace.
        next_step: what the person can do now.
        debug: for the log; may name ids, never a secret.
    """

    code: ErrorCode

    def __init__(self, message: str, next_step: str = "", *, debug: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.next_step = next_step
        self.debug = debug


class Unauthenticated(FederationError):
    code = ErrorCode.UNAUTHENTICATED


class NotFound(FederationError):
    code = ErrorCode.NOT_FOUND


class Forbidden(FederationError):
    code = ErrorCode.FORBIDDEN


class Invalid(FederationError):
    code = ErrorCode.INVALID


class Conflict(FederationError):
    code = ErrorCode.CONFLICT


class TooLarge(FederationError):
    code = ErrorCode.TOO_LARGE


class TooMany(FederationError):
    """Asked too often.

    Args:
        retry_after_s: whole seconds after which it is worth to ask again.
    """

    code = ErrorCode.TOO_MANY

    def __init__(self, message: str, retry_after_s: int) -> None:
        super().__init__(message, f"Wait {retry_after_s} s, then try again.")
        self.retry_after_s = retry_after_s


class Unavailable(FederationError):
    code = ErrorCode.UNAVAILABLE


class DatabaseUnavailable(Unavailable):
    """The database does not answer, cannot be written, or has no room. What was asked of it has not happened.

    Raised by the store, whatever is asked. What works in the background (runs, notices) waits and tries again.
    """


class DatabaseInUse(DatabaseUnavailable):
    """Another service has the database, such as one that a Hub left behind. Free once that one has ended."""
