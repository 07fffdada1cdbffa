"""Builds what members see (`federator.contract`) from what the store remembers. Decides nothing, changes nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from federator import contract
from federator.contract import ApprovalState, ClientState, MemberState

from hub_service.apps.declarations import dependencies_of, outputs_of
from hub_service.consent import Consent
from hub_service.domain import policy
from hub_service.domain.approvals import Approval
from hub_service.domain.clock import utc_text
from hub_service.domain.packages import Needs, lacking, lacks_text
from hub_service.domain.policy import Role
from hub_service.domain.projects import AppVersion, Member, Participation, Principal, Project
from hub_service.domain.runs import Run
from hub_service.domain.sites import runs_supernode
from hub_service.node_keys import fingerprint
from hub_service.presence import Presence
from hub_service.store.base import Store

_CLIENT_DETAIL: Mapping[ClientState, str] = {
    ClientState.OFFLINE: "Its notebook server is not running, or no Flower client runs in it.",
    ClientState.STARTING: "Its Flower client is starting.",
    ClientState.READY: "Ready: its Flower client waits for work.",
    ClientState.WORKING: "Its Flower client is working.",
    ClientState.FAILED: "Its Flower client has failed. Restart the kernel “Flower client” to try again.",
    ClientState.PAUSED: "Its Flower client was shut down. The launcher's tile “Flower client” starts it again.",
}

_SUPERNODE_DETAIL: Mapping[ClientState, str] = {
    ClientState.OFFLINE: "Its SuperNode is not connected.",
    ClientState.READY: "Ready: its SuperNode waits for work.",
    ClientState.WORKING: "Its SuperNode is working.",
}

_MEMBER_DETAIL: Mapping[MemberState, str] = {
    MemberState.INVITED: "Invited, and has not answered yet.",
    MemberState.JOINED: "Has joined, and has not chosen a dataset yet.",
    MemberState.DECLINED: "Declined the invitation.",
    MemberState.LEFT: "Left the project.",
    MemberState.REMOVED: "Was removed by the owner.",
}


@dataclass(frozen=True, slots=True)
class SiteNode:
    """The SuperNode by which a site without notebook servers takes part in one project, as pages show it."""

    participation_id: str
    project_id: str
    project_name: str
    user: str  # whose participation it is
    site: str
    site_title: str
    dataset: str
    fingerprint: str  # of the key that is registered; "" for none
    key_by: str  # who registered it; with no fingerprint: who registered the one that Flower takes no more
    key_at: str
    client: ClientState
    may_change: bool  # whether the person who looks may register and remove the key


class Views:
    def __init__(self, store: Store, sites: Mapping[str, contract.Site], consent: Consent, presence: Presence) -> None:
        self._store = store
        self._sites = sites
        self._consent = consent
        self._presence = presence

    def site_title(self, slug: str) -> str:
        """The site's name for people; its slug where it is no longer in the catalogue."""
        site = self._sites.get(slug)
        return slug if site is None else site.title

    def package_check(self, site: str, needs: Needs) -> contract.SitePackageCheck:
        """Whether the site's image has what an app needs, as its servers reported last."""
        packages = self._store.site_packages(site)
        missing = () if packages is None else lacking(needs, packages)
        return contract.SitePackageCheck(site, self.site_title(site), packages is not None, missing)

    def lacking(self, site: str, version: AppVersion) -> tuple[str, ...]:
        """What of an app version's needs the site's image has not; nothing where no server has reported yet."""
        needs = Needs(dependencies_of(version.files), version.imports)
        return self.package_check(site, needs).lacking

    def project_summary(self, project: Project, membership: Member, role: Role) -> contract.ProjectSummary:
        runs = self._store.runs(project.id) if policy.Action.SEE_RUNS in policy.ROLE_ACTIONS[role] else ()
        return contract.ProjectSummary(
            id=project.id,
            name=project.name,
            owner=project.owner,
            role=role,
            member_state=membership.state,
            created_at=utc_text(project.created_at),
            sites=sum(1 for one in self._store.participations(project.id) if one.active),
            last_run=run_summary(runs[-1]) if runs else None,
        )

    def project_detail(self, project: Project, membership: Member, role: Role) -> contract.ProjectDetail:
        versions = self._store.app_versions(project.id)
        runs = self._store.runs(project.id) if policy.Action.SEE_RUNS in policy.ROLE_ACTIONS[role] else ()
        participants = self.participants(project, role)
        actions = policy.allowed_actions(
            role,
            takes_part=any(one.user == membership.user and one.participation_id for one in participants),
            has_app=bool(versions),
            run_in_flight=any(not run.status.is_final for run in runs),
        )
        return contract.ProjectDetail(
            id=project.id,
            name=project.name,
            description=project.description,
            owner=project.owner,
            role=role,
            member_state=membership.state,
            created_at=utc_text(project.created_at),
            participants=participants,
            versions=tuple(app_version(version) for version in reversed(versions)),
            runs=tuple(run_summary(run) for run in reversed(runs)),
            actions=tuple(actions),
            on_outage=project.on_outage,
            grace_s=project.grace_s,
        )

    def participants(self, project: Project, role: Role) -> tuple[contract.Participant, ...]:
        """The project's members as somebody of this role sees them, in the order of their invitation."""
        versions = self._store.app_versions(project.id)
        taking_part = {one.user: one for one in self._store.participations(project.id) if one.active}
        return tuple(
            self._participant(project, member, taking_part.get(member.user), versions)
            for member in self._store.members(project.id)
            if member.state in policy.visible_states(role)
        )

    def participant(self, project: Project, member: Member) -> contract.Participant:
        active = (one for one in self._store.participations(project.id) if one.active and one.user == member.user)
        return self._participant(project, member, next(active, None), self._store.app_versions(project.id))

    def _participant(
        self,
        project: Project,
        member: Member,
        participation: Participation | None,
        versions: Sequence[AppVersion],
    ) -> contract.Participant:
        role = Role.OWNER if member.user == project.owner else Role.MEMBER
        if participation is None:
            return contract.Participant(member.user, role, member.state, detail=_MEMBER_DETAIL[member.state])
        decision = self._newest_decision(participation, versions)
        approval = self._consent.state_of(decision) if versions else None
        client = self._presence.state(participation)
        return contract.Participant(
            user=member.user,
            role=role,
            state=member.state,
            site=participation.site,
            site_title=self.site_title(participation.site),
            dataset=participation.dataset,
            participation_id=participation.id,
            approval=approval,
            approval_reason="" if decision is None else decision.reason,
            conditions=contract.Conditions() if decision is None else decision.conditions,
            client=client,
            detail=self._participation_detail(participation, versions, decision, client),
        )

    def _newest_decision(self, participation: Participation, versions: Sequence[AppVersion]) -> Approval | None:
        if not versions:
            return None
        newest = versions[-1].fab_hash
        return self._consent.decision(participation.project_id, newest, participation.site, participation.dataset)

    def _participation_detail(
        self,
        participation: Participation,
        versions: Sequence[AppVersion],
        decision: Approval | None,
        client: ClientState,
    ) -> str:
        if not versions:
            return "Waits for the owner to add an app."
        state = self._consent.state_of(decision)
        missing = self.lacking(participation.site, versions[-1])
        lacks = lacks_text(self.site_title(participation.site), missing) if missing else ""
        if decision is None:
            return (
                f"Waits for a data steward of {self.site_title(participation.site)} to approve "
                f"version {versions[-1].number} on “{participation.dataset}”. {lacks}"
            ).rstrip()
        if state is not ApprovalState.APPROVED:
            return _refusal(decision, state, versions[-1].number)
        if lacks:
            return lacks
        if runs_supernode(self._sites.get(participation.site)):
            return self._supernode_detail(participation, client)
        if client is ClientState.FAILED and participation.client_detail:
            return participation.client_detail
        return _CLIENT_DETAIL[client]

    def _supernode_detail(self, participation: Participation, client: ClientState) -> str:
        if participation.public_key is None:
            gone = "Flower takes the key of its SuperNode no more. " if participation.key_by else ""
            steward = f"a data steward of {self.site_title(participation.site)}"
            return f"{gone}Waits for {steward} to register a {'new ' if gone else ''}key of its SuperNode."
        return _SUPERNODE_DETAIL.get(client, _SUPERNODE_DETAIL[ClientState.OFFLINE])

    def site_node(self, participation: Participation, *, may_change: bool) -> SiteNode:
        project = self._store.project(participation.project_id)
        key = participation.public_key
        return SiteNode(
            participation_id=participation.id,
            project_id=participation.project_id,
            project_name="" if project is None else project.name,
            user=participation.user,
            site=participation.site,
            site_title=self.site_title(participation.site),
            dataset=participation.dataset,
            fingerprint="" if key is None else fingerprint(key),
            key_by=participation.key_by,
            key_at=utc_text(participation.key_at),
            client=self._presence.state(participation),
            may_change=may_change,
        )

    def approval_request(
        self,
        project: Project,
        version: AppVersion,
        site: str,
        dataset: str,
        requested_by: str,
        principal: Principal | None = None,
    ) -> contract.ApprovalRequest:
        """What a site was asked, as `principal` sees it; None stands for nobody in particular."""
        decision = self._consent.decision(project.id, version.fab_hash, site, dataset)
        state, known = self._consent.state_of(decision), self._sites.get(site)
        first = decision.steward if decision is not None and state is ApprovalState.APPROVED_ONCE else ""
        return contract.ApprovalRequest(
            project_id=project.id,
            project_name=project.name,
            owner=project.owner,
            requested_by=requested_by,
            site=site,
            dataset=dataset,
            fab_hash=version.fab_hash,
            version=version.number,
            state=state,
            decided_by="" if decision is None else decision.steward,
            decided_at="" if decision is None else utc_text(decision.decided_at),
            reason="" if decision is None else decision.reason,
            expires_at="" if decision is None else utc_text(decision.expires_at),
            conditions=contract.Conditions() if decision is None else decision.conditions,
            members=self._consent.joined(project.id),
            four_eyes=known is not None and known.four_eyes,
            first_steward="" if decision is None else decision.first_steward,
            may_approve=principal is None or policy.may_approve(principal, known, requested_by, first),
        )


