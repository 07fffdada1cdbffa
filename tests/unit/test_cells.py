"""Which notebooks become apps, and what is said of those that do not."""

from __future__ import annotations

import json
import sys

import pytest

from hub_service.apps.cells import MAX_NOTEBOOK_BYTES, read_notebook
from hub_service.domain.errors import FederationError, Invalid, TooLarge
from tests.fakes.notebooks import MEAN_CELLS, code, federated, markdown, mean_notebook, notebook

KNOWN = frozenset({"numpy", "torch"}) | sys.stdlib_module_names


def refusal(content: bytes) -> str:
    """What a person reads: the reason and the next step."""
    with pytest.raises(FederationError) as caught:
        read_notebook(content, KNOWN)
    assert caught.value.next_step
    return f"{caught.value.message} {caught.value.next_step}"


def test_takes_the_tagged_cells_in_order_with_the_numbers_that_jupyterlab_shows():
    setup, model, data, steps = MEAN_CELLS
    app = read_notebook(
        notebook(
            markdown("# Title"),
            code(setup, "federated", "other"),
            code("display(1)"),
            code(model, "federated"),
            markdown("text"),
            code(data, "federated"),
            code(steps, "federated"),
        ),
        KNOWN,
    )
    assert [cell.number for cell in app.cells] == [2, 4, 6, 7]
    assert app.cells[1].source == model
    assert app.imports == ("numpy", "pathlib")
    assert app.config == {"step": 0.5, "num-server-rounds": 4}


def test_runs_nothing(tmp_path):
    witness = tmp_path / "ran"
    read_notebook(mean_notebook(f"open({str(witness)!r}, 'w').close()"), KNOWN)
    assert not witness.exists()


def test_an_old_notebook_format_is_read():
    old = {
        "nbformat": 3,
        "nbformat_minor": 0,
        "metadata": {"name": ""},
        "worksheets": [{"cells": [], "metadata": {}}],
    }
    assert "No code cell" in refusal(json.dumps(old).encode())


def test_line_ends_are_made_plain_so_that_what_is_shown_is_what_runs():
    app = read_notebook(mean_notebook("# a comment\rHIDDEN = 1\r\nSHOWN = 2"), KNOWN)
    assert app.cells[-1].source == "# a comment\nHIDDEN = 1\nSHOWN = 2"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "not JSON"),
        (b"\x89PNG\r\n\x1a\n", "not JSON"),
        (b"print('hello')", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"[]", "does not name its notebook format"),
        (b"{}", "does not name its notebook format"),
        (b'{"nbformat": "four"}', "does not name its notebook format"),
        (b'{"nbformat": 4}', "does not follow the notebook format"),
        (b'{"nbformat": 99, "cells": []}', "does not follow the notebook format"),
        (b'{"nbformat": 4, "nbformat_minor": 4, "metadata": {}, "cells": "x"}', "does not follow"),
        (b'{"nbformat": 4, "nbformat_minor": 4, "metadata": {}, "cells": [7]}', "does not follow"),
        (b'{"nbformat": 3, "worksheets": "x"}', "does not follow the notebook format"),
        (notebook(), "No code cell of this notebook is tagged “federated”"),
        (notebook(code("x = 1"), markdown("y")), "No code cell of this notebook is tagged “federated”"),
    ],
)
def test_what_is_no_usable_notebook_is_refused(content, reason):
    assert reason in refusal(content)


