"""The catalogue of sites: what the Hub's administrator declares under `[sites.<slug>]` in the deployment file.

A kind of site is a pydantic model told apart by its `kind`; a new kind is one more model in `Site`.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from spawner.tables import ExistingFolder, RelativePath, Slug, Table, Text


class Dataset(Table):
    """`[sites.<slug>.datasets.<name>]`: a folder of a site that notebooks may read."""

    title: Text
    description: str = ""
    path: ExistingFolder


class SiteTable(Table):
    """What every kind of site declares."""

    title: Text
    contact: Text
    datasets: dict[Slug, Dataset] = Field(default_factory=dict)


class EmbeddedSite(SiteTable):
    """A site whose servers are processes of the Hub's own machine and account. It isolates nothing.

    Attributes:
        work_dir: each of the site's users has a home folder below it. Made when the first of them starts a server.
    """

    kind: Literal["embedded"]
    work_dir: RelativePath

    @property
    def isolates(self) -> bool:
        """Whether the site's users are kept from each other, from other sites and from the Hub's files."""
        return False


Site = Annotated[EmbeddedSite, Field(discriminator="kind")]
