"""Hubs that are asked about people."""

from __future__ import annotations

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


class DownHubDirectory:
    """Never answers."""

    async def user(self, name: str) -> HubUser | None:
        raise Unavailable("The Hub does not answer.", "Try again in a minute.")

    async def people_of(self, site: str) -> frozenset[str]:
        raise Unavailable("The Hub does not answer.", "Try again in a minute.")
