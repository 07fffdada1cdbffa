"""The starter notebooks, as the API gives them and as a notebook fetches them."""

from __future__ import annotations

import asyncio
from pathlib import Path

import federator
import pytest
from federator import service_client
from federator.contract import Route

from hub_service import starters
from hub_service.domain.errors import Forbidden, NotFound
from tests.fakes.web_world import World, path, plain

NAMES = [one.name for one in starters.STARTERS]


async def test_the_list_and_each_notebook(world: World) -> None:
    async with world.api("ada") as api:
        offered = plain(await api.get(path(Route.STARTERS)))
        assert [one["name"] for one in offered] == NAMES
        for name in NAMES:
            answer = await api.get(path(Route.STARTER, name=name))
            assert answer.content == starters.read(name)
            assert answer.headers["content-disposition"] == f'attachment; filename="{name}.ipynb"'


@pytest.mark.parametrize("name", ["nothing", "__init__", "..%2F..%2Fapp"])
async def test_there_is_no_other_file_to_get(world: World, name: str) -> None:
    async with world.api("ada") as api:
        answer = await api.get(path(Route.STARTER, name=name))
        assert answer.status_code == 404
        assert "There are tabular, " in plain(answer)["next_step"]


def test_a_project_begins_with_one(world: World) -> None:
    ada = world.principal("ada")
    version = world.add_file(world.project(), *world.coordinator.starter(ada, "tabular"))
    assert (version.title, version.source) == ("tabular", "notebook")
    with pytest.raises(NotFound, match="There is no starter"):
        world.coordinator.starter(ada, "../app")
    with pytest.raises(Forbidden):
        world.coordinator.starters(world.principal("outsider"))


async def test_a_notebook_server_gets_a_file_and_overwrites_none(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    access = service_client.Access(world.url, world.person("ada").token)
    with service_client.ServiceClient(access) as service:
        monkeypatch.setattr("federator.starter_notebooks._service", lambda: service)
        monkeypatch.chdir(tmp_path)
        listed = await asyncio.to_thread(federator.starters)
        assert [one.name for one in listed] == NAMES
        assert "survival" in repr(listed)
        assert "<table" in listed._repr_html_()
        written = await asyncio.to_thread(federator.starter, "survival")
        assert (tmp_path / written).read_bytes() == starters.read("survival")
        (tmp_path / written).write_text("my changes")
        with pytest.raises(service_client.Refused, match=r"survival.ipynb is there already"):
            await asyncio.to_thread(federator.starter, "survival")
        assert (tmp_path / written).read_text() == "my changes"
        with pytest.raises(service_client.Refused, match="cannot be written"):
            await asyncio.to_thread(federator.starter, "survival", "no/such/folder")
        with pytest.raises(service_client.NotFound, match="There is no starter"):
            await asyncio.to_thread(federator.starter, "nothing")
        assert [file.name for file in tmp_path.glob("*.ipynb")] == ["survival.ipynb"]
