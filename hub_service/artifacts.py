"""FABs and models, each named by the sha256 of its bytes. Written whole, checked when read.

    <folder>/fabs/<sha256>  models/<sha256>
             waiting/<kind>-<sha256>     names what the bucket has not got yet
             leaving/<project id>.json   names what a deleted project leaves behind, until it is removed

Everything is written into the folder first, and is on its disk when `put_*` returns. Where there is a bucket, `upload`
brings it there afterwards: while the storage is away, work goes on and nothing is lost. What the bucket has is then
kept in the folder only as far as there is room; what is missing is fetched when it is asked for.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import json
import os
import re
import shutil
import tempfile
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, BinaryIO

from hub_service.aggregators.events import open_run_file
from hub_service.domain.errors import NotFound, Unavailable
from hub_service.durable_files import sync_folder
from hub_service.object_storage import ObjectStorage

FABS, MODELS = "fabs", "models"
KINDS = (FABS, MODELS)
CACHE_BYTES = 20 * 1024**3  # of models that the bucket has, too
INCOMING = ".incoming-"

_OURS = re.compile(rf"({FABS}|{MODELS})/([0-9a-f]{{64}}|{re.escape(INCOMING)}\w+)", re.ASCII)
_CHUNK = 1024 * 1024
_DIFFERS = "sha256 differs"
_WORDS = {FABS: "app", MODELS: "model"}


def fab_name(fab_hash: str) -> str:
    """What a FAB is called among all artifacts."""
    return f"{FABS}/{fab_hash}"


def model_name(sha256: str) -> str:
    """What a model is called among all artifacts."""
    return f"{MODELS}/{sha256}"


class Artifacts:
    """All of them. Methods may be called from any thread; those that read or write much, never on the event loop.

    Args:
        folder: made where it is missing.
        bucket: where they are kept for good. None: in the folder.
        cache_bytes: how much the folder holds of models that the bucket has.
    """

    def __init__(self, folder: Path, bucket: ObjectStorage | None = None, *, cache_bytes: int = CACHE_BYTES) -> None:
        self._folder = folder
        self._bucket = bucket
        self._cache_bytes = cache_bytes
        self._waiting = folder / "waiting"
        self._leaving = folder / "leaving"
        self._lock = threading.Lock()  # for what may go, and what may not yet
        self._let_go: set[str] = set()
        self._unwritten: set[str] = set()
        self._bucket_lock = threading.Lock()  # an object is not removed while the same one is brought there
        self.put: Callable[[], None] = lambda: None  # called from any thread when something waits for the bucket
        for made in (*(folder / kind for kind in KINDS), self._waiting, self._leaving):
            made.mkdir(parents=True, exist_ok=True, mode=0o700)

    def put_fab(self, content: bytes) -> str:
        """Keep a FAB, until `written` at least; return its sha256. Raises Unavailable where the disk refuses."""
        fab_hash, _ = self._keep(FABS, io.BytesIO(content))
        return fab_hash

    def fab(self, fab_hash: str) -> bytes:
        """The FAB's bytes. Raises as `model`."""
        return self._checked(FABS, fab_hash).read_bytes()

    def put_model(self, source: Path) -> tuple[str, int]:
        """Keep a copy of a model file, until `written` at least; return its sha256 and its size in bytes.

        Raises NotFound if there is no such plain file, Unavailable where the disk refuses.
        """
        try:
            with open_run_file(source.parent, source.name) as file:
                self._require_room(file)
                return self._keep(MODELS, file)
        except FileNotFoundError as error:
            raise NotFound("The run has written no model.", debug=str(source)) from error
        except OSError as error:
            raise Unavailable(
                "The run's model cannot be read.",
                "Ask the Hub's administrator about the service's disk.",
                debug=str(error),
            ) from error

    def model(self, sha256: str) -> Path:
        """Where a model lies, for now: open it at once.

        Raises NotFound if it is missing, Unavailable if it is not what was kept, or the bucket does not answer.
        """
        return self._checked(MODELS, sha256)

    def put_named(self, name: str, source: IO[bytes]) -> None:
        """Keep an artifact of a backup. Raises Unavailable where it is another, or the disk refuses."""
        kind, _, sha256 = name.partition("/")
        with _incoming(self._folder / kind) as incoming:
            digest, _ = _copy(source, incoming.file)
            if digest != sha256:
                raise _damaged(kind, name)
            self._note_waiting(kind, sha256)
            incoming.keep(sha256)

    def file(self, name: str) -> Path:
        """As `model`, for any artifact by its name among all."""
        kind, _, sha256 = name.partition("/")
        return self._checked(kind, sha256)

    def check(self) -> None:
        """Raise Unavailable where nothing could be kept now. Called by `hub_service.readiness`."""
        for kind in KINDS:
            with _incoming(self._folder / kind) as incoming:
                incoming.file.write(b"\0")
        if self._bucket is not None:
            self._bucket.check()

    @staticmethod
    def is_damaged(error: Unavailable) -> bool:
        """Whether that is why an artifact could not be had, and trying again is of no use."""
        return error.debug.startswith(_DIFFERS)

    # --- the bucket

    @property
    def waiting(self) -> int:
        """How many the bucket has not got yet."""
        return len(self._waiting_files())

    def upload(self) -> None:
        """Bring to the bucket what waits for that. Raises Unavailable where it does not take it."""
        if self._bucket is None:
            return
        for marker, path in self._waiting_files().items():
            with self._bucket_lock:
                with contextlib.suppress(NotFound):  # removed meanwhile
                    self._bucket.put(path, f"{path.parent.name}/{path.name}")
                marker.unlink(missing_ok=True)
        self._make_room("")

    def _waiting_files(self) -> Mapping[Path, Path]:
        """By the file that says so. One says so before its artifact is there; after a crash, for good."""
        said = {marker: self._folder / marker.name.replace("-", "/", 1) for marker in sorted(self._waiting.iterdir())}
        return {marker: path for marker, path in said.items() if path.is_file()}

    # --- what nobody needs any more

    def names(self) -> Mapping[str, datetime]:
        """Every artifact and unfinished file, and since when it is there. What else lies there is somebody else's."""
        found = {} if self._bucket is None else dict(self._bucket.names())
        for kind in KINDS:
            for path in (self._folder / kind).iterdir():
                with contextlib.suppress(FileNotFoundError):
                    found[f"{kind}/{path.name}"] = datetime.fromtimestamp(path.stat().st_mtime, UTC)
        return {name: since for name, since in found.items() if _OURS.fullmatch(name)}

    def written(self, *names: str) -> None:
        """What was put is named in the database now, which says from here on whether it is needed."""
        with self._lock:
            self._unwritten.difference_update(names)

    def let_go(self, names: Collection[str]) -> None:
        """Nothing in the database names these. Let `remove` have them, but for what was put and is not written yet."""
        with self._lock:
            self._let_go = set(names) - self._unwritten

    def remove(self) -> None:
        """Remove everywhere what was let go and not put again. Raises Unavailable where the bucket does not do it."""
        with self._lock:
            names = sorted(self._let_go)
        for name in names:
            with self._bucket_lock:
                if self._removed_here(name) and self._bucket is not None:
                    self._bucket.remove(name)

    def _removed_here(self, name: str) -> bool:
        with self._lock:
            if name not in self._let_go:
                return False
            self._let_go.remove(name)
            (self._folder / name).unlink(missing_ok=True)
            (self._waiting / name.replace("/", "-")).unlink(missing_ok=True)
            return True

    def note_leaving(self, project_id: str, names: Collection[str]) -> None:
        """Write down what a project that is about to be deleted leaves behind: then a crash leaves nothing for good.

        Raises Unavailable where the disk refuses.
        """
        with _incoming(self._leaving) as incoming:
            incoming.file.write(json.dumps(sorted(names)).encode())
            incoming.keep(f"{project_id}.json")

    def leaving(self) -> Mapping[str, Collection[str]]:
        """What was written down, by project."""
        return {path.stem: json.loads(path.read_bytes()) for path in sorted(self._leaving.glob("[!.]*.json"))}

    def has_left(self, project_id: str) -> None:
        """Nothing of the project is left."""
        (self._leaving / f"{project_id}.json").unlink(missing_ok=True)

    # --- files

    def _keep(self, kind: str, source: BinaryIO) -> tuple[str, int]:
        with _incoming(self._folder / kind) as incoming:
            digest, size = _copy(source, incoming.file)
            self._note_unwritten(f"{kind}/{digest}")
            self._note_waiting(kind, digest)
            incoming.keep(digest)
        self.put()
        return digest, size

    def _note_unwritten(self, name: str) -> None:
        with self._lock:
            self._unwritten.add(name)
            self._let_go.discard(name)

    def _require_room(self, source: BinaryIO) -> None:
        """What is tried again and again must not take, each time, the room that others need."""
        if shutil.disk_usage(self._folder).free < os.fstat(source.fileno()).st_size:
            raise _refused(self._folder, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))

    def _note_waiting(self, kind: str, sha256: str) -> None:
        if self._bucket is not None:
            (self._waiting / f"{kind}-{sha256}").touch()

    def _checked(self, kind: str, sha256: str) -> Path:
        # A hash may come from a URL: nothing but a plain name is looked up.
        path = self._folder / kind / sha256
        if not sha256.isalnum():
            raise _missing(kind)
        if path.is_file():
            if _sha256(path) == sha256:
                os.utime(path)  # the one that was asked for last leaves the folder last
                return path
            if self._bucket is None:
                raise _damaged(kind, str(path))
        if self._bucket is None:
            raise _missing(kind)
        self._fetch(self._bucket, kind, sha256)
        return path

    def _fetch(self, bucket: ObjectStorage, kind: str, sha256: str) -> None:
        with _incoming(self._folder / kind) as incoming:
            try:
                bucket.get(f"{kind}/{sha256}", incoming.path)
            except NotFound as error:
                raise _missing(kind) from error
            if _sha256(incoming.path) != sha256:
                raise _damaged(kind, f"{kind}/{sha256} of the bucket")
            incoming.keep(sha256)
        self._make_room(sha256)

    def _make_room(self, needed: str) -> None:
        """Let go of models that the bucket has, those first that nobody has asked for the longest."""
        kept = []
        for path in (self._folder / MODELS).iterdir():
            with contextlib.suppress(FileNotFoundError):
                about = path.stat()
                kept.append((about.st_mtime, about.st_size, path))
        excess = sum(size for _, size, _ in kept) - self._cache_bytes
        for _, size, path in sorted(kept):
            if excess <= 0:
                return
            if (
                path.name == needed
                or path.name.startswith(INCOMING)
                or (self._waiting / f"{MODELS}-{path.name}").exists()
            ):
                continue
            path.unlink(missing_ok=True)
            excess -= size


