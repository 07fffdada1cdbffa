"""What a site's stewards are asked, and what they decide."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta

from federator.contract import AppReview, ApprovalRequest, ApprovalState, Conditions, PastDecision

from hub_service import views
from hub_service.audit import Decision
from hub_service.changes import RUNS_TOPIC, user_topic
from hub_service.decisions import noted, past_decisions
from hub_service.domain import notices, policy
from hub_service.domain.approvals import Approval, check_conditions
from hub_service.domain.clock import utc_text
from hub_service.domain.errors import Conflict, Invalid
from hub_service.domain.notices import Notice
from hub_service.domain.projects import Participation, Principal
from hub_service.notices.endings import Ending
from hub_service.operations.base import Operations

LONGEST_REASON = 1000


class ApprovalOperations(Operations):
    """List requests, and decide."""

    def approvals(self, principal: Principal) -> tuple[ApprovalRequest, ...]:
        """What the sites that the person decides for were asked: what waits first, then the latest decisions."""
        policy.require_scope(principal, policy.PROJECT_SCOPE)
        requests = [
            one for site in sorted(policy.sites_decided_by(principal)) for one in self._requests_at(principal, site)
        ]
        requests.sort(key=lambda one: one.decided_at, reverse=True)
        requests.sort(key=lambda one: not one.state.asks)
        return tuple(requests)

    def _requests_at(self, principal: Principal, site: str) -> Sequence[ApprovalRequest]:
        """For every dataset that takes part: the newest version, and older ones that were decided on."""
        requests = []
        for participation in self._store.active_participations_at(site):
            project = self._store.project(participation.project_id)
            versions = self._store.app_versions(participation.project_id)
            for version in versions:
                decided = self._consent.state(participation, version.fab_hash) is not ApprovalState.WAITING
                if project is not None and (decided or version is versions[-1]):
                    requests.append(
                        self._views.approval_request(
                            project, version, site, participation.dataset, participation.user, principal
                        )
                    )
        return requests

    def decisions(self, principal: Principal, project_id: str, site: str) -> tuple[PastDecision, ...]:
        """All that the site's stewards have decided in the project, newest first; also once nobody takes part.

        Raises NotFound for a project that the site was never asked about.
        """
        policy.require_steward(principal, site)
        versions = {one.fab_hash: one.number for one in self._store.app_versions(project_id)}
        decided = past_decisions(self._store.audit_lines_of(project_id), site, versions)
        taking_part = {one.project_id for one in self._store.active_participations_at(site)}
        if not decided and project_id not in taking_part:
            raise policy.no_such_request()
        return decided

    def site_modules(self, principal: Principal, site: str) -> frozenset[str] | None:
        """Top-level modules that the site's notebook servers have, for its stewards; None where none has reported."""
        policy.require_steward(principal, site)
        packages = self._store.site_packages(site)
        return None if packages is None else frozenset(packages.modules)

    def last_approved(self, principal: Principal, request: ApprovalRequest) -> tuple[PastDecision, AppReview] | None:
        """The newest version before the requested one that was approved at its site and dataset, and that decision."""
        for decision in self.decisions(principal, request.project_id, request.site):
            same = decision.dataset == request.dataset and decision.state is ApprovalState.APPROVED
            if same and decision.version < request.version:
                return decision, views.app_review(self._version(request.project_id, decision.fab_hash))
        return None

    def approvals_ending(self, within: timedelta) -> dict[Ending, Notice]:
        """A notice for each approval that is in force and ends within this time. For `notices.endings`."""
        now = self._clock()
        notices_of = {}
        for approval in self._store.approvals_ending(now, now + within):
            participation = self._asked(approval.project_id, approval.site, approval.dataset)
            project = self._store.project(approval.project_id)
            if participation is not None and project is not None and approval.expires_at is not None:
                version = self._version(project.id, approval.fab_hash)
                request = self._views.approval_request(
                    project, version, approval.site, approval.dataset, participation.user
                )
                key = (project.id, approval.fab_hash, approval.site, approval.dataset, utc_text(approval.expires_at))
                title = self._views.site_title(approval.site)
                notices_of[key] = notices.approval_ending(request, title, approval.expires_at)
        return notices_of

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
        conditions: Conditions | None = None,
    ) -> ApprovalRequest:
        """Approve, reject or revoke one app version on one dataset. Takes effect at once.

        Where the site wants two stewards, the first yes only asks for the second. `expires_at` and `conditions` are of
        an approval; a rejection needs a reason.

        Raises NotFound for a request that does not exist or is another site's, Conflict for a step that does not follow
        from the present state or conditions that are not the first steward's, Forbidden as
        `policy.require_other_eyes`, Invalid for an expiry in the past, a bad condition or a rejection without a reason.
        """
        policy.require_steward(principal, site)
        participation = self._asked(project_id, site, dataset)
        project = self._store.project(project_id)
        if participation is None or project is None:
            raise policy.no_such_request()
        version = self._version(project_id, fab_hash)
        reason = _checked_reason(reason, state)
        self._check_decision(self._consent.state(participation, fab_hash), state, expires_at)
        approval = Approval(
            project_id=project_id,
            fab_hash=version.fab_hash,
            site=site,
            dataset=dataset,
            state=state,
            steward=principal.name,
            reason=reason,
            decided_at=self._clock(),
            expires_at=None,
        )
        if state is ApprovalState.APPROVED:
            approval = self._limited(approval, expires_at, conditions or Conditions())
            approval = self._seen_by_two(principal, participation, approval)
        with self._store.transaction():
            self._store.put_approval(approval)
            self._audit.note(principal.name, Decision(approval.state.value), project_id, **noted(approval))
        self._changes.announce(RUNS_TOPIC, user_topic(principal.name))
        self._announce_members(project_id)
        self._tell_of(participation, version.fab_hash)
        return self._views.approval_request(project, version, site, dataset, participation.user, principal)

    def _limited(self, approval: Approval, expires_at: datetime | None, conditions: Conditions) -> Approval:
        check_conditions(conditions, self._consent.joined(approval.project_id))
        if conditions.members is not None:
            conditions = replace(conditions, members=tuple(sorted(set(conditions.members))))
        ends = None if expires_at is None else expires_at.replace(microsecond=0)  # as the wire has it
        return replace(approval, expires_at=ends, conditions=conditions)

    def _seen_by_two(self, principal: Principal, participation: Participation, approval: Approval) -> Approval:
        """The approval as it counts: the first of two at a site that wants two."""
        site = self._site_of(participation)
        if site is None or not site.four_eyes:
            return approval
        earlier = self._consent.decision(approval.project_id, approval.fab_hash, approval.site, approval.dataset)
        state = self._consent.state_of(earlier)
        if earlier is None or state is not ApprovalState.APPROVED_ONCE:
            policy.require_other_eyes(principal, site, participation.user, "")
            if state is ApprovalState.APPROVED:
                raise Conflict("Two data stewards have approved this already.", "Withdraw it to begin anew.")
            return replace(approval, state=ApprovalState.APPROVED_ONCE, first_steward=principal.name)
        policy.require_other_eyes(principal, site, participation.user, earlier.steward)
        if (approval.conditions, approval.expires_at) != (earlier.conditions, earlier.expires_at):
            raise Conflict(
                f"{earlier.steward} has approved with other conditions.",
                f"Approve with the same ones, or reject and agree with {earlier.steward} first.",
            )
        return replace(approval, first_steward=earlier.steward)

    def _asked(self, project_id: str, site: str, dataset: str) -> Participation | None:
        at_site = self._store.active_participations_at(site)
        return next((one for one in at_site if (one.project_id, one.dataset) == (project_id, dataset)), None)

    def _check_decision(self, present: ApprovalState, wanted: ApprovalState, expires_at: datetime | None) -> None:
        if wanted not in (ApprovalState.APPROVED, ApprovalState.REJECTED, ApprovalState.REVOKED):
            raise Invalid(f"“{wanted}” is not a decision.", "Approve, reject or revoke.")
        withdrawable = (ApprovalState.APPROVED, ApprovalState.APPROVED_ONCE, ApprovalState.LAPSED)
        if wanted is ApprovalState.REVOKED and present not in withdrawable:
            raise Conflict("There is no approval to withdraw.", "Reject the version instead.")
        if wanted is ApprovalState.REJECTED and present is ApprovalState.APPROVED:
            raise Conflict("This version is approved.", "Withdraw the approval instead.")
        if expires_at is not None and expires_at <= self._clock():
            raise Invalid("The approval would have expired already.", "Choose a later day, or no expiry.")


def _checked_reason(reason: str, state: ApprovalState) -> str:
    reason = reason.strip()
    if state is ApprovalState.REJECTED and not reason:
        raise Invalid("A rejection needs a reason.", "Write what the participants should change.")
    if len(reason) > LONGEST_REASON:
        raise Invalid(f"The reason is longer than {LONGEST_REASON} characters.", "Shorten it.")
    return reason
