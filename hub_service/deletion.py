"""What belongs to a project, and its deletion from the store. `hub_service.sweeper` removes its files after."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from federator.contract import MemberState

from hub_service.artifacts import Artifacts, fab_name, model_name
from hub_service.audit import AuditLog, Decision
from hub_service.domain.errors import Conflict
from hub_service.domain.projects import AppVersion, Project
from hub_service.domain.runs import Run
from hub_service.store.base import Store

_IN_OR_INVITED = (MemberState.JOINED, MemberState.INVITED)


@dataclass(frozen=True, slots=True)
class Contents:
    """What is lost with a project.

    Attributes:
        members: who are in it or invited, besides its owner.
        sites: those that take part.
        models: how many are kept, of all its runs, with `model_bytes` in all.
    """

    project: Project
    members: tuple[str, ...]
    sites: tuple[str, ...]
    versions: int
    runs: int
    models: int
    model_bytes: int


def contents_of(store: Store, project: Project) -> Contents:
    """Raises Conflict while a run is in flight: what it will leave is not known."""
    runs = store.runs(project.id)
    if any(not run.status.is_final for run in runs):
        raise Conflict("A run of this project is in flight.", "Stop it first, or wait for its end.")
    models = {sha256: size for run in runs for sha256, size in _models(run)}
    members = [one.user for one in store.members(project.id) if one.state in _IN_OR_INVITED]
    sites = [one.site for one in store.participations(project.id) if one.active]
    return Contents(
        project=project,
        members=tuple(user for user in members if user != project.owner),
        sites=tuple(dict.fromkeys(sites)),
        versions=len(store.app_versions(project.id)),
        runs=len(runs),
        models=len(models),
        model_bytes=sum(models.values()),
    )


def delete(contents: Contents, store: Store, artifacts: Artifacts, audit: AuditLog, actor: str) -> None:
    """Delete the project's rows, with a line in the audit log. What its files are is written down first.

    Raises Unavailable, with nothing deleted, where the disk or the database refuses.
    """
    project_id = contents.project.id
    artifacts.note_leaving(project_id, named_by(store.app_versions(project_id), store.runs(project_id)))
    with store.transaction():
        store.delete_project(project_id)
        audit.note(
            actor,
            Decision.PROJECT_DELETED,
            project_id,
            members=str(1 + len(contents.members)),
            sites=str(len(contents.sites)),
            versions=str(contents.versions),
            runs=str(contents.runs),
            models=str(contents.models),
        )


def named_by(versions: Iterable[AppVersion], runs: Iterable[Run]) -> set[str]:
    """The artifacts that these app versions and runs name."""
    models = (sha256 for run in runs for sha256, _ in _models(run))
    return {fab_name(version.fab_hash) for version in versions} | {model_name(sha256) for sha256 in models}


def _models(run: Run) -> Iterator[tuple[str, int]]:
    if run.model_sha256:
        yield run.model_sha256, run.model_size
    for model in run.models:
        yield model.sha256, model.size
