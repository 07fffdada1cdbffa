"""`try_here`, `preview` and `publish`, in this process and in a real Jupyter kernel, against the real service."""

from __future__ import annotations

import asyncio
import json
import os
import tomllib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import federator
import nbformat
import pytest
from federator import authoring
from federator import service_client as api
from federator.contract import outputs_table
from federator.outputs import outputs_of
from nbclient import NotebookClient

from tests.fakes.hub import FakeHub
from tests.fakes.notebooks import MEAN_CELLS, code, federated, markdown, mean_notebook, notebook, write_numbers
from tests.fakes.web_world import World, served_world
from tests.singleuser.test_real_service import become, forget_who_asks


@pytest.fixture
async def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    """ada's server: a dataset, and a folder with her notebooks."""
    write_numbers(tmp_path / "slides", [1, 2, 3], [2])
    monkeypatch.setenv("FEDERATOR_DATASETS", json.dumps({"slides": str(tmp_path / "slides")}))
    monkeypatch.delenv("JPY_SESSION_NAME", raising=False)
    monkeypatch.chdir(tmp_path)
    async with served_world(tmp_path / "service", FakeHub()) as served:
        become(served, "ada", monkeypatch)
        authoring._trials.cache_clear()
        yield served
    authoring._trials.cache_clear()
    forget_who_asks()


def saved(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


async def refusal(call: Callable[..., Any], *args: Any, **kwargs: Any) -> str:
    with pytest.raises(federator.ServiceError) as caught:
        await asyncio.to_thread(call, *args, **kwargs)
    return str(caught.value)


async def test_what_was_tried_is_what_is_declared_and_published(world: World, tmp_path: Path) -> None:
    private = code("import pandas\nsecret = 'patient 7'")
    cells = [markdown("# Mean"), private, *(code(source, "federated") for source in MEAN_CELLS)]
    path = saved(tmp_path / "mean.ipynb", notebook(*cells))
    before = await asyncio.to_thread(federator.preview, path)
    assert before.app.outputs == ()
    assert before.app.private_cells == (2,)
    assert "not declared" in repr(before)
    assert "Stays private: cell 2." in repr(before)
    assert "patient 7" not in repr(before) + before._repr_html_()

    trial = await asyncio.to_thread(federator.try_here, path, sites=2, rounds=2)
    assert len(trial.rounds) == 2
    assert "Trial with 2 pretended sites: 2 rounds" in repr(trial)
    assert "<svg" in trial._repr_html_()
    assert trial.message_bytes["train"] > 0
    assert trial.seconds > 0
    assert set(trial.logs) == {"server", "site-1", "site-2"}

    project = await asyncio.to_thread(federator.publish, path, "Mean")
    (version,) = (
        project.detail.versions if project._detail else (await asyncio.to_thread(lambda: project.detail)).versions
    )
    review = world.coordinator.app_review(world.principal("ada"), project.id, version.fab_hash)
    assert set(review.outputs) == set(trial.outputs)
    (pyproject,) = [file.text for file in review.files if file.path == "pyproject.toml"]
    assert outputs_of(tomllib.loads(pyproject)["tool"]) == review.outputs
    assert "What would leave a site" in (await asyncio.to_thread(federator.preview, path))._repr_html_()
    again = await refusal(federator.publish, path, "Mean")
    assert "same app as version 1" in again, "the same notebook and trial give the same hash"

    saved(path, mean_notebook("STEP = 1"))
    await asyncio.to_thread(federator.publish, path, "Mean")
    newest = (await asyncio.to_thread(lambda: project.refresh().detail)).versions[0]
    assert world.coordinator.app_review(world.principal("ada"), project.id, newest.fab_hash).outputs == ()


async def test_data_are_a_name_a_folder_or_one_for_each_site(world: World, tmp_path: Path) -> None:
    path = saved(tmp_path / "mean.ipynb", mean_notebook())
    other = write_numbers(tmp_path / "other", [9], [9])
    for data, names in (
        ("slides", ["site-1", "site-2", "site-3"]),
        (other, ["site-1", "site-2", "site-3"]),
        ([tmp_path / "slides", other], ["site-1", "site-2"]),
        ({"here": other}, ["here"]),
    ):
        trial = await asyncio.to_thread(federator.try_here, path, data, rounds=1)
        assert [site.site for site in trial.rounds[0].sites] == names


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"data": "nowhere"}, "there is no folder"),
        ({"sites": 0}, "1 to 32 sites"),
        ({"rounds": 0}, "at least one round"),
        ({"config": {"setp": 1}}, "no “setp”"),
    ],
)
async def test_arguments_that_do_not_fit(world: World, tmp_path: Path, arguments: dict[str, Any], reason: str) -> None:
    path = saved(tmp_path / "mean.ipynb", mean_notebook())
    assert reason in await refusal(federator.try_here, path, **arguments)