def test_a_notebook_over_the_limit_is_refused_before_it_is_parsed():
    with pytest.raises(TooLarge) as caught:
        read_notebook(b"{" * (50 * 1024 * 1024), KNOWN)
    assert "50.0 MB" in caught.value.message
    assert "Clear its outputs" in caught.value.next_step
    at_limit = b" " * MAX_NOTEBOOK_BYTES
    with pytest.raises(Invalid, match="not JSON"):
        read_notebook(at_limit, KNOWN)


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("x = 1\ndef broken(:\n    pass", "Cell 5, line 2 has a syntax error"),
        ("return 1", "Cell 5, line 1 has a syntax error: 'return' outside function"),
        ("await something()", "Cell 5, line 1 has a syntax error"),
        ("text = 'never closed", "Cell 5, line 1 has a syntax error"),
        ("(" * 400 + ")" * 400, "Cell 5, line 1 has a syntax error"),
        ("-" * 200_000 + "1", "Cell 5, line 1 has a syntax error"),
        ("x = '\ud800'", "Cell 5, line 1 has a syntax error"),
        ("x = 1\0", "Cell 5, line 1 has a syntax error"),
        ("%matplotlib inline", "Cell 5, line 1 is a magic, a shell command or a help call: “%matplotlib inline”"),
        ("x = 1\n!pip install torch", "Cell 5, line 2 is a magic"),
        ("%%bash\nls", "Cell 5, line 1 is a magic"),
        ("files = !ls", "Cell 5, line 1 is a magic"),
        ("load_data?", "Cell 5, line 1 is a magic"),
        ("?load_data", "Cell 5, line 1 is a magic"),
    ],
)
def test_code_that_python_cannot_run_is_refused_with_cell_and_line(source, reason):
    assert reason in refusal(mean_notebook(source))


@pytest.mark.parametrize("source", ["x = 7\ny = (x\n  % 3)", "x = '''\n%time\n!ls\n'''", "# what is this?", "'a' is 1"])
def test_what_only_looks_like_a_magic_is_taken(source):
    assert read_notebook(mean_notebook(source), KNOWN).cells[-1].source == source


@pytest.mark.parametrize("name", ["build_model", "load_data", "train", "evaluate"])
def test_a_missing_function_is_named_with_how_to_tag(name):
    cells = [source.replace(f"def {name}(", f"def other_{name}(") for source in MEAN_CELLS]
    text = refusal(federated(*cells))
    assert f"No tagged cell defines the function {name}(" in text
    assert "property inspector" in text


def test_a_function_in_a_private_cell_is_pointed_at():
    *others, steps = MEAN_CELLS
    text = refusal(notebook(*(code(source, "federated") for source in others), markdown("Training"), code(steps)))
    assert "train(model, data, config) is defined in cell 5, which is not tagged" in text
    assert "Tag cell 5 as well" in text


@pytest.mark.parametrize(
    "definition",
    [
        "def build_model(size): ...",
        "def load_data(path): ...",
        "def train(model, data): ...",
        "def train(model, data, config, rate): ...",
        "def evaluate(model, data, config, *, threshold): ...",
        "def strategy(): ...",
    ],
)
def test_a_function_that_cannot_be_called_as_an_app_calls_it_is_refused(definition):
    text = refusal(mean_notebook(definition))
    assert "Cell 5, line 1: " in text
    assert "cannot be called as" in text


@pytest.mark.parametrize(
    "definition",
    [
        "def build_model(size=3): ...",
        "def load_data(*anything): ...",
        "def train(net, loader, /, cfg, rate=1, *, verbose=False): ...",
        "def strategy(config): ...",
    ],
)
def test_other_names_defaults_and_star_arguments_fit(definition):
    assert read_notebook(mean_notebook(definition), KNOWN)


def test_a_coroutine_is_no_train_function():
    cells = [source.replace("def train(", "async def train(") for source in MEAN_CELLS]
    assert "No tagged cell defines the function train(" in refusal(federated(*cells))


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("import monai.losses", "Cell 5, line 1 imports “monai”"),
        ("x = 1\nfrom monai import losses", "Cell 5, line 2 imports “monai”"),
        ("def f():\n    import monai", "Cell 5, line 2 imports “monai”"),
        ("from . import helpers", "Cell 5, line 1 imports from files beside the notebook"),
        ("from __future__ import annotations", "Cell 5, line 1 imports from __future__"),
    ],
)
def test_imports_that_sites_do_not_have_are_refused(source, reason):
    assert reason in refusal(mean_notebook(source))


def test_more_code_than_a_steward_can_read_is_refused():
    with pytest.raises(TooLarge, match="300 KB of code"):
        read_notebook(mean_notebook("x" * 300 * 1024), KNOWN)


def test_more_cells_than_are_compared_are_refused():
    with pytest.raises(TooLarge, match="at most 500"):
        read_notebook(mean_notebook(*["x = 1"] * 500), KNOWN)


