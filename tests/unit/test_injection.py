"""What a notebook server is given."""

from __future__ import annotations

import json

import pytest
from federator.contract import Env, Scope

from spawner.injection import SERVER_TOKEN_SCOPES, environment, fleet_address, server_arguments


def test_a_server_learns_where_the_service_is() -> None:
    given = environment("https://hub.example", "a", {"biopsies": "/data/b", "age": "/data/a"})
    assert given[Env.SERVICE_URL] == "https://hub.example/services/federation/"
    assert given[Env.FLEET_ADDRESS] == "hub.example:443"
    assert given[Env.FLEET_TLS] == "1"
    assert given[Env.SITE] == "a"
    assert json.loads(given[Env.DATASETS]) == {"biopsies": "/data/b", "age": "/data/a"}


def test_every_variable_of_the_contract_is_set_but_the_kernels_own() -> None:
    given = environment("http://hub.example:8000", "a", {})
    assert set(Env) - set(given) == {Env.ASSIGNMENT}
    assert given[Env.FLEET_TLS] == "0"


def test_a_port_that_is_not_said_is_the_schemes() -> None:
    assert fleet_address("http://hub.example") == "hub.example:80"


def test_a_servers_token_cannot_approve() -> None:
    assert {Scope.ACCESS, Scope.USE} <= set(SERVER_TOKEN_SCOPES)
    assert Scope.APPROVE not in SERVER_TOKEN_SCOPES
    assert Scope.ADMINISTER not in SERVER_TOKEN_SCOPES


@pytest.mark.parametrize("root", [True, False])
def test_root_is_allowed_only_when_it_is_root(root: bool) -> None:
    arguments = server_arguments(runs_as_root=root)
    assert ("--allow-root" in arguments) is root
    assert "--ServerApp.jpserver_extensions=federator.extension=True" in arguments
