"""What all operations share: the parts they work on and the way into a project."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping

from federator.contract import Conditions, Site, SiteApprovals

from hub_service.aggregators.serverapp_log import LogPiece, no_log
from hub_service.artifacts import Artifacts
from hub_service.audit import AuditLog
from hub_service.changes import Changes, project_topic, user_topic
from hub_service.consent import Consent
from hub_service.domain import notices, policy
from hub_service.domain.clock import Clock, NewId
from hub_service.domain.directory import HubDirectory
from hub_service.domain.errors import Forbidden, NotFound
from hub_service.domain.notices import Tell, tell_nobody
from hub_service.domain.policy import Action, Role
from hub_service.domain.projects import AppVersion, Member, Participation, Principal, Project
from hub_service.domain.quotas import Quotas
from hub_service.domain.runs import Run
from hub_service.machinery import Machinery
from hub_service.operations.builder import AppBuilder
from hub_service.operations.quotas import QuotaBook
from hub_service.presence import Presence
from hub_service.results.signing import SigningKey
from hub_service.site_stages import SiteStages
from hub_service.store.base import Store
from hub_service.views import Views


class Operations:
    """Base of the operations. Each one enters by `_enter` or `_own`, which ask `domain.policy`."""

    def __init__(
        self,
        *,
        store: Store,
        artifacts: Artifacts,
        hub: HubDirectory,
        builder: AppBuilder,
        sites: Mapping[str, Site],
        changes: Changes,
        clock: Clock,
        new_id: NewId,
        admin_contact: str = "the Hub's administrator",
        serverapp_log: Callable[[str, str, int], Awaitable[LogPiece]] = no_log,
        tell: Tell = tell_nobody,
        signing_key: SigningKey | None = None,
        aggregator_image: str = "",
        machinery: Machinery | None = None,
        quotas: Quotas | None = None,
        client_lost: Callable[[str], None] = lambda site: None,
    ) -> None:
        self._store = store
        self._artifacts = artifacts
        self._hub = hub
        self._builder = builder
        self._building = asyncio.Lock()
        self._sites = sites
        self._changes = changes
        self._clock = clock
        self._new_id = new_id
        self._admin_contact = admin_contact
        self._tell = tell
        self._signing_key = signing_key or SigningKey.new()
        self._aggregator_image = aggregator_image
        self._machinery = machinery or Machinery()
        self._quotas = QuotaBook(store, quotas or Quotas(), admin_contact)
        self._client_lost = client_lost
        self._serverapp_log = serverapp_log
        self._audit = AuditLog(store, clock)
        self._consent = Consent(store, clock)
        self._presence = Presence(clock)
        self._stages = SiteStages(clock)
        self._views = Views(store, sites, self._consent, self._presence)

    def my_site(self, principal: Principal) -> Site:
        """The site of the person. Raises Forbidden, saying why, where they have none or more than one."""
        policy.require_scope(principal, policy.PROJECT_SCOPE)
        slugs = sorted(principal.sites)
        if len(slugs) != 1:
            has = "no site" if not slugs else f"more than one site ({', '.join(slugs)})"
            raise Forbidden(f"Your login belongs to {has}.", f"Ask {self._admin_contact} to place you at your site.")
        site = self._sites.get(slugs[0])
        if site is None:
            raise Forbidden(
                f"Your site “{slugs[0]}” takes no part in this federation.",
                f"Ask {self._admin_contact} to add it to the sites.",
            )
        return site

    def _enter(self, principal: Principal, action: Action, project_id: str) -> tuple[Project, Member, Role]:
        """The project, the person's membership and role in it, if they may do this. Raises as `policy.require`."""
        project = self._store.project(project_id)
        membership = self._membership(project_id, principal.name)
        role = policy.require(principal, action, project, membership)
        if project is None or membership is None:
            raise policy.no_such_project()
        return project, membership, role

    def _enter_run(self, principal: Principal, action: Action, run_id: str) -> tuple[Run, Project]:
        run = self._store.run(run_id)
        if run is None:
            policy.require_scope(principal, policy.PROJECT_SCOPE)
            raise policy.no_such_project()
        project, _, _ = self._enter(principal, action, run.project_id)
        return run, project

    def _site_of(self, participation: Participation | None) -> Site | None:
        """None for no participation, and for one at a site that is no longer in the catalogue."""
        return None if participation is None else self._sites.get(participation.site)

    def _membership(self, project_id: str, user: str) -> Member | None:
        return next((member for member in self._store.members(project_id) if member.user == user), None)

    def _version(self, project_id: str, fab_hash: str) -> AppVersion:
        for version in self._store.app_versions(project_id):
            if version.fab_hash == fab_hash:
                return version
        raise NotFound("The project has no such app version.", "See the project's list of versions.")

    def _site_approvals(self, participation: Participation) -> SiteApprovals:
        """What may run on the participation's dataset now, and up to which limits."""
        approved = self._consent.approved_hashes(participation)
        conditions = {one: self._consent.conditions(participation, one) for one in approved}
        limited = {one: limits for one, limits in conditions.items() if limits != Conditions()}
        return SiteApprovals(participation.id, approved, limited)

    def _tell_of(self, participation: Participation, fab_hash: str) -> None:
        """Tell of an app version at a participation, as it stands now: its site's stewards, or those who asked."""
        project = self._store.project(participation.project_id)
        if project is None:
            return
        version = self._version(project.id, fab_hash)
        request = self._views.approval_request(
            project, version, participation.site, participation.dataset, participation.user
        )
        title = self._views.site_title(participation.site)
        if request.state.asks:
            self._tell(notices.approval_asked(request, title))
        else:
            self._tell(notices.approval_decided(request, title))

    def _announce_members(self, project_id: str) -> None:
        """Tell the project's page and every participant's notebook server: what they must run may have changed."""
        users = {one.user for one in self._store.participations(project_id) if one.active}
        self._changes.announce(project_topic(project_id), *(user_topic(user) for user in users))
