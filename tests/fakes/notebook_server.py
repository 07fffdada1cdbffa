"""A real jupyter_server in this process, with the extensions that this environment enables, less JupyterLab's."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from jupyter_client.provisioning import KernelProvisionerFactory
from jupyter_server.serverapp import ServerApp
from jupyter_server.services.kernels.connection.channels import ZMQChannelsWebsocketConnection

# Not needed here, and slow to load.
OTHER_EXTENSIONS = ("jupyterlab", "jupyter_lsp", "jupyter_server_terminals", "notebook_shim")
ALL_BUT_LAB = tuple(name for name in OTHER_EXTENSIONS if name != "jupyterlab")


class NotebookServer:
    """One running server and an HTTP client that is logged in to it."""

    def __init__(self, app: Any, http: httpx.AsyncClient, home: Path) -> None:
        self.app = app
        self.http = http
        self.home = home

    async def kernels(self) -> dict[str, str]:
        """Running kernels: id -> kernelspec name."""
        answer = await self.http.get("api/kernels")
        return {kernel["id"]: kernel["name"] for kernel in answer.json()}

    async def kernelspecs(self) -> dict[str, Any]:
        answer = await self.http.get("api/kernelspecs")
        return dict(answer.json()["kernelspecs"])

    async def until(self, holds: Any, timeout: float = 20.0) -> None:  # noqa: ASYNC109
        """Wait until the coroutine function `holds` returns something true."""
        async with asyncio.timeout(timeout):
            while not await holds():  # noqa: ASYNC110 - Jupyter's REST API has nothing to wait on
                await asyncio.sleep(0.05)


def use_home(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    """Give this process a person's home of its own, as a notebook server has."""
    monkeypatch.setenv("HOME", str(home))
    for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR"):
        folder = home / name.lower()
        folder.mkdir(parents=True, exist_ok=True)
        monkeypatch.setenv(name, str(folder))


@asynccontextmanager
async def notebook_server(
    home: Path, *arguments: str, without: Sequence[str] = OTHER_EXTENSIONS
) -> AsyncIterator[NotebookServer]:
    """Start on a free port, and stop with all kernels at the block's end. `use_home` goes first."""
    extensions = [f"--ServerApp.jpserver_extensions={name}=False" for name in without]
    app = ServerApp.instance()
    app.init_signal = lambda: None  # the process belongs to pytest
    app.initialize(
        argv=[
            "--ip=127.0.0.1",
            "--port=0",
            f"--ServerApp.root_dir={home}",
            "--IdentityProvider.token=notebook",
            "--allow-root",
            *extensions,
            *arguments,
        ]
    )
    await app._post_start()
    base = f"http://127.0.0.1:{app.port}/"
    async with httpx.AsyncClient(base_url=base, headers={"Authorization": "token notebook"}, timeout=30) as http:
        try:
            yield NotebookServer(app, http, home)
        finally:
            await app._cleanup()
            app.http_server.stop()
            await app.http_server.close_all_connections()
            ZMQChannelsWebsocketConnection._open_sessions.clear()
            ServerApp.clear_instance()
            KernelProvisionerFactory.clear_instance()
            shutil.rmtree(home, ignore_errors=True)
