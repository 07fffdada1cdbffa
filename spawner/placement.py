"""Which site a person's server runs at. Groups decide; nothing that a person sends does. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from federator.contract import SITE_GROUP_PREFIX

from spawner.sites import Site, SupernodeSite


class PlacementRefused(Exception):
    """No server for this person. The text is for them: why, and whom to ask."""


@dataclass(frozen=True, slots=True)
class Placement:
    slug: str
    site: Site


def place(groups: Iterable[str], sites: Mapping[str, Site], admin_contact: str) -> Placement:
    """The site of a person in these groups.

    Raises:
        PlacementRefused: they belong to no site, to two, to one that is not in the catalogue any more, or to one
            that has no notebook servers.
    """
    slugs = sorted(group.removeprefix(SITE_GROUP_PREFIX) for group in groups if group.startswith(SITE_GROUP_PREFIX))
    ask = f"Log out and in again; if that does not help, ask {admin_contact}."
    if not slugs:
        raise PlacementRefused(f"You belong to no site of this Hub, and servers run at sites. {ask}")
    if len(slugs) > 1:
        raise PlacementRefused(
            f"You belong to more than one site ({', '.join(slugs)}), and a server runs at one. {ask}"
        )
    site = sites.get(slugs[0])
    if site is None:
        raise PlacementRefused(f"Your site, {slugs[0]}, is not part of this Hub any more. {ask}")
    if isinstance(site, SupernodeSite):
        raise PlacementRefused(
            f"{site.title} has no notebook servers: its data take part by a SuperNode of its own. You can see and join "
            f"projects on the federation's page. Questions about the site: {site.contact}."
        )
    return Placement(slugs[0], site)
