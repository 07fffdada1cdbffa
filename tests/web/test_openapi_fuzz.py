"""Schemathesis on the served OpenAPI document: every operation, by several people, with fitting and odd requests.

No answer is an error of the service or tells of its insides, and each is what the document says. The requests are the
same in each run; `FUZZ_CASES` and `FUZZ_SEED` are as for tests/singleuser/test_hostile_fleet.py.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
import requests
import schemathesis
from federator.contract import Route
from hypothesis import HealthCheck, given, seed, settings
from schemathesis import Case, GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
)

from hub_service.web.error_map import STATUS
from hub_service.web.openapi import document
from hub_service.web.schema import OPERATIONS
from tests.fakes.hub import FakeHub
from tests.fakes.web_world import CELL, UNLIMITED, World, notebook, served_world

PEOPLE = {"owner": "ada", "steward": "sue", "stranger": "cleo", "nobody": None}
CASES = int(os.environ.get("FUZZ_CASES", "9000")) // 3  # over all people and operations
SEED = int(os.environ.get("FUZZ_SEED", "6"))
EACH = max(1, CASES // (len(PEOPLE) * len(OPERATIONS)))
CHECKS = [
    not_a_server_error,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
TELLTALES = ("Traceback", '.py"', "/site-packages/", "hub_service.")
ENDLESS = {f"/{Route.EVENTS}"}
# Beside what an operation answers when it goes well. The document has one response for all of them, which fits any.
REFUSALS = set(STATUS.values()) | {HTTPStatus.METHOD_NOT_ALLOWED}

_VALUES = st.one_of(st.integers(), st.floats(), st.booleans(), st.none(), st.text(), st.lists(st.text(), max_size=2))
_LINES = st.one_of(
    st.just(""),
    st.text(),
    st.builds("CONFIG = {!r}".format, st.dictionaries(st.text(max_size=8) | st.just("rate"), _VALUES, max_size=3)),
    st.builds("DEPENDENCIES = {!r}".format, st.lists(_VALUES, max_size=3)),
    st.builds("import {}".format, st.text(st.characters(categories=["L", "N"]), min_size=1)),
    st.builds(
        lambda name, count: f"x = {name}{'.a' * count}", st.sampled_from(["CONFIG", "y"]), st.sampled_from([1, 900])
    ),
)
# Random bytes are no notebook, so they never come as far as the builder.
UPLOADS = {f"/{Route.BUILD}": HTTPStatus.OK, f"/{Route.APPS}": HTTPStatus.CREATED}
_NOTEBOOKS = st.builds(lambda line: notebook(f"{CELL}\n{line}\n"), _LINES)


@dataclass(frozen=True)
class Served:
    """A service in a thread of its own, with a project in it."""

    url: str
    tokens: dict[str, dict[str, str]]  # headers by person
    ids: dict[str, str]  # of what is in the project, by the name of the path's parameter


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("fuzzed")
    loop, ready, over = asyncio.new_event_loop(), threading.Event(), asyncio.Event()
    found: list[Served] = []

    async def serve() -> None:
        async with served_world(folder, FakeHub(), UNLIMITED) as world:
            found.append(await _with_a_project(world, folder))
            ready.set()
            await over.wait()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    assert ready.wait(30)
    yield found[0]
    loop.call_soon_threadsafe(over.set)
    thread.join()
    loop.close()


async def _with_a_project(world: World, folder: Path) -> Served:
    project_id, fab_hash = await world.shared_project()
    run_id = world.start_run(project_id)
    world.report_round(project_id, run_id, 1)
    world.finish_run(project_id, run_id, b"weights", folder)
    ids = {
        "project_id": project_id,
        "fab_hash": fab_hash,
        "run_id": run_id,
        "participation_id": world.participation(project_id, "ben"),
        "user": "ben",
        "site": "south",
        "name": "tabular",
        "dataset": "slides",
    }
    return Served(world.url, {name: world.person(name).headers for name in PEOPLE.values() if name}, ids)


SCHEMA = schemathesis.openapi.from_dict(document())
LABELS = [f"{method.upper()} {path}" for path, operations in document()["paths"].items() for method in operations]


@pytest.mark.parametrize("label", LABELS)
@pytest.mark.parametrize("role", PEOPLE)
def test_no_request_is_too_odd(served: Served, role: str, label: str) -> None:
    method, _, path = label.partition(" ")
    operation = SCHEMA[path][method]
    name = PEOPLE[role]
    headers = served.tokens[name] if name else {}
    strategies = [operation.as_strategy(mode) for mode in GenerationMode]
    answered = {int(one) for one in operation.definition.raw["responses"] if one.isdigit()}
    seen: set[int] = set()

    @settings(
        max_examples=EACH * (4 if path in UPLOADS else 1),
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @seed(SEED)
    @given(case=st.one_of(strategies), known=st.sets(st.sampled_from(sorted(served.ids))), upload=_NOTEBOOKS)
    def ask(case: Case, known: set[str], upload: bytes) -> None:
        if path in UPLOADS and "filename" in (case.query or {}):
            case.body, case.query = upload, {"filename": "a.ipynb"}
            known = known | {"project_id"}
        _name_what_there_is(case, {one: served.ids[one] for one in known} if path not in ENDLESS else {})
        case.headers.pop("Authorization", None)
        case.headers.update(headers)
        response = case.call(base_url=served.url.rstrip("/"), session=session, timeout=30)
        case.validate_response(response, checks=CHECKS)
        assert response.status_code in answered | REFUSALS
        seen.add(response.status_code)
        if response.status_code >= HTTPStatus.BAD_REQUEST:  # an app's own code may say anything
            assert [one for one in TELLTALES if one in response.text] == []

    with requests.Session() as session:
        ask()
    if path in UPLOADS and role == "owner":
        assert UPLOADS[path] in seen


def _name_what_there_is(case: Case, ids: dict[str, str]) -> None:
    """Random ids lead nowhere: put real ones in some places. And wait for nothing."""
    for values in (case.path_parameters, case.body):
        if isinstance(values, dict):
            values.update({name: ids[name] for name in values.keys() & ids.keys()})
    if isinstance(case.query, dict) and "wait" in case.query:
        case.query["wait"] = case.query["wait"] if not _is_number(case.query["wait"]) else "0"


def _is_number(value: Any) -> bool:
    try:
        float(value)
    except (TypeError, ValueError):
        return False
    return True
