"""What a steward is pointed to in an app's code."""

from __future__ import annotations

import ast
from collections.abc import Iterator

import pytest
from federator.contract import AppReview, AppVersion, Cell, SourceFile

from hub_service.apps import findings
from hub_service.apps.findings import MOST_CALLS, MOST_LOOKED_THROUGH, CallFinding, Origin, Reach, find

VERSION = AppVersion(1, "f" * 64, "lungs", "notebook", "anna", "2026-11-23T12:00:00+00:00", 100)


def review(*cells: str, imports: tuple[str, ...] = ()) -> AppReview:
    return AppReview(VERSION, tuple(Cell(place, source) for place, source in enumerate(cells, 2)), (), imports)


def files_in(*cells: str) -> list[CallFinding]:
    return list(find(review(*cells), None).files)


def test_imports_are_told_apart_and_flagged_in_words() -> None:
    found = find(review("x = 1", imports=("math", "socket", "subprocess", "torch", "exotic")), {"torch"}).imports
    assert [(one.module, one.origin, one.warning) for one in found] == [
        ("math", Origin.STANDARD, ""),
        ("socket", Origin.STANDARD, "can open network connections"),
        ("subprocess", Origin.STANDARD, "can start other programs"),
        ("torch", Origin.INSTALLED, ""),
        ("exotic", Origin.MISSING, ""),
    ]
    assert find(review("x = 1", imports=("torch",)), None).imports[0].origin is Origin.UNKNOWN


@pytest.mark.parametrize(
    ("call", "what"),
    [
        ("open(path + '/x.csv')", "opens a file"),
        ("pd.read_csv(file)", "reads a file"),
        ("np.load(file)", "reads or writes a file"),
        ("(Path(path) / 'x').read_text()", "reads a file"),
        ("load(open(path))", "opens a file"),
        ("ImageFolder(root=folder)", "reads a folder of images"),
        ("os.listdir(folder)", "lists a folder"),
        ("[one for one in Path(folder).glob('*')]", "lists files"),
    ],
)
def test_what_comes_from_the_datasets_folder_is_known(call: str, what: str) -> None:
    cell = (
        "import os\nimport numpy as np\nimport pandas as pd\nfrom pathlib import Path\n"
        "from torchvision.datasets import ImageFolder\n"
        "def load_data(path, config):\n"
        "    folder = os.path.join(path, 'train')\n"
        "    for file in sorted(os.scandir(folder)):\n"
        f"        {call}\n"
    )
    found = next(one for one in files_in(cell) if one.line == 9)
    assert (found.place, found.what, found.reach) == ("cell 2", what, Reach.DATASET)


def test_what_a_function_of_another_cell_opens_is_unclear_or_outside() -> None:
    found = files_in(
        "from pathlib import Path\ndef read(place):\n    return open(place)\n",
        "open('/etc/passwd')\nPath('/root').iterdir()\nopen(f'../{secret}')\n",
    )
    assert [(one.place, one.line, one.reach) for one in found] == [
        ("cell 2", 3, Reach.UNCLEAR),
        ("cell 3", 1, Reach.OUTSIDE),
        ("cell 3", 2, Reach.OUTSIDE),
        ("cell 3", 3, Reach.UNCLEAR),
    ]


def test_names_imported_in_one_cell_are_known_in_the_next() -> None:
    found = find(
        review("from subprocess import run as quick\nimport requests", "quick(['ls'])\nrequests.post(u)"), None
    )
    assert [(one.place, one.line, one.what) for one in found.others] == [
        ("cell 3", 1, "starts a program"),
        ("cell 3", 2, "opens a network connection"),
    ]


@pytest.mark.parametrize(
    ("code", "what"),
    [
        ("eval('1')", "runs text as code"),
        ("__import__(name)", "imports by a name that is worked out"),
        ("import os\nos.system('ls')", "starts a program"),
        ("import os\nos.environ.get('TOKEN')", "reads the environment"),
        ("import socket\nsocket.socket()", "opens a network connection"),
        ("import ctypes\nctypes.CDLL('x')", "calls machine code"),
    ],
)
def test_calls_to_look_at(code: str, what: str) -> None:
    (found,) = find(review(code), None).others
    assert found.what == what


def test_a_flower_app_is_looked_through_file_by_file() -> None:
    files = (
        SourceFile("app/a.py", "from os import system as s\ns('ls')\n"),
        SourceFile("app/b.py", "s('ls')\n"),
        SourceFile("app/c.py", "def broken(:\n"),
        SourceFile("README.md", "open('x')"),
        SourceFile("app/d.py", "def f(context):\n    open(context.node_config['dataset-path'])\n"),
    )
    found = find(AppReview(VERSION, (), files, ()), None)
    assert [(one.place, one.line) for one in found.others] == [("app/a.py", 2)]
    assert [(one.place, one.reach) for one in found.files] == [("app/d.py", Reach.DATASET)]
    assert found.unread == ("app/c.py",)


def test_long_calls_are_shortened_and_ordinary_ones_are_not_named() -> None:
    (found,) = files_in(f"open('{'x ' * 200}')")
    assert len(found.code) <= 100
    assert files_in("model(x)\nf()()\nd['open']('x')\nself.open = 1") == []


def test_names_are_followed_without_looking_at_the_text_again_and_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each name is made from the one in the next line, which was looked at once for every line."""
    walked = 0

    def counted(node: ast.AST) -> Iterator[ast.AST]:
        nonlocal walked
        for one in ast_walk(node):
            walked += 1
            yield one

    ast_walk = ast.walk
    monkeypatch.setattr(findings.ast, "walk", counted)
    names = "\n".join(f"a{place + 1} = a{place}" for place in reversed(range(300)))
    (found,) = files_in(f"{names}\nopen(a300)\ndef load_data(path):\n    a0, b = path, 1\n")
    assert found.reach is Reach.DATASET
    assert walked < 20_000


def test_what_is_too_much_is_said_and_not_looked_at() -> None:
    found = find(review("\n".join(f"open('{place}')" for place in range(MOST_CALLS + 7)), "eval('1')"), None)
    assert (len(found.files), len(found.others), found.more) == (MOST_CALLS, 0, 8)
    files = (SourceFile("a.py", "#" * MOST_LOOKED_THROUGH), SourceFile("b.py", "open('x')"))
    long = find(AppReview(VERSION, (), files, ()), None)
    assert (long.files, long.unread) == ((), ("b.py",))


def test_a_call_that_is_nested_too_deeply_is_not_read() -> None:
    found = find(review(f"open(x{'.a' * 900})", "open('x')"), None)
    assert found.unread == ("cell 2",)
    assert [one.place for one in found.files] == ["cell 3"]


def test_characters_that_nobody_sees_are_pointed_at() -> None:
    found = find(review("x = 1\ny = 2 # \u202e } \u2066if admin\u2069", "open('a\u200bb')"), None)
    assert [(one.place, one.line, one.what, one.code) for one in found.others] == [
        ("cell 2", 2, "holds a character that is not seen", "y = 2 # [U+202E] } [U+2066]if admin[U+2069]"),
        ("cell 3", 1, "holds a character that is not seen", "open('a[U+200B]b')"),
    ]
    assert find(review("# größe, 中, שלום, 😀\nif x:\n\tx = 1"), None).others == ()