async def test_a_server_without_one_dataset_is_asked_which(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = saved(tmp_path / "mean.ipynb", mean_notebook())
    monkeypatch.setenv("FEDERATOR_DATASETS", "{}")
    assert "has no dataset" in await refusal(federator.try_here, path)
    monkeypatch.setenv("FEDERATOR_DATASETS", '{"a": "/a", "b": "/b"}')
    assert "has the datasets a, b" in await refusal(federator.try_here, path)


async def test_what_cannot_be_built_is_refused_as_by_publish(world: World, tmp_path: Path) -> None:
    for content, reason in ((federated("def train(:"), "Cell 1, line 1"), (b"no notebook", "no Jupyter notebook")):
        path = saved(tmp_path / "bad.ipynb", content)
        for call in (federator.try_here, federator.preview, federator.publish):
            assert reason in await refusal(call, path)
    assert "cannot be read" in await refusal(federator.try_here, tmp_path / "none.ipynb")
    assert "not known which notebook" in await refusal(federator.try_here)
    assert list(await asyncio.to_thread(federator.projects)) == [], "what is refused leaves no empty project"


async def test_nobody_there_to_confirm_publishes_nothing(world: World, tmp_path: Path, monkeypatch: Any) -> None:
    path = saved(tmp_path / "mean.ipynb", mean_notebook())
    monkeypatch.setattr("builtins.input", lambda _: "no")
    assert "was not published" in await refusal(federator.publish, path, confirm=True)
    assert list(await asyncio.to_thread(federator.projects)) == []
    monkeypatch.setattr("builtins.input", lambda _: "Yes ")
    await asyncio.to_thread(federator.publish, path, confirm=True)
    assert [one.name for one in await asyncio.to_thread(federator.projects)] == ["mean"]


async def test_a_preview_names_warnings_and_what_my_site_lacks(world: World, tmp_path: Path) -> None:
    """In the text and, escaped, in the HTML."""
    needs = 'DEPENDENCIES = ["lifelines"]\nTEXT = "<b>"\nDEVICE = "cuda"'
    path = saved(tmp_path / "mean.ipynb", mean_notebook(needs))
    assert "what its image has is not known yet" in repr(await asyncio.to_thread(federator.preview, path))
    for packages, said in (
        ({"flwr": "1.41.0"}, "North Hospital's image has no lifelines; ask its admin, or leave it out."),
        ({"flwr": "1.41.0", "lifelines": "1", "numpy": "2"}, "North Hospital has all that is needed."),
    ):
        world.coordinator.report_packages(world.principal("ada"), packages, ("numpy",))
        preview = await asyncio.to_thread(federator.preview, path)
        assert said in repr(preview)
        assert "Look at this: Cell 5, line 3 needs a GPU" in repr(preview)
        assert "&lt;b&gt;" in preview._repr_html_()
        assert "<b>&quot;" not in preview._repr_html_()


def test_cells_that_were_run_in_another_form_than_saved() -> None:
    content = notebook(
        markdown("#"), code("x = 1", "federated"), code("y = 2"), code("def f():\n    pass", "federated")
    )
    assert authoring.unsaved_cells(content, ["", "x = 1", "y = 3", "def f():\n    pass\n"]) == []
    assert authoring.unsaved_cells(content, ["", "x = 1", "def f():\n    return 1"]) == [4]
    assert authoring.unsaved_cells(content, ["", "x = 2", "x = 1"]) == []
    assert authoring.unsaved_cells(content, ["%matplotlib inline"]) == []
    assert authoring.unsaved_cells(b"no notebook", ["x = 1"]) == []


def test_the_declaration_takes_the_place_of_an_older_one() -> None:
    older = authoring._with_metadata(mean_notebook(), {"outputs": {"train": {}}})
    assert json.loads(older)["metadata"]["federator"] == {"outputs": {"train": {}}}
    assert json.loads(authoring._without_outputs(older))["metadata"] == {}
    assert outputs_table(()) == {}


async def test_a_notebook_tries_and_publishes_itself(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a real kernel, as JupyterLab starts one."""
    cells = [nbformat.v4.new_code_cell(source, metadata={"tags": ["federated"]}) for source in MEAN_CELLS]
    asks = ["import federator\ntrial = federator.try_here(rounds=2)\ntrial", "federator.publish(name='Mine')"]
    document = nbformat.v4.new_notebook(cells=[*cells, *(nbformat.v4.new_code_cell(source) for source in asks)])
    path = tmp_path / "mine.ipynb"
    nbformat.write(document, path)
    monkeypatch.setenv("JPY_SESSION_NAME", str(path))
    client = NotebookClient(document, kernel_name="python3", timeout=60, allow_errors=True)
    await client.async_execute()
    live, shown = document.cells[4].outputs
    assert shown.output_type == "execute_result", shown
    assert "<svg" in shown.data["text/html"]
    assert live.data["text/html"] == "", "the progress is gone once the result is there"
    preview, made = document.cells[5].outputs
    assert "What would leave a site" in preview.data["text/html"]
    assert "Mine (owner ada, app version 1)" in made.data["text/plain"]


async def test_an_interrupted_cell_is_two_lines_and_leaves_no_process(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The signal comes as Jupyter's stop button sends it, once a pretended site is at work."""
    note = f"import os, signal, threading; open({str(tmp_path / 'pids')!r}, 'a').write(f'{{os.getpid()}} ')"
    stop = f"{note}\n    os.kill(os.getppid(), signal.SIGINT)\n    threading.Event().wait()"
    train = MEAN_CELLS[3].replace("    return {", f"    {stop}\n    return {{", 1)
    path = saved(tmp_path / "mine.ipynb", mean_notebook(cells=[*MEAN_CELLS[:3], train]))
    ask = nbformat.v4.new_code_cell(f"import federator\nfederator.try_here({str(path)!r})")
    document = nbformat.v4.new_notebook(cells=[ask])
    await NotebookClient(document, kernel_name="python3", timeout=60, allow_errors=True).async_execute()
    error = document.cells[0].outputs[-1]
    assert error.traceback == ["The trial was interrupted.", "All its processes have ended."]
    for pid in (tmp_path / "pids").read_text().split():
        with pytest.raises(ProcessLookupError):
            os.kill(int(pid), 0)


async def test_a_notebook_that_is_not_saved_is_told_so(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = saved(tmp_path / "mine.ipynb", mean_notebook())
    monkeypatch.setenv("JPY_SESSION_NAME", str(path))
    edited = [*MEAN_CELLS[:3], MEAN_CELLS[3].replace("step", "size"), "import federator\nfederator.try_here()"]
    document = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in edited])
    await NotebookClient(document, kernel_name="python3", timeout=60, allow_errors=True).async_execute()
    (error,) = document.cells[4].outputs
    assert error.traceback == [
        "Cell 4 was run in another form than the saved one: save the notebook.",
        "What is tried and published is the saved file.",
    ]
    assert error.ename == "Refused"


def test_api_of_the_service_client() -> None:
    assert api.build("a.ipynb", b"x", "p1").query == {"filename": "a.ipynb", "project": "p1"}
