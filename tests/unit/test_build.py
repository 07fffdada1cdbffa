"""What is handed in becomes a Flower App Bundle, or is refused with what is wrong and where."""

from __future__ import annotations

import hashlib
import io
import stat
import tomllib
import zipfile
from collections.abc import Mapping

import pytest
from flwr.cli.build import build_fab_from_files
from flwr.supercore.utils import is_valid_name

from hub_service.apps.build import AppBuilder
from hub_service.domain.errors import FederationError, Invalid, TooLarge
from tests.fakes.notebooks import federated, mean_notebook

PYPROJECT = """
[project]
name = "mean-app"
version = "1.0.0"

[tool.flwr.app]
publisher = "st-anna"

[tool.flwr.app.components]
serverapp = "mean.server:app"
clientapp = "mean.client:app"

[tool.flwr.app.config]
num-server-rounds = 3
nested.rate = 0.5
"""
APP = {
    "pyproject.toml": PYPROJECT.encode(),
    "mean/__init__.py": b"",
    "mean/server.py": b"import flwr\nfrom mean import shared\napp = flwr\n",
    "mean/client.py": b"import numpy as np\nfrom . import shared\napp = np\n",
    "mean/shared.py": b"",
}

builder = AppBuilder(frozenset({"numpy"}))


def zipped(files: Mapping[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for path, data in files.items():
            archive.writestr(path, data)
    return buffer.getvalue()


def with_entry(entry: zipfile.ZipInfo, data: bytes = b"") -> bytes:
    """The app's zip file with one entry more."""
    buffer = io.BytesIO(zipped(APP))
    with zipfile.ZipFile(buffer, "a") as archive:
        archive.writestr(entry, data)
    return buffer.getvalue()


def with_pyproject(before: str, after: str) -> bytes:
    assert before in PYPROJECT
    return zipped({**APP, "pyproject.toml": PYPROJECT.replace(before, after).encode()})


def refusal(content: bytes, filename: str = "app.zip") -> str:
    with pytest.raises(FederationError) as caught:
        builder.build(filename, content)
    assert caught.value.next_step
    return caught.value.message


# --- notebooks


def test_a_notebook_becomes_a_plain_flower_app():
    app = builder.build("Breast aspirates.ipynb", mean_notebook())
    assert (app.title, app.source) == ("Breast aspirates", "notebook")
    assert app.fab_hash == hashlib.sha256(app.fab).hexdigest()
    assert [cell.number for cell in app.cells] == [1, 2, 3, 4]
    assert app.imports == ("numpy", "pathlib")
    assert app.config == {
        "num-server-rounds": 4,
        "local-epochs": 1,
        "learning-rate": 0.01,
        "seed": 1,
        "step": 0.5,
    }
    files = {file.path: file.text for file in app.files}
    assert set(files) == {
        "pyproject.toml",
        "federated_breast_aspirates/__init__.py",
        "federated_breast_aspirates/client_app.py",
        "federated_breast_aspirates/server_app.py",
        "federated_breast_aspirates/strategies.py",
        "federated_breast_aspirates/task.py",
        "federated_breast_aspirates/notebook.py",
    }
    for cell in app.cells:
        assert f"# --- cell {cell.number} ---\n{cell.source}\n" in files["federated_breast_aspirates/notebook.py"]
    assert not any("hub_service" in text or "federator" in text for text in files.values())


def test_the_same_notebook_gives_the_same_bytes_and_another_does_not():
    first = builder.build("mean.ipynb", mean_notebook())
    assert builder.build("mean.ipynb", mean_notebook()).fab == first.fab
    assert builder.build("mean.ipynb", mean_notebook("other = 1")).fab_hash != first.fab_hash


@pytest.mark.parametrize(
    ("filename", "title", "name"),
    [
        ("mean.ipynb", "mean", "mean"),
        ("torch.IPYNB", "torch", "torch"),
        ("Étude n° 3 (final).ipynb", "Étude n° 3 (final)", "etude-n-3-final"),
        ("../../etc/passwd.ipynb", "passwd", "passwd"),
        ("C:\\work\\model.ipynb", "model", "model"),
        ("2026.ipynb", "2026", "notebook-2026"),
        ("研究.ipynb", "研究", "notebook"),
        ("<b>x</b>\n.ipynb", "b>", "b"),
        ("", "notebook", "notebook"),
        ("x" * 300 + ".ipynb", "x" * 100, "x" * 32),
    ],
)
def test_the_file_name_gives_the_title_and_a_name_that_flower_takes(filename, title, name):
    app = builder.build(filename, mean_notebook())
    assert app.title == title
    pyproject = next(file.text for file in app.files if file.path == "pyproject.toml")
    assert tomllib.loads(pyproject)["project"]["name"] == name
    assert is_valid_name(name)[0]


DEEP = ".a" * 900


@pytest.mark.parametrize(
    ("filename", "content"),
    [
        ("a.ipynb", mean_notebook("x = " + "1 + " * 600 + "1")),
        ("a.ipynb", mean_notebook(f"x = 1\nx{DEEP}.to('cuda')")),
        ("a.ipynb", mean_notebook(f"def strategy(config, *, x=x{DEEP}, y): ...")),
        ("a.zip", with_pyproject("nested.rate = 0.5", f"rate = {'[' * 3000}{']' * 3000}")),
        ("a.zip", with_pyproject("nested.rate = 0.5", f"{'.'.join('a' * 3000)} = 1")),
    ],
)
def test_what_is_nested_too_deeply_to_be_checked_is_refused(filename, content):
    assert "nested too deeply" in refusal(content, filename)


def test_a_first_line_cannot_change_the_encoding_of_the_exported_cells():
    functions = "def build_model(): ...\ndef load_data(path, config): ...\n" + "".join(
        f"def {name}(model, data, config): ...\n" for name in ("train", "evaluate")
    )
    app = builder.build("mean.ipynb", federated("# -*- coding: utf-7 -*-\n" + functions))
    module = next(file.text for file in app.files if file.path.endswith("notebook.py"))
    assert not any("coding" in line for line in module.splitlines()[:2])


def test_what_is_neither_notebook_nor_zip_is_refused():
    assert "no Jupyter notebook" in refusal(b"hello", "hello.txt")
    assert "no Jupyter notebook" in refusal(b"", "empty.ipynb")
    assert "no zip archive" in refusal(b"hello", "hello.zip")
    assert "no zip archive" in refusal(b"", "empty.fab")


# --- Flower apps


@pytest.mark.parametrize(
    "files",
    [
        APP,
        {"mean-app/": b"", **{f"mean-app/{path}": data for path, data in APP.items()}},
        {
            **{f"mean-app/{path}": data for path, data in APP.items()},
            "mean-app/.DS_Store": b"x",
            "__MACOSX/mean-app/._x": b"x",
        },
    ],
    ids=["flat", "in a folder", "zipped by macOS"],
)
def test_a_zipped_flower_app_is_taken_as_it_is(files):
    app = builder.build("anything.bin", zipped(files))
    assert (app.title, app.source, app.cells) == ("mean-app", "fab", ())
    assert {file.path for file in app.files} == set(APP)
    assert app.imports == ("flwr", "numpy")
    assert app.config == {"num-server-rounds": 3, "nested.rate": 0.5}
    assert app.fab == builder.build("app.zip", zipped(APP)).fab


def test_a_fab_keeps_its_exact_bytes():
    fab, _ = build_fab_from_files(APP)
    fab = repacked(fab)  # other bytes than Flower would write, the same content
    app = builder.build("st-anna.mean-app.1-0-0.0123abcd.fab", fab)
    assert app.fab == fab
    assert app.fab_hash == hashlib.sha256(fab).hexdigest()
    assert ".info/CONTENT" not in {file.path for file in app.files}


def repacked(fab: bytes, changed: Mapping[str, bytes] | None = None) -> bytes:
    with zipfile.ZipFile(io.BytesIO(fab)) as archive:
        files = {entry.filename: archive.read(entry) for entry in archive.infolist()}
    return zipped({**files, **(changed or {})}, zipfile.ZIP_STORED)


def test_a_fab_whose_list_of_files_is_wrong_is_refused():
    fab, _ = build_fab_from_files(APP)
    assert "“mean/shared.py”" in refusal(repacked(fab, {"mean/shared.py": b"import os"}))
    assert "“mean/unlisted.py”" in refusal(repacked(fab, {"mean/unlisted.py": b"import os"}))
    assert "does not agree" in refusal(repacked(fab, {".info/CONTENT": b"\xff\xfe"}))


def test_a_fab_over_flowers_limit_is_refused():
    fab, _ = build_fab_from_files(APP)
    with pytest.raises(TooLarge, match="limit of 10 MB"):
        builder.build("app.fab", repacked(fab, {"weights.bin": b"\1" * (11 * 1024 * 1024)}))


def test_a_file_that_is_no_text_is_shown_by_its_hash():
    fab, _ = build_fab_from_files(APP)
    data = b"\xff\x00weights"
    with zipfile.ZipFile(io.BytesIO(fab)) as archive:
        listed = archive.read(".info/CONTENT")
    line = f"\nweights.bin,{hashlib.sha256(data).hexdigest()},{8 * len(data)}".encode()
    app = builder.build("app.fab", repacked(fab, {"weights.bin": data, ".info/CONTENT": listed + line}))
    shown = next(file.text for file in app.files if file.path == "weights.bin")
    assert hashlib.sha256(data).hexdigest() in shown


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (zipped({}), "has no pyproject.toml"),
        (zipped({"a/x.py": b"", "b/pyproject.toml": b""}), "has no pyproject.toml"),
        (zipped({**APP, "pyproject.toml": b"= ["}), "pyproject.toml cannot be read"),
        (zipped({**APP, "pyproject.toml": b"\xff\xfe"}), "pyproject.toml cannot be read"),
        (zipped({**APP, "pyproject.toml": b"project = 3"}), "has no section [project]"),
        (with_pyproject("[tool.flwr.app]\npublisher", "[tool.other]\npublisher"), "gives no “publisher”"),
        (with_pyproject("[tool.flwr.app.components]", "[tool.other]"), "has no section [tool.flwr.app.components]"),
        (with_pyproject('name = "mean-app"', "name = 3"), "gives no “name” in [project]"),
        (with_pyproject('version = "1.0.0"', ""), "gives no “version” in [project]"),
        (
            with_pyproject('publisher = "st-anna"', 'publisher = "../../root"'),
            "tool.flwr.app.publisher may have letters",
        ),
        (with_pyproject('version = "1.0.0"', 'version = "1/../../x"'), "project.version may have letters"),
        (with_pyproject('name = "mean-app"', 'name = "mean_app"'), "Flower does not take this app"),
        (with_pyproject("nested.rate = 0.5", "rates = [1, 2]"), "[tool.flwr.app.config] may hold"),
        (with_pyproject("nested.rate = 0.5", "nested.rate = inf"), "[tool.flwr.app.config] gives “nested.rate” inf"),
        (with_pyproject("nested.rate = 0.5", "rate = -nan"), "[tool.flwr.app.config] gives “rate” nan"),
        (with_pyproject("nested.rate = 0.5", f"rate = {2**63}"), "gives “rate” a number of more than 64 bits"),
        (with_pyproject("[tool.flwr.app.config]\nnum-server-rounds = 3\nnested.rate = 0.5", ""), ""),
        (with_pyproject('"mean.server:app"', '"mean.server"'), "serverapp “mean.server” is not of the form"),
        (with_pyproject('"mean.server:app"', '"../evil:app"'), "is not of the form"),
        (with_pyproject('"mean.client:app"', '"mean.gone:app"'), "has no mean/gone.py"),
        (with_pyproject('"mean.client:app"', '"mean.client:main"'), "mean/client.py defines no “main”"),
        (zipped({**APP, "mean/client.py": b"app = (\n"}), "mean/client.py, line 1"),
        (zipped({**APP, "mean/client.py": b"app = '\xff'"}), "mean/client.py is not UTF-8"),
        (
            zipped({**APP, "mean/x.py": b"# coding: utf-7\n# +AAo-import os\n"}),
            "mean/x.py says in its first lines that",
        ),
        (zipped({**APP, "mean/x.py": b"# coding: unheard-of\n"}), "mean/x.py, line 1: unknown encoding"),
        (zipped({**APP, "/".join("abcdefghijkl") + "/x.py": b""}), "Flower does not take this app"),
    ],
)
def test_an_app_that_flower_would_only_fail_on_later_is_refused(content, reason):
    if not reason:  # an app may do without a configuration
        assert builder.build("app.zip", content).config == {}
    else:
        assert reason in refusal(content)


