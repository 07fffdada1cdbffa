"""API: taking part, and what a participant's notebook server asks and reports."""

from __future__ import annotations

from federator.contract import Assignments, Participant, Route, SiteApprovals

from hub_service.changes import user_topic
from hub_service.web.base import ApiHandler, number_argument
from hub_service.web.schema import MAX_WAIT_S, ClientReport, NewParticipation, NodeKey, key_bytes


class ParticipationHandler(ApiHandler):
    def post(self, project_id: str) -> None:
        dataset = self.body(NewParticipation).dataset
        self.answer(Participant, self.parts.coordinator.join(self.principal, project_id, dataset))

    def delete(self, project_id: str) -> None:
        self.parts.coordinator.leave(self.principal, project_id)
        self.done()


class AssignmentsHandler(ApiHandler):
    """The long poll of each notebook server: answers at once, or as soon as `version` is no longer the newest."""

    async def get(self) -> None:
        known = self.get_query_argument("version", "")
        wait = number_argument(self, "wait", 0, 0, MAX_WAIT_S)
        assignments = self.parts.coordinator.assignments(self.principal)
        if wait and assignments.version == known:
            await self.parts.changes.wait(user_topic(self.principal.name), int(known), wait)
            if not await self.is_still_known():
                self.refuse_stranger()
            assignments = self.parts.coordinator.assignments(self.principal)
        self.answer(Assignments, assignments)


class NodeHandler(ApiHandler):
    def put(self, participation_id: str) -> None:
        key = key_bytes(self.body(NodeKey).public_key)
        approvals = self.parts.coordinator.register_node(self.principal, participation_id, key)
        self.answer(SiteApprovals, approvals)

    def delete(self, participation_id: str) -> None:
        self.parts.coordinator.remove_node(self.principal, participation_id)
        self.done()


class ClientHandler(ApiHandler):
    def put(self, participation_id: str) -> None:
        report = self.body(ClientReport)
        self.parts.coordinator.report_client(self.principal, participation_id, report.state, report.detail)
        self.done()


class SiteApprovalsHandler(ApiHandler):
    def get(self, participation_id: str) -> None:
        self.answer(SiteApprovals, self.parts.coordinator.site_approvals(self.principal, participation_id))


class ApprovedAppHandler(ApiHandler):
    async def get(self, participation_id: str, fab_hash: str) -> None:
        content = await self.parts.coordinator.approved_app(self.principal, participation_id, fab_hash)
        self.set_header("Content-Type", "application/octet-stream")
        self.finish(content)


ROUTES = (
    (Route.PARTICIPATION, ParticipationHandler),
    (Route.ASSIGNMENTS, AssignmentsHandler),
    (Route.NODE, NodeHandler),
    (Route.CLIENT, ClientHandler),
    (Route.SITE_APPROVALS, SiteApprovalsHandler),
    (Route.APPROVED_APP, ApprovedAppHandler),
)
