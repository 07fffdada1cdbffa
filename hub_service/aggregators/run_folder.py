"""What becomes of a run's folder when the run has ended. Whatever the owner's code has put there goes with it."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable, Collection
from pathlib import Path

from hub_service.aggregators.events import EVENTS_FILE, MODEL_FILE, SERVERAPP_LOG, round_model_file
from hub_service.domain.errors import Unavailable
from hub_service.domain.runs import Run

log = logging.getLogger(__name__)

_STAY = frozenset({EVENTS_FILE, SERVERAPP_LOG})


def clear_run_folder(folder: Path, besides: Collection[str] = ()) -> None:
    """Leave the events, the log and files of these names. What cannot be removed is logged; the sweeper tries again."""
    stay = _STAY.union(besides)
    try:
        for path in folder.iterdir():
            if path.is_dir() and not path.is_symlink():
                remove_tree(path)
            elif path.name not in stay:
                path.unlink()
    except FileNotFoundError:  # the run had not begun, or the sweeper is at it too
        return
    except (OSError, Unavailable) as error:
        log.warning("%s is not cleared: %s", folder, error)


def unkept_models(folder: Path, run: Run) -> set[str]:
    """The names of the models of a run that has ended that lie there and are not among the artifacts."""
    kept = {round_model_file(one.round) for one in run.models} | ({MODEL_FILE} if run.model_sha256 else set())
    return {path.name for path in folder.glob("model*.safetensors")} - kept


def remove_tree(folder: Path) -> None:
    """Folders that are closed, too. Raises Unavailable where the disk refuses."""

    def open_and_try_again(act: Callable[[str], object], path: str, _error: object) -> None:
        if os.path.lexists(path):
            os.chmod(Path(path).parent, 0o700)
            if not os.path.islink(path):
                os.chmod(path, 0o700)
            if os.path.isdir(path) and not os.path.islink(path):
                shutil.rmtree(path)
            else:
                os.unlink(path)

    try:
        shutil.rmtree(folder, onerror=open_and_try_again)
    except FileNotFoundError:
        return
    except OSError as error:
        raise Unavailable(
            "What a project left on the service's disk cannot be removed.",
            "It is tried again later. Ask the Hub's administrator to look at the disk.",
            debug=f"{folder}: {error.strerror}",
        ) from error
