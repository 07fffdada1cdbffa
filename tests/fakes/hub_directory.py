"""Hubs that are asked about people."""

from __future__ import annotations

import asyncio

from federator.contract import SITE_GROUP_PREFIX

from hub_service.domain.directory import HubUser
from hub_service.domain.errors import Unavailable


class FakeHubDirectory:
    """Knows the people it is given: name -> groups."""

    def __init__(self, people: dict[str, set[str]]) -> None:
        self.people = people

    async def user(self, name: str) -> HubUser | None:
        groups = self.people.get(name)
        return None if groups is None else HubUser(name, frozenset(groups))

    async def people_of(self, site: str) -> frozenset[str]:
        return frozenset(name for name, groups in self.people.items() if f"{SITE_GROUP_PREFIX}{site}" in groups)


class SlowHubDirectory(FakeHubDirectory):
    """Answers when the test says so."""

    def __init__(self, people: dict[str, set[str]]) -> None:
        super().__init__(people)
        self.asked = asyncio.Semaphore(0)
        self.may_answer = asyncio.Event()

    async def user(self, name: str) -> HubUser | None:
        self.asked.release()
        await self.may_answer.wait()
        return await super().user(name)


class DownHubDirectory:
    """Never answers."""

    async def user(self, name: str) -> HubUser | None:
        raise Unavailable("The Hub does not answer.", "Try again in a minute.")

    async def people_of(self, site: str) -> frozenset[str]:
        raise Unavailable("The Hub does not answer.", "Try again in a minute.")
