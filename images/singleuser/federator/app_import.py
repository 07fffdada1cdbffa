"""Imports an unpacked app's code into this process, and takes it out again.

Module names are the process's: the code of one folder is imported at a time, and another folder's code replaces it,
so that a new version of an app is really loaded.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import threading
import traceback
from pathlib import Path

# What a library imports when it is first used, where that takes long: a round would wait for it.
_IMPORTED_AT_FIRST_USE = {"torch": "torch._dynamo"}  # by the first optimizer

_lock = threading.Lock()


class NameTaken(Exception):
    """The app's module has the name of one that this process has loaded from elsewhere."""


def import_attribute(reference: str, folder: Path, earlier: Path | None = None) -> object:
    """The object `module:attribute` of the code in `folder`. Takes the code of the `earlier` folder out first.

    Raises:
        NameTaken, ImportError, AttributeError, or whatever the code raises when it is imported.
    """
    module_name, _, attributes = reference.partition(":")
    with _lock:
        if earlier is not None:
            _forget(earlier)
        top = sys.modules.get(module_name.partition(".")[0])
        if top is not None and not _lies_in(top, folder):
            if not _is_app(top):
                raise NameTaken(f"the app's module '{module_name}' has the name of one that is loaded already")
            _forget(_app_folder_of(top))
        if str(folder) not in sys.path:
            sys.path.insert(0, str(folder))
        _app_folders.add(folder)
        importlib.invalidate_caches()
        found: object = importlib.import_module(module_name)
    for attribute in attributes.split("."):
        found = getattr(found, attribute)
    return found


def import_for_first_use() -> None:
    """Import what the libraries that this process has imported would import later."""
    for library, module in _IMPORTED_AT_FIRST_USE.items():
        if library in sys.modules and importlib.util.find_spec(module) is not None:
            importlib.import_module(module)


def forget(folder: Path) -> None:
    """Take the folder's code out of this process. What runs goes on; nothing new is imported from there."""
    with _lock:
        _forget(folder)


def own_line(error: BaseException, folder: Path) -> str:
    """ "file:line" of the innermost frame that lies in the folder, or ""."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if folder in Path(frame.filename).parents:
            return f"{Path(frame.filename).relative_to(folder)}:{frame.lineno}"
    return ""


_app_folders: set[Path] = set()


def _forget(folder: Path) -> None:
    for name, module in sys.modules.copy().items():  # other threads import meanwhile
        if _lies_in(module, folder):
            del sys.modules[name]
    if str(folder) in sys.path:
        sys.path.remove(str(folder))
    _app_folders.discard(folder)


def _lies_in(module: object, folder: Path) -> bool:
    return any(folder in Path(place).parents for place in _places(module))


def _places(module: object) -> list[str]:
    """The module's file, or the folders of a package without one."""
    origin = getattr(module, "__file__", None)
    return [origin] if origin else [str(place) for place in getattr(module, "__path__", ())]


def _is_app(module: object) -> bool:
    return any(_lies_in(module, folder) for folder in _app_folders)


def _app_folder_of(module: object) -> Path:
    return next(folder for folder in _app_folders if _lies_in(module, folder))
