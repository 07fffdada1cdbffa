"""The rules of the design that the code can be held to, read from its syntax trees.

Who may import whom, which third-party library stays behind which module, and where decisions are taken.
"""

from __future__ import annotations

import ast
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeGuard

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = {
    "hub_service": ROOT / "hub_service",
    "spawner": ROOT / "spawner",
    "federator": ROOT / "images" / "singleuser" / "federator",
}
# A template is text of the generated app, or of a capsule: it runs at the sites or elsewhere, never in the service.
TEMPLATES = (
    ROOT / "hub_service" / "apps" / "templates",
    ROOT / "hub_service" / "results" / "capsule_files",
)


def modules() -> Iterator[tuple[str, Path]]:
    for package, folder in PACKAGES.items():
        for path in sorted(folder.rglob("*.py")):
            if any(folder in path.parents for folder in TEMPLATES):
                continue
            parts = path.relative_to(folder).with_suffix("").parts
            yield ".".join((package, *(part for part in parts if part != "__init__"))), path


def imports(path: Path) -> set[str]:
    """Dotted names of everything a module imports, wherever in it the import stands."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return found


def within(name: str, *prefixes: str) -> bool:
    return any(name == prefix or name.startswith(f"{prefix}.") for prefix in prefixes)


MODULES = dict(modules())
IMPORTS = {name: imports(path) for name, path in MODULES.items()}

# importer -> what it may not import
FORBIDDEN = {
    "hub_service": ("spawner",),
    "spawner": ("hub_service",),
    "federator": ("hub_service", "spawner"),
    "hub_service.domain": (
        "hub_service.store",
        "hub_service.apps",
        "hub_service.aggregators",
        "hub_service.gateway",
        "hub_service.coordinator",
        "hub_service.web",
        "hub_service.app",
    ),
    "hub_service.store": (
        "hub_service.apps",
        "hub_service.aggregators",
        "hub_service.gateway",
        "hub_service.coordinator",
        "hub_service.web",
        "hub_service.app",
    ),
    "hub_service.apps": (
        "hub_service.store",
        "hub_service.aggregators",
        "hub_service.gateway",
        "hub_service.coordinator",
        "hub_service.web",
        "hub_service.app",
    ),
    "hub_service.aggregators": (
        "hub_service.store",
        "hub_service.apps",
        "hub_service.gateway",
        "hub_service.coordinator",
        "hub_service.web",
        "hub_service.app",
    ),
    "hub_service.gateway": ("hub_service.store", "hub_service.apps", "hub_service.web", "hub_service.app"),
    "hub_service.coordinator": ("hub_service.web", "hub_service.gateway", "hub_service.app"),
    "hub_service.reconciler": ("hub_service.web", "hub_service.gateway", "hub_service.app"),
    "hub_service.web": ("hub_service.store", "hub_service.aggregators", "hub_service.gateway", "hub_service.app"),
}

# library -> the only modules that may import it
FENCES = {
    "tornado": (
        "hub_service.web",
        "hub_service.gateway",
        "hub_service.identity",
        "hub_service.hub_client",
        "hub_service.app",
        "spawner",
        "federator.extension",
        "federator.kernels",
        "federator.lab_status",
        "federator.provisioner",
    ),
    "sqlalchemy": ("hub_service.store",),
    "alembic": ("hub_service.store",),
    "psycopg": (),  # SQLAlchemy loads it where the address asks for it
    "prometheus_client": ("hub_service.metrics",),
    "fsspec": ("hub_service.object_storage",),
    "botocore": ("hub_service.object_storage",),
    "limits": ("hub_service.rate_limits",),
    "docker": ("spawner", "hub_service.aggregators.docker"),
    "dockerspawner": ("spawner",),
    "aiohttp": ("hub_service.gateway", "hub_service.aggregators.sessions", "hub_service.identity", "federator.fleet"),
    # Who may ask other addresses: docs/access.md says which. None of them takes an address from a person or an app.
    "httpx": (
        "hub_service.aggregators",
        "hub_service.notices.webhook",
        "spawner.admin.checks",
        "federator.service_client",
    ),
    "requests": ("spawner",),
    "smtplib": ("hub_service.notices.mail",),
    "urllib.request": ("federator.fleet",),
    "websockets": (),
    "boto3": (),
    "flwr": (
        "hub_service.aggregators.superlink",
        "hub_service.aggregators.superlink_process",
        "hub_service.aggregators.serverapp",
        "hub_service.aggregators.observing_grid",
        "hub_service.aggregators.link_state",
        "hub_service.aggregators.mailbox",
        "hub_service.aggregators.checkpoint",
        "hub_service.aggregators.strategy_calls",
        "hub_service.aggregators.mapped_array",
        "hub_service.apps.build",
        "hub_service.gateway",
        "federator.node",
        "federator.contexts",
        "federator.fleet",
        "federator.parcel",
        "federator.trial_process",
    ),
    "torch": (),
    "torchvision": (),
}

# What of the client package the other packages import too: what goes over the wire between them, and what holds for
# processes at both ends.
SHARED = (
    "federator.allocator",
    "federator.contract",
    "federator.framing",
    "federator.logs",
    "federator.parcel",
    "federator.ports",
)

CONCRETE_CLASSES = {
    "hub_service.store.sql",
    "hub_service.store.memory",
    "hub_service.aggregators.local",
    "hub_service.aggregators.docker",
}


def test_the_packages_are_where_the_design_puts_them() -> None:
    assert {name.partition(".")[0] for name in MODULES} == set(PACKAGES)


@pytest.mark.parametrize("importer", FORBIDDEN)
def test_layers(importer: str) -> None:
    broken = {
        f"{module} imports {imported}"
        for module, names in IMPORTS.items()
        if within(module, importer)
        for imported in names
        if within(imported, *FORBIDDEN[importer])
    }
    assert not broken


@pytest.mark.parametrize("package", ["hub_service", "spawner"])
def test_only_what_both_ends_need_is_shared_with_the_client_package(package: str) -> None:
    broken = {
        f"{module} imports {imported}"
        for module, names in IMPORTS.items()
        if within(module, package)
        for imported in names
        if within(imported, "federator") and not within(imported, *SHARED)
    }
    assert not broken


@pytest.mark.parametrize("library", FENCES)
def test_fences(library: str) -> None:
    broken = {
        module
        for module, names in IMPORTS.items()
        if any(within(name, library) for name in names) and not within(module, *FENCES[library])
    }
    assert not broken, f"{library} is imported outside its fence"


def test_only_what_is_started_names_concrete_classes() -> None:
    """The service in `app`, and the administrator's commands."""
    broken = {
        f"{module} imports {imported}"
        for module, names in IMPORTS.items()
        if not within(module, "hub_service.app", "hub_service.commands", *CONCRETE_CLASSES)
        for imported in names
        if within(imported, *CONCRETE_CLASSES)
    }
    assert not broken


