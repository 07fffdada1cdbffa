"""A steward's yes or no to one app version on one dataset, and what the yes is limited to. Pure."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from datetime import datetime

from federator.contract import ApprovalState, Conditions

from hub_service.domain.errors import Conflict, Invalid
from hub_service.domain.runs import MOST_ROUNDS

LEAST_MESSAGE = 64 * 1024
"""Bytes. The least limit of a message: an answer that only says what went wrong always fits."""


@dataclass(frozen=True, slots=True)
class Approval:
    """The newest decision for (project, app version, site, dataset). Earlier ones are in the audit log."""

    project_id: str
    fab_hash: str
    site: str
    dataset: str
    state: ApprovalState  # APPROVED_ONCE, APPROVED, REJECTED or REVOKED
    steward: str
    reason: str
    decided_at: datetime
    expires_at: datetime | None
    conditions: Conditions = field(default_factory=Conditions)
    first_steward: str = ""  # where two had to approve: the first of them

    def state_at(self, now: datetime, joined: Collection[str]) -> ApprovalState:
        """The state with expiry taken into account, and who has joined the project since."""
        if self.state not in (ApprovalState.APPROVED, ApprovalState.APPROVED_ONCE):
            return self.state
        if self.expires_at is not None and now >= self.expires_at:
            return ApprovalState.EXPIRED
        named = self.conditions.members
        if named is not None and not set(joined) <= set(named):
            return ApprovalState.LAPSED
        return self.state


def allows_rounds(conditions: Conditions, rounds: int) -> bool:
    """Whether a run may have, or reach, this many rounds."""
    return conditions.most_rounds is None or rounds <= conditions.most_rounds


def rounds_limit(title: str, conditions: Conditions) -> str:
    """Why a site takes no part in more rounds, for the project's members."""
    most = conditions.most_rounds
    return f"{title}: its approval allows {most} round{'' if most == 1 else 's'} at most."


def check_conditions(conditions: Conditions, joined: Collection[str]) -> None:
    """Raise where nobody could decide so.

    Raises Invalid for a limit out of range and for members whom the project does not have, Conflict where somebody has
    joined whom the steward did not see.
    """
    rounds, message, named = conditions.most_rounds, conditions.largest_message, conditions.members
    if rounds is not None and not 1 <= rounds <= MOST_ROUNDS:
        raise Invalid(f"A run has 1 to {MOST_ROUNDS} rounds.", "Choose a number in that range, or no limit.")
    if message is not None and message < LEAST_MESSAGE:
        raise Invalid(
            f"A limit of {message} bytes lets nothing useful leave the site.",
            f"Choose at least {LEAST_MESSAGE // 1024} KB, or reject the version.",
        )
    if named is None:
        return
    if strangers := sorted(set(named) - set(joined)):
        raise Invalid(f"{', '.join(strangers)} has not joined the project.", "Name members who have joined.")
    if newcomers := sorted(set(joined) - set(named)):
        raise Conflict(f"{', '.join(newcomers)} has joined the project meanwhile.", "Look at the members again.")
