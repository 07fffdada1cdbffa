"""Warnings of a build: what works in the notebook and may not at a site."""

from __future__ import annotations

import ast
import json

import pytest

from hub_service.apps import advice
from hub_service.apps.build import AppBuilder
from hub_service.apps.names import names_assigned_by
from hub_service.domain.errors import Invalid
from tests.fakes.notebooks import MEAN_CELLS, code, mean_notebook, notebook

builder = AppBuilder(frozenset({"numpy", "torch"}))


def warnings(*more: str) -> tuple[str, ...]:
    return builder.build("a.ipynb", mean_notebook(*more)).warnings


def run_in_order(counts: list[int | None], *more: str) -> tuple[str, ...]:
    cells = [code(source, "federated") for source in (*MEAN_CELLS, *more)]
    for cell, count in zip(cells, counts, strict=True):
        cell["execution_count"] = count
    return builder.build("a.ipynb", notebook(*cells)).warnings


def refusal(content: bytes) -> str:
    with pytest.raises(Invalid) as caught:
        builder.build("a.ipynb", content)
    return f"{caught.value.message} {caught.value.next_step}"


def test_cells_run_in_another_order_than_they_stand_in() -> None:
    assert run_in_order([1, 2, 3, 4, 6, 5], "LIMIT = 1", "LIMIT = 2") == (
        "Cell 6 was run before cell 5, and both have to do with “LIMIT”: in the app the cells run from top to bottom, "
        "so it may have another value there. Choose Run, Restart Kernel and Run All Cells, look at the results, and "
        "save.",
    )
    assert "“LIMIT”" in run_in_order([1, 2, 3, 4, 6, 5], "LIMIT = 1", "LAST = LIMIT + 1")[0]


def test_an_order_that_changes_nothing_is_not_mentioned() -> None:
    assert run_in_order([1, 2, 3, 4, 5, 6], "LIMIT = 1", "LIMIT = 2") == ()
    assert run_in_order([None] * 6, "LIMIT = 1", "LIMIT = 2") == ()
    assert run_in_order([4, 3, 2, 1, 6, 5], "A = 1", "def helper():\n    return A") == ()


def test_many_cells_in_a_wrong_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each cell is looked into once, and not once for each other cell; the list of names ends somewhere."""
    seen: list[ast.Module] = []

    def counted(tree: ast.Module) -> frozenset[str]:
        seen.append(tree)
        return names_assigned_by(tree)

    monkeypatch.setattr(advice, "names_assigned_by", counted)
    more = [f"A{place} = B{place} = 1" for place in range(40)] * 2
    found = run_in_order([*range(1, 5), *range(100, 20, -1)], *more)
    assert len(seen) == 84
    assert len(found) == 20
    assert found[0].startswith("Cell 45 was run before cell 5, and both have to do with “A0”")


@pytest.mark.parametrize(
    "line",
    [
        "model.cuda()",
        "    model = model.to('cuda')",
        "x = torch.zeros(3, device='cuda:0')",
        "DEVICE = 'cuda'",
        "DEVICE = torch.device('cuda')",
    ],
)
def test_code_that_needs_a_gpu(line: str) -> None:
    (text,) = warnings(f"import torch\ndef on_gpu(model):\n    {line.strip()}")
    assert text.startswith("Cell 5, line 3 needs a GPU: “")
    assert 'device = "cuda" if torch.cuda.is_available() else "cpu"' in text


@pytest.mark.parametrize(
    "source",
    [
        "import torch\nDEVICE = 'cuda' if torch.cuda.is_available() else 'cpu'",
        "import torch\ndef f(model):\n    if torch.cuda.is_available():\n        model.cuda()",
        "import torch\nDEVICE = torch.device('cuda' if torch.cuda.is_available() else 'cpu')",
        "TEXT = 'cudart'",
        "import torch\nfree = torch.cuda.is_available()",
    ],
)
def test_code_that_has_a_way_without_a_gpu(source: str) -> None:
    assert warnings(source) == ()


def test_unicode_names_are_names() -> None:
    built = builder.build("größe.ipynb", mean_notebook("größe = 3\nλ = größe / 2\ndef ﬁt(x):\n    return x * λ"))
    assert built.warnings == ()
    assert "λ" in built.cells[-1].source


@pytest.mark.parametrize("rounds", ["10_000", "0", "2.5", "'3'"])
def test_rounds_that_no_run_has(rounds: str) -> None:
    text = refusal(mean_notebook(f"CONFIG = {{'num-server-rounds': {rounds}}}"))
    assert text.startswith("Cell 5, line 1: CONFIG asks for ")
    assert "a run has 1 to 1000" in text


def test_dependencies_go_into_the_app() -> None:
    built = builder.build("a.ipynb", mean_notebook('DEPENDENCIES = ["lifelines >=0.27", "numpy"]\nimport lifelines'))
    assert built.dependencies == ("flwr<2,>=1.41", "lifelines>=0.27", "numpy")
    assert "lifelines" in built.imports


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("[name()]", "is not a list of plain texts"),
        ("'lifelines'", "is not a list"),
        ("['life lines']", "names no package"),
        ("[1]", "an entry that is no text"),
        ("['x @ https://example.org/x.whl']", "names a place to install from"),
        ("['x'] * 101", "is not a list of plain texts"),
        (repr(["x"] * 101), "at most 100"),
    ],
)
def test_dependencies_that_cannot_be_read(value: str, reason: str) -> None:
    text = refusal(mean_notebook(f"DEPENDENCIES = {value}"))
    assert text.startswith("Cell 5, line 1: DEPENDENCIES")
    assert reason in text


def test_a_module_that_some_site_has_is_taken() -> None:
    content = mean_notebook("import lifelines")
    assert "DEPENDENCIES" in refusal(content)
    assert "lifelines" in builder.build("a.ipynb", content, frozenset({"lifelines"})).imports


def declaring(outputs: object) -> bytes:
    document = json.loads(mean_notebook())
    document["metadata"]["federator"] = {"outputs": outputs}
    return json.dumps(document).encode()


def test_declared_outputs_are_part_of_the_hash() -> None:
    table = {"train": {"arrays": {"arrays": {"0": "float64[1]"}}}}
    first, again = (builder.build("a.ipynb", declaring(table)) for _ in range(2))
    assert first.fab_hash == again.fab_hash != builder.build("a.ipynb", mean_notebook()).fab_hash
    assert [one.key for one in first.outputs] == ["0"]
    (pyproject,) = [file.text for file in first.files if file.path == "pyproject.toml"]
    assert '0 = "float64[1]"' in pyproject


def test_a_broken_declaration_is_refused() -> None:
    text = refusal(declaring({"train": "all"}))
    assert "The notebook's metadata has declared outputs that cannot be read: “train” is no table of names." in text
    assert "try_here() again" in text
