"""What a reader of an app's code should look at first: imports, and calls that reach files, programs or the network.

Found in the syntax alone; nothing is run. This helps reading and proves nothing: Python can reach all of it in ways
that no syntax shows. The site's isolation, not this list, is what keeps data in.
"""

from __future__ import annotations

import ast
import sys
import textwrap
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

from federator.contract import AppReview

from hub_service.apps.lines import is_all_seen, lines_of, visible

DATA_FOLDER = "path"
"""The parameter of `load_data` that is the dataset's folder."""

_DATA_KEY = "dataset-path"  # of `context.node_config`
_LONGEST_CALL = 100  # characters shown of a call
MOST_CALLS = 500  # named, in all
MOST_LOOKED_THROUGH = 1_000_000  # characters, in all; a notebook's cells are never as many


class Origin(StrEnum):
    STANDARD = "standard library"
    INSTALLED = "in the site's image"
    MISSING = "not in the site's image"
    UNKNOWN = "not known"  # the site has not said what its image has


class Reach(StrEnum):
    """Where a call's file lies, as far as the syntax says."""

    DATASET = "dataset"  # below the dataset's folder
    OUTSIDE = "outside"  # a place written into the code
    UNCLEAR = "unclear"


@dataclass(frozen=True, slots=True)
class ImportFinding:
    """One top-level module. `warning` says in words what it can do that a reader should know; "" for nothing."""

    module: str
    origin: Origin
    warning: str = ""


@dataclass(frozen=True, slots=True)
class CallFinding:
    """One call worth a look, or one line.

    Attributes:
        place: "cell 3", or a file's path.
        line: within it, from 1.
        code: the call or the line, shortened.
        what: in words.
    """

    place: str
    line: int
    code: str
    what: str
    reach: Reach


@dataclass(frozen=True, slots=True)
class Findings:
    """Attributes:
    files: calls that open files or folders.
    others: calls that start programs, run text as code or read the environment; and lines with unseen characters.
    unread: places that are no Python that can be read here, or that are too long.
    more: how many there are besides the first MOST_CALLS, which are named.
    """

    imports: tuple[ImportFinding, ...]
    files: tuple[CallFinding, ...]
    others: tuple[CallFinding, ...]
    unread: tuple[str, ...]
    more: int


_NETWORK = "can open network connections"
_PROGRAMS = "can start other programs"
_FILES = "can read, write and delete files"
_MACHINE = "can call machine code"
_CODE = "can load and run other code"

_BY_WARNING = {
    _NETWORK: """aiohttp asyncio ftplib http httpx imaplib paramiko poplib requests smtplib socket socketserver ssl
        telnetlib tornado urllib urllib3 websocket websockets xmlrpc""",
    _PROGRAMS: "multiprocessing pexpect pty subprocess",
    _FILES: "glob io pathlib shutil sqlite3 tarfile tempfile zipfile",
    _MACHINE: "cffi ctypes mmap",
    _CODE: "cloudpickle code dill importlib joblib marshal pickle runpy shelve",
    "can read, write and delete files, and start other programs": "os",
}
WARNINGS = {module: warning for warning, modules in _BY_WARNING.items() for module in modules.split()}

_OPENING = {
    "open": "opens a file",
    "io.open": "opens a file",
    "os.open": "opens a file",
    "os.listdir": "lists a folder",
    "os.scandir": "lists a folder",
    "os.walk": "lists folders",
    "os.remove": "deletes a file",
    "os.unlink": "deletes a file",
    "os.rename": "renames a file",
    "os.makedirs": "makes a folder",
    "shutil.copy": "copies a file",
    "shutil.copytree": "copies a folder",
    "shutil.move": "moves a file",
    "shutil.rmtree": "deletes a folder",
    "glob.glob": "lists files",
    "glob.iglob": "lists files",
    "torch.load": "reads a file, which may hold code",
    "torch.save": "writes a file",
    "joblib.load": "reads a file, which may hold code",
    "pickle.load": "reads a file, which may hold code",
    "PIL.Image.open": "reads an image",
    "sqlite3.connect": "opens a database",
    "zipfile.ZipFile": "opens an archive",
    "tarfile.open": "opens an archive",
}
_OPENING_OF = {"numpy": ("load", "loadtxt", "genfromtxt", "fromfile", "memmap", "save", "savez", "savetxt")}
_READERS = ("pandas.read_", "polars.read_", "polars.scan_", "torchvision.io.read_", "safetensors.")
_FOLDERS = ("ImageFolder", "DatasetFolder")
_OF_PATHS = {  # methods that only paths have
    "read_text": "reads a file",
    "read_bytes": "reads a file",
    "write_text": "writes a file",
    "write_bytes": "writes a file",
    "iterdir": "lists a folder",
    "glob": "lists files",
    "rglob": "lists files",
    "unlink": "deletes a file",
    "to_csv": "writes a file",
    "to_pickle": "writes a file",
    "to_parquet": "writes a file",
}
_OTHER = {
    "eval": "runs text as code",
    "exec": "runs text as code",
    "compile": "makes code of text",
    "__import__": "imports by a name that is worked out",
    "importlib.import_module": "imports by a name that is worked out",
    "os.system": "starts a program",
    "os.popen": "starts a program",
    "os.getenv": "reads the environment",
    "os.environ.get": "reads the environment",
}
_OTHER_OF = {"subprocess": "starts a program", "socket": "opens a network connection", "ctypes": "calls machine code"}
_NETWORK_OF = ("requests", "httpx", "urllib.request", "http.client", "aiohttp")


