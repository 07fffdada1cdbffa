"""The Hub's custom scopes, roles and managed service for federation, for `jupyterhub_config.py`. Pure."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from federator import contract
from federator.contract import SERVICE_NAME, SITE_GROUP_PREFIX, STEWARD_GROUP_PREFIX, Scope

from spawner.deployment import (
    METRICS_TOKEN_VARIABLE,
    S3_KEY_VARIABLE,
    S3_SECRET_VARIABLE,
    SERVICE_TOKEN_VARIABLE,
    SMTP_PASSWORD_VARIABLE,
    WEBHOOK_KEY_VARIABLE,
    Apart,
    Deployment,
    LocalAggregators,
)
from spawner.sso import ADMIN_GROUP

CUSTOM_SCOPES = {
    str(Scope.USE): {"description": "Take part in federated projects."},
    str(Scope.APPROVE): {"description": "Decide what runs on the data of a site one is a steward of."},
    str(Scope.ADMINISTER): {"description": "See the state of the federation service and its audit log."},
}

MONITOR_NAME = "federation-metrics"
LOOPBACK = "127.0.0.1"
PASSWORD_VARIABLES = ("PGPASSFILE", "PGPASSWORD")
SHORTEST_TOKEN = 32  # characters
START_TIMEOUT_S = 180

ADMINISTRATOR_SCOPES = (
    "admin-ui",
    "list:users",
    "read:users",
    "delete:users",
    "servers",
    "list:groups",
    "read:groups",
    "list:services",
    "read:services",
    "read:hub",
    "shutdown",
)
"""What the Hub's administrators may do: look after accounts and servers, start and stop them. JupyterHub's own role
`admin` may also open each person's notebook server (`access:servers`), and get there by a token in their name
(`tokens`), a share (`shares`), a new name (`users`), a place in a group (`admin:groups`) or a proxy of its own
(`proxy`): beside a hospital's data that is for nobody, and nobody has that role here.
See "Scopes" in JupyterHub's documentation.
"""

SERVICE_SCOPES = ("read:users:name", "read:users:groups", "read:groups")
"""What the service may ask the Hub: whether an invited person exists, which site they belong to, and who belongs to a
site still while it takes part in a run."""


def roles(deployment: Deployment) -> list[dict[str, Any]]:
    """Who may do what, by group. Scopes are not filtered by group: a filtered custom scope never matches."""
    slugs = sorted(deployment.sites)
    return [
        {
            "name": "researcher",
            "description": "Take part in federated projects",
            "scopes": [str(Scope.ACCESS), str(Scope.USE)],
            "groups": [SITE_GROUP_PREFIX + slug for slug in slugs],
        },
        {
            "name": "data-steward",
            "description": "Decide what runs on a site's data",
            "scopes": [str(Scope.ACCESS), str(Scope.USE), str(Scope.APPROVE)],
            "groups": [STEWARD_GROUP_PREFIX + slug for slug in slugs],
        },
        {
            "name": "federation-admin",
            "description": "Look after the Hub and the federation service",
            "scopes": [*ADMINISTRATOR_SCOPES, str(Scope.ACCESS), str(Scope.USE), str(Scope.ADMINISTER)],
            "groups": [ADMIN_GROUP],
        },
        {
            "name": "federation-service",
            "description": "What the federation service asks the Hub",
            "scopes": list(SERVICE_SCOPES),
            "services": [SERVICE_NAME],
        },
        *(
            {
                "name": MONITOR_NAME,
                "description": "Read the metrics of the Hub and of the federation service",
                "scopes": [str(Scope.READ_METRICS), str(Scope.ACCESS)],
                "services": [monitor["name"]],
            }
            for monitor in monitors()
        ),
    ]


def service(deployment: Deployment) -> dict[str, Any]:
    """The service as the Hub knows it.

    A managed one, which the Hub starts, has this environment and what the Hub adds; nothing else is inherited but
    `PATH` and the locale. One that is apart is started by `spawner.admin`, and known by its token.
    """
    apart = deployment.hub.apart is not None
    # A Hub ends itself where a service is not up in time: a machine that boots has much to do, and needs it.
    managed = {"command": [sys.executable, "-m", "hub_service.keeper"], "timeout": START_TIMEOUT_S}
    own = {"api_token": service_token()} if apart else managed
    return {
        "name": SERVICE_NAME,
        **own,
        "url": service_url(deployment),
        "display": True,
        # The person has logged in to the Hub; asking again whether the Hub's own service may know them helps nobody.
        "oauth_no_confirm": True,
        "oauth_client_allowed_scopes": list(CUSTOM_SCOPES),
        "environment": service_environment(deployment),
    }


def service_environment(deployment: Deployment) -> dict[str, str]:
    """What the service's settings are read from, but for what it knows of the Hub."""
    return {
        "FEDERATION_STATE_DIR": str(state_dir(deployment)),
        "FEDERATION_SITES": json.dumps([asdict(site) for site in public_sites(deployment)]),
        "FEDERATION_AGGREGATORS": json.dumps(aggregators(deployment)),
        "FEDERATION_ADMIN_CONTACT": deployment.hub.admin_contact,
        "FEDERATION_KEEP_MODEL_BYTES": str(int(deployment.hub.keep_models)),
        "FEDERATION_QUOTAS": json.dumps(quotas(deployment)),
        "FEDERATOR_LOG_FORMAT": deployment.hub.log_format,
        "FLWR_TELEMETRY_ENABLED": "0",
        **artifacts(deployment),
        **database(deployment),
        **notices(deployment),
    }


