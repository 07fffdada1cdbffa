"""What the administrator types, and what a state becomes of it: the audit log checked, a backup made and restored."""

from __future__ import annotations

import asyncio
import json
import os
import stat
import subprocess
import sys
import tarfile
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from federator.contract import ModelFile, RunStatus

from hub_service import backup, commands
from hub_service.audit import GENESIS, exported, fault, imported
from hub_service.commands import COMMANDS
from hub_service.domain.errors import Conflict, DatabaseInUse, Invalid, NotFound, Unavailable
from hub_service.domain.runs import EventKind, RunEvent
from hub_service.results.signing import SigningKey, is_signed
from hub_service.store.base import Store
from hub_service.store.sql import SqlStore
from tests.fakes.federation import ANNA, BERT, Federation
from tests.fakes.postgresql import Cluster

STATE = "FEDERATION_STATE_DIR"
DATABASE = "FEDERATION_DATABASE_URL"


def url_of(folder: Path) -> str:
    return f"sqlite:///{folder / 'federation.db'}"


async def filled(folder: Path) -> tuple[Federation, str]:
    """A service's state with a project that has had a run; and the project's id. Its store is open."""
    folder.mkdir(mode=0o700, exist_ok=True)
    federation = Federation(folder, store=SqlStore(url_of(folder)))
    project_id, first, _ = await federation.ready_project()
    run_id = federation.coordinator.start_run(ANNA, project_id, 2, compare=False).id
    models = []
    for number in (1, 2):
        source = folder.parent / f"model-{number}"
        source.write_bytes(b"weights %d" % number * 50_000)
        models.append(ModelFile(*federation.artifacts.put_model(source), number))
    events = [
        RunEvent(EventKind.REPLY, 1.0, "federated", 1, "train", 2**64 - 1, metrics={"loss": 0.1 + 0.2}, examples=30)
    ]
    federation.store.add_events(run_id, events)
    run = federation.store.run(run_id)
    assert run is not None
    federation.store.put_run(
        replace(
            run,
            status=RunStatus.FINISHED,
            finished_at=federation.clock.now,
            model_sha256=models[-1].sha256,
            model_size=models[-1].size,
            model_round=2,
            models=tuple(models),
            nodes={str(2**64 - 1): "a"},
        )
    )
    SigningKey.kept(folder / "signing-key.pem")
    (folder / "cookie-secret").write_bytes(os.urandom(32))
    node_ids = folder / "projects" / project_id / "node-ids.json"
    node_ids.parent.mkdir(parents=True)
    node_ids.write_text(json.dumps({first: 7}))
    return federation, project_id


def everything(store: Store) -> list[object]:
    """All that a store has, but for the audit log."""
    found: list[object] = list(store.all_site_packages())
    for project in store.projects():
        runs = store.runs(project.id)
        found += [project, *store.members(project.id), *store.app_versions(project.id), *runs]
        found += [*store.participations(project.id), *store.approvals(project.id)]
        found += [event for run in runs for event in store.events(run.id)]
    return found


def run(folder: Path, *arguments: object, url: str = "") -> int:
    return commands.run([str(one) for one in arguments], {STATE: str(folder), DATABASE: url})


class TestTheCommandLine:
    def test_help_names_every_command(self) -> None:
        shown = subprocess.run(
            [sys.executable, "-m", "hub_service", "--help"], capture_output=True, text=True, check=True
        )
        for name, command in COMMANDS.items():
            assert name in shown.stdout
            assert command.SUMMARY.split()[0] in shown.stdout

    def test_a_state_that_nobody_named(self) -> None:
        with pytest.raises(Invalid, match=STATE):
            commands.run(["export-audit"], {})

    def test_a_refusal_is_told_in_words(self, tmp_path: Path) -> None:
        command = [sys.executable, "-m", "hub_service", "export-audit", "--state-dir", str(tmp_path)]
        refused = subprocess.run(command, capture_output=True, text=True, check=False)
        assert refused.returncode == 1
        assert refused.stderr.startswith("There is no database yet.")
        assert "Traceback" not in refused.stderr


