"""What a site's stewards are asked, and what they decide."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from federator.contract import ApprovalRequest, ApprovalState

from hub_service.audit import Decision
from hub_service.changes import RUNS_TOPIC, user_topic
from hub_service.domain import policy
from hub_service.domain.approvals import Approval
from hub_service.domain.errors import Conflict, Invalid
from hub_service.domain.projects import Participation, Principal
from hub_service.operations.base import Operations

LONGEST_REASON = 1000


class ApprovalOperations(Operations):
    """List requests, and decide."""

    def approvals(self, principal: Principal) -> tuple[ApprovalRequest, ...]:
        """What the sites that the person decides for were asked: what waits first, then the latest decisions."""
        policy.require_scope(principal, policy.PROJECT_SCOPE)
        requests = [one for site in sorted(policy.sites_decided_by(principal)) for one in self._requests_at(site)]
        requests.sort(key=lambda one: one.decided_at, reverse=True)
        requests.sort(key=lambda one: one.state is not ApprovalState.WAITING)
        return tuple(requests)

    def _requests_at(self, site: str) -> Sequence[ApprovalRequest]:
        """For every dataset that takes part: the newest version, and older ones that were decided on."""
        requests = []
        for participation in self._store.active_participations_at(site):
            project = self._store.project(participation.project_id)
            versions = self._store.app_versions(participation.project_id)
            for version in versions:
                decided = self._consent.state(participation, version.fab_hash) is not ApprovalState.WAITING
                if project is not None and (decided or version is versions[-1]):
                    requests.append(
                        self._views.approval_request(project, version, site, participation.dataset, participation.user)
                    )
        return requests

    def decide(
        self,
        principal: Principal,
        project_id: str,
        fab_hash: str,
        dataset: str,
        site: str,
        state: ApprovalState,
        reason: str = "",
        expires_at: datetime | None = None,
    ) -> ApprovalRequest:
        """Approve, reject or revoke one app version on one dataset. Takes effect at once.

        Raises NotFound for a request that does not exist or is another site's, Conflict for a step that does not follow
        from the present state, Invalid for an expiry in the past.
        """
        policy.require_steward(principal, site)
        participation = self._asked(project_id, site, dataset)
        project = self._store.project(project_id)
        if participation is None or project is None:
            raise policy.no_such_request()
        version = self._version(project_id, fab_hash)
        self._check_decision(self._consent.state(participation, fab_hash), state, expires_at)
        approval = Approval(
            project_id=project_id,
            fab_hash=version.fab_hash,
            site=site,
            dataset=dataset,
            state=state,
            steward=principal.name,
            reason=_checked_reason(reason),
            decided_at=self._clock(),
            expires_at=expires_at,
        )
        with self._store.transaction():
            self._store.put_approval(approval)
            self._audit.note(
                principal.name,
                Decision(state.value),
                project_id,
                fab=fab_hash,
                site=site,
                dataset=dataset,
                reason=approval.reason,
            )
        self._changes.announce(RUNS_TOPIC, user_topic(principal.name))
        self._announce_members(project_id)
        return self._views.approval_request(project, version, site, dataset, participation.user)

    def _asked(self, project_id: str, site: str, dataset: str) -> Participation | None:
        at_site = self._store.active_participations_at(site)
        return next((one for one in at_site if (one.project_id, one.dataset) == (project_id, dataset)), None)

    def _check_decision(self, present: ApprovalState, wanted: ApprovalState, expires_at: datetime | None) -> None:
        if wanted not in (ApprovalState.APPROVED, ApprovalState.REJECTED, ApprovalState.REVOKED):
            raise Invalid(f"“{wanted}” is not a decision.", "Approve, reject or revoke.")
        if wanted is ApprovalState.REVOKED and present is not ApprovalState.APPROVED:
            raise Conflict("There is no approval to withdraw.", "Reject the version instead.")
        if wanted is ApprovalState.REJECTED and present is ApprovalState.APPROVED:
            raise Conflict("This version is approved.", "Withdraw the approval instead.")
        if expires_at is not None and expires_at <= self._clock():
            raise Invalid("The approval would have expired already.", "Choose a later day, or no expiry.")


def _checked_reason(reason: str) -> str:
    reason = reason.strip()
    if len(reason) > LONGEST_REASON:
        raise Invalid(f"The reason is longer than {LONGEST_REASON} characters.", "Shorten it.")
    return reason