def link() -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo("mean/link.py")
    entry.external_attr = (stat.S_IFLNK | 0o777) << 16
    return entry


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (zipped(APP)[:-30], "no zip archive, or it is damaged"),
        (b"PK\x03\x04" + b"\0" * 100, "no zip archive, or it is damaged"),
        (zipped({**APP, "../evil.py": b""}), "“../evil.py” leads out of the app's folder"),
        (zipped({**APP, "mean/../../evil.py": b""}), "leads out of the app's folder"),
        (zipped({**APP, "/etc/evil.py": b""}), "“/etc/evil.py” leads out"),
        (zipped({**APP, "mean//evil.py": b""}), "leads out"),
        (zipped({**APP, "C:/evil.py": b""}), "has a character that an app cannot have"),
        (zipped({**APP, "..\\evil.py": b""}), "has a character that an app cannot have"),
        (zipped({**APP, "a,b.py": b""}), "has a character that an app cannot have"),
        (zipped({**APP, "a\nb.py": b""}), "“a?b.py” has a character"),
        (with_entry(link(), b"/etc/passwd"), "“mean/link.py” is a link"),
        (zipped({**APP, **{f"f{number}.py": b"" for number in range(1000)}}), "at most 1000 are taken"),
    ],
)
def test_a_zip_file_that_could_do_harm_is_refused(content, reason):
    assert reason in refusal(content)


