"""A managed service for Hubs in tests: tells each visitor what the Hub says of them. Keeps nothing, decides nothing."""

from __future__ import annotations

import asyncio
import json
import os
from urllib.parse import urlsplit

from jupyterhub.services.auth import HubOAuthCallbackHandler, HubOAuthenticated
from tornado.web import Application, RequestHandler, authenticated


class WhoAmI(HubOAuthenticated, RequestHandler):
    @authenticated
    def get(self) -> None:
        self.finish(json.dumps(self.current_user))


class Health(RequestHandler):
    def get(self) -> None:
        self.finish("ok")


class Environment(RequestHandler):
    def get(self) -> None:
        self.finish(json.dumps(dict(os.environ)))


class Fleet(RequestHandler):
    def post(self) -> None:
        self.finish(self.request.body)


async def main() -> None:
    prefix = os.environ["JUPYTERHUB_SERVICE_PREFIX"]
    url = urlsplit(os.environ["JUPYTERHUB_SERVICE_URL"])
    application = Application(
        [
            (prefix, WhoAmI),
            (prefix + "health", Health),
            (prefix + "environment", Environment),
            (prefix + "oauth_callback", HubOAuthCallbackHandler),
            (r"/v1/fleet/.*", Fleet),
        ],
        cookie_secret=os.urandom(32),
    )
    application.listen(url.port, url.hostname)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main())
