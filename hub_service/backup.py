"""One file with everything that the service keeps, made while it runs; and the state that such a file becomes again.

A tar archive without compression, since models do not shrink:

    database/<table>.jsonl          every row, one JSON object a line, all of one moment (`store.rows`)
    fabs/<sha256>  models/<sha256>  what those rows name
    state/...                       the key that signs records, the cookie secret, the nodes' ids
    manifest.json                   size and sha256 of each of them; the last one

What a run in flight has in its folder is not in it: such a run has failed once the backup is restored.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import tarfile
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import IO, Any

from federator.contract import RunStatus

from hub_service.aggregators.processes import NODE_IDS
from hub_service.artifacts import Artifacts, fab_name, model_name
from hub_service.audit import GENESIS, AuditLog, Decision, Fault, fault
from hub_service.domain.clock import Clock
from hub_service.domain.errors import Conflict, Invalid, NotFound, Unavailable
from hub_service.store.base import AuditLine, Store
from hub_service.store.rows import Rows, Writing, reading

FORMAT = 1
KEPT_FILES = ("signing-key.pem", "cookie-secret")

_MANIFEST = "manifest.json"
_DATABASE, _STATE = "database/", "state/"
_NAME = re.compile(
    r"database/[a-z_]+\.jsonl|(fabs|models)/[0-9a-f]{64}|"
    rf"state/({'|'.join(map(re.escape, KEPT_FILES))}|projects/[\w-]+/(superlink/)?{re.escape(NODE_IDS)})",
    re.ASCII,
)
_CHUNK = 1024 * 1024
_RESTORED = "The service was restored from a backup that was made during this run. Start the run again."


@dataclass(frozen=True, slots=True)
class Entry:
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a backup holds.

    Attributes:
        made_at: ISO 8601.
        revision: of the database.
        audit_lines, audit_head: how many lines the audit log had, and the last one's hash.
        missing: artifacts that the database names and that were missing or damaged.
        files: by name in the archive.
    """

    format: int
    made_at: str
    revision: str
    audit_lines: int
    audit_head: str
    missing: tuple[str, ...]
    files: Mapping[str, Entry]


# --- making one


def back_up(target: IO[bytes], database_url: str, artifacts: Artifacts, state_dir: Path, made_at: datetime) -> Manifest:
    """Write a backup into a file. Raises Unavailable where something of it cannot be read, OSError where written."""
    files: dict[str, Entry] = {}
    named: set[str] = set()
    audit_lines, audit_head = 0, GENESIS
    with tarfile.open(fileobj=target, mode="w") as archive:
        with reading(database_url) as (revision, found):
            for table, rows in found:
                with tempfile.TemporaryFile() as text:  # a tar needs the size first
                    for row in rows:
                        text.write(json.dumps(row, separators=(",", ":")).encode() + b"\n")
                        named |= _named_by(table, row)
                        if table == "audit_lines":
                            audit_lines, audit_head = audit_lines + 1, row["hash"]
                    _add(archive, files, f"{_DATABASE}{table}.jsonl", text)
        missing = [name for name in sorted(named) if not _add_artifact(archive, files, artifacts, name)]
        for path in _state_files(state_dir):
            with path.open("rb") as file:
                _add(archive, files, f"{_STATE}{path.relative_to(state_dir)}", file)
        manifest = Manifest(FORMAT, made_at.isoformat(), revision, audit_lines, audit_head, tuple(missing), files)
        _add(archive, {}, _MANIFEST, io.BytesIO(json.dumps(asdict(manifest), indent=1).encode()))
    return manifest


def _named_by(table: str, row: Mapping[str, Any]) -> set[str]:
    if table == "app_versions":
        return {fab_name(row["fab_hash"])}
    if table == "runs":
        hashes = {row["model_sha256"], *(model["sha256"] for model in row["models"])}
        return {model_name(sha256) for sha256 in hashes if sha256}
    return set()


def _add_artifact(archive: tarfile.TarFile, files: dict[str, Entry], artifacts: Artifacts, name: str) -> bool:
    """False where it is missing or damaged: what else there is must not be lost for it."""
    try:
        path = artifacts.file(name)
    except NotFound:
        return False
    except Unavailable as error:
        if artifacts.is_damaged(error):
            return False
        raise
    with path.open("rb") as file:
        _add(archive, files, name, file)
    return True


def _state_files(state_dir: Path) -> Iterable[Path]:
    kept = [state_dir / name for name in KEPT_FILES]
    return [*(path for path in kept if path.is_file()), *sorted(state_dir.glob(f"projects/*/**/{NODE_IDS}"))]


def _add(archive: tarfile.TarFile, files: dict[str, Entry], name: str, file: IO[bytes]) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = file.seek(0, io.SEEK_END)
    entry.mode = 0o600
    file.seek(0)
    digest = hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]
    file.seek(0)
    archive.addfile(entry, file)
    files[name] = Entry(entry.size, digest)


# --- reading one


