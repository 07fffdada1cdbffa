"""What confines every container that runs at a site: servers, and the short-lived ones that check a site."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

SERVER_USER = "1000:100"
"""User and group of Jupyter's own images."""

CONFINED: Mapping[str, Any] = MappingProxyType(
    {
        "read_only": True,
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges:true"],
        "dns": ["127.0.0.1"],  # nothing listens there: the engine's own resolver asks the world
        "dns_opt": ["timeout:1", "attempts:1"],  # so a lookup fails in one second, not in ten
    }
)
"""Settings of Docker's host configuration, but for the limits."""
