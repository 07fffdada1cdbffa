"""What works in a notebook and may not at a site. It is told, with the cell and the fix, and refused by nobody.

`hub_service.apps.cells` calls this once it knows that an app can be made of the cells.
"""

from __future__ import annotations

import ast
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from hub_service.apps.names import names_assigned_by, names_used_at_once

_GPU = "cuda"
_MOST_NAMES = 20  # that are warned of; what is to be done is the same for all of them
_CONDITIONS = (ast.If, ast.IfExp, ast.BoolOp, ast.Try)


@dataclass(frozen=True, slots=True)
class CellRun:
    """A tagged cell, and when it was last run: JupyterLab's number in brackets, None for not at all."""

    number: int
    tree: ast.Module
    execution_count: int | None


@dataclass(frozen=True, slots=True)
class _Effects:
    """What a cell does to names when it is run. Found once for each cell, since cells are compared in pairs."""

    number: int
    execution_count: int
    assigned: frozenset[str]
    used: frozenset[str]

    def meets(self, other: _Effects) -> frozenset[str]:
        """Names whose value depends on which of the two is run first."""
        return self.assigned & other.assigned | self.assigned & other.used | self.used & other.assigned


def warn_of_order(cells: Sequence[CellRun]) -> Iterator[str]:
    """Names whose value in the notebook is not the one in the app, where cells run from top to bottom; the first 20."""
    return itertools.islice(_turned_around(cells), _MOST_NAMES)


def _turned_around(cells: Sequence[CellRun]) -> Iterator[str]:
    run = [
        _Effects(one.number, one.execution_count, names_assigned_by(one.tree), names_used_at_once(one.tree))
        for one in cells
        if one.execution_count is not None
    ]
    warned: set[str] = set()
    for upper, lower in itertools.combinations(run, 2):
        if upper.execution_count < lower.execution_count:
            continue
        for name in sorted(upper.meets(lower) - warned):
            warned.add(name)
            yield (
                f"Cell {lower.number} was run before cell {upper.number}, and both have to do with “{name}”: in "
                "the app the cells run from top to bottom, so it may have another value there. Choose Run, Restart "
                "Kernel and Run All Cells, look at the results, and save."
            )


def warn_of_gpu(number: int, tree: ast.Module) -> Iterator[str]:
    """Where the code asks for a GPU whether there is one or not: a site without one would fail."""
    for line, code in sorted(_unconditional_gpu(tree.body)):
        yield (
            f"Cell {number}, line {line} needs a GPU: “{code}”. A site without one will fail. Write "
            'device = "cuda" if torch.cuda.is_available() else "cpu" and .to(device).'
        )


def _unconditional_gpu(body: Sequence[ast.AST]) -> set[tuple[int, str]]:
    found: set[tuple[int, str]] = set()
    for node in body:
        if isinstance(node, _CONDITIONS):
            continue  # whoever asks first has a way without
        if (isinstance(node, ast.Call) and _asks_for_gpu(node)) or (
            isinstance(node, ast.Assign) and _is_gpu_name(node.value)
        ):
            found.add((node.lineno, ast.unparse(node)[:80]))
        else:
            found |= _unconditional_gpu(list(ast.iter_child_nodes(node)))
    return found


def _asks_for_gpu(call: ast.Call) -> bool:
    name = getattr(call.func, "attr", getattr(call.func, "id", ""))
    if name == _GPU:
        return isinstance(call.func, ast.Attribute)
    takes_device = name in ("to", "device")
    return (takes_device and any(_is_gpu_name(one) for one in call.args)) or any(
        keyword.arg == "device" and _is_gpu_name(keyword.value) for keyword in call.keywords
    )


def _is_gpu_name(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.partition(":")[0] == _GPU
