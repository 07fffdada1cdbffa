"""The demonstration's identity provider: `python -m examples.demo.identity_provider --port 9400`.

A real OpenID Connect provider (authorization code flow, signed ID tokens, userinfo) of invented people without
passwords, for development and tests on loopback only.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterable
from itertools import groupby
from pathlib import Path

import uvicorn
from flask import Flask
from jinja2 import ChoiceLoader, FileSystemLoader
from oidc_provider_mock import User, app

from examples.demo.people import Institution, Person, everyone

TEMPLATES = Path(__file__).parent / "templates"


def provider(people: Iterable[Person]) -> Flask:
    """The provider as a WSGI application, with a login page that lists these people by institution."""
    people = tuple(people)
    # Its library refuses plain HTTP unless told that this is meant.
    os.environ["AUTHLIB_INSECURE_TRANSPORT"] = "1"
    provider_app = app(user_claims=[User(sub=person.subject, claims=person.claims()) for person in people])
    provider_app.jinja_loader = ChoiceLoader([FileSystemLoader(TEMPLATES), provider_app.jinja_loader])
    provider_app.jinja_env.globals["institutions"] = by_institution(people)
    return provider_app


def by_institution(people: Iterable[Person]) -> list[tuple[Institution, list[Person]]]:
    """Institutions with their people, in the order in which `people` names them."""
    return [(institution, list(members)) for institution, members in groupby(people, lambda person: person.institution)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=9400)
    parser.add_argument("--host", default="127.0.0.1")
    arguments = parser.parse_args()
    uvicorn.run(provider(everyone()), interface="wsgi", host=arguments.host, port=arguments.port, log_level="warning")


if __name__ == "__main__":
    main()
