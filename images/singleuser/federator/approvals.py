"""The site's own check, in the client kernel: nothing runs on a dataset that its steward has not approved.

The service answers what is approved; this check stands between the aggregator, which the project's owner's code
drives, and the import of that code.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping

from federator.contract import Conditions
from federator.service_client import NotAllowed, NotFound, ServiceError

MAX_AGE_S = 2.0  # an answer is used for this long, so that a burst of messages asks once
_KEPT_RUNS = 4

FetchApproved = Callable[[], Mapping[str, Conditions]]


class NotApproved(Exception):
    """The app must not run here; the text says why, for the project's members."""


class NobodyAnswers(NotApproved):
    """The service is away, or something else answers in its place, so the app may not run now. It is no refusal: who
    waits may ask again."""


class ApprovalCheck:
    """Asks which FAB hashes may run, and refuses all others.

    Args:
        fetch: returns the approved hashes and their conditions now, or raises ServiceError: no answer is no approval.
        clock: monotonic seconds.
    """

    def __init__(self, fetch: FetchApproved, clock: Callable[[], float]) -> None:
        self._fetch = fetch
        self._clock = clock
        self._approved: Mapping[str, Conditions] = {}
        self._asked_at: float | None = None

    def require(self, fab_hash: str) -> Conditions:
        """What the app version may do here, if it may run now. Raises NotApproved, and NobodyAnswers of its kinds."""
        fresh = self._asked_at is not None and self._clock() - self._asked_at <= MAX_AGE_S
        if not fresh or fab_hash not in self._approved:  # it may have been approved a moment ago
            self._ask()
        if fab_hash not in self._approved:
            raise NotApproved("This site's data steward has not approved this app version for its dataset.")
        return self._approved[fab_hash]

    def largest_message(self, fab_hash: str) -> int | None:
        """Bytes that the version may send in one message, by the last answer; None: the steward set no limit."""
        return self._approved.get(fab_hash, Conditions()).largest_message

    def _ask(self) -> None:
        self._approved, self._asked_at = {}, None
        asked_at = self._clock()
        try:
            self._approved = dict(self._fetch())
        except ServiceError as error:
            if isinstance(error, NotAllowed | NotFound) and error.code:  # the service's own word, which stays
                raise NotApproved(
                    "This site could not ask which app versions are approved, so it runs none."
                ) from error
            raise NobodyAnswers(
                f"The service does not answer which app versions are approved, so this site runs none. {error}"
            ) from error
        self._asked_at = asked_at


class RoundCheck:
    """Counts the rounds in which each run trains here, and refuses those beyond what the steward allows.

    The project's app names its rounds itself, so the messages are counted, too. Where a run compares with each site
    alone, a round comes twice: once for the federation, once for the site. An aggregator that was lost and begun anew
    asks for its open round again, which is counted once.
    """

    def __init__(self) -> None:
        self._trained: OrderedDict[int, list[str]] = OrderedDict()  # names of rounds, by run
        self._pending_at: dict[int, str] = {}  # by run

    def require(self, conditions: Conditions, run_id: int, pending_at: str, message_type: str, round_name: str) -> None:
        """Return if the run may work on this message. Raises NotApproved.

        Args:
            pending_at: when the aggregator took the run: another time, another aggregator.
        """
        if message_type.partition(".")[0] != "train":
            return
        trained = self._trained.setdefault(run_id, [])
        if self._pending_at.get(run_id) != pending_at and trained[-1:] == [round_name]:
            trained.pop()
        self._pending_at[run_id] = pending_at
        trained.append(round_name)
        while len(self._trained) > _KEPT_RUNS:
            oldest, _ = self._trained.popitem(last=False)
            del self._pending_at[oldest]
        most = conditions.most_rounds
        if most is not None and (len(set(trained)) > most or len(trained) > 2 * most):
            rounds = "1 round" if most == 1 else f"{most} rounds"
            raise NotApproved(f"This site's data steward approved this app version for {rounds} at most.")
