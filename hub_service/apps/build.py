"""From what a researcher hands in - a notebook, a zipped Flower app or a FAB - to one Flower App Bundle.

`hub_service.operations.previews` calls `AppBuilder.build`, in a thread. The bundle is stock Flower: it runs on any
SuperLink, and imports nothing of ours. The same notebook gives the same bytes, so its hash can be approved.
"""

from __future__ import annotations

import ast
import hashlib
import io
import re
import sys
import tokenize
import tomllib
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files as package_files
from pathlib import PurePosixPath
from typing import Any, Literal

import tomli_w
from federator.contract import Cell, DeclaredOutput, SourceFile, outputs_table
from flwr.cli.build import build_fab_from_files
from flwr.common.config import flatten_dict
from flwr.common.constant import FAB_MAX_SIZE

from hub_service.apps.archive import read_zip
from hub_service.apps.cells import ConfigValue, NotebookApp, compile_source, config_fault, read_notebook
from hub_service.apps.declarations import PYPROJECT as _PYPROJECT
from hub_service.apps.declarations import checked_outputs, checked_requirements
from hub_service.apps.names import find_imports
from hub_service.apps.strategies import check_strategy
from hub_service.domain.errors import Invalid, TooLarge

_MANIFEST = ".info/CONTENT"
_TEMPLATES = ("__init__.py", "client_app.py", "server_app.py", "strategies.py", "task.py")
_MAX_NAME_LENGTH = 32  # flwr's limit on an app's name
_MAX_TITLE_LENGTH = 100
# Publisher and version become parts of a folder's name on every site that installs the app.
_SAFE_PART = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")
_COMPONENT = re.compile(r"(?P<module>[A-Za-z_]\w*(\.[A-Za-z_]\w*)*):(?P<attribute>[A-Za-z_]\w*)(\.\w+)*")
_LITTER = re.compile(r"^__MACOSX/|(^|/)\.DS_Store$")  # what macOS adds to a zip file

_HOW_TO_MAKE_AN_APP = "Zip the folder of a Flower app (the one with pyproject.toml), or hand in a notebook."
_CORRECT = "Correct it and zip the app again."


@dataclass(frozen=True, slots=True)
class BuiltApp:
    """One build, and everything in it for a person to read.

    Attributes:
        fab: the Flower App Bundle's bytes.
        fab_hash: lower-case sha256 of `fab` in hex; what stewards approve.
        cells: the notebook's exported cells; empty for a Flower app.
        files: every file of the bundle; one that is no text is named with its size and hash.
        imports: top-level modules that the notebook's cells, or an app's files, import; without the app's own.
        config: the defaults of the run's configuration, [tool.flwr.app.config], flattened with dots.
        dependencies: [project].dependencies, PEP 508.
        outputs: what the app's answers may hold, [tool.federator.outputs]; none where it is not declared.
        private_cells: numbers of the code cells that stay in the notebook.
        warnings: what works in the notebook and may not at a site.
    """

    fab: bytes
    fab_hash: str
    title: str
    source: Literal["notebook", "fab"]
    cells: tuple[Cell, ...]
    files: tuple[SourceFile, ...]
    imports: tuple[str, ...]
    config: dict[str, ConfigValue]
    dependencies: tuple[str, ...]
    outputs: tuple[DeclaredOutput, ...]
    private_cells: tuple[int, ...]
    warnings: tuple[str, ...]


