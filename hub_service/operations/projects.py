"""Projects and their app versions."""

from __future__ import annotations

from dataclasses import replace

from federator import contract
from federator.contract import AppReview, MemberState, OutagePolicy, ProjectDetail, ProjectSummary

from hub_service import views
from hub_service.artifacts import fab_name
from hub_service.audit import Decision
from hub_service.changes import LEAVING_TOPIC, RUNS_TOPIC, project_topic, user_topic
from hub_service.deletion import Contents, contents_of, delete
from hub_service.domain import policy
from hub_service.domain.errors import Conflict, Invalid
from hub_service.domain.notices import project_deleted
from hub_service.domain.policy import Action, Role
from hub_service.domain.projects import AppVersion, Member, Principal, Project
from hub_service.operations.builder import BuiltApp
from hub_service.operations.previews import PreviewOperations

LONGEST_NAME = 80
LONGEST_DESCRIPTION = 4000
SHORTEST_GRACE_S, LONGEST_GRACE_S = 5.0, 7 * 24 * 3600.0


class ProjectOperations(PreviewOperations):
    """Create, show, delete, and add app versions."""

    def create_project(self, principal: Principal, name: str, description: str) -> ProjectSummary:
        """Create a project that the person owns. Raises Invalid for a bad name, Forbidden without a site."""
        self.my_site(principal)
        name, description = _checked_name(name), _checked_description(description)
        self._quotas.require_project(principal.name)
        now = self._clock()
        project = Project(self._new_id(), name, description, principal.name, now)
        owner = Member(project.id, principal.name, MemberState.JOINED, principal.name, now)
        with self._store.transaction():
            self._store.put_project(project)
            self._store.put_member(owner)
            self._audit.note(principal.name, Decision.PROJECT_CREATED, project.id)
        self._changes.announce(project_topic(project.id), user_topic(principal.name))
        return self._views.project_summary(project, owner, Role.OWNER)

    def create_project_of(self, principal: Principal, name: str, description: str, built: BuiltApp) -> ProjectSummary:
        """Create a project with its first app: both or neither, so that who tries again has no empty one besides.

        Raises what `create_project` and `add_app` do.
        """
        with self._store.transaction():
            created = self.create_project(principal, name, description)
            self.add_app(principal, created.id, built)
        return created

    def project(self, principal: Principal, project_id: str) -> ProjectDetail:
        project, membership, role = self._enter(principal, Action.SEE, project_id)
        detail = self._views.project_detail(project, membership, role)
        return replace(detail, limits_near=self._quotas.near(project) if role is Role.OWNER else ())

    def set_outage(
        self, principal: Principal, project_id: str, on_outage: OutagePolicy, grace_s: float
    ) -> ProjectDetail:
        """Say what the project's runs do, from the next one on, when a site falls silent.

        Raises Invalid for a grace time that is none.
        """
        project, _, _ = self._enter(principal, Action.EDIT, project_id)
        changed = replace(project, on_outage=on_outage, grace_s=_checked_grace(grace_s))
        with self._store.transaction():
            self._store.put_project(changed)
            self._audit.note(
                principal.name, Decision.PROJECT_CHANGED, project.id, on_outage=on_outage, grace_s=f"{grace_s:g}"
            )
        self._changes.announce(project_topic(project.id))
        return self.project(principal, project_id)

    def contents(self, principal: Principal, project_id: str) -> Contents:
        """What `delete_project` would remove, with the sites' titles. Raises as it."""
        project = self._store.project(project_id)
        project = policy.require_deletion(principal, project, self._membership(project_id, principal.name))
        found = contents_of(self._store, project)
        return replace(found, sites=tuple(self._views.site_title(site) for site in found.sites))

    def delete_project(self, principal: Principal, project_id: str) -> None:
        """Delete a project for good: all that the service keeps of it but the lines of the audit log.

        Its nodes are refused and its members told at once; `hub_service.sweeper` removes its files.
        Raises Conflict while a run is in flight.
        """
        contents = self.contents(principal, project_id)
        project = contents.project
        participations = [one for one in self._store.participations(project.id) if one.active]
        delete(contents, self._store, self._artifacts, self._audit, principal.name)
        for one in participations:
            self._presence.forget(one.id)
        users = {project.owner, *contents.members}
        self._changes.announce(
            project_topic(project.id), RUNS_TOPIC, LEAVING_TOPIC, *(user_topic(user) for user in sorted(users))
        )
        self._tell(project_deleted(project, principal.name, sorted(users - {principal.name})))

    def add_app(self, principal: Principal, project_id: str, built: BuiltApp) -> contract.AppVersion:
        """Make what `build_app` has built the project's newest version.

        Raises Conflict for a version that is there already.
        """
        project, _, _ = self._enter(principal, Action.ADD_APP, project_id)
        self._quotas.require_storage(project, len(built.fab))
        versions = self._store.app_versions(project.id)
        for version in versions:
            if version.fab_hash == built.fab_hash:
                raise Conflict(
                    f"This is the same app as version {version.number}.", "Change the notebook before you add it again."
                )
        fab_hash = self._artifacts.put_fab(built.fab)
        version = AppVersion(
            project_id=project.id,
            number=len(versions) + 1,
            fab_hash=fab_hash,
            title=built.title,
            source=built.source,
            created_by=principal.name,
            created_at=self._clock(),
            size=len(built.fab),
            cells=built.cells,
            files=built.files,
            imports=built.imports,
            config_keys=tuple(built.config),
        )
        with self._store.transaction():
            self._store.put_app_version(version)
            self._audit.note(principal.name, Decision.APP_ADDED, project.id, fab=fab_hash, version=str(version.number))
        self._artifacts.written(fab_name(fab_hash))
        self._announce_members(project.id)
        for participation in self._store.participations(project.id):
            if participation.active:
                self._tell_of(participation, fab_hash)
        return views.app_version(version)

    def app_review(self, principal: Principal, project_id: str, fab_hash: str) -> AppReview:
        """Everything in an app version, for members and for stewards of the sites that were asked."""
        project = self._store.project(project_id)
        if project is None:
            raise policy.no_such_project()
        role = policy.role_in(project, self._membership(project_id, principal.name))
        asked = {one.site for one in self._store.participations(project_id) if one.active}
        if not policy.may_review(principal, role, asked):
            raise policy.no_such_project()
        return views.app_review(self._version(project_id, fab_hash))


def _checked_name(name: str) -> str:
    name = name.strip()
    if not 1 <= len(name) <= LONGEST_NAME or not name.isprintable():
        raise Invalid(
            "A project's name has 1 to 80 characters, all on one line.", "Choose a short name that says what it is for."
        )
    return name


def _checked_grace(grace_s: float) -> float:
    if not SHORTEST_GRACE_S <= grace_s <= LONGEST_GRACE_S:
        raise Invalid(
            f"The grace time is from {SHORTEST_GRACE_S:g} seconds to {LONGEST_GRACE_S / 3600:g} hours.",
            "Choose a time in that range; two minutes are usual.",
        )
    return grace_s


def _checked_description(description: str) -> str:
    description = description.strip()
    if len(description) > LONGEST_DESCRIPTION:
        raise Invalid(f"The description is longer than {LONGEST_DESCRIPTION} characters.", "Shorten it.")
    return description
