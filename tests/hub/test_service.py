"""The real federation service, started and asked through our Hub configuration."""

from __future__ import annotations

import sys

import httpx
import pytest
from federator import logs
from federator.contract import SERVICE_PREFIX, Route
from jupyterhub import log as hub_log
from prometheus_client.parser import text_string_to_metric_families

from spawner.proxy import proxy_node_options
from tests.fakes.in_process_hub import InProcessHub
from tests.hub.accessibility import grave_faults
from tests.hub.actors import METRICS_TOKEN, Browser

SERVICE_COMMAND = [sys.executable, "-m", "hub_service"]


async def test_a_person_sees_their_own_site(browser: Browser) -> None:
    await browser.log_in("mateu")
    await browser.http.get(SERVICE_PREFIX)  # logs in to the service; its API does not redirect
    site = (await browser.http.get(SERVICE_PREFIX + Route.MY_SITE)).json()
    assert (site["slug"], site["title"], site["isolates"]) == ("vall-verde", "Vall Verde Cancer Institute", False)
    assert [dataset["name"] for dataset in site["datasets"]] == ["biopsies"]
    assert "path" not in site["datasets"][0]


async def test_the_panel_of_the_home_page_is_there(browser: Browser) -> None:
    page = await browser.log_in("mateu")
    for reference in (f"{SERVICE_PREFIX}panel", f"{SERVICE_PREFIX}static/panel.js"):
        assert reference in page.text
        assert (await browser.http.get(reference)).status_code == httpx.codes.OK


@pytest.mark.needs_browser
@pytest.mark.needs_node
@pytest.mark.parametrize("width", [1280, 390])
async def test_the_home_page_with_the_panel_is_accessible(browser: Browser, width: int) -> None:
    await browser.log_in("mateu")
    assert not await grave_faults(browser, width, {"home-with-panel": "/hub/home"})


def test_the_proxy_lets_uploads_take_their_time(hub: InProcessHub) -> None:
    assert f"NODE_OPTIONS={proxy_node_options()}" in hub.config.ConfigurableHTTPProxy.command


async def test_the_hubs_line_about_the_service_has_the_id_of_the_persons_request(
    browser: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    await browser.log_in("mateu")
    told: list[tuple[str, str]] = []
    monkeypatch.setattr(
        hub_log, "log_request", lambda handler: told.append((handler.request.path, logs.noted("request_id")))
    )
    await browser.http.get(SERVICE_PREFIX, headers={logs.REQUEST_ID_HEADER: "from-the-person"})
    assert ("/hub/api/user", "from-the-person") in told


async def test_an_admin_without_a_site_can_open_the_service(browser: Browser) -> None:
    await browser.log_in("admin")
    assert (await browser.http.get(SERVICE_PREFIX)).status_code == httpx.codes.OK


@pytest.mark.parametrize("address", [f"{SERVICE_PREFIX}metrics", "/hub/metrics"])
async def test_one_token_reads_the_metrics_of_hub_and_service(browser: Browser, address: str) -> None:
    answer = await browser.http.get(address, headers={"Authorization": f"token {METRICS_TOKEN}"})
    assert answer.status_code == httpx.codes.OK
    names = {family.name for family in text_string_to_metric_families(answer.text)}
    assert ("federation_runs" if address.startswith(SERVICE_PREFIX) else "jupyterhub_total_users") in names


async def test_metrics_are_not_for_a_person(browser: Browser) -> None:
    await browser.log_in("admin")
    await browser.http.get(SERVICE_PREFIX)
    assert (await browser.http.get(f"{SERVICE_PREFIX}metrics")).status_code == httpx.codes.FORBIDDEN


async def test_the_administration_page_is_for_the_hubs_administrators(browser: Browser) -> None:
    await browser.log_in("admin")
    page = await browser.http.get(f"{SERVICE_PREFIX}administration")
    assert page.status_code == httpx.codes.OK
    assert "Vall Verde Cancer Institute" in page.text
    assert f"{SERVICE_PREFIX}administration" in (await browser.http.get(f"{SERVICE_PREFIX}panel")).text


async def test_it_is_for_nobody_else(browser: Browser) -> None:
    await browser.log_in("ingrid")
    page = await browser.http.get(f"{SERVICE_PREFIX}administration")
    assert page.status_code == httpx.codes.FORBIDDEN


async def test_the_service_tells_its_health_through_the_hub(browser: Browser) -> None:
    answer = await browser.http.get(f"{SERVICE_PREFIX}health")
    assert (answer.status_code, answer.json()["status"]) == (httpx.codes.OK, "ready")
