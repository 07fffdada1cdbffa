"""A capsule: one zip that reproduces a run elsewhere, with stock Flower only. It holds the app, the model, the record.

The app's code goes in as it was approved. What is added runs its ServerApp with the replies in the recorded order and
saves the last model: `capsule_files/capsule_run.py`. The files of that folder are texts for the capsule; nothing here
imports them. Data are in none.
"""

from __future__ import annotations

import io
import json
import tomllib
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from importlib.resources import files as package_files
from pathlib import Path
from typing import IO, Any

import tomli_w
from federator.contract import SignedRecord

from hub_service.results.card import model_card, text_of

_FILES = "capsule_files"
_MANIFEST = ".info/"
_HALF = "half"


@dataclass(frozen=True, slots=True)
class Capsule:
    """What goes into one.

    Attributes:
        fab: the approved bundle.
        model: the safetensors file.
        signed: the run's record with the service's signature.
        sites: of the run, in the order in which they take part.
        config: the run's configuration, all of it.
    """

    fab: bytes
    model: Path
    signed: SignedRecord
    sites: tuple[str, ...]
    config: dict[str, Any]

    def write(self, target: IO[bytes]) -> None:
        """Write the zip. Models do not shrink, so they go in as they are."""
        with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
            for path, content in self._texts().items():
                archive.writestr(path, content)
            archive.write(self.model, "model.safetensors", zipfile.ZIP_STORED)

    def _texts(self) -> dict[str, str | bytes]:
        record = self.signed.record
        return {
            "README.md": self._readme(),
            "CARD.md": model_card(record),
            "capsule.json": json.dumps({"sites": self.sites, "config": record["run"]["config"]}, indent=2),
            "signed.json": json.dumps(asdict(self.signed), indent=2),
            "requirements.txt": _requirements(record),
            "reproduce.py": _text("reproduce.py"),
            **{f"app/{path}": content for path, content in self._app().items()},
        }

    def _app(self) -> dict[str, str | bytes]:
        with zipfile.ZipFile(io.BytesIO(self.fab)) as bundle:
            files: dict[str, str | bytes] = {
                path: bundle.read(path) for path in bundle.namelist() if not path.startswith(_MANIFEST)
            }
        approved = files["pyproject.toml"]
        pyproject = tomllib.loads(approved.decode() if isinstance(approved, bytes) else approved)
        app = pyproject["tool"]["flwr"]["app"]
        recorded = _recorded(app["components"]["serverapp"], self.sites, self.signed.record)
        app["components"]["serverapp"] = "capsule_run:app"
        if self.config:
            app["config"] = _nested(self.config)
        if "fab-include" in app:
            app["fab-include"] = [*app["fab-include"], "capsule_run.py", "capsule_recorded.py"]
        return files | {
            "pyproject.toml": tomli_w.dumps(pyproject),
            "approved-pyproject.toml": approved,
            "capsule_run.py": _text("capsule_run.py"),
            "capsule_recorded.py": recorded,
        }

    def _readme(self) -> str:
        record = self.signed.record
        half = record["run"]["wire_precision"] == _HALF
        return _text("README.md").format(
            number=record["run"]["number"],
            project=text_of(record["project"]["name"]),
            count=len(self.sites),
            sites=", ".join(f"`{site}`" for site in self.sites),
            fab_sha256=record["app"]["fab_sha256"],
            round=record["model"]["round"],
            model_sha256=record["model"]["sha256"],
            python=record["software"]["python"],
            arguments=" ".join(f"{site}=<folder>" for site in self.sites),
            supernodes="\n".join(
                f"flower-supernode --insecure --superlink 127.0.0.1:8000 --port {9094 + place}"
                f" --node-config 'dataset-path=\"<folder of {site}>\"'"
                for place, site in enumerate(self.sites)
            ),
            precision="In the recorded run models travelled in half precision; stock Flower sends them as they are, so"
            " the model differs."
            if half
            else "Not here: in the recorded run models travelled as they are.",
        )


def _recorded(serverapp: str, sites: tuple[str, ...], record: Mapping[str, Any]) -> str:
    """What each site reported of its training in the first round, in the order of the sites."""
    first = {one["site"]: one for one in record["rounds"][0]["sites"]} if record["rounds"] else {}
    reports = [(first[site]["train_examples"], first[site]["train"]) if site in first else None for site in sites]
    return (
        '"""What the recorded run knew, for `capsule_run`."""\n\n'
        f"SERVERAPP = {serverapp!r}\nSITES = {sites!r}\n"
        f"# For each site: examples and metrics of its training in the first round.\nFIRST_ROUND = {reports!r}\n"
    )


def _requirements(record: Mapping[str, Any]) -> str:
    """The packages of the recorded run that stock Flower and the app need."""
    pinned = {name: record["software"][name] for name in ("flwr", "numpy", "torch") if name in record["software"]}
    pinned["safetensors"] = version("safetensors")
    return "".join(f"{name}=={_public(number)}\n" for name, number in pinned.items())


def _public(number: str) -> str:
    """Without a local part, such as that of a build for CPUs, which registries do not have."""
    return number.partition("+")[0]


def _nested(config: Mapping[str, Any]) -> dict[str, Any]:
    """Names with dots as nested tables, as they are written in pyproject.toml."""
    nested: dict[str, Any] = {}
    for name, value in config.items():
        *tables, key = name.split(".")
        table = nested
        for one in tables:
            table = table.setdefault(one, {})
        table[key] = value
    return nested


def _text(file: str) -> str:
    return package_files("hub_service.results").joinpath(_FILES, file).read_text(encoding="utf-8")
