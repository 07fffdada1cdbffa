"""API: who is in a project."""

from __future__ import annotations

from http import HTTPStatus

from federator.contract import Participant, Route

from hub_service.web.base import ApiHandler
from hub_service.web.schema import NewInvitation


class InvitationsHandler(ApiHandler):
    async def post(self, project_id: str) -> None:
        user = self.body(NewInvitation).user
        participant = await self.parts.coordinator.invite(self.principal, project_id, user)
        self.answer(Participant, participant, HTTPStatus.CREATED)


class DeclineHandler(ApiHandler):
    def post(self, project_id: str) -> None:
        self.parts.coordinator.decline(self.principal, project_id)
        self.done()


class MemberHandler(ApiHandler):
    def delete(self, project_id: str, user: str) -> None:
        self.parts.coordinator.remove_member(self.principal, project_id, user)
        self.done()


ROUTES = ((Route.INVITATIONS, InvitationsHandler), (Route.DECLINE, DeclineHandler), (Route.MEMBER, MemberHandler))
