"""What came out of a run, in a notebook: tables with intervals, models, card, signature, capsule, MLflow.

`federator.notebook.Run` is a `RunResults`. The code of an app is imported here only where its model is loaded.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import io
import json
import math
import statistics
import struct
import tempfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from federator import service_client as api
from federator.app_import import forget, import_attribute
from federator.contract import ModelFile, RunDetail, RunResult, Score, SignedRecord
from federator.display import main_metric
from federator.trial import Plan, TrialResult, try_app

POOLED = "pooled"
LAST, BEST = "last", "best"
_APPROVED_PYPROJECT = "approved-pyproject.toml"
_ADDED = ("capsule_run.py", "capsule_recorded.py", _APPROVED_PYPROJECT)  # to the approved app, in a capsule
_SHARES = ("accuracy",)
_DRAWS = 1000
_TAILS = (2.5, 97.5)  # percentiles
_DTYPES = {
    "BOOL": "?",
    "U8": "<u1",
    "I8": "<i1",
    "I16": "<i2",
    "U16": "<u2",
    "I32": "<i4",
    "U32": "<u4",
    "I64": "<i8",
    "U64": "<u8",
    "F16": "<f2",
    "F32": "<f4",
    "F64": "<f8",
}

T = TypeVar("T")
Row = dict[str, Any]


class HeatMap:
    """A run's models by one metric: shows itself as a Plotly figure, or as its sentence."""

    def __init__(self, result: RunResult) -> None:
        self.metric = result.metric
        self.metrics = result.metrics
        self.conclusion = result.conclusion
        self.figure = result.figure

    def _repr_mimebundle_(self, **_: Any) -> dict[str, Any]:
        shown: dict[str, Any] = {"text/plain": repr(self)}
        if self.figure is not None:
            shown["application/vnd.plotly.v1+json"] = self.figure
        return shown

    def __repr__(self) -> str:
        return self.conclusion or "No comparison: it is made at the end of a run that was started with compare=True."


class RunResults:
    """The results of one run. `federator.notebook.Run` adds what is live."""

    id: str

    @property
    def detail(self) -> RunDetail:
        raise api.Refused("This run has nothing to show.")

    def _call(self, request: api.Request[T]) -> T:
        raise api.Refused("This run has nobody to ask.")

    def heat_map(self, metric: str = "") -> HeatMap:
        """Each model on each site's test data and on all: the figure of the project's page."""
        return HeatMap(self._call(api.get_run_result(self.id, metric)))

    def compare(self, metric: str = "", pooled: str | Path | None = None) -> Any:
        """A pandas DataFrame: each model on each site's test data and on all, with 95 % intervals.

        Args:
            metric: one of the app's metrics; by default the accuracy, or what comes next to it.
            pooled: a folder in the form of a site's, with data that were pooled by other means. The same app is trained
                on it here, with the run's configuration; it is the row "pooled", scored on the folder's own test data.

        Raises:
            Refused: the run has no comparison or no such metric, or pandas is not installed.
            TrialFailed: the app failed on the pooled data.
        """
        pandas = _pandas()
        chosen, rows = _rows(self.detail, metric)
        if pooled is not None:
            rows.append(_pooled_row(self._train_here(Path(pooled)), chosen, self.id))
        return pandas.DataFrame(rows).set_index(["model", "on"])

    def classes(self) -> Any:
        """A pandas DataFrame: recall and precision of each class, with 95 % intervals, for each model and test data.

        Raises:
            Refused: the app's `evaluate` returns no "confusion", or pandas is not installed.
        """
        pandas = _pandas()
        rows = [
            {
                "model": score.model,
                "on": score.on_site or "all",
                "class": number,
                "examples": one.examples,
                **_bounds("recall", one.recall, one.recall_interval),
                **_bounds("precision", one.precision, one.precision_interval),
            }
            for score in self.detail.scores
            for number, one in enumerate(score.classes)
        ]
        if not rows:
            raise api.Refused(
                "This run has no counts of each class.", "Return them as “confusion” in the metrics of evaluate()."
            )
        return pandas.DataFrame(rows).set_index(["model", "on", "class"])

    @property
    def models(self) -> list[ModelFile]:
        """Those that are kept, by round."""
        request: api.Request[tuple[ModelFile, ...]] = api.get_models(self.id)
        return [*self._call(request)]

    def model(self, path: str | Path = "model.safetensors", which: str | int = LAST) -> Path:
        """Download a global model, a safetensors file. Returns where it lies.

        Args:
            which: "last", "best", or a round's number.
        """
        target = Path(path)
        target.write_bytes(self._call(api.get_model(self.id, str(which))))
        return target

    def record(self) -> dict[str, Any]:
        """How the model came about: app hash, participants, samples, metrics of each round, versions."""
        return self._call(api.get_record(self.id))

    def card(self, path: str | Path | None = None) -> Card:
        """The model's card, which shows itself. Written to `path`, too, where one is given."""
        card = Card(self._call(api.get_card(self.id)).decode("utf-8"))
        if path is not None:
            Path(path).write_text(card, encoding="utf-8")
        return card

    def signed(self, path: str | Path = "signed.json") -> Path:
        """Download the record with the service's signature. Returns where it lies."""
        target = Path(path)
        signed = self._call(api.get_signed(self.id))
        content = {name: getattr(signed, name) for name in ("record", "model_sha256", "signature", "public_key")}
        target.write_text(json.dumps(content, indent=2), encoding="utf-8")
        return target

    def verify(self, path: str | Path = "model.safetensors") -> str:
        """Check that the service has signed this run's record, and that the file is a model of it. Returns a sentence.

        Raises:
            Refused: it is not so; the text says what is wrong.
        """
        signed = self._call(api.get_signed(self.id))
        check_signature(signed, self._call(api.get_signing_key()).decode("ascii"))
        found = hashlib.sha256(Path(path).read_bytes()).hexdigest()
        rounds = {one["sha256"]: one["round"] for one in signed.record.get("models", ())}
        rounds.setdefault(signed.model_sha256, (signed.record.get("model") or {}).get("round"))
        if found not in rounds:
            raise api.Refused(
                f"{path} is no model of this run: its sha256 is {found}.", "Download it with run.model()."
            )
        return f"{path} is this run's model after round {rounds[found]}; the record is signed by this Hub's service."

    def capsule(self, path: str | Path = "capsule.zip") -> Path:
        """Download what reproduces the run on stock Flower: a zip file with its own README. Returns where it lies."""
        target = Path(path)
        target.write_bytes(self._call(api.get_capsule(self.id)))
        return target

    def load_model(self, which: str | int = LAST) -> Any:
        """The model: what the app's `build_model` returns, with the weights; for other apps its arrays, by name.

        This imports and runs the app's code here, in this kernel.
        """
        capsule = self._call(api.get_capsule(self.id))
        with zipfile.ZipFile(io.BytesIO(capsule)) as archive:
            content = archive.read("model.safetensors")
        if which != LAST:
            content = self._call(api.get_model(self.id, str(which)))
        arrays = read_safetensors(content)
        with _unpacked_app(capsule) as folder:
            package = _notebook_package(folder)
            return arrays if package is None else _built(folder, package, arrays)

    def log_to_mlflow(self, tracking_uri: str | None = None) -> str:
        """Log parameters, each round's metrics, model and card to MLflow. Returns the id of MLflow's run.

        Args:
            tracking_uri: where MLflow keeps its runs; by default as MLflow itself decides.

        Raises:
            Refused: mlflow is not installed.
        """
        from federator.mlflow_log import log_run

        return log_run(self, tracking_uri)

    def _train_here(self, folder: Path) -> TrialResult:
        if not folder.is_dir():
            raise api.Refused(f"{folder} is no folder.", "Give a folder in the form of a site's dataset.")
        capsule = self._call(api.get_capsule(self.id))
        with zipfile.ZipFile(io.BytesIO(capsule)) as archive:
            config = json.loads(archive.read("capsule.json"))["config"]
        plan = Plan(
            fab=_approved_app(capsule), fab_hash=self.detail.fab_hash, folders={POOLED: folder.resolve()}, config=config
        )
        return try_app(plan, lambda _: None)


