"""From a private notebook to a shared app: try it here, see what would leave, publish it.

    federator.try_here()                      three pretended sites, three rounds, in this server
    federator.preview()                       what would leave the notebook, and what stays; makes nothing
    federator.publish(name="Histopathology")  shows the same, and makes the project

Without a path they mean the notebook that this kernel runs, as it is saved. All three ask the service to build it, so
what is tried, what is shown and what is published have the same hash. Where the notebook's last trial in this kernel
was of the same app, `publish` declares what the trial saw leave a site. Flower clients in notebook servers then let
nothing else out; a site's own stock SuperNode does not look.
"""

from __future__ import annotations

import ast
import base64
import json
import os
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from IPython.core.error import StdinNotImplementedError
from IPython.core.getipython import get_ipython
from IPython.display import HTML, display

from federator import authoring_display as render
from federator import service_client as api
from federator.contract import AppPreview, DeclaredOutput, Env, Round, outputs_table
from federator.notebook import Project, _service
from federator.trial import PATIENCE, ROUNDS_KEY, ConfigValue, Plan, TrialFailed, TrialResult, try_app

__all__ = ["Preview", "Trial", "TrialFailed", "preview", "publish", "try_here"]

SESSION_VARIABLE = "JPY_SESSION_NAME"  # set by jupyter_server on each notebook's kernel
MOST_SITES = 32
_TAG = "federated"
_METADATA_KEY = "federator"

Folder = str | Path
Data = Folder | Sequence[Folder] | Mapping[str, Folder] | None


class Trial:
    """What a trial has shown. In a cell it shows itself: a curve, the rounds, and what would leave a site."""

    def __init__(self, result: TrialResult) -> None:
        self._result = result

    @property
    def rounds(self) -> tuple[Round, ...]:
        return self._result.detail.rounds

    @property
    def outputs(self) -> list[DeclaredOutput]:
        """All that would leave a site; `publish` declares it."""
        return list(self._result.outputs)

    @property
    def message_bytes(self) -> dict[str, int]:
        """Bytes of arrays in the largest answer of a site, by type of message."""
        return dict(self._result.bytes_by_message)

    @property
    def seconds(self) -> float:
        return self._result.seconds

    @property
    def logs(self) -> dict[str, str]:
        """The end of what the app printed: of the aggregator ("server") and of each pretended site."""
        return dict(self._result.logs)

    def __repr__(self) -> str:
        return render.trial_text(self._result)

    def _repr_html_(self) -> str:
        return render.trial_html(self._result)


class Preview:
    """What would leave the notebook and what stays. In a cell it shows itself."""

    def __init__(self, app: AppPreview) -> None:
        self.app = app

    def __repr__(self) -> str:
        return render.preview_text(self.app)

    def _repr_html_(self) -> str:
        return render.preview_html(self.app)


def try_here(
    notebook: Folder | None = None,
    data: Data = None,
    sites: int = 3,
    rounds: int = 3,
    config: Mapping[str, ConfigValue] | None = None,
    patience: float = PATIENCE,
) -> Trial:
    """Run the notebook's app with pretended sites in this server, as a project would: nobody else is asked.

    Interrupting the cell ends it, with all its processes.

    Args:
        notebook: path of the saved `.ipynb`, or of a zipped Flower app; by default the notebook of this kernel.
        data: name of a dataset of this server, or a folder: each pretended site uses it with a seed of its own. Or one
            folder for each pretended site, as a list, or as a dictionary by the site's name. By default this server's
            only dataset.
        sites: number of pretended sites, where `data` does not say.
        config: in place of what CONFIG says.
        patience: seconds that a site may work on one message before it counts as hanging.

    Raises:
        TrialFailed: the app failed, with the cell, the line and the pretended site; or the cell was interrupted.
        ServiceError: the notebook cannot be built, or the arguments do not fit.
    """
    path = _notebook(notebook)
    app = _build(path, _without_outputs(_read(path)))
    plan = Plan(
        base64.b64decode(app.fab), app.fab_hash, _folders(data, sites), _config(app, rounds, config or {}), patience
    )
    view = _View()
    try:
        result = try_app(plan, view.show)
    except KeyboardInterrupt:
        raise TrialFailed("The trial was interrupted.", "All its processes have ended.") from None
    _trials()[app.fab_hash] = result
    view.clear()
    return Trial(result)


