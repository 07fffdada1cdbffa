"""Who may do what. The only place where that is decided; everybody else asks here.

Two tables: what a role in a project may do, and which Hub scope an action needs besides. A person without a role in a
project learns nothing of it, not even that it exists. Administering the Hub gives no role in any project.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from enum import StrEnum

from federator.contract import MemberState, Scope, Site

from hub_service.domain.errors import Forbidden, NotFound
from hub_service.domain.projects import Member, Participation, Principal, Project
from hub_service.domain.sites import runs_supernode


class Role(StrEnum):
    """A person's part in one project."""

    OWNER = "owner"
    MEMBER = "member"
    INVITED = "invited"


class Action(StrEnum):
    """What a person can do in a project. The values are what pages and notebooks see in `ProjectDetail.actions`."""

    SEE = "see"
    SEE_RUNS = "see-runs"
    DOWNLOAD = "download"
    JOIN = "join"
    DECLINE = "decline"
    LEAVE = "leave"
    INVITE = "invite"
    REMOVE = "remove"
    EDIT = "edit"
    ADD_APP = "add-app"
    START = "start"
    STOP = "stop"
    DELETE = "delete"


_MEMBER_ACTIONS = frozenset({Action.SEE, Action.SEE_RUNS, Action.DOWNLOAD, Action.JOIN, Action.LEAVE})

ROLE_ACTIONS: Mapping[Role, frozenset[Action]] = {
    Role.OWNER: _MEMBER_ACTIONS
    | {Action.INVITE, Action.REMOVE, Action.EDIT, Action.ADD_APP, Action.START, Action.STOP, Action.DELETE},
    Role.MEMBER: _MEMBER_ACTIONS,
    Role.INVITED: frozenset({Action.SEE, Action.JOIN, Action.DECLINE}),
}

# Every action in a project needs this scope; deciding for a site's data needs Scope.APPROVE instead, which no
# notebook server's token has.
PROJECT_SCOPE = Scope.USE

# States of other members that a role sees: only the owner learns who declined, left or was removed.
_VISIBLE_STATES: Mapping[Role, frozenset[MemberState]] = {
    Role.OWNER: frozenset(MemberState),
    Role.MEMBER: frozenset({MemberState.INVITED, MemberState.JOINED}),
    Role.INVITED: frozenset({MemberState.INVITED, MemberState.JOINED}),
}

_ASK_FOR_SCOPE: Mapping[Scope, str] = {
    Scope.ACCESS: "Ask the Hub's administrator for access to the federation service.",
    Scope.USE: "Ask the Hub's administrator for the role of a researcher.",
    Scope.APPROVE: "Log in on the Hub's page as a data steward; a notebook server's token cannot decide for a site.",
    Scope.ADMINISTER: "Ask the Hub's administrator.",
    Scope.READ_METRICS: "Ask the Hub's administrator for a token with the scope read:metrics.",
}


def require_scope(principal: Principal, scope: Scope) -> None:
    """Raise Forbidden unless the principal's token has the scope."""
    if scope not in principal.scopes:
        raise Forbidden(
            "Your login does not allow this.",
            _ASK_FOR_SCOPE[scope],
            debug=f"{principal.name} lacks scope {scope}",
        )


def role_in(project: Project, membership: Member | None) -> Role | None:
    """The role that a membership gives now; None for a stranger and for one who declined, left or was removed."""
    if membership is None or membership.project_id != project.id:
        return None
    if membership.state is MemberState.INVITED:
        return Role.INVITED
    if membership.state is not MemberState.JOINED:
        return None
    return Role.OWNER if membership.user == project.owner else Role.MEMBER


def no_such_project() -> NotFound:
    """The one answer for a project that does not exist and for one that is somebody else's."""
    return NotFound(
        "There is no such project, or you are not a member of it.",
        "Ask the project's owner for an invitation.",
    )


def require(principal: Principal, action: Action, project: Project | None, membership: Member | None) -> Role:
    """Return the principal's role in the project if it allows the action.

    Raises NotFound if the project does not exist or is not theirs to see, Forbidden if they lack the scope or the role.
    """
    require_scope(principal, PROJECT_SCOPE)
    if project is None or (membership is not None and membership.user != principal.name):
        raise no_such_project()
    role = role_in(project, membership)
    if role is None:
        raise no_such_project()
    if action not in ROLE_ACTIONS[role]:
        raise _not_your_part(action, role, project)
    return role


def require_deletion(principal: Principal, project: Project | None, membership: Member | None) -> Project:
    """Return the project if the principal may delete it: its owner, or whoever looks after the service.

    Raises as `require`.
    """
    if project is not None and Scope.ADMINISTER in principal.scopes:
        return project
    require(principal, Action.DELETE, project, membership)
    if project is None:
        raise no_such_project()
    return project


def _not_your_part(action: Action, role: Role, project: Project) -> Forbidden:
    if role is Role.INVITED:
        return Forbidden("You have not joined this project yet.", "Accept the invitation first.")
    if action is Action.DECLINE:
        return Forbidden("You have joined this project already.", "Leave it if you no longer take part.")
    return Forbidden(
        "Only the project's owner can do this.", f"Ask {project.owner}.", debug=f"{action} as {role} of {project.id}"
    )


def allowed_actions(role: Role, *, takes_part: bool, has_app: bool, run_in_flight: bool) -> tuple[Action, ...]:
    """The actions to offer now: what the role allows, without what the project's state rules out."""
    ruled_out: set[Action] = set()
    if takes_part:
        ruled_out.add(Action.JOIN)
    if role is Role.OWNER and not takes_part:
        ruled_out.add(Action.LEAVE)
    if run_in_flight or not has_app:
        ruled_out.add(Action.START)
    ruled_out.add(Action.DELETE if run_in_flight else Action.STOP)
    return tuple(action for action in Action if action in ROLE_ACTIONS[role] - ruled_out)


