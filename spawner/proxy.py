"""JupyterHub's proxy, so that it comes back whole after it or the Hub was killed."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import psutil
from jupyterhub.proxy import ConfigurableHTTPProxy
from traitlets import default

UPLOADS_SCRIPT = Path(__file__).parent / "proxy_uploads.cjs"


def proxy_node_options() -> str:
    """NODE_OPTIONS for the proxy: those of the Hub's environment, and the script that lets uploads take their time.

    Used by `jupyterhub_config.py`. See https://nodejs.org/api/cli.html#node_optionsoptions for the quotes.
    """
    return " ".join(filter(None, (os.environ.get("NODE_OPTIONS"), f'--require="{UPLOADS_SCRIPT}"')))


class RestoredProxy(ConfigurableHTTPProxy):
    """JupyterHub's own proxy with what its restart leaves out. The Hub starts it, and looks after it."""

    @default("check_running_interval")
    def _check_running_interval_default(self) -> int:
        return 1  # a look at a child process costs nothing, and nobody reaches anything without it

    async def add_hub_route(self, hub: Any) -> None:
        """Add the way to the Hub, which everything goes that has no route of its own; so ours come first.

        Called for a proxy without routes, by `restore_routes` and `check_routes`. The former forgets the extra ones
        altogether, and Fleet traffic with them: `check_routes` would bring them back, minutes later.
        """
        await asyncio.gather(*(self.add_route(path, url, {"extra": True}) for path, url in self.extra_routes.items()))
        await self.add_all_services(self.app._service_map)
        await super().add_hub_route(hub)

    def _check_pid(self, pid: int) -> None:
        """Called by `_check_previous_process` for the process of the pid file, which it is about to end.

        Process ids are used again: after a reboot, and above all in a container, the file may name any other process,
        the Hub itself too. Raises ProcessLookupError where it is no proxy.
        """
        try:
            arguments = psutil.Process(pid).cmdline()
        except psutil.NoSuchProcess:
            raise ProcessLookupError(pid) from None
        if Path(self.command[-1]).name not in {Path(one).name for one in arguments}:
            raise ProcessLookupError(pid)
