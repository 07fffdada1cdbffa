"""No secret is where others read: logs, command lines, pages, the database, run folders, a ServerApp's environment.

A whole journey runs on the real stack, with a database, a storage, a mail server and a webhook that want secrets.
Meanwhile the real values are collected: from the environment of the processes that own them, from the files that keep
them, and from a browser's traffic. A node's private key is in its kernel's memory only: the form of one is looked for.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from federator.ports import free_port

from examples.demo.browser import Browser
from examples.demo.deployment import DatasetFolder
from examples.demo.display import Display
from examples.demo.people import ADMINISTRATOR, RESEARCHERS, STEWARDS
from examples.demo.scenario import Study, run_journey
from examples.demo.stack import Stack, embedded_sites, running_stack
from spawner.deployment import METRICS_TOKEN_VARIABLE
from tests.conftest import ROOT
from tests.fakes.postgresql import Cluster
from tests.system.outside import Outside
from tests.system.watching import Watch

pytestmark = [pytest.mark.needs_node, pytest.mark.needs_postgresql]

SECRET_VARIABLES = (
    "JUPYTERHUB_API_TOKEN",
    "JPY_API_TOKEN",
    "CONFIGPROXY_AUTH_TOKEN",
    "NOTEBOOK_FEDERATOR_SSO_CLIENT_SECRET",
)
KEPT_SECRETS = ("cookie-secret", "jupyterhub_cookie_secret", "signing-key.pem")
WEBHOOK = "the webhook's address"
SHORTEST = 16  # characters: what is shorter is no secret and is found by chance
PROJECTS_CODE = re.compile(r"hub_service\.aggregators\.serverapp|superlink_process|template_process")
SAMPLE_EVERY_S = 0.2


@dataclass
class Collected:
    """What was seen while the journey ran."""

    secrets: dict[str, str] = field(default_factory=dict)  # value -> what it is
    command_lines: set[str] = field(default_factory=set)
    environments: set[str] = field(default_factory=set)  # of processes that run or start a project's own code
    servers: set[str] = field(default_factory=set)  # environments of notebook servers and their kernels
    pages: list[str] = field(default_factory=list)

    def secret(self, what: str, value: str) -> None:
        if len(value) >= SHORTEST:
            self.secrets.setdefault(value, what)

    def look(self, process: psutil.Process) -> None:
        """Keep the command line of one of the stack's processes, and what is of interest in its environment."""
        command_line, environment = " ".join(process.cmdline()), process.environ()
        self.command_lines.add(command_line)
        if PROJECTS_CODE.search(command_line):
            self.environments.add(repr(environment))
            return
        if "JUPYTERHUB_USER" in environment and "JUPYTERHUB_SERVICE_NAME" not in environment:
            self.servers.add(repr(environment))
        for name in SECRET_VARIABLES:
            self.secret(name, environment.get(name, ""))

    def told_in(self, text: str, besides: tuple[str, ...] = ()) -> list[str]:
        """Names, never values, of the secrets in a text."""
        return sorted({what for value, what in self.secrets.items() if value in text and what not in besides})


@pytest.fixture(scope="module")
def outside(cluster: Cluster) -> Iterator[Outside]:
    with Outside(cluster).open() as opened:
        yield opened


@pytest.fixture(scope="module")
def stack(study_and_dataset: tuple[Study, DatasetFolder], outside: Outside) -> Iterator[Stack]:
    """One of its own, with every secret that a deployment may have where the Hub starts the service."""

    def write(*where: Any) -> Path:
        path = embedded_sites(study_and_dataset[1])(*where)
        path.write_text(outside.in_the_file(path.read_text("utf-8")), "utf-8")
        return path

    with pytest.MonkeyPatch.context() as patch:
        for name, value in outside.variables.items():
            patch.setenv(name, value)
        with running_stack(ROOT / "test-output" / "secrets", write, port=free_port()) as running:
            yield running


@pytest.fixture(scope="module")
async def collected(stack: Stack, study: Study, outside: Outside) -> Collected:
    found = Collected()
    for name, value in {**outside.variables, WEBHOOK: outside.webhook_path}.items():
        found.secret(name, value)
    with Watch(stack, found.look, SAMPLE_EVERY_S):
        await run_journey(stack.origin, replace(study, title="Kept secret"), RESEARCHERS, STEWARDS, Display())
        await browse(stack, found)
        await administer(stack, found)
    for path in (path for name in KEPT_SECRETS for path in stack.folder.rglob(name)):
        keep(found, path)
    return found


async def browse(stack: Stack, found: Collected) -> None:
    """As a researcher's browser: cookies, OAuth codes and states, XSRF tokens, and a token of the person's own."""
    known = RESEARCHERS[0]
    person = Browser(known.username, known.subject, stack.origin)

    async def note(response: httpx.Response) -> None:
        for name, value in response.cookies.items():
            found.secret("XSRF token" if name == "_xsrf" else f"cookie {name}", value.strip('"'))
        for location in (response.headers.get("location", ""), str(response.url)):
            for name in ("code", "state", "_xsrf"):
                value = httpx.URL(location).params.get(name, "")
                found.secret("XSRF token" if name == "_xsrf" else f"OAuth {name}", value)
        if "text/html" in response.headers.get("content-type", ""):
            await response.aread()
            found.pages.append(response.text)

    person.http.event_hooks["response"].append(note)
    await person.log_in()
    token = (await person.hub("POST", f"/hub/api/users/{known.username}/tokens", {"note": "a script"})).json()["token"]
    found.secret("a person's token", token)
    async with httpx.AsyncClient(base_url=stack.origin, headers={"Authorization": f"token {token}"}) as script:
        assert (await script.get("/services/federation/api/home")).is_success
        for address in ("api/projects/none", "api/runs/none/model", "api/no-such-thing"):
            found.pages.append((await script.get(f"/services/federation/{address}")).text)
    for project in (await person.get("api/projects"))[:3]:
        await person.open(f"projects/{project['id']}")
    await person.close()


