"""The site's own check, in the client kernel: nothing runs on a dataset that its steward has not approved.

The service answers what is approved; this check stands between the aggregator, which the project's owner's code
drives, and the import of that code.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

from federator.service_client import ServiceError

MAX_AGE_S = 2.0  # an answer is used for this long, so that a burst of messages asks once

FetchApproved = Callable[[], Collection[str]]


class NotApproved(Exception):
    """The app must not run here; the text says why, for the project's members."""


class ApprovalCheck:
    """Asks which FAB hashes may run, and refuses all others.

    Args:
        fetch: returns the approved hashes now, or raises ServiceError: no answer is no approval.
        clock: monotonic seconds.
    """

    def __init__(self, fetch: FetchApproved, clock: Callable[[], float]) -> None:
        self._fetch = fetch
        self._clock = clock
        self._approved: Collection[str] = ()
        self._asked_at: float | None = None

    def require(self, fab_hash: str) -> None:
        """Return if the app version may run now. Raises NotApproved."""
        fresh = self._asked_at is not None and self._clock() - self._asked_at <= MAX_AGE_S
        if not fresh or fab_hash not in self._approved:  # it may have been approved a moment ago
            self._ask()
        if fab_hash not in self._approved:
            raise NotApproved("This site's data steward has not approved this app version for its dataset.")

    def _ask(self) -> None:
        self._approved, self._asked_at = (), None
        asked_at = self._clock()
        try:
            self._approved = frozenset(self._fetch())
        except ServiceError as error:
            raise NotApproved("This site could not ask which app versions are approved, so it runs none.") from error
        self._asked_at = asked_at