def _refusal(decision: Approval, state: ApprovalState, number: int) -> str:
    reason = f": {decision.reason}" if decision.reason else ""
    if state is ApprovalState.APPROVED_ONCE:
        return f"{decision.steward} approved version {number}. A second data steward of the site must approve, too."
    if state is ApprovalState.LAPSED:
        return f"The approval of version {number} was for other members. Ask {decision.steward} to approve it again."
    if state is ApprovalState.EXPIRED:
        return f"The approval of version {number} has expired. Ask {decision.steward} to renew it."
    if state is ApprovalState.REVOKED:
        return f"{decision.steward} withdrew the approval of version {number}{reason}."
    return f"{decision.steward} rejected version {number}{reason}."


def app_version(version: AppVersion) -> contract.AppVersion:
    return contract.AppVersion(
        number=version.number,
        fab_hash=version.fab_hash,
        title=version.title,
        source=version.source,
        created_by=version.created_by,
        created_at=utc_text(version.created_at),
        size=version.size,
    )


def app_review(version: AppVersion) -> contract.AppReview:
    return contract.AppReview(
        version=app_version(version),
        cells=version.cells,
        files=version.files,
        imports=version.imports,
        outputs=outputs_of(version.files),
        dependencies=dependencies_of(version.files),
    )


def run_summary(run: Run) -> contract.RunSummary:
    return contract.RunSummary(
        id=run.id,
        number=run.number,
        status=run.status,
        rounds=run.rounds,
        round=run.round,
        phase=run.phase,
        started_by=run.started_by,
        created_at=utc_text(run.created_at),
        finished_at=utc_text(run.finished_at),
        message=run.message,
    )