def artifacts(deployment: Deployment) -> dict[str, str]:
    """Where apps and models are kept, and how long, as the service reads it."""
    hub = deployment.hub
    days = {"FEDERATION_KEEP_ROUND_MODELS_DAYS": str(hub.keep_round_models_days)} if hub.keep_round_models_days else {}
    if hub.artifacts is None:
        return days
    return days | {
        "FEDERATION_ARTIFACTS_URL": hub.artifacts,
        "FEDERATION_ARTIFACTS_ENDPOINT": hub.artifacts_endpoint or "",
        "FEDERATION_ARTIFACTS_CACHE_BYTES": str(int(hub.artifacts_cache)),
        "FEDERATION_ARTIFACTS_KEY": os.environ.get(S3_KEY_VARIABLE, ""),
        "FEDERATION_ARTIFACTS_SECRET": os.environ.get(S3_SECRET_VARIABLE, ""),
    }


def quotas(deployment: Deployment) -> dict[str, int]:
    """Those that the deployment says, by the service's names."""
    said = deployment.quotas.model_dump(exclude_none=True)
    renamed = {"project_storage": "project_bytes", "storage": "all_bytes", "upload": "upload_bytes"}
    return {renamed.get(name, name): int(value) for name, value in said.items()}


def monitors() -> list[dict[str, Any]]:
    """The program that reads the metrics of the Hub and of the service, by its token; none where it has no token.

    It is a service of the Hub's without an address. Raises SystemExit for a token that is too short.
    """
    token = os.environ.get(METRICS_TOKEN_VARIABLE, "")
    if not token:
        return []
    if len(token) < SHORTEST_TOKEN:
        raise SystemExit(
            f"{METRICS_TOKEN_VARIABLE} has fewer than {SHORTEST_TOKEN} characters; `openssl rand -hex 32` makes one."
        )
    return [{"name": MONITOR_NAME, "api_token": token, "display": False}]


def database(deployment: Deployment) -> dict[str, str]:
    """Where the service keeps its state, and what libpq reads a password from; empty for SQLite in its folder.

    See "Environment Variables" in PostgreSQL's libpq.
    """
    if deployment.hub.database is None:
        return {}
    secrets = {name: os.environ[name] for name in PASSWORD_VARIABLES if os.environ.get(name)}
    return {"FEDERATION_DATABASE_URL": deployment.hub.database, **secrets}


def apart_environment(deployment: Deployment) -> dict[str, str]:
    """All of it for a service that the Hub does not start: what the Hub would have told it, too.

    As `jupyterhub.services.service.Service.start` does it. Raises SystemExit without the service's token.
    """
    hosts = deployment.hub.apart or Apart()
    client = f"service-{SERVICE_NAME}"
    access_scopes = [f"access:services!service={SERVICE_NAME}", "access:services"]
    return {
        **service_environment(deployment),
        "JUPYTERHUB_SERVICE_NAME": SERVICE_NAME,
        "JUPYTERHUB_SERVICE_PREFIX": contract.SERVICE_PREFIX,
        "JUPYTERHUB_SERVICE_URL": f"http://0.0.0.0:{deployment.hub.service_port}",
        "JUPYTERHUB_API_URL": f"{hub_url(hosts.hub, deployment)}/hub/api",
        "JUPYTERHUB_API_TOKEN": service_token(),
        "JUPYTERHUB_BASE_URL": "/",
        "JUPYTERHUB_HOST": "",
        "JUPYTERHUB_PUBLIC_URL": deployment.hub.origin + contract.SERVICE_PREFIX,
        "JUPYTERHUB_PUBLIC_HUB_URL": f"{deployment.hub.origin}/hub/",
        "JUPYTERHUB_CLIENT_ID": client,
        "JUPYTERHUB_OAUTH_CALLBACK_URL": f"{contract.SERVICE_PREFIX}oauth_callback",
        "JUPYTERHUB_OAUTH_ACCESS_SCOPES": json.dumps(access_scopes),
        "JUPYTERHUB_OAUTH_SCOPES": json.dumps(access_scopes),
        "JUPYTERHUB_OAUTH_CLIENT_ALLOWED_SCOPES": json.dumps(list(CUSTOM_SCOPES)),
    }


