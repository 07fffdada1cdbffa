"""The real app with pretended sites in processes of their own: what it shows, and what is told when it goes wrong."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from federator.contract import ANY_LENGTH, DeclaredOutput
from federator.trial import Plan, TrialFailed, TrialResult, try_app

from hub_service.apps.build import AppBuilder
from tests.fakes.flower_apps import averaging_app
from tests.fakes.notebooks import MEAN_CELLS, mean_notebook, write_numbers

MODELS, DATA, TRAINING = MEAN_CELLS[1:]
FIRST_LINE = '    return {"round": config["round"]}'
builder = AppBuilder(frozenset({"numpy"}))


def plan(folder: Path, cells: Sequence[str] = MEAN_CELLS, *, patience: float = 60.0, same_data: bool = False) -> Plan:
    """Two sites, three rounds."""
    folders = {
        "site-1": write_numbers(folder / "one", [1, 2, 3], [2]),
        "site-2": write_numbers(folder / "two", [5, 6], [5, 5]),
    }
    if same_data:
        folders["site-2"] = folders["site-1"]
    built = builder.build("mean.ipynb", mean_notebook(cells=cells))
    return Plan(built.fab, built.fab_hash, folders, {**built.config, "num-server-rounds": 3}, patience)


def training_that(*lines: str) -> tuple[str, ...]:
    """The cells, with these lines at the end of `train`."""
    body = "\n".join(f"    {line}" for line in lines)
    return (*MEAN_CELLS[:3], TRAINING.replace(FIRST_LINE, f"{body}\n{FIRST_LINE}"))


def tried(what: Plan, show: Callable[[TrialResult], None] = lambda _: None) -> TrialResult:
    return try_app(what, show)


def failure(what: Plan) -> TrialFailed:
    with pytest.raises(TrialFailed) as caught:
        tried(what)
    assert caught.value._render_traceback_() == [caught.value.message, caught.value.next_step]
    return caught.value


def test_rounds_with_each_sites_metrics(tmp_path: Path) -> None:
    shown: list[TrialResult] = []
    result = tried(plan(tmp_path), shown.append)
    assert [one.number for one in result.detail.rounds] == [1, 2, 3]
    first, last = result.detail.rounds[0], result.detail.rounds[-1]
    assert [site.site for site in last.sites] == ["site-1", "site-2"]
    assert [site.evaluate_examples for site in last.sites] == [1, 2]
    errors = [site.evaluate["error"] for site in last.sites]
    assert last.evaluate["error"] == pytest.approx((errors[0] + 2 * errors[1]) / 3)
    assert last.evaluate["error"] < first.evaluate["error"]
    assert last.sites[0].bytes_in > 0 < last.sites[0].bytes_out
    assert len(shown[-1].detail.rounds) == 3
    assert shown[0].detail.rounds == ()


def test_what_would_leave_a_site(tmp_path: Path) -> None:
    result = tried(plan(tmp_path))
    assert DeclaredOutput("train", "arrays", "arrays", "0", "float64", (1,)) in result.outputs
    assert DeclaredOutput("evaluate", "metrics", "metrics", "error", "number") in result.outputs
    assert {one.message for one in result.outputs} == {"train", "evaluate"}
    assert result.bytes_by_message["train"] > 0 == result.bytes_by_message["evaluate"]


def test_a_model_that_grows_has_a_free_dimension(tmp_path: Path) -> None:
    """As boosted trees do: each round's answer is longer than the one before."""
    grow = training_that('model.weights[0] = np.zeros(config["round"])')
    (array,) = [one for one in tried(plan(tmp_path, grow)).outputs if one.kind == "arrays"]
    assert array.shape == (ANY_LENGTH,)


def test_sites_that_share_a_folder_have_seeds_of_their_own(tmp_path: Path) -> None:
    reports = training_that('return {"seed": config["seed"]}')
    result = tried(plan(tmp_path, reports, same_data=True))
    seeds = [site.train["seed"] for site in result.detail.rounds[0].sites]
    assert seeds[0] != seeds[1]
    apart = tried(plan(tmp_path, reports))
    assert len({site.train["seed"] for site in apart.detail.rounds[0].sites}) == 1