async def administer(stack: Stack, found: Collected) -> None:
    """As the Hub's administrator, who is told what fails; and as the program that reads the metrics."""
    admin = Browser(ADMINISTRATOR.username, ADMINISTRATOR.subject, stack.origin)
    await admin.log_in()
    found.pages.append(await admin.open("administration"))
    await admin.close()
    (token,) = (value for value, what in found.secrets.items() if what == METRICS_TOKEN_VARIABLE)
    async with httpx.AsyncClient(base_url=stack.origin, headers={"Authorization": f"token {token}"}) as monitor:
        for address in ("/services/federation/metrics", "/hub/metrics", "/services/federation/health"):
            answer = await monitor.get(address)
            assert answer.is_success, address
            found.pages.append(answer.text)


def keep(found: Collected, path: Path) -> None:
    """A secret in a file, in the forms in which it may be written elsewhere."""
    content = path.read_bytes()
    if path.suffix == ".pem":
        for line in content.decode().splitlines():
            found.secret("signing key", "" if line.startswith("-----") else line)
        return
    found.secret(path.name, content.hex())
    found.secret(path.name, base64.b64encode(content).decode())
    with suppress(UnicodeDecodeError):
        found.secret(path.name, content.decode().strip())


def test_the_secrets_in_play_are_known(collected: Collected) -> None:
    """Else the tests below find nothing and say so of nothing."""
    kinds = set(collected.secrets.values())
    assert kinds >= {
        "JUPYTERHUB_API_TOKEN",
        "CONFIGPROXY_AUTH_TOKEN",
        "NOTEBOOK_FEDERATOR_SSO_CLIENT_SECRET",
        "a person's token",
        "OAuth code",
        "XSRF token",
        "signing key",
        "cookie-secret",
    }
    assert sum(what == "JUPYTERHUB_API_TOKEN" for what in collected.secrets.values()) > len(RESEARCHERS)
    assert collected.environments
    assert collected.servers


def test_the_secrets_for_servers_outside_were_used(collected: Collected, outside: Outside, stack: Stack) -> None:
    """And refused once where the service tells of it; else it would have had nothing to write down."""
    log = stack.log("hub").read_text(errors="replace")
    assert "the mail server does not take our password (535)" in log
    assert "the receiver refuses (status 503)" in log
    assert outside.logins[:2] == [True, True]
    assert outside.signed[:2] == [True, True]
    assert any("/fabs/" in name for name in outside.objects())
    assert "Kept secret" in outside.rows()


def test_no_log_has_one(collected: Collected, stack: Stack) -> None:
    """The identity provider of the demonstration is not ours."""
    logs = [path for path in stack.folder.rglob("*.log") if path != stack.log("identity-provider")]
    assert len(logs) > 2
    told = {path.name: collected.told_in(path.read_text(errors="replace")) for path in logs}
    assert {name: found for name, found in told.items() if found} == {}
    assert [path.name for path in logs if b"PRIVATE KEY" in path.read_bytes()] == []


def test_no_command_line_has_one(collected: Collected) -> None:
    """Every account of the machine can read those."""
    assert len(collected.command_lines) > 5
    assert {found for line in collected.command_lines for found in collected.told_in(line)} == set()


def test_no_environment_of_a_projects_code_has_one(collected: Collected) -> None:
    assert {found for one in collected.environments for found in collected.told_in(one)} == set()


def test_no_page_and_no_error_has_one(collected: Collected) -> None:
    """A page's forms have the XSRF token of who opened it."""
    assert len(collected.pages) > 5
    assert {one for page in collected.pages for one in collected.told_in(page, besides=("XSRF token",))} == set()


def test_no_server_of_a_person_has_one_of_the_deployment(collected: Collected, outside: Outside) -> None:
    """Its person reads its environment, and their code does."""
    kept = {**outside.variables, WEBHOOK: outside.webhook_path}
    assert [name for name, value in kept.items() if any(value in one for one in collected.servers)] == []


def test_the_database_has_none(collected: Collected, outside: Outside) -> None:
    rows = outside.rows()
    assert "Kept secret" in rows
    assert collected.told_in(rows) == []
    assert "PRIVATE KEY" not in rows


def test_the_storage_has_none(collected: Collected, outside: Outside) -> None:
    objects = outside.objects()
    assert objects
    told = {name: collected.told_in(content.decode("latin-1")) for name, content in objects.items()}
    assert {name: found for name, found in told.items() if found} == {}


def test_no_file_of_a_run_has_one(collected: Collected, stack: Stack) -> None:
    """Events, plans, apps, models and whatever else lies with them."""
    state = stack.folder / "hub" / "federation"
    files = [path for path in state.rglob("*") if path.is_file() and path.name not in KEPT_SECRETS]
    assert any(path.name.startswith("events") for path in files)
    told = {str(path): collected.told_in(path.read_bytes().decode("latin-1")) for path in files}
    assert {name: found for name, found in told.items() if found} == {}


def test_kept_secrets_are_closed_to_others(stack: Stack) -> None:
    for path in (path for name in KEPT_SECRETS for path in stack.folder.rglob(name)):
        assert path.stat().st_mode & 0o077 == 0, path.name


def test_a_secret_that_is_written_is_found(collected: Collected) -> None:
    value = next(value for value, what in collected.secrets.items() if what == "a person's token")
    assert collected.told_in(f"GET /?token={value} 200") == ["a person's token"]
