"""A proxy for Hubs in tests: in the Hub's own process, plain HTTP only. No WebSockets, no streaming, no TLS."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

from jupyterhub.proxy import Proxy
from tornado.httpclient import AsyncHTTPClient, HTTPRequest
from tornado.httpserver import HTTPServer
from tornado.web import Application, RequestHandler
from traitlets import Dict, Instance

HOP_BY_HOP = frozenset({"connection", "content-length", "keep-alive", "transfer-encoding"})


class PlainProxy(Proxy):
    """Forwards each request to the target with the longest matching prefix, and waits for the whole answer."""

    routes = Dict()
    server = Instance(HTTPServer, allow_none=True)

    async def start(self) -> None:
        parts = urlsplit(self.public_url)
        application = Application([(r".*", _Forward, {"proxy": self})])
        self.server = application.listen(parts.port, parts.hostname)

    async def stop(self) -> None:
        self.server.stop()
        await self.server.close_all_connections()

    async def add_route(self, routespec: str, target: str, data: dict[str, Any]) -> None:
        route = {"routespec": routespec, "target": target, "data": data}
        self.routes = {**self.routes, self.validate_routespec(routespec): route}

    async def delete_route(self, routespec: str) -> None:
        self.routes = {known: route for known, route in self.routes.items() if known != routespec}

    async def get_all_routes(self) -> dict[str, dict[str, Any]]:
        return dict(self.routes)


class _Forward(RequestHandler):
    def initialize(self, proxy: PlainProxy) -> None:
        self.proxy = proxy

    async def prepare(self) -> None:
        path = urlsplit(self.request.uri or "/").path
        routespec = max((known for known in self.proxy.routes if f"{path}/".startswith(known)), key=len)
        request = HTTPRequest(
            self.proxy.routes[routespec]["target"] + (self.request.uri or "/"),
            method=self.request.method or "GET",
            headers=self.request.headers,
            body=self.request.body or None,
            allow_nonstandard_methods=True,
            follow_redirects=False,
            decompress_response=False,
            request_timeout=120,
        )
        try:
            answer = await AsyncHTTPClient().fetch(request, raise_error=False)
        except OSError:
            self.send_error(503)
            return
        self.set_status(answer.code)
        self.clear_header("Content-Type")
        for name, value in answer.headers.get_all():
            if name.lower() not in HOP_BY_HOP:
                self.add_header(name, value)
        self.finish(answer.body or None)  # some answers, as 304, must have none