def find(review: AppReview, installed: Collection[str] | None) -> Findings:
    """Look through an app version: the notebook's cells where there are some, else the app's files.

    Args:
        installed: top-level modules that the site's image has; None where the site has not said.
    """
    if review.cells:
        sources: Sequence[tuple[str, str]] = [(f"cell {cell.number}", cell.source) for cell in review.cells]
    else:
        sources = [(one.path, one.text) for one in review.files if one.path.endswith(".py")]
    calls: list[CallFinding] = []
    unread = []
    names = _Names()
    characters = more = 0
    for place, source in sources:
        characters += len(source)
        if characters > MOST_LOOKED_THROUGH:
            unread.append(place)
            continue
        if not review.cells:
            names = _Names()  # cells are one module
        unseen = _unseen(source, place)
        named_lines = unseen[: MOST_CALLS - len(calls)]
        calls += named_lines
        more += len(unseen) - len(named_lines)
        try:
            tree = ast.parse(source)
            names.learn(tree)
            found = _worth_a_look(tree, names)
            named = found[: MOST_CALLS - len(calls)]
            calls += [_finding(call, what, place, names) for call, what in named]
        except (SyntaxError, ValueError, RecursionError):
            unread.append(place)
        else:
            more += len(found) - len(named)
    return Findings(
        imports=tuple(_import(module, installed) for module in review.imports),
        files=tuple(one for one in calls if one.what in _FILE_WORDS),
        others=tuple(one for one in calls if one.what not in _FILE_WORDS),
        unread=tuple(unread),
        more=more,
    )


def _import(module: str, installed: Collection[str] | None) -> ImportFinding:
    if module in sys.stdlib_module_names:
        origin = Origin.STANDARD
    elif installed is None:
        origin = Origin.UNKNOWN
    else:
        origin = Origin.INSTALLED if module in installed else Origin.MISSING
    return ImportFinding(module, origin, WARNINGS.get(module, ""))


_READS = "reads a file"
_LISTS = "reads a folder of images"
_FILE_WORDS = frozenset({*_OPENING.values(), *_OF_PATHS.values(), _READS, _LISTS, "reads or writes a file"})


class _Names:
    """What the names of one module stand for: imported things, and what comes from the dataset's folder."""

    def __init__(self) -> None:
        self._imported: dict[str, str] = {}
        self._of_data: set[str] = set()

    def learn(self, tree: ast.Module) -> None:
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    bound = alias.asname or alias.name.partition(".")[0]
                    self._imported[bound] = alias.name if alias.asname else bound
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                for alias in node.names:
                    self._imported[alias.asname or alias.name] = f"{node.module}.{alias.name}"
            elif isinstance(node, ast.FunctionDef) and node.name == "load_data" and node.args.args:
                self._of_data.add(node.args.args[0].arg)
        self._spread(tree)

    def _spread(self, tree: ast.Module) -> None:
        """From names of the dataset's folder to those that are made from them. Each binding counts once."""
        made_from: defaultdict[str, list[set[str]]] = defaultdict(list)
        for node in ast.walk(tree):
            for target, value in _bindings(node):
                made = _names_in(target)
                if self.is_data(value):
                    self._of_data |= made
                for name in _names_in(value):
                    made_from[name].append(made)
        waiting = list(self._of_data)
        while waiting:
            for made in made_from.pop(waiting.pop(), ()):
                waiting += made - self._of_data
                self._of_data |= made
                made.clear()  # done, whatever else it is made from

    def is_data(self, expression: ast.expr) -> bool:
        """Whether the expression is made from the dataset's folder, as far as its names say."""
        return any(
            (isinstance(one, ast.Name) and one.id in self._of_data)
            or (isinstance(one, ast.Constant) and one.value == _DATA_KEY)
            for one in ast.walk(expression)
        )

    def called(self, function: ast.expr) -> str:
        """The dotted name of what is called, imports resolved; "" where it has none."""
        parts: list[str] = []
        while isinstance(function, ast.Attribute):
            parts.append(function.attr)
            function = function.value
        if not isinstance(function, ast.Name):
            return ""
        return ".".join([self._imported.get(function.id, function.id), *reversed(parts)])


