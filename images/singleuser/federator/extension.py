"""The Jupyter server extension of a site's notebook servers.

Enabled by `etc/jupyter/jupyter_server_config.d/federator.json`. It gives the server a kernel manager that knows client
kernels, and runs `federator.supervisor` in it. In a server that no Hub with the federation service has started it does
nothing.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jupyter_core.paths import jupyter_data_dir
from jupyter_server.extension.application import ExtensionApp

from federator import service_client as api
from federator.kernels import FederatorKernelManager
from federator.lab_status import STATUS_PATH, LabStatus, StatusHandler, lab_status
from federator.packages import report_packages
from federator.supervisor import Supervisor
from federator.tiles import Tiles

# jupyter_server's `last_activity` counts every setting with this ending; the Hub culls by it.
ACTIVITY_SETTING = "federator_last_activity"


class FederatorExtension(ExtensionApp):
    """Runs the client kernels that the federation service assigns to this server."""

    name = "federator"
    _access: api.Access | None = None
    _service: api.AsyncServiceClient | None = None
    _supervisor: Supervisor | None = None
    _task: asyncio.Task[None] | None = None
    _reporting: asyncio.Task[None] | None = None

    def _link_jupyter_server_extension(self, serverapp: Any) -> None:
        """Jupyter's hook, called before the server makes its kernel manager."""
        super()._link_jupyter_server_extension(serverapp)
        try:
            self._access = api.Access.from_env()
        except api.NotSetUp as missing:
            self.log.info("%s", missing.message)
            return
        # Configuration files in jupyter_server_config.d can enable extensions, and nothing else: so it is set here,
        # unless the site's own configuration chose a kernel manager.
        if "kernel_manager_class" not in serverapp.config.ServerApp:
            serverapp.kernel_manager_class = FederatorKernelManager

    def initialize_handlers(self) -> None:
        """Jupyter's hook: what this extension answers."""
        self.handlers.append((STATUS_PATH, StatusHandler, {"status": self._lab_status}))

    def _lab_status(self) -> Awaitable[LabStatus] | None:
        if self._service is None or self._supervisor is None:
            return None
        return lab_status(self._service, self._supervisor.assignments)

    async def _start_jupyter_server_extension(self, serverapp: Any) -> None:
        """Jupyter's hook, called once the server's event loop runs."""
        if self._access is None:
            return
        kernels = serverapp.kernel_manager
        if not isinstance(kernels, FederatorKernelManager):
            self.log.error(
                "Flower clients cannot run in this server: ServerApp.kernel_manager_class is %s."
                " Remove that setting, or set it to federator.kernels.FederatorKernelManager.",
                type(kernels).__name__,
            )
            return
        settings = serverapp.web_app.settings

        def note_activity() -> None:
            settings[ACTIVITY_SETTING] = datetime.now(UTC)

        self._service = api.AsyncServiceClient(self._access)
        self._supervisor = kernels.supervisor = Supervisor(
            service=self._service,
            kernels=kernels,
            tiles=Tiles(Path(jupyter_data_dir()) / "kernels"),
            log=self.log,
            spread=random.random,
            note_activity=note_activity,
        )
        self._task = asyncio.create_task(self._supervisor.run())
        self._task.add_done_callback(self._log_end)
        self._reporting = asyncio.create_task(report_packages(self._service, self.log))

    async def stop_extension(self) -> None:
        """Jupyter's hook, called before the server shuts its kernels down."""
        tasks = [task for task in (self._task, self._reporting) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)  # whichever failed, the other one and the connection end
        if self._service is not None:
            await self._service.close()

    def _log_end(self, task: asyncio.Task[None]) -> None:
        error = None if task.cancelled() else task.exception()
        if error is not None:
            self.log.error("Flower clients are no longer looked after; restart the server.", exc_info=error)


def _jupyter_server_extension_points() -> list[dict[str, Any]]:
    return [{"module": "federator.extension", "app": FederatorExtension}]
