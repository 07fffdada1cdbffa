"""Exit 0 where the Hub answers, through its proxy where that is in here: the health check of the Hub's container."""

from __future__ import annotations

import os
import ssl
import sys
import urllib.error
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

from spawner import deployment

TIMEOUT_S = 8.0
EVERYWHERE = ("0.0.0.0", "::")  # noqa: S104 - compared, not bound


def health_url(hub: deployment.Hub) -> str:
    """Where the Hub's health is asked for: by the proxy's own address, or the Hub's, where the proxy is apart."""
    if hub.apart is not None:
        return f"http://127.0.0.1:{hub.hub_port}/hub/health"
    parts = urlsplit(hub.bind_url)
    host = "127.0.0.1" if parts.hostname in EVERYWHERE else parts.hostname
    port = parts.port or (443 if parts.scheme == "https" else 80)
    return f"{parts.scheme}://{host}:{port}/hub/health"


def main() -> None:
    try:
        hub = deployment.load(Path(os.environ[deployment.CONFIG_VARIABLE])).hub
    except deployment.DeploymentError as error:
        sys.exit(str(error))
    # The certificate is for the name that people type, which is not the name used here.
    unverified = ssl._create_unverified_context()  # noqa: S323
    try:
        urllib.request.urlopen(health_url(hub), timeout=TIMEOUT_S, context=unverified).close()  # noqa: S310
    except (urllib.error.URLError, TimeoutError) as error:
        sys.exit(f"The Hub does not answer at {health_url(hub)}: {error}")


if __name__ == "__main__":
    main()
