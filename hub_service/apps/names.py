"""Which names a piece of Python binds, uses and imports. Pure syntax: nothing is run.

`hub_service.apps.cells` calls this to find hidden state: a name that worked in the notebook because a cell that is not
exported had been run.
"""

from __future__ import annotations

import ast
import builtins
import symtable
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

_MODULE_NAMES = frozenset(dir(builtins)) | {"__name__", "__file__", "__doc__", "__package__", "__spec__", "__loader__"}
_COMPREHENSIONS = frozenset({"listcomp", "setcomp", "dictcomp", "genexpr"})


@dataclass(frozen=True, slots=True)
class Import:
    """One import. `module` is the top-level package, empty for a relative import."""

    module: str
    line: int


@dataclass(frozen=True, slots=True)
class Unresolved:
    """A use of a name that has no value at that point."""

    name: str
    cell: int
    line: int


def find_imports(tree: ast.Module) -> Iterator[Import]:
    """Yield every import of the code, those inside functions too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name.partition(".")[0], node.lineno)
        elif isinstance(node, ast.ImportFrom):
            yield Import((node.module or "").partition(".")[0] if node.level == 0 else "", node.lineno)


def names_bound_by(tree: ast.Module) -> frozenset[str]:
    """Names that the code gives a value to at module level, a `global` inside a function included."""
    return _bound(_table(tree))


def names_assigned_by(tree: ast.Module) -> frozenset[str]:
    """Names that a statement of the module gives a value to; without functions, classes and imports."""
    made = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Import, ast.ImportFrom)
    return names_bound_by(ast.Module([one for one in tree.body if not isinstance(one, made)], []))


def names_used_at_once(tree: ast.Module) -> frozenset[str]:
    """Names of the module that the code reads while it is being run, and not only when its functions are called."""
    return _used_at_once(_table(tree))


def find_unresolved(cells: Iterable[tuple[int, ast.Module]]) -> Iterator[Unresolved]:
    """Yield uses of names that the cells, run in order, have not defined.

    Code that runs at once (module level, class bodies, comprehensions) must find its names defined above it. The body
    of a function runs later: its names may be defined in any of the cells. Nothing is yielded once a cell has a star
    import: what it brings cannot be known without running it.

    Args:
        cells: (cell number, its code), in order.
    """
    defined = set(_MODULE_NAMES)
    deferred: list[tuple[str, int, ast.stmt]] = []
    for number, tree in cells:
        for statement in tree.body:
            if _has_star_import(statement):
                return
            table = _table(ast.Module([statement], []))
            bound = _bound(table)
            for name in sorted(_used_at_once(table) - bound - defined):
                yield Unresolved(name, number, _line_of(name, statement))
            deferred += [(name, number, statement) for name in sorted(_used_later(table))]
            defined |= bound
    for name, number, statement in deferred:
        if name not in defined:
            yield Unresolved(name, number, _line_of(name, statement))


def _table(tree: ast.Module) -> symtable.SymbolTable:
    return symtable.symtable(ast.unparse(tree), "<cell>", "exec")


def _has_star_import(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.ImportFrom) and any(alias.name == "*" for alias in statement.names)


def _bound(table: symtable.SymbolTable) -> frozenset[str]:
    here = {symbol.get_name() for symbol in table.get_symbols() if symbol.is_assigned() or symbol.is_imported()}
    below = {
        symbol.get_name()
        for child in _descendants(table)
        for symbol in child.get_symbols()
        if symbol.is_declared_global() and (symbol.is_assigned() or symbol.is_imported())
    }
    return frozenset(here | below)


def _descendants(table: symtable.SymbolTable) -> Iterator[symtable.SymbolTable]:
    for child in table.get_children():
        yield child
        yield from _descendants(child)


def _runs_at_once(table: symtable.SymbolTable) -> bool:
    return table.get_type() == "class" or table.get_name() in _COMPREHENSIONS


def _used_at_once(table: symtable.SymbolTable) -> frozenset[str]:
    """Names of the module that the code of `table` reads while the module is being run."""
    used = _global_references(table)
    for child in table.get_children():
        if _runs_at_once(child):
            used |= _used_at_once(child)
    return used


def _used_later(table: symtable.SymbolTable) -> frozenset[str]:
    """Names of the module that functions defined by the code of `table` read when they are called."""
    used: frozenset[str] = frozenset()
    for child in table.get_children():
        if not _runs_at_once(child):
            used |= _used_at_once(child)
        used |= _used_later(child)
    return used


def _global_references(table: symtable.SymbolTable) -> frozenset[str]:
    is_module = table.get_type() == "module"
    return frozenset(
        symbol.get_name()
        for symbol in table.get_symbols()
        if symbol.is_referenced() and (is_module or symbol.is_global())
    )


def _line_of(name: str, statement: ast.stmt) -> int:
    """The line, within its cell, where the statement first reads the name."""
    lines = [
        node.lineno
        for node in ast.walk(statement)
        if isinstance(node, ast.Name) and node.id == name and isinstance(node.ctx, ast.Load)
    ]
    return min(lines, default=statement.lineno)
