"""A Hub of a few lines, as a service sees it: who a token belongs to, who exists, and OAuth login.

It answers like JupyterHub 6 and is served by the same tornado application as the service under test, as both have one
origin behind the Hub's proxy. Nothing of the service is replaced: JupyterHub's own `HubOAuth` asks it.

    FakeHub             knows its people
    └── SilentHub       answers 503 to everything, as while it restarts
"""

from __future__ import annotations

import json
import secrets
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlencode

from federator.contract import Scope
from tornado.web import Application, RequestHandler

RESEARCHER = frozenset({Scope.ACCESS, Scope.USE})
STEWARD = RESEARCHER | {Scope.APPROVE}
ADMINISTRATOR = RESEARCHER | {Scope.ADMINISTER}


@dataclass
class Person:
    """Somebody the Hub knows. `token` is a token of theirs with `scopes`."""

    name: str
    groups: frozenset[str]
    scopes: frozenset[str]
    kind: str = "user"
    token: str = field(default_factory=lambda: secrets.token_hex(16))

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"token {self.token}"}


class FakeHub:
    status: int | None = None  # answer everything with this

    def __init__(self) -> None:
        self.people: dict[str, Person] = {}
        self.service = Person("federation", frozenset(), frozenset(), kind="service")  # who asks
        self.codes: dict[str, Person] = {}

    def add(self, name: str, *groups: str, scopes: frozenset[str] = RESEARCHER, kind: str = "user") -> Person:
        person = Person(name, frozenset(groups), scopes, kind)
        self.people[name] = person
        return person

    def owner_of(self, token: str) -> Person | None:
        return next((one for one in (*self.people.values(), self.service) if one.token == token), None)

    def serve_in(self, application: Application) -> None:
        application.add_handlers(
            ".*",
            [
                (r"/hub/api/user", _Whoami, {"hub": self}),
                (r"/hub/api/users/([^/]+)", _User, {"hub": self}),
                (r"/hub/api/groups/([^/]+)", _Group, {"hub": self}),
                (r"/hub/api/oauth2/authorize", _Authorize, {"hub": self}),
                (r"/hub/api/oauth2/token", _Token, {"hub": self}),
            ],
        )


class SilentHub(FakeHub):
    status = 503


class _Answer(RequestHandler):
    def initialize(self, hub: FakeHub) -> None:
        self.hub = hub

    def check_xsrf_cookie(self) -> None:
        """The real Hub's rules are tested with the real Hub."""

    def prepare(self) -> None:
        if self.hub.status is not None:
            self.set_status(self.hub.status)
            self.finish()

    def model(self, person: Person) -> dict[str, Any]:
        return {
            "name": person.name,
            "kind": person.kind,
            "groups": sorted(person.groups),
            "scopes": sorted(person.scopes),
        }

    def refuse(self, status: int) -> None:
        self.set_status(status)
        self.finish(json.dumps({"status": status, "message": "No"}))


class _Whoami(_Answer):
    def get(self) -> None:
        person = self.hub.owner_of(self.request.headers.get("Authorization", "").removeprefix("token "))
        if person is None:
            self.refuse(403)
        else:
            self.finish(self.model(person))


class _User(_Answer):
    def get(self, name: str) -> None:
        person = self.hub.people.get(name)
        if person is None:
            self.refuse(404)
        else:
            self.finish(self.model(person))


class _Group(_Answer):
    def get(self, name: str) -> None:
        people = sorted(one.name for one in self.hub.people.values() if name in one.groups)
        if people:
            self.finish({"kind": "group", "name": name, "users": people})
        else:
            self.refuse(404)


class _Authorize(_Answer):
    """Logs in whom the cookie `fake-hub-login` names, without asking, as a Hub with `oauth_no_confirm`."""

    def get(self) -> None:
        person = self.hub.people.get(self.get_cookie("fake-hub-login") or "")
        if person is None:
            self.refuse(403)
            return
        code = secrets.token_hex(8)
        self.hub.codes[code] = person
        answer = urlencode({"code": code, "state": self.get_query_argument("state")})
        self.redirect(f"{self.get_query_argument('redirect_uri')}?{answer}")


class _Token(_Answer):
    def post(self) -> None:
        person = self.hub.codes.pop(self.get_body_argument("code"), None)
        if person is None:
            self.refuse(400)
        else:
            self.finish({"access_token": person.token, "token_type": "Bearer"})
