from __future__ import annotations

from datetime import UTC, datetime

import pytest

from hub_service.domain.packages import Needs, SitePackages, lacking, lacks_text

AT_SITE = SitePackages(
    "a",
    {"numpy": "2.1.0", "scikit-learn": "1.8.0", "Flower_Thing": "1.0rc1", "odd": "not a version"},
    ("numpy", "sklearn"),
    "anna",
    datetime(2026, 3, 1, tzinfo=UTC),
)


@pytest.mark.parametrize(
    ("requirements", "modules", "missing"),
    [
        ((), ("numpy", "json", "sklearn"), ()),
        (("numpy>=2", "scikit_learn"), ("numpy",), ()),
        (("lifelines>=0.27",), ("lifelines",), ("lifelines>=0.27",)),
        ((), ("lifelines", "numpy"), ("lifelines",)),
        (("numpy<2",), (), ("numpy<2 (it has 2.1.0)",)),
        (("flower-thing>=1.0rc1",), (), ()),
        (("odd>=1",), (), ("odd>=1 (it has not a version)",)),
        (('winreg; sys_platform == "win32"',), (), ()),
    ],
)
def test_what_a_site_lacks(requirements: tuple[str, ...], modules: tuple[str, ...], missing: tuple[str, ...]) -> None:
    assert lacking(Needs(requirements, modules), AT_SITE) == missing


def test_the_text_says_what_to_do() -> None:
    text = lacks_text("Hospital B", ["lifelines"])
    assert text.startswith("Hospital B's image has no lifelines: no run includes it. Ask its admin")