def visible_states(role: Role) -> frozenset[MemberState]:
    """In which states members are listed to somebody of this role."""
    return _VISIBLE_STATES[role]


def sites_decided_by(principal: Principal) -> frozenset[str]:
    """Sites for whose data this login may decide: needs the steward's group and the scope of a browser login."""
    return principal.stewarded_sites if Scope.APPROVE in principal.scopes else frozenset()


def require_steward(principal: Principal, site: str) -> None:
    """Raise unless the principal may decide for the site.

    Raises Forbidden if a steward of the site came with a token that may not decide; NotFound for everybody else.
    """
    if site not in principal.stewarded_sites:
        raise no_such_request()
    require_scope(principal, Scope.APPROVE)


def may_approve(principal: Principal, site: Site | None, participant: str, first_steward: str) -> bool:
    """Whether a steward's yes counts where the site wants two: not the participant's own, and not the same one twice.

    Args:
        first_steward: who has approved already, and waits for a second; "" for nobody.
    """
    return site is None or not site.four_eyes or principal.name not in (participant, first_steward)


def require_other_eyes(principal: Principal, site: Site | None, participant: str, first_steward: str) -> None:
    """Raise Forbidden unless `may_approve`."""
    if site is None or may_approve(principal, site, participant, first_steward):
        return
    if principal.name == participant:
        raise Forbidden(
            f"{site.title} wants two data stewards to approve, and you asked for this yourself.",
            f"Ask other data stewards of {site.title} to decide.",
        )
    raise Forbidden(
        "You have approved this already; a second data steward must decide, too.",
        f"Ask another data steward of {site.title}.",
    )


def no_such_request() -> NotFound:
    """The one answer for a request that does not exist and for one at another site."""
    return NotFound(
        "There is no such approval request at a site that you are a data steward of.",
        "Open the approvals page for the requests that wait for you.",
    )


def may_review(principal: Principal, role: Role | None, asked_sites: Collection[str]) -> bool:
    """Whether the principal may read an app version: members, and stewards of the sites that were asked."""
    if role is not None and Action.SEE in ROLE_ACTIONS[role]:
        return Scope.USE in principal.scopes
    return not sites_decided_by(principal).isdisjoint(asked_sites)


def require_own_participation(principal: Principal, participation: Participation | None) -> Participation:
    """Return the participation if it is active, the principal's, and at the site that the Hub places them at now.

    Raises NotFound otherwise, Forbidden without the scope.
    """
    require_scope(principal, PROJECT_SCOPE)
    if participation is None or not _is_own(principal, participation):
        raise _no_such_participation()
    return participation


def require_own_client(principal: Principal, participation: Participation | None, site: Site | None) -> Participation:
    """As `require_own_participation`, where the principal's notebook server is what runs it.

    Raises Forbidden where the site has no notebook servers.
    """
    participation = require_own_participation(principal, participation)
    if runs_supernode(site):
        raise _supernode_is_the_stewards(site)
    return participation


def runs_in_own_server(principal: Principal, participation: Participation, site: Site | None) -> bool:
    """Whether the principal's notebook server is the one that runs this participation."""
    return _is_own(principal, participation) and not runs_supernode(site)


def _is_own(principal: Principal, participation: Participation) -> bool:
    return participation.active and participation.user == principal.name and participation.site in principal.sites


def require_registrar(principal: Principal, participation: Participation | None, site: Site | None) -> Participation:
    """Return the participation if the principal may say which key its node has.

    That is the participant's own notebook server or, at a site without such servers, a data steward of the site.
    Raises as `require_own_client` and `require_node_steward`.
    """
    if participation is not None and runs_in_own_server(principal, participation, site):
        return require_own_client(principal, participation, site)
    return require_node_steward(principal, participation, site)


def require_node_steward(principal: Principal, participation: Participation | None, site: Site | None) -> Participation:
    """Return the participation if its node is a SuperNode, and the principal a data steward of its site.

    Raises NotFound for everybody who is neither such a steward nor the participant. Raises Forbidden for the
    participant, for a steward who came with a token that may not decide, and at a site with notebook servers, where the
    client kernel has a key of its own: two nodes of one participation would fight.
    """
    require_scope(principal, PROJECT_SCOPE)
    if participation is None or not participation.active:
        raise _no_such_participation()
    is_steward = participation.site in principal.stewarded_sites
    if not is_steward and not _is_own(principal, participation):
        raise _no_such_participation()
    if not runs_supernode(site):
        raise _client_has_its_own_key(participation)
    if not is_steward:
        raise _supernode_is_the_stewards(site)
    require_scope(principal, Scope.APPROVE)
    return participation


def decides_for_node(principal: Principal, participation: Participation, site: Site | None) -> bool:
    """Whether the principal may register and remove the key of the participation's node."""
    return participation.active and participation.site in sites_decided_by(principal) and runs_supernode(site)


def _no_such_participation() -> NotFound:
    """The one answer for a participation that does not exist and for one that is somebody else's."""
    return NotFound(
        "There is no such participation, or it is not yours.", "See your projects for what you take part in."
    )


def _client_has_its_own_key(participation: Participation) -> Forbidden:
    return Forbidden(
        "This participation's node is the Flower client in a notebook server, which registers a key of its own.",
        f"To end it, withdraw the approval, or ask {participation.user} to leave the project.",
    )


def _supernode_is_the_stewards(site: Site) -> Forbidden:
    return Forbidden(
        f"{site.title} has no notebook servers: its data steward registers the key of its SuperNode.",
        f"Ask {site.contact}.",
    )