def _names_in(expression: ast.expr) -> set[str]:
    return {one.id for one in ast.walk(expression) if isinstance(one, ast.Name)}


def _bindings(node: ast.AST) -> Iterator[tuple[ast.expr, ast.expr]]:
    """What a statement binds, and from what."""
    if isinstance(node, ast.Assign):
        yield from ((target, node.value) for target in node.targets)
    elif isinstance(node, ast.AnnAssign | ast.AugAssign | ast.NamedExpr) and node.value is not None:
        yield node.target, node.value
    elif isinstance(node, ast.For | ast.AsyncFor | ast.comprehension):
        yield node.target, node.iter
    elif isinstance(node, ast.withitem) and node.optional_vars is not None:
        yield node.optional_vars, node.context_expr


def _worth_a_look(tree: ast.Module, names: _Names) -> list[tuple[ast.Call, str]]:
    """Calls in the order of the text, each with what it does."""
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    calls.sort(key=lambda call: (call.lineno, call.col_offset))
    return [(call, what) for call in calls if (what := _what(call, names))]


def _unseen(source: str, place: str) -> list[CallFinding]:
    return [
        CallFinding(place, number, _shortened(line), "holds a character that is not seen", Reach.UNCLEAR)
        for number, line in enumerate(lines_of(source), 1)
        if not is_all_seen(line)
    ]


def _shortened(code: str) -> str:
    return textwrap.shorten(visible(code), _LONGEST_CALL, placeholder=" …")


def _finding(call: ast.Call, what: str, place: str, names: _Names) -> CallFinding:
    return CallFinding(place, call.lineno, _shortened(ast.unparse(call)), what, _reach(call, names))


def _what(call: ast.Call, names: _Names) -> str:
    name = names.called(call.func)
    if name in _OPENING:
        return _OPENING[name]
    if name in _OTHER:
        return _OTHER[name]
    module, _, function = name.rpartition(".")
    if function in _OPENING_OF.get(module, ()):
        return "reads or writes a file"
    if name.startswith(_READERS):
        return _READS
    if function in _FOLDERS or name in _FOLDERS:
        return _LISTS
    if name.partition(".")[0] in _OTHER_OF and module:
        return _OTHER_OF[name.partition(".")[0]]
    if any(name.startswith(f"{one}.") for one in _NETWORK_OF):
        return "opens a network connection"
    if isinstance(call.func, ast.Attribute) and call.func.attr in _OF_PATHS:
        return _OF_PATHS[call.func.attr]
    return ""


def _reach(call: ast.Call, names: _Names) -> Reach:
    told: Iterable[ast.expr] = call.args[:1] or [one.value for one in call.keywords[:1]]
    if isinstance(call.func, ast.Attribute) and call.func.attr in _OF_PATHS:
        told = [call.func.value]
    subjects = list(told)
    if any(names.is_data(one) for one in subjects):
        return Reach.DATASET
    literal = any(isinstance(one, ast.Constant) and isinstance(one.value, str) for one in _inner(subjects))
    variable = any(isinstance(one, ast.Name) and not names.called(one)[:1].isupper() for one in _inner(subjects))
    return Reach.OUTSIDE if literal and not variable else Reach.UNCLEAR


def _inner(expressions: Iterable[ast.expr]) -> Iterator[ast.AST]:
    """All nodes below, without the names of what is called: `Path("/etc")` is as fixed as "/etc"."""
    for expression in expressions:
        if isinstance(expression, ast.Call):
            yield from _inner([*expression.args, *(one.value for one in expression.keywords)])
        else:
            yield from ast.walk(expression)
