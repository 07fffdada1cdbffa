"""Who may do what: the whole table, and that strangers learn nothing."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from federator.contract import ClientState, MemberState, Scope, Site

from hub_service.domain import policy
from hub_service.domain.errors import Forbidden, NotFound
from hub_service.domain.policy import Action, Role
from hub_service.domain.projects import Member, Participation, Principal, Project

NOW = datetime(2026, 3, 1, tzinfo=UTC)
PROJECT = Project("p1", "Lungs", "", "anna", NOW)


def principal(name: str, *groups: str, scopes: tuple[Scope, ...] = (Scope.USE,)) -> Principal:
    return Principal(name, frozenset(groups), frozenset(scopes))


def membership(user: str, state: MemberState = MemberState.JOINED, project_id: str = "p1") -> Member:
    return Member(project_id, user, state, "anna", NOW)


OWNER_ONLY = {
    Action.INVITE,
    Action.REMOVE,
    Action.EDIT,
    Action.ADD_APP,
    Action.START,
    Action.STOP,
    Action.DELETE,
}
EVERY_MEMBER = {Action.SEE, Action.SEE_RUNS, Action.DOWNLOAD, Action.JOIN, Action.LEAVE}
INVITED = {Action.SEE, Action.JOIN, Action.DECLINE}


@pytest.mark.parametrize("action", Action)
@pytest.mark.parametrize(
    ("member", "allowed"),
    [
        (membership("anna"), EVERY_MEMBER | OWNER_ONLY),
        (membership("bert"), EVERY_MEMBER),
        (membership("bert", MemberState.INVITED), INVITED),
    ],
    ids=["owner", "member", "invited"],
)
def test_each_role_may_do_its_part_and_nothing_else(member: Member, allowed: set[Action], action: Action) -> None:
    who = principal(member.user)
    if action in allowed:
        assert policy.require(who, action, PROJECT, member) is policy.role_in(PROJECT, member)
    else:
        with pytest.raises(Forbidden):
            policy.require(who, action, PROJECT, member)


@pytest.mark.parametrize("action", Action)
@pytest.mark.parametrize(
    "member",
    [
        None,
        membership("bert", MemberState.LEFT),
        membership("bert", MemberState.REMOVED),
        membership("bert", MemberState.DECLINED),
        membership("anna"),  # somebody else's
        membership("bert", project_id="p2"),  # another project's
    ],
)
def test_a_stranger_gets_the_same_answer_as_for_no_project(member: Member | None, action: Action) -> None:
    who = principal("bert")
    with pytest.raises(NotFound) as refused:
        policy.require(who, action, PROJECT, member)
    with pytest.raises(NotFound) as missing:
        policy.require(who, action, None, None)
    assert (refused.value.message, refused.value.next_step) == (missing.value.message, missing.value.next_step)


def test_administering_the_hub_opens_no_project() -> None:
    admin = principal("admin", scopes=(Scope.USE, Scope.ADMINISTER))
    with pytest.raises(NotFound):
        policy.require(admin, Action.SEE, PROJECT, None)


def test_without_the_scope_the_owner_may_do_nothing() -> None:
    with pytest.raises(Forbidden, match="login"):
        policy.require(principal("anna", scopes=(Scope.ACCESS,)), Action.SEE, PROJECT, membership("anna"))


def test_every_scope_has_a_next_step() -> None:
    for scope in Scope:
        with pytest.raises(Forbidden) as refused:
            policy.require_scope(principal("anna", scopes=()), scope)
        assert refused.value.next_step


@pytest.mark.parametrize(
    ("state", "offered", "not_offered"),
    [
        ({"takes_part": False, "has_app": False, "run_in_flight": False}, {Action.JOIN}, {Action.LEAVE, Action.START}),
        ({"takes_part": True, "has_app": True, "run_in_flight": False}, {Action.LEAVE, Action.START}, {Action.JOIN}),
        ({"takes_part": True, "has_app": True, "run_in_flight": True}, {Action.STOP}, {Action.START}),
        ({"takes_part": True, "has_app": False, "run_in_flight": False}, {Action.ADD_APP}, {Action.START, Action.STOP}),
    ],
)
def test_only_what_is_possible_now_is_offered(
    state: dict[str, bool], offered: set[Action], not_offered: set[Action]
) -> None:
    actions = set(policy.allowed_actions(Role.OWNER, **state))
    assert offered <= actions
    assert actions.isdisjoint(not_offered)


def test_a_member_is_offered_nothing_of_the_owners() -> None:
    actions = policy.allowed_actions(Role.MEMBER, takes_part=False, has_app=True, run_in_flight=True)
    assert OWNER_ONLY.isdisjoint(actions)
    assert Action.LEAVE in actions


def test_a_steward_decides_for_their_site_from_a_browser_only() -> None:
    browser = principal("sam", "steward-a", scopes=(Scope.USE, Scope.APPROVE))
    server = principal("sam", "steward-a")
    assert policy.sites_decided_by(browser) == {"a"}
    assert policy.sites_decided_by(server) == frozenset()
    policy.require_steward(browser, "a")
    with pytest.raises(Forbidden, match="login"):
        policy.require_steward(server, "a")
    with pytest.raises(NotFound):
        policy.require_steward(browser, "b")
    with pytest.raises(NotFound):
        policy.require_steward(principal("anna", "site-a", scopes=(Scope.USE, Scope.APPROVE)), "a")


def test_an_app_is_read_by_members_and_by_the_stewards_who_are_asked() -> None:
    steward = principal("sam", "steward-a", scopes=(Scope.USE, Scope.APPROVE))
    assert policy.may_review(principal("anna"), Role.MEMBER, ())
    assert policy.may_review(steward, None, {"a", "b"})
    assert not policy.may_review(steward, None, {"b"})
    assert not policy.may_review(principal("bert"), None, {"a"})
    assert not policy.may_review(principal("anna", scopes=()), Role.MEMBER, ())


def participation(**changes: object) -> Participation:
    values: dict[str, object] = {
        "id": "t1",
        "project_id": "p1",
        "user": "anna",
        "site": "a",
        "dataset": "scans",
        "kernel_id": "k",
        "active": True,
        "public_key": None,
        "node_id": None,
        "client": ClientState.READY,
        "client_detail": "",
        "joined_at": NOW,
    }
    return Participation(**{**values, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "not_own", [None, participation(user="bert"), participation(active=False), participation(site="b")]
)
def test_a_server_runs_its_own_active_participation_at_its_own_site_only(not_own: Participation | None) -> None:
    anna = principal("anna", "site-a")
    own = participation()
    assert policy.require_own_participation(anna, own) is own
    with pytest.raises(NotFound):
        policy.require_own_participation(anna, not_own)


def site(kind: str) -> Site:
    return Site("a", "Hospital A", kind, True, "help@a")


BROWSER = (Scope.USE, Scope.APPROVE)
STEWARD = principal("sam", "site-a", "steward-a", scopes=BROWSER)
# Who may name the key of anna's node: at a site with servers, at one with a SuperNode. None: as if it were not there.
REGISTRARS = [
    (principal("anna", "site-a"), True, False),
    (principal("anna", "site-b"), None, None),  # has moved
    (STEWARD, False, True),
    (principal("sam", "site-a", "steward-a"), False, False),  # the token of a notebook server
    (principal("anna", "site-a", "steward-a", scopes=BROWSER), True, True),
    (principal("bert", "site-a"), None, None),
    (principal("sue", "site-b", "steward-b", scopes=BROWSER), None, None),
    (principal("admin", scopes=(Scope.USE, Scope.ADMINISTER)), None, None),
]


@pytest.mark.parametrize(("who", "at_servers", "at_supernode"), REGISTRARS)
def test_a_node_has_one_who_may_name_its_key(
    who: Principal, at_servers: bool | None, at_supernode: bool | None
) -> None:
    for kind, allowed in (("embedded", at_servers), ("docker", at_servers), ("supernode", at_supernode)):
        asked = participation(), site(kind)
        if allowed:
            assert policy.require_registrar(who, *asked) == asked[0]
        else:
            with pytest.raises(NotFound if allowed is None else Forbidden) as refused:
                policy.require_registrar(who, *asked)
            assert refused.value.next_step


@pytest.mark.parametrize("who", [one for one, *_ in REGISTRARS])
def test_only_a_steward_removes_a_key_and_only_a_supernodes(who: Principal) -> None:
    assert policy.decides_for_node(STEWARD, participation(), site("supernode"))
    for kind in ("embedded", "docker", "supernode"):
        asked = participation(), site(kind)
        if policy.decides_for_node(who, *asked):
            assert kind == "supernode"
            assert policy.require_node_steward(who, *asked) == asked[0]
        else:
            with pytest.raises((NotFound, Forbidden)):
                policy.require_node_steward(who, *asked)


@pytest.mark.parametrize("kind", ["embedded", "supernode"])
def test_what_is_not_ones_own_looks_as_if_it_were_not_there(kind: str) -> None:
    stranger = principal("sue", "site-b", "steward-b", scopes=BROWSER)
    for ended in (None, participation(active=False)):
        with pytest.raises(NotFound) as missing:
            policy.require_registrar(STEWARD, ended, None)
        with pytest.raises(NotFound) as refused:
            policy.require_registrar(stranger, participation(), site(kind))
        assert (refused.value.message, refused.value.next_step) == (missing.value.message, missing.value.next_step)


def test_no_notebook_server_speaks_for_a_supernode() -> None:
    anna, own = principal("anna", "site-a"), participation()
    assert policy.require_own_client(anna, own, site("docker")) is own
    assert policy.runs_in_own_server(anna, own, site("docker"))
    assert not policy.runs_in_own_server(anna, own, site("supernode"))
    with pytest.raises(Forbidden, match="no notebook servers"):
        policy.require_own_client(anna, own, site("supernode"))
    with pytest.raises(NotFound):
        policy.require_own_client(principal("bert", "site-a"), own, site("supernode"))


def test_only_the_owner_sees_who_is_gone() -> None:
    gone = {MemberState.DECLINED, MemberState.LEFT, MemberState.REMOVED}
    assert gone <= policy.visible_states(Role.OWNER)
    assert gone.isdisjoint(policy.visible_states(Role.MEMBER))
    assert gone.isdisjoint(policy.visible_states(Role.INVITED))
