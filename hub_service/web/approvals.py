"""API: what waits for a data steward, and their decisions."""

from __future__ import annotations

from federator.contract import ApprovalRequest, ApprovalState, Conditions, PastDecision, Route

from hub_service.web.base import ApiHandler
from hub_service.web.schema import Decision


class ApprovalsHandler(ApiHandler):
    def get(self) -> None:
        self.answer(tuple[ApprovalRequest, ...], self.parts.coordinator.approvals(self.principal))

    def post(self) -> None:
        decision = self.body(Decision)
        request = self.parts.coordinator.decide(
            self.principal,
            decision.project_id,
            decision.fab_hash,
            decision.dataset,
            decision.site,
            ApprovalState(decision.state),
            decision.reason,
            decision.expires_at,
            Conditions(decision.most_rounds, decision.largest_message, decision.members),
        )
        self.answer(ApprovalRequest, request)


class DecisionsHandler(ApiHandler):
    def get(self, site: str, project_id: str) -> None:
        self.answer(tuple[PastDecision, ...], self.parts.coordinator.decisions(self.principal, project_id, site))


ROUTES = ((Route.APPROVALS, ApprovalsHandler), (Route.DECISIONS, DecisionsHandler))
