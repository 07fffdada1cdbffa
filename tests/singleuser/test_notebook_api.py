"""`import federator` in a researcher's notebook, against the service's API over real HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import federator
import pytest
from federator import notebook
from federator import service_client as api
from federator.contract import (
    ApprovalState,
    ClientState,
    MemberState,
    Participant,
    Round,
    RunStatus,
    SiteRound,
)
from federator.display import html_table, participant_row, rounds_table
from IPython.core.interactiveshell import InteractiveShell

from tests.fakes.service import FakeService


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeService]:
    """A service that this process may ask, as a notebook server's kernels may."""
    monkeypatch.chdir(tmp_path)
    with FakeService().running() as fake:
        for name, value in fake.environment().items():
            monkeypatch.setenv(name, value)
        notebook._service.cache_clear()
        yield fake
        if notebook._service.cache_info().currsize:
            notebook._service().close()
        notebook._service.cache_clear()


def test_the_package_offers_the_notebook_api() -> None:
    assert set(federator.__all__) <= set(dir(federator))
    assert federator.project is notebook.project
    assert federator.ServiceError is api.ServiceError
    with pytest.raises(AttributeError, match="nothing_of_ours"):
        _ = federator.nothing_of_ours


def test_projects_and_invitations_as_a_table(service: FakeService) -> None:
    assert "No projects" in repr(federator.projects())
    assert "federator.publish" in federator.projects()._repr_html_()
    service.add_project("p1", "Histo <b>")
    service.add_project("p2", "Lungs", invited=True)
    mine = federator.projects()
    assert [p.name for p in mine] == ["Lungs", "Histo <b>"]
    html = mine._repr_html_()
    assert "Histo &lt;b&gt;" in html
    assert "<b>" not in html
    assert "invited: .join()" in repr(mine)


def test_a_project_by_name_or_id(service: FakeService) -> None:
    service.add_project("p1", "Histo")
    service.add_project("p2", "Twin")
    service.add_project("p3", "Twin")
    assert federator.project("Histo").id == federator.project("p1").id == "p1"
    with pytest.raises(federator.ServiceError, match="You have no project 'Lungs'"):
        federator.project("Lungs")
    with pytest.raises(federator.ServiceError, match=r"Use the id: p2 \(owner owner\), p3"):
        federator.project("Twin")


def test_accept_take_part_and_leave(service: FakeService) -> None:
    service.add_project("p1", "Histo", invited=True)
    project = federator.project("Histo").join(dataset="slides")
    assert service.projects["p1"].member_state is MemberState.JOINED
    assert "slides" in repr(project)
    assert "about &lt;b&gt;cells&lt;/b&gt;" in project._repr_html_()
    with pytest.raises(federator.ServiceError, match="no dataset 'scans'"):
        project.join(dataset="scans")
    project.leave()
    assert service.participants["p1"] == {}


def test_a_sites_only_dataset_need_not_be_named(service: FakeService) -> None:
    service.add_project("p1", "Histo", invited=True)
    federator.project("p1").join()
    assert service.participants["p1"]["me"].dataset == "slides"


@pytest.mark.parametrize(("names", "words"), [((), "Ask it@north.example"), (("a", "b"), "There is a, b")])
def test_which_dataset_is_asked_for_by_name(
    service: FakeService, monkeypatch: pytest.MonkeyPatch, names: tuple[str, ...], words: str
) -> None:
    service.add_project("p1", "Histo", invited=True)
    service.offer(*names)
    with pytest.raises(federator.ServiceError, match=words):
        federator.project("p1").join()


def test_invite_remove_and_decline(service: FakeService) -> None:
    service.add_project("p1", "Histo", role="owner")
    project = federator.project("p1").invite("maria")
    assert "invited" in repr(project)
    project.remove("maria")
    assert service.participants["p1"] == {}
    project.decline()
    assert federator.projects() == []


def test_publish_makes_a_project_and_then_versions_of_it(service: FakeService, tmp_path: Path) -> None:
    (tmp_path / "train.ipynb").write_bytes(b'{"cells": []}')
    first = federator.publish("train.ipynb", name="Histo", description="slides of three hospitals")
    second = federator.publish(tmp_path / "train.ipynb", name="Histo")
    assert first.id == second.id
    assert service.uploads == [(first.id, "train.ipynb", b'{"cells": []}')] * 2
    assert "app version 2" in repr(second)
    assert federator.publish("train.ipynb").name == "train"


def test_publish_leaves_other_peoples_projects_alone(service: FakeService, tmp_path: Path) -> None:
    (tmp_path / "train.ipynb").write_bytes(b"{}")
    service.add_project("p1", "Histo", role="member")
    assert federator.publish("train.ipynb", name="Histo").id != "p1"


def test_publish_says_what_is_wrong(service: FakeService, tmp_path: Path) -> None:
    with pytest.raises(federator.ServiceError, match=r"nowhere\.ipynb cannot be read: No such file"):
        federator.publish("nowhere.ipynb")
    (tmp_path / "bad.ipynb").write_bytes(b"{}")
    service.refused_names.add("bad.ipynb")
    with pytest.raises(federator.ServiceError, match=r"Cell 3 does not define train\(\)\. Add it"):
        federator.publish("bad.ipynb")


