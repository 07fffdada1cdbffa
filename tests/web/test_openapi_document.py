from __future__ import annotations

import pytest
from federator.contract import Route
from openapi_spec_validator import validate

from hub_service.web.openapi import document
from hub_service.web.routes import API_ROUTES
from hub_service.web.schema import OPERATIONS
from tests.fakes.web_world import World, path

METHODS = ("get", "post", "put", "delete", "patch")


def test_the_document_is_valid() -> None:
    validate(document())


def test_every_route_of_the_contract_is_served_and_described() -> None:
    assert {route for route, _ in API_ROUTES} == set(Route)
    assert {operation.route for operation in OPERATIONS} == set(Route)


@pytest.mark.parametrize(("route", "handler"), API_ROUTES)
def test_a_route_takes_the_methods_that_are_described(route: Route, handler: type) -> None:
    taken = {method.upper() for method in METHODS if getattr(handler, method) is not handler._unimplemented_method}  # type: ignore[attr-defined]
    assert taken == {operation.method for operation in OPERATIONS if operation.route is route}


async def test_it_is_served_with_the_address_of_the_service(world: World) -> None:
    async with world.api("ada") as api:
        served = (await api.get(path(Route.OPENAPI))).json()
    assert served["servers"] == [{"url": "/services/federation"}]
    assert f"/{Route.RUN_MODEL}" in served["paths"]
