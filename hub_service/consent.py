"""What the sites' stewards have said, as of now. Reads the store; decisions are taken in the coordinator."""

from __future__ import annotations

from federator.contract import ApprovalState, Conditions, MemberState

from hub_service.domain.approvals import Approval
from hub_service.domain.clock import Clock
from hub_service.domain.projects import Participation
from hub_service.store.base import Store


class Consent:
    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock

    def decision(self, project_id: str, fab_hash: str, site: str, dataset: str) -> Approval | None:
        """The newest decision on exactly this app version, site and dataset."""
        for approval in self._store.approvals(project_id):
            if (approval.fab_hash, approval.site, approval.dataset) == (fab_hash, site, dataset):
                return approval
        return None

    def state_of(self, approval: Approval | None) -> ApprovalState:
        """The state now; WAITING where nobody has decided."""
        if approval is None:
            return ApprovalState.WAITING
        joined = () if approval.conditions.members is None else self.joined(approval.project_id)
        return approval.state_at(self._clock(), joined)

    def joined(self, project_id: str) -> tuple[str, ...]:
        """The project's members who have joined, in the order of their invitation."""
        return tuple(one.user for one in self._store.members(project_id) if one.state is MemberState.JOINED)

    def conditions(self, participation: Participation, fab_hash: str) -> Conditions:
        """What the newest decision is limited to."""
        decision = self.decision(participation.project_id, fab_hash, participation.site, participation.dataset)
        return Conditions() if decision is None else decision.conditions

    def state(self, participation: Participation, fab_hash: str) -> ApprovalState:
        decision = self.decision(participation.project_id, fab_hash, participation.site, participation.dataset)
        return self.state_of(decision)

    def approved_hashes(self, participation: Participation) -> tuple[str, ...]:
        """FAB hashes that may run on the participation's dataset now, newest version first."""
        approved = {
            approval.fab_hash
            for approval in self._store.approvals(participation.project_id)
            if (approval.site, approval.dataset) == (participation.site, participation.dataset)
            and self.state_of(approval) is ApprovalState.APPROVED
        }
        if not approved:
            return ()
        versions = reversed(self._store.app_versions(participation.project_id))
        return tuple(version.fab_hash for version in versions if version.fab_hash in approved)
