"""What people are told when they do not look: that something waits for them, was decided, or has ended.

A notice names people, projects, sites and versions, and where to read on. It holds no code, no reason that somebody
typed, no error text and no secret: mail is read by others. Sent by `hub_service.notices`; pure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from federator.contract import ApprovalRequest, ApprovalState, RunStatus

from hub_service.domain.projects import Project
from hub_service.domain.runs import Run


class NoticeKind(StrEnum):
    APPROVAL_ASKED = "approval-asked"
    APPROVAL_DECIDED = "approval-decided"
    APPROVAL_ENDING = "approval-ending"
    INVITED = "invited"
    RUN_ENDED = "run-ended"
    SITE_SILENT = "site-silent"
    PROJECT_DELETED = "project-deleted"


@dataclass(frozen=True, slots=True)
class Notice:
    """One thing to tell.

    Attributes:
        users: Hub users to tell.
        site: whose data stewards to tell, too; "" for none.
        page: segments of the page's address below the service's prefix.
    """

    kind: NoticeKind
    project_id: str
    project_name: str
    subject: str
    text: str
    users: tuple[str, ...] = ()
    site: str = ""
    page: tuple[str, ...] = ()


Tell = Callable[[Notice], None]
"""Takes a notice and returns at once, whatever becomes of it."""


def tell_nobody(notice: Notice) -> None:
    """Where no notices are set up."""


def approval_asked(request: ApprovalRequest, site_title: str) -> Notice:
    """To a site's stewards: a version waits for them, for the first time or again."""
    why = {
        ApprovalState.APPROVED_ONCE: f"{request.first_steward} has approved; a second data steward must decide, too.",
        ApprovalState.LAPSED: "Somebody has joined the project since it was approved, so you are asked again.",
    }
    return Notice(
        NoticeKind.APPROVAL_ASKED,
        request.project_id,
        request.project_name,
        f"{request.project_name}: version {request.version} waits for approval",
        f"{request.requested_by} asks to run version {request.version} of {request.project_name} on "
        f"{request.dataset} of {site_title}. {why.get(request.state, 'It does not run before you approve it.')}",
        site=request.site,
        page=_review_page(request),
    )


_DECIDED = {
    ApprovalState.APPROVED: "approved",
    ApprovalState.REJECTED: "rejected",
    ApprovalState.REVOKED: "withdrew the approval of",
}


def approval_decided(request: ApprovalRequest, site_title: str) -> Notice:
    """To the participant and the project's owner. `request` is as it stands after the decision."""
    return Notice(
        NoticeKind.APPROVAL_DECIDED,
        request.project_id,
        request.project_name,
        f"{request.project_name}: version {request.version} is {request.state} at {site_title}",
        f"{request.decided_by} {_DECIDED[request.state]} version {request.version} of {request.project_name} "
        f"for {request.dataset} of {site_title}. The project's page shows reason and conditions.",
        users=_once(request.requested_by, request.owner),
        page=("projects", request.project_id),
    )


def approval_ending(request: ApprovalRequest, site_title: str, ends: datetime) -> Notice:
    """To the site's stewards and the participant, some days before."""
    return Notice(
        NoticeKind.APPROVAL_ENDING,
        request.project_id,
        request.project_name,
        f"{request.project_name}: the approval of version {request.version} ends soon",
        f"The approval of version {request.version} of {request.project_name} for {request.dataset} of {site_title} "
        f"ends on {ends:%-d %B %Y at %H:%M} UTC. After that it does not run there, unless it is approved again.",
        users=(request.requested_by,),
        site=request.site,
        page=_review_page(request),
    )


def invited(project: Project, user: str, by: str) -> Notice:
    return Notice(
        NoticeKind.INVITED,
        project.id,
        project.name,
        f"{by} invites you to {project.name}",
        f"{by} invites you to take part in the federated project {project.name} with data of your own site. "
        "The data stay there. Accept or decline on the project's page.",
        users=(user,),
        page=("projects", project.id),
    )


def site_silent(project: Project, run: Run, sites: str) -> Notice:
    """To who started the run and the project's owner: the grace time is over, and the run waits for sites."""
    return Notice(
        NoticeKind.SITE_SILENT,
        project.id,
        project.name,
        f"{project.name}: run {run.number} waits for {sites}",
        f"Run {run.number} of {project.name} has heard nothing of {sites} for {run.grace_s:g} s, in round {run.round} "
        f"of {run.rounds}. It goes on when the site is back. The project's page has the details.",
        users=_once(run.started_by, project.owner),
        page=("projects", project.id),
    )


def site_left_out(project: Project, run: Run, site: str) -> Notice:
    """To the same: the round goes on without a site."""
    return Notice(
        NoticeKind.SITE_SILENT,
        project.id,
        project.name,
        f"{project.name}: run {run.number} goes on without {site}",
        f"Run {run.number} of {project.name} has heard nothing of {site} for {run.grace_s:g} s, and went on without it "
        f"in round {run.round} of {run.rounds}. The site takes part again when it is back.",
        users=_once(run.started_by, project.owner),
        page=("projects", project.id),
    )


def run_ended(project: Project, run: Run) -> Notice:
    """To who started the run and the project's owner. Why it failed stands on the page only."""
    outcome = {RunStatus.FINISHED: "has finished", RunStatus.FAILED: "has failed"}.get(run.status, "was stopped")
    return Notice(
        NoticeKind.RUN_ENDED,
        project.id,
        project.name,
        f"{project.name}: run {run.number} {outcome}",
        f"Run {run.number} of {project.name} {outcome}, after {run.round} of {run.rounds} rounds. "
        "The project's page has the details.",
        users=_once(run.started_by, project.owner),
        page=("projects", project.id),
    )


def project_deleted(project: Project, by: str, users: Iterable[str]) -> Notice:
    """To its members and whom it had invited, but for who did it."""
    return Notice(
        NoticeKind.PROJECT_DELETED,
        project.id,
        project.name,
        f"{project.name} is deleted",
        f"{by} has deleted the federated project {project.name}, with its runs and models. "
        "Flower clients that took part in it have ended.",
        users=tuple(users),
    )


def _once(*users: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(users))


def _review_page(request: ApprovalRequest) -> tuple[str, ...]:
    return ("approvals", request.project_id, request.fab_hash, request.site, request.dataset)
