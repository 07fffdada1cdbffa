"""Starts people's servers at their sites. What every kind of site shares, and the embedded kind.

SiteSpawner                     who may start a server, where, and with what; a mixin over any of the Hub's spawners
├── EmbeddedSiteSpawner         processes
└── ContainerSiteSpawner        see `container_site_spawner.py`
    ├── DockerSiteSpawner       containers on the site's own engine
    └── SwarmSiteSpawner        services on a Swarm's nodes with the site's label
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import psutil
from federator.ports import free_port
from jupyterhub.slugs import safe_slug
from jupyterhub.spawner import SimpleLocalProcessSpawner, SpawnException
from tornado.web import HTTPError
from traitlets import Instance, Unicode, default
from traitlets.config import LoggingConfigurable

from spawner.deployment import Deployment
from spawner.injection import SERVER_TOKEN_SCOPES, environment, server_arguments
from spawner.placement import Placement, PlacementRefused, place
from spawner.sites import EmbeddedSite

INHERITED = ("PATH", "LANG", "LC_ALL", "TZ", "TMPDIR", "LD_LIBRARY_PATH", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE")
"""All that an embedded site's server gets of the Hub's own environment."""

PORT_CHECK_INTERVAL = 0.1  # seconds
CONNECT_TIMEOUT_S = 2.0


class StartRefused(SpawnException):
    """A server that is not started, or did not come up. The text is for its person: what happened, and what to do.

    Args:
        reason: one word for the Hub's metrics.
        status_code: of the Hub's answer.
    """

    def __init__(self, message: str, *, reason: str, status_code: int) -> None:
        super().__init__(message, reason=reason, status_code=status_code)
        self.jupyterhub_message = message  # the pages would put the exception's name before it


if TYPE_CHECKING:

    class _Beside(LoggingConfigurable):
        """What the spawner beside the mixin has."""

        user: Any
        name: str
        ready: bool
        start_timeout: int
        _log_name: str

        async def poll(self) -> Any: ...
        async def poll_and_notify(self) -> Any: ...
        def load_state(self, state: dict[str, Any]) -> None: ...
        def get_state(self) -> dict[str, Any]: ...
        def clear_state(self) -> None: ...
else:
    _Beside = LoggingConfigurable


class SiteSpawner(_Beside):
    """A server at the site of its person. A mixin over a spawner that runs servers: `class S(SiteSpawner, Other)`."""

    ends_with_hub: ClassVar[bool] = False
    """Whether servers are stopped when the Hub is; else they run on, and the next Hub finds them."""

    deployment = Instance(Deployment, help="The checked deployment file.").tag(config=True)
    site_slug = Unicode(help="The site that the server runs at; kept in the Hub's database with its state.")

    @default("server_token_scopes")
    def _server_token_scopes_default(self) -> list[str]:
        return list(SERVER_TOKEN_SCOPES)

    @default("default_url")
    def _default_url_default(self) -> str:
        return "/lab"

    def placement(self) -> Placement:
        """Where this person's server runs. Their groups decide, each time anew.

        Raises:
            StartRefused: they have no site, or one without servers; the page shows why.
        """
        groups = [group.name for group in self.user.groups]
        try:
            return place(groups, self.deployment.sites, self.deployment.hub.admin_contact)
        except PlacementRefused as refused:
            raise StartRefused(str(refused), reason="no-site", status_code=403) from None

    def belongs(self) -> bool:
        """Whether the server runs where its person belongs. They may have moved to another site, or have left."""
        try:
            return self.site_slug in ("", self.placement().slug)
        except StartRefused:
            return False

    async def poll_and_notify(self) -> Any:
        """End the server where its person does not belong to its site any more; else look whether it runs.

        Called by the Hub in intervals, and by `SiteCallbackHandler` at each login.
        """
        if not self.ready or self.belongs():
            return await super().poll_and_notify()
        self.log.warning(
            "%s does not belong to site %s any more: the server is stopped", self._log_name, self.site_slug
        )
        try:
            await self.user.stop(self.name)
        except HTTPError as error:  # the site is away, and sees to it later
            self.log.warning("%s: %s", self._log_name, error)
        await self.user.settings["proxy"].delete_user(self.user, self.name)
        return 0

    def load_state(self, state: dict[str, Any]) -> None:
        super().load_state(state)
        self.site_slug = state.get("site", "")

    def get_state(self) -> dict[str, Any]:
        return {**super().get_state(), "site": self.site_slug}

    def clear_state(self) -> None:
        super().clear_state()
        self.site_slug = ""

    async def listens(self, host: str, port: int, patience_s: float) -> None:
        """Return once the server listens.

        The Hub looks for itself after this, but at growing intervals: it would see a server that needs four seconds
        only after seven, and one that ended only after its `http_timeout`.

        Args:
            patience_s: how long to wait, in seconds.

        Raises:
            StartRefused: the server ended instead, or cannot be reached.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(patience_s):
                while (status := await self.poll()) is None:
                    if await connects(host, port):
                        return
                    await asyncio.sleep(PORT_CHECK_INTERVAL)
                raise self._ended(status)
        raise self._unreachable(host, port)

    def _ended(self, status: object) -> StartRefused:
        ask = f"Try again; if that repeats, ask {self.deployment.hub.admin_contact}."
        return StartRefused(
            f"Your server ended while it was starting, with status {status}. {ask}", reason="ended", status_code=500
        )

    def _unreachable(self, host: str, port: int) -> StartRefused:
        return StartRefused(
            f"Your server was started, but the Hub does not reach it at {host}:{port}. "
            f"Ask {self.deployment.hub.admin_contact}: a firewall between the Hub and the site is the usual cause.",
            reason="unreachable",
            status_code=504,
        )