def test_a_future_import_at_the_top_is_taken():
    assert read_notebook(federated("from __future__ import annotations", *MEAN_CELLS), KNOWN)


@pytest.mark.parametrize(
    "use",
    [
        "x = THRESHOLD",
        "def g():\n    return THRESHOLD",
        "class A:\n    x = THRESHOLD",
        "x = [i for i in range(3) if i > THRESHOLD]",
        "def g(x=THRESHOLD): ...",
        "g = lambda: THRESHOLD",
        "def g():\n    def h():\n        return [THRESHOLD for _ in ()]",
        "class A:\n    def m(self):\n        return THRESHOLD",
    ],
)
def test_hidden_state_is_refused_with_the_cell_to_tag(use):
    tagged = [code(source, "federated") for source in MEAN_CELLS]
    text = refusal(notebook(*tagged, code("%time\nTHRESHOLD = 3"), code(use, "federated")))
    assert "Cell 6, line" in text
    assert "uses “THRESHOLD”, which only cell 5 defines" in text
    assert "Tag cell 5 as well" in text


def test_a_name_that_nothing_defines_is_refused_at_its_line():
    broken_private_cell = code("def (: THRESHOLD = 3")
    tagged = [code(source, "federated") for source in MEAN_CELLS]
    text = refusal(
        notebook(*tagged, broken_private_cell, code("def g():\n    x = 1\n    return display(x)", "federated"))
    )
    assert "Cell 6, line 3 uses “display”, which no cell defines" in text


def test_use_before_definition_names_both_cells():
    text = refusal(mean_notebook("doubled = 2 * half", "half = 1"))
    assert "Cell 5, line 1 uses “half” before cell 6 defines it" in text
    assert "Move cell 6 above cell 5" in text


@pytest.mark.parametrize(
    "sources",
    [
        ("def g():\n    return half", "half = 1"),  # read when called
        ("def g():\n    global half\n    half = 1", "def h():\n    return half"),
        ("def g(x):\n    return [y * x for y in (1, 2)]",),
        ("class A:\n    def m(self):\n        return super().__init__() or __class__",),
        ("with open('x') as file:\n    text = file.read()",),
        ("for index in range(3):\n    print(index)",),
        ("import torch.nn as nn\nclass Net(nn.Module): ...",),
        ("from torch import *", "x = whatever_torch_has"),
        ("print(__name__, __file__)",),
        ("try:\n    pass\nexcept ValueError as error:\n    print(error)",),
    ],
)
def test_valid_uses_of_names_are_taken(sources):
    assert read_notebook(mean_notebook(*sources), KNOWN)


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("CONFIG = dict(rate=1)", "CONFIG is not a dictionary of plain values"),
        ("CONFIG = {'rate': 1, **{}}", "CONFIG is not a dictionary of plain values"),
        ("CONFIG = {[]: 1}", "CONFIG is not a dictionary of plain values"),
        ("CONFIG = [1]", "CONFIG is not a dictionary"),
        ("CONFIG = {1: 2}", "has the key “1”"),
        ("CONFIG = {'a..b': 2}", "has the key “'a..b'”"),
        ("CONFIG: dict = {'rates': [1, 2]}", "gives “rates” a list"),
        ("CONFIG = {'rate': None}", "gives “rate” a NoneType"),
        ("CONFIG = {'rate': 2**3}", "CONFIG is not a dictionary of plain values"),
        (f"CONFIG = {{'rate': {2**63}}}", "gives “rate” a number of more than 64 bits"),
        ("CONFIG = {'note': '\\ud800'}", "gives “note” a text with half of a character"),
        ("CONFIG = {'rate': 1e999}", "gives “rate” inf, which is no number that can be written down"),
    ],
)
def test_a_config_that_flower_cannot_send_is_refused(source, reason):
    text = refusal(mean_notebook(source))
    assert "Cell 5, line 1: CONFIG" in text
    assert reason in text


def test_the_last_config_counts():
    assert read_notebook(mean_notebook("CONFIG: dict = {'step': -1, 'on': True}"), KNOWN).config == {
        "step": -1,
        "on": True,
    }
