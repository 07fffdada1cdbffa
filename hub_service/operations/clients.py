"""What notebook servers ask and report, and what the gateway asks of nodes."""

from __future__ import annotations

import hashlib
from dataclasses import replace

from federator.contract import Assignment, Assignments, ClientState, SiteApprovals

from hub_service.audit import Decision
from hub_service.changes import RUNS_TOPIC, project_topic, user_topic
from hub_service.domain import policy
from hub_service.domain.errors import Conflict
from hub_service.domain.projects import NodeGrant, Participation, Principal
from hub_service.node_keys import flower_form
from hub_service.operations.base import Operations
from hub_service.presence import CONNECTED_STATES

LONGEST_DETAIL = 1000


class ClientOperations(Operations):
    """Assignments, node keys, clients' states."""

    def assignments(self, principal: Principal) -> Assignments:
        """What the person's notebook server must run now: participations with an approved app version."""
        policy.require_scope(principal, policy.PROJECT_SCOPE)
        version = str(self._changes.revision(user_topic(principal.name)))
        assigned = []
        for participation in self._store.active_participations_of(principal.name):
            project = self._store.project(participation.project_id)
            approved = self._consent.approved_hashes(participation)
            if project is not None and approved and policy.is_own_participation(principal, participation):
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

    def register_node(self, principal: Principal, participation_id: str, public_key: bytes) -> SiteApprovals:
        """Take the public key of the client's node; it replaces an earlier one.

        Raises Invalid for what is no key, Conflict for a key that another participation uses.
        """
        participation = self._own(principal, participation_id)
        key = flower_form(public_key)
        holder = self._store.participation_by_key(key)
        if holder is not None and holder.id != participation.id:
            raise Conflict("Another participation uses this key.", "Make a new key pair for each participation.")
        if participation.public_key != key:
            with self._store.transaction():
                self._store.put_participation(replace(participation, public_key=key, node_id=None))
                self._audit.note(
                    principal.name,
                    Decision.NODE_REGISTERED,
                    participation.project_id,
                    participation=participation.id,
                    key_sha256=hashlib.sha256(key).hexdigest(),
                )
            self._changes.announce(project_topic(participation.project_id), RUNS_TOPIC)
        return self._site_approvals(participation)

    def report_client(self, principal: Principal, participation_id: str, state: ClientState, detail: str) -> None:
        """What the notebook server says of its client."""
        participation = self._own(principal, participation_id)
        if state in CONNECTED_STATES:
            self._presence.seen(participation.id)
        self._put_client(participation, state, detail.strip()[:LONGEST_DETAIL])

    def site_approvals(self, principal: Principal, participation_id: str) -> SiteApprovals:
        """What may run on the participation's dataset now."""
        return self._site_approvals(self._own(principal, participation_id))

    def _site_approvals(self, participation: Participation) -> SiteApprovals:
        return SiteApprovals(participation.id, self._consent.approved_hashes(participation))

    def _own(self, principal: Principal, participation_id: str) -> Participation:
        return policy.require_own_participation(principal, self._store.participation(participation_id))

    # --- for the gateway

    def node_grant(self, public_key: bytes) -> NodeGrant | None:
        """What a node's key opens now. None for an unknown key and for one whose right has ended."""
        participation = self._store.participation_by_key(public_key)
        if participation is None or not self._consent.approved_hashes(participation):
            return None
        return NodeGrant(participation.id, participation.project_id, participation.node_id)

    def node_seen(self, participation_id: str, working: bool) -> None:
        """A node's poll arrived, or work was handed to it."""
        participation = self._store.participation(participation_id)
        if participation is None or not participation.active:
            return
        was_connected = self._presence.state(participation) in CONNECTED_STATES
        self._presence.seen(participation_id)
        state = ClientState.WORKING if working else ClientState.READY
        if not was_connected or participation.client is not state:
            self._store.put_participation(replace(participation, client=state, client_detail=""))
            self._changes.announce(project_topic(participation.project_id))

    def note_lost_clients(self) -> None:
        """Show clients that fell silent as offline. Called every few seconds."""
        for participation_id in self._presence.take_lost():
            participation = self._store.participation(participation_id)
            if participation is not None and participation.client in CONNECTED_STATES:
                self._put_client(participation, ClientState.OFFLINE, "")

    def _put_client(self, participation: Participation, state: ClientState, detail: str) -> None:
        if (participation.client, participation.client_detail) == (state, detail):
            return
        self._store.put_participation(replace(participation, client=state, client_detail=detail))
        self._changes.announce(project_topic(participation.project_id))
