from __future__ import annotations

import gzip

import httpx
import pytest

from hub_service.web.assets import HUB_SCRIPT, HUB_STYLE, PLOTLY
from tests.fakes.web_world import World


@pytest.mark.parametrize(
    ("name", "kind"),
    [("project.js", "text/javascript"), ("panel.js", "text/javascript"), ("federation.css", "text/css")],
)
async def test_scripts_and_styles_are_for_everybody(world: World, name: str, kind: str) -> None:
    async with world.api(None) as api:
        first = await api.get(f"static/{name}")
        again = await api.get(f"static/{name}", headers={"If-None-Match": first.headers["etag"]})
    assert first.headers["content-type"].startswith(kind)
    assert "no-cache" in first.headers["cache-control"]
    assert (again.status_code, again.content) == (304, b"")


async def test_plotly_comes_from_the_installed_package_and_is_kept(world: World) -> None:
    async with httpx.AsyncClient(base_url=world.url) as browser:
        packed = await browser.get(f"static/{PLOTLY}", headers={"Accept-Encoding": "gzip"})
        plain = await browser.get(f"static/{PLOTLY}", headers={"Accept-Encoding": "identity"})
    assert packed.headers["content-encoding"] == "gzip"
    assert packed.content == plain.content
    assert len(gzip.compress(plain.content)) < len(plain.content) / 2
    assert b"plotly.js" in plain.content[:2000]
    assert "immutable" in packed.headers["cache-control"]
    assert packed.headers["etag"]


async def test_the_hubs_look_comes_packed_and_without_its_icon_font(world: World) -> None:
    async with httpx.AsyncClient(base_url=world.url) as browser:
        style = await browser.get(f"static/{HUB_STYLE}")
        script = await browser.get(f"static/{HUB_SCRIPT}")
    assert b"Bootstrap" in style.content
    assert b"@import" not in style.content
    assert b"bootstrap" in script.content
    for answer in (style, script):
        assert answer.headers["content-encoding"] == "gzip"
        assert "immutable" in answer.headers["cache-control"]


@pytest.mark.parametrize("name", ["nothing.js", "..", "%2e%2e", "project.js.bak", ".js", "..%2Fbase.py"])
async def test_nothing_else_is_served(world: World, name: str) -> None:
    async with world.api(None) as api:
        answer = await api.get(f"static/{name}")
    assert answer.status_code in (302, 404)  # 302: a client that shortened the address is at a page
    assert "import" not in answer.text
