"""Schemathesis on the served OpenAPI document: every operation, by several people, with fitting and odd requests.

No answer is an error of the service or tells of its insides, each is what the document says, and no memory is kept. The
requests are the same in each run; `FUZZ_CASES` and `FUZZ_SEED` are as for tests/singleuser/test_hostile_fleet.py.
"""

from __future__ import annotations

import json
import os
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
from tests.fakes.fuzzed_service import Served, fuzzed_service
from tests.fakes.web_world import CELL, notebook

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
OUTPUT = Path(__file__).resolve().parents[2] / "test-output"
MOST_GROWTH = 16 << 20  # bytes
TELLTALES = ("Traceback", '.py"', "/site-packages/", "hub_service.")
# A stream of what there is has no end, and what is deleted is there no more for the others to ask for.
UNNAMED = {f"GET /{Route.EVENTS}", f"DELETE /{Route.PROJECT}"}
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


@dataclass
class Watched:
    """The service, and how much memory it had once everything had been asked of it, by the first of the people."""

    served: Served
    asked: int = 0  # how many operations, by how many people
    before: int = 0

    def was_asked(self) -> None:
        self.asked += 1
        if self.asked == len(LABELS):
            self.before = self.served.memory()


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    with fuzzed_service(tmp_path_factory.mktemp("fuzzed")) as served:
        yield Watched(served)


SCHEMA = schemathesis.openapi.from_dict(document())
LABELS = [f"{method.upper()} {path}" for path, operations in document()["paths"].items() for method in operations]


@pytest.mark.parametrize("label", LABELS)
@pytest.mark.parametrize("role", PEOPLE)
def test_no_request_is_too_odd(watched: Watched, role: str, label: str) -> None:
    served = watched.served
    method, _, path = label.partition(" ")
    operation = SCHEMA[path][method]
    name = PEOPLE[role]
    headers = served.headers[name] if name else {}
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
        _name_what_there_is(case, {one: served.ids[one] for one in known} if label not in UNNAMED else {})
        case.headers.pop("Authorization", None)
        case.headers.update(headers)
        response = case.call(base_url=served.url.rstrip("/"), session=session, timeout=30)
        case.validate_response(response, checks=CHECKS)
        assert response.status_code in answered | REFUSALS
        seen.add(response.status_code)
        if response.status_code >= HTTPStatus.BAD_REQUEST:  # an app's own code may say anything
            assert [one for one in TELLTALES if one in response.text] == []

    try:
        with requests.Session() as session:
            ask()
    finally:
        watched.was_asked()
    if path in UPLOADS and role == "owner":
        assert UPLOADS[path] in seen


def test_the_memory_is_given_back(watched: Watched) -> None:
    """Whatever was asked above. The figure is kept in test-output/openapi-fuzz.json."""
    assert watched.asked == len(LABELS) * len(PEOPLE), "it measures what the tests above have done: run them, too"
    growth = watched.served.memory() - watched.before
    OUTPUT.mkdir(exist_ok=True)
    report = {"cases": EACH * watched.asked, "seed": SEED, "growth in bytes": growth}
    (OUTPUT / "openapi-fuzz.json").write_text(json.dumps(report))
    assert growth < MOST_GROWTH


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
