"""Short-lived containers at a site, in which `checks` looks at it as a notebook server would see it.

They may do what servers may, with less memory, carry a label of their own, and are removed however a check ends. What
a check left that was killed is removed by the next one.
"""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import datetime, timedelta
from importlib import resources
from typing import Any

from docker.errors import APIError, NotFound
from docker.types import DeviceRequest, Mount

from spawner.admin import inside
from spawner.engines import Engine, EngineUnavailable
from spawner.site.probes import AS_A_SERVER, CHECK_LABEL
from spawner.sites import DockerSite

ABANDONED_AFTER = timedelta(minutes=10)
"""No check takes that long: an older container is what a killed one left."""

WEB_PORT = 8888
_LIMITS = {setting: value for setting, value in AS_A_SERVER.items() if setting != "user"}
_OUT_OF_TIME = 128 + signal.SIGALRM  # as the container's init tells it


class ScriptFailed(Exception):
    """A script of `inside` ended otherwise than by itself. The text is the last line it wrote."""


class CheckContainers:
    """Containers for one check of one site.

    Args:
        new_id: draws a part of a container's name, so that two checks at once do not meet.
    """

    def __init__(self, engine: Engine, slug: str, site: DockerSite, new_id: Callable[[], str]) -> None:
        self._engine = engine
        self._slug = slug
        self._site = site
        self._new_id = new_id

    async def run(self, script: str, *arguments: str, mounts: Sequence[Mount] = (), gpu: str | None = None) -> Any:
        """Run a script of `inside` without a network, and return what it printed.

        Raises:
            ScriptFailed: it did not end well.
            EngineUnavailable, APIError: as from the engine.
        """
        command = ["python3", "-c", source_of(script), *arguments]
        async with self.container(command, network_mode="none", mounts=list(mounts), gpu=gpu) as container:
            await self._engine.call("start", container)
            status = (await self._engine.call("wait", container))["StatusCode"]
            if status == _OUT_OF_TIME:
                raise ScriptFailed("it took too long")
            if status != 0:
                raise ScriptFailed(_last_line(await self._engine.call("logs", container)) or f"it ended with {status}")
            return _printed(await self._engine.call("logs", container, stderr=False))

    @asynccontextmanager
    async def web_server(self, word: str, host_ip: str) -> AsyncIterator[str]:
        """A web server that says `word`, on the servers' network and with its port published. Yields its id.

        Raises EngineUnavailable and APIError.
        """
        command = ["python3", "-c", source_of("web_server"), str(WEB_PORT), word]
        published = {WEB_PORT: (host_ip,)}
        async with self.container(command, network_mode=self._site.network, port_bindings=published) as container:
            await self._engine.call("start", container)
            yield container

    @asynccontextmanager
    async def container(self, command: Sequence[str], *, gpu: str | None = None, **host: Any) -> AsyncIterator[str]:
        """Make a container as a server's, yield its id, and remove it. Raises EngineUnavailable and APIError."""
        await self._engine.connect()
        requests = [DeviceRequest(device_ids=[gpu], capabilities=[["gpu"]])] if gpu else []
        making = asyncio.create_task(
            self._engine.call(
                "create_container",
                self._site.image,
                entrypoint=list(command),
                name=f"federation-check-{self._slug}-{self._new_id()}",
                user=AS_A_SERVER["user"],
                environment={} if gpu else {"NVIDIA_VISIBLE_DEVICES": "void"},
                labels={CHECK_LABEL: self._slug},
                ports=list(host.get("port_bindings", ())),
                host_config=self._engine.client.create_host_config(**_LIMITS, device_requests=requests, **host),
            )
        )
        container = await self._whatever_happens(making)
        try:
            yield container
        finally:
            await self._discard(container)

    async def remove_abandoned(self, now: datetime) -> None:
        """Remove what a killed check left, the probes' network included. Raises EngineUnavailable and APIError."""
        before, ours = now - ABANDONED_AFTER, {"label": CHECK_LABEL}
        for container in await self._engine.call("containers", all=True, filters=ours):
            if container["Created"] < before.timestamp():
                await self._discard(container["Id"])
        for network in await self._engine.call("networks", filters=ours):
            if datetime.fromisoformat(network["Created"]) < before:
                await self._engine.call("remove_network", network["Id"])

    async def _whatever_happens(self, making: asyncio.Task[dict[str, Any]]) -> str:
        """The id of the container. Whoever is cancelled meanwhile waits for it, to remove it."""
        try:
            return str((await asyncio.shield(making))["Id"])
        except asyncio.CancelledError:
            with suppress(EngineUnavailable, APIError):
                await self._discard((await making)["Id"])
            raise

    async def _discard(self, container: str) -> None:
        with suppress(NotFound, EngineUnavailable):  # an engine that went away is left to the next check
            await self._engine.call("remove_container", container, force=True, v=True)


def source_of(script: str) -> str:
    """The text of a script of `inside`."""
    return resources.files(inside).joinpath(f"{script}.py").read_text(encoding="utf-8")


def _printed(log: bytes) -> Any:
    try:
        return json.loads(log)
    except ValueError:
        raise ScriptFailed(f"it printed something else: {_last_line(log)}") from None


def _last_line(log: bytes) -> str:
    lines = log.decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else ""
