"""Pages as a browser uses them: forms, messages, XSRF."""

from __future__ import annotations

import base64
import html
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import nbformat
import pytest

from hub_service.domain.errors import Unavailable
from hub_service.web.templating import BADGES, Templates
from tests.fakes.hub import FakeHub
from tests.fakes.web_world import CELL, World, notebook, served_world

TEMPLATES = Path(__file__).parents[2] / "hub_service" / "web" / "templates"


@asynccontextmanager
async def logged_in(world: World, name: str) -> AsyncIterator[httpx.AsyncClient]:
    async with world.browser(name) as browser:
        await browser.get("")
        yield browser


def token(browser: httpx.AsyncClient) -> dict[str, str]:
    return {"_xsrf": browser.cookies["_xsrf"]}


def alerts(page: httpx.Response) -> str:
    found = re.findall(r'role="(?:alert|status)">(.*?)</div>', page.text, re.DOTALL)
    return html.unescape(re.sub(r"<[^>]+>", "", " ".join(found)))


async def new_project(browser: httpx.AsyncClient, *, name: str = "Lungs", app: bytes | None = None) -> httpx.Response:
    fields = {"name": name, "description": "Two\nlines", **token(browser)}
    return await browser.post("projects/new", data=fields, files={"app": ("lungs.ipynb", app or notebook())})


async def test_a_project_is_made_on_one_page(world: World) -> None:
    async with logged_in(world, "ada") as browser:
        page = await new_project(browser)
        assert page.history[0].status_code == 303
        assert "The project is created." in alerts(page)
        assert "Version 1: lungs" in page.text
        again = await browser.get(str(page.url))
        assert "The project is created." not in alerts(again)  # said once


