"""Decisions with conditions: what an approval allows no more than, and two stewards where a site wants two."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from federator.contract import ApprovalRequest, ApprovalState, Conditions, MemberState, RunStatus

from hub_service.audit import fault
from hub_service.changes import RUNS_TOPIC, user_topic
from hub_service.domain.approvals import LEAST_MESSAGE
from hub_service.domain.errors import Conflict, Forbidden, Invalid, NotFound
from hub_service.domain.notices import Notice, NoticeKind
from hub_service.domain.projects import Principal
from tests.fakes.federation import ANNA, BERT, CARL, SITES, STEWARD_SCOPES, STEWARDS, Federation, person

SECOND = person("second-a", "site-a", "steward-a", scopes=STEWARD_SCOPES)
ANNA_AS_STEWARD = person("anna", "site-a", "steward-a", scopes=STEWARD_SCOPES)
ALL_OF_THEM = Conditions(most_rounds=5, largest_message=1_000_000, members=("anna", "bert"))


class Told:
    """Takes notices, in place of the outbox."""

    def __init__(self) -> None:
        self.notices: list[Notice] = []

    def __call__(self, notice: Notice) -> None:
        self.notices.append(notice)

    def take(self) -> list[tuple[NoticeKind, tuple[str, ...], str]]:
        taken, self.notices = self.notices, []
        return [(one.kind, one.users, one.site) for one in taken]


@pytest.fixture
def told() -> Told:
    return Told()


@pytest.fixture
def federation(tmp_path: Path, told: Told) -> Federation:
    return Federation(tmp_path, tell=told)


@pytest.fixture
def careful(tmp_path: Path, told: Told) -> Federation:
    """Site a wants two stewards."""
    return Federation(tmp_path, tell=told, sites={**SITES, "a": replace(SITES["a"], four_eyes=True)})


def decide(
    federation: Federation,
    project_id: str,
    conditions: Conditions | None = None,
    state: ApprovalState = ApprovalState.APPROVED,
    *,
    steward: Principal = STEWARDS["a"],
    reason: str = "",
    days: float | None = None,
) -> ApprovalRequest:
    fab_hash = federation.newest_hash(project_id)
    ends = None if days is None else federation.clock.now + timedelta(days=days)
    return federation.coordinator.decide(steward, project_id, fab_hash, "scans", "a", state, reason, ends, conditions)


class TestRounds:
    async def test_a_site_that_allows_fewer_is_left_out_and_named(self, federation: Federation) -> None:
        project_id, _, second = await federation.ready_project()
        decide(federation, project_id, Conditions(most_rounds=5))
        run = federation.coordinator.start_run(ANNA, project_id, 6, False)
        stored = federation.store.run(run.id)
        assert stored is not None
        assert stored.sites == {second: "b"}
        assert stored.message == "Hospital A takes no part: its approval allows 5 rounds at most."

    async def test_as_many_as_allowed_may_run(self, federation: Federation) -> None:
        project_id, first, second = await federation.ready_project()
        decide(federation, project_id, Conditions(most_rounds=5))
        run = federation.coordinator.start_run(ANNA, project_id, 5, False)
        stored = federation.store.run(run.id)
        assert stored is not None
        assert stored.sites == {first: "a", second: "b"}
        assert stored.message == ""

    async def test_with_no_other_site_the_run_is_refused_with_the_reason(self, federation: Federation) -> None:
        project_id = federation.new_project()
        participation_id = federation.join(project_id, ANNA)
        decide(federation, project_id, Conditions(most_rounds=1))
        federation.connect(ANNA, participation_id)
        with pytest.raises(Conflict) as caught:
            federation.coordinator.start_run(ANNA, project_id, 2, False)
        assert caught.value.next_step == "Hospital A takes no part: its approval allows 1 round at most."
        participant = federation.coordinator.project(ANNA, project_id).participants[0]
        assert participant.conditions == Conditions(most_rounds=1)


class TestMembers:
    async def test_somebody_elses_joining_ends_it_and_asks_again(self, federation: Federation, told: Told) -> None:
        project_id, first, _ = await federation.ready_project()
        decide(federation, project_id, Conditions(members=("bert", "anna")))
        key = federation.participation(first).public_key
        assert key is not None
        await federation.coordinator.invite(ANNA, project_id, "carl")
        assert federation.coordinator.node_grant(key) is not None  # invited is not joined
        told.take()
        revisions = [federation.changes.revision(one) for one in (RUNS_TOPIC, user_topic("anna"))]
        federation.join(project_id, CARL)
        assert all(
            federation.changes.revision(one) > before
            for one, before in zip((RUNS_TOPIC, user_topic("anna")), revisions, strict=True)
        )
        assert federation.coordinator.node_grant(key) is None
        assert federation.coordinator.assignments(ANNA).assignments == ()
        assert federation.coordinator.site_approvals(ANNA, first).fab_hashes == ()
        (asked,) = federation.coordinator.home(STEWARDS["a"]).approvals
        assert (asked.state, asked.members) == (ApprovalState.LAPSED, ("anna", "bert", "carl"))
        assert told.take() == [(NoticeKind.APPROVAL_ASKED, (), "a"), (NoticeKind.APPROVAL_ASKED, (), "c")]
        detail = federation.coordinator.project(ANNA, project_id).participants[0].detail
        assert detail == "The approval of version 1 was for other members. Ask steward-a to approve it again."

        federation.coordinator.leave(CARL, project_id)
        assert federation.coordinator.node_grant(key) is not None
        federation.coordinator.leave(BERT, project_id)
        assert federation.coordinator.node_grant(key) is not None

    async def test_the_steward_names_those_who_have_joined(self, federation: Federation) -> None:
        project_id, _, _ = await federation.ready_project()
        with pytest.raises(Conflict, match="bert has joined the project meanwhile"):
            decide(federation, project_id, Conditions(members=("anna",)))
        with pytest.raises(Invalid, match="zoe has not joined"):
            decide(federation, project_id, Conditions(members=("anna", "bert", "zoe")))
        decided = decide(federation, project_id, Conditions(members=("bert", "anna", "bert")))
        assert decided.conditions.members == ("anna", "bert")

    async def test_a_newcomer_is_told_to_the_same_site_once(self, federation: Federation, told: Told) -> None:
        project_id, _, _ = await federation.ready_project()
        decide(federation, project_id, Conditions(members=("anna", "bert")))
        await federation.invite_and_join(project_id, CARL)
        told.take()
        federation.coordinator.leave(BERT, project_id)
        await federation.invite_and_join(project_id, BERT)
        assert all(site != "a" for _, _, site in told.take())


class TestLargestMessage:
    async def test_it_is_told_to_gateway_and_site(self, federation: Federation) -> None:
        project_id, first, second = await federation.ready_project()
        decide(federation, project_id, Conditions(largest_message=100_000))
        fab_hash = federation.newest_hash(project_id)
        answer = federation.coordinator.site_approvals(ANNA, first)
        assert answer.conditions == {fab_hash: Conditions(largest_message=100_000)}
        assert federation.coordinator.site_approvals(BERT, second).conditions == {}
        federation.coordinator.start_run(ANNA, project_id, 1, False)
        limits = []
        for participation_id in (first, second):
            key = federation.participation(participation_id).public_key
            assert key is not None
            grant = federation.coordinator.node_grant(key)
            assert grant is not None
            limits.append(grant.largest_message)
        assert limits == [100_000, None]


@pytest.mark.parametrize(
    "bad",
    [
        Conditions(most_rounds=0),
        Conditions(most_rounds=1001),
        Conditions(largest_message=LEAST_MESSAGE - 1),
    ],
)
async def test_limits_out_of_range_are_refused(federation: Federation, bad: Conditions) -> None:
    project_id, _, _ = await federation.ready_project()
    with pytest.raises(Invalid):
        decide(federation, project_id, bad)


async def test_a_rejection_needs_a_reason_and_keeps_no_conditions(federation: Federation, told: Told) -> None:
    project_id = federation.new_project()
    federation.join(project_id, ANNA)
    told.take()
    for empty in ("", "  \n"):
        with pytest.raises(Invalid, match="reason"):
            decide(federation, project_id, state=ApprovalState.REJECTED, reason=empty)
    rejected = decide(
        federation, project_id, Conditions(most_rounds=2), ApprovalState.REJECTED, reason="Reads /etc", days=3
    )
    assert (rejected.conditions, rejected.expires_at, rejected.reason) == (Conditions(), "", "Reads /etc")
    (notice,) = told.notices
    assert (notice.kind, notice.users) == (NoticeKind.APPROVAL_DECIDED, ("anna",))
    assert "/etc" not in notice.text + notice.subject


async def test_withdrawing_reaches_run_server_and_node(federation: Federation, told: Told) -> None:
    project_id, first, _ = await federation.ready_project()
    key = federation.participation(first).public_key
    assert key is not None
    federation.coordinator.start_run(ANNA, project_id, 3, False)
    told.take()
    before = federation.changes.revision(RUNS_TOPIC)
    decide(federation, project_id, state=ApprovalState.REVOKED)
    assert federation.changes.revision(RUNS_TOPIC) > before  # the run's driver takes the node off the SuperLink
    assert federation.coordinator.node_grant(key) is None
    assert federation.coordinator.site_approvals(ANNA, first).fab_hashes == ()
    assert federation.coordinator.assignments(ANNA).assignments == ()
    assert told.take() == [(NoticeKind.APPROVAL_DECIDED, ("anna",), "")]


async def test_one_more_character_asks_again(federation: Federation, told: Told) -> None:
    project_id, first, _ = await federation.ready_project()
    told.take()
    federation.add_app(project_id, b"app 1 ")
    newest = federation.newest_hash(project_id)
    assert newest not in federation.coordinator.site_approvals(ANNA, first).fab_hashes
    assert federation.coordinator.home(STEWARDS["a"]).approvals[0].version == 2
    assert told.take() == [(NoticeKind.APPROVAL_ASKED, (), "a"), (NoticeKind.APPROVAL_ASKED, (), "b")]
    with pytest.raises(Conflict, match="No site is ready"):
        federation.coordinator.start_run(ANNA, project_id, 1, False)


class TestFourEyes:
    async def prepared(self, federation: Federation) -> tuple[str, str]:
        project_id = federation.new_project()
        return project_id, federation.join(project_id, ANNA)

    async def test_two_stewards_with_the_same_conditions(self, careful: Federation, told: Told) -> None:
        project_id, participation_id = await self.prepared(careful)
        told.take()
        conditions = Conditions(most_rounds=5, members=("anna",))
        once = decide(careful, project_id, conditions, days=9)
        assert (once.state, once.first_steward, once.may_approve) == (ApprovalState.APPROVED_ONCE, "steward-a", False)
        assert once.four_eyes
        assert careful.coordinator.site_approvals(ANNA, participation_id).fab_hashes == ()
        assert told.take() == [(NoticeKind.APPROVAL_ASKED, (), "a")]
        assert careful.coordinator.home(STEWARDS["a"]).approvals == ()  # the first waits for the second
        (waiting,) = careful.coordinator.home(SECOND).approvals
        assert (waiting.state, waiting.conditions) == (ApprovalState.APPROVED_ONCE, conditions)
        detail = careful.coordinator.project(ANNA, project_id).participants[0].detail
        assert detail == "steward-a approved version 1. A second data steward of the site must approve, too."

        with pytest.raises(Forbidden, match="second data steward"):
            decide(careful, project_id, conditions, days=9)
        for other, days in ((Conditions(most_rounds=6, members=("anna",)), 9), (conditions, 8)):
            with pytest.raises(Conflict, match="other conditions"):
                decide(careful, project_id, other, steward=SECOND, days=days)
        twice = decide(careful, project_id, conditions, steward=SECOND, days=9)
        assert (twice.state, twice.first_steward, twice.decided_by) == (
            ApprovalState.APPROVED,
            "steward-a",
            "second-a",
        )
        assert len(careful.coordinator.site_approvals(ANNA, participation_id).fab_hashes) == 1
        assert told.take() == [(NoticeKind.APPROVAL_DECIDED, ("anna",), "")]
        with pytest.raises(Conflict, match="Two data stewards have approved"):
            decide(careful, project_id, conditions, days=9)

    async def test_the_participant_is_neither_of_the_two(self, careful: Federation) -> None:
        project_id, _ = await self.prepared(careful)
        assert careful.coordinator.home(ANNA_AS_STEWARD).approvals == ()
        with pytest.raises(Forbidden, match="you asked for this yourself"):
            decide(careful, project_id, steward=ANNA_AS_STEWARD)
        decide(careful, project_id)
        with pytest.raises(Forbidden, match="you asked for this yourself"):
            decide(careful, project_id, steward=ANNA_AS_STEWARD)
        decide(careful, project_id, state=ApprovalState.REJECTED, steward=ANNA_AS_STEWARD, reason="No longer wanted")

    async def test_elsewhere_the_participant_may(self, federation: Federation) -> None:
        project_id = federation.new_project()
        federation.join(project_id, ANNA)
        assert decide(federation, project_id, steward=ANNA_AS_STEWARD).state is ApprovalState.APPROVED

    @pytest.mark.parametrize("state", [ApprovalState.REVOKED, ApprovalState.REJECTED])
    async def test_the_first_yes_can_be_taken_back(self, careful: Federation, state: ApprovalState) -> None:
        project_id, _ = await self.prepared(careful)
        decide(careful, project_id)
        assert decide(careful, project_id, state=state, reason="Wait").state is state
        assert decide(careful, project_id, steward=SECOND).state is ApprovalState.APPROVED_ONCE

    async def test_a_first_yes_that_has_run_out_is_none(self, careful: Federation) -> None:
        project_id, _ = await self.prepared(careful)
        decide(careful, project_id, days=1)
        careful.clock.advance(days=2)
        again = decide(careful, project_id, steward=SECOND)
        assert (again.state, again.first_steward) == (ApprovalState.APPROVED_ONCE, "second-a")


class TestHistory:
    async def test_every_decision_stays_with_its_conditions(self, federation: Federation) -> None:
        project_id, _, _ = await federation.ready_project()
        decide(federation, project_id, ALL_OF_THEM, days=30)
        decide(federation, project_id, state=ApprovalState.REVOKED, reason="A question of the ethics board")
        history = federation.coordinator.decisions(SECOND, project_id, "a")
        assert [(one.state, one.decided_by, one.version) for one in history] == [
            (ApprovalState.REVOKED, "steward-a", 1),
            (ApprovalState.APPROVED, "steward-a", 1),
            (ApprovalState.APPROVED, "steward-a", 1),
        ]
        assert history[0].reason == "A question of the ethics board"
        assert history[1].conditions == ALL_OF_THEM
        assert history[1].expires_at
        assert history[2].conditions == Conditions()
        assert fault(federation.store.audit_lines()) is None
        line = federation.store.audit_lines_of(project_id)[-2]
        assert (line.detail["most_rounds"], line.detail["largest_message"]) == ("5", "1000000")
        assert line.detail["members"] == '["anna", "bert"]'

    async def test_it_is_the_sites_own(self, federation: Federation) -> None:
        project_id, _, _ = await federation.ready_project()
        for stranger, site in ((STEWARDS["b"], "a"), (ANNA, "a"), (STEWARDS["c"], "c")):
            with pytest.raises(NotFound):
                federation.coordinator.decisions(stranger, project_id, site)
        (other,) = federation.coordinator.decisions(STEWARDS["b"], project_id, "b")
        assert other.decided_by == "steward-b"
        federation.coordinator.leave(ANNA, project_id)
        assert len(federation.coordinator.decisions(STEWARDS["a"], project_id, "a")) == 1

    async def test_the_version_to_compare_with_is_the_last_approved_before(self, federation: Federation) -> None:
        project_id, _, _ = await federation.ready_project()
        (first,) = federation.coordinator.approvals(STEWARDS["a"])
        assert federation.coordinator.last_approved(STEWARDS["a"], first) is None
        for content in (b"app 2", b"app 3"):
            federation.add_app(project_id, content)
        newest = federation.coordinator.approvals(STEWARDS["a"])[0]
        found = federation.coordinator.last_approved(STEWARDS["a"], newest)
        assert found is not None
        decision, review = found
        assert (newest.version, decision.version, review.version.number) == (3, 1, 1)


async def test_who_is_told_of_invitations_and_ends(federation: Federation, told: Told) -> None:
    project_id = federation.new_project()
    await federation.coordinator.invite(ANNA, project_id, "bert")
    federation.join(project_id, BERT)
    assert told.take() == [(NoticeKind.INVITED, ("bert",), ""), (NoticeKind.APPROVAL_ASKED, (), "b")]
    members = {one.user: one.state for one in federation.store.members(project_id)}
    assert members == {"anna": MemberState.JOINED, "bert": MemberState.JOINED}
    assert not [run for run in federation.store.runs(project_id) if run.status is RunStatus.RUNNING]
