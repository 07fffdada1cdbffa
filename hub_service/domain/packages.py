"""What a site's notebook servers can import, and what of an app's needs they lack. Pure data."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache

from packaging.requirements import Requirement
from packaging.utils import NormalizedName, canonicalize_name
from packaging.version import InvalidVersion, Version


@dataclass(frozen=True, slots=True)
class SitePackages:
    """The newest report of one of the site's notebook servers.

    Attributes:
        distributions: version by name, as installed.
        modules: top-level modules that they bring; those of the standard library are not listed.
    """

    site: str
    distributions: dict[str, str]
    modules: tuple[str, ...]
    reported_by: str
    reported_at: datetime


@dataclass(frozen=True, slots=True)
class Needs:
    """What an app version declares or imports.

    Attributes:
        requirements: PEP 508, checked when the version was built.
        modules: top-level modules that its code imports.
    """

    requirements: tuple[str, ...]
    modules: tuple[str, ...]


def lacking(needs: Needs, packages: SitePackages) -> tuple[str, ...]:
    """The requirements and modules that the site has not, each as the app names it; what is there in another version
    with that version. Empty where all is there."""
    versions = {canonicalize_name(name): version for name, version in packages.distributions.items()}
    named = [text for one in needs.requirements if (text := _missing(_requirement(one), versions))]
    required = {canonicalize_name(_requirement(one).name) for one in needs.requirements}
    there = sys.stdlib_module_names | set(packages.modules)
    modules = [name for name in needs.modules if name not in there and canonicalize_name(name) not in required]
    return (*named, *modules)


def lacks_text(site_title: str, missing: Iterable[str]) -> str:
    """For whoever waits for the site: what it lacks, and what to do."""
    return (
        f"{site_title}'s image has no {', '.join(missing)}: no run includes it. Ask its admin to add that to the "
        "image, or publish a version without it."
    )


@lru_cache(maxsize=1024)
def _requirement(text: str) -> Requirement:
    return Requirement(text)


def _missing(requirement: Requirement, versions: Mapping[NormalizedName, str]) -> str:
    if requirement.marker is not None and not requirement.marker.evaluate():
        return ""
    version = versions.get(canonicalize_name(requirement.name))
    if version is None:
        return str(requirement)
    try:
        fits = requirement.specifier.contains(Version(version), prereleases=True)
    except InvalidVersion:
        fits = False
    return "" if fits else f"{requirement} (it has {version})"
