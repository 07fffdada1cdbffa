"""The page of the sites, in a real Hub whose sites have Docker engines that nobody has started."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest
import tomli_w
from jupyterhub import orm, roles
from playwright.async_api import async_playwright, expect

from examples.demo.people import ADMINISTRATOR, ST_ANNA
from spawner.admin import certificates, form
from spawner.admin.certificates import EngineHost
from spawner.deployment import CLIENT_SECRET_VARIABLE, CONFIG_VARIABLE, load
from tests.conftest import CHROMIUM
from tests.fakes.in_process_hub import InProcessHub, start_hub, stop_hub
from tests.hub.accessibility import grave_faults
from tests.hub.actors import HUB_SECRET, Browser, IdentityProvider
from tests.hub.conftest import free_ports

PAGE = "/hub/federation-sites"
NEW_SITE = {
    "slug": "northside",
    "title": "Northside Clinic",
    "contact": "Grace Mensah <grace@northside.example>",
    "institutions": "northside.example\r\nclinic.northside.example",
    "stewards": "grace",
    "engine": "tcp://192.0.2.7:2376",
    "image": "notebook-federator/singleuser:test",
    "datasets": "biopsies=/srv/biopsies",
    "gpus": "",
    "hub_address": "",
    "hub_url": "",
}


@dataclass(frozen=True)
class Deployed:
    """A Hub that runs, and the file that it was started with."""

    hub: InProcessHub
    config: Path

    @property
    def new_site_file(self) -> Path:
        return self.config.parent / "sites.d" / "northside.toml"


@pytest.fixture(scope="module")
async def deployed(
    provider: IdentityProvider, tmp_path_factory: pytest.TempPathFactory, service_command: list[str]
) -> AsyncIterator[Deployed]:
    folder = tmp_path_factory.mktemp("deployment")
    config = folder / "deployment.toml"
    public, hub_port, service, proxy_api, closed = free_ports(5)
    certificates.issue(
        folder / "engines", "st-anna", EngineHost.of_url(f"tcp://127.0.0.1:{closed}"), now=datetime.now(UTC)
    )
    tables = {
        "hub": {
            "bind_url": f"http://127.0.0.1:{public}",
            "data_dir": "hub",
            "admin_contact": "Robin Hale <admin@federation.example>",
            "hub_port": hub_port,
            "service_port": service,
            "proxy_api_port": proxy_api,
            "proxy_command": ["no-such-proxy"],
        },
        "sso": {
            "preset": "generic",
            "client_id": "notebook-federator-demo",
            "authorize_url": f"{provider.origin}/oauth2/authorize",
            "token_url": f"{provider.origin}/oauth2/token",
            "userdata_url": f"{provider.origin}/userinfo",
            "admins": [ADMINISTRATOR.username],
            "institutions": {ST_ANNA.domain: "st-anna"},
            "stewards": {"st-anna": {"users": ["ingrid"]}},
        },
        "aggregators": {"kind": "docker", "image": "notebook-federator/aggregator:test"},
        "sites": {
            "st-anna": {
                "kind": "docker",
                "title": "St. Anna Hospital",
                "contact": "Ingrid Solberg <ingrid@st-anna.example>",
                "engine": f"tcp://127.0.0.1:{closed}",
                "tls_dir": "engines/st-anna",
                "image": "notebook-federator/singleuser:test",
                "gpus": ["GPU-0"],
            }
        },
    }
    config.write_text(tomli_w.dumps(tables), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(CONFIG_VARIABLE, str(config))
        patch.setenv(CLIENT_SECRET_VARIABLE, HUB_SECRET)
        hub = await start_hub(service_command)
        yield Deployed(hub, config)
        await stop_hub(hub)


@pytest.fixture
async def hub(deployed: Deployed) -> InProcessHub:
    """In place of the other modules' Hub."""
    return deployed.hub


@pytest.fixture
async def administrator(browser: Browser) -> Browser:
    await browser.log_in(ADMINISTRATOR.subject)
    return browser


def xsrf_in(page: httpx.Response) -> str:
    found = re.search(r'name="_xsrf" value="([^"]+)"', page.text)
    assert found
    return found[1]


async def test_an_administrator_sees_the_sites(administrator: Browser) -> None:
    page = await administrator.http.get(PAGE)
    assert page.status_code == httpx.codes.OK
    for text in ("St. Anna Hospital", "in use", "notebook-federator/singleuser:test", "Ingrid Solberg", "Check now"):
        assert text in page.text
    assert "PRIVATE KEY" not in page.text


