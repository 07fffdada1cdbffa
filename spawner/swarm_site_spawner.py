"""Starts people's servers as services of a Docker Swarm, on the nodes that carry their site's label.

For a consortium that runs one Swarm: the Hub speaks to a manager only, and no site's own engine is open to it.
"""

from __future__ import annotations

from dockerspawner import SwarmSpawner

from spawner.container_site_spawner import ContainerSiteSpawner


class SwarmSiteSpawner(ContainerSiteSpawner, SwarmSpawner):
    """A server as a service with one task, placed by its site's node label."""