class TestBackup:
    async def test_a_state_is_restored_elsewhere_as_it_was(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """Made while its service writes; what was written before it is in it, and nothing is torn."""
        old, new, file = tmp_path / "old", tmp_path / "new", tmp_path / "federation.tar"
        federation, project_id = await filled(old)
        run_id = federation.store.runs(project_id)[0].id
        signed = SigningKey.kept(old / "signing-key.pem").sign({"run": run_id}, "0" * 64)
        before = everything(federation.store)
        done, busy = threading.Event(), threading.Event()
        statuses: list[int] = []

        def back_up() -> None:
            try:
                assert busy.wait(30)
                statuses.append(run(old, "backup", file))
            finally:
                done.set()

        backing_up = threading.Thread(target=back_up)
        backing_up.start()
        written = 0
        while not done.is_set():
            federation.coordinator.create_project(BERT, f"Project {written}", "")
            written += 1
            busy.set()
        backing_up.join()
        assert statuses == [0]
        lines = len(federation.store.audit_lines())
        assert stat.S_IMODE(file.stat().st_mode) == 0o600

        assert commands.run(["restore", "--check", str(file)], {}) == 0
        assert run(new, "restore", file) == 0
        restored = SqlStore(url_of(new))
        found = everything(restored)
        assert found[: len(before)] == before
        others = restored.projects()[1:]
        assert 1 <= len(others) <= written
        assert all([one.user for one in restored.members(other.id)] == ["bert"] for other in others)
        audit = restored.audit_lines()
        assert fault(audit) is None
        assert audit[-1].action == "restored"
        assert len(audit) - 1 <= lines
        again = Federation(new, store=restored)
        for model in restored.runs(project_id)[0].models:
            assert (await again.coordinator.model_path(ANNA, run_id, str(model.round))).stat().st_size == model.size
        assert again.artifacts.fab(again.newest_hash(project_id)) == b"app 1"
        assert is_signed(signed, SigningKey.kept(new / "signing-key.pem").public_pem)
        for kept in ("signing-key.pem", "cookie-secret", f"projects/{project_id}/node-ids.json"):
            assert (new / kept).read_bytes() == (old / kept).read_bytes()
            assert stat.S_IMODE((new / kept).stat().st_mode) == 0o600
        again.coordinator.create_project(BERT, "Goes on", "")
        assert fault(restored.audit_lines()) is None
        restored.close()
        federation.store.close()
        assert "is whole" in capsys.readouterr().out

    @pytest.mark.needs_postgresql
    async def test_sqlite_becomes_postgresql_and_back(self, tmp_path: Path, cluster: Cluster) -> None:
        federation, _ = await filled(tmp_path / "old")
        run(tmp_path / "old", "backup", tmp_path / "1.tar")
        url = cluster.empty_database()
        assert run(tmp_path / "server", "restore", tmp_path / "1.tar", url=url) == 0
        on_server = SqlStore(url, wait_s=10.0)  # the server takes a moment to let go of the command's connection
        assert everything(on_server) == everything(federation.store)
        assert fault(on_server.audit_lines()) is None
        Federation(tmp_path / "server", store=on_server).new_project(BERT, b"app 2")  # new rows have new numbers
        assert run(tmp_path / "server", "backup", tmp_path / "2.tar", url=url) == 0
        assert run(tmp_path / "back", "restore", tmp_path / "2.tar") == 0
        back = SqlStore(url_of(tmp_path / "back"))
        assert everything(back) == everything(on_server)
        with pytest.raises(Conflict, match="database is not empty"):
            run(tmp_path / "other", "restore", tmp_path / "1.tar", url=cluster_url_in_use(on_server, url))
        back.close()
        federation.store.close()

    async def test_nothing_that_is_there_is_written_over(self, tmp_path: Path) -> None:
        federation, _ = await filled(tmp_path / "old")
        file = tmp_path / "federation.tar"
        run(tmp_path / "old", "backup", file)
        content = file.read_bytes()
        with pytest.raises(Conflict, match="there already"):
            run(tmp_path / "old", "backup", file)
        with pytest.raises(Conflict, match="not empty"):
            run(tmp_path / "old", "restore", file)
        assert file.read_bytes() == content
        assert sorted(path.name for path in tmp_path.glob(".federation*")) == []
        federation.store.close()

    async def test_a_run_in_flight_has_failed_after(self, tmp_path: Path) -> None:
        federation, project_id = await filled(tmp_path / "old")
        run_id = federation.coordinator.start_run(ANNA, project_id, 1, compare=False).id
        run(tmp_path / "old", "backup", tmp_path / "federation.tar")
        run(tmp_path / "new", "restore", tmp_path / "federation.tar")
        restored = SqlStore(url_of(tmp_path / "new"))
        found = restored.run(run_id)
        assert found is not None
        assert found.status is RunStatus.FAILED
        assert "restored from a backup" in found.message
        restored.close()
        federation.store.close()

    async def test_every_changed_byte_is_found(self, tmp_path: Path) -> None:
        federation, _ = await filled(tmp_path / "old")
        file = tmp_path / "federation.tar"
        run(tmp_path / "old", "backup", file)
        federation.store.close()
        content = file.read_bytes()
        with tarfile.open(file) as archive:
            places = [member.offset_data for member in archive.getmembers() if member.size]
        broken = tmp_path / "broken.tar"
        for place in places:
            broken.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
            with pytest.raises(Invalid, match="cannot be used"):
                commands.run(["restore", "--check", str(broken)], {})
        broken.write_bytes(content[: len(content) // 2])
        with pytest.raises(Invalid, match="cannot be used"):
            run(tmp_path / "new", "restore", broken)
        assert not (tmp_path / "new").exists()
        with pytest.raises(NotFound, match="no file"):
            commands.run(["restore", "--check", str(tmp_path / "none")], {})

    def test_a_name_that_leads_elsewhere_is_refused(self, tmp_path: Path) -> None:
        file = tmp_path / "evil.tar"
        entry = {"size": 3, "sha256": "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"}
        manifest = {
            "format": 1,
            "made_at": "",
            "revision": "0004",
            "audit_lines": 0,
            "audit_head": GENESIS,
            "missing": [],
        }
        for name in ("../../evil", "state/../evil", "database/a/../b.jsonl", "state/other"):
            (tmp_path / "abc").write_bytes(b"abc")
            (tmp_path / "manifest").write_text(json.dumps({**manifest, "files": {name: entry}}))
            with tarfile.open(file, "w") as archive:
                archive.add(tmp_path / "abc", name)
                archive.add(tmp_path / "manifest", "manifest.json")
            with pytest.raises(Invalid, match="belongs in no backup"):
                commands.run(["restore", "--check", str(file)], {})

    async def test_a_lost_model_does_not_cost_the_rest(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        federation, project_id = await filled(tmp_path / "old")
        lost, damaged = federation.store.runs(project_id)[0].models
        (tmp_path / "old" / "artifacts" / "models" / lost.sha256).unlink()
        (tmp_path / "old" / "artifacts" / "models" / damaged.sha256).write_bytes(b"other")
        assert run(tmp_path / "old", "backup", tmp_path / "federation.tar") == 1
        said = capsys.readouterr().err
        assert lost.sha256 in said
        assert damaged.sha256 in said
        assert run(tmp_path / "new", "restore", tmp_path / "federation.tar") == 0
        federation.store.close()

    async def test_a_newer_format_and_revision_are_refused(self, tmp_path: Path) -> None:
        federation, _ = await filled(tmp_path / "old")
        run(tmp_path / "old", "backup", tmp_path / "federation.tar")
        federation.store.close()

        def changed(**changes: object) -> Path:
            target = tmp_path / f"{'-'.join(changes)}.tar"
            with tarfile.open(tmp_path / "federation.tar") as source, tarfile.open(target, "w") as archive:
                for member in source.getmembers():
                    file = source.extractfile(member)
                    assert file is not None
                    if member.name == "manifest.json":
                        (tmp_path / "m").write_text(json.dumps(json.load(file) | changes))
                        archive.add(tmp_path / "m", "manifest.json")
                    else:
                        archive.addfile(member, file)
            return target

        with pytest.raises(Invalid, match="format 2"):
            run(tmp_path / "new", "restore", changed(format=backup.FORMAT + 1))
        with pytest.raises(Unavailable, match="revision 9999"):
            run(tmp_path / "new", "restore", changed(revision="9999"))


def cluster_url_in_use(store: SqlStore, url: str) -> str:
    """The address, once its service has let go of the database."""
    store.close()
    return url


class TestAuditLog:
    async def exported(self, tmp_path: Path, *options: str) -> Path:
        federation, _ = await filled(tmp_path / "state")
        file = tmp_path / "audit.jsonl"
        assert run(tmp_path / "state", "export-audit", file, *options) == 0
        federation.store.close()
        return file

    def verified(self, file: Path, *options: str) -> int:
        return commands.run(["verify-audit", str(file), *options], {})

    async def test_an_export_is_verified_anywhere(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        file = await self.exported(tmp_path)
        head = capsys.readouterr().err.split()[-1]
        assert self.verified(file, "--expect", head) == 0
        assert run(tmp_path / "state", "verify-audit", "--expect", head) == 0
        assert run(tmp_path / "state", "export-audit") == 0
        assert file.read_text() in capsys.readouterr().out

    async def test_every_byte_counts(self, tmp_path: Path) -> None:
        """One bit of each byte of three lines, which have every field."""
        file = await self.exported(tmp_path)
        content = file.read_text(encoding="ascii")
        lines = content.splitlines(keepends=True)
        assert fault(imported(lines)) is None
        start = sum(map(len, lines[:2]))
        for place in range(start, start + sum(map(len, lines[2:5]))):
            changed = content[:place] + chr(ord(content[place]) ^ 1) + content[place + 1 :]
            try:
                found = fault(imported(changed.splitlines(keepends=True)))
            except Invalid as error:
                assert error.message.startswith("Line "), place  # noqa: PT017 - either way it is found
            else:
                assert found is not None, place

    @pytest.mark.parametrize(
        ("change", "line"),
        [
            (lambda lines: [lines[0], *lines[2:]], 2),
            (lambda lines: [lines[1], lines[0], *lines[2:]], 1),
            (lambda lines: [*lines[:3], lines[2], *lines[3:]], 4),
            (lambda lines: lines[1:], 1),
        ],
    )
    async def test_lines_that_were_removed_moved_or_doubled(
        self,
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
        change: Callable[[list[bytes]], list[bytes]],
        line: int,
    ) -> None:
        file = await self.exported(tmp_path)
        file.write_bytes(b"".join(change(file.read_bytes().splitlines(keepends=True))))
        assert self.verified(file) == 1
        assert f"Line {line}:" in capsys.readouterr().err

    async def test_an_end_that_is_missing(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        file = await self.exported(tmp_path)
        head = capsys.readouterr().err.split()[-1]
        content = file.read_bytes()
        file.write_bytes(content[:-1])
        with pytest.raises(Invalid, match="not as it was exported"):
            self.verified(file)
        file.write_bytes(b"".join(content.splitlines(keepends=True)[:-1]))
        assert self.verified(file) == 0
        assert self.verified(file, "--expect", head) == 1
        file.write_bytes(b"")
        assert self.verified(file, "--expect", head) == 1
        with pytest.raises(Invalid, match="cannot be read"):
            self.verified(tmp_path / "none")
        file.write_bytes(b"\xff\n")
        with pytest.raises(Invalid, match="no export"):
            self.verified(file)

    async def test_one_projects_lines(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        federation, project_id = await filled(tmp_path / "state")
        federation.coordinator.create_project(BERT, "Other", "")
        federation.coordinator.leave(BERT, project_id)
        file = tmp_path / "audit.jsonl"
        run(tmp_path / "state", "export-audit", file, "--project", project_id)
        federation.store.close()
        assert self.verified(file) == 1
        assert self.verified(file, "--part") == 0
        lines = file.read_bytes().splitlines(keepends=True)
        file.write_bytes(b"".join([lines[1], lines[0], *lines[2:]]))
        assert self.verified(file, "--part") == 1
        file.write_bytes(lines[0].replace(b"anna", b"carl"))
        assert self.verified(file, "--part") == 1
        capsys.readouterr()

    async def test_no_name_of_a_project_is_in_the_log(self, tmp_path: Path) -> None:
        federation, _ = await filled(tmp_path / "state")
        assert "Lungs" not in "".join(map(exported, federation.store.audit_lines()))
        federation.store.close()


class TestDeleteProject:
    async def test_all_of_it_goes_and_nothing_of_another(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        state = tmp_path / "state"
        federation, project_id = await filled(state)
        other = federation.new_project(BERT, b"app 1")  # the same FAB
        with pytest.raises(DatabaseInUse):
            run(state, "delete-project", project_id, "--yes")
        assert run(state, "delete-project", project_id) == 0
        assert "Nothing was deleted" in capsys.readouterr().out
        federation.store.close()
        assert await asyncio.to_thread(run, state, "delete-project", project_id, "--yes") == 0
        store = SqlStore(url_of(state))
        assert [one.id for one in store.projects()] == [other]
        assert not (state / "projects" / project_id).exists()
        assert list((state / "artifacts" / "models").iterdir()) == []
        assert len(list((state / "artifacts" / "fabs").iterdir())) == 1
        last = store.audit_lines()[-1]
        assert (last.action, last.project_id) == ("project-deleted", project_id)
        assert last.detail == {"members": "2", "sites": "2", "versions": "1", "runs": "1", "models": "2"}
        assert fault(store.audit_lines()) is None
        store.close()
        with pytest.raises(NotFound):
            run(state, "delete-project", project_id)
