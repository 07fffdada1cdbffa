"""FABs and models on disk, each file named by the sha256 of its bytes. Written whole, checked when read."""

from __future__ import annotations

import hashlib
import io
import os
import tempfile
from pathlib import Path
from typing import BinaryIO

from hub_service.aggregators.events import open_run_file
from hub_service.domain.errors import NotFound, Unavailable

_CHUNK = 1024 * 1024


class Artifacts:
    """One folder of FABs and one of models below `folder`, which is made where it is missing."""

    def __init__(self, folder: Path) -> None:
        self._fabs = folder / "fabs"
        self._models = folder / "models"
        for made in (self._fabs, self._models):
            made.mkdir(parents=True, exist_ok=True, mode=0o700)

    def put_fab(self, content: bytes) -> str:
        """Keep a FAB; return its sha256. Raises Unavailable where the disk refuses."""
        fab_hash, _ = _keep(self._fabs, io.BytesIO(content))
        return fab_hash

    def fab(self, fab_hash: str) -> bytes:
        """The FAB's bytes. Raises NotFound if it is missing, Unavailable if the file is not what was kept."""
        path = _existing(self._fabs, fab_hash, "app")
        content = path.read_bytes()
        if hashlib.sha256(content).hexdigest() != fab_hash:
            raise _damaged(path, "app")
        return content

    def put_model(self, source: Path) -> tuple[str, int]:
        """Keep a copy of a model file; return its sha256 and its size in bytes.

        Raises NotFound if there is no such plain file, Unavailable where the disk refuses.
        """
        try:
            with open_run_file(source.parent, source.name) as file:
                return _keep(self._models, file)
        except FileNotFoundError as error:
            raise NotFound("The run has written no model.", debug=str(source)) from error

    def model(self, sha256: str) -> Path:
        """Where a model lies. Raises NotFound if it is missing, Unavailable if the file is not what was kept."""
        path = _existing(self._models, sha256, "model")
        with path.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != sha256:
                raise _damaged(path, "model")
        return path


def _existing(folder: Path, name: str, kind: str) -> Path:
    # A hash may come from a URL: nothing but a plain name is looked up.
    path = folder / name
    if not name.isalnum() or not path.is_file():
        raise NotFound(f"The {kind} is not on the service's disk.", "Ask the Hub's administrator to restore it.")
    return path


def _damaged(path: Path, kind: str) -> Unavailable:
    return Unavailable(
        f"The {kind} on the service's disk is damaged.",
        "Ask the Hub's administrator to restore it from a backup.",
        debug=f"sha256 differs: {path}",
    )


def _keep(folder: Path, source: BinaryIO) -> tuple[str, int]:
    """Copy into a temporary file of the folder, then rename it to its hash: a reader sees all of it or nothing."""
    try:
        descriptor, temporary = tempfile.mkstemp(dir=folder, prefix=".incoming-")
    except OSError as error:
        raise _disk_refuses(folder, error) from error
    try:
        with open(descriptor, "wb") as file:
            digest, size = _copy(source, file)
            os.fsync(file.fileno())
        os.replace(temporary, folder / digest)
    except OSError as error:
        os.unlink(temporary)
        raise _disk_refuses(folder, error) from error
    return digest, size


def _copy(source: BinaryIO, target: BinaryIO) -> tuple[str, int]:
    digest = hashlib.sha256()
    size = 0
    while chunk := source.read(_CHUNK):
        digest.update(chunk)
        size += target.write(chunk)
    target.flush()
    return digest.hexdigest(), size


def _disk_refuses(folder: Path, error: OSError) -> Unavailable:
    return Unavailable(
        "The service cannot write to its disk.",
        "Ask the Hub's administrator whether the disk is full.",
        debug=f"{folder}: {error.strerror}",
    )
