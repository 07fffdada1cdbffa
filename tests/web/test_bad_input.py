"""Nothing that can be sent makes a 500, and every refusal says what and what next."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from federator.contract import Route, Scope

from hub_service.rate_limits import Counted
from hub_service.web.base import Upload
from hub_service.web.schema import MAX_BODY, MAX_UPLOAD, MAX_WAIT_S
from tests.fakes.hub import FakeHub
from tests.fakes.web_world import CELL, UNLIMITED, World, notebook, path, plain, served_world

BODIES: list[tuple[Route, str, bytes | str | dict[str, Any], str]] = [
    (Route.PROJECTS, "POST", b"", "body"),
    (Route.PROJECTS, "POST", b"[", "body"),
    (Route.PROJECTS, "POST", b"\xff\xfe", "body"),
    (Route.PROJECTS, "POST", b"[]", "body"),
    (Route.PROJECTS, "POST", b'{"name": "\\ud800"}', "body"),
    (Route.PROJECTS, "POST", b"[" * 100_000, "body"),
    (Route.PROJECTS, "POST", {}, "name"),
    (Route.PROJECTS, "POST", {"name": 5}, "name"),
    (Route.PROJECTS, "POST", {"name": "x", "colour": "red"}, "colour"),
    (Route.PROJECTS, "POST", {"name": ""}, "name"),
    (Route.PROJECTS, "POST", {"name": "x" * 81}, "name"),
    (Route.PROJECTS, "POST", {"name": "a\x00b"}, "name"),
    (Route.PROJECTS, "POST", {"name": "two\nlines"}, "name"),
    (Route.PROJECTS, "POST", {"name": "x", "description": "y" * 5000}, "description"),
    (Route.RUNS, "POST", {"rounds": "5"}, "rounds"),
    (Route.RUNS, "POST", {"rounds": 2.5}, "rounds"),
    (Route.RUNS, "POST", {"rounds": True}, "rounds"),
    (Route.RUNS, "POST", b'{"rounds": NaN}', "rounds"),
    (Route.RUNS, "POST", b'{"rounds": 1e400}', "rounds"),
    (Route.RUNS, "POST", {"rounds": 0}, "rounds"),
    (Route.RUNS, "POST", {"rounds": 10**30}, "rounds"),
    (Route.RUNS, "POST", {"rounds": 5, "compare": "yes"}, "compare"),
    (Route.INVITATIONS, "POST", {"user": "nobody-here"}, "nobody-here"),
    (Route.INVITATIONS, "POST", {"user": ""}, "user"),
    (Route.INVITATIONS, "POST", {"user": "../../admin?x=1#"}, "user"),
    (Route.INVITATIONS, "POST", {"user": "ada"}, "yourself"),
    (Route.INVITATIONS, "POST", {"user": "nowhere"}, "site"),
    (Route.PARTICIPATION, "POST", {"dataset": "not-ours"}, "not-ours"),
    (Route.APPROVALS, "POST", {"project_id": "p"}, "fab_hash"),
    (Route.NODE, "PUT", {"public_key": "no key"}, "key"),
    (Route.NODE, "PUT", {"public_key": "schlüssel"}, "key"),
    (Route.NODE, "PUT", {"public_key": "k" * 5000}, "key"),
    (Route.CLIENT, "PUT", {"state": "dancing"}, "state"),
    (Route.CLIENT, "PUT", {"state": "ready", "detail": "x" * 3000}, "detail"),
]


async def ids_of(world: World) -> dict[str, str]:
    project_id = world.project()
    fab_hash = world.add_app(project_id)
    world.coordinator.join(world.principal("ada"), project_id, "slides")
    participation_id = world.participation(project_id, "ada")
    return {"project_id": project_id, "fab_hash": fab_hash, "participation_id": participation_id, "run_id": "r"}


async def test_bad_bodies_are_refused_by_name(world: World) -> None:
    ids = await ids_of(world)
    ids_without_part = ids | {"project_id": world.project(name="Second")}
    async with world.api("ada") as api:
        for route, method, body, named in BODIES:
            content = json.dumps(body).encode() if isinstance(body, dict) else body
            places = ids_without_part if route is Route.PARTICIPATION else ids
            answer = await api.request(method, path(route, **places), content=content)
            problem = plain(answer)
            assert answer.status_code == 400, (route, body, problem)
            assert named in problem["message"], (route, body, problem)
            assert problem["next_step"], (route, body)


@pytest.mark.parametrize(
    ("state", "expires_at", "status"),
    [
        ("approved", "2027-01-01", 400),
        ("approved", "2027-01-01T00:00:00", 400),
        ("approved", "soon", 400),
        ("approved", "2020-01-01T00:00:00Z", 400),
        ("waiting", None, 400),
        ("expired", None, 400),
        ("revoked", None, 409),
        ("approved", "2027-01-01T00:00:00+01:00", 200),
    ],
)
async def test_decisions(world: World, state: str, expires_at: str | None, status: int) -> None:
    ids = await ids_of(world)
    decision = {"project_id": ids["project_id"], "fab_hash": ids["fab_hash"], "site": "north", "dataset": "slides"}
    async with world.api("norma") as api:
        answer = await api.post(Route.APPROVALS, json={**decision, "state": state, "expires_at": expires_at})
    assert answer.status_code == status, answer.text


@pytest.mark.parametrize(
    ("conditions", "status"),
    [
        ({"most_rounds": 0}, 400),
        ({"most_rounds": "5"}, 400),
        ({"most_rounds": 1.5}, 400),
        ({"largest_message": 100}, 400),
        ({"largest_message": -1}, 400),
        ({"members": ["ada", "nobody"]}, 400),
        ({"members": "ada"}, 400),
        ({"members": []}, 409),
        ({"most_rounds": 5, "largest_message": 10**7, "members": ["ada"]}, 200),
    ],
)
async def test_conditions(world: World, conditions: dict[str, object], status: int) -> None:
    ids = await ids_of(world)
    decision = {"project_id": ids["project_id"], "fab_hash": ids["fab_hash"], "site": "north", "dataset": "slides"}
    async with world.api("norma") as api:
        answer = await api.post(Route.APPROVALS, json={**decision, "state": "approved", **conditions})
    assert answer.status_code == status, answer.text
    if status == 200:
        assert plain(answer)["conditions"] == conditions


@pytest.mark.parametrize("wait", ["soon", "-1", str(MAX_WAIT_S + 1), "nan", "inf", "1e400"])
async def test_a_wait_that_is_none(world: World, wait: str) -> None:
    async with world.api("ada") as api:
        answer = await api.get(Route.ASSIGNMENTS, params={"version": "0", "wait": wait})
    assert answer.status_code == 400
    assert "wait" in plain(answer)["message"]


@pytest.mark.parametrize(
    "address",
    [
        "api/projects/%ff",
        "api/projects/%00",
        "api/projects/..%2f..",
        "api/runs/%F0%9F%A6%86/model",
        "projects/%ff",
        "approvals/%ff/x/y/z",
        "static/..%2f..%2fbase.py",
        "static/%00",
        "%ff",
    ],
)
async def test_strange_addresses(world: World, address: str) -> None:
    async with world.browser("ada") as browser:
        await browser.get("")
        answer = await browser.get(address)
    assert answer.status_code in (400, 404)


async def test_a_method_that_a_route_does_not_take(world: World) -> None:
    async with world.api("ada") as api:
        answer = await api.delete(Route.HOME)
    assert answer.status_code == 405
    assert plain(answer)["code"] == "method-not-allowed"


async def test_markup_in_names_is_text(world: World) -> None:
    name = "<script>alert(1)</script>"
    project_id = world.project(name=name)
    world.add_app(project_id, source=CELL + f"\n# {name}\n")
    world.coordinator.join(world.principal("ada"), project_id, "slides")
    fab_hash = world.store.app_versions(project_id)[0].fab_hash
    for user, page in (
        ("ada", ""),
        ("ada", f"projects/{project_id}"),
        ("ada", f"projects/{project_id}/apps/{fab_hash}"),
        ("ada", "panel"),
        ("norma", "approvals"),
        ("norma", f"approvals/{project_id}/{fab_hash}/north/slides"),
    ):
        async with world.browser(user) as browser:
            text = (await browser.get(page)).text
        assert name not in text
        assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text, page


async def test_a_large_body_is_refused(world: World) -> None:
    async with world.api("ada") as api:
        answer = await api.post(Route.PROJECTS, json={"name": "x" * (MAX_BODY + 1)})
    assert answer.status_code == 413
    assert "1 MB" in plain(answer)["message"]


@pytest.mark.parametrize("name", ["ada", "ben", None])
async def test_a_notebook_of_50_mb_is_refused_in_words(world: World, name: str | None) -> None:
    """Even its sender's status is told, not a broken connection."""
    project_id = world.project()
    async with world.api(name) as api:
        address = path(Route.APPS, project_id=project_id)
        answer = await api.post(address, params={"filename": "big.ipynb"}, content=b" " * (50 << 20))
    assert answer.status_code == (413 if name else 401)
    if name:
        assert f"{MAX_UPLOAD >> 20} MB" in plain(answer)["message"]


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Bytes of an upload that are in memory, after each piece of it."""
    sizes: list[int] = []
    receive = Upload.data_received

    def noted(upload: Upload, chunk: bytes) -> None:
        receive(upload, chunk)
        sizes.append(len(upload._content))

    monkeypatch.setattr(Upload, "data_received", noted)
    return sizes


async def test_an_upload_is_not_kept_beyond_the_limit(world: World, kept: list[int]) -> None:
    async with world.api("ada") as api:
        await api.post(path(Route.BUILD), params={"filename": "a.zip"}, content=b"x" * (MAX_UPLOAD + (1 << 20)))
    assert MAX_UPLOAD - (1 << 20) < max(kept) <= MAX_UPLOAD
    assert kept[-1] == 0


@pytest.mark.parametrize("headers", [{}, {"Authorization": "token of-nobody"}])
async def test_of_a_strangers_upload_nothing_is_kept(world: World, kept: list[int], headers: dict[str, str]) -> None:
    async with world.api(None) as api:
        for address in (path(Route.BUILD), path(Route.APPS, project_id="p"), "projects/new", "projects/p/apps"):
            answer = await api.post(address, content=b"x" * (1 << 20), headers=headers)
            assert answer.status_code == 401, address
    assert len(kept) >= 4
    assert max(kept) == 0


async def test_an_upload_whose_sender_the_hub_named_too_late(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of it was kept; that is not told as a file that is no notebook."""
    known = iter([None, Scope.ACCESS])
    user_for_token = world.hub_auth.user_for_token

    async def late(*arguments: Any, **options: Any) -> Any:
        return await user_for_token(*arguments, **options) if next(known) else None

    monkeypatch.setattr(world.hub_auth, "user_for_token", late)
    async with world.api("ada") as api:
        answer = await api.post(path(Route.BUILD), params={"filename": "a.ipynb"}, content=notebook())
    assert (answer.status_code, plain(answer)["next_step"]) == (503, "Send it again.")


