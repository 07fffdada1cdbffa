"""A second tenant sees, lists, joins and downloads nothing of the first: every route that the service describes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from examples.demo.browser import Browser
from examples.demo.people import COLLEAGUES, RESEARCHERS, STEWARDS
from examples.demo.scenario import Study, all_ready, approve
from examples.demo.stack import Stack

pytestmark = pytest.mark.needs_node

RUN_S = 120.0
SECRET_NAME = "Sarcoma before publication"
# Answers to anyone who may use the service; what they answer with is checked for the other tenant's names.
OWN_ROUTES = {
    ("get", "api/openapi.json"),
    ("get", "api/home"),
    ("get", "api/site"),
    ("get", "api/projects"),
    ("post", "api/projects"),
    ("get", "api/approvals"),
    ("get", "api/assignments"),
    ("get", "api/starters"),
    ("get", "api/starters/{name}"),
    ("get", "api/signing-key"),
    ("post", "api/build"),
    ("put", "api/site/packages"),
}


@dataclass(frozen=True)
class FirstTenant:
    ids: dict[str, str]
    description: dict[str, Any]


@pytest.fixture(scope="module")
async def first(stack: Stack, study: Study) -> FirstTenant:
    """A project with a member, a participation, an approved version and a finished run, known to its site's steward."""
    owner = Browser(COLLEAGUES[0].username, COLLEAGUES[0].subject, stack.origin)
    await owner.log_in()
    page = await owner.submit(
        "projects/new",
        {"name": SECRET_NAME, "description": ""},
        {"app": (study.notebook.name, study.notebook.read_bytes(), "application/x-ipynb+json")},
    )
    project_id = page.url.path.rpartition("/")[2]
    joined = await owner.post(f"api/projects/{project_id}/participation", {"dataset": study.dataset})
    project = await owner.get(f"api/projects/{project_id}")
    description = await owner.get("api/openapi.json")
    run_id = await finished_run(owner, project_id, stack)
    await owner.close()
    ids = {
        "project_id": project_id,
        "fab_hash": project["versions"][0]["fab_hash"],
        "participation_id": joined["participation_id"],
        "user": COLLEAGUES[0].username,
        "run_id": run_id,
        "site": COLLEAGUES[0].site,
        "name": "tabular",
    }
    return FirstTenant(ids, description)


async def finished_run(owner: Browser, project_id: str, stack: Stack) -> str:
    steward = Browser(STEWARDS[0].username, STEWARDS[0].subject, stack.origin)
    await steward.log_in()
    await approve(steward, project_id)
    await steward.close()
    await owner.start_server()
    await all_ready(owner, project_id, 1)
    run_id = str((await owner.post(f"api/projects/{project_id}/runs", {"rounds": 1, "compare": False}))["id"])
    async with asyncio.timeout(RUN_S):
        async for kind, run in owner.watch(project_id):
            if kind == "run" and run["summary"]["status"] == "finished":
                break
    await owner.stop_server()
    assert len(await owner.download(f"api/runs/{run_id}/model")) > 0  # there is something to hide
    return run_id


@pytest.fixture(scope="module", params=["researcher of another site", "steward of another site"])
async def second(stack: Stack, request: pytest.FixtureRequest) -> AsyncIterator[Browser]:
    known = RESEARCHERS[1] if request.param.startswith("researcher") else STEWARDS[1]
    person = Browser(known.username, known.subject, stack.origin)
    await person.log_in()
    await person.open()
    yield person
    await person.close()


async def test_every_described_route(first: FirstTenant, second: Browser) -> None:
    routes = [
        (method, path.lstrip("/"), operation)
        for path, operations in first.description["paths"].items()
        for method, operation in operations.items()
    ]
    assert len(routes) > 20
    for method, path, operation in routes:
        address = path.format(**first.ids) + sample_query(operation)
        answer = await second.request(method, address, sample_body(operation, first))
        assert SECRET_NAME not in answer.text, f"{method} {path}"
        if (method, path) not in OWN_ROUTES:
            assert answer.status_code == httpx.codes.NOT_FOUND, f"{method} {path}: {answer.status_code} {answer.text}"


async def test_pages(first: FirstTenant, second: Browser) -> None:
    project, fab = first.ids["project_id"], first.ids["fab_hash"]
    for page in (f"projects/{project}", f"approvals/{project}/{fab}/{COLLEAGUES[0].site}/biopsies"):
        answer = await second.request("get", page)
        assert answer.status_code == httpx.codes.NOT_FOUND
        assert SECRET_NAME not in answer.text
    assert SECRET_NAME not in await second.open()


async def test_unknown_and_forbidden_look_alike(first: FirstTenant, second: Browser) -> None:
    theirs = await second.request("get", f"api/projects/{first.ids['project_id']}")
    nobodys = await second.request("get", "api/projects/0123456789")
    assert (theirs.status_code, theirs.json()) == (nobodys.status_code, nobodys.json())


def sample_query(operation: dict[str, Any]) -> str:
    required = [one["name"] for one in operation.get("parameters", ()) if one["in"] == "query" and one.get("required")]
    return "?filename=notebook.ipynb" if required == ["filename"] else ""


def sample_body(operation: dict[str, Any], first: FirstTenant) -> dict[str, Any] | None:
    """A body that is right in form and names the first tenant's things."""
    content = operation.get("requestBody", {}).get("content", {})
    reference = content.get("application/json", {}).get("schema", {}).get("$ref", "")
    if not reference:
        return {} if content else None
    schema = first.description["components"]["schemas"][reference.rpartition("/")[2]]
    samples = {
        "name": "x",
        "description": "",
        "user": RESEARCHERS[1].username,
        "dataset": "biopsies",
        "site": COLLEAGUES[0].site,
        "rounds": 1,
        "compare": False,
        "project_id": first.ids["project_id"],
        "fab_hash": first.ids["fab_hash"],
        "reason": "",
        "detail": "",
        "public_key": "ecdsa-sha2-nistp384 AAAA",
        "on_outage": "stop",
        "grace_s": 60,
    }
    body = {name: samples[name] for name in schema["properties"] if name in samples}
    if "state" in schema["properties"]:
        body["state"] = "approved" if "fab_hash" in body else "ready"
    return body
