"""The spawner's class for a deployment: one kind of site, one class."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from spawner.container_site_spawner import DockerSiteSpawner
from spawner.deployment import Deployment
from spawner.site_spawner import EmbeddedSiteSpawner, SiteSpawner
from spawner.sites import SupernodeSite
from spawner.swarm_site_spawner import SwarmSiteSpawner

SPAWNERS: Mapping[str, type[SiteSpawner]] = MappingProxyType(
    {"embedded": EmbeddedSiteSpawner, "docker": DockerSiteSpawner, "swarm": SwarmSiteSpawner}
)


def spawner_class(deployment: Deployment) -> type[SiteSpawner]:
    """What `c.JupyterHub.spawner_class` is. Where no site has servers, every start is refused, in any class."""
    kinds = [site.kind for site in deployment.sites.values() if not isinstance(site, SupernodeSite)]
    return SPAWNERS[kinds[0]] if kinds else EmbeddedSiteSpawner
