"""What the service asks the Hub about people. Implemented by `hub_service.hub_client`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from hub_service.domain.projects import Principal


@dataclass(frozen=True, slots=True)
class HubUser:
    """A person as the Hub knows them, whether logged in or not."""

    name: str
    groups: frozenset[str]

    @property
    def sites(self) -> frozenset[str]:
        """Slugs of the sites this person belongs to."""
        return Principal(self.name, self.groups, frozenset()).sites


class HubDirectory(Protocol):
    async def user(self, name: str) -> HubUser | None:
        """The Hub's user of exactly this name, or None. Raises Unavailable if the Hub does not answer."""

    async def people_of(self, site: str) -> frozenset[str]:
        """Names of the people who belong to a site now. Raises Unavailable if the Hub does not answer."""