class AppBuilder:
    """Builds app versions.

    Args:
        known_modules: top-level modules that any site's notebook servers can be expected to have, besides the standard
            library: those of the image that the service was made with.
    """

    def __init__(self, known_modules: frozenset[str]) -> None:
        self._known_modules = known_modules | sys.stdlib_module_names

    def build(self, filename: str, content: bytes, at_sites: frozenset[str] = frozenset()) -> BuiltApp:
        """Make an app version of an uploaded file. What it is, its content says; the name only gives the title.

        Args:
            at_sites: further top-level modules that some site has reported.

        Raises:
            Invalid: it is neither a notebook nor a Flower app, or something in it cannot be used; the text says where.
            TooLarge: over the limit that the text names.
        """
        try:
            if content.startswith(b"PK") or filename.lower().endswith((".zip", ".fab")):
                return self._from_zip(content)
            return self._from_notebook(filename, content, self._known_modules | at_sites)
        except RecursionError as error:
            raise Invalid(
                "The code or the configuration holds an expression that is nested too deeply to be checked.",
                "Split the long expression into several statements.",
            ) from error

    def _from_notebook(self, filename: str, content: bytes, known_modules: frozenset[str]) -> BuiltApp:
        app = read_notebook(content, known_modules)
        check_strategy(app)
        title = _title(filename)
        name = _app_name(title)
        package = "federated_" + name.replace("-", "_")
        templates = {file: _template(file) for file in _TEMPLATES}
        files = {
            _PYPROJECT: _notebook_pyproject(name, package, title, app),
            **{f"{package}/{file}": text.encode() for file, text in templates.items()},
            f"{package}/notebook.py": _notebook_module(title, app.cells).encode(),
        }
        return _bundle(_build_fab(files), title, app)

    def _from_zip(self, content: bytes) -> BuiltApp:
        files = _without_top_folder(
            {path: data for path, data in read_zip(content).items() if not _LITTER.search(path)}
        )
        name = _check_app(files)
        if _MANIFEST not in files:
            return _bundle(_build_fab(files), name)
        if len(content) > FAB_MAX_SIZE:
            raise TooLarge(
                f"The bundle is over Flower's limit of {FAB_MAX_SIZE // 2**20} MB.", "An app holds code, not data."
            )
        _check_manifest(files)
        return _bundle(content, name)


def _bundle(fab: bytes, title: str, notebook: NotebookApp | None = None) -> BuiltApp:
    """Describe a finished bundle by what is in its bytes, not by what was meant to go in."""
    files = {path: data for path, data in read_zip(fab).items() if path != _MANIFEST}
    pyproject = _read_toml(files[_PYPROJECT])
    return BuiltApp(
        fab=fab,
        fab_hash=hashlib.sha256(fab).hexdigest(),
        title=title,
        source="fab" if notebook is None else "notebook",
        cells=() if notebook is None else notebook.cells,
        files=tuple(SourceFile(path, _readable(data)) for path, data in sorted(files.items())),
        imports=_imports_of(files) if notebook is None else notebook.imports,
        config=_default_config(pyproject),
        dependencies=_dependencies(pyproject),
        outputs=_outputs(pyproject),
        private_cells=() if notebook is None else notebook.private_cells,
        warnings=() if notebook is None else notebook.warnings,
    )


def _dependencies(pyproject: Mapping[str, Any]) -> tuple[str, ...]:
    found = pyproject["project"].get("dependencies", [])
    if not isinstance(found, list):
        raise Invalid("pyproject.toml: project.dependencies is not a list.", _CORRECT)
    return checked_requirements(found, "pyproject.toml: project.dependencies")


def _outputs(pyproject: Mapping[str, Any]) -> tuple[DeclaredOutput, ...]:
    ours = pyproject["tool"].get("federator", {})
    return checked_outputs(ours.get("outputs", {}) if isinstance(ours, dict) else ours, _PYPROJECT)


def _readable(data: bytes) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return f"(not text: {len(data)} bytes, sha256 {hashlib.sha256(data).hexdigest()})"


def _imports_of(files: Mapping[str, bytes]) -> tuple[str, ...]:
    own = {path.partition("/")[0].removesuffix(".py") for path in files}
    trees = [compile_source(data.decode("utf-8")) for path, data in files.items() if path.endswith(".py")]
    return tuple(sorted({found.module for tree in trees for found in find_imports(tree)} - own - {""}))