def _missing(kind: str) -> NotFound:
    return NotFound(f"The {_WORDS[kind]} is not on the service's disk.", "Ask the Hub's administrator to restore it.")


def _damaged(kind: str, what: str) -> Unavailable:
    return Unavailable(
        f"The {_WORDS[kind]} on the service's disk is damaged.",
        "Ask the Hub's administrator to restore it from a backup.",
        debug=f"{_DIFFERS}: {what}",
    )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@dataclass(frozen=True, slots=True)
class _Incoming:
    """A temporary file of a folder, until `keep` gives it its name: a reader sees all of it or nothing."""

    path: Path
    file: IO[bytes]

    def keep(self, name: str) -> None:
        self.file.flush()
        os.fsync(self.file.fileno())
        os.replace(self.path, self.path.with_name(name))
        sync_folder(self.path.parent)


@contextmanager
def _incoming(folder: Path) -> Iterator[_Incoming]:
    """Raises Unavailable where the disk refuses. What was not kept by then is gone."""
    try:
        descriptor, name = tempfile.mkstemp(dir=folder, prefix=INCOMING)
        path = Path(name)
        try:
            with open(descriptor, "w+b") as file:
                yield _Incoming(path, file)
        finally:
            path.unlink(missing_ok=True)
    except OSError as error:
        raise _refused(folder, error) from error


def _refused(folder: Path, error: OSError) -> Unavailable:
    return Unavailable(
        "The service cannot write to its disk.",
        "Ask the Hub's administrator whether the disk is full.",
        debug=f"{folder}: {error.strerror}",
    )


def _copy(source: IO[bytes], target: IO[bytes]) -> tuple[str, int]:
    digest = hashlib.sha256()
    size = 0
    while chunk := source.read(_CHUNK):
        digest.update(chunk)
        size += target.write(chunk)
    target.flush()
    return digest.hexdigest(), size
