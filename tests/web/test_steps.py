"""Where a project stands, as its stepper says it."""

from __future__ import annotations

from dataclasses import replace

import pytest
from federator.contract import (
    ApprovalState,
    AppVersion,
    ClientState,
    MemberState,
    Participant,
    ProjectDetail,
    RunStatus,
    RunSummary,
)

from hub_service.web.steps import StepState, current, project_steps
from hub_service.web.templating import STEP_MARKS, STEP_WORDS

AT = "2026-11-24T12:00:00+00:00"
VERSION = AppVersion(1, "ab" * 32, "lungs", "notebook", "ada", AT, 1000)
OWNER = Participant("ada", "owner", MemberState.JOINED)
EMPTY = ProjectDetail(
    "p1", "Lungs", "", "ada", "owner", MemberState.JOINED, AT, (OWNER,), (), (), ("invite", "add-app", "join")
)


def part(
    user: str, approval: ApprovalState = ApprovalState.APPROVED, client: ClientState = ClientState.READY
) -> Participant:
    return Participant(
        user,
        "member",
        MemberState.JOINED,
        site=user,
        site_title=f"Site of {user}",
        dataset="slides",
        participation_id=f"part-{user}",
        approval=approval,
        client=client,
    )


def project(*parts: Participant, actions: tuple[str, ...] = ("start",)) -> ProjectDetail:
    return replace(EMPTY, participants=parts, versions=(VERSION,), actions=actions)


def run(status: RunStatus, phase: str = "") -> RunSummary:
    return RunSummary("r1", 1, status, 5, 2, phase, "ada", AT)


def shown(detail: ProjectDetail) -> str:
    return " ".join(str(step.state) for step in project_steps(detail))


@pytest.mark.parametrize(
    ("detail", "states", "text"),
    [
        (EMPTY, "next next later later later later", "add a notebook or a Flower app"),
        (replace(EMPTY, actions=()), "waiting waiting later later later later", "ada adds it"),
        (
            replace(project(part("ada")), member_state=MemberState.INVITED),
            "done next done done next later",
            "take part, or decline",
        ),
        (project(OWNER, actions=("join",)), "done next later later later later", "take part, invite colleagues"),
        (
            project(part("ada", ApprovalState.WAITING), part("ben")),
            "done done waiting done next later",
            "1 of 2 given",
        ),
        (
            project(part("ada"), part("ben", ApprovalState.REJECTED)),
            "done done failed done next later",
            "refused at Site of ben",
        ),
        (
            project(part("ada", client=ClientState.OFFLINE)),
            "done done done waiting later later",
            "0 of 1 ready",
        ),
        (
            project(part("ada"), part("ben", client=ClientState.FAILED)),
            "done done done failed next later",
            "failed at Site of ben",
        ),
        (project(part("ada")), "done done done done next later", "start it"),
        (project(part("ada"), actions=()), "done done done done waiting later", "ada starts it"),
        (
            replace(project(part("ada")), runs=(run(RunStatus.RUNNING, "round 2 of 5"),)),
            "done done done done waiting later",
            "run 1: round 2 of 5",
        ),
        (
            replace(project(part("ada")), runs=(run(RunStatus.FAILED),)),
            "done done done done failed later",
            "run 1 failed",
        ),
    ],
)
def test_each_state_of_a_project_is_told(detail: ProjectDetail, states: str, text: str) -> None:
    assert shown(detail) == states
    step = current(project_steps(detail))
    assert step is not None
    assert step.text == text


def test_a_finished_run_is_the_end() -> None:
    done = replace(project(part("ada")), runs=(run(RunStatus.FINISHED),))
    assert shown(done) == "done done done done done done"
    assert current(project_steps(done)) is None
    asleep = replace(done, participants=(part("ada", client=ClientState.OFFLINE),))
    assert shown(asleep) == "done done done waiting done done"
    assert current(project_steps(asleep)) is None


def test_sites_are_counted_with_who_is_invited() -> None:
    invited = Participant("cleo", "member", MemberState.INVITED)
    texts = [project_steps(project(*parts, invited))[1].text for parts in ((part("ada"),), (part("ada"), part("ben")))]
    assert texts == ["1 site takes part, 1 invited", "2 sites take part, 1 invited"]


def test_every_state_of_a_step_has_a_mark_and_a_word() -> None:
    assert set(STEP_MARKS) == set(STEP_WORDS) == set(StepState)
    assert all(STEP_WORDS.values())