def test_what_an_app_prints_is_kept(tmp_path: Path) -> None:
    assert (
        "hello from a site"
        in tried(plan(tmp_path, training_that("print('hello from a site', flush=True)"))).logs["site-1"]
    )


def test_a_stock_flower_app_is_tried_as_well(tmp_path: Path) -> None:
    built = builder.build("tiny.zip", averaging_app(train="target = 1.0"))
    what = Plan(built.fab, built.fab_hash, {"a": tmp_path}, {**built.config, "num-server-rounds": 1})
    text = failure(what)
    assert "a: KeyError: 'target'" in text.message
    assert "tinyapp/client_app.py, line " in text.next_step


@pytest.mark.parametrize(
    ("cells", "message", "place"),
    [
        (training_that("raise OSError('no scans')"), "OSError: no scans", "Cell 4, line 3: raise OSError('no scans')"),
        (training_that('return {"name": "x"}'), "train(): the metric 'name' is a str", "Cell 4, line 1: def train("),
        ((*MEAN_CELLS[:2], DATA.replace("np.", "np.no_"), TRAINING), "AttributeError", "Cell 3, line 2: "),
        (training_that('raise AssertionError("Torch not compiled with CUDA")'), "CUDA", "Cell 4, line 3"),
        (training_that("raise SystemExit(3)"), "SystemExit: 3", "Cell 4, line 3"),
    ],
)
def test_a_function_that_fails_is_told_with_site_cell_and_line(
    tmp_path: Path, cells: Sequence[str], message: str, place: str
) -> None:
    error = failure(plan(tmp_path, cells))
    assert error.message.startswith("site-")
    assert message in error.message
    assert place in error.next_step


def test_a_strategy_that_fails_is_told_with_its_cell(tmp_path: Path) -> None:
    error = failure(plan(tmp_path, (*MEAN_CELLS, "def strategy(config):\n    raise KeyError('eta')")))
    assert "in the aggregator: KeyError: 'eta'" in error.message
    assert "Cell 5, line 2: raise KeyError('eta')" in error.next_step


def test_models_of_other_shapes_are_named(tmp_path: Path) -> None:
    error = failure(plan(tmp_path, training_that("model.weights[0] = np.zeros(len(data))")))
    assert "“0” is [3] at site-1 and [2] at site-2" in error.message
    assert "build_model()" in error.next_step


def test_a_site_that_hangs_is_told_with_where_it_is(tmp_path: Path) -> None:
    error = failure(plan(tmp_path, training_that("import threading; threading.Event().wait()"), patience=1.0))
    assert "has worked on one “train” message for 1 s" in error.message
    assert "Cell 4, line 3: import threading" in error.next_step


def test_a_site_that_is_killed_is_told(tmp_path: Path) -> None:
    error = failure(plan(tmp_path, training_that("import os; os.kill(os.getpid(), 9)")))
    assert "was killed (signal 9)" in error.message
    assert "memory" in error.message


def test_a_site_that_exits_is_told_with_its_last_words(tmp_path: Path) -> None:
    ends = training_that("import os; print('the last words', flush=True); os._exit(4)")
    assert "ended with status 4. Its last words: the last words" in failure(plan(tmp_path, ends)).message


def test_an_interrupt_ends_all_processes(tmp_path: Path) -> None:
    """As JupyterLab's stop button does: the signal goes to this process."""
    pid_file = tmp_path / "pid"
    hangs = training_that(
        f"import os, threading; open({str(pid_file)!r}, 'a').write(str(os.getpid()) + ' ')",
        "threading.Event().wait()",
    )
    stop = threading.Event()

    def interrupt() -> None:
        while not stop.wait(0.05):
            if pid_file.exists() and len(pid_file.read_text().split()) == 2:
                os.kill(os.getpid(), signal.SIGINT)
                return

    watcher = threading.Thread(target=interrupt)
    watcher.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            tried(plan(tmp_path, hangs))
    finally:
        stop.set()
        watcher.join()
    for pid in pid_file.read_text().split():
        with pytest.raises(ProcessLookupError):
            os.kill(int(pid), 0)