@pytest.mark.parametrize("person", ["amara", "ingrid"])
@pytest.mark.parametrize("path", ["", "/st-anna/servers", "/st-anna/report"])
async def test_researchers_and_stewards_do_not(browser: Browser, person: str, path: str) -> None:
    await browser.log_in(person)
    page = await browser.http.get(PAGE + path)
    assert page.status_code == httpx.codes.FORBIDDEN
    assert "singleuser:test" not in page.text


async def test_the_right_to_see_the_admin_page_is_not_enough(hub: InProcessHub, browser: Browser) -> None:
    """Who adds a site decides what is mounted where, and on which machine."""
    await browser.log_in("amara")
    roles.create_role(hub.db, {"name": "lister", "scopes": ["admin-ui", "list:users"]})
    amara = orm.User.find(hub.db, "amara")
    roles.grant_role(hub.db, amara, "lister")
    try:
        assert (await browser.http.get("/hub/admin")).status_code == httpx.codes.OK
        assert (await browser.http.get(PAGE)).status_code == httpx.codes.FORBIDDEN
    finally:
        roles.strip_role(hub.db, amara, "lister")


async def test_who_is_not_logged_in_is_sent_to_the_login(browser: Browser) -> None:
    page = await browser.http.get(PAGE, follow_redirects=False)
    assert page.status_code == httpx.codes.FOUND
    assert "/hub/login" in page.headers["location"]


async def test_nobody_else_can_add_or_check(deployed: Deployed, browser: Browser) -> None:
    await browser.log_in("ingrid")
    home = await browser.http.get("/hub/token")
    token = re.search(r'xsrf_token: "([^"]+)"', home.text)
    assert token
    for path, data in (("", NEW_SITE), ("/st-anna/report", {})):
        answer = await browser.http.post(PAGE + path, data=data | {"_xsrf": token[1]})
        assert answer.status_code == httpx.codes.FORBIDDEN
    assert not deployed.new_site_file.exists()


@pytest.mark.parametrize("path", ["", "/st-anna/report"])
async def test_a_post_without_its_token_is_refused(deployed: Deployed, administrator: Browser, path: str) -> None:
    answer = await administrator.http.post(PAGE + path, data=NEW_SITE)
    assert answer.status_code == httpx.codes.FORBIDDEN
    assert not deployed.new_site_file.exists()


async def test_an_unknown_site_is_not_found(administrator: Browser) -> None:
    assert (await administrator.http.get(f"{PAGE}/no-such/servers")).status_code == httpx.codes.NOT_FOUND


async def test_an_engine_that_does_not_answer_is_told(administrator: Browser) -> None:
    servers = await administrator.http.get(f"{PAGE}/st-anna/servers")
    assert servers.status_code == httpx.codes.OK
    assert "The engine does not say what runs there: it cannot be reached" in servers.text


async def test_a_check_goes_on_in_the_background_and_is_reported(administrator: Browser) -> None:
    page = await administrator.http.get(PAGE)
    assert "Not checked since the Hub was started." in page.text
    report = await administrator.http.post(f"{PAGE}/st-anna/report", headers={"X-XSRFToken": xsrf_in(page)})
    assert report.status_code == httpx.codes.ACCEPTED
    while going_on := re.search(r'data-seen="(\d+)"', report.text):
        report = await administrator.http.get(f"{PAGE}/st-anna/report", params={"seen": going_on[1]})
    for text in ("1 FAILED, 1 ok", "it cannot be reached", "needs the engine first", "Ask Ingrid Solberg"):
        assert text in report.text
    assert "1 FAILED, 1 ok" in (await administrator.http.get(PAGE)).text


@pytest.mark.parametrize(
    ("field", "wrong", "told"),
    [
        ("slug", "../etc", "is no slug"),
        ("slug", "st-anna", "is a site of this deployment already: St. Anna Hospital"),
        ("engine", "http://192.0.2.7", "is no engine&#39;s address"),
        ("image", "notebook-federator/singleuser", "names no version"),
        ("datasets", "biopsies", "write NAME=FOLDER"),
        ("datasets", "biopsies=/", "is no folder of the site&#39;s machine"),
        ("stewards", "", "name who decides"),
        ("institutions", "st-anna.example", "another file of this deployment says it already"),
        ("hub_address", "hub.example", "not a valid IPv4 address"),
    ],
)
async def test_a_wrong_form_is_shown_again(
    deployed: Deployed, administrator: Browser, field: str, wrong: str, told: str
) -> None:
    token = xsrf_in(await administrator.http.get(PAGE))
    page = await administrator.http.post(PAGE, data=NEW_SITE | {field: wrong, "_xsrf": token})
    assert page.status_code == httpx.codes.UNPROCESSABLE_ENTITY
    assert told in page.text.partition(f'id="problem-{field}"')[2].partition("</div>")[0]
    assert NEW_SITE["title"] in page.text  # what was typed is kept
    assert not deployed.new_site_file.exists()
    assert not (deployed.config.parent / "engines" / "northside").exists()


