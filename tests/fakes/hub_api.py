"""The Hub's REST API as far as the service asks it, over real HTTP on a free port.

FakeHubApi      answers with the people and tokens it holds
AmnesicHubApi   knows nobody, as while its database is away
SickHubApi      answers 500 to everything
HangingHubApi   takes every request and answers none
RamblingHubApi  answers 200 with what is no description of a user
MovedHubApi     answers with a redirect to another address
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from types import TracebackType
from typing import Any

from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets
from tornado.web import Application, RequestHandler

SERVICE_TOKEN = "the-service's-own-token"


class FakeHubApi:
    """Use as an async context manager; `url` is the API's address."""

    def __init__(self) -> None:
        self.tokens: dict[str, dict[str, Any]] = {  # token -> model of GET /user
            SERVICE_TOKEN: {"kind": "service", "name": "federation"}
        }
        self.people: dict[str, dict[str, Any]] = {}  # name -> model of GET /users/<name>
        self.codes: dict[str, str] = {}  # OAuth code -> token
        self.asked = 0  # how often it was asked who a token belongs to

    async def __aenter__(self) -> FakeHubApi:
        application = Application(
            [
                ("/hub/api/user", _Self, {"hub": self}),
                ("/hub/api/users/([^/]*)", _User, {"hub": self}),
                ("/hub/api/groups/([^/]*)", _Group, {"hub": self}),
                ("/hub/api/oauth2/token", _Token, {"hub": self}),
            ]
        )
        self._server = HTTPServer(application)
        sockets = bind_sockets(0, "127.0.0.1")
        self._server.add_sockets(sockets)
        self.url = f"http://127.0.0.1:{sockets[0].getsockname()[1]}/hub/api"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.stop()
        await self._server.close_all_connections()

    def answer_self(self, handler: RequestHandler) -> Awaitable[None] | None:
        self.asked += 1
        token = handler.request.headers.get("Authorization", "").removeprefix("token ")
        self._answer(handler, self.tokens.get(token), 403)
        return None

    def answer_user(self, handler: RequestHandler, name: str) -> None:
        if handler.request.headers.get("Authorization") != f"token {SERVICE_TOKEN}":
            handler.set_status(403)
            return
        self._answer(handler, self.people.get(name), 404)

    def answer_group(self, handler: RequestHandler, name: str) -> None:
        if handler.request.headers.get("Authorization") != f"token {SERVICE_TOKEN}":
            handler.set_status(403)
            return
        people = [one for one, model in self.people.items() if name in model["groups"]]
        self._answer(handler, {"kind": "group", "name": name, "users": people} if people else None, 404)

    def _answer(self, handler: RequestHandler, model: dict[str, Any] | None, otherwise: int) -> None:
        if model is None:
            handler.set_status(otherwise)
        else:
            handler.write(model)


class AmnesicHubApi(FakeHubApi):
    """Attributes: for_so_many: of its next answers."""

    for_so_many = 0

    def _answer(self, handler: RequestHandler, model: dict[str, Any] | None, otherwise: int) -> None:
        forgotten, self.for_so_many = self.for_so_many > 0, max(0, self.for_so_many - 1)
        super()._answer(handler, None if forgotten else model, otherwise)


class SickHubApi(FakeHubApi):
    def _answer(self, handler: RequestHandler, model: dict[str, Any] | None, otherwise: int) -> None:
        handler.set_status(500)


class HangingHubApi(FakeHubApi):
    async def answer_self(self, handler: RequestHandler) -> None:
        await asyncio.get_running_loop().create_future()


class RamblingHubApi(FakeHubApi):
    def __init__(self, body: str) -> None:
        super().__init__()
        self._body = body

    def _answer(self, handler: RequestHandler, model: dict[str, Any] | None, otherwise: int) -> None:
        handler.write(self._body)


class MovedHubApi(FakeHubApi):
    def __init__(self, elsewhere: str) -> None:
        super().__init__()
        self._elsewhere = elsewhere

    def _answer(self, handler: RequestHandler, model: dict[str, Any] | None, otherwise: int) -> None:
        handler.redirect(self._elsewhere)


class _Self(RequestHandler):
    def initialize(self, hub: FakeHubApi) -> None:
        self.hub = hub

    def get(self) -> Awaitable[None] | None:
        return self.hub.answer_self(self)


class _User(_Self):
    def get(self, name: str) -> None:  # type: ignore[override]
        self.hub.answer_user(self, name)


class _Group(_Self):
    def get(self, name: str) -> None:  # type: ignore[override]
        self.hub.answer_group(self, name)


class _Token(_Self):
    def post(self) -> None:
        token = self.hub.codes.pop(self.get_body_argument("code"), None)
        self.hub._answer(self, None if token is None else {"access_token": token}, 400)
