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

from spawner.deployment import SMTP_PASSWORD_VARIABLE, WEBHOOK_KEY_VARIABLE, Deployment, LocalAggregators
from spawner.sso import ADMIN_GROUP

CUSTOM_SCOPES = {
    str(Scope.USE): {"description": "Take part in federated projects."},
    str(Scope.APPROVE): {"description": "Decide what runs on the data of a site one is a steward of."},
    str(Scope.ADMINISTER): {"description": "See the state of the federation service and its audit log."},
}

SERVICE_SCOPES = ("read:users:name", "read:users:groups")
"""What the service may ask the Hub: whether an invited person exists, and which site they belong to."""


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
            "description": "Look after the federation service",
            "scopes": [str(Scope.ACCESS), str(Scope.USE), str(Scope.ADMINISTER)],
            "groups": [ADMIN_GROUP],
        },
        {
            "name": "federation-service",
            "description": "What the federation service asks the Hub",
            "scopes": list(SERVICE_SCOPES),
            "services": [SERVICE_NAME],
        },
    ]


def service(deployment: Deployment) -> dict[str, Any]:
    """The managed service. Its environment is this and what the Hub adds; nothing else is inherited but `PATH` and
    the locale."""
    return {
        "name": SERVICE_NAME,
        "command": [sys.executable, "-m", "hub_service"],
        "url": service_url(deployment),
        "display": True,
        # The person has logged in to the Hub; asking again whether the Hub's own service may know them helps nobody.
        "oauth_no_confirm": True,
        "oauth_client_allowed_scopes": list(CUSTOM_SCOPES),
        "environment": {
            "FEDERATION_STATE_DIR": str(state_dir(deployment)),
            "FEDERATION_SITES": json.dumps([asdict(site) for site in public_sites(deployment)]),
            "FEDERATION_AGGREGATORS": json.dumps(aggregators(deployment)),
            "FEDERATION_ADMIN_CONTACT": deployment.hub.admin_contact,
            "FEDERATION_KEEP_MODEL_BYTES": str(int(deployment.hub.keep_models)),
            "FLWR_TELEMETRY_ENABLED": "0",
            **notices(deployment),
        },
    }


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
    """Where the service listens: loopback, reached through the Hub's proxy only."""
    return f"http://127.0.0.1:{deployment.hub.service_port}"


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


def page_variables(deployment: Deployment) -> dict[str, Any]:
    """What the Hub's page templates use beside the Hub's own variables."""
    return {
        "federation_prefix": contract.SERVICE_PREFIX,
        "federation_sites": {SITE_GROUP_PREFIX + site.slug: site for site in public_sites(deployment)},
    }