async def test_a_run_is_followed_to_its_result(
    service: FakeService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(notebook, "REFRESH", 0.01)
    service.add_project("p1", "Histo", role="owner")
    project = federator.project("p1")
    run = project.run(rounds=2)
    assert run.status is RunStatus.STARTING
    waiting = asyncio.create_task(asyncio.to_thread(run.wait))
    service.finish_round(run.id)
    service.answer_all_with(503)
    seen = service.requests
    await asyncio.to_thread(service.wait_for, lambda s: s.requests > seen + 1)
    service.answer_all_with(None)
    service.finish_round(run.id)
    assert await waiting is run
    shown = capsys.readouterr().out
    assert "finished" in shown
    assert "0.5200" in shown

    table = run.table()
    assert table == [
        {"model": "north", "north": 0.7},
        {"model": "federated", "north": 0.8, "all": 0.8},
    ]
    assert table.columns == ["model", "north", "all"]
    assert "0.8000" in table._repr_html_()
    assert repr(table).splitlines()[0] == "accuracy"
    assert run.table("loss")[0]["north"] == 0.4
    with pytest.raises(federator.ServiceError, match=r"no metric 'auc'\. It reports accuracy, loss"):
        run.table("auc")

    assert run.model("global.safetensors") == Path("global.safetensors")
    assert (tmp_path / "global.safetensors").read_bytes() == b"model"
    assert run.record() == {"fab_hash": "cd" * 32}
    assert "round 2 of 2" in run._repr_html_()
    assert [r.id for r in project.refresh().runs] == [run.id]


def test_a_service_that_stays_away_is_not_waited_for_for_ever(
    service: FakeService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notebook, "PATIENCE", 0.0)
    service.answer_all_with(503)
    with pytest.raises(federator.ServiceError, match="does not answer"):
        notebook.Run("r1").wait(progress=False)


async def test_a_run_that_fails_or_is_stopped_says_why(service: FakeService, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notebook, "REFRESH", 0.01)
    service.add_project("p1", "Histo", role="owner")
    run = federator.project("p1").run(rounds=5, compare=False)
    with pytest.raises(federator.ServiceError, match="has no comparison"):
        run.table()
    service.fail_run(run.id, "Every site answered with an error.")
    with pytest.raises(federator.RunFailed, match=r"Run 1 failed\. Every site"):
        run.wait(progress=False)
    other = federator.project("p1").run()
    other.stop()
    assert "stopped" in repr(other)
    with pytest.raises(federator.RunFailed, match="Run 2 stopped"):
        other.wait(progress=False)


def test_pandas_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    table = notebook.Table("accuracy", [{"model": "federated", "north": 0.8, "all": 0.9}])
    monkeypatch.setattr(notebook, "import_module", pandas_is_missing)
    with pytest.raises(federator.ServiceError, match="pandas is not installed"):
        table.to_pandas()
    made: list[Any] = []
    monkeypatch.setattr(notebook, "import_module", lambda name: StandInPandas(made))
    table.to_pandas()
    assert made == [[{"model": "federated", "north": 0.8, "all": 0.9}], ["model", "north", "all"], "model"]


def test_outside_a_federation_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FEDERATOR_SERVICE_URL", raising=False)
    notebook._service.cache_clear()
    with pytest.raises(federator.ServiceError, match="not part of a federation"):
        federator.projects()


def test_a_notebook_shows_two_lines_and_no_stack(capsys: pytest.CaptureFixture[str]) -> None:
    shell = InteractiveShell.instance()
    try:
        raise api.Refused("It did not work.", "Do this.")
    except api.ServiceError:
        shell.showtraceback()
    finally:
        InteractiveShell.clear_instance()
    assert capsys.readouterr().out == "It did not work.\nDo this.\n"


def test_markup_from_others_is_text() -> None:
    table = html_table(["<i>head"], [["<script>alert(1)</script>"]], caption="<c>")
    assert "<script>" not in table
    assert "<i>" not in table
    assert "<c>" not in table


def test_a_refusal_by_a_steward_is_shown_with_its_reason() -> None:
    row = participant_row(
        Participant(
            "maria",
            "member",
            MemberState.JOINED,
            site_title="South",
            dataset="scans",
            approval=ApprovalState.REJECTED,
            approval_reason="writes files",
            client=ClientState.PAUSED,
            detail="by her",
        )
    )
    assert row == ("maria", "South", "scans", "rejected: writes files", "paused: by her")


def test_a_site_that_failed_or_was_missing_stands_in_the_round(service: FakeService) -> None:
    service.add_project("p1", "Histo", role="owner")
    run = federator.project("p1").run(rounds=1)
    sites = (SiteRound("north", error="out of memory"), SiteRound("west", train={"loss": 0.2}))
    rounds = (Round(1, sites, train={"loss": 0.2}),)
    detail = replace(run.detail, sites=("north", "south", "west"), rounds=rounds)
    head, rows = rounds_table(detail)
    assert head == ("round", "north", "south", "west", "all sites (loss)")
    assert rows == [("1", "error: out of memory", "", "0.2000", "0.2000")]


def pandas_is_missing(name: str) -> Any:
    raise ImportError(name)


class StandInPandas:
    """Records what a DataFrame is made of."""

    def __init__(self, made: list[Any]) -> None:
        self.made = made

    def DataFrame(self, rows: list[Any], columns: list[str]) -> StandInPandas:  # noqa: N802 - pandas' own name
        self.made += [rows, columns]
        return self

    def set_index(self, column: str) -> StandInPandas:
        self.made.append(column)
        return self
