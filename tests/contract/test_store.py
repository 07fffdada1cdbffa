"""One suite for every store."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
from federator.contract import (
    ApprovalState,
    Cell,
    ClientState,
    Conditions,
    MemberState,
    ModelFile,
    RunStatus,
    SourceFile,
)

from hub_service.domain.approvals import Approval
from hub_service.domain.errors import DatabaseUnavailable, Invalid
from hub_service.domain.packages import SitePackages
from hub_service.domain.projects import AppVersion, Member, Participation, Project
from hub_service.domain.runs import EventKind, Run, RunEvent, RunTarget
from hub_service.store.base import AuditLine, Store
from hub_service.store.memory import MemoryStore
from hub_service.store.sql import SqlStore
from tests.fakes.postgresql import Cluster

NOON = datetime(2026, 3, 1, 12, 0, 0, 123456, tzinfo=UTC)
LARGEST_NODE_ID = 2**64 - 1

PROJECT = Project("p1", "Lungs <b>", "Nodules\nin scans", "anna", NOON)
OTHER_PROJECT = Project("p2", "Skin", "", "carl", NOON)
MEMBER = Member("p1", "anna", MemberState.JOINED, "anna", NOON)
VERSION = AppVersion(
    project_id="p1",
    number=1,
    fab_hash="f" * 64,
    title="lungs",
    source="notebook",
    created_by="anna",
    created_at=NOON,
    size=12,
    cells=(Cell(1, "x = 1"), Cell(4, "y = 'ä'")),
    files=(SourceFile("app/task.py", "pass"),),
    imports=("numpy", "torch"),
    config_keys=("num-server-rounds",),
)
PARTICIPATION = Participation(
    id="t1",
    project_id="p1",
    user="anna",
    site="a",
    dataset="scans",
    kernel_id="k1",
    active=True,
    public_key=b"\x00key\xff",
    node_id=LARGEST_NODE_ID,
    key_by="sam",
    key_at=NOON,
    client=ClientState.READY,
    client_detail="",
    joined_at=NOON,
)
APPROVAL = Approval("p1", "f" * 64, "a", "scans", ApprovalState.APPROVED, "sam", "ok", NOON, NOON + timedelta(days=1))
LIMITED = replace(APPROVAL, conditions=Conditions(5, 3 * 1024**3, ("anna", "bert")), first_steward="sue")
RUN = Run(
    id="r1",
    project_id="p1",
    number=1,
    fab_hash="f" * 64,
    rounds=3,
    compare=True,
    target=RunTarget.FINISHED,
    status=RunStatus.RUNNING,
    phase="round 1 of 3",
    message="",
    started_by="anna",
    sites={"t1": "a"},
    created_at=NOON,
    finished_at=None,
    model_sha256="",
    model_size=0,
    model_round=0,
    round=1,
    nodes={str(LARGEST_NODE_ID): "a"},
    seed=7,
    models=(ModelFile("a" * 64, 10, 1), ModelFile("b" * 64, 12, 2)),
)
EVENT = RunEvent(
    EventKind.REPLY,
    at=1.5,
    phase="federated",
    round=1,
    message_type="train",
    node_id=LARGEST_NODE_ID,
    metrics={"loss": 0.25},
    examples=7,
    seconds=0.5,
    size=100,
    text="",
    counts={"confusion": [3, 1, 0, 2]},
)
LINE = AuditLine(1, NOON, "anna", "project-created", "p1", {"name": "Lungs"}, "0" * 64, "1" * 64)


needs_postgresql = pytest.mark.needs_postgresql


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=needs_postgresql)])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A database that does not exist yet, or is empty."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'store.db'}"
    cluster: Cluster = request.getfixturevalue("cluster")
    return cluster.empty_database()


@pytest.fixture(params=["memory", "sqlite", pytest.param("postgresql", marks=needs_postgresql)])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    make: dict[str, Callable[[], Store]] = {
        "memory": MemoryStore,
        "sqlite": lambda: SqlStore(f"sqlite:///{tmp_path / 'store.db'}"),
        "postgresql": lambda: SqlStore(request.getfixturevalue("cluster").empty_database()),
    }
    store = make[request.param]()
    store.put_project(PROJECT)
    store.put_project(OTHER_PROJECT)
    yield store
    store.close()


class TestStore:
    def test_a_project_comes_back_as_it_was_put(self, store: Store) -> None:
        assert store.project("p1") == PROJECT
        assert store.project("nothing") is None

    def test_a_time_in_another_zone_is_the_same_moment(self, store: Store) -> None:
        east = NOON.astimezone(timezone(timedelta(hours=9)))
        store.put_project(replace(PROJECT, created_at=east))
        found = store.project("p1")
        assert found is not None
        assert found.created_at == NOON
        assert found.created_at.tzinfo is not None

    def test_members_keep_the_order_in_which_they_were_first_put(self, store: Store) -> None:
        second = replace(MEMBER, user="bert", state=MemberState.INVITED)
        store.put_member(MEMBER)
        store.put_member(second)
        store.put_member(replace(MEMBER, project_id="p2", user="carl"))
        left = replace(MEMBER, state=MemberState.LEFT)
        store.put_member(left)
        assert list(store.members("p1")) == [left, second]
        assert list(store.memberships("bert")) == [second]
        assert list(store.members("nothing")) == []

    def test_app_versions_are_sorted_by_number(self, store: Store) -> None:
        second = replace(VERSION, number=2, fab_hash="e" * 64)
        store.put_app_version(second)
        store.put_app_version(VERSION)
        assert list(store.app_versions("p1")) == [VERSION, second]
        assert list(store.app_versions("p2")) == []

    def test_participations_are_found_by_id_user_and_site(self, store: Store) -> None:
        other = replace(PARTICIPATION, id="t2", user="bert", site="b", public_key=None, node_id=None)
        past = replace(PARTICIPATION, id="t0", active=False)
        for one in (past, PARTICIPATION, other):
            store.put_participation(one)
        assert store.participation("t2") == other
        assert store.participation("nothing") is None
        assert list(store.participations("p1")) == [past, PARTICIPATION, other]
        assert list(store.active_participations_of("anna")) == [PARTICIPATION]
        assert list(store.active_participations_at("b")) == [other]

    def test_a_key_finds_the_active_participation_only(self, store: Store) -> None:
        store.put_participation(replace(PARTICIPATION, id="t0", active=False))
        assert store.participation_by_key(b"\x00key\xff") is None
        store.put_participation(PARTICIPATION)
        assert store.participation_by_key(b"\x00key\xff") == PARTICIPATION
        assert store.participation_by_key(b"another") is None

    def test_a_decision_takes_the_place_of_the_one_before(self, store: Store) -> None:
        store.put_approval(APPROVAL)
        store.put_approval(LIMITED)
        assert list(store.approvals("p1")) == [LIMITED]
        revoked = replace(APPROVAL, state=ApprovalState.REVOKED, expires_at=None)
        elsewhere = replace(LIMITED, dataset="labs", conditions=Conditions(members=()))
        store.put_approval(revoked)
        store.put_approval(elsewhere)
        assert list(store.approvals("p1")) == [revoked, elsewhere]

    def test_approvals_that_end_in_a_while_are_found_in_all_projects(self, store: Store) -> None:
        later = replace(LIMITED, project_id="p2", expires_at=NOON + timedelta(days=3))
        for approval in (
            APPROVAL,
            later,
            replace(APPROVAL, dataset="labs", expires_at=None),
            replace(APPROVAL, dataset="x-rays", state=ApprovalState.REVOKED),
            replace(APPROVAL, dataset="notes", state=ApprovalState.APPROVED_ONCE),
        ):
            store.put_approval(approval)
        assert list(store.approvals_ending(NOON, NOON + timedelta(days=1))) == [APPROVAL]
        assert list(store.approvals_ending(NOON, NOON + timedelta(days=9))) == [APPROVAL, later]
        assert list(store.approvals_ending(NOON + timedelta(days=1), NOON + timedelta(days=2))) == []

    def test_runs_come_oldest_first_and_the_unfinished_of_all_projects_together(self, store: Store) -> None:
        ended = [
            replace(RUN, id=f"r{number}", number=number, status=status, finished_at=NOON)
            for number, status in enumerate((RunStatus.FINISHED, RunStatus.FAILED, RunStatus.STOPPED), start=2)
        ]
        elsewhere = replace(RUN, id="q1", project_id="p2", status=RunStatus.STARTING)
        for run in (RUN, *ended, elsewhere):
            store.put_run(run)
        assert store.run("r1") == RUN
        assert store.run("nothing") is None
        assert list(store.runs("p1")) == [RUN, *ended]
        assert list(store.unfinished_runs()) == [RUN, elsewhere]

    def test_a_stored_run_does_not_change_with_the_callers_maps(self, store: Store) -> None:
        nodes: dict[str, str] = {}
        store.put_run(replace(RUN, nodes=nodes))
        nodes["1"] = "b"
        found = store.run("r1")
        assert found is not None
        assert found.nodes == {}

    def test_events_keep_their_order(self, store: Store) -> None:
        store.put_run(RUN)
        assert store.event_count("r1") == 0
        later = [replace(EVENT, round=number) for number in (3, 2)]
        store.add_events("r1", [EVENT])
        store.add_events("r1", later)
        store.add_events("r1", [])
        assert list(store.events("r1")) == [EVENT, *later]
        assert store.event_count("r1") == 3

    def test_a_sites_newest_report_of_its_packages_counts(self, store: Store) -> None:
        first = SitePackages("a", {"numpy": "2.0"}, ("numpy",), "anna", NOON)
        other = SitePackages("b", {}, (), "bert", NOON)
        newer = replace(first, distributions={"numpy": "2.1", "lifelines": "0.30"}, modules=("lifelines", "numpy"))
        assert store.site_packages("a") is None
        for one in (first, other, newer):
            store.put_site_packages(one)
        assert store.site_packages("a") == newer
        assert list(store.all_site_packages()) == [newer, other]

    def test_audit_lines_come_back_as_they_were_added(self, store: Store) -> None:
        assert store.last_audit_line() is None
        second = replace(LINE, sequence=2, project_id="p2", previous="1" * 64, hash="2" * 64)
        store.add_audit_line(LINE)
        store.add_audit_line(second)
        assert list(store.audit_lines()) == [LINE, second]
        assert list(store.audit_lines_of(LINE.project_id)) == [LINE]
        assert list(store.audit_lines_of("none")) == []
        assert store.last_audit_line() == second

    def test_a_deleted_project_leaves_its_audit_lines_and_no_row(self, store: Store) -> None:
        others = replace(RUN, id="q1", project_id="p2")
        for project_id, run in (("p1", RUN), ("p2", others)):
            store.put_member(replace(MEMBER, project_id=project_id))
            store.put_app_version(replace(VERSION, project_id=project_id))
            store.put_participation(replace(PARTICIPATION, id=f"t-{project_id}", project_id=project_id))
            store.put_approval(replace(APPROVAL, project_id=project_id))
            store.put_run(run)
            store.add_events(run.id, [EVENT])
        store.add_audit_line(LINE)

        def what_is_left(project_id: str, run_id: str) -> list[object]:
            of_the_project = (store.members, store.app_versions, store.participations, store.approvals, store.runs)
            found: list[object] = [one for read in of_the_project for one in read(project_id)]
            return [*found, *store.events(run_id), *filter(None, (store.project(project_id), store.run(run_id)))]

        assert len(what_is_left("p1", "r1")) == len(what_is_left("p2", "q1")) == 8
        store.delete_project("p1")
        assert what_is_left("p1", "r1") == []
        assert store.participation("t-p1") is None
        assert [one.project_id for one in store.memberships("anna")] == ["p2"]
        assert store.event_count("r1") == 0
        assert len(what_is_left("p2", "q1")) == 8
        assert list(store.audit_lines()) == [LINE]
        store.delete_project("p1")
        store.put_project(PROJECT)
        assert store.project("p1") == PROJECT

    def test_a_deletion_that_fails_deletes_nothing(self, store: Store) -> None:
        store.put_member(MEMBER)

        def fail_after_deleting() -> None:
            with store.transaction():
                store.delete_project("p1")
                assert store.project("p1") is None
                raise KeyError

        with pytest.raises(KeyError):
            fail_after_deleting()
        assert store.project("p1") == PROJECT
        assert list(store.members("p1")) == [MEMBER]

    def test_a_transaction_happens_whole_or_not_at_all(self, store: Store) -> None:
        def fail_after_writing() -> None:
            with store.transaction():
                store.put_member(MEMBER)
                with store.transaction():
                    store.put_project(replace(PROJECT, name="Other"))
                assert store.project("p1") == replace(PROJECT, name="Other")
                raise KeyError

        with pytest.raises(KeyError):
            fail_after_writing()
        assert store.project("p1") == PROJECT
        assert list(store.members("p1")) == []
        with store.transaction():
            store.put_member(MEMBER)
        assert list(store.members("p1")) == [MEMBER]

    def test_what_was_read_before_is_read_as_it_was_put_since(self, store: Store) -> None:
        store.put_participation(PARTICIPATION)
        store.put_member(MEMBER)
        store.put_run(RUN)
        store.add_events("r1", [EVENT])
        assert store.participation_by_key(b"\x00key\xff") == store.participation("t1") == PARTICIPATION
        assert store.participation_by_key(b"new") is None
        assert list(store.active_participations_at("a")) == [PARTICIPATION]
        assert list(store.members("p1")) == [MEMBER]
        assert list(store.runs("p1")) == [RUN]
        assert list(store.events("r1")) == [EVENT]

        moved = replace(PARTICIPATION, site="b", public_key=b"new")
        store.put_participation(moved)
        second = replace(MEMBER, user="bert")
        store.put_member(second)
        later = replace(RUN, id="r2", number=2)
        store.put_run(later)
        store.add_events("r1", [replace(EVENT, round=2)])
        assert store.participation_by_key(b"\x00key\xff") is None
        assert store.participation_by_key(b"new") == store.participation("t1") == moved
        assert list(store.active_participations_at("a")) == []
        assert list(store.active_participations_at("b")) == [moved]
        assert list(store.members("p1")) == [MEMBER, second]
        assert list(store.runs("p1")) == [RUN, later]
        assert list(store.events("r1")) == [EVENT, replace(EVENT, round=2)]

    def test_what_was_read_in_a_transaction_that_failed_is_forgotten(self, store: Store) -> None:
        store.put_run(RUN)
        store.add_events("r1", [EVENT])
        assert list(store.events("r1")) == [EVENT]

        def fail_after_reading() -> None:
            with store.transaction():
                store.put_run(replace(RUN, round=2))
                store.add_events("r1", [replace(EVENT, round=2)])
                assert store.run("r1") == replace(RUN, round=2)
                raise KeyError

        with pytest.raises(KeyError):
            fail_after_reading()
        assert store.run("r1") == RUN
        assert list(store.events("r1")) == [EVENT]


@pytest.mark.parametrize(
    "text",
    ["Ärzte 医者 🫁", 'it\'s "quoted" \\ % %s :name', "SELECT", "", "  ", "long " * 400, "\u202eright to left"],
)
class TestTexts:
    def test_a_text_comes_back_as_it_was_put(self, store: Store, text: str) -> None:
        store.put_project(replace(PROJECT, name=text, description=text))
        store.put_member(replace(MEMBER, user=text))
        found = store.project("p1")
        assert found is not None
        assert (found.name, found.description) == (text, text)
        assert [member.user for member in store.memberships(text)] == [text]


class TestWhatDatabasesDifferIn:
    def test_a_text_may_be_long(self, store: Store) -> None:
        store.put_project(replace(PROJECT, description="long " * 200_000))
        found = store.project("p1")
        assert found is not None
        assert len(found.description) == 1_000_000

    @pytest.mark.parametrize("broken", ["N\x00UL", "half a pair \ud83e"])
    def test_a_text_that_cannot_be_kept_is_refused_and_changes_nothing(self, store: Store, broken: str) -> None:
        with pytest.raises(Invalid, match="cannot be kept"):
            store.put_project(replace(PROJECT, name=broken))

        def put_two() -> None:
            with store.transaction():
                store.put_member(MEMBER)
                store.put_member(replace(MEMBER, user=broken))

        with pytest.raises(Invalid):
            put_two()
        assert store.project("p1") == PROJECT
        assert list(store.members("p1")) == []

    @pytest.mark.parametrize("broken", ["p1\x00", "\x00", "p1\udc00"])
    def test_what_cannot_be_kept_is_found_nowhere(self, store: Store, broken: str) -> None:
        assert store.project(broken) is None
        assert store.run(broken) is None
        assert list(store.members(broken)) == []
        assert list(store.events(broken)) == []
        assert store.event_count(broken) == 0
        assert list(store.audit_lines_of(broken)) == []

    def test_names_that_differ_in_case_or_accents_or_spaces_are_different(self, store: Store) -> None:
        names = ["anna", "Anna", "ANNA", "änna", "a\u0308nna", "anna "]
        for name in names:
            store.put_member(replace(MEMBER, user=name))
        assert [member.user for member in store.members("p1")] == names
        assert [member.user for member in store.memberships("Anna")] == ["Anna"]

    def test_order_is_that_of_arrival_whatever_the_values(self, store: Store) -> None:
        ids = ["z", "a", "10", "9", "Z", "ä"]
        for one in ids:
            store.put_participation(replace(PARTICIPATION, id=one, public_key=one.encode()))
        store.put_participation(replace(PARTICIPATION, id="a", public_key=b"changed"))
        assert [one.id for one in store.participations("p1")] == ids

    def test_projects_come_oldest_first(self, store: Store) -> None:
        older = replace(PROJECT, id="p3", created_at=NOON - timedelta(days=1))
        store.put_project(older)
        assert list(store.projects()) == [older, PROJECT, OTHER_PROJECT]

    def test_numbers_of_64_bits_come_back(self, store: Store) -> None:
        largest = 2**63 - 1
        run = replace(RUN, model_size=largest, seed=2**31, models=(ModelFile("a" * 64, largest, 1),), round=2**40)
        event_ = replace(EVENT, examples=largest, size=largest, round=2**40, seconds=1e300, at=1.7e9 + 1e-6)
        store.put_run(run)
        store.add_events("r1", [event_])
        assert store.run("r1") == run
        assert list(store.events("r1")) == [event_]

    def test_an_apps_own_words_may_be_long(self, store: Store) -> None:
        store.put_run(RUN)
        spoken = replace(EVENT, message_type="train." + "x" * 200, phase="a long phase of an app's own")
        store.add_events("r1", [spoken])
        assert list(store.events("r1")) == [spoken]

    @pytest.mark.parametrize("key", [b"", bytes(range(256)), b"\x00" * 3, b"\\x41"])
    def test_any_bytes_come_back(self, store: Store, key: bytes) -> None:
        store.put_participation(replace(PARTICIPATION, public_key=key))
        found = store.participation_by_key(key)
        assert found is not None
        assert type(found.public_key) is bytes
        assert found.public_key == key

    def test_json_comes_back_as_it_was_put(self, store: Store) -> None:
        awkward = '\x00 \ud800 \u2028 " \\ 医'  # in a cell's source it is the author's own
        version = replace(VERSION, cells=(Cell(1, awkward),), files=(SourceFile("a", ""),), imports=())
        store.put_app_version(version)
        line = replace(LINE, detail={"b": "1", "a": awkward, "": ""})
        store.add_audit_line(line)
        assert list(store.app_versions("p1")) == [version]
        assert store.last_audit_line() == line
        found = store.last_audit_line()
        assert found is not None
        assert list(found.detail) == ["b", "a", ""]

    def test_json_keeps_small_and_large_numbers(self, store: Store) -> None:
        metrics = {"tiny": 5e-324, "huge": 1.7976931348623157e308, "third": 1 / 3, "whole": 2**53, "minus": -0.0}
        store.put_run(RUN)
        store.add_events("r1", [replace(EVENT, metrics=metrics)])
        assert store.events("r1")[0].metrics == metrics

    def test_a_time_keeps_its_microsecond_at_any_season(self, store: Store) -> None:
        for day in (
            datetime(2026, 7, 1, 0, 30, 0, 1, tzinfo=UTC),
            datetime(1999, 12, 31, 23, 59, 59, 999999, tzinfo=UTC),
        ):
            store.put_project(replace(PROJECT, created_at=day))
            found = store.project("p1")
            assert found is not None
            assert found.created_at == day


class TestOnDisk:
    """What only a store that outlives its process can get wrong."""

    def test_what_has_not_changed_is_read_once(self, url: str) -> None:
        store = SqlStore(url)
        store.put_project(PROJECT)
        other = replace(PARTICIPATION, id="t2", user="bert", site="b", public_key=b"bert's")
        for one in (PARTICIPATION, other):
            store.put_participation(one)
        statements: list[float] = []

        def look() -> None:
            store.project("p1")
            store.participations("p1")
            store.participation_by_key(b"bert's")

        look()
        store.time_statements(statements.append)
        look()
        assert statements == []
        store.put_participation(replace(PARTICIPATION, client=ClientState.WORKING))
        statements.clear()
        store.participation_by_key(b"bert's")  # another node's change is none of its business
        assert statements == []
        store.close()

    def test_what_was_put_is_there_after_a_restart(self, url: str) -> None:
        first = SqlStore(url)
        first.put_project(PROJECT)
        first.put_run(RUN)
        first.close()
        second = SqlStore(url)
        assert second.project("p1") == PROJECT
        assert second.run("r1") == RUN
        second.close()

    def test_who_reads_only_sees_all_and_changes_nothing(self, url: str) -> None:
        service = SqlStore(url)
        service.put_project(PROJECT)
        reader = SqlStore(url, reads_only=True)
        assert list(reader.projects()) == [PROJECT]
        with pytest.raises(DatabaseUnavailable, match="read-only"):
            reader.put_project(OTHER_PROJECT)
        reader.close()
        service.put_project(OTHER_PROJECT)
        service.close()