def preview(notebook: Folder | None = None, name: str = "") -> Preview:
    """What `publish` would do: what leaves the notebook, what stays, what the sites lack. Makes nothing.

    Args:
        name: of a project of mine, to hear what its sites lack.

    Raises:
        ServiceError: the notebook cannot be built; a refusal names the cell.
    """
    path = _notebook(notebook)
    mine = _my_project(name or path.stem)
    return Preview(_build(path, _declared(path), mine.id if mine else ""))


def publish(notebook: Folder | None = None, name: str = "", description: str = "", confirm: bool = False) -> Project:
    """Make a federated project of a notebook, or add a version to the project of that name that I own.

    In a notebook it first shows what leaves and what stays.

    Args:
        notebook: path of the saved `.ipynb`, or of a zipped Flower app; by default the notebook of this kernel. Its
            cells tagged `federated` become the app.
        name: the project's name; the file's name by default.
        confirm: ask before the project is made.

    Raises:
        ServiceError: the file is missing, the service refused it (a refusal names the cell), or I said no.
    """
    path = _notebook(notebook)
    content, wanted = _declared(path), name or path.stem
    service, mine = _service(), _my_project(wanted)
    # Built before there is a project: a notebook that is refused leaves no empty one behind.
    shown = Preview(_build(path, content, mine.id if mine else ""))
    if confirm or get_ipython() is not None:
        display(shown)  # type: ignore[no-untyped-call]
    if confirm:
        _ask(wanted)
    summary = mine.summary if mine else service.call(api.create_project(wanted, description))
    service.call(api.add_app(summary.id, path.name, content))
    return Project(summary)


def _ask(name: str) -> None:
    """Raises Refused for anything but yes."""
    try:
        answer = input(f"Publish “{name}”? yes or no: ")
    except (StdinNotImplementedError, EOFError) as error:
        raise api.Refused("Nobody is there to confirm.", "Leave confirm out, or run the cell in a notebook.") from error
    if answer.strip().lower() not in ("y", "yes"):
        raise api.Refused(f"“{name}” was not published.", "Nothing has left this notebook.")


@cache
def _trials() -> dict[str, TrialResult]:
    """The last trial of each app in this kernel, by the app's hash without declared outputs."""
    return {}


# --- the notebook


def _notebook(notebook: Folder | None) -> Path:
    """The notebook that is meant.

    Raises:
        Refused: this kernel has none, or what it ran is not what is saved.
    """
    if notebook is not None:
        return Path(notebook)
    named = os.environ.get(SESSION_VARIABLE, "")
    path = Path(named)
    if not named or path.suffix != ".ipynb" or not path.is_file():
        raise api.Refused(
            "It is not known which notebook this is.", 'Save it, and give its path: federator.try_here("train.ipynb").'
        )
    shell = get_ipython()
    manager = None if shell is None else shell.history_manager
    history: Sequence[str] = () if manager is None else manager.input_hist_raw
    _require_saved(_read(path), history)
    return path


def _require_saved(content: bytes, history: Sequence[str]) -> None:
    """Raises Refused where a tagged cell was last run in another form than the saved one."""
    for number in unsaved_cells(content, history):
        raise api.Refused(
            f"Cell {number} was run in another form than the saved one: save the notebook.",
            "What is tried and published is the saved file.",
        )


def unsaved_cells(content: bytes, history: Sequence[str]) -> list[int]:
    """Numbers of the tagged cells whose names were last given a value by code that the saved notebook does not hold.

    Args:
        history: what this kernel has run, oldest first.
    """
    cells = _cells(content)
    saved = {source.strip() for _, source, _ in cells}
    ran = [(source.strip(), _names(source)) for source in reversed(history)]
    return [
        number
        for number, source, is_tagged in cells
        if is_tagged
        and any(
            next((code for code, names in ran if name in names), source.strip()) not in saved for name in _names(source)
        )
    ]


def _cells(content: bytes) -> list[tuple[int, str, bool]]:
    """Number, source and whether it is tagged, of each code cell; none for what is no notebook."""
    try:
        cells = json.loads(content)["cells"]
        return [
            (number, "".join(cell["source"]), _TAG in cell.get("metadata", {}).get("tags", ()))
            for number, cell in enumerate(cells, start=1)
            if cell["cell_type"] == "code"
        ]
    except (ValueError, KeyError, TypeError, AttributeError):
        return []  # the service says what is wrong with it


def _names(source: str) -> frozenset[str]:
    """Functions, classes and variables that the code defines at top level; none for what only IPython understands."""
    try:
        body = ast.parse(source).body
    except (SyntaxError, ValueError):
        return frozenset()
    found: set[str] = set()
    for one in body:
        if isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(one.name)
        elif isinstance(one, ast.Assign):
            found |= {target.id for target in one.targets if isinstance(target, ast.Name)}
    return frozenset(found)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise api.Refused(
            f"{path} cannot be read: {error.strerror}.", "Save the notebook, and give its path from this folder."
        ) from error


