"""A steward's yes or no to one app version on one dataset. Pure data and one rule."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from federator.contract import ApprovalState


@dataclass(frozen=True, slots=True)
class Approval:
    """The newest decision for (project, app version, site, dataset). Earlier ones are in the audit log."""

    project_id: str
    fab_hash: str
    site: str
    dataset: str
    state: ApprovalState  # APPROVED, REJECTED or REVOKED
    steward: str
    reason: str
    decided_at: datetime
    expires_at: datetime | None

    def state_at(self, now: datetime) -> ApprovalState:
        """The state with expiry taken into account."""
        if self.state is ApprovalState.APPROVED and self.expires_at is not None and now >= self.expires_at:
            return ApprovalState.EXPIRED
        return self.state
