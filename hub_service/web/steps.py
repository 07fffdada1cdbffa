"""Where a project stands: the steps from an app to a result, each with its state in words."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from federator.contract import (
    ApprovalState,
    ClientState,
    MemberState,
    Participant,
    ProjectDetail,
    RunStatus,
    RunSummary,
)


class StepState(StrEnum):
    """How far one step is."""

    DONE = "done"
    NEXT = "next"  # the person who looks can do it now
    WAITING = "waiting"  # somebody else, or a site, does it
    FAILED = "failed"
    LATER = "later"  # a step before it comes first


@dataclass(frozen=True, slots=True)
class Step:
    title: str
    state: StepState
    text: str
    anchor: str  # id of the part of the page that shows it


_REFUSED = (ApprovalState.REJECTED, ApprovalState.REVOKED)
_AT_WORK = (ClientState.READY, ClientState.WORKING)


def project_steps(project: ProjectDetail) -> tuple[Step, ...]:
    """The steps of a project, as the person who asked for it sees them."""
    taking_part = [one for one in project.participants if one.participation_id]
    run = project.runs[0] if project.runs else None
    return (
        _app(project),
        _sites(project, taking_part),
        _approvals(project, taking_part),
        _clients(project, taking_part),
        _run(project, taking_part, run),
        _result(run),
    )


def current(steps: Sequence[Step]) -> Step | None:
    """The step to look at; None once the last is done, whatever has changed in those before it since."""
    if steps[-1].state is StepState.DONE:
        return None
    return next(step for step in steps if step.state is not StepState.DONE)


def _app(project: ProjectDetail) -> Step:
    if project.versions:
        return Step("App", StepState.DONE, f"version {project.versions[0].number}", "versions")
    if "add-app" in project.actions:
        return Step("App", StepState.NEXT, "add a notebook or a Flower app", "versions")
    return Step("App", StepState.WAITING, f"{project.owner} adds it", "versions")


def _sites(project: ProjectDetail, taking_part: Sequence[Participant]) -> Step:
    invited = sum(one.state is MemberState.INVITED for one in project.participants)
    if project.member_state is MemberState.INVITED:
        return Step("Sites", StepState.NEXT, "take part, or decline", "participants")
    if taking_part:
        waiting = f", {invited} invited" if invited else ""
        part = _count(len(taking_part), "takes part", "take part")
        return Step("Sites", StepState.DONE, f"{part}{waiting}", "participants")
    if "join" in project.actions or "invite" in project.actions:
        return Step("Sites", StepState.NEXT, "take part, invite colleagues", "participants")
    return Step("Sites", StepState.WAITING, "nobody takes part yet", "participants")


def _approvals(project: ProjectDetail, taking_part: Sequence[Participant]) -> Step:
    title, anchor = "Approvals", "participants"
    if not project.versions or not taking_part:
        return Step(title, StepState.LATER, "each site's data steward reads the code", anchor)
    refused = _titles(taking_part, lambda one: one.approval in _REFUSED)
    if refused:
        return Step(title, StepState.FAILED, f"refused at {refused}", anchor)
    approved = sum(one.approval is ApprovalState.APPROVED for one in taking_part)
    state = StepState.DONE if approved == len(taking_part) else StepState.WAITING
    return Step(title, state, f"{approved} of {len(taking_part)} given", anchor)


def _clients(project: ProjectDetail, taking_part: Sequence[Participant]) -> Step:
    title, anchor = "Clients", "participants"
    approved = [one for one in taking_part if one.approval is ApprovalState.APPROVED]
    if not approved:
        return Step(title, StepState.LATER, "they start by themselves", anchor)
    failed = _titles(approved, lambda one: one.client is ClientState.FAILED)
    if failed:
        return Step(title, StepState.FAILED, f"failed at {failed}", anchor)
    ready = sum(one.client in _AT_WORK for one in approved)
    state = StepState.DONE if ready == len(approved) else StepState.WAITING
    return Step(title, state, f"{ready} of {len(approved)} ready", anchor)


def _run(project: ProjectDetail, taking_part: Sequence[Participant], run: RunSummary | None) -> Step:
    if run is None:
        ready = any(one.approval is ApprovalState.APPROVED and one.client in _AT_WORK for one in taking_part)
        if not ready:
            return Step("Run", StepState.LATER, "once a site is ready", "runs")
        if "start" in project.actions:
            return Step("Run", StepState.NEXT, "start it", "runs")
        return Step("Run", StepState.WAITING, f"{project.owner} starts it", "runs")
    if run.status is RunStatus.FINISHED:
        return Step("Run", StepState.DONE, f"run {run.number} finished", "runs")
    if run.status.is_final:
        return Step("Run", StepState.FAILED, f"run {run.number} {run.status}", "runs")
    return Step("Run", StepState.WAITING, f"run {run.number}: {run.phase or run.status}", "runs")


def _result(run: RunSummary | None) -> Step:
    if run is not None and run.status is RunStatus.FINISHED:
        return Step("Result", StepState.DONE, "model and table", "result")
    return Step("Result", StepState.LATER, "model and table", "result")


def _titles(participants: Sequence[Participant], chosen: Callable[[Participant], bool]) -> str:
    return ", ".join(dict.fromkeys(one.site_title or one.user for one in participants if chosen(one)))


def _count(sites: int, one: str, more: str) -> str:
    return f"1 site {one}" if sites == 1 else f"{sites} sites {more}"