def _build(path: Path, content: bytes, project_id: str = "") -> AppPreview:
    return _service().call(api.build(path.name, content, project_id))


def _my_project(name: str) -> Project | None:
    mine = [p for p in _service().call(api.get_home()).projects if p.name == name and p.role == "owner"]
    return Project(mine[0]) if mine else None


def _declared(path: Path) -> bytes:
    """The notebook with the outputs that its last trial in this kernel saw; as it is where there was no such trial."""
    content = _read(path)
    if not _trials():
        return content
    bare = _without_outputs(content)
    trial = _trials().get(_build(path, bare).fab_hash)
    return content if trial is None else _with_metadata(bare, {"outputs": outputs_table(trial.outputs)})


def _without_outputs(content: bytes) -> bytes:
    return _with_metadata(content, None)


def _with_metadata(content: bytes, ours: Mapping[str, Any] | None) -> bytes:
    """The notebook with our part of its metadata set, or taken out. What is no notebook stays as it is."""
    if not _cells(content):
        return content
    document = json.loads(content)
    metadata = {key: value for key, value in document.get("metadata", {}).items() if key != _METADATA_KEY}
    document["metadata"] = metadata if ours is None else {**metadata, _METADATA_KEY: ours}
    return json.dumps(document).encode()


# --- the pretended sites


def _config(app: AppPreview, rounds: int, wanted: Mapping[str, ConfigValue]) -> dict[str, ConfigValue]:
    unknown = sorted(wanted.keys() - app.config.keys())
    if unknown:
        raise api.Refused(f"The app's configuration has no “{unknown[0]}”.", f"It has {', '.join(sorted(app.config))}.")
    if rounds < 1:
        raise api.Refused(f"A trial has at least one round, not {rounds}.", "Try with rounds=3.")
    return {**app.config, **wanted, ROUNDS_KEY: rounds}


def _folders(data: Data, sites: int) -> dict[str, Path]:
    """Each pretended site's folder. Raises Refused for folders that are not there, or too many sites."""
    if isinstance(data, Mapping):
        folders = {str(name): Path(folder).resolve() for name, folder in data.items()}
    elif isinstance(data, str | Path) or data is None:
        folders = {f"site-{number}": _dataset(data) for number in range(1, sites + 1)}
    else:
        folders = {f"site-{number}": Path(folder).resolve() for number, folder in enumerate(data, start=1)}
    if not 1 <= len(folders) <= MOST_SITES:
        raise api.Refused(f"A trial has 1 to {MOST_SITES} sites, not {len(folders)}.", "Try with sites=3.")
    for name, folder in folders.items():
        if not folder.is_dir():
            raise api.Refused(f"{name}: there is no folder {folder}.", "Give folders that are on this server.")
    return folders


def _dataset(data: Folder | None) -> Path:
    """A dataset of this server by its name, else a folder; the only dataset for None."""
    datasets: dict[str, str] = json.loads(os.environ.get(Env.DATASETS, "{}"))
    if data is not None:
        return Path(datasets.get(str(data), data)).resolve()
    if len(datasets) != 1:
        has = f"has the datasets {', '.join(sorted(datasets))}" if datasets else "has no dataset"
        raise api.Refused(f"This server {has}.", 'Say which data to try with: try_here(data="a name or a folder").')
    return Path(*datasets.values()).resolve()


class _View:
    """One output of the cell, brought up to date in place; nothing where there is no notebook to show it."""

    def __init__(self) -> None:
        self._handle: Any = None
        self._shown = ""

    def show(self, result: TrialResult) -> None:
        if get_ipython() is None:
            return
        html = render.progress_html(result)
        if html == self._shown:
            return
        self._shown = html
        self._update(_Html(html, render.trial_text(result)))

    def clear(self) -> None:
        """The trial's end: the cell's own value shows all of it."""
        if self._handle is not None:
            self._update(_Html("", ""))

    def _update(self, output: HTML) -> None:
        if self._handle is None:
            self._handle = display(output, display_id=True)  # type: ignore[no-untyped-call]
        else:
            self._handle.update(output)


class _Html(HTML):
    """HTML with a plain text for consoles."""

    def __init__(self, html: str, text: str) -> None:
        super().__init__(html)  # type: ignore[no-untyped-call]
        self._text = text

    def __repr__(self) -> str:
        return self._text
