"""The page of the sites, for the Hub's administrators: who holds what, is a site in order, add another.

It runs in the Hub, and no site can hold the Hub up: an engine is asked through `engine_of` and for a short time only,
checks go on in the background, and files are read and written in threads.
"""

from __future__ import annotations

import asyncio
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from docker.errors import APIError
from jupyterhub.handlers.base import BaseHandler
from jupyterhub.scopes import needs_scope
from markupsafe import Markup, escape
from tornado.web import HTTPError, StaticFileHandler, authenticated

from spawner.admin import adding, catalogue, form, report
from spawner.admin.adding import AddingRefused, NotWritable
from spawner.admin.catalogue import Entry
from spawner.admin.checking import Checking
from spawner.admin.steps import add_command
from spawner.deployment import Deployment
from spawner.engine_refusals import refusal_of
from spawner.engines import EngineUnavailable, engine_of
from spawner.gpu_leases import Lease, leases_of
from spawner.labels import SERVER_LABEL, SITE_LABEL, USER_LABEL
from spawner.sites import ContainerSite, DockerSite, SwarmSite
from spawner.sso import ADMIN_GROUP
from spawner.tables import Problem

PATH = "/federation-sites"
"""Below the Hub's own prefix."""

ENGINE_TIME_S = 3.0
"""How long a page waits for an engine to list its servers."""

POLL_TIME_S = 20.0
"""How long a request for a check's next results is held."""


KINDS = {
    "docker": "a Docker engine of its own",
    "swarm": "a node of a Docker Swarm",
    "supernode": "a SuperNode, no notebook servers",
    "embedded": "embedded in the Hub; isolates nothing",
}
"""How the page says a site's kind."""

_CODE = re.compile("`([^`]*)`")


@dataclass(frozen=True, slots=True)
class Context:
    """What the handlers share.

    Attributes:
        running: what the Hub was started with.
        config: the deployment file, where it may say something else by now.
    """

    running: Deployment
    config: Path
    checking: Checking


@dataclass(frozen=True, slots=True)
class Server:
    """A notebook server that runs at a site. `name` is empty for the person's default one."""

    user: str
    name: str


def handlers(running: Deployment, config: Path) -> list[tuple[Any, ...]]:
    """For `c.JupyterHub.extra_handlers`.

    Args:
        running: what the Hub was started with.
        config: the deployment file.
    """
    checking = Checking(now=lambda: datetime.now(UTC), new_id=lambda: secrets.token_hex(6))
    context = {"context": Context(running, config, checking)}
    return [
        (PATH, SitesHandler, context),
        (rf"{PATH}/static/(.*)", StaticFileHandler, {"path": Path(__file__).parent / "static"}),
        (rf"{PATH}/([a-z0-9-]+)/servers", ServersHandler, context),
        (rf"{PATH}/([a-z0-9-]+)/report", ReportHandler, context),
    ]


class _AdministratorsHandler(BaseHandler):
    """For who may see the Hub's admin page and is an administrator: adding a site decides what is mounted where."""

    def initialize(self, context: Context) -> None:
        self.context = context

    async def prepare(self) -> None:
        await super().prepare()
        user = self.current_user
        if user is not None and ADMIN_GROUP not in [group.name for group in getattr(user, "groups", [])]:
            raise HTTPError(403, "The sites are looked after by the Hub's administrators.")

    async def listing(self) -> catalogue.Listing:
        return await asyncio.to_thread(catalogue.listing, self.context.running, self.context.config)

    async def entry(self, slug: str) -> Entry:
        """Raises HTTPError, where there is no such site."""
        for entry in (await self.listing()).entries:
            if entry.slug == slug:
                return entry
        raise HTTPError(404, f"There is no site {slug}.")

    async def show(self, template: str, **names: Any) -> None:
        self.set_header("Cache-Control", "no-store")
        tools = {"summary": report.summary, "has_failed": report.has_failed, "marked": marked}
        self.finish(await self.render_template(template, **tools, **names))


def marked(text: str) -> Markup:
    """Plain text as HTML, with what stands in backticks as code. For the templates."""
    return Markup(_CODE.sub(r"<code>\1</code>", str(escape(text))))  # noqa: S704 - escaped before