async def test_the_form_writes_the_sites_file_and_shows_what_is_next(
    deployed: Deployed, administrator: Browser
) -> None:
    token = xsrf_in(await administrator.http.get(PAGE))
    try:
        page = await administrator.http.post(PAGE, data=NEW_SITE | {"_xsrf": token})
        assert page.status_code == httpx.codes.OK
        assert page.url.path == PAGE
        added = load(deployed.config)
        assert added.sites["northside"].datasets["biopsies"].path == "/srv/biopsies"
        assert added.sso.institutions["clinic.northside.example"] == "northside"
        assert added.sso.stewards["northside"].users == ("grace",)
        for text in (
            "waits for the Hub&#39;s restart",
            "northside-engine.tar",
            "systemctl restart docker",
            "python -m spawner.site up --hub 127.0.0.1:",
            "python -m spawner.admin check --site northside",
            "Restart the Hub",
        ):
            assert text in page.text
        assert "PRIVATE KEY" not in page.text
    finally:
        deployed.new_site_file.unlink(missing_ok=True)
        certificates.remove(deployed.config.parent / "engines", "northside")


async def test_a_hub_that_may_not_write_says_what_does(deployed: Deployed, administrator: Browser) -> None:
    """As with a deployment folder that is mounted read-only into the Hub's container."""
    folder = deployed.config.parent / "sites.d"
    if folder.exists():
        folder.rmdir()
    folder.symlink_to("/proc/self")
    try:
        token = xsrf_in(await administrator.http.get(PAGE))
        page = await administrator.http.post(PAGE, data=NEW_SITE | {"_xsrf": token})
    finally:
        folder.unlink()
    assert page.status_code == httpx.codes.UNPROCESSABLE_ENTITY
    assert "cannot be written" in page.text
    assert "python -m spawner.admin add --site northside --title &#39;Northside Clinic&#39;" in page.text


async def test_files_that_the_hub_could_not_start_with_are_told(deployed: Deployed, administrator: Browser) -> None:
    broken = deployed.config.parent / "sites.d" / "broken.toml"
    broken.parent.mkdir(exist_ok=True)
    broken.write_text("[sites.b]\n", encoding="utf-8")
    try:
        page = await administrator.http.get(PAGE)
        assert "The Hub would not start again" in page.text
        assert "sites.b: has no kind" in page.text
        assert "St. Anna Hospital" in page.text
    finally:
        broken.unlink()


@pytest.mark.needs_browser
@pytest.mark.parametrize("width", [1280, 390])
async def test_in_a_browser(administrator: Browser, width: int) -> None:
    async with (
        async_playwright() as playwright,
        await playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        ) as chromium,
    ):
        context = await chromium.new_context(viewport={"width": width, "height": 900})
        origin = str(administrator.http.base_url)
        await context.add_cookies(
            [
                {"name": one.name, "value": one.value or "", "url": origin + one.path}
                for one in administrator.http.cookies.jar
            ]
        )
        page = await context.new_page()
        faults: list[str] = []
        page.on("pageerror", lambda error: faults.append(str(error)))
        await page.goto(origin + PAGE)
        card = page.get_by_role("region", name="St. Anna Hospital")
        await expect(card).to_contain_text("The engine does not say what runs there")
        button = card.get_by_role("button", name="Check now")
        await button.focus()
        await page.keyboard.press("Enter")
        await expect(card.get_by_role("row", name="failed engine")).to_contain_text("Ask Ingrid Solberg")
        await expect(card.get_by_role("status")).to_contain_text("Check finished: 1 FAILED, 1 ok")
        await expect(button).to_be_focused()
        for field in form.FIELDS:
            await expect(page.get_by_label(field.label)).to_have_attribute("aria-describedby", f"help-{field.name}")
        assert await page.evaluate("document.documentElement.scrollWidth") == width
        assert not faults


@pytest.mark.needs_browser
@pytest.mark.needs_node
@pytest.mark.parametrize("width", [1280, 390])
async def test_the_pages_of_the_hub_are_accessible(administrator: Browser, width: int) -> None:
    faults = await grave_faults(administrator, width, {"sites": PAGE, "home": "/hub/home"})
    assert not faults, "\n".join(faults)
