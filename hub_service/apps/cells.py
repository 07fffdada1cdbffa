"""From a notebook's bytes to the cells that become a Flower app. Reads code, never runs it.

A cell is exported when it carries Jupyter's cell tag `federated`. Cells are numbered as a person counts them in
JupyterLab: all cells, from 1. `hub_service.apps.build` calls `read_notebook`; every refusal names the cell, the line
and what to do.
"""

from __future__ import annotations

import ast
import importlib
import json
import math
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from federator.contract import Cell, DeclaredOutput

from hub_service.apps.advice import CellRun, warn_of_gpu, warn_of_order
from hub_service.apps.declarations import HOW_TO_DECLARE, checked_outputs, checked_requirements
from hub_service.apps.names import find_imports, find_unresolved, names_bound_by
from hub_service.domain.errors import Invalid, TooLarge
from hub_service.domain.runs import MOST_ROUNDS

TAG = "federated"
MAX_NOTEBOOK_BYTES = 5 * 1024 * 1024
MAX_CODE_CHARACTERS = 256 * 1024  # of all tagged cells; a steward has to read them
MAX_TAGGED_CELLS = 500
CONFIG_NAME = "CONFIG"
DEPENDENCIES_NAME = "DEPENDENCIES"
ROUNDS_KEY = "num-server-rounds"
METADATA_KEY = "federator"  # of the notebook: what `federator.publish` adds to it on the way

HOW_TO_TAG = (
    f"In JupyterLab, select the cell, open the property inspector (the gears at the top right) and add the tag “{TAG}”."
)

ConfigValue = str | int | float | bool

# The functions an app is made of, and the arguments each is called with, in order.
REQUIRED_FUNCTIONS: dict[str, tuple[str, ...]] = {
    "build_model": (),
    "load_data": ("path", "config"),
    "train": ("model", "data", "config"),
    "evaluate": ("model", "data", "config"),
}
OPTIONAL_FUNCTIONS: dict[str, tuple[str, ...]] = {"strategy": ("config",)}

# What only IPython understands at the start of a line: magics, shell escapes, help.
_IPYTHON_LINE = re.compile(r"\s*(%|!|\?|[\w.,\s]+=\s*[%!])|.*\?\s*$")
_CONFIG_KEY = re.compile(r"[A-Za-z][A-Za-z0-9_-]*(\.[A-Za-z0-9_-]+)*")
_INT64 = range(-(2**63), 2**63)  # Flower sends a run's config as 64-bit integers


@dataclass(frozen=True, slots=True)
class NotebookApp:
    """What a notebook says about its app.

    Attributes:
        cells: the exported cells, in the notebook's order.
        imports: names of the top-level modules imported by them, sorted.
        config: the literal of a top-level `CONFIG = {...}`, empty where there is none.
        private_cells: numbers of the code cells that stay in the notebook.
        dependencies: the literal of a top-level `DEPENDENCIES = [...]`, checked by `hub_service.apps.dependencies`.
        outputs: what the last `federator.try_here` saw leave a site, from the notebook's metadata.
        warnings: what works in the notebook and may not at a site; from `hub_service.apps.advice`.
    """

    cells: tuple[Cell, ...]
    imports: tuple[str, ...]
    config: dict[str, ConfigValue]
    private_cells: tuple[int, ...] = ()
    dependencies: tuple[str, ...] = ()
    outputs: tuple[DeclaredOutput, ...] = ()
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _ParsedCell:
    cell: Cell
    tree: ast.Module
    execution_count: int | None = None


def read_notebook(content: bytes, known_modules: frozenset[str]) -> NotebookApp:
    """Take the tagged cells out of a notebook and check that an app can be made of them.

    Args:
        content: the bytes of an .ipynb file.
        known_modules: top-level modules that sites can import, the standard library included.

    Raises:
        TooLarge: more than MAX_NOTEBOOK_BYTES; nothing is parsed then.
        Invalid: for every other reason; the text names the cell, the line and the fix.
        RecursionError: something is nested too deeply to be checked.
    """
    document = _load(content)
    code = _code_cells(document["cells"])
    _check_length([one.cell for one in code if one.is_tagged])
    tagged = [_parse(one) for one in code if one.is_tagged]
    private = [one.cell for one in code if not one.is_tagged]
    untagged = [parsed for cell in private if (parsed := _parse_leniently(cell)) is not None]
    if not tagged:
        raise Invalid(f"No code cell of this notebook is tagged “{TAG}”, so there is nothing to federate.", HOW_TO_TAG)
    _check_functions(tagged, untagged)
    dependencies = _read_dependencies(tagged)
    _check_imports(tagged, known_modules, dependencies)
    _check_names(tagged, untagged)
    return NotebookApp(
        cells=tuple(parsed.cell for parsed in tagged),
        imports=tuple(sorted({found.module for parsed in tagged for found in find_imports(parsed.tree)})),
        config=_read_config(tagged),
        private_cells=tuple(cell.number for cell in private),
        dependencies=dependencies,
        outputs=_read_outputs(document["metadata"]),
        warnings=(
            *warn_of_order([CellRun(one.cell.number, one.tree, one.execution_count) for one in tagged]),
            *(text for one in tagged for text in warn_of_gpu(one.cell.number, one.tree)),
        ),
    )