def test_a_zip_bomb_is_refused_without_unpacking_it():
    with pytest.raises(TooLarge, match=r"unpacks to 30\.0 MB"):
        builder.build("bomb.zip", zipped({**APP, "zeros.json": b"0" * (30 * 1024 * 1024)}))
    with pytest.raises(TooLarge, match="times its size"):
        builder.build("bomb.zip", zipped({**APP, "zeros.json": b"0" * (2 * 1024 * 1024)}))


def test_an_upload_over_the_limit_is_refused():
    with pytest.raises(TooLarge, match=r"has 21\.0 MB"):
        builder.build("app.zip", b"PK" + b"\0" * (21 * 1024 * 1024 - 2))


def test_an_entry_that_is_there_twice_is_refused():
    with pytest.warns(UserWarning, match="Duplicate name"):
        content = with_entry(zipfile.ZipInfo("mean/shared.py"), b"import os")
    assert "“mean/shared.py” twice" in refusal(content)


def patched(content: bytes, before: bytes, after: bytes) -> bytes:
    assert before in content
    assert len(before) == len(after)
    return content.replace(before, after)


def test_names_that_are_not_utf8_are_refused():
    plain = with_entry(zipfile.ZipInfo("caf_.py"))
    assert "not UTF-8" in refusal(patched(plain, b"caf_.py", b"caf\xe9.py"))
    flagged = with_entry(zipfile.ZipInfo("café.py"))
    assert "no zip archive, or it is damaged" in refusal(patched(flagged, "café.py".encode(), b"caf\xff\xff.py"))
    assert builder.build("app.zip", flagged).fab


def test_an_encrypted_or_oddly_packed_entry_is_refused():
    content = bytearray(zipped(APP))
    directory = content.index(b"PK\x01\x02")
    encrypted = bytearray(content)
    encrypted[directory + 8] |= 1
    assert "encrypted" in refusal(bytes(encrypted))
    odd = bytearray(content)
    odd[directory + 10] = 99
    assert "damaged" in refusal(bytes(odd))


def test_damaged_content_is_refused():
    content = zipped({**APP, "notes.md": b"a sentence to be damaged"}, zipfile.ZIP_STORED)
    with pytest.raises(Invalid, match="damaged"):
        builder.build("app.zip", patched(content, b"a sentence to be damaged", b"A SENTENCE to be damaged"))