def hub_url(host: str, deployment: Deployment) -> str:
    """The Hub's own address behind the proxy."""
    return f"http://{host}:{deployment.hub.hub_port}"


def service_token() -> str:
    """By which the service and the Hub know each other where the Hub does not start it. Raises SystemExit."""
    token = os.environ.get(SERVICE_TOKEN_VARIABLE, "")
    if len(token) < SHORTEST_TOKEN:
        raise SystemExit(
            f"{SERVICE_TOKEN_VARIABLE} is not set, or has fewer than {SHORTEST_TOKEN} characters; "
            "`openssl rand -hex 32` makes one. The Hub and the service need the same."
        )
    return token


def notices(deployment: Deployment) -> dict[str, str]:
    """How the service tells people, as its settings read it; empty where nothing is set up."""
    wanted = deployment.notices
    if wanted is None:
        return {}
    told = {"origin": deployment.hub.origin, **wanted.model_dump(exclude_none=True)}
    return {
        "FEDERATION_NOTICES": json.dumps(told),
        "FEDERATION_SMTP_PASSWORD": os.environ.get(SMTP_PASSWORD_VARIABLE, ""),
        "FEDERATION_WEBHOOK_KEY": os.environ.get(WEBHOOK_KEY_VARIABLE, ""),
    }


def service_url(deployment: Deployment) -> str:
    """Where the service listens: reached through the Hub's proxy only."""
    apart = deployment.hub.apart
    return f"http://{LOOPBACK if apart is None else apart.service}:{deployment.hub.service_port}"


def state_dir(deployment: Deployment) -> Path:
    """The service's folder."""
    return deployment.hub.data_dir / "federation"


def aggregators(deployment: Deployment) -> dict[str, Any]:
    """How the service runs aggregators, as its settings read it."""
    wanted = deployment.aggregators
    if isinstance(wanted, LocalAggregators):
        return {"kind": wanted.kind}
    return {
        "kind": wanted.kind,
        "engine": wanted.engine,
        "tls_dir": str(wanted.tls_dir) if wanted.tls_dir else None,
        "image": wanted.image,
        "memory_bytes": int(wanted.memory),
        "cpus": wanted.cpus,
        "disk_bytes": int(wanted.disk),
        "hours": wanted.hours,
    }


def public_sites(deployment: Deployment) -> list[contract.Site]:
    """The sites as members see them: without paths."""
    return [
        contract.Site(
            slug=slug,
            title=site.title,
            kind=site.kind,
            isolates=site.isolates,
            contact=site.contact,
            four_eyes=site.four_eyes,
            datasets=tuple(
                contract.Dataset(name=name, title=dataset.title, description=dataset.description)
                for name, dataset in site.datasets.items()
            ),
        )
        for slug, site in deployment.sites.items()
    ]


def page_headers(deployment: Deployment) -> dict[str, str]:
    """For every page of the Hub: what a file is, where addresses may go, and, with TLS, that nothing else will do."""
    headers = {"X-Content-Type-Options": "nosniff", "Referrer-Policy": "same-origin"}
    if deployment.hub.origin.startswith("https://"):
        headers["Strict-Transport-Security"] = f"max-age={365 * 86400}"
    return headers


def page_variables(deployment: Deployment) -> dict[str, Any]:
    """What the Hub's page templates use beside the Hub's own variables."""
    return {
        "federation_prefix": contract.SERVICE_PREFIX,
        "federation_sites": {SITE_GROUP_PREFIX + site.slug: site for site in public_sites(deployment)},
    }