class Card(str):
    """Markdown that shows itself."""

    def _repr_markdown_(self) -> str:
        return str(self)


def compare_runs(details: Sequence[RunDetail], metric: str = "") -> Any:
    """Mean and standard deviation over runs that differ by their seeds, as a pandas DataFrame.

    Raises:
        Refused: fewer than two, of other apps or other numbers of rounds, of the same seed, or without a comparison.
    """
    pandas = _pandas()
    if len(details) < 2:
        raise api.Refused("One run is no comparison.", "Start others with other seeds: project.run(..., seed=2).")
    if len({(one.fab_hash, one.summary.rounds) for one in details}) > 1:
        raise api.Refused(
            "These runs are of other apps or of other numbers of rounds.", "Compare what differs by seed."
        )
    seeds = [one.seed for one in details]
    if None in seeds or len(set(seeds)) < len(seeds):
        raise api.Refused(
            f"These runs have the seeds {', '.join(map(str, seeds))}.", "Compare runs whose seeds are known and differ."
        )
    values: dict[tuple[str, str], list[float]] = {}
    chosen = metric
    for detail in details:
        chosen, rows = _rows(detail, chosen)
        for row in rows:
            values.setdefault((row["model"], row["on"]), []).append(row[chosen])
    table = [
        {"model": model, "on": on, "mean": statistics.fmean(found), "std": _std(found), "runs": len(found)}
        for (model, on), found in values.items()
    ]
    frame = pandas.DataFrame(table).set_index(["model", "on"])
    frame.attrs = {"metric": chosen, "seeds": seeds}
    return frame


def _std(values: Sequence[float]) -> float:
    """Of the sample; unknown where a model has one run only."""
    return statistics.stdev(values) if len(values) > 1 else math.nan