async def test_a_project_whose_app_finds_no_room_is_not_made(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who presses the button again would have two of one name, the first one empty."""

    def refuse(content: bytes) -> str:
        raise Unavailable("The service cannot write to its disk.", "Try again later.")

    async with logged_in(world, "ada") as browser:
        lines = len(world.store.audit_lines())
        with monkeypatch.context() as full:
            full.setattr(world.artifacts, "put_fab", refuse)
            page = await new_project(browser)
        assert page.status_code == 503
        assert "cannot write to its disk" in alerts(page)
        assert carried(page)  # the file is not chosen again
        assert not world.store.projects()
        assert len(world.store.audit_lines()) == lines
        assert "The project is created." in alerts(await new_project(browser))
    assert [one.name for one in world.store.projects()] == ["Lungs"]


async def test_what_was_put_in_is_kept(world: World) -> None:
    async with logged_in(world, "ada") as browser:
        page = await new_project(browser, name="x" * 81)
        assert page.status_code == 400
        assert "1 to 80 characters" in alerts(page)
        assert f'value="{"x" * 81}"' in page.text
        assert "Two\nlines</textarea>" in page.text
        without = await browser.post("projects/new", data={"name": "Lungs", **token(browser)})
        assert "No notebook or app was chosen." in alerts(without)
        assert 'value="Lungs"' in without.text
    assert world.coordinator.home(world.principal("ada")).projects == ()


async def test_a_refused_notebook_creates_nothing_and_is_kept(world: World) -> None:
    async with logged_in(world, "ada") as browser:
        page = await new_project(browser, app=notebook("x = 1"))
    assert page.status_code == 400
    assert "build_model" in alerts(page)
    assert "<strong>lungs.ipynb</strong> is kept" in page.text
    assert world.coordinator.home(world.principal("ada")).projects == ()


def carried(page: httpx.Response) -> dict[str, str]:
    """The hidden fields of a page."""
    fields = re.findall(r'<input type="hidden" name="([^"]+)" value="([^"]*)"', page.text)
    return {name: html.unescape(value) for name, value in fields}


async def test_a_new_project_shows_first_what_leaves_and_what_stays(world: World) -> None:
    private = "password = 'not for the sites'"
    cells = [nbformat.v4.new_code_cell(private), nbformat.v4.new_code_cell(CELL, metadata={"tags": ["federated"]})]
    content = nbformat.writes(nbformat.v4.new_notebook(cells=cells)).encode()
    async with logged_in(world, "ada") as browser:
        fields = {"name": "", "description": "Two\nlines", "step": "preview", **token(browser)}
        preview = await browser.post("projects/new", data=fields, files={"app": ("a & b.ipynb", content)})
        assert preview.status_code == 200
        assert "def" in preview.text
        assert "Cell 1 and all text, in your notebook." in preview.text
        assert private not in html.unescape(preview.text)
        assert 'value="a &amp; b"' in preview.text  # the name that is offered
        assert world.coordinator.home(world.principal("ada")).projects == ()

        kept = carried(preview)
        back = await browser.post("projects/new", data={**kept, "name": "Mine", "step": "back", **token(browser)})
        assert "<strong>a &amp; b.ipynb</strong> is kept" in back.text
        assert carried(back) == kept
        wrong = await browser.post(
            "projects/new", data={**carried(back), "name": "", "step": "create", **token(browser)}
        )
        assert wrong.status_code == 400
        assert carried(wrong) == kept
        made = await browser.post(
            "projects/new", data={**carried(wrong), "name": "Mine", "step": "create", **token(browser)}
        )
        assert "The project is created." in alerts(made)
        assert "Version 1: a &amp; b" in made.text
    (project,) = world.coordinator.home(world.principal("ada")).projects
    assert project.name == "Mine"


async def test_a_starter_is_one_click_away_from_its_preview(world: World) -> None:
    async with logged_in(world, "ada") as browser:
        form = await browser.get("projects/new")
        for one in world.coordinator.starters(world.principal("ada")):
            assert f'name="starter" value="{one.name}"' in form.text
            assert (await browser.get(f"api/starters/{one.name}")).content
        unknown = await browser.post("projects/new", data={"starter": "none", "step": "preview", **token(browser)})
        assert unknown.status_code == 404
        assert "There is no starter" in alerts(unknown)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"step": "dance"}, "no such step"),
        ({"kept_filename": "a.ipynb", "kept_content": "no base64!"}, "did not come along unharmed"),
        ({"kept_filename": "a.ipynb", "kept_content": "AAAA"}, "a.ipynb"),
    ],
)
async def test_a_form_that_was_tampered_with_creates_nothing(world: World, fields: dict[str, str], said: str) -> None:
    async with logged_in(world, "ada") as browser:
        files = None if "kept_content" in fields else {"app": ("lungs.ipynb", notebook())}
        answer = await browser.post(
            "projects/new", data={"name": "Lungs", "description": "", **fields, **token(browser)}, files=files
        )
    assert answer.status_code == 400
    assert said in answer.text
    assert world.coordinator.home(world.principal("ada")).projects == ()


async def test_a_file_that_is_carried_along_has_the_same_limit(world: World) -> None:
    large = base64.b64encode(b" " * ((20 << 20) + 1)).decode()
    fields = {"name": "Lungs", "step": "create", "kept_filename": "large.ipynb", "kept_content": large}
    async with logged_in(world, "ada") as browser:
        answer = await browser.post("projects/new", data={**fields, **token(browser)})
    assert answer.status_code == 413
    assert "large.ipynb has more than 20 MB" in alerts(answer)
    assert 'value="Lungs"' in answer.text


async def test_a_huge_file_in_the_form_is_refused_in_words(world: World) -> None:
    async with logged_in(world, "ada") as browser:
        answer = await browser.post(
            "projects/new", params=token(browser), data={"name": "Lungs"}, files={"app": ("a.ipynb", b" " * (25 << 20))}
        )
    assert answer.status_code == 413
    assert "20 MB" in alerts(answer)


@pytest.mark.parametrize("kind", ["multipart/form-data", "multipart/form-data; boundary=x", "text/plain", ""])
async def test_what_is_no_form_is_refused(world: World, kind: str) -> None:
    async with logged_in(world, "ada") as browser:
        answer = await browser.post(
            "projects/new", params=token(browser), content=b"--x\r\nnonsense", headers={"Content-Type": kind}
        )
    assert answer.status_code == 400


async def test_the_whole_way_by_forms(world: World) -> None:
    async with logged_in(world, "ada") as ada, logged_in(world, "ben") as ben, logged_in(world, "norma") as norma:
        project = (await new_project(ada)).url.path.rpartition("/")[2]
        at = f"projects/{project}"

        refused = await ada.post(f"{at}/invitations", data={"user": "nobody-here", **token(ada)})
        assert refused.status_code == 400
        assert "no user “nobody-here”" in alerts(refused)
        assert 'value="nobody-here"' in refused.text
        invited = await ada.post(f"{at}/invitations", data={"user": "ben", **token(ada)})
        assert "ben is invited" in alerts(invited)

        assert "Invitations" in (await ben.get("")).text
        assert "You are invited." in (await ben.get(at)).text
        declined = await ben.post(f"{at}/decline", data=token(ben))
        assert "declined" in alerts(declined)
        assert (await ben.get(at)).status_code == 404
        await ada.post(f"{at}/invitations", data={"user": "ben", **token(ada)})
        joined = await ben.post(f"{at}/participation", data={"dataset": "scans", **token(ben)})
        assert "You take part with “scans”" in alerts(joined)
        twice = await ben.post(f"{at}/participation", data={"dataset": "slides", **token(ben)})
        assert twice.status_code == 409
        assert "You take part already" in alerts(twice)
        assert (await ben.post(f"{at}/decline", data=token(ben))).status_code == 403

        await ada.post(f"{at}/participation", data={"dataset": "slides", **token(ada)})
        waiting = (await norma.get("approvals")).text
        review = re.search(r'href="(/services/federation/approvals/[^"]+)"', waiting)
        assert review is not None
        page = httpx.URL(world.url).join(review[1])
        assert "def build_model" in re.sub(r"<[^>]+>", "", (await norma.get(page)).text)
        past = {"state": "approved", "expires": "2001-01-01", "reason": "Kept text", **token(norma)}
        refused = await norma.post(page, data=past)
        assert refused.status_code == 400
        assert "Kept text</textarea>" in refused.text
        for wrong in ({"state": "dancing"}, {"state": "approved", "expires": "tomorrow"}):
            assert (await norma.post(page, data={**wrong, **token(norma)})).status_code == 400
        good = {"state": "approved", "expires": "2099-01-01", "reason": "", **token(norma)}
        approved = await norma.post(page, data=good)
        assert "Version 1 of Lungs is approved." in alerts(approved)

        none_ready = await ada.post(f"{at}/runs", data={"rounds": "7", **token(ada)})
        assert none_ready.status_code == 409
        assert "No site is ready" in alerts(none_ready)
        assert 'value="7"' in none_ready.text
        assert (await ada.post(f"{at}/runs", data={"rounds": "many", **token(ada)})).status_code == 400
        world.make_ready(project)
        started = await ada.post(f"{at}/runs", data={"rounds": "3", "compare": "yes", **token(ada)})
        assert "The run is starting." in alerts(started)
        run_id = world.store.runs(project)[0].id
        assert world.store.runs(project)[0].compare
        stopping = await ada.post(f"{at}/stop", data={"run": run_id, **token(ada)})
        assert "being stopped" in alerts(stopping)
        assert (await ben.post(f"{at}/stop", data={"run": run_id, **token(ben)})).status_code == 403

        newer = await ada.post(f"{at}/apps", data=token(ada), files={"app": ("b.ipynb", notebook(CELL + "# two"))})
        assert "Version 2 is added." in alerts(newer)
        same = await ada.post(f"{at}/apps", data=token(ada), files={"app": ("b.ipynb", notebook(CELL + "# two"))})
        assert same.status_code == 409

        revoked = await norma.post(page, data={"state": "revoked", **token(norma)})
        assert "no longer approved" in alerts(revoked)
        assert (await ada.post(f"{at}/remove", data={"user": "ada", **token(ada)})).status_code == 409
        removed = await ada.post(f"{at}/remove", data={"user": "ben", **token(ada)})
        assert "ben is removed." in alerts(removed)
        left = await ada.post(f"{at}/leave", data=token(ada))
        assert "no longer take part" in alerts(left)


@pytest.mark.parametrize("address", ["projects/{}/invitations", "projects/{}/apps", "projects/new", "api/projects"])
async def test_a_cookie_alone_changes_nothing(world: World, address: str) -> None:
    project = world.project()
    async with logged_in(world, "ada") as browser:
        for fields in ({"user": "ben"}, {"user": "ben", "_xsrf": "made-up"}):
            answer = await browser.post(address.format(project), data=fields)
            assert answer.status_code == 403
            assert "Reload the page" in answer.text
    assert len(world.store.members(project)) == 1


async def test_a_pages_script_needs_the_token_to_read(world: World) -> None:
    project = world.project()
    async with logged_in(world, "ada") as browser:
        script = {"Sec-Fetch-Mode": "cors", "Sec-Fetch-Site": "cross-site"}
        assert (await browser.get(f"projects/{project}/events", headers=script)).status_code == 403
        assert (await browser.get("api/home", headers=script)).status_code == 403
        assert (await browser.get("api/home", headers={**script, "X-XSRFToken": token(browser)["_xsrf"]})).is_success


async def test_the_panel_is_a_fragment_that_the_hubs_home_page_may_fetch(world: World) -> None:
    project_id, _ = await world.shared_project()
    await world.coordinator.invite(world.principal("ada"), project_id, "cleo")
    world.add_app(project_id, source=CELL + "# newer")
    as_script = {"Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Site": "same-origin"}
    shown = {}
    for name in ("ada", "cleo", "sue"):
        async with world.browser(name) as browser:
            answer = await browser.get("panel", headers=as_script)  # logs in silently on the way
            assert answer.headers["x-federation-api"]
            shown[name] = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", "", answer.text)).strip()
            assert "<html" not in answer.text
    assert shown["ada"] == "Federated projects New project My projects Lungs 2 sites, no run yet"
    assert "1 invitation waiting for you" in shown["cleo"]
    assert "1 approval waiting for you" in shown["sue"]


async def test_the_panel_says_what_is_wrong(world: World) -> None:
    async with world.browser("visitor") as browser:
        answer = await browser.get("panel")
    assert answer.status_code == 403
    assert "<html" not in answer.text
    assert "role of a researcher" in answer.text


async def test_only_a_site_that_isolates_nothing_says_so(world: World) -> None:
    for name, warned in (("ada", True), ("ben", False)):
        project_id = world.project(owner=name)
        async with logged_in(world, name) as browser:
            for page in ("", "projects/new", f"projects/{project_id}"):
                assert ("isolates nothing" in (await browser.get(page)).text) == warned, (name, page)


async def test_a_person_without_a_site_is_told_whom_to_ask(world: World) -> None:
    async with logged_in(world, "nowhere") as browser:
        page = await browser.get("")
        assert "belongs to no site" in page.text
        assert (await new_project(browser)).status_code == 403


async def test_an_older_run_can_be_looked_at(world: World, tmp_path: Path) -> None:
    project_id, _ = await world.shared_project()
    first = world.start_run(project_id)
    world.report_round(project_id, first, 1)
    world.finish_run(project_id, first, b"weights", tmp_path)
    second = world.start_run(project_id)
    async with logged_in(world, "ben") as browser:
        newest = await browser.get(f"projects/{project_id}")
        older = await browser.get(f"projects/{project_id}?run={first}")
        assert f"events?_xsrf={token(browser)['_xsrf']}" in newest.text
        assert "<strong>Run 2</strong>" in newest.text
        assert "<strong>Run 1</strong>" in older.text
        assert "North Hospital alone" in older.text
        assert f"api/runs/{first}/model" in older.text
        assert (await browser.get(f"projects/{project_id}?run=none")).status_code == 404
    assert second != first


async def test_a_silent_hub_has_a_page(tmp_path: Path) -> None:
    async with served_world(tmp_path, FakeHub()) as world, logged_in(world, "ada") as browser:
        world.hub.status = 503
        world.hub_auth.cache.clear()
        answer = await browser.get("")
    assert answer.status_code == 503
    assert "does not say who you are" in answer.text


def test_no_template_has_a_script_of_its_own() -> None:
    for template in TEMPLATES.rglob("*.html"):
        text = template.read_text()
        assert not re.search(r"<script(?![^>]*\bsrc=)", text), template
        assert not re.search(r"\son\w+=|javascript:", text), template
        assert "| safe" not in text, template


def test_every_state_has_a_word() -> None:
    words = [word for word, _ in BADGES.values()]
    assert all(words)
    rendered = Templates("/f/").url("projects", "a/b <c>")
    assert rendered == "/f/projects/a%2Fb%20%3Cc%3E"


async def test_a_project_is_deleted_by_its_name(world: World, tmp_path: Path) -> None:
    project_id, _ = await world.shared_project()
    run_id = world.start_run(project_id)
    world.report_round(project_id, run_id, 1)
    async with logged_in(world, "ben") as browser:
        assert "Delete this project" not in (await browser.get(f"projects/{project_id}")).text
        assert (await browser.get(f"projects/{project_id}/delete")).status_code == 403
    async with logged_in(world, "ada") as browser:
        assert "Delete this project" in (await browser.get(f"projects/{project_id}")).text
        in_flight = await browser.get(f"projects/{project_id}/delete")
        assert in_flight.status_code == 409
        assert "Stop it first" in in_flight.text
        world.finish_run(project_id, run_id, b"weights", tmp_path)
        asked = await browser.get(f"projects/{project_id}/delete")
        assert "1 run</strong>" in asked.text
        assert "1 model</strong>, 7 bytes" in asked.text
        assert "North Hospital, South Clinic</strong>" in asked.text
        assert "ben</strong>, who is told" in asked.text
        wrong = await browser.post(f"projects/{project_id}/delete", data={"name": "Lung", **token(browser)})
        assert wrong.status_code == 400
        assert "not the project's name" in alerts(wrong)
        assert world.store.project(project_id) is not None
        done = await browser.post(f"projects/{project_id}/delete", data={"name": "Lungs", **token(browser)})
        assert "“Lungs” is deleted." in alerts(done)
        assert (await browser.get(f"projects/{project_id}")).status_code == 404
    assert world.store.project(project_id) is None
