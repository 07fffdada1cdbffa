"""Labels on what the Hub makes in a site's engine: it finds its own by them, and a site's auditor tells it apart."""

from __future__ import annotations

PREFIX = "org.notebook-federator."
SITE_LABEL = PREFIX + "site"
USER_LABEL = PREFIX + "user"
SERVER_LABEL = PREFIX + "server"
"""Name of the person's server; empty for their default one."""
GPU_LABEL = PREFIX + "gpu"
HUB_LABEL = PREFIX + "hub"
"""Origin of the Hub that made it: two Hubs may share an engine."""
