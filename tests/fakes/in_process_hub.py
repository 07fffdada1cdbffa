"""A real JupyterHub in the test's process, from our own `jupyterhub_config.py`, without Node.js."""

from __future__ import annotations

from pathlib import Path

from jupyterhub.app import JupyterHub
from traitlets import List

from tests.fakes.plain_proxy import PlainProxy

CONFIG = Path(__file__).parents[2] / "jupyterhub_config.py"


class InProcessHub(JupyterHub):
    """The event loop and the signals stay pytest's; the managed service is whatever the test names."""

    service_command = List()

    def load_config_file(self, *args: object, **kwargs: object) -> None:
        super().load_config_file(*args, **kwargs)
        self.proxy_class = PlainProxy
        for service in (one for one in self.services if "url" in one):
            service["command"] = list(self.service_command)

    def init_signal(self) -> None:
        """Signals are pytest's."""

    async def shutdown_cancel_tasks(self, sig: object = None) -> None:
        """The loop and its tasks are pytest's; `stop_hub` has cleaned up."""


async def start_hub(service_command: list[str]) -> InProcessHub:
    """Start a Hub; the environment names the deployment file."""
    hub = InProcessHub.instance(config_file=str(CONFIG), service_command=service_command)
    await hub.initialize([])
    await hub.start()
    return hub


async def stop_hub(hub: InProcessHub, *, servers: bool = True) -> None:
    """Stop the Hub, its service and, where it is said, the servers it started."""
    InProcessHub.clear_instance()
    hub.cleanup_servers = servers
    await hub.cleanup()
    hub._atexit_ran = True
    hub.stop()
    hub.db.close()
