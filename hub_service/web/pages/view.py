"""What a project's page shows, in parts: the page puts them together, the event stream sends those that changed."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from federator.contract import ProjectDetail, RunDetail
from markupsafe import Markup

from hub_service.coordinator import Coordinator
from hub_service.domain.errors import Forbidden, NotFound
from hub_service.domain.projects import Principal
from hub_service.domain.sites import runs_supernode
from hub_service.views import SiteNode
from hub_service.web.figures import run_figure, site_titles
from hub_service.web.result_figures import ResultView, result_view
from hub_service.web.steps import project_steps
from hub_service.web.templating import Templates

SECTIONS = ("next", "runs", "rounds", "result", "participants", "versions")


@dataclass(frozen=True, slots=True)
class ProjectView:
    """A project as one person sees it now, with the run that the page is about."""

    project: ProjectDetail
    run: RunDetail | None
    titles: Mapping[str, str]  # of the run's sites
    figure: dict[str, Any] | None
    result: ResultView | None  # None without a run
    datasets: tuple[str, ...]  # of the person's own site
    site_title: str  # "" where the person has none
    isolates: bool  # False where the person's own site isolates nothing
    has_server: bool  # False where the person's own site has no notebook servers
    nodes: Mapping[str, SiteNode]  # SuperNodes of sites without notebook servers, by participation


@dataclass(frozen=True, slots=True)
class Section:
    html: Markup
    digest: str  # tells whether the browser shows it already


def project_view(
    coordinator: Coordinator, principal: Principal, project_id: str, run_id: str = "", metric: str = ""
) -> ProjectView:
    """The view of a project with its newest run, or with the run and the metric that were chosen.

    Raises NotFound for a project or a run that does not exist or is not the person's to see.
    """
    project = coordinator.project(principal, project_id)
    run = _run(coordinator, principal, project, run_id)
    titles = site_titles(project.participants, run.sites if run else ())
    try:
        site = coordinator.my_site(principal)
    except Forbidden:
        site = None
    return ProjectView(
        project=project,
        run=run,
        titles=titles,
        figure=run_figure(run, titles, metric) if run else None,
        result=result_view(run, titles) if run else None,
        datasets=tuple(one.name for one in site.datasets) if site else (),
        site_title=site.title if site else "",
        isolates=site.isolates if site else True,
        has_server=not runs_supernode(site),
        nodes={node.participation_id: node for node in coordinator.project_nodes(principal, project_id)},
    )


def _run(coordinator: Coordinator, principal: Principal, project: ProjectDetail, run_id: str) -> RunDetail | None:
    ids = [run.id for run in project.runs]
    if run_id and run_id not in ids:
        raise NotFound("There is no such run in this project.", "See the project's list of runs.")
    return coordinator.run(principal, run_id or ids[0]) if ids else None


def render_sections(templates: Templates, view: ProjectView, **frame: Any) -> dict[str, Section]:
    """Every section's HTML.

    Args:
        frame: `hub`, the Hub's prefix; `xsrf`, the token for forms; `address`, where a SuperNode dials; `kept`, what
            was put into a form that was refused.
    """
    rendered = {}
    steps = project_steps(view.project)
    for name in SECTIONS:
        html = templates.render(f"sections/{name}.html", {"view": view, "steps": steps, **frame})
        rendered[name] = Section(Markup(html), hashlib.sha256(html.encode()).hexdigest()[:16])  # noqa: S704 - escaped by Jinja
    return rendered