def _rows(detail: RunDetail, metric: str) -> tuple[str, list[Row]]:
    """The metric that was chosen, and a row for each model and test data."""
    if not detail.scores:
        raise api.Refused(
            f"Run {detail.summary.number} has no comparison.",
            "It is made at the end of a run that was started with compare=True.",
        )
    metrics = sorted({name for score in detail.scores for name in score.metrics})
    chosen = metric or main_metric(metrics) or ""
    if chosen not in metrics:
        raise api.Refused(f"The app reports no metric '{chosen}'.", f"It reports {', '.join(metrics)}.")
    return chosen, [_row(score, chosen) for score in detail.scores if chosen in score.metrics]


def _row(score: Score, metric: str) -> Row:
    made_from = score.made_from.get(metric, "")
    return {
        "model": score.model,
        "on": score.on_site or "all",
        **_bounds(metric, score.metrics[metric], score.intervals.get(metric)),
        "interval from": made_from,
        "examples": score.examples,
    }


def _bounds(name: str, value: float | None, interval: tuple[float, float] | None) -> Row:
    low, high = interval or (math.nan, math.nan)
    return {name: math.nan if value is None else value, f"{name} low": low, f"{name} high": high}


def _pooled_row(trained: TrialResult, metric: str, run_id: str) -> Row:
    """The last round's model of the one pretended site, on its own test data."""
    (site,) = trained.detail.rounds[-1].sites
    value, examples = site.evaluate.get(metric), site.evaluate_examples
    interval = None
    if metric in _SHARES and value is not None and 0 <= value <= 1 and examples > 0:
        rng = np.random.default_rng(int.from_bytes(hashlib.sha256(f"{run_id} pooled".encode()).digest()[:8]))
        low, high = np.percentile(rng.binomial(examples, value, _DRAWS) / examples, _TAILS)
        interval = float(low), float(high)
    made_from = "share" if interval else ""
    return {
        "model": POOLED,
        "on": "all",
        **_bounds(metric, value, interval),
        "interval from": made_from,
        "examples": examples,
    }


def _pandas() -> Any:
    try:
        return import_module("pandas")
    except ImportError as error:
        raise api.Refused(
            "pandas is not installed in this server.", "run.table() shows the values without it."
        ) from error


def check_signature(signed: SignedRecord, public_pem: str) -> None:
    """As `SignedRecord` says. Raises Refused where the holder of this key has not signed the record."""
    content = {"model_sha256": signed.model_sha256, "record": signed.record}
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()
    key = load_pem_public_key(public_pem.encode())
    try:
        if not isinstance(key, Ed25519PublicKey):
            raise ValueError("no Ed25519 key")
        key.verify(base64.b64decode(signed.signature, validate=True), canonical)
    except (InvalidSignature, ValueError) as error:
        raise api.Refused(
            "The record's signature is not good.", "Download it again; if it stays so, tell the Hub's administrators."
        ) from error


def read_safetensors(content: bytes) -> dict[str, Any]:
    """The arrays of a safetensors file, by name: https://github.com/huggingface/safetensors#format

    Raises:
        Refused: it is none, or holds numbers that numpy has not.
    """
    try:
        (length,) = struct.unpack_from("<Q", content)
        header: dict[str, Any] = json.loads(content[8 : 8 + length])
        data = memoryview(content)[8 + length :]
        return {
            name: np.frombuffer(data[slice(*one["data_offsets"])], _DTYPES[one["dtype"]]).reshape(one["shape"]).copy()
            for name, one in header.items()
            if name != "__metadata__"
        }
    except (struct.error, ValueError, KeyError, TypeError) as error:
        raise api.Refused("The model's file cannot be read.", "Download it with run.model() and look at it.") from error


# --- the app of a capsule


def _approved_app(capsule: bytes) -> bytes:
    """The approved app, as a zip file."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for path, content in _app_files(capsule).items():
            archive.writestr(path, content)
    return packed.getvalue()


def _app_files(capsule: bytes) -> Mapping[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(capsule)) as archive:
        files = {
            name.removeprefix("app/"): archive.read(name) for name in archive.namelist() if name.startswith("app/")
        }
    approved = files[_APPROVED_PYPROJECT]
    return {path: content for path, content in files.items() if path not in _ADDED} | {"pyproject.toml": approved}


@contextlib.contextmanager
def _unpacked_app(capsule: bytes) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="federator-app-") as folder, contextlib.ExitStack() as stack:
        root = Path(folder).resolve()
        with zipfile.ZipFile(io.BytesIO(_approved_app(capsule))) as archive:
            archive.extractall(root)
        stack.callback(forget, root)
        yield root


def _notebook_package(folder: Path) -> str | None:
    """The package of an app that was made from a notebook."""
    packages = sorted(path.parent for path in folder.glob("*/notebook.py"))
    return next((one.name for one in packages if (one / "task.py").is_file()), None)


def _built(folder: Path, package: str, arrays: Mapping[str, Any]) -> Any:
    """The app's own model with these arrays. `task` is how the app itself puts weights into its model."""
    task: Any = import_attribute(f"{package}.task:arrays_of", folder).__globals__  # type: ignore[attr-defined]
    model = import_attribute(f"{package}.notebook:build_model", folder)()  # type: ignore[operator]
    record = task["arrays_of"](model)
    for name in list(record):
        record[name] = type(record[name])(arrays[name])
    task["put_arrays"](model, record)
    return model
