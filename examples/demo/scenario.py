"""The journey: three researchers and their stewards, from login to a shared model, each by the real interface."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.markup import escape

from examples.demo.browser import Browser, StepError, page_code
from examples.demo.display import ALL_SITES, FEDERATED, POOLED, Display, Row, find_value
from examples.demo.people import Researcher, Steward

METRIC = "accuracy"
READY_PATIENCE_S = 180.0


@dataclass(frozen=True)
class Study:
    """What is federated in the demo.

    Attributes:
        title: the project's name.
        notebook: the notebook it is made from.
        dataset: the dataset's name, the same at each site.
        rounds: federated rounds; each site alone gets the same number.
        skew: one honest sentence on how the sites' data differ.
        pooled: a folder with all sites' data together, of the same form: for comparison, in a demonstration only.
    """

    title: str
    notebook: Path
    dataset: str
    rounds: int
    skew: str
    pooled: Path


@dataclass(frozen=True)
class Outcome:
    """What the journey ended with, for the caller to judge."""

    project_id: str
    run_id: str
    federated: float
    best_alone: float
    pooled: float
    conclusion: str


async def run_journey(
    origin: str, study: Study, researchers: Sequence[Researcher], stewards: Sequence[Steward], display: Display
) -> Outcome:
    """Run the whole journey. The first researcher owns the project and works in the panel; the others in notebooks.

    Raises:
        StepError: a step did not hold; the text says which and why.
    """
    people = [Browser(one.username, one.subject, origin) for one in researchers]
    deciders = [Browser(one.username, one.subject, origin) for one in stewards]
    try:
        return await _journey(study, people, deciders, {one.site: one.site_title for one in researchers}, display)
    finally:
        await asyncio.gather(*(one.close() for one in [*people, *deciders]))


async def _journey(
    study: Study, people: Sequence[Browser], deciders: Sequence[Browser], titles: dict[str, str], display: Display
) -> Outcome:
    owner, *others = people
    with display.step("Three researchers log in through their institutions' SSO") as details:
        await asyncio.gather(*(one.log_in() for one in people))
        for one in people:
            site = await one.get("api/site")
            details.append(f"{one.username}: {site['title']}")

    with display.step("Each starts a notebook server at their own site"):
        await asyncio.gather(*(one.start_server() for one in people))

    with display.step(f"{owner.username} turns {study.notebook.name} into a project, in the control panel") as details:
        project_id = await _create_project(owner, study)
        version = (await owner.get(f"api/projects/{project_id}"))["versions"][0]
        details.append(f"app version {version['number']}, sha256 {version['fab_hash'][:16]}...")

    with display.step(f"{owner.username} invites {' and '.join(one.username for one in others)}"):
        for one in others:
            await owner.submit(f"projects/{project_id}/invitations", {"user": one.username})

    with display.step(f"{owner.username} joins in the panel, the others by a cell in their own notebooks") as details:
        cell = f'import federator\nfederator.project("{study.title}").join(dataset="{study.dataset}")'
        await asyncio.gather(
            owner.submit(f"projects/{project_id}/participation", {"dataset": study.dataset}),
            *(one.run_cell(cell) for one in others),
        )
        details.extend(_shown(cell))

    with display.step("Each site's data steward reads the code and approves this version") as details:
        await asyncio.gather(*(one.log_in() for one in deciders))
        for one in deciders:
            details.append(await approve(one, project_id))

    with display.step("The service puts a Flower client kernel into each researcher's server"):
        await all_ready(owner, project_id, len(people))

    run_id = await _run(owner, project_id, study, titles, display)
    run = await owner.get(f"api/runs/{run_id}")

    with display.step("The members download the global model and its record") as details:
        model = await others[0].download(f"api/runs/{run_id}/model")
        sha256 = hashlib.sha256(model).hexdigest()
        if sha256 != run["model"]["sha256"]:
            raise StepError("The downloaded model is not the one in the record.")
        record = await others[0].get(f"api/runs/{run_id}/record")
        details.append(
            f"model.safetensors, {len(model):,} bytes, sha256 {sha256[:16]}..., {len(record)} entries in its record"
        )

    with display.step(f"{others[0].username} takes the model, its card and its capsule in a notebook") as details:
        cell = _cell(study, "run.model()", 'run.card("card.md")', "run.capsule()", "print(run.verify())")
        verified = await others[0].run_cell(cell)
        details.extend(_shown(cell))
        details.append(verified.strip().splitlines()[-1])

    with display.step("The same code on all data pooled, which only a demonstration may do") as details:
        cell = _cell(study, f'table = run.compare(pooled="{study.pooled}")')
        rows = await _compared(others[0], cell)
        details.extend(_shown(cell))

    display.result_table(rows, list(titles), METRIC)
    display.note(study.skew)
    conclusion = (await owner.get(f"api/runs/{run_id}/result"))["conclusion"]
    return _outcome(project_id, run_id, rows, titles, conclusion)


def _cell(study: Study, *lines: str) -> str:
    """A cell about the project's newest run."""
    return "\n".join(("import federator", f'run = federator.project("{study.title}").runs[0]', *lines))


