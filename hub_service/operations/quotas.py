"""Whether there is room for what somebody asks for, by the deployment's quotas."""

from __future__ import annotations

from collections.abc import Mapping

from federator.contract import MemberState

from hub_service.domain.errors import TooLarge
from hub_service.domain.projects import Project
from hub_service.domain.quotas import Quotas, Use, stored_bytes
from hub_service.store.base import Store


class QuotaBook:
    """Counts what is there, in the store, each time that it is asked. Its `require_*` raise Conflict or TooLarge."""

    def __init__(self, store: Store, quotas: Quotas, admin_contact: str) -> None:
        self._store = store
        self.quotas = quotas
        self._admin_contact = admin_contact

    def require_upload(self, size: int) -> None:
        if size > self.quotas.upload_bytes:
            raise TooLarge(
                f"The file has {size / 2**20:.1f} MB; at most {self.quotas.upload_bytes / 2**20:g} MB are taken here.",
                "Clear the notebook's outputs and leave data and weights out, then send it again.",
            )

    def require_project(self, owner: str) -> None:
        use = Use(f"projects of {owner}", len(self._owned(owner)), self.quotas.projects_per_user)
        use.require_room(self._admin_contact, "Go on in one of the projects that you have, or delete one.")

    def require_member(self, project_id: str) -> None:
        self._members(project_id).require_room(
            self._admin_contact, "Withdraw an invitation, or remove a member who takes no part."
        )

    def require_storage(self, project: Project, size: int) -> None:
        """For an app of this size, or a run, whose models are not known yet."""
        instead = "Delete a project that is no longer needed."
        self._stored(project).require_room(self._admin_contact, instead, size)
        stored = sum(self._bytes_of(one.id) for one in self._store.projects())
        use = Use("stored by all projects", stored, self.quotas.all_bytes, in_bytes=True)
        use.require_room(self._admin_contact, instead, size)

    def require_run(self, project: Project, sites: Mapping[str, str]) -> None:
        """For a run of the project in which these sites take part: participation id -> site, or site/dataset."""
        self.require_storage(project, 1)
        runs = self._store.unfinished_runs()
        wait = "Wait until one of them has ended."
        Use("runs in flight", len(runs), self.quotas.runs).require_room(self._admin_contact, wait)
        self._runs_of(project.owner).require_room(self._admin_contact, wait)
        for site in sorted({one.partition("/")[0] for one in sites.values()}):
            at_site = sum(any(_is_at(site, one) for one in run.sites.values()) for run in runs)
            use = Use(f"runs in flight at {site}", at_site, self.quotas.runs_per_site)
            use.require_room(self._admin_contact, wait)

    def near(self, project: Project) -> tuple[str, ...]:
        """What the project has nearly used up, each as a sentence."""
        uses = (self._members(project.id), self._stored(project), self._runs_of(project.owner))
        return tuple(f"Nearly used up: {use.text}." for use in uses if use.near)

    def _members(self, project_id: str) -> Use:
        counted = (MemberState.JOINED, MemberState.INVITED)
        members = sum(one.state in counted for one in self._store.members(project_id))
        return Use("members and invitations of this project", members, self.quotas.members_per_project)

    def _stored(self, project: Project) -> Use:
        stored = self._bytes_of(project.id)
        return Use("stored by this project", stored, self.quotas.project_bytes, in_bytes=True)

    def _bytes_of(self, project_id: str) -> int:
        return stored_bytes(self._store.app_versions(project_id), self._store.runs(project_id))

    def _runs_of(self, owner: str) -> Use:
        owned = {project.id for project in self._owned(owner)}
        runs = sum(run.project_id in owned for run in self._store.unfinished_runs())
        return Use(f"runs in flight in projects of {owner}", runs, self.quotas.runs_per_user)

    def _owned(self, owner: str) -> list[Project]:
        found = (self._store.project(one.project_id) for one in self._store.memberships(owner))
        return [project for project in found if project is not None and project.owner == owner]


def _is_at(site: str, named: str) -> bool:
    return named.partition("/")[0] == site