@pytest.mark.parametrize("module", ["federator.allocator", "federator.contract", "federator.framing", "federator.logs"])
def test_what_is_shared_needs_the_standard_library_only(module: str) -> None:
    allowed = {"__future__", "collections", "dataclasses", "enum", "re", "struct", "typing"}
    if module == "federator.allocator":
        allowed |= {"ctypes"}
    if module == "federator.logs":
        allowed |= {"contextlib", "contextvars", "datetime", "json", "logging", "sys"}
    assert {name.partition(".")[0] for name in IMPORTS[module]} <= allowed


def test_handlers_compare_no_user_names() -> None:
    """Who may do what is decided in `domain.policy`: no module of `web` compares a principal's attributes."""
    broken = []
    for module, path in MODULES.items():
        if not within(module, "hub_service.web"):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Compare):
                operands = [node.left, *node.comparators]
                if any(mentions_principal(operand) for operand in operands):
                    broken.append(f"{module}:{node.lineno}")
    assert not broken


def mentions_principal(expression: ast.expr) -> bool:
    return any(isinstance(node, ast.Attribute) and node.attr == "principal" for node in ast.walk(expression))


CLOCKS = {
    ("datetime", "now"),
    ("datetime", "utcnow"),
    ("datetime", "today"),
    ("time", "time"),
    ("uuid", "uuid4"),
    ("uuid", "uuid1"),
    ("secrets", "token_hex"),
    ("secrets", "token_urlsafe"),
}


def test_clock_ids_and_randomness_are_passed_in() -> None:
    """Only what is started reads the clock or draws; the aggregator's own process has its own clock."""
    exempt = (
        "hub_service.app",
        "hub_service.commands",
        "hub_service.aggregators.observer",
        "hub_service.aggregators.serverapp",
        "hub_service.aggregators.observing_grid",
        # Names of files in the mail, which are to be guessed by nobody and are told to nobody.
        "hub_service.aggregators.mailbox",
        "hub_service.gateway.handlers",
    )
    broken = []
    for module, path in MODULES.items():
        if not within(module, "hub_service") or within(module, *exempt):
            continue
        broken += [f"{module} imports {name}" for name in IMPORTS[module] if tuple(name.split(".")) in CLOCKS]
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and isinstance(node.func.value, ast.Name)
                and (node.func.value.id, node.func.attr) in CLOCKS
            ):
                broken.append(f"{module}:{node.lineno} calls {node.func.value.id}.{node.func.attr}")
    assert not broken


def test_no_catch_all() -> None:
    """A catch-all hides the cause: it must raise again. It ends there only where a researcher's code runs."""
    runs_foreign_code = {
        "federator.node",
        "federator.trial_process",
        "hub_service.aggregators.serverapp",
        "hub_service.aggregators.checkpoint",
    }
    broken = []
    for module, path in MODULES.items():
        if module in runs_foreign_code:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ExceptHandler):
                caught = node.type.elts if isinstance(node.type, ast.Tuple) else [node.type]
                hidden = catches_all(caught) and not isinstance(node.body[-1], ast.Raise)
            else:
                hidden = is_suppress(node) and catches_all(node.args)
            if hidden:
                broken.append(f"{module}:{node.lineno}")
    assert not broken


def is_suppress(node: ast.AST) -> TypeGuard[ast.Call]:
    return isinstance(node, ast.Call) and ast.unparse(node.func) in {"suppress", "contextlib.suppress"}


def catches_all(caught: Sequence[ast.expr | None]) -> bool:
    return any(
        one is None or (isinstance(one, ast.Name) and one.id in {"Exception", "BaseException"}) for one in caught
    )


def test_both_distributions_pin_the_same_flower() -> None:
    def flower(path: Path) -> str:
        dependencies: list[str] = tomllib.loads(path.read_text(encoding="utf-8"))["project"]["dependencies"]
        return next(line for line in dependencies if line.startswith("flwr"))

    assert flower(ROOT / "pyproject.toml") == flower(ROOT / "images" / "singleuser" / "pyproject.toml")


def test_no_unfinished_work_is_left() -> None:
    markers = ("TO" + "DO", "FIX" + "ME", "raise NotImplemented")
    broken = {
        f"{path.relative_to(ROOT)}: {marker}"
        for path in MODULES.values()
        for marker in markers
        if marker in path.read_text(encoding="utf-8")
    }
    assert not broken
