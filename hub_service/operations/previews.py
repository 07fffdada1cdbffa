"""What an app would become, before there is a project; and what the sites have that it needs."""

from __future__ import annotations

import asyncio
import base64
import itertools

from federator.contract import AppPreview

from hub_service.changes import project_topic
from hub_service.domain import policy
from hub_service.domain.errors import Invalid
from hub_service.domain.packages import Needs, SitePackages
from hub_service.domain.policy import Action
from hub_service.domain.projects import Principal
from hub_service.operations.base import Operations
from hub_service.operations.builder import BuiltApp


class PreviewOperations(Operations):
    """Build without storing; take the sites' reports of their packages."""

    async def build_app(self, principal: Principal, project_id: str, filename: str, content: bytes) -> BuiltApp:
        """What a notebook or an app becomes, for `preview_app` or `add_app`.

        Args:
            project_id: a project that the person is in; "" for none.

        Raises Invalid or TooLarge for content that cannot be used, NotFound for a project that is not theirs.
        """
        policy.require_scope(principal, policy.PROJECT_SCOPE)
        if project_id:
            self._enter(principal, Action.SEE, project_id)
        self._quotas.require_upload(len(content))
        reports = self._store.all_site_packages()
        at_sites = frozenset(itertools.chain.from_iterable(one.modules for one in reports))
        # A large app takes seconds, which nobody else has to wait. One at a time: Python's `warnings`, which the
        # builder turns off, are those of all threads.
        async with self._building:
            return await asyncio.to_thread(self._builder.build, filename, content, at_sites)

    def preview_app(self, principal: Principal, project_id: str, built: BuiltApp) -> AppPreview:
        """Describe what `build_app` has made, and keep nothing.

        Args:
            project_id: a project that the person is in, to hear of its sites' packages too; "" for none.

        Raises NotFound for a project that is not theirs, Forbidden for somebody without a site.
        """
        sites = [self.my_site(principal)]
        if project_id:
            project, _, _ = self._enter(principal, Action.SEE, project_id)
            taking_part = {one.site for one in self._store.participations(project.id) if one.active}
            sites += [self._sites[slug] for slug in sorted(taking_part - {sites[0].slug}) if slug in self._sites]
        needs = Needs(built.dependencies, built.imports)
        return AppPreview(
            fab_hash=built.fab_hash,
            title=built.title,
            source=built.source,
            size=len(built.fab),
            cells=built.cells,
            private_cells=built.private_cells,
            files=built.files,
            imports=built.imports,
            dependencies=built.dependencies,
            config=dict(built.config),
            outputs=built.outputs,
            warnings=built.warnings,
            packages=tuple(self._views.package_check(site.slug, needs) for site in sites),
            fab=base64.b64encode(built.fab).decode("ascii"),
        )

    def report_packages(self, principal: Principal, distributions: dict[str, str], modules: tuple[str, ...]) -> None:
        """What a notebook server of the person's own site has; it takes the place of the site's last report.

        Raises Forbidden for somebody without a site, Invalid for names that no package has.
        """
        policy.require_scope(principal, policy.PROJECT_SCOPE)
        site = self.my_site(principal)
        for name in itertools.chain(distributions, distributions.values(), modules):
            if not name.isprintable():
                raise Invalid("A package has no such name.", "Report what importlib.metadata says.")
        packages = SitePackages(site.slug, distributions, modules, principal.name, self._clock())
        known = self._store.site_packages(site.slug)
        self._store.put_site_packages(packages)
        if known is None or (known.distributions, known.modules) != (distributions, modules):
            waiting = {one.project_id for one in self._store.active_participations_at(site.slug)}
            self._changes.announce(*(project_topic(project_id) for project_id in waiting))
