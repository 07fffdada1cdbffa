"""The researcher's tutorial and the README, cell by cell, by the people they name, in the running stack.

A comment before a block names who runs it; two other comments stand for what people do in the browser.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest

from examples.demo.browser import Browser, NotebookKernel
from examples.demo.people import RESEARCHERS, STEWARDS
from examples.demo.scenario import all_ready, approve
from examples.demo.stack import ROOT

pytestmark = [pytest.mark.needs_node, pytest.mark.timeout(600)]

TUTORIAL, README = "docs/tutorial-researcher.md", "README.md"
_STEP = re.compile(r"<!-- (?P<who>[^>]+?) -->(?:\n```python\n(?P<code>.*?)^```)?", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class Step:
    """`who` names people, or says what happens in the browser where there is no code."""

    who: str
    code: str


def steps_of(page: str) -> list[Step]:
    text = (ROOT / page).read_text()
    return [Step(found["who"], found["code"] or "") for found in _STEP.finditer(text)]


@pytest.fixture(scope="module")
async def kernels(people: dict[str, Browser]) -> AsyncIterator[dict[str, NotebookKernel]]:
    kernels = {one.username: await people[one.username].start_kernel() for one in RESEARCHERS}
    for one in kernels.values():  # other tests in this stack leave notebooks in the same servers
        await one.run("from pathlib import Path\n[file.unlink() for file in Path().glob('*.ipynb')]")
    yield kernels
    for one in kernels.values():
        await one.shut_down()


@pytest.mark.parametrize("page", [TUTORIAL, README])
def test_every_cell_says_who_runs_it(page: str) -> None:
    text = (ROOT / page).read_text()
    assert text.count("```python") == sum(bool(step.code) for step in steps_of(page)) > 0


async def run_page(
    page: str, people: dict[str, Browser], kernels: dict[str, NotebookKernel]
) -> dict[tuple[str, str], str]:
    """Do what the page says. Returns what each cell showed, by who ran it and its last line."""
    shown: dict[tuple[str, str], str] = {}
    for step in steps_of(page):
        if not step.code:
            await beside_the_cells(step.who, people, kernels)
            continue
        for name in step.who.split():
            shown[name, step.code.strip().splitlines()[-1]] = await kernels[name].run(step.code)
    return shown


async def test_the_tutorial_runs(people: dict[str, Browser], kernels: dict[str, NotebookKernel]) -> None:
    shown = await run_page(TUTORIAL, people, kernels)
    assert re.search(r"train +arrays +weight +float32\[2,30\] +240", shown["amara", "trial"])
    published = shown["amara", 'project = federator.publish("tabular.ipynb", name="Aspirates, together")']
    assert "Leaves this notebook: cells 3, 5, 6, 8, 9, 11." in published
    assert "float32[2,30]" in published, "what the trial saw is declared"
    assert shown["amara", "project.refresh()"].count("ready") == len(RESEARCHERS)
    assert "finished, round 10 of 10" in shown["amara", "run.watch()"]
    compared = shown["amara", "run.compare()"]
    assert "accuracy low" in compared
    assert {"federated", *(one.site for one in RESEARCHERS)} <= set(compared.split())
    assert re.search(r"federated +\S.* 2\n", shown["amara", "project.compare()"]), "two runs, of two seeds"
    for name in ("amara", "mateu"):
        assert shown[name, "model"].startswith("Linear(in_features=30, out_features=2")
    taken_home = shown["mateu", 'run.verify("model.safetensors")']
    assert all(f"| {one.site} | biopsies |" in taken_home for one in RESEARCHERS), "the card"
    assert "is this run's model after round 10; the record is signed" in taken_home
    names = 'import zipfile; print(zipfile.ZipFile("capsule.zip").namelist())'
    assert "README.md" in await kernels["mateu"].run(names)


async def test_the_readme_runs(people: dict[str, Browser], kernels: dict[str, NotebookKernel]) -> None:
    await run_page(README, people, kernels)
    assert "finished, round 10 of 10" in await kernels["amara"].run("run.refresh()")
    assert "SGD" in await kernels["amara"].run("print(vars(model))")


async def beside_the_cells(what: str, people: dict[str, Browser], kernels: dict[str, NotebookKernel]) -> None:
    doing, _, title = what.partition(": ")
    owner = people["amara"]
    if set(doing.split()) <= kernels.keys():  # a line that stands in the text
        for name in doing.split():
            await kernels[name].run(f"import federator\n{title}")
        return
    project_id = next(one["id"] for one in (await owner.get("api/home"))["projects"] if one["name"] == title)
    match doing:
        case "stewards approve":
            for steward in STEWARDS:
                await approve(people[steward.username], project_id)
        case "all ready":
            await all_ready(owner, project_id, len(RESEARCHERS))
        case _:
            pytest.fail(f"the tutorial asks for {what!r}")
