"""Notebook Federator: federated projects from your own notebook. See `federator.notebook`.

The kernel manager, the provisioner and `federator.contract` are imported by servers that have no use for the notebook
API; it is loaded when it is first asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from federator.notebook import Project, Run, RunFailed, project, projects, publish
    from federator.service_client import ServiceError

__all__ = ["Project", "Run", "RunFailed", "ServiceError", "project", "projects", "publish"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'federator' has no attribute {name!r}")
    if name == "ServiceError":
        from federator.service_client import ServiceError

        return ServiceError
    from federator import notebook

    return getattr(notebook, name)


def __dir__() -> list[str]:
    return __all__