class Backup:
    """A backup that was made before. `checked` opens one."""

    def __init__(self, archive: tarfile.TarFile, manifest: Manifest) -> None:
        self._archive = archive
        self.manifest = manifest

    def rows(self) -> Mapping[str, Rows]:
        """By table."""
        names = [name for name in self.manifest.files if name.startswith(_DATABASE)]
        return {name.removeprefix(_DATABASE).removesuffix(".jsonl"): self._lines(name) for name in names}

    def artifacts(self) -> Iterator[tuple[str, IO[bytes]]]:
        for name in self.manifest.files:
            if not name.startswith((_DATABASE, _STATE)):
                yield name, _member(self._archive, name)

    def state(self) -> Iterator[tuple[str, bytes]]:
        """Files of the state folder, by their path in it."""
        for name in self.manifest.files:
            if name.startswith(_STATE):
                yield name.removeprefix(_STATE), _member(self._archive, name).read()

    def audit_fault(self) -> Fault | None:
        """Where the audit log in it is not whole."""
        rows = self.rows().get("audit_lines", ())
        found = fault(AuditLine(**{**row, "at": datetime.fromisoformat(row["at"])}) for row in rows)
        last = GENESIS
        for row in self.rows().get("audit_lines", ()):
            last = row["hash"]
        if found is None and last != self.manifest.audit_head:
            return Fault(self.manifest.audit_lines, "it is not the last line that the manifest names")
        return found

    def _lines(self, name: str) -> Rows:
        return (json.loads(line) for line in _member(self._archive, name))


@contextmanager
def checked(source: Path) -> Iterator[Backup]:
    """A backup of which every byte is as it was written.

    Raises Invalid, naming the file in it, for one that is not; NotFound where there is no such file.
    """
    try:
        with tarfile.open(source, "r:") as archive:
            manifest = _manifest(archive)
            names = [member.name for member in archive.getmembers() if member.name != _MANIFEST]
            if sorted(names) != sorted(manifest.files):
                raise _not_whole("it holds other files than its manifest names")
            for name, entry in manifest.files.items():
                if not _NAME.fullmatch(name):
                    raise _not_whole(f"{name[:80]!r} belongs in no backup")
                if _entry(_member(archive, name)) != entry:
                    raise _not_whole(f"{name} is not as it was written")
            backup = Backup(archive, manifest)
            if broken := backup.audit_fault():
                raise _not_whole(f"its audit log breaks at line {broken.sequence}: {broken.reason}")
            yield backup
    except (FileNotFoundError, IsADirectoryError) as error:
        raise NotFound(f"There is no file {source}.") from error
    except (tarfile.TarError, ValueError, KeyError, TypeError, EOFError) as error:
        raise _not_whole("it is no backup of this service, or its end is missing") from error


def _manifest(archive: tarfile.TarFile) -> Manifest:
    content = json.loads(_member(archive, _MANIFEST).read())
    if content["format"] != FORMAT:
        raise Invalid(
            f"The backup has format {content['format']}, and this version of the service reads format {FORMAT}.",
            "Restore it with the version of the service that made it.",
        )
    files = {name: Entry(**entry) for name, entry in content["files"].items()}
    return Manifest(**{**content, "files": files, "missing": tuple(content["missing"])})


def _member(archive: tarfile.TarFile, name: str) -> IO[bytes]:
    member = archive.getmember(name)
    file = archive.extractfile(member) if member.isreg() else None
    if file is None:
        raise _not_whole(f"{name} is no plain file")
    return file


def _entry(file: IO[bytes]) -> Entry:
    digest, size = hashlib.sha256(), 0
    while chunk := file.read(_CHUNK):
        digest.update(chunk)
        size += len(chunk)
    return Entry(size, digest.hexdigest())


def _not_whole(reason: str) -> Invalid:
    return Invalid(f"The backup cannot be used: {reason}.", "Take another copy of it, or an earlier backup.")


# --- becoming a state again


def require_empty(state_dir: Path) -> None:
    """Raises Conflict where something is in the state folder already."""
    there = sorted(path.name for path in state_dir.iterdir()) if state_dir.is_dir() else []
    if there:
        raise Conflict(
            f"{state_dir} is not empty: {', '.join(there[:5])}.",
            "Stop the Hub and its service, and move the folder away; restore into a new one.",
        )


def restore(
    backup: Backup,
    state_dir: Path,
    database_url: str,
    open_artifacts: Callable[[Path], Artifacts],
    open_store: Callable[[], Store],
    clock: Clock,
) -> None:
    """Make the state that was backed up, in an empty folder and an empty database.

    Runs that were in flight have failed, and the audit log says that it was restored.
    Raises Conflict where something is there already, and as `store.rows.Writing`.
    """
    require_empty(state_dir)
    state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    writing = Writing(database_url, backup.manifest.revision)
    try:
        artifacts = open_artifacts(state_dir)
        for name, file in backup.artifacts():
            artifacts.put_named(name, file)
        for relative, content in backup.state():
            path = state_dir / relative
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            path.touch(0o600)
            path.write_bytes(content)
        writing.write(backup.rows())
        writing.finish()
    finally:
        writing.close()
    store = open_store()
    try:
        _note_restored(store, backup.manifest, clock)
    finally:
        store.close()


def _note_restored(store: Store, manifest: Manifest, clock: Clock) -> None:
    audit = AuditLog(store, clock)
    with store.transaction():
        audit.note("service", Decision.RESTORED, "", made_at=manifest.made_at, head=manifest.audit_head)
        for run in store.unfinished_runs():
            ended = replace(run, status=RunStatus.FAILED, message=_RESTORED, phase="", finished_at=clock())
            store.put_run(ended)
            audit.note("service", Decision.RUN_ENDED, run.project_id, run=run.id, status=RunStatus.FAILED, model="")
