"""What the Hub and the deployment tell the service, from its environment."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from federator.contract import Dataset, Site

from hub_service.domain.errors import Invalid


@dataclass(frozen=True, slots=True)
class Settings:
    """One service's settings.

    Attributes:
        host, port: where to listen, from JUPYTERHUB_SERVICE_URL. Port 0: any free one.
        prefix: the path that the Hub's proxy sends here, from JUPYTERHUB_SERVICE_PREFIX.
        state_dir: the service's own folder: database, FABs, models, aggregators. From FEDERATION_STATE_DIR.
        sites: by slug, from FEDERATION_SITES.
        admin_contact: whom people can ask, in words, from FEDERATION_ADMIN_CONTACT.
        hub_api_url, hub_api_token: from JUPYTERHUB_API_URL and JUPYTERHUB_API_TOKEN. The token is in no `repr`.
    """

    host: str
    port: int
    prefix: str
    state_dir: Path
    sites: Mapping[str, Site]
    admin_contact: str
    hub_api_url: str
    hub_api_token: str

    def __repr__(self) -> str:
        return f"Settings(host={self.host!r}, port={self.port}, state_dir={str(self.state_dir)!r})"

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Settings:
        """Raises Invalid, naming the variable, for what is missing or cannot be read."""
        url = urlsplit(_required(environment, "JUPYTERHUB_SERVICE_URL"))
        return cls(
            host=url.hostname or "127.0.0.1",
            port=url.port or 0,
            prefix=_required(environment, "JUPYTERHUB_SERVICE_PREFIX"),
            state_dir=Path(_required(environment, "FEDERATION_STATE_DIR")),
            sites=_sites(_required(environment, "FEDERATION_SITES")),
            admin_contact=environment.get("FEDERATION_ADMIN_CONTACT") or "the Hub's administrator",
            hub_api_url=_required(environment, "JUPYTERHUB_API_URL"),
            hub_api_token=_required(environment, "JUPYTERHUB_API_TOKEN"),
        )


def _required(environment: Mapping[str, str], name: str) -> str:
    value = environment.get(name, "")
    if not value:
        raise Invalid(f"{name} is not set.", "The service is started by the Hub, with jupyterhub_config.py.")
    return value


def _sites(text: str) -> dict[str, Site]:
    try:
        sites = [
            Site(**{**site, "datasets": tuple(Dataset(**dataset) for dataset in site["datasets"])})
            for site in json.loads(text)
        ]
    except (ValueError, KeyError, TypeError) as error:
        raise Invalid(
            f"FEDERATION_SITES is not a list of sites: {error}.", "jupyterhub_config.py writes it from the sites' TOML."
        ) from error
    return {site.slug: site for site in sites}