def _default_config(pyproject: Mapping[str, Any]) -> dict[str, ConfigValue]:
    """The run's configuration as Flower flattens it, nested names joined with dots."""
    try:
        config = flatten_dict(pyproject["tool"]["flwr"]["app"].get("config", {}))
    except (ValueError, AttributeError) as error:
        raise Invalid(
            "pyproject.toml: [tool.flwr.app.config] may hold texts, numbers and true or false only.", _CORRECT
        ) from error
    for key, value in config.items():
        fault = config_fault(value)
        if fault:
            raise Invalid(f"pyproject.toml: [tool.flwr.app.config] gives “{key}” {fault}.", _CORRECT)
    return config


def _build_fab(files: Mapping[str, bytes]) -> bytes:
    try:
        fab, _ = build_fab_from_files(files)
    except ValueError as error:
        # Flower's own rules: names, patterns, versions, size. Its texts are written for the author.
        raise Invalid(f"Flower does not take this app: {error}", _HOW_TO_MAKE_AN_APP) from error
    return fab


# --- a notebook's app


def _title(filename: str) -> str:
    stem = PurePosixPath(filename.replace("\\", "/")).name
    stem = re.sub(r"\.ipynb$", "", stem, flags=re.IGNORECASE)
    title = "".join(character for character in stem if character.isprintable()).strip()
    return title[:_MAX_TITLE_LENGTH] or "notebook"


def _app_name(title: str) -> str:
    """The title as Flower takes names: letters, digits and hyphens, a letter first."""
    plain = unicodedata.normalize("NFKD", title).encode("ascii", "ignore").decode().lower()
    name = re.sub(r"[^a-z0-9]+", "-", plain).strip("-")
    if not name or not name[0].isalpha():
        name = f"notebook-{name}".rstrip("-")
    return name[:_MAX_NAME_LENGTH].rstrip("-")


def _template(file: str) -> str:
    return package_files("hub_service.apps").joinpath("templates", file).read_text(encoding="utf-8")


def _notebook_pyproject(name: str, package: str, title: str, notebook: NotebookApp) -> bytes:
    pyproject = tomllib.loads(_template(_PYPROJECT))
    pyproject["project"] |= {"name": name, "description": f"Federated app made from the notebook {title}"}
    pyproject["project"]["dependencies"] += notebook.dependencies
    app = pyproject["tool"]["flwr"]["app"]
    app["components"] = {"serverapp": f"{package}.server_app:app", "clientapp": f"{package}.client_app:app"}
    app["config"] |= notebook.config
    if notebook.outputs:
        pyproject["tool"]["federator"] = {"outputs": outputs_table(notebook.outputs)}
    return tomli_w.dumps(pyproject).encode()


def _notebook_module(title: str, cells: tuple[Cell, ...]) -> str:
    """The cells as one module. Two comments come first, where Python would take a cell's line for its encoding."""
    head = f"# The cells of the notebook {title} that are tagged “federated”, in order, unchanged.\n# Generated.\n"
    return head + "".join(f"\n# --- cell {cell.number} ---\n{cell.source.rstrip()}\n" for cell in cells)


# --- an uploaded Flower app


def _without_top_folder(files: dict[str, bytes]) -> dict[str, bytes]:
    """Zipping a folder in a file manager puts everything below the folder's name."""
    tops = {path.partition("/")[0] for path in files}
    if _PYPROJECT in files or len(tops) != 1:
        return files
    return {path.partition("/")[2]: data for path, data in files.items()}