async def connects(host: str, port: int) -> bool:
    """Whether somebody listens there, for the spawners."""
    with contextlib.suppress(OSError, TimeoutError):
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            _, writer = await asyncio.open_connection(host, port)
            writer.close()
            return True
    return False


class EmbeddedSiteSpawner(SiteSpawner, SimpleLocalProcessSpawner):
    """A server as a process of the Hub's machine and account, in the site's working folder.

    It isolates nothing: whoever can run code in one server can read the other sites' files and datasets. For
    demonstrations and development.
    """

    ends_with_hub = True

    _born: float | None = None
    """When the process was started. Its number alone may be another process's, after the machine was started anew."""

    @default("cmd")
    def _cmd_default(self) -> list[str]:
        return [sys.executable, "-m", "jupyterhub.singleuser"]

    @default("args")
    def _args_default(self) -> list[str]:
        return server_arguments(runs_as_root=os.geteuid() == 0)

    @default("env_keep")
    def _env_keep_default(self) -> list[str]:
        return list(INHERITED)

    async def start(self) -> Any:
        """Place the person, make their home folder and start their server.

        Raises:
            StartRefused: the person has no site, or the server ended; the page shows why.
        """
        self.site_slug = self.placement().slug
        home = home_folder(self._embedded_site().work_dir, self.user.name)
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.home_dir = str(home)
        self.notebook_dir = str(home)
        self.port = free_port()
        host, port = await super().start()
        self._born = psutil.Process(self.pid).create_time()
        # A Hub that is killed from here on leaves a process, which the next one must know.
        self.orm_spawner.state = self.get_state()
        self.user.db.commit()
        await self.listens(host, port, self.start_timeout)
        return host, port

    async def poll(self) -> Any:
        """None while the server runs; else its status, or 0 where an earlier Hub had started it."""
        if self.proc is None and self.pid and not self._lives():
            self.clear_state()
            return 0
        return await super().poll()

    def _lives(self) -> bool:
        try:
            process = psutil.Process(self.pid)
            return bool(process.create_time() == self._born and process.status() != psutil.STATUS_ZOMBIE)
        except psutil.NoSuchProcess:
            return False

    def load_state(self, state: dict[str, Any]) -> None:
        super().load_state(state)
        self._born = state.get("born")

    def get_state(self) -> dict[str, Any]:
        return {**super().get_state(), **({"born": self._born} if self.pid else {})}

    def _embedded_site(self) -> EmbeddedSite:
        site = self.placement().site
        assert isinstance(site, EmbeddedSite)  # noqa: S101 - chosen by the sites' kind, which is one for all
        return site

    def get_env(self) -> dict[str, str]:
        """The server's whole environment; called by `start`."""
        datasets = {name: str(dataset.path) for name, dataset in self._embedded_site().datasets.items()}
        # One machine for all sites: numerical libraries that each take every core stand in each other's way.
        threads = max(1, (os.cpu_count() or 1) // len(self.deployment.sites))
        return {
            **super().get_env(),
            **environment(self.deployment.hub.origin, self.placement().slug, datasets),
            "OMP_NUM_THREADS": str(threads),
        }


def home_folder(work_dir: Path, username: str) -> Path:
    """A user's folder at an embedded site. Two names never share one, and no name leads out of `work_dir`."""
    return Path(work_dir, safe_slug(username))
