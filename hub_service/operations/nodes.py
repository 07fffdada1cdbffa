"""Keys of nodes: a client kernel's comes from its notebook server, a site's own SuperNode's from a data steward."""

from __future__ import annotations

from dataclasses import replace

from federator.contract import ClientState, SiteApprovals

from hub_service.audit import Decision
from hub_service.changes import RUNS_TOPIC, project_topic
from hub_service.domain import policy
from hub_service.domain.errors import Conflict
from hub_service.domain.policy import Action
from hub_service.domain.projects import Participation, Principal
from hub_service.domain.sites import runs_supernode
from hub_service.node_keys import fingerprint, flower_form
from hub_service.operations.base import Operations
from hub_service.views import SiteNode


class NodeOperations(Operations):
    """Register and remove keys; show the SuperNodes of sites without notebook servers."""

    def register_node(self, principal: Principal, participation_id: str, public_key: bytes) -> SiteApprovals:
        """Take the public key of the participation's node; it replaces an earlier one, whose node is refused at once.

        Raises as `policy.require_registrar`; Invalid for what is no public key, Conflict for one that another
        participation uses.
        """
        participation = self._store.participation(participation_id)
        participation = policy.require_registrar(principal, participation, self._site_of(participation))
        key = flower_form(public_key)
        holder = self._store.participation_by_key(key)
        if holder is not None and holder.id != participation.id:
            raise Conflict("Another participation uses this key.", "Make a new key pair for each participation.")
        if participation.public_key != key:
            if runs_supernode(self._site_of(participation)):
                participation = self._without_node(participation)
            registered = replace(
                participation, public_key=key, node_id=None, key_by=principal.name, key_at=self._clock()
            )
            self._presence.forget(participation.id)  # whatever was heard was the last node's
            self._put_node(principal, Decision.NODE_REGISTERED, registered, key)
        return self._site_approvals(participation)

    def remove_node(self, principal: Principal, participation_id: str) -> None:
        """Remove the key of a site's SuperNode; the node is refused at once.

        Raises as `policy.require_node_steward`; Conflict where there is no key.
        """
        participation = self._store.participation(participation_id)
        participation = policy.require_node_steward(principal, participation, self._site_of(participation))
        key = participation.public_key
        if key is None:
            raise Conflict("There is no key to remove.", "Register the key of the site's SuperNode first.")
        removed = replace(self._without_node(participation), public_key=None, node_id=None, key_by="", key_at=None)
        self._put_node(principal, Decision.NODE_REMOVED, removed, key)

    def _without_node(self, participation: Participation) -> Participation:
        """Nothing was heard of the next node yet, whatever the last one did."""
        self._presence.forget(participation.id)
        self._stages.forget(participation.id)
        return replace(participation, client=ClientState.OFFLINE, client_detail="")

    def _put_node(self, principal: Principal, decision: Decision, participation: Participation, key: bytes) -> None:
        with self._store.transaction():
            self._store.put_participation(participation)
            self._audit.note(
                principal.name,
                decision,
                participation.project_id,
                participation=participation.id,
                key=fingerprint(key),
            )
        self._changes.announce(project_topic(participation.project_id), RUNS_TOPIC)

    # --- what is shown of the SuperNodes

    def site_node(self, principal: Principal, participation_id: str) -> SiteNode:
        """The SuperNode of one participation, for its site's data stewards. Raises as `policy.require_node_steward`."""
        participation = self._store.participation(participation_id)
        participation = policy.require_node_steward(principal, participation, self._site_of(participation))
        return self._node(principal, participation)

    def site_nodes(self, principal: Principal) -> tuple[SiteNode, ...]:
        """The SuperNodes of all participations at the sites that the person decides for; those without a key first."""
        policy.require_scope(principal, policy.PROJECT_SCOPE)
        nodes = [
            self._node(principal, participation)
            for site in sorted(policy.sites_decided_by(principal))
            if runs_supernode(self._sites.get(site))
            for participation in self._store.active_participations_at(site)
        ]
        return tuple(sorted(nodes, key=lambda node: bool(node.fingerprint)))

    def project_nodes(self, principal: Principal, project_id: str) -> tuple[SiteNode, ...]:
        """The SuperNodes that take part in a project, for those who see it."""
        project, _, _ = self._enter(principal, Action.SEE, project_id)
        return tuple(
            self._node(principal, participation)
            for participation in self._store.participations(project.id)
            if participation.active and runs_supernode(self._site_of(participation))
        )

    def _node(self, principal: Principal, participation: Participation) -> SiteNode:
        may_change = policy.decides_for_node(principal, participation, self._site_of(participation))
        return self._views.site_node(participation, may_change=may_change)
