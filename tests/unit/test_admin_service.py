"""`python -m spawner.admin service ...`, as the documents have it: each command a process, on a deployment folder."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from hub_service.audit import fault
from hub_service.commands import COMMANDS
from hub_service.store.sql import SqlStore
from spawner.deployment import CONFIG_VARIABLE
from tests.fakes.federation import ANNA, Federation

DEPLOYMENT = """
[hub]
bind_url = "http://127.0.0.1:8000"
data_dir = "state"
admin_contact = "Robin"

[sso]
preset = "cilogon"
client_id = "c"

[sso.institutions]
"urn:mace:a" = "a"

[sites.a]
kind = "embedded"
title = "Hospital A"
contact = "Anna"
work_dir = "work/a"
"""


class Hub:
    """A deployment file in a folder of its own, with the service's state where the Hub puts it."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.config = folder / "deployment.toml"
        self.config.write_text(DEPLOYMENT)
        self.state = folder / "state" / "federation"

    async def fill(self) -> str:
        """Leave a project there, as a service that has ended does; its id."""
        self.state.mkdir(parents=True, mode=0o700)
        store = SqlStore(self.database)
        project_id, _, _ = await Federation(self.state, store=store).ready_project()
        store.close()
        return project_id

    @property
    def database(self) -> str:
        return f"sqlite:///{self.state / 'federation.db'}"

    def type(self, words: str, *, named_by_the_environment: bool = False) -> subprocess.CompletedProcess[str]:
        """`words` follow `service`. Nothing of the Hub's or the service's environment is set."""
        named = [] if named_by_the_environment else ["--config", str(self.config)]
        environment = {"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/")}
        if named_by_the_environment:
            environment[CONFIG_VARIABLE] = str(self.config)
        return subprocess.run(
            [sys.executable, "-m", "spawner.admin", *named, "service", *words.split()],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )

    def done(self, words: str, *, named_by_the_environment: bool = False) -> str:
        ended = self.type(words, named_by_the_environment=named_by_the_environment)
        assert ended.returncode == 0, ended.stderr
        return ended.stdout


@pytest.fixture
def hub(tmp_path: Path) -> Hub:
    return Hub(tmp_path / "hub")


def test_it_lists_the_commands(hub: Hub) -> None:
    shown = hub.done("")
    assert [name for name in COMMANDS if name not in shown] == []


async def test_a_backup_is_made_checked_and_restored(hub: Hub, tmp_path: Path) -> None:
    project_id = await hub.fill()
    file, other = tmp_path / "federation.tar", Hub(tmp_path / "other")
    hub.done(f"backup {file}", named_by_the_environment=True)
    assert file.stat().st_mode & 0o077 == 0
    assert "is whole" in hub.done(f"restore --check {file}")
    assert f"is restored to {other.state}" in other.done(f"restore {file}")
    restored = SqlStore(other.database)
    assert [one.id for one in restored.projects()] == [project_id]
    assert fault(restored.audit_lines()) is None
    assert Federation(other.state, store=restored).coordinator.project(ANNA, project_id).name == "Lungs"
    restored.close()


async def test_what_is_refused_has_the_status_and_the_words_of_the_command(hub: Hub, tmp_path: Path) -> None:
    await hub.fill()
    file = tmp_path / "federation.tar"
    hub.done(f"backup {file}")
    for words, told in ((f"backup {file}", "there already"), (f"restore {file}", "not empty")):
        refused = hub.type(words)
        assert (refused.returncode, "Traceback" in refused.stderr) == (1, False)
        assert told in refused.stderr


async def test_the_audit_log_is_exported_and_verified(hub: Hub, tmp_path: Path) -> None:
    project_id = await hub.fill()
    file = tmp_path / "audit.jsonl"
    hub.done(f"export-audit {file}")
    hub.done("verify-audit")
    hub.done(f"verify-audit {file}")
    part = tmp_path / "part.jsonl"
    hub.done(f"export-audit --project {project_id} {part}")
    assert part.read_text() == file.read_text()  # there is no other project
    file.write_bytes(file.read_bytes().replace(b"anna", b"anne", 1))
    assert hub.type(f"verify-audit {file}").returncode == 1


async def test_a_migration_is_not_needed_and_a_project_is_deleted(hub: Hub) -> None:
    project_id = await hub.fill()
    hub.done("migrate --check")
    hub.done("migrate")
    hub.done(f"delete-project {project_id}")
    assert project_ids(hub) == [project_id]
    hub.done(f"delete-project {project_id} --yes")
    assert project_ids(hub) == []


def project_ids(hub: Hub) -> list[str]:
    store = SqlStore(hub.database, reads_only=True)
    found = [one.id for one in store.projects()]
    store.close()
    return found
