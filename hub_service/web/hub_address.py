"""Where a SuperNode dials: the Hub's one origin, as the browser that asks has reached it."""

from __future__ import annotations

from dataclasses import dataclass

from jupyterhub.utils import get_browser_protocol
from tornado.httputil import HTTPServerRequest, split_host_and_port

_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class HubAddress:
    host_and_port: str
    tls: bool


def hub_address(request: HTTPServerRequest) -> HubAddress:
    """The host and port that the browser named, with the port of its protocol where it named none."""
    protocol = get_browser_protocol(request)
    host, port = split_host_and_port(request.host)
    return HubAddress(f"{host}:{port or _PORTS[protocol]}", protocol == "https")
