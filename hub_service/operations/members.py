"""Who is in a project: invitations, joining with a dataset, leaving."""

from __future__ import annotations

import logging
from dataclasses import replace

from federator.contract import ApprovalState, ClientState, MemberState, Participant, Site

from hub_service.audit import Decision
from hub_service.changes import RUNS_TOPIC, project_topic, user_topic
from hub_service.domain import notices, policy
from hub_service.domain.errors import Conflict, Invalid, Unavailable
from hub_service.domain.policy import Action, Role
from hub_service.domain.projects import Member, Participation, Principal, Project
from hub_service.operations.base import Operations

log = logging.getLogger(__name__)


class MemberOperations(Operations):
    """Invite, decline, join, leave, remove."""

    async def invite(self, principal: Principal, project_id: str, user: str) -> Participant:
        """Invite a Hub user. Raises Invalid for nobody, oneself or one without a site, Conflict for a second time."""
        user = user.strip()
        self._invitable(principal, project_id, user)
        found = await self._hub.user(user) if user else None
        if found is None:
            raise Invalid(f"There is no user “{user}” on this Hub.", "Check the spelling of their Hub name.")
        if len(found.sites) != 1 or not found.sites <= self._sites.keys():
            raise Invalid(
                f"{user} belongs to no site of this federation, so they have no data to take part with.",
                "Ask them to log in once, or the Hub's administrator to place them at a site.",
            )
        project = self._invitable(principal, project_id, user)  # still: the Hub's answer took a while
        member = Member(project.id, user, MemberState.INVITED, principal.name, self._clock())
        with self._store.transaction():
            self._store.put_member(member)
            self._audit.note(principal.name, Decision.INVITED, project.id, user=user)
        self._changes.announce(project_topic(project.id), user_topic(user))
        self._tell(notices.invited(project, user, principal.name))
        return self._views.participant(project, member)

    def _invitable(self, principal: Principal, project_id: str, user: str) -> Project:
        """The project, if the person may invite this one to it now."""
        project, _, _ = self._enter(principal, Action.INVITE, project_id)
        if user == principal.name:
            raise Invalid("You cannot invite yourself.", "You take part by choosing a dataset of your own site.")
        self._refuse_second_invitation(project.id, user)
        self._quotas.require_member(project.id)
        return project

    def _refuse_second_invitation(self, project_id: str, user: str) -> None:
        membership = self._membership(project_id, user)
        if membership is not None and membership.state is MemberState.INVITED:
            raise Conflict(f"{user} is invited already.", "They see the invitation on the federation's page.")
        if membership is not None and membership.state is MemberState.JOINED:
            raise Conflict(f"{user} is a member already.")

    def decline(self, principal: Principal, project_id: str) -> None:
        project, membership, _ = self._enter(principal, Action.DECLINE, project_id)
        self._end_membership(project, membership, MemberState.DECLINED, principal.name, Decision.DECLINED)

    def join(self, principal: Principal, project_id: str, dataset: str) -> Participant:
        """Accept the invitation, if one waits, and take part with a dataset of one's own site.

        Raises Invalid for a dataset that the site does not have, Conflict if the person takes part already or the
        dataset does.
        """
        project, membership, _ = self._enter(principal, Action.JOIN, project_id)
        site = self.my_site(principal)
        self._check_joinable(project.id, principal.name, site, dataset)
        member = replace(membership, state=MemberState.JOINED, changed_at=self._clock())
        participation = Participation(
            id=self._new_id(),
            project_id=project.id,
            user=principal.name,
            site=site.slug,
            dataset=dataset,
            kernel_id=self._new_id(),
            active=True,
            public_key=None,
            node_id=None,
            client=ClientState.OFFLINE,
            client_detail="",
            joined_at=self._clock(),
        )
        lapsed_before = self._lapsed(project.id)
        with self._store.transaction():
            self._store.put_member(member)
            self._store.put_participation(participation)
            self._audit.note(principal.name, Decision.JOINED, project.id, site=site.slug, dataset=dataset)
        # Approvals that name the members may have lapsed: those sites' nodes and servers must hear of it.
        self._changes.announce(user_topic(principal.name), RUNS_TOPIC)
        self._announce_members(project.id)
        self._ask_stewards(project.id, participation, self._lapsed(project.id) - lapsed_before)
        return self._views.participant(project, member)

    def _lapsed(self, project_id: str) -> frozenset[str]:
        """Ids of the participations at which the newest version was approved for other members."""
        versions = self._store.app_versions(project_id)
        return frozenset(
            one.id
            for one in self._store.participations(project_id)
            if one.active and versions and self._consent.state(one, versions[-1].fab_hash) is ApprovalState.LAPSED
        )

    def _ask_stewards(self, project_id: str, joined: Participation, lapsed: frozenset[str]) -> None:
        """Tell the stewards whom somebody's joining asks for a decision on the newest version."""
        versions = self._store.app_versions(project_id)
        for one in self._store.participations(project_id):
            concerned = one.active and (one.id in lapsed or one.id == joined.id)
            if versions and concerned and self._consent.state(one, versions[-1].fab_hash).asks:
                self._tell_of(one, versions[-1].fab_hash)

    def _check_joinable(self, project_id: str, user: str, site: Site, dataset: str) -> None:
        if dataset not in {one.name for one in site.datasets}:
            offered = ", ".join(f"“{one.name}”" for one in site.datasets) or "none"
            raise Invalid(f"{site.title} has no dataset “{dataset}”.", f"Its datasets: {offered}.")
        for other in self._store.participations(project_id):
            if other.active and other.user == user:
                raise Conflict(
                    f"You take part already, with “{other.dataset}”.", "Leave first to take part with another dataset."
                )
            if other.active and (other.site, other.dataset) == (site.slug, dataset):
                raise Conflict(
                    f"{other.user} takes part with “{dataset}” already. A dataset counts once in a project.",
                    "Choose another dataset of your site.",
                )

    def leave(self, principal: Principal, project_id: str) -> None:
        """End one's part at once. A member is then no longer a member; the owner stays, and may join again."""
        project, membership, role = self._enter(principal, Action.LEAVE, project_id)
        state = MemberState.JOINED if role is Role.OWNER else MemberState.LEFT
        self._end_membership(project, membership, state, principal.name, Decision.LEFT)

    def remove_member(self, principal: Principal, project_id: str, user: str) -> None:
        """Remove a member or withdraw an invitation, at once. Raises Conflict for the owner and for no member."""
        project, _, _ = self._enter(principal, Action.REMOVE, project_id)
        if user == project.owner:
            raise Conflict("The owner cannot be removed from a project.", "Leave to end your site's part in it.")
        membership = self._membership(project.id, user)
        if membership is None or policy.role_in(project, membership) is None:
            raise Conflict(f"{user} is not a member of this project.", "See the project's list of participants.")
        self._end_membership(project, membership, MemberState.REMOVED, principal.name, Decision.REMOVED)

    async def end_parts_of_the_gone(self) -> None:
        """End the part in a run of people who do not belong to their site any more. Called each second.

        A site's part counts as the person's who takes part for it: whom the Hub has deleted or placed elsewhere has no
        right to the site's data any more. Asked are the sites of the runs in flight, each once. A Hub that does not
        answer says nothing.
        """
        in_runs = [
            one
            for run in self._store.unfinished_runs()
            for one in self._store.participations(run.project_id)
            if one.active and one.id in run.sites
        ]
        for site in sorted({one.site for one in in_runs}):
            try:
                people = await self._hub.people_of(site)
            except Unavailable as error:
                log.warning("who belongs to %s is unknown: %s", site, error.debug)
                return
            for one in in_runs:
                if one.site == site and one.user not in people:
                    self._end_part(one.id)

    def _end_part(self, participation_id: str) -> None:
        participation = self._store.participation(participation_id)
        if participation is None or not participation.active:
            return
        with self._store.transaction():
            self._end_participation(participation)
            self._audit.note(
                "service",
                Decision.LEFT_SITE,
                participation.project_id,
                user=participation.user,
                site=participation.site,
            )
        self._changes.announce(user_topic(participation.user), RUNS_TOPIC)
        self._announce_members(participation.project_id)

    def _end_participation(self, participation: Participation) -> None:
        self._presence.forget(participation.id)
        self._store.put_participation(replace(participation, active=False, client=ClientState.OFFLINE))

    def _end_membership(
        self, project: Project, membership: Member, state: MemberState, actor: str, decision: Decision
    ) -> None:
        with self._store.transaction():
            self._store.put_member(replace(membership, state=state, changed_at=self._clock()))
            for one in self._store.participations(project.id):
                if one.active and one.user == membership.user:
                    self._end_participation(one)
            self._audit.note(actor, decision, project.id, user=membership.user)
        self._changes.announce(user_topic(membership.user), RUNS_TOPIC)
        self._announce_members(project.id)
