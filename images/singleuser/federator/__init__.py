"""Notebook Federator: federated projects from your own notebook. See `federator.notebook`.

The kernel manager, the provisioner and `federator.contract` are imported by servers that have no use for the notebook
API; it is loaded when it is first asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from federator.authoring import Preview, Trial, TrialFailed, preview, publish, try_here
    from federator.notebook import Project, Run, RunFailed, compare, load_model, project, projects
    from federator.service_client import ServiceError
    from federator.starter_notebooks import starter, starters

__all__ = [
    "Preview",
    "Project",
    "Run",
    "RunFailed",
    "ServiceError",
    "Trial",
    "TrialFailed",
    "compare",
    "load_model",
    "preview",
    "project",
    "projects",
    "publish",
    "starter",
    "starters",
    "try_here",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'federator' has no attribute {name!r}")
    if name == "ServiceError":
        from federator.service_client import ServiceError

        return ServiceError
    if name in ("starter", "starters"):
        from federator import starter_notebooks

        return getattr(starter_notebooks, name)
    if name in ("Preview", "Trial", "TrialFailed", "preview", "publish", "try_here"):
        from federator import authoring

        return getattr(authoring, name)
    from federator import notebook

    return getattr(notebook, name)


def __dir__() -> list[str]:
    return __all__
