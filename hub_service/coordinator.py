"""The operations that the service offers, free of HTTP. Called by `web` and `gateway`.

Every operation takes who asks first, asks `domain.policy`, changes the store and the audit log in one transaction, and
only then tells the waiting pages and clients. Answers are the wire types of `federator.contract`.
"""

from __future__ import annotations

from federator.contract import Home, ProjectSummary

from hub_service.changes import project_topic
from hub_service.domain import policy
from hub_service.domain.policy import Action, Role
from hub_service.domain.projects import Principal
from hub_service.operations.administration import AdministrationOperations
from hub_service.operations.approvals import ApprovalOperations
from hub_service.operations.clients import ClientOperations
from hub_service.operations.members import MemberOperations
from hub_service.operations.nodes import NodeOperations
from hub_service.operations.projects import ProjectOperations
from hub_service.operations.results import ResultOperations
from hub_service.operations.starters import StarterOperations


class Coordinator(
    ProjectOperations,
    MemberOperations,
    ApprovalOperations,
    ResultOperations,
    NodeOperations,
    ClientOperations,
    StarterOperations,
    AdministrationOperations,
):
    """See the module's text. Not thread-safe: every call comes from the service's event loop."""

    def home(self, principal: Principal) -> Home:
        """The panel: my projects, newest first, and what waits for me."""
        policy.require_scope(principal, policy.PROJECT_SCOPE)
        summaries: dict[Role, list[ProjectSummary]] = {role: [] for role in Role}
        for membership in self._store.memberships(principal.name):
            project = self._store.project(membership.project_id)
            role = None if project is None else policy.role_in(project, membership)
            if project is not None and role is not None:
                summaries[role].append(self._views.project_summary(project, membership, role))
        mine = sorted(summaries[Role.OWNER] + summaries[Role.MEMBER], key=lambda one: one.created_at, reverse=True)
        waiting = (one for one in self.approvals(principal) if one.state.asks and one.may_approve)
        return Home(
            user=principal.name,
            site=next(iter(principal.sites)) if len(principal.sites) == 1 else None,
            projects=tuple(mine),
            invitations=tuple(summaries[Role.INVITED]),
            approvals=tuple(waiting),
        )

    def watch_topic(self, principal: Principal, project_id: str) -> str:
        """The topic of `changes` that tells of the project. Ask again after each change: membership may have ended."""
        project, _, _ = self._enter(principal, Action.SEE, project_id)
        return project_topic(project.id)
