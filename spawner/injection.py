"""What a notebook server gets at every kind of site, so that the client package in it finds the service. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from urllib.parse import urlsplit

from federator.contract import SERVICE_PREFIX, Env, Scope

SERVER_TOKEN_SCOPES = (
    # What the Hub's own "server" role gives; this list takes its place.
    "users:activity!user",
    "access:servers!server",
    str(Scope.ACCESS),
    str(Scope.USE),
)
"""Rights of the token in a server's environment, which all code in the server can read. Never to approve."""

# The client package's own configuration file says the same; said on the command line, no user's file undoes it.
CLIENT_ARGUMENTS = (
    "--ServerApp.jpserver_extensions=federator.extension=True",
    "--ServerApp.kernel_manager_class=federator.kernels.FederatorKernelManager",
)


def environment(origin: str, slug: str, datasets: Mapping[str, str]) -> dict[str, str]:
    """Environment variables for a server at a site.

    Args:
        origin: the Hub's scheme, host and port as the server sees it.
        datasets: name of each of the site's datasets -> its folder as the server sees it.
    """
    return {
        Env.SERVICE_URL: origin + SERVICE_PREFIX,
        Env.FLEET_ADDRESS: fleet_address(origin),
        Env.FLEET_TLS: "1" if origin.startswith("https://") else "0",
        Env.SITE: slug,
        Env.DATASETS: json.dumps(dict(datasets), sort_keys=True),
        # flwr reports its use to its makers unless told not to; a site's server calls nobody but the Hub.
        "FLWR_TELEMETRY_ENABLED": "0",
    }


def fleet_address(origin: str) -> str:
    """host:port that a SuperNode dials."""
    parts = urlsplit(origin)
    return f"{parts.hostname}:{parts.port or (443 if parts.scheme == 'https' else 80)}"


def server_arguments(*, runs_as_root: bool) -> list[str]:
    """Command line of `jupyterhub-singleuser`."""
    arguments = [
        *CLIENT_ARGUMENTS,
        # JupyterLab asks its makers for news and new versions unless told not to.
        "--LabApp.news_url=None",
        "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
        "--LabApp.extension_manager=readonly",
    ]
    return [*arguments, "--allow-root"] if runs_as_root else arguments
