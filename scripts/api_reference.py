"""Write docs/api.md, the reference of what a notebook can call, from the docstrings of `federator`: `make docs`.

usage: api_reference.py [FILE]
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import federator
import griffe
from griffe2md import ConfigDict, render_object_docs

PAGE = Path(__file__).resolve().parent.parent / "docs" / "api.md"
HEAD = """# What a notebook can call

Made from the docstrings by `make docs`. In a notebook, after `import federator`, `federator.publish?` says the same.
[The tutorial](tutorial-researcher.md) shows it at work.

"""
STYLE = ConfigDict(
    docstring_section_style="list",
    heading_level=2,
    show_root_full_path=False,
    show_object_full_path=False,
    show_signature_annotations=True,
    show_if_no_docstring=False,
    signature_crossrefs=False,
    annotations_path="brief",
    filters=["!^_"],
    summary=False,
    members_order="source",
    inherited_members=False,
)
# Most of them lead to types that the page does not have.
_CROSS_REFERENCE = re.compile(r"\[([\w.]+)\]\(#[\w.]+\)")


def reference() -> str:
    """The page's text: functions first, then classes, each as `federator` names it."""
    package = griffe.load("federator", docstring_parser="google", resolve_aliases=True, allow_inspection=False)
    objects = [package[_home_of(name)] for name in federator.__all__]
    objects.sort(key=lambda one: (one.is_class, one.name))
    return HEAD + "\n".join(_rendered(one).strip() + "\n" for one in objects)


def _home_of(name: str) -> str:
    found = getattr(federator, name)
    return f"{found.__module__.removeprefix('federator.')}.{name}"


def _rendered(found: griffe.Object) -> str:
    text: str = render_object_docs(found, STYLE, format_md=False)
    plain = _CROSS_REFERENCE.sub(r"\1", text).replace(f"`{found.canonical_path}.", f"`{found.name}.")
    return re.sub(r"</?code>", "`", plain)


if __name__ == "__main__":
    page = Path(sys.argv[1]) if len(sys.argv) > 1 else PAGE
    page.write_text(reference(), encoding="utf-8")
