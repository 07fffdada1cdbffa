"""Hubs that are asked about people."""

from __future__ import annotations

from hub_service.domain.directory import HubUser
from hub_service.domain.errors import Unavailable


class FakeHubDirectory:
    """Knows the people it is given: name -> groups."""

    def __init__(self, people: dict[str, set[str]]) -> None:
        self.people = people

    async def user(self, name: str) -> HubUser | None:
        groups = self.people.get(name)
        return None if groups is None else HubUser(name, frozenset(groups))


class DownHubDirectory:
    """Never answers."""

    async def user(self, name: str) -> HubUser | None:
        raise Unavailable("The Hub does not answer.", "Try again in a minute.")
