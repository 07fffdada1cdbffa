"""Servers that run on at a site when the Hub does not know them any more.

JupyterHub forgets a server whose stop failed: nothing would end it then but its person's next start.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from dataclasses import dataclass, field
from typing import Any

from docker.errors import APIError, NotFound
from jupyterhub import orm

from spawner.engines import Engine, EngineUnavailable
from spawner.labels import HUB_LABEL, SERVER_LABEL, SITE_LABEL, USER_LABEL

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Forgotten:
    """What this Hub made at one site and does not know any more.

    Args:
        hub: its origin.
        site: its slug.
        object_type: of a server: "container" or "service".
        db: the Hub's database session.
    """

    engine: Engine
    hub: str
    site: str
    object_type: str
    db: Any = field(compare=False)

    async def remove(self) -> None:
        """Remove all of it. What the engine does not remove now is left for the next time.

        Raises:
            EngineUnavailable: no answer.
            APIError: the engine refused to list them.
        """
        made = await self._made()
        known_ids, known_servers = self._known()  # after the engine: the Hub knows a server before it is made
        for identity, labels in made:
            if identity in known_ids or (labels.get(USER_LABEL), labels.get(SERVER_LABEL)) in known_servers:
                continue
            logger.warning("Site %s: %s of %s is removed", self.site, self.object_type, labels.get(USER_LABEL))
            try:
                await self._remove(identity)
            except APIError as error:
                logger.warning("Site %s: it stays: %s", self.site, error)

    def remove_once_answered(self, ask_again_s: float) -> None:
        """Begin to ask until the engine answers, and return."""
        if self not in _asking:
            _asking[self] = asyncio.create_task(self._until_answered(ask_again_s))
            _asking[self].add_done_callback(lambda _: _asking.pop(self))

    async def _until_answered(self, ask_again_s: float) -> None:
        while True:
            await asyncio.sleep(ask_again_s)
            with contextlib.suppress(EngineUnavailable, APIError):
                await self.remove()
                return

    async def _made(self) -> list[tuple[str, dict[str, str]]]:
        ours = {"label": [f"{HUB_LABEL}={self.hub}", f"{SITE_LABEL}={self.site}"]}
        if self.object_type == "service":
            services = await self.engine.call("services", filters=ours)
            return [(service["ID"], service["Spec"]["Labels"]) for service in services]
        containers = await self.engine.call("containers", all=True, filters=ours)
        return [(container["Id"], container["Labels"]) for container in containers]

    def _known(self) -> tuple[set[str], set[tuple[str, str]]]:
        spawners = self.db.query(orm.Spawner).filter(orm.Spawner.server_id.is_not(None)).all()
        # By both: a server that is being started has no id yet, and a person can be given another name.
        ids = {(spawner.state or {}).get("object_id", "") for spawner in spawners}
        return ids, {(spawner.user.name, spawner.name) for spawner in spawners}

    async def _remove(self, identity: str) -> None:
        options = {} if self.object_type == "service" else {"v": True, "force": True}
        with contextlib.suppress(NotFound):
            await self.engine.call(f"remove_{self.object_type}", identity, **options)


_asking: dict[Forgotten, asyncio.Task[None]] = {}
