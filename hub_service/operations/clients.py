"""What notebook servers ask and report, and what the gateway asks of nodes."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace

from federator.contract import Assignment, Assignments, ClientState, SiteApprovals

from hub_service.changes import project_topic, user_topic
from hub_service.domain import policy
from hub_service.domain.errors import NotFound
from hub_service.domain.projects import NodeGrant, Participation, Principal
from hub_service.domain.sites import runs_supernode
from hub_service.operations.base import Operations
from hub_service.presence import CONNECTED_STATES
from hub_service.site_stages import Stage

LONGEST_DETAIL = 1000


class ClientOperations(Operations):
    """Assignments, clients' states, and what nodes may do."""

    def assignments(self, principal: Principal) -> Assignments:
        """What the person's notebook server must run now: participations with an approved app version."""
        policy.require_scope(principal, policy.PROJECT_SCOPE)
        version = str(self._changes.revision(user_topic(principal.name)))
        assigned = []
        for participation in self._store.active_participations_of(principal.name):
            project = self._store.project(participation.project_id)
            approved = self._consent.approved_hashes(participation)
            site = self._site_of(participation)
            if project is not None and approved and policy.runs_in_own_server(principal, participation, site):
                assigned.append(
                    Assignment(
                        participation_id=participation.id,
                        project_id=project.id,
                        project_name=project.name,
                        site=participation.site,
                        dataset=participation.dataset,
                        kernel_id=participation.kernel_id,
                        fab_hash=approved[0],
                    )
                )
        return Assignments(version, tuple(assigned))

    def report_client(self, principal: Principal, participation_id: str, state: ClientState, detail: str) -> None:
        """What the notebook server says of its client. Raises as `policy.require_own_client`."""
        participation = self._store.participation(participation_id)
        participation = policy.require_own_client(principal, participation, self._site_of(participation))
        if state in CONNECTED_STATES:
            self._note_connected(participation, working=state is ClientState.WORKING)
        elif state is not ClientState.STARTING or not self._presence.is_connected(participation.id):
            # A client that starts says so before its node's first poll: told after it, it comes late.
            self._put_client(participation, state, detail.strip()[:LONGEST_DETAIL])

    def site_approvals(self, principal: Principal, participation_id: str) -> SiteApprovals:
        """What may run on the participation's dataset now."""
        participation = policy.require_own_participation(principal, self._store.participation(participation_id))
        return self._site_approvals(participation)

    async def approved_app(self, principal: Principal, participation_id: str, fab_hash: str) -> bytes:
        """The FAB of an app version, for the client that runs it.

        Raises as `policy.require_own_client`; NotFound for a version that is not approved on the participation's
        dataset now.
        """
        participation = self._store.participation(participation_id)
        participation = policy.require_own_client(principal, participation, self._site_of(participation))
        if fab_hash not in self._consent.approved_hashes(participation):
            raise NotFound(
                "No such app version is approved for your dataset.", "Ask a data steward of your site to approve it."
            )
        return await asyncio.to_thread(self._artifacts.fab, fab_hash)

    # --- for the gateway

    def node_grant(self, public_key: bytes) -> NodeGrant | None:
        """What a node's key opens now. None for an unknown key and for one whose right has ended."""
        participation = self._store.participation_by_key(public_key)
        approved = () if participation is None else self._consent.approved_hashes(participation)
        if participation is None or not approved or self._runs_unapproved(participation, approved):
            return None
        fab_hashes = frozenset(approved) if runs_supernode(self._site_of(participation)) else None
        largest = self._largest_message(participation)
        return NodeGrant(
            participation.id, participation.project_id, participation.node_id, fab_hashes, largest, participation.site
        )

    def _runs_unapproved(self, participation: Participation, approved: Sequence[str]) -> bool:
        """Whether the participation is in a run of a version that its steward has withdrawn, whatever else may run."""
        runs = self._store.runs(participation.project_id)
        newest = runs[-1] if runs else None
        return (
            newest is not None
            and not newest.status.is_final
            and participation.id in newest.sites
            and newest.fab_hash not in approved
        )

    def _largest_message(self, participation: Participation) -> int | None:
        """What the approval of the version that runs, or ran last, lets out of the site in one message."""
        runs = self._store.runs(participation.project_id)
        return self._consent.conditions(participation, runs[-1].fab_hash).largest_message if runs else None

    def node_seen(self, participation_id: str, working: bool) -> None:
        """A node's poll arrived, or work was handed to it."""
        participation = self._store.participation(participation_id)
        if participation is None or not participation.active or participation.public_key is None:
            return  # its right ended while it was being answered
        self._note_connected(participation, working)

    def node_moved(self, participation_id: str, stage: Stage) -> None:
        """A message to the node, or its answer, has come as far as this."""
        participation = self._store.participation(participation_id)
        if participation is not None and self._stages.moved(participation_id, stage):
            self._changes.announce(project_topic(participation.project_id))

    def node_cut_off(self, participation_id: str) -> None:
        """The connection of a node's poll was lost. The node has a few seconds to come back."""
        self._presence.cut_off(participation_id)

    def note_lost_clients(self) -> None:
        """Show clients that fell silent as offline. Called every few seconds."""
        for participation_id in self._presence.take_lost():
            participation = self._store.participation(participation_id)
            if participation is not None and participation.client in CONNECTED_STATES:
                self._client_lost(participation.site)
                self._put_client(participation, ClientState.OFFLINE, "")

    def _note_connected(self, participation: Participation, working: bool) -> None:
        """The store learns of it once; whether the client works changes with each message."""
        before = self._presence.state(participation)
        self._presence.seen(participation.id)
        self._presence.works(participation.id, working)
        if participation.client is not ClientState.READY:
            participation = replace(participation, client=ClientState.READY, client_detail="")
            self._store.put_participation(participation)
        if self._presence.state(participation) is not before:
            self._changes.announce(project_topic(participation.project_id))

    def _put_client(self, participation: Participation, state: ClientState, detail: str) -> None:
        if (participation.client, participation.client_detail) == (state, detail):
            return
        self._store.put_participation(replace(participation, client=state, client_detail=detail))
        self._changes.announce(project_topic(participation.project_id))
