"""What the kind of a site means for what happens there. The kinds themselves are declared by `spawner.sites`."""

from __future__ import annotations

from typing import TypeGuard

from federator.contract import Site

SUPERNODE = "supernode"


def runs_supernode(site: Site | None) -> TypeGuard[Site]:
    """Whether the site has no notebook servers, and a SuperNode of its own is the node of its participations.

    Elsewhere a client kernel in the participant's server is. None stands for a site that is no longer in the catalogue.
    """
    return site is not None and site.kind == SUPERNODE
