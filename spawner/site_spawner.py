"""Starts people's servers at their sites. One class for each kind of site."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from pathlib import Path
from typing import Any

from jupyterhub.slugs import safe_slug
from jupyterhub.spawner import SimpleLocalProcessSpawner, SpawnException
from traitlets import Instance, default

from spawner.deployment import Deployment
from spawner.injection import SERVER_TOKEN_SCOPES, environment, server_arguments
from spawner.placement import Placement, PlacementRefused, place

INHERITED = ("PATH", "LANG", "LC_ALL", "TZ", "TMPDIR", "LD_LIBRARY_PATH", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE")
"""All that an embedded site's server gets of the Hub's own environment."""

PORT_CHECK_INTERVAL = 0.1  # seconds


class EmbeddedSiteSpawner(SimpleLocalProcessSpawner):
    """A server as a process of the Hub's machine and account, in the site's working folder.

    It isolates nothing: whoever can run code in one server can read the other sites' files and datasets. For
    demonstrations and development.
    """

    deployment = Instance(Deployment, help="The checked deployment file.").tag(config=True)

    @default("cmd")
    def _cmd_default(self) -> list[str]:
        return [sys.executable, "-m", "jupyterhub.singleuser"]

    @default("args")
    def _args_default(self) -> list[str]:
        return server_arguments(runs_as_root=os.geteuid() == 0)

    @default("env_keep")
    def _env_keep_default(self) -> list[str]:
        return list(INHERITED)

    @default("server_token_scopes")
    def _server_token_scopes_default(self) -> list[str]:
        return list(SERVER_TOKEN_SCOPES)

    @default("default_url")
    def _default_url_default(self) -> str:
        return "/lab"

    async def start(self) -> Any:
        """Place the person, make their home folder and start their server.

        Raises:
            SpawnException: the person has no site, or the server ended; the page shows why.
        """
        try:
            placement = self._placement()
        except PlacementRefused as refused:
            raise SpawnException(str(refused), reason="no-site", status_code=403) from None
        home = home_folder(placement.site.work_dir, self.user.name)
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.home_dir = str(home)
        self.notebook_dir = str(home)
        address = await super().start()
        await self._port_opens(*address)
        return address

    def get_env(self) -> dict[str, str]:
        """The server's whole environment; called by `start`."""
        placement = self._placement()
        datasets = {name: str(dataset.path) for name, dataset in placement.site.datasets.items()}
        # One machine for all sites: numerical libraries that each take every core stand in each other's way.
        threads = max(1, (os.cpu_count() or 1) // len(self.deployment.sites))
        return {
            **super().get_env(),
            **environment(self.deployment.hub, placement.slug, datasets),
            "OMP_NUM_THREADS": str(threads),
        }

    async def _port_opens(self, host: str, port: int) -> None:
        """Return once the server listens.

        The Hub looks for itself after this, but at growing intervals: it would see a server that needs four seconds
        only after seven, and one that ended only after its `http_timeout`. Its `start_timeout` ends this wait.

        Raises:
            SpawnException: the server ended instead.
        """
        while (status := await self.poll()) is None:
            with contextlib.suppress(OSError):
                _, writer = await asyncio.open_connection(host, port)
                writer.close()
                return
            await asyncio.sleep(PORT_CHECK_INTERVAL)
        ask = f"Try again; if that repeats, ask {self.deployment.hub.admin_contact}."
        raise SpawnException(
            f"Your server ended while it was starting, with status {status}. {ask}",
            reason="ended",
            status_code=500,
        )

    def _placement(self) -> Placement:
        groups = [group.name for group in self.user.groups]
        return place(groups, self.deployment.sites, self.deployment.hub.admin_contact)


def home_folder(work_dir: Path, username: str) -> Path:
    """A user's folder at an embedded site. Two names never share one, and no name leads out of `work_dir`."""
    return Path(work_dir, safe_slug(username))
