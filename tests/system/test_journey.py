"""The demo's journey by HTTP, over the real stack: what `make demo` runs, held to more than it shows."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from examples.demo.browser import Browser, StepError
from examples.demo.display import Display
from examples.demo.people import COLLEAGUES, RESEARCHERS, STEWARDS, STRANGER
from examples.demo.scenario import Outcome, Study, run_journey
from examples.demo.stack import Stack
from tests.fakes.aggregator_places import processes_below

pytestmark = pytest.mark.needs_node
PATIENCE_S = 30


@pytest.fixture(scope="module")
async def outcome(stack: Stack, study: Study) -> Outcome:
    return await run_journey(stack.origin, replace(study, title="The journey"), RESEARCHERS, STEWARDS, Display())


@pytest.fixture(scope="module")
async def owner(stack: Stack, outcome: Outcome) -> AsyncIterator[Browser]:
    person = Browser(RESEARCHERS[0].username, RESEARCHERS[0].subject, stack.origin)
    await person.log_in()
    yield person
    await person.close()


async def test_federated_beats_the_best_single_site(outcome: Outcome) -> None:
    assert outcome.federated > outcome.best_alone


async def test_the_conclusion_and_the_pooled_model_stand_beside_it(outcome: Outcome) -> None:
    """The pooled model is trained by the same code in a researcher's own kernel."""
    assert outcome.pooled > outcome.best_alone
    assert f"{outcome.federated:.3f}" in outcome.conclusion
    assert f"{outcome.best_alone:.3f}" in outcome.conclusion


async def test_every_round_has_every_site(owner: Browser, outcome: Outcome, study: Study) -> None:
    run = await owner.get(f"api/runs/{outcome.run_id}")
    assert [one["number"] for one in run["rounds"]] == list(range(1, study.rounds + 1))
    sites = {one.site for one in RESEARCHERS}
    for one in run["rounds"]:
        assert {part["site"] for part in one["sites"]} == sites
        assert all(part["train"] and part["evaluate"] and not part["error"] for part in one["sites"])


async def test_the_table_is_complete(owner: Browser, outcome: Outcome) -> None:
    run = await owner.get(f"api/runs/{outcome.run_id}")
    sites = {one.site for one in RESEARCHERS}
    cells = {(score["model"], score["on_site"]) for score in run["scores"]}
    assert cells == {(model, site) for model in sites | {"federated"} for site in sites | {""}}


async def test_the_record_names_what_made_the_model(owner: Browser, outcome: Outcome) -> None:
    record = json.dumps(await owner.get(f"api/runs/{outcome.run_id}/record"))
    project = await owner.get(f"api/projects/{outcome.project_id}")
    assert project["versions"][0]["fab_hash"] in record
    for one in RESEARCHERS:
        assert one.site in record


async def test_the_aggregator_is_gone_and_the_clients_wait(owner: Browser, outcome: Outcome, stack: Stack) -> None:
    states: set[str] = set()
    with contextlib.suppress(TimeoutError):  # a client says what it does twice a second
        async with asyncio.timeout(PATIENCE_S):
            async for kind, data in owner.watch(outcome.project_id):
                states = {one["client"] for one in data["participants"]} if kind == "project" else states
                if states == {"ready"}:
                    break
    assert states == {"ready"}
    project_folder = stack.folder / "hub" / "federation" / "projects" / outcome.project_id
    assert project_folder.is_dir()
    async with asyncio.timeout(PATIENCE_S):
        while processes_below(project_folder):  # noqa: ASYNC110 - nobody tells of it: a run is over before its processes are
            await asyncio.sleep(0.1)


async def test_an_unknown_institution_is_named_and_sent_to_the_admin(stack: Stack) -> None:
    person = Browser(STRANGER.username, STRANGER.subject, stack.origin)
    with pytest.raises(StepError, match=STRANGER.institution.domain):
        await person.log_in()
    await person.close()


async def test_a_run_without_sites_is_refused_with_what_is_missing(stack: Stack, study: Study) -> None:
    person = Browser(COLLEAGUES[0].username, COLLEAGUES[0].subject, stack.origin)
    await person.log_in()
    page = await person.submit(
        "projects/new",
        {"name": "Nobody is here", "description": ""},
        {"app": (study.notebook.name, study.notebook.read_bytes(), "application/x-ipynb+json")},
    )
    project_id = page.url.path.rpartition("/")[2]
    with pytest.raises(StepError, match=r"(?i)site"):
        await person.post(f"api/projects/{project_id}/runs", {"rounds": 3, "compare": False})
    await person.close()
