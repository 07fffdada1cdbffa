"""Flower apps that import nothing of ours, through the whole product: uploaded, approved, joined, run, and watched."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from federator.ports import free_port

from examples.demo.browser import Browser
from examples.demo.deployment import DatasetFolder
from examples.demo.people import RESEARCHERS, STEWARDS
from examples.demo.scenario import all_ready
from examples.demo.stack import Stack, embedded_sites, running_stack
from tests.fakes.stock_apps import NAMES, write_table, zipped
from tests.system.conftest import OUTPUT

pytestmark = [pytest.mark.needs_node, pytest.mark.timeout(600)]

DATASET = "tables"


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("tables")
    folders = {one.site: write_table(folder / one.site, seed) for seed, one in enumerate(RESEARCHERS)}
    dataset = DatasetFolder(DATASET, "Tables", "Four numbers, and 0 or 1.", folders)
    with running_stack(OUTPUT / "stock-apps", embedded_sites(dataset), port=free_port()) as running:
        yield running


@pytest.mark.parametrize("name", NAMES)
async def test_a_stock_app_runs_with_the_curves_of_each_site(
    people: dict[str, Browser], tmp_path: Path, name: str
) -> None:
    owner, *others = (people[one.username] for one in RESEARCHERS)
    project = f"api/projects/{(await owner.post('api/projects', {'name': name, 'description': ''}))['id']}"
    app = tmp_path / f"{name}.zip"
    app.write_bytes(zipped(name))
    version = await owner.upload(f"{project}/apps", app)
    for one in others:
        await owner.post(f"{project}/invitations", {"user": one.username})
    for one, steward in zip((owner, *others), STEWARDS, strict=True):
        part = await one.post(f"{project}/participation", {"dataset": DATASET})
        decision = {"project_id": project.rpartition("/")[2], "fab_hash": version["fab_hash"], "state": "approved"}
        await people[steward.username].post(
            "api/approvals", {**decision, "site": part["site"], "dataset": DATASET, "reason": ""}
        )
    await all_ready(owner, decision["project_id"], len(RESEARCHERS))

    started = await owner.post(f"{project}/runs", {"rounds": 3, "compare": False})
    seen, run = await watched_to_its_end(others[0], decision["project_id"])
    assert run["summary"]["status"] == "finished", run["summary"]["message"]
    assert run["model"]["size"] > 0
    assert [one["number"] for one in run["rounds"]] == [1, 2, 3]
    for one in run["rounds"]:
        assert {site["site"] for site in one["sites"]} == {known.site for known in RESEARCHERS}
        assert all({"loss", "accuracy"} <= site["evaluate"].keys() and not site["error"] for site in one["sites"])
    assert len(seen) > 1, "a member sees rounds before the end"
    curves = (await others[1].get(f"api/runs/{started['id']}/figures"))["figure"]["data"]
    assert [len(one["y"]) for one in curves] == [3] * (len(RESEARCHERS) + 1)


async def watched_to_its_end(member: Browser, project_id: str) -> tuple[set[int], dict[str, Any]]:
    """How many rounds the member saw, each time that the project's stream told of the run; and the run at its end."""
    seen: set[int] = set()
    async for kind, data in member.watch(project_id):
        if kind == "run":
            seen.add(len(data["rounds"]))
            if data["summary"]["status"] in ("finished", "failed", "stopped"):
                return seen, data
    raise AssertionError("the stream ended before the run")