def preload() -> None:
    """Import what reading a notebook takes: half of all that the service imports, and of its pause when it restarts.

    Called by `hub_service.app` in a thread, once the service answers.
    """
    importlib.import_module("nbformat")


def _load(content: bytes) -> dict[str, Any]:
    """Return the notebook in the current notebook format."""
    import nbformat  # see `preload`

    if len(content) > MAX_NOTEBOOK_BYTES:
        raise TooLarge(
            f"The notebook has {len(content) / 2**20:.1f} MB; at most {MAX_NOTEBOOK_BYTES // 2**20} MB are taken.",
            "Clear its outputs (Edit, Clear Outputs of All Cells), keep data out of it, save and try again.",
        )
    try:
        document = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise _not_a_notebook("it is not JSON") from error
    if not isinstance(document, dict) or not isinstance(document.get("nbformat"), int):
        raise _not_a_notebook("it does not name its notebook format")
    try:
        with warnings.catch_warnings():
            # Cells without an id are fine: we number cells, we do not name them.
            warnings.simplefilter("ignore")
            notebook = nbformat.convert(nbformat.from_dict(document), 4)  # type: ignore[no-untyped-call]
            nbformat.validate(notebook)
    except (nbformat.ValidationError, ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        # nbformat's converters meet foreign structures with whatever their own code raises.
        raise _not_a_notebook("its content does not follow the notebook format") from error
    return notebook  # type: ignore[no-any-return]


def _check_length(tagged: list[Cell]) -> None:
    if len(tagged) > MAX_TAGGED_CELLS:
        raise TooLarge(
            f"{len(tagged)} cells are tagged “{TAG}”; at most {MAX_TAGGED_CELLS} are taken.",
            "Tag only what the app needs, and join small cells (Edit, Merge Selected Cells).",
        )
    length = sum(len(cell.source) for cell in tagged)
    if length > MAX_CODE_CHARACTERS:
        raise TooLarge(
            f"The tagged cells hold {length // 1024} KB of code; at most {MAX_CODE_CHARACTERS // 1024} KB are taken.",
            "Keep data out of the code, and tag only what the app needs.",
        )


def _not_a_notebook(reason: str) -> Invalid:
    return Invalid(
        f"This is no Jupyter notebook: {reason}.", "Save the notebook in JupyterLab and choose the .ipynb file."
    )


@dataclass(frozen=True, slots=True)
class _CodeCell:
    cell: Cell
    is_tagged: bool
    execution_count: int | None  # None: not run since it was last changed, or since the outputs were cleared


def _code_cells(cells: list[dict[str, Any]]) -> list[_CodeCell]:
    return [
        _CodeCell(Cell(number=number, source=_source(cell)), TAG in _tags(cell), cell.get("execution_count"))
        for number, cell in enumerate(cells, start=1)
        if cell["cell_type"] == "code"
    ]


def _source(cell: dict[str, object]) -> str:
    """The cell's text with plain line ends, so that what a steward reads is line for line what runs."""
    source = cell["source"]
    text = "".join(source) if isinstance(source, list) else str(source)
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _tags(cell: dict[str, object]) -> list[object]:
    metadata = cell["metadata"]
    tags = metadata.get("tags", []) if isinstance(metadata, dict) else []
    return tags if isinstance(tags, list) else []


def compile_source(source: str) -> ast.Module:
    """Parse and compile Python source without running it.

    Raises:
        SyntaxError: as Python says it; also for source that Python cannot hold at all.
    """
    try:
        with warnings.catch_warnings():
            # Python warns of odd but valid code; that is between the author and their editor.
            warnings.simplefilter("ignore")
            tree = ast.parse(source)
            compile(source, "<cell>", "exec", dont_inherit=True)
    except (ValueError, RecursionError, MemoryError) as error:
        raise SyntaxError("this code is nested too deeply or holds characters that Python cannot read") from error
    return tree


def _parse(code: _CodeCell) -> _ParsedCell:
    cell = code.cell
    try:
        return _ParsedCell(cell, compile_source(cell.source), code.execution_count)
    except SyntaxError as error:
        line = error.lineno or 1
        text = _line(cell.source, line)
        if _IPYTHON_LINE.match(text):
            raise Invalid(
                f"Cell {cell.number}, line {line} is a magic, a shell command or a help call: {_quote(text)}. "
                "These work in a notebook only.",
                f"Move it to a cell without the tag “{TAG}”, or write it in Python.",
            ) from error
        raise Invalid(
            f"Cell {cell.number}, line {line} has a syntax error: {error.msg}: {_quote(text)}.",
            "Correct the cell, run it once and save the notebook.",
        ) from error


def _parse_leniently(cell: Cell) -> _ParsedCell | None:
    """Parse a private cell as far as possible: its magics are passed over, a broken cell is None."""
    lines = ["pass" if re.match(r"[%!]", line) else line for line in cell.source.split("\n")]
    try:
        return _ParsedCell(cell, compile_source("\n".join(lines)))
    except SyntaxError:
        return None


def _line(source: str, number: int) -> str:
    lines = source.split("\n")
    return lines[number - 1] if 0 < number <= len(lines) else ""


def _quote(text: str) -> str:
    text = text.strip()
    return f"“{text if len(text) <= 80 else text[:79] + '…'}”"


# --- the four functions


def _check_functions(tagged: list[_ParsedCell], untagged: list[_ParsedCell]) -> None:
    for name, arguments in REQUIRED_FUNCTIONS.items():
        found = _find_function(tagged, name)
        if found is None:
            raise _missing_function(name, arguments, untagged)
        _check_signature(*found, arguments)
    for name, arguments in OPTIONAL_FUNCTIONS.items():
        found = _find_function(tagged, name)
        if found is not None:
            _check_signature(*found, arguments)


def _find_function(parsed_cells: list[_ParsedCell], name: str) -> tuple[int, ast.FunctionDef] | None:
    """The last definition, which is the one that counts when the cells run in order."""
    found = None
    for parsed in parsed_cells:
        for statement in parsed.tree.body:
            if isinstance(statement, ast.FunctionDef) and statement.name == name:
                found = parsed.cell.number, statement
    return found


def _missing_function(name: str, arguments: tuple[str, ...], untagged: list[_ParsedCell]) -> Invalid:
    call = f"{name}({', '.join(arguments)})"
    private = _find_function(untagged, name)
    if private is not None:
        return Invalid(
            f"The function {call} is defined in cell {private[0]}, which is not tagged “{TAG}”.",
            f"Tag cell {private[0]} as well. {HOW_TO_TAG}",
        )
    return Invalid(
        f"No tagged cell defines the function {call} at top level.",
        f"Write “def {call}:” in a cell of its own and tag the cell. {HOW_TO_TAG}",
    )


def _check_signature(number: int, function: ast.FunctionDef, arguments: tuple[str, ...]) -> None:
    signature = function.args
    positional = len(signature.posonlyargs) + len(signature.args)
    required = positional - len(signature.defaults)
    fits = required <= len(arguments) and (positional >= len(arguments) or signature.vararg is not None)
    has_required_keyword = any(default is None for default in signature.kw_defaults)
    if fits and not has_required_keyword:
        return
    raise Invalid(
        f"Cell {number}, line {function.lineno}: {function.name}({ast.unparse(signature)}) cannot be called as "
        f"{function.name}({', '.join(arguments)}).",
        f"Write “def {function.name}({', '.join(arguments)}):”. Further arguments need default values.",
    )


# --- imports and names


def _check_imports(tagged: list[_ParsedCell], known_modules: frozenset[str], dependencies: tuple[str, ...]) -> None:
    """A module that nobody knows may be what a declared dependency brings: each site's packages decide then."""
    for parsed in tagged:
        for found in find_imports(parsed.tree):
            where = f"Cell {parsed.cell.number}, line {found.line}"
            if not found.module:
                raise Invalid(
                    f"{where} imports from files beside the notebook, which do not travel with it.",
                    f"Copy what is needed into a cell tagged “{TAG}”.",
                )
            if found.module == "__future__" and parsed is not tagged[0]:
                raise Invalid(
                    f"{where} imports from __future__, which must come before all other code of the app.",
                    f"Move the line to the top of cell {tagged[0].cell.number}, the first tagged one.",
                )
            if found.module not in known_modules and not dependencies:
                raise Invalid(
                    f"{where} imports “{found.module}”, which the sites' notebook servers do not have.",
                    "Do without it, or ask the Hub's administrator to add it to the image that all sites run. Where a "
                    f'site has it, name its package in a cell tagged “{TAG}”: {DEPENDENCIES_NAME} = ["its-package"].',
                )


def _check_names(tagged: list[_ParsedCell], untagged: list[_ParsedCell]) -> None:
    """Refuse hidden state: a name that only a private cell, or nothing at all, gives a value to."""
    private = {name: parsed.cell.number for parsed in untagged for name in names_bound_by(parsed.tree)}
    defined_in = {name: parsed.cell.number for parsed in reversed(tagged) for name in names_bound_by(parsed.tree)}
    for unresolved in find_unresolved([(parsed.cell.number, parsed.tree) for parsed in tagged]):
        where = f"Cell {unresolved.cell}, line {unresolved.line} uses “{unresolved.name}”"
        if unresolved.name in defined_in:
            raise Invalid(
                f"{where} before cell {defined_in[unresolved.name]} defines it.",
                f"Move cell {defined_in[unresolved.name]} above cell {unresolved.cell}: cells run from top to bottom.",
            )
        if unresolved.name in private:
            number = private[unresolved.name]
            raise Invalid(
                f"{where}, which only cell {number} defines, and that cell is not tagged “{TAG}”.",
                f"Tag cell {number} as well, or define “{unresolved.name}” in a tagged cell. {HOW_TO_TAG}",
            )
        raise Invalid(
            f"{where}, which no cell defines.",
            f"Define or import “{unresolved.name}” in a cell tagged “{TAG}”.",
        )


# --- CONFIG, DEPENDENCIES and what a trial has declared


def _read_config(tagged: list[_ParsedCell]) -> dict[str, ConfigValue]:
    config: dict[str, ConfigValue] = {}
    for number, value in _values_of(CONFIG_NAME, tagged):
        config = _config_literal(number, value)
    return config


def _read_dependencies(tagged: list[_ParsedCell]) -> tuple[str, ...]:
    dependencies: tuple[str, ...] = ()
    for number, value in _values_of(DEPENDENCIES_NAME, tagged):
        dependencies = _dependencies_literal(number, value)
    return dependencies


def _dependencies_literal(number: int, value: ast.expr) -> tuple[str, ...]:
    where = f"Cell {number}, line {value.lineno}: {DEPENDENCIES_NAME}"
    try:
        literal = ast.literal_eval(value)
    except (ValueError, TypeError) as error:
        raise Invalid(f"{where} is not a list of plain texts.", HOW_TO_DECLARE) from error
    if not isinstance(literal, list | tuple):
        raise Invalid(f"{where} is not a list.", HOW_TO_DECLARE)
    return checked_requirements(literal, where)


def _read_outputs(metadata: Any) -> tuple[DeclaredOutput, ...]:
    ours = metadata.get(METADATA_KEY, {})
    return checked_outputs(ours.get("outputs", {}) if isinstance(ours, dict) else ours, "The notebook's metadata")


def _values_of(name: str, tagged: list[_ParsedCell]) -> Iterator[tuple[int, ast.expr]]:
    """What the name is set to at top level, with the cell's number."""
    for parsed in tagged:
        for statement in parsed.tree.body:
            if isinstance(statement, ast.Assign):
                targets, value = statement.targets, statement.value
            elif isinstance(statement, ast.AnnAssign) and statement.value is not None:
                targets, value = [statement.target], statement.value
            else:
                continue
            if any(isinstance(target, ast.Name) and target.id == name for target in targets):
                yield parsed.cell.number, value


def config_fault(value: ConfigValue) -> str:
    """What keeps a value out of a run's record or out of Flower's messages; "" for nothing."""
    if isinstance(value, int) and value not in _INT64:
        return "a number of more than 64 bits"
    if isinstance(value, float) and not math.isfinite(value):
        return f"{value}, which is no number that can be written down"
    if isinstance(value, str) and any("\ud800" <= character <= "\udfff" for character in value):
        return "a text with half of a character"
    return ""


def _config_literal(number: int, value: ast.expr) -> dict[str, ConfigValue]:
    where = f"Cell {number}, line {value.lineno}: {CONFIG_NAME}"
    fix = f'Write it as {CONFIG_NAME} = {{"learning-rate": 0.01, ...}} with plain values; compute others in a function.'
    try:
        literal = ast.literal_eval(value)
    except (ValueError, TypeError) as error:
        raise Invalid(f"{where} is not a dictionary of plain values.", fix) from error
    if not isinstance(literal, dict):
        raise Invalid(f"{where} is not a dictionary.", fix)
    for key, item in literal.items():
        if not isinstance(key, str) or not _CONFIG_KEY.fullmatch(key):
            raise Invalid(f"{where} has the key {_quote(repr(key))}; keys are letters, digits, “-”, “_” and “.”.", fix)
        if not isinstance(item, str | int | float | bool):
            raise Invalid(
                f"{where} gives “{key}” a {type(item).__name__}; a text, a number or True/False is taken.", fix
            )
        fault = config_fault(item)
        if fault:
            raise Invalid(f"{where} gives “{key}” {fault}.", fix)
    rounds = literal.get(ROUNDS_KEY, 1)
    if not isinstance(rounds, int) or not 1 <= rounds <= MOST_ROUNDS:
        raise Invalid(
            f"{where} asks for {rounds} rounds; a run has 1 to {MOST_ROUNDS}.", f'Set "{ROUNDS_KEY}" in that range.'
        )
    return literal