class SitesHandler(_AdministratorsHandler):
    """The page, and the form on it."""

    @authenticated
    @needs_scope("admin-ui")
    async def get(self) -> None:
        await self._page(form.EMPTY, added=self.get_query_argument("added", ""))

    @authenticated
    @needs_scope("admin-ui")
    async def post(self) -> None:
        """Add the site that the form describes; show the form again, with what is to correct, if it cannot be."""
        values = {field.name: self.get_body_argument(field.name, "", strip=True) for field in form.FIELDS}
        try:
            new = form.new_site(values)
        except ValueError as error:
            await self._refuse(values, [Problem("datasets", str(error))])
            return
        try:
            await asyncio.to_thread(adding.add, self.context.config, new, now=datetime.now(UTC))
        except NotWritable as refused:
            await self._refuse(values, refused.problems, add_command(new))
            return
        except AddingRefused as refused:
            await self._refuse(values, refused.problems)
            return
        self.log.info("%s added the site %s", self.current_user.name, new.slug)
        self.redirect(f"{self.hub.base_url.rstrip('/')}{PATH}?added={new.slug}#site-{new.slug}")

    async def _refuse(self, values: dict[str, str], problems: Sequence[Problem], command: str = "") -> None:
        self.set_status(422)
        await self._page(form.refused(values, problems, command), added="")

    async def _page(self, filled: form.Filled, added: str) -> None:
        listing = await self.listing()
        await self.show(
            "sites.html",
            path=PATH.removeprefix("/"),
            listing=listing,
            kinds=KINDS,
            runs={entry.slug: self.context.checking.last(entry.slug) for entry in listing.entries},
            fields=form.FIELDS,
            filled=filled,
            added=added,
        )


class ServersHandler(_AdministratorsHandler):
    """What runs at a site now, as its engine says: a part of the page, fetched apart so that no engine delays it."""

    @authenticated
    @needs_scope("admin-ui")
    async def get(self, slug: str) -> None:
        site = (await self.entry(slug)).site
        servers: Sequence[Server] = ()
        leases: Sequence[Lease] = ()
        trouble = ""
        if isinstance(site, ContainerSite):
            try:
                async with asyncio.timeout(ENGINE_TIME_S):
                    servers = await servers_at(slug, site)
                    leases = await leases_of(engine_of(site)).held()
            except TimeoutError:
                trouble = f"it did not answer within {ENGINE_TIME_S:.0f} s"
            except EngineUnavailable as unavailable:
                trouble = str(unavailable)
            except APIError as error:
                trouble = refusal_of(error).text
        gpus = site.gpus if isinstance(site, DockerSite) else ()
        await self.show("sites_servers.html", servers=servers, gpus=gpus, leases=leases, trouble=trouble)


async def servers_at(slug: str, site: ContainerSite) -> list[Server]:
    """The servers that run at a site. Raises EngineUnavailable and APIError."""
    ours = {"label": f"{SITE_LABEL}={slug}"}
    if isinstance(site, SwarmSite):
        labels = [service["Spec"]["Labels"] for service in await engine_of(site).call("services", filters=ours)]
    else:
        labels = [container["Labels"] for container in await engine_of(site).call("containers", filters=ours)]
    return sorted(
        (Server(label.get(USER_LABEL, "somebody"), label.get(SERVER_LABEL, "")) for label in labels),
        key=lambda server: (server.user, server.name),
    )


class ReportHandler(_AdministratorsHandler):
    """A site's last check, as a part of the page."""

    @authenticated
    @needs_scope("admin-ui")
    async def get(self, slug: str) -> None:
        """The check's results. With `?seen=<number>`, once there are more, or the check has ended."""
        run = self.context.checking.last((await self.entry(slug)).slug)
        if run is not None and (seen := self.get_query_argument("seen", "")).isdigit():
            await run.beyond(int(seen), POLL_TIME_S)
        await self.show("sites_report.html", run=run)

    @authenticated
    @needs_scope("admin-ui")
    async def post(self, slug: str) -> None:
        """Start a check in the background."""
        entry = await self.entry(slug)
        run = self.context.checking.start(slug, entry.site, self.context.running.hub)
        self.set_status(202)
        await self.show("sites_report.html", run=run)
