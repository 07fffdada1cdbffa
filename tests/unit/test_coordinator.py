"""The operations, with a store in memory: what each does, refuses, tells and writes into the audit log."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from federator.contract import ApprovalState, ClientState, MemberState, OutagePolicy, RunStatus, Scope

from hub_service.audit import Decision, fault
from hub_service.changes import RUNS_TOPIC, project_topic, user_topic
from hub_service.domain.errors import Conflict, FederationError, Forbidden, Invalid, NotFound, Unavailable
from hub_service.domain.policy import Action
from hub_service.domain.projects import Principal
from hub_service.domain.runs import EventKind, RunEvent, RunTarget
from hub_service.presence import BACK_WITHIN, LOST_AFTER
from tests.fakes.federation import ANNA, BEA, BERT, CARL, DORA, STEWARDS, Federation, new_key, person
from tests.fakes.hub_directory import DownHubDirectory


@pytest.fixture
def federation(tmp_path: Path) -> Federation:
    return Federation(tmp_path)


def actions_noted(federation: Federation) -> list[str]:
    return [line.action for line in federation.store.audit_lines()]


def state_of(federation: Federation, project_id: str, user: str) -> MemberState:
    return next(one.state for one in federation.store.members(project_id) if one.user == user)


class TestProjects:
    def test_the_creator_owns_it_and_does_not_take_part_yet(self, federation: Federation) -> None:
        summary = federation.coordinator.create_project(ANNA, "  Lungs  ", " Nodules ")
        assert (summary.name, summary.owner, summary.role, summary.sites) == ("Lungs", "anna", "owner", 0)
        detail = federation.coordinator.project(ANNA, summary.id)
        assert detail.description == "Nodules"
        assert [one.participation_id for one in detail.participants] == [None]
        assert {Action.JOIN, Action.INVITE} <= set(detail.actions)
        assert federation.coordinator.home(ANNA).projects == (summary,)

    @pytest.mark.parametrize("name", ["", "   ", "x" * 81, "a\nb", "a\x00b"])
    def test_a_bad_name_is_refused(self, federation: Federation, name: str) -> None:
        with pytest.raises(Invalid, match="1 to 80"):
            federation.coordinator.create_project(ANNA, name, "")

    def test_markup_is_kept_as_text(self, federation: Federation) -> None:
        assert federation.coordinator.create_project(ANNA, "<b>Lungs</b>", "").name == "<b>Lungs</b>"

    def test_an_endless_description_is_refused(self, federation: Federation) -> None:
        with pytest.raises(Invalid, match="longer"):
            federation.coordinator.create_project(ANNA, "Lungs", "x" * 4001)

    @pytest.mark.parametrize(
        ("groups", "reason"),
        [((), "no site"), (("site-a", "site-b"), "a, b"), (("site-elsewhere",), "takes no part")],
    )
    def test_a_person_without_one_site_of_this_federation_is_told_why(
        self, federation: Federation, groups: tuple[str, ...], reason: str
    ) -> None:
        nobody = person("nora", *groups)
        with pytest.raises(Forbidden, match=reason):
            federation.coordinator.my_site(nobody)
        with pytest.raises(Forbidden, match=reason):
            federation.coordinator.create_project(nobody, "Lungs", "")

    def test_home_is_newest_first_and_shows_what_waits(self, federation: Federation) -> None:
        older = federation.new_project()
        federation.clock.advance(hours=1)
        newer = federation.new_project()
        assert [one.id for one in federation.coordinator.home(ANNA).projects] == [newer, older]
        assert federation.coordinator.home(ANNA).site == "a"
        assert federation.coordinator.home(person("nora")).site is None


class TestApps:
    def test_versions_are_numbered_and_newest_first(self, federation: Federation) -> None:
        project_id = federation.new_project(fab=b"one")
        second = federation.add_app(project_id, b"two")
        assert (second.number, second.title, second.size) == (2, "lungs", 3)
        assert [one.number for one in federation.coordinator.project(ANNA, project_id).versions] == [2, 1]
        assert federation.artifacts.fab(second.fab_hash) == b"two"

    def test_the_same_app_again_is_refused(self, federation: Federation) -> None:
        project_id = federation.new_project(fab=b"one")
        with pytest.raises(Conflict, match="version 1"):
            federation.add_app(project_id, b"one")

    async def test_a_member_reads_the_cells_and_cannot_add(self, federation: Federation) -> None:
        project_id = federation.new_project()
        await federation.invite_and_join(project_id, BERT)
        review = federation.coordinator.app_review(BERT, project_id, federation.newest_hash(project_id))
        assert review.cells[0].number == 3
        assert review.imports == ("torch",)
        with pytest.raises(Forbidden, match="owner"):
            federation.add_app(project_id, b"x", BERT)

    def test_an_unknown_version_is_not_found(self, federation: Federation) -> None:
        with pytest.raises(NotFound, match="version"):
            federation.coordinator.app_review(ANNA, federation.new_project(), "0" * 64)

    def test_a_steward_reads_the_app_once_their_site_is_asked(self, federation: Federation) -> None:
        project_id = federation.new_project()
        fab_hash = federation.newest_hash(project_id)
        with pytest.raises(NotFound):
            federation.coordinator.app_review(STEWARDS["a"], project_id, fab_hash)
        federation.join(project_id, ANNA)
        assert federation.coordinator.app_review(STEWARDS["a"], project_id, fab_hash).version.number == 1
        with pytest.raises(NotFound):
            federation.coordinator.app_review(STEWARDS["b"], project_id, fab_hash)


class TestOutageSettings:
    def test_the_owner_sets_them(self, federation: Federation) -> None:
        project_id = federation.new_project()
        detail = federation.coordinator.set_outage(ANNA, project_id, OutagePolicy.CONTINUE, 60.0)
        assert (detail.on_outage, detail.grace_s) == (OutagePolicy.CONTINUE, 60.0)
        assert federation.coordinator.project(ANNA, project_id) == detail
        assert federation.store.audit_lines()[-1].action == Decision.PROJECT_CHANGED

    @pytest.mark.parametrize("grace_s", [4.9, -1.0, 7 * 24 * 3600 + 1, float("inf"), float("nan")])
    def test_no_grace_time(self, federation: Federation, grace_s: float) -> None:
        with pytest.raises(Invalid, match="grace time"):
            federation.coordinator.set_outage(ANNA, federation.new_project(), OutagePolicy.STOP, grace_s)

    async def test_a_member_does_not(self, federation: Federation) -> None:
        project_id, _, _ = await federation.ready_project()
        with pytest.raises(Forbidden, match="owner"):
            federation.coordinator.set_outage(BERT, project_id, OutagePolicy.STOP, 60.0)


class TestMembers:
    async def test_an_invitation_waits_for_the_invited(self, federation: Federation) -> None:
        project_id = federation.new_project()
        participant = await federation.coordinator.invite(ANNA, project_id, " bert ")
        assert (participant.user, participant.state) == ("bert", MemberState.INVITED)
        home = federation.coordinator.home(BERT)
        assert [one.id for one in home.invitations] == [project_id]
        assert home.projects == ()

    @pytest.mark.parametrize(
        ("user", "error", "reason"),
        [
            ("nobody", Invalid, "no user “nobody”"),
            ("", Invalid, "no user"),
            ("anna", Invalid, "yourself"),
            ("nora", Invalid, "no site"),
            ("norman", Invalid, "no site"),
        ],
    )
    async def test_whom_one_cannot_invite(
        self, federation: Federation, user: str, error: type[FederationError], reason: str
    ) -> None:
        federation.coordinator._hub.people |= {"nora": set(), "norman": {"site-elsewhere"}}  # type: ignore[attr-defined]
        project_id = federation.new_project()
        with pytest.raises(error, match=reason):
            await federation.coordinator.invite(ANNA, project_id, user)

    async def test_nobody_is_invited_twice(self, federation: Federation) -> None:
        project_id = federation.new_project()
        await federation.coordinator.invite(ANNA, project_id, "bert")
        with pytest.raises(Conflict, match="invited already"):
            await federation.coordinator.invite(ANNA, project_id, "bert")
        federation.join(project_id, BERT)
        with pytest.raises(Conflict, match="member already"):
            await federation.coordinator.invite(ANNA, project_id, "bert")

    async def test_a_hub_that_is_down_is_told(self, tmp_path: Path) -> None:
        federation = Federation(tmp_path, hub=DownHubDirectory())
        with pytest.raises(Unavailable, match="Hub"):
            await federation.coordinator.invite(ANNA, federation.new_project(), "bert")

    async def test_who_declined_or_left_or_was_removed_can_be_invited_again(self, federation: Federation) -> None:
        project_id = federation.new_project()
        await federation.coordinator.invite(ANNA, project_id, "bert")
        federation.coordinator.decline(BERT, project_id)
        assert state_of(federation, project_id, "bert") is MemberState.DECLINED
        await federation.invite_and_join(project_id, BERT)
        federation.coordinator.leave(BERT, project_id)
        assert state_of(federation, project_id, "bert") is MemberState.LEFT
        await federation.invite_and_join(project_id, BERT)
        federation.coordinator.remove_member(ANNA, project_id, "bert")
        assert state_of(federation, project_id, "bert") is MemberState.REMOVED
        await federation.invite_and_join(project_id, BERT)
        assert state_of(federation, project_id, "bert") is MemberState.JOINED

    async def test_joining_takes_part_with_the_dataset(self, federation: Federation) -> None:
        project_id = federation.new_project()
        await federation.coordinator.invite(ANNA, project_id, "bert")
        participant = federation.coordinator.join(BERT, project_id, "labs")
        assert (participant.site, participant.site_title, participant.dataset) == ("b", "Hospital B", "labs")
        assert participant.approval is ApprovalState.WAITING
        assert "data steward of Hospital B" in participant.detail
        assert federation.coordinator.home(BERT).projects[0].sites == 1

    async def test_a_dataset_counts_once(self, federation: Federation) -> None:
        project_id = federation.new_project()
        await federation.invite_and_join(project_id, BERT)
        await federation.coordinator.invite(ANNA, project_id, "bea")
        with pytest.raises(Conflict, match=r"bert takes part with “scans” already\. A dataset counts once"):
            federation.coordinator.join(BEA, project_id, "scans")
        assert state_of(federation, project_id, "bea") is MemberState.INVITED
        assert federation.coordinator.join(BEA, project_id, "labs").site == "b"

    def test_without_an_app_a_participant_waits_for_the_owner(self, federation: Federation) -> None:
        project_id = federation.coordinator.create_project(ANNA, "Empty", "").id
        participant = federation.coordinator.join(ANNA, project_id, "scans")
        assert participant.approval is None
        assert participant.detail == "Waits for the owner to add an app."
        assert federation.coordinator.approvals(STEWARDS["a"]) == ()
        assert federation.coordinator.assignments(ANNA).assignments == ()

    async def test_joining_twice_and_with_no_such_dataset_is_refused(self, federation: Federation) -> None:
        project_id = federation.new_project()
        with pytest.raises(Invalid, match="no dataset “xrays”") as refused:
            federation.coordinator.join(ANNA, project_id, "xrays")
        assert "“labs”" in refused.value.next_step
        federation.join(project_id, ANNA)
        with pytest.raises(Conflict, match="take part already"):
            federation.coordinator.join(ANNA, project_id, "labs")

    def test_only_the_invited_can_join(self, federation: Federation) -> None:
        project_id = federation.new_project()
        with pytest.raises(NotFound):
            federation.coordinator.join(BERT, project_id, "scans")

    async def test_leaving_ends_everything_at_once(self, federation: Federation) -> None:
        project_id, _, participation_id = await federation.ready_project()
        key = federation.participation(participation_id).public_key
        assert key is not None
        seen = {topic: federation.changes.revision(topic) for topic in (user_topic("bert"), RUNS_TOPIC)}
        federation.coordinator.leave(BERT, project_id)
        assert federation.coordinator.assignments(BERT).assignments == ()
        assert federation.coordinator.node_grant(key) is None
        with pytest.raises(NotFound):
            federation.coordinator.site_approvals(BERT, participation_id)
        with pytest.raises(NotFound):
            federation.coordinator.project(BERT, project_id)
        assert all(federation.changes.revision(topic) > before for topic, before in seen.items())

    async def test_the_owner_leaves_and_stays_the_owner(self, federation: Federation) -> None:
        project_id, participation_id, _ = await federation.ready_project()
        federation.coordinator.leave(ANNA, project_id)
        assert not federation.participation(participation_id).active
        assert federation.coordinator.project(ANNA, project_id).role == "owner"
        assert federation.join(project_id, ANNA) != participation_id

    async def test_a_new_part_has_a_new_kernel(self, federation: Federation) -> None:
        project_id = federation.new_project()
        first = federation.participation(federation.join(project_id, ANNA))
        federation.coordinator.leave(ANNA, project_id)
        second = federation.participation(federation.join(project_id, ANNA))
        assert first.kernel_id != second.kernel_id

    async def test_who_cannot_be_removed(self, federation: Federation) -> None:
        project_id = federation.new_project()
        with pytest.raises(Conflict, match="owner"):
            federation.coordinator.remove_member(ANNA, project_id, "anna")
        with pytest.raises(Conflict, match="not a member"):
            federation.coordinator.remove_member(ANNA, project_id, "bert")
        await federation.invite_and_join(project_id, BERT)
        federation.coordinator.remove_member(ANNA, project_id, "bert")
        with pytest.raises(Conflict, match="not a member"):
            federation.coordinator.remove_member(ANNA, project_id, "bert")

    async def test_the_owner_sees_who_is_gone_and_members_do_not(self, federation: Federation) -> None:
        project_id = federation.new_project()
        await federation.invite_and_join(project_id, BERT)
        await federation.coordinator.invite(ANNA, project_id, "carl")
        federation.coordinator.decline(CARL, project_id)
        details = {one.user: one.detail for one in federation.coordinator.project(ANNA, project_id).participants}
        assert details["carl"] == "Declined the invitation."
        assert "carl" not in {one.user for one in federation.coordinator.project(BERT, project_id).participants}

    async def test_the_invited_see_the_project_and_not_its_runs(self, federation: Federation) -> None:
        project_id, _, _ = await federation.ready_project()
        run = federation.coordinator.start_run(ANNA, project_id, 3, False)
        await federation.coordinator.invite(ANNA, project_id, "carl")
        assert federation.coordinator.project(CARL, project_id).runs == ()
        assert federation.coordinator.home(CARL).invitations[0].last_run is None
        with pytest.raises(Forbidden, match="not joined"):
            federation.coordinator.run(CARL, run.id)


class TestApprovals:
    async def test_a_request_waits_for_the_sites_own_steward(self, federation: Federation) -> None:
        project_id = federation.new_project()
        federation.join(project_id, ANNA)
        (request,) = federation.coordinator.approvals(STEWARDS["a"])
        assert (request.project_id, request.site, request.dataset) == (project_id, "a", "scans")
        assert (request.requested_by, request.version, request.state) == ("anna", 1, ApprovalState.WAITING)
        assert federation.coordinator.approvals(STEWARDS["b"]) == ()
        assert federation.coordinator.approvals(ANNA) == ()
        assert federation.coordinator.home(STEWARDS["a"]).approvals == (request,)

    async def test_an_approval_is_for_this_version_site_and_dataset_only(self, federation: Federation) -> None:
        project_id = federation.new_project()
        mine = federation.join(project_id, ANNA)
        other = await federation.invite_and_join(project_id, BERT)
        federation.decide(project_id, "a")
        fab_hash = federation.newest_hash(project_id)
        assert federation.coordinator.site_approvals(ANNA, mine).fab_hashes == (fab_hash,)
        assert federation.coordinator.site_approvals(BERT, other).fab_hashes == ()
        federation.coordinator.leave(ANNA, project_id)
        labs = federation.join(project_id, ANNA, "labs")
        assert federation.coordinator.site_approvals(ANNA, labs).fab_hashes == ()

    async def test_a_new_version_waits_while_the_approved_one_stays_assigned(self, federation: Federation) -> None:
        project_id = federation.new_project(fab=b"one")
        participation_id = federation.join(project_id, ANNA)
        federation.decide(project_id, "a")
        first = federation.newest_hash(project_id)
        federation.add_app(project_id, b"two")
        requests = federation.coordinator.approvals(STEWARDS["a"])
        assert [(one.version, one.state) for one in requests] == [
            (2, ApprovalState.WAITING),
            (1, ApprovalState.APPROVED),
        ]
        (assignment,) = federation.coordinator.assignments(ANNA).assignments
        assert assignment.fab_hash == first
        federation.decide(project_id, "a")
        (assignment,) = federation.coordinator.assignments(ANNA).assignments
        assert assignment.fab_hash == federation.newest_hash(project_id)
        assert federation.coordinator.site_approvals(ANNA, participation_id).fab_hashes == (
            federation.newest_hash(project_id),
            first,
        )

    async def test_withdrawing_ends_the_assignment_and_the_grant_at_once(self, federation: Federation) -> None:
        project_id, participation_id, _ = await federation.ready_project()
        key = federation.participation(participation_id).public_key
        assert key is not None
        assert federation.coordinator.node_grant(key) is not None
        before = federation.changes.revision(user_topic("anna"))
        federation.decide(project_id, "a", ApprovalState.REVOKED)
        assert federation.coordinator.node_grant(key) is None
        assert federation.coordinator.assignments(ANNA).assignments == ()
        assert federation.changes.revision(user_topic("anna")) > before

    async def test_an_approval_ends_at_its_expiry(self, federation: Federation) -> None:
        project_id = federation.new_project()
        participation_id = federation.join(project_id, ANNA)
        key = federation.connect(ANNA, participation_id)
        federation.coordinator.decide(
            STEWARDS["a"],
            project_id,
            federation.newest_hash(project_id),
            "scans",
            "a",
            ApprovalState.APPROVED,
            expires_at=federation.clock.now + timedelta(days=1),
        )
        assert federation.coordinator.node_grant(key) is not None
        federation.clock.advance(days=1)
        assert federation.coordinator.node_grant(key) is None
        assert federation.coordinator.approvals(STEWARDS["a"])[0].state is ApprovalState.EXPIRED
        participant = federation.coordinator.project(ANNA, project_id).participants[0]
        assert participant.detail == "The approval of version 1 has expired. Ask steward-a to renew it."

    @pytest.mark.parametrize(
        ("decision", "detail"),
        [
            (ApprovalState.REJECTED, "steward-a rejected version 1: too broad."),
            (ApprovalState.REVOKED, "steward-a withdrew the approval of version 1: too broad."),
        ],
    )
    def test_a_refusal_is_shown_with_its_reason(
        self, federation: Federation, decision: ApprovalState, detail: str
    ) -> None:
        project_id = federation.new_project()
        federation.join(project_id, ANNA)
        if decision is ApprovalState.REVOKED:
            federation.decide(project_id, "a")
        fab_hash = federation.newest_hash(project_id)
        federation.coordinator.decide(STEWARDS["a"], project_id, fab_hash, "scans", "a", decision, " too broad ")
        participant = federation.coordinator.project(ANNA, project_id).participants[0]
        assert (participant.approval, participant.approval_reason) == (decision, "too broad")
        assert participant.detail == detail

    async def test_what_cannot_be_decided(self, federation: Federation) -> None:
        project_id = federation.new_project()
        federation.join(project_id, ANNA)
        fab_hash = federation.newest_hash(project_id)
        decide = federation.coordinator.decide
        steward = STEWARDS["a"]
        with pytest.raises(Conflict, match="no approval to withdraw"):
            decide(steward, project_id, fab_hash, "scans", "a", ApprovalState.REVOKED)
        with pytest.raises(Invalid, match="not a decision"):
            decide(steward, project_id, fab_hash, "scans", "a", ApprovalState.EXPIRED)
        with pytest.raises(Invalid, match="expired already"):
            decide(steward, project_id, fab_hash, "scans", "a", ApprovalState.APPROVED, expires_at=federation.clock.now)
        with pytest.raises(Invalid, match="reason is longer"):
            decide(steward, project_id, fab_hash, "scans", "a", ApprovalState.REJECTED, "x" * 1001)
        federation.decide(project_id, "a")
        with pytest.raises(Conflict, match="is approved"):
            decide(steward, project_id, fab_hash, "scans", "a", ApprovalState.REJECTED, "Too broad")

    async def test_a_steward_decides_for_no_other_site_and_for_nothing_unasked(self, federation: Federation) -> None:
        project_id = federation.new_project()
        federation.join(project_id, ANNA)
        fab_hash = federation.newest_hash(project_id)
        decide = federation.coordinator.decide
        for steward, dataset, site in (
            (STEWARDS["b"], "scans", "a"),
            (STEWARDS["a"], "labs", "a"),
            (STEWARDS["b"], "scans", "b"),
            (ANNA, "scans", "a"),
        ):
            with pytest.raises(NotFound):
                decide(steward, project_id, fab_hash, dataset, site, ApprovalState.APPROVED)
        with pytest.raises(NotFound, match="version"):
            decide(STEWARDS["a"], project_id, "0" * 64, "scans", "a", ApprovalState.APPROVED)
        server = replace(STEWARDS["a"], scopes=ANNA.scopes)
        with pytest.raises(Forbidden):
            decide(server, project_id, fab_hash, "scans", "a", ApprovalState.APPROVED)


class TestRuns:
    async def test_a_run_takes_every_site_that_is_ready(self, federation: Federation) -> None:
        project_id, first, second = await federation.ready_project()
        before = federation.changes.revision(RUNS_TOPIC)
        summary = federation.coordinator.start_run(ANNA, project_id, 5, True)
        assert (summary.number, summary.status, summary.rounds) == (1, RunStatus.STARTING, 5)
        run = federation.store.run(summary.id)
        assert run is not None
        assert run.sites == {first: "a", second: "b"}
        assert run.compare
        assert federation.changes.revision(RUNS_TOPIC) > before
        assert Action.STOP in federation.coordinator.project(ANNA, project_id).actions

    async def test_two_datasets_of_a_site_have_different_names(self, federation: Federation) -> None:
        project_id, _, second = await federation.ready_project()
        third = await federation.invite_and_join(project_id, BEA, "labs")
        federation.decide(project_id, "b", dataset="labs")
        federation.connect(BEA, third)
        run = federation.store.run(federation.coordinator.start_run(ANNA, project_id, 1, False).id)
        assert run is not None
        assert run.sites[second] == "b/scans"
        assert run.sites[third] == "b/labs"

    async def test_who_is_not_ready_stays_out(self, federation: Federation) -> None:
        project_id, first, second = await federation.ready_project()
        federation.decide(project_id, "b", ApprovalState.REVOKED)
        run = federation.store.run(federation.coordinator.start_run(ANNA, project_id, 1, False).id)
        assert run is not None
        assert set(run.sites) == {first}
        assert second not in run.sites

    async def test_no_site_ready_names_who_and_why(self, federation: Federation) -> None:
        project_id = federation.new_project()
        federation.join(project_id, ANNA)
        await federation.coordinator.invite(ANNA, project_id, "bert")
        with pytest.raises(Conflict, match="No site is ready") as refused:
            federation.coordinator.start_run(ANNA, project_id, 3, False)
        assert "anna (Hospital A): Waits for a data steward" in refused.value.next_step
        assert "bert: Invited" in refused.value.next_step

    async def test_a_client_that_fell_silent_is_not_ready(self, federation: Federation) -> None:
        project_id, _, _ = await federation.ready_project()
        federation.clock.advance(seconds=LOST_AFTER.total_seconds())
        with pytest.raises(Conflict, match="No site is ready"):
            federation.coordinator.start_run(ANNA, project_id, 3, False)

    @pytest.mark.parametrize("rounds", [0, -1, 1001])
    async def test_a_bad_number_of_rounds_is_refused(self, federation: Federation, rounds: int) -> None:
        project_id, _, _ = await federation.ready_project()
        with pytest.raises(Invalid, match="1 to 1000"):
            federation.coordinator.start_run(ANNA, project_id, rounds, False)

    async def test_one_run_at_a_time_and_never_without_an_app(self, federation: Federation) -> None:
        empty = federation.coordinator.create_project(ANNA, "Empty", "").id
        with pytest.raises(Conflict, match="no app"):
            federation.coordinator.start_run(ANNA, empty, 3, False)
        project_id, _, _ = await federation.ready_project()
        federation.coordinator.start_run(ANNA, project_id, 3, False)
        with pytest.raises(Conflict, match="in flight"):
            federation.coordinator.start_run(ANNA, project_id, 3, False)

    async def test_stopping_sets_the_target_and_a_run_that_ended_cannot_be_stopped(
        self, federation: Federation
    ) -> None:
        project_id, _, _ = await federation.ready_project()
        run_id = federation.coordinator.start_run(ANNA, project_id, 3, False).id
        with pytest.raises(Forbidden):
            federation.coordinator.stop_run(BERT, run_id)
        federation.coordinator.stop_run(ANNA, run_id)
        run = federation.store.run(run_id)
        assert run is not None
        assert run.target is RunTarget.STOPPED
        federation.store.put_run(replace(run, status=RunStatus.STOPPED))
        with pytest.raises(Conflict, match="ended"):
            federation.coordinator.stop_run(ANNA, run_id)

    async def test_a_finished_run_has_a_model_and_a_record(self, federation: Federation, tmp_path: Path) -> None:
        project_id, _, _ = await federation.ready_project()
        run_id = federation.coordinator.start_run(ANNA, project_id, 1, False).id
        with pytest.raises(NotFound, match="no model"):
            await federation.coordinator.model_path(BERT, run_id)
        source = tmp_path / "model"
        source.write_bytes(b"weights")
        sha256, size = federation.artifacts.put_model(source)
        run = federation.store.run(run_id)
        assert run is not None
        federation.store.put_run(
            replace(
                run,
                status=RunStatus.FINISHED,
                nodes={"7": "a", "8": "b"},
                model_sha256=sha256,
                model_size=size,
                model_round=1,
                finished_at=federation.clock.now,
            )
        )
        federation.store.add_events(
            run_id,
            [
                RunEvent(EventKind.REPLY, 1.0, "federated", 1, "train", node, metrics={"loss": loss}, examples=examples)
                for node, loss, examples in ((7, 1.0, 30), (8, 2.0, 10))
            ],
        )
        assert (await federation.coordinator.model_path(BERT, run_id)).read_bytes() == b"weights"
        record = federation.coordinator.record(BERT, run_id)
        assert json.loads(json.dumps(record)) == record
        assert record["participants"] == [
            {"site": "a", "dataset": "scans", "user": "anna", "train_examples": 30, "test_examples": 0},
            {"site": "b", "dataset": "scans", "user": "bert", "train_examples": 10, "test_examples": 0},
        ]
        assert record["model"] == {"sha256": sha256, "size": 7, "round": 1}
        assert record["app"]["fab_sha256"] == federation.newest_hash(project_id)  # type: ignore[index]
        assert "flwr" in record["software"]  # type: ignore[operator]
        assert record["run"]["wire_precision"] == "exact"  # type: ignore[index]
        assert federation.coordinator.run(BERT, run_id).rounds[0].train == {"loss": 1.25}
        assert actions_noted(federation)[-2:] == [Decision.MODEL_DOWNLOADED, Decision.RECORD_DOWNLOADED]

    async def test_a_stranger_finds_no_run(self, federation: Federation) -> None:
        project_id, _, _ = await federation.ready_project()
        run_id = federation.coordinator.start_run(ANNA, project_id, 1, False).id
        ask = federation.coordinator
        for unknown in (run_id, "nothing"):
            for call in (ask.run, ask.record, ask.stop_run):
                with pytest.raises(NotFound, match="no such project"):
                    call(CARL, unknown)
            with pytest.raises(NotFound, match="no such project"):
                await ask.model_path(CARL, unknown)


class TestClients:
    async def test_the_assignment_says_what_to_run(self, federation: Federation) -> None:
        project_id, participation_id, _ = await federation.ready_project()
        assignments = federation.coordinator.assignments(ANNA)
        (assignment,) = assignments.assignments
        assert (assignment.participation_id, assignment.project_id) == (participation_id, project_id)
        assert assignment.kernel_id == federation.participation(participation_id).kernel_id
        assert assignments.version == str(federation.changes.revision(user_topic("anna")))
        assert (assignment.site, assignment.dataset, assignment.project_name) == ("a", "scans", "Lungs")

    async def test_a_person_who_moved_to_another_site_runs_nothing(self, federation: Federation) -> None:
        _, participation_id, _ = await federation.ready_project()
        moved = Principal("anna", frozenset({"site-b"}), ANNA.scopes)
        assert federation.coordinator.assignments(moved).assignments == ()
        with pytest.raises(NotFound):
            federation.coordinator.register_node(moved, participation_id, new_key())

    async def test_a_new_key_takes_the_place_of_the_old_one(self, federation: Federation) -> None:
        _, participation_id, _ = await federation.ready_project()
        old = federation.participation(participation_id).public_key
        assert old is not None
        new = federation.connect(ANNA, participation_id)
        assert federation.coordinator.node_grant(old) is None
        grant = federation.coordinator.node_grant(new)
        assert grant is not None
        assert grant.participation_id == participation_id
        assert grant.node_id is None

    async def test_an_openssh_key_is_known_in_flowers_form(self, federation: Federation) -> None:
        _, participation_id, _ = await federation.ready_project()
        key = ec.generate_private_key(ec.SECP384R1()).public_key()
        federation.coordinator.register_node(
            ANNA, participation_id, key.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH) + b" anna@host"
        )
        pem = key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        assert federation.coordinator.node_grant(pem) is not None

    async def test_registering_the_same_key_again_changes_nothing(self, federation: Federation) -> None:
        _, participation_id, _ = await federation.ready_project()
        key = federation.connect(ANNA, participation_id)
        lines = len(federation.store.audit_lines())
        approvals = federation.coordinator.register_node(ANNA, participation_id, key)
        assert len(approvals.fab_hashes) == 1
        assert len(federation.store.audit_lines()) == lines

    async def test_what_is_no_key_of_a_node_is_refused(self, federation: Federation) -> None:
        _, participation_id, _ = await federation.ready_project()
        rsa_key = rsa.generate_private_key(public_exponent=65537, key_size=2048).public_key()
        brainpool = ec.generate_private_key(ec.BrainpoolP256R1()).public_key()
        for key in (
            b"",
            b"ecdsa-sha2-nistp384 nonsense",
            b"-----BEGIN PUBLIC KEY-----",
            b"x" * 5000,
            rsa_key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo),
            brainpool.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo),
        ):
            with pytest.raises(Invalid, match="public key"):
                federation.coordinator.register_node(ANNA, participation_id, key)

    async def test_two_participations_never_share_a_key(self, federation: Federation) -> None:
        _, first, second = await federation.ready_project()
        key = federation.participation(first).public_key
        assert key is not None
        with pytest.raises(Conflict, match="uses this key"):
            federation.coordinator.register_node(BERT, second, key)

    async def test_a_server_speaks_for_its_own_participation_only(self, federation: Federation) -> None:
        _, participation_id, _ = await federation.ready_project()
        ask = federation.coordinator
        with pytest.raises(NotFound):
            ask.register_node(BERT, participation_id, new_key())
        with pytest.raises(NotFound):
            ask.report_client(BERT, participation_id, ClientState.FAILED, "")
        with pytest.raises(NotFound):
            ask.site_approvals(BERT, participation_id)
        with pytest.raises(NotFound):
            ask.site_approvals(BERT, "nothing")
        with pytest.raises(NotFound):
            await ask.approved_app(BERT, participation_id, "ab" * 32)

    async def test_a_server_gets_an_app_while_it_is_approved_for_its_dataset(self, federation: Federation) -> None:
        project_id = federation.new_project(fab=b"app 1")
        mine = federation.join(project_id, ANNA)
        fab_hash = federation.newest_hash(project_id)
        with pytest.raises(NotFound, match="approved"):
            await federation.coordinator.approved_app(ANNA, mine, fab_hash)
        federation.decide(project_id, "a")
        assert await federation.coordinator.approved_app(ANNA, mine, fab_hash) == b"app 1"
        federation.decide(project_id, "a", ApprovalState.REVOKED)
        with pytest.raises(NotFound, match="approved"):
            await federation.coordinator.approved_app(ANNA, mine, fab_hash)

    async def test_a_supernodes_app_is_given_to_no_server(self, federation: Federation) -> None:
        project_id, participation_id = await federation.supernode_project()
        with pytest.raises(Forbidden):
            await federation.coordinator.approved_app(DORA, participation_id, federation.newest_hash(project_id))

    @pytest.mark.parametrize(
        ("state", "detail", "shown"),
        [
            (ClientState.STARTING, "", "is starting"),
            (ClientState.PAUSED, "", "starts it again"),
            (ClientState.FAILED, "", "has failed"),
            (ClientState.FAILED, "No module named torch", "No module named torch"),
            (ClientState.READY, "", "Ready"),
        ],
    )
    async def test_what_a_client_reports_is_shown(
        self, federation: Federation, state: ClientState, detail: str, shown: str
    ) -> None:
        project_id, participation_id, _ = await federation.ready_project()
        federation.coordinator.node_cut_off(participation_id)
        federation.coordinator.report_client(ANNA, participation_id, state, detail)
        participant = federation.coordinator.project(BERT, project_id).participants[0]
        assert participant.client is state
        assert shown in participant.detail

    async def test_that_a_client_starts_is_late_once_its_node_asks_for_messages(self, federation: Federation) -> None:
        project_id, participation_id, _ = await federation.ready_project()

        def told_to_start() -> ClientState | None:
            federation.coordinator.report_client(ANNA, participation_id, ClientState.STARTING, "")
            return federation.coordinator.project(BERT, project_id).participants[0].client

        assert told_to_start() is ClientState.READY
        federation.coordinator.node_seen(participation_id, working=True)
        assert told_to_start() is ClientState.WORKING
        federation.coordinator.register_node(ANNA, participation_id, new_key())  # of the next client
        assert told_to_start() is ClientState.STARTING
        federation.coordinator.node_seen(participation_id, working=False)
        assert told_to_start() is ClientState.READY
        federation.coordinator.node_cut_off(participation_id)
        assert told_to_start() is ClientState.STARTING

    async def test_work_on_a_message_writes_no_row(self, federation: Federation) -> None:
        _, participation_id, _ = await federation.ready_project()
        before = federation.participation(participation_id)
        federation.coordinator.node_seen(participation_id, working=True)
        assert federation.participation(participation_id) is before

    async def test_a_change_is_told_once(self, federation: Federation) -> None:
        project_id, participation_id, _ = await federation.ready_project()
        federation.coordinator.node_seen(participation_id, working=True)
        before = federation.changes.revision(project_topic(project_id))
        federation.coordinator.node_seen(participation_id, working=True)
        federation.coordinator.report_client(ANNA, participation_id, ClientState.WORKING, "")
        assert federation.changes.revision(project_topic(project_id)) == before
        federation.coordinator.node_seen(participation_id, working=False)
        assert federation.changes.revision(project_topic(project_id)) == before + 1

    async def test_a_silent_client_is_shown_as_offline_until_it_is_heard_again(self, federation: Federation) -> None:
        project_id, participation_id, other = await federation.ready_project()
        federation.clock.advance(seconds=LOST_AFTER.total_seconds() - 1)
        federation.coordinator.note_lost_clients()
        assert federation.participation(participation_id).client is ClientState.READY
        federation.coordinator.node_seen(other, working=False)
        federation.clock.advance(seconds=1)
        before = federation.changes.revision(project_topic(project_id))
        federation.coordinator.note_lost_clients()
        assert federation.participation(participation_id).client is ClientState.OFFLINE
        assert federation.participation(other).client is ClientState.READY
        assert federation.changes.revision(project_topic(project_id)) == before + 1
        federation.coordinator.node_seen(participation_id, working=False)
        assert federation.coordinator.project(BERT, project_id).participants[0].client is ClientState.READY

    async def test_a_node_whose_connection_is_lost_has_a_few_seconds_to_come_back(self, federation: Federation) -> None:
        _, gone, back = await federation.ready_project()
        for participation_id in (gone, back, "never seen"):
            federation.coordinator.node_cut_off(participation_id)
        federation.clock.advance(seconds=BACK_WITHIN.total_seconds() - 1)
        federation.coordinator.note_lost_clients()
        assert federation.participation(gone).client is ClientState.READY
        federation.coordinator.node_seen(back, working=False)
        federation.clock.advance(seconds=1)
        federation.coordinator.note_lost_clients()
        assert federation.participation(gone).client is ClientState.OFFLINE
        assert federation.participation(back).client is ClientState.READY

    async def test_after_a_restart_a_client_is_offline_until_its_next_poll(
        self, federation: Federation, tmp_path: Path
    ) -> None:
        project_id, participation_id, _ = await federation.ready_project()
        restarted = Federation(tmp_path, store=federation.store)
        assert restarted.coordinator.project(ANNA, project_id).participants[0].client is ClientState.OFFLINE
        restarted.coordinator.node_seen(participation_id, working=False)
        assert restarted.coordinator.project(ANNA, project_id).participants[0].client is ClientState.READY

    def test_a_poll_of_an_unknown_node_is_nothing(self, federation: Federation) -> None:
        federation.coordinator.node_seen("nothing", working=True)
        assert federation.coordinator.node_grant(b"unknown") is None


class TestTenancy:
    async def test_a_stranger_is_answered_as_if_there_were_nothing(self, federation: Federation) -> None:
        project_id, _, _ = await federation.ready_project()
        fab_hash = federation.newest_hash(project_id)
        ask = federation.coordinator
        calls = {
            "project": lambda one: ask.project(CARL, one),
            "add_app": lambda one: federation.add_app(one, b"x", CARL),
            "app_review": lambda one: ask.app_review(CARL, one, fab_hash),
            "decline": lambda one: ask.decline(CARL, one),
            "join": lambda one: ask.join(CARL, one, "scans"),
            "leave": lambda one: ask.leave(CARL, one),
            "remove_member": lambda one: ask.remove_member(CARL, one, "bert"),
            "start_run": lambda one: ask.start_run(CARL, one, 1, False),
            "watch_topic": lambda one: ask.watch_topic(CARL, one),
        }
        for call in calls.values():
            answers = []
            for one in (project_id, "nothing"):
                with pytest.raises(NotFound) as refused:
                    call(one)
                answers.append((refused.value.message, refused.value.next_step))
            assert answers[0] == answers[1]
        with pytest.raises(NotFound):
            await ask.invite(CARL, project_id, "bea")
        assert ask.home(CARL).projects == ()
        assert ask.watch_topic(BERT, project_id) == project_topic(project_id)

    async def test_without_the_scope_nothing_is_answered(self, federation: Federation) -> None:
        project_id, participation_id, _ = await federation.ready_project()
        bare = replace(ANNA, scopes=frozenset({Scope.ACCESS}))
        ask = federation.coordinator
        for call in (
            lambda: ask.home(bare),
            lambda: ask.my_site(bare),
            lambda: ask.approvals(bare),
            lambda: ask.assignments(bare),
            lambda: ask.project(bare, project_id),
            lambda: ask.site_approvals(bare, participation_id),
            lambda: ask.run(bare, "nothing"),
        ):
            with pytest.raises(Forbidden, match="login"):
                call()


async def test_every_decision_is_one_line_of_a_whole_log(federation: Federation) -> None:
    project_id, _, participation_id = await federation.ready_project()
    key = federation.participation(participation_id).public_key
    assert key is not None
    run_id = federation.coordinator.start_run(ANNA, project_id, 1, False).id
    federation.coordinator.stop_run(ANNA, run_id)
    federation.decide(project_id, "a", ApprovalState.REVOKED)
    federation.coordinator.leave(BERT, project_id)
    await federation.coordinator.invite(ANNA, project_id, "carl")
    federation.coordinator.decline(CARL, project_id)
    await federation.coordinator.invite(ANNA, project_id, "carl")
    federation.coordinator.remove_member(ANNA, project_id, "carl")
    lines = federation.store.audit_lines()
    assert fault(lines) is None
    assert actions_noted(federation) == [
        Decision.PROJECT_CREATED,
        Decision.APP_ADDED,
        Decision.JOINED,
        Decision.INVITED,
        Decision.JOINED,
        Decision.APPROVED,
        Decision.NODE_REGISTERED,
        Decision.APPROVED,
        Decision.NODE_REGISTERED,
        Decision.RUN_STARTED,
        Decision.RUN_STOP_ASKED,
        Decision.REVOKED,
        Decision.LEFT,
        Decision.INVITED,
        Decision.DECLINED,
        Decision.INVITED,
        Decision.REMOVED,
    ]
    assert key.decode() not in repr(lines)