def _check_app(files: Mapping[str, bytes]) -> str:
    """Check what Flower would only meet at a site, and return the app's name."""
    if _PYPROJECT not in files:
        raise Invalid("The zip file has no pyproject.toml, so it is no Flower app.", _HOW_TO_MAKE_AN_APP)
    pyproject = _read_toml(files[_PYPROJECT])
    project = _table(pyproject, "project")
    app = _table(pyproject, "tool", "flwr", "app")
    name = _text(project, "project", "name")
    for value, where in (
        (_text(project, "project", "version"), "project.version"),
        (_text(app, "tool.flwr.app", "publisher"), "tool.flwr.app.publisher"),
        (name, "project.name"),
    ):
        if not _SAFE_PART.fullmatch(value):
            raise Invalid(
                f"pyproject.toml: {where} may have letters, digits and “._+-” only.",
                _CORRECT,
            )
    _default_config(pyproject)
    for path, data in files.items():
        if path.endswith(".py"):
            _check_python(path, data)
    components = _table(pyproject, "tool", "flwr", "app", "components")
    for component in ("serverapp", "clientapp"):
        _check_component(component, _text(components, "tool.flwr.app.components", component), files)
    return name


def _read_toml(data: bytes) -> dict[str, object]:
    try:
        return tomllib.loads(data.decode("utf-8"))
    except ValueError as error:
        raise Invalid(f"pyproject.toml cannot be read: {error}.", _CORRECT) from error


def _table(pyproject: dict[str, object], *keys: str) -> dict[str, object]:
    table: object = pyproject
    for key in keys:
        table = table.get(key) if isinstance(table, dict) else None
    if not isinstance(table, dict):
        raise Invalid(f"pyproject.toml has no section [{'.'.join(keys)}].", _HOW_TO_MAKE_AN_APP)
    return table


def _text(table: dict[str, object], section: str, key: str) -> str:
    value = table.get(key)
    if not isinstance(value, str) or not value:
        raise Invalid(f"pyproject.toml gives no “{key}” in [{section}].", _HOW_TO_MAKE_AN_APP)
    return value


def _check_python(path: str, data: bytes) -> None:
    try:
        compile_source(data.decode("utf-8"))
        encoding, _ = tokenize.detect_encoding(io.BytesIO(data).readline)
    except SyntaxError as error:
        raise Invalid(f"{path}, line {error.lineno or 1}: {error.msg}.", _CORRECT) from error
    except UnicodeDecodeError as error:
        raise Invalid(f"{path} is not UTF-8 text.", "Save it as UTF-8 and zip the app again.") from error
    if encoding != "utf-8":  # a site's Python would read other code than its steward did
        raise Invalid(
            f"{path} says in its first lines that it is {encoding}, and all code is read as UTF-8.",
            "Take that line out, save the file as UTF-8 and zip the app again.",
        )


def _check_component(component: str, reference: str, files: Mapping[str, bytes]) -> None:
    match = _COMPONENT.fullmatch(reference)
    if match is None:
        raise Invalid(
            f"pyproject.toml: the {component} “{reference}” is not of the form “package.module:app”.",
            _CORRECT,
        )
    path = match["module"].replace(".", "/")
    source = files.get(f"{path}.py", files.get(f"{path}/__init__.py"))
    if source is None:
        raise Invalid(
            f"pyproject.toml names {match['module']} as the {component}, but the zip file has no {path}.py.",
            "Add the file, or correct [tool.flwr.app.components].",
        )
    names = {
        node.id
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
    }
    if match["attribute"] not in names:
        raise Invalid(
            f"pyproject.toml names {reference} as the {component}, but {path}.py defines no “{match['attribute']}”.",
            "Correct [tool.flwr.app.components].",
        )


def _check_manifest(files: Mapping[str, bytes]) -> None:
    """A FAB lists its files with their hashes; sites verify it on installing, so a wrong one is refused here."""
    listed = {}
    for line in _readable(files[_MANIFEST]).strip().split("\n"):
        path, _, rest = line.partition(",")
        listed[path] = rest.partition(",")[0]
    actual = {path: hashlib.sha256(data).hexdigest() for path, data in files.items() if path != _MANIFEST}
    if listed != actual:
        wrong = min(path for path in listed.keys() | actual.keys() if listed.get(path) != actual.get(path))
        raise Invalid(
            f"The bundle's list of files does not agree with its file “{wrong}”.", "Build it again with “flwr build”."
        )