def _shown(cell: str) -> list[str]:
    return [f"[cyan]{escape(line)}" for line in cell.splitlines()]


async def _compared(researcher: Browser, cell: str) -> list[Row]:
    """The rows of the DataFrame `table` that the cell makes."""
    printed = await researcher.run_cell(f'{cell}\nprint(table.reset_index().to_json(orient="records"))')
    rows: list[Row] = json.loads(printed.strip().splitlines()[-1])
    return rows


async def _create_project(owner: Browser, study: Study) -> str:
    page = await owner.submit(
        "projects/new",
        {"name": study.title, "description": study.skew},
        {"app": (study.notebook.name, study.notebook.read_bytes(), "application/x-ipynb+json")},
    )
    return page.url.path.rstrip("/").rpartition("/")[2]


async def approve(steward: Browser, project_id: str) -> str:
    """Open the review page of the one waiting request, and press "Approve"."""
    requests = [request for request in await steward.get("api/approvals") if request["project_id"] == project_id]
    waiting = [request for request in requests if request["state"] == "waiting"]
    if len(waiting) != 1:
        raise StepError(f"{steward.username} expected one approval to wait, and saw {len(waiting)}.")
    request = waiting[0]
    page = f"approvals/{project_id}/{request['fab_hash']}/{request['site']}/{request['dataset']}"
    if "def train" not in page_code(await steward.open(page)):
        raise StepError(f"{steward.username} did not see the code on the review page.")
    await steward.submit(page, {"state": "approved", "reason": "Read line by line."})
    return f"{steward.username}: {request['site']}/{request['dataset']}"


async def all_ready(owner: Browser, project_id: str, count: int) -> None:
    """Wait for every participant's client to stand ready."""
    states: list[str] = []
    try:
        async with asyncio.timeout(READY_PATIENCE_S):
            async for kind, project in owner.watch(project_id):
                if kind != "project":
                    continue
                clients = [one for one in project["participants"] if one["participation_id"]]
                if failed := [one for one in clients if one["client"] == "failed"]:
                    raise StepError(f"{failed[0]['user']}: {failed[0]['detail']}")
                states = [f"{one['user']} {one['client']}" for one in clients]
                if sum(one["client"] in ("ready", "working") for one in clients) == count:
                    return
    except TimeoutError:
        pass
    raise StepError(f"Not every client got ready in {READY_PATIENCE_S:.0f} s: {', '.join(states)}")


async def _run(owner: Browser, project_id: str, study: Study, titles: dict[str, str], display: Display) -> str:
    """Start the run and follow it to its end, as the project page does."""
    started = await owner.post(f"api/projects/{project_id}/runs", {"rounds": study.rounds, "compare": True})
    with (
        display.step(f"{owner.username} starts the run: {study.rounds} rounds, then each site alone"),
        display.rounds(study.rounds, METRIC) as view,
    ):
        async for kind, run in owner.watch(project_id):
            if kind != "run" or run["summary"]["id"] != started["id"]:
                continue
            view.show(run, titles)
            summary: dict[str, Any] = run["summary"]
            if summary["status"] in ("failed", "stopped"):
                raise StepError(f"The run {summary['status']}: {summary['message']}")
            if summary["status"] == "finished":
                break
    return str(started["id"])


def _outcome(project_id: str, run_id: str, rows: list[Row], titles: dict[str, str], conclusion: str) -> Outcome:
    federated, pooled, *alone = (find_value(rows, model, ALL_SITES, METRIC) for model in (FEDERATED, POOLED, *titles))
    known = [value for value in alone if value is not None]
    if federated is None or pooled is None or len(known) < len(alone):
        raise StepError("The table is not complete: a model was not scored on all test data.")
    return Outcome(project_id, run_id, federated, max(known), pooled, conclusion)