async def test_who_has_asked_too_often_hears_it_before_the_file_is_sent(tmp_path: Path) -> None:
    limits = {**UNLIMITED, Counted.STRANGER: "1 per 1 minute"}
    async with served_world(tmp_path, FakeHub(), limits) as world, world.api(None) as api:
        assert (await api.get(path(Route.PROJECTS))).status_code == 401
        reader, writer = await asyncio.open_connection("127.0.0.1", httpx.URL(world.url).port)
        address = f"{httpx.URL(world.url).path}{Route.BUILD}"
        writer.write(f"POST {address} HTTP/1.1\r\nHost: hub\r\nContent-Length: {MAX_UPLOAD}\r\n\r\n".encode())
        async with asyncio.timeout(10):
            assert b" 429 " in await reader.readline()
        writer.close()


async def test_a_sender_of_endless_bytes_is_cut_off(world: World) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", httpx.URL(world.url).port)
    writer.write(
        f"POST {httpx.URL(world.url).path}api/projects/p/apps HTTP/1.1\r\nHost: hub\r\n"
        f"Content-Length: {1 << 40}\r\n\r\n".encode()
    )
    status = await reader.readline()
    writer.close()
    assert b" 400 " in status


@pytest.mark.parametrize(
    ("filename", "content", "named"),
    [
        ("a.ipynb", b"not json", "notebook"),
        ("a.ipynb", b"", "notebook"),
        ("a.zip", b"PK no zip", "zip"),
        ("a.txt", b"text", "notebook"),
        ("a.ipynb", notebook("def train(:"), "2"),
        ("a.ipynb", notebook("x = 1"), "build_model"),
        ("a.ipynb", notebook(f"{CELL}\nDEPENDENCIES = ['\\ud800']"), "“?”, which names no package"),
        ("a.ipynb", notebook(f"{CELL}\nCONFIG = {{'a': '\\ud800'}}"), "half of a character"),
    ],
)
async def test_what_is_no_app_is_refused(world: World, filename: str, content: bytes, named: str) -> None:
    project_id = world.project()
    async with world.api("ada") as api:
        answer = await api.post(path(Route.APPS, project_id=project_id), params={"filename": filename}, content=content)
    assert answer.status_code == 400
    assert named in plain(answer)["message"]


async def test_an_upload_needs_a_file_name(world: World) -> None:
    async with world.api("ada") as api:
        answer = await api.post(path(Route.APPS, project_id=world.project()), content=notebook())
    assert answer.status_code == 400
    assert "filename" in plain(answer)["next_step"]
