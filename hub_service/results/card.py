"""A model's card: what a person must know before using it, generated from the run's record. Markdown.

https://arxiv.org/abs/1810.03993 is where model cards come from. Everything here is counted or hashed, nothing is
claimed: what the model is for, only its makers can say.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

_FEW = 100  # test examples of a site below which a number says little
_SKEWED = 0.2  # difference of a class's share between two sites that a reader must hear of
# What Markdown or HTML would take for more than text.
_SPECIAL = re.compile(r"([\\`*_{}\[\]<>#|~])")


def model_card(record: Mapping[str, Any]) -> str:
    """The card of the run that this record, in JSON's own types, describes."""
    parts = [
        _head(record),
        _data(record),
        _numbers(record),
        _classes(record),
        _how(record),
        _warnings(record),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def text_of(value: object) -> str:
    """Text of somebody's, as Markdown shows it letter by letter, on one line."""
    return _SPECIAL.sub(r"\\\1", " ".join(str(value).split())).replace("&", "&amp;")


def _head(record: Mapping[str, Any]) -> str:
    project, run, app, model = record["project"], record["run"], record["app"], record["model"]
    lines = [
        f"# Model of {text_of(project['name'])}, run {run['number']}",
        "",
        f"- Owner: {text_of(project['owner'])}; started by {text_of(run['started_by'])}, {run['started_at']}",
        f"- Run: {run['status']}, {run['rounds']} rounds asked for, {len(record['rounds'])} done",
        f"- Code: version {app['version']} of {text_of(app['title'])}, sha256 `{app['fab_sha256']}`",
    ]
    if model:
        lines.append(f"- Model: after round {model['round']}, {model['size']} bytes, sha256 `{model['sha256']}`")
    return "\n".join(lines)


def _data(record: Mapping[str, Any]) -> str:
    rows = [
        [text_of(one["site"]), text_of(one["dataset"]), str(one["train_examples"]), str(one["test_examples"])]
        for one in record["participants"]
    ]
    skew = [
        [text_of(one["site"]), *(f"{n} ({100 * n / max(1, sum(one['examples'])):.0f} %)" for n in one["examples"])]
        for one in record["labels"]
    ]
    text = "## Data, in numbers\n\n" + _table(["Site", "Dataset", "Training examples", "Test examples"], rows)
    if skew:
        head = ["Site", *(f"Class {number}" for number in range(len(skew[0]) - 1))]
        text += "\n\nTest examples by class, which shows what is skewed:\n\n" + _table(head, skew)
    return text


def _numbers(record: Mapping[str, Any]) -> str:
    scores = [one for one in record["scores"] if one["on_site"] == ""]
    if not scores:
        last = record["rounds"][-1:] if record["rounds"] else []
        rows = [[text_of(name), f"{value:.4f}"] for one in last for name, value in one["evaluate"].items()]
        return "## Metrics\n\nAll sites' test data together, after the last round.\n\n" + _table(
            ["Metric", "Value"], rows
        )
    names = dict.fromkeys(name for one in scores for name in one["metrics"])
    rows = [[text_of(one["model"]), *(_value(one, name) for name in names)] for one in scores]
    return (
        "## Metrics\n\nEach model on the test data of all sites together; “federated” is this model, the others were"
        " trained by one site alone, by the same code, for as many rounds and from the same seed. In brackets: 95 %"
        " intervals by bootstrap from confusion counts, or, marked *, from a share and its number of examples.\n\n"
        + _table(["Model", *map(text_of, names)], rows)
        + _differences(record)
    )


def _value(score: Mapping[str, Any], name: str) -> str:
    if name not in score["metrics"]:
        return "–"
    mark = "\\*" if score["made_from"].get(name) == "share" else ""
    return f"{score['metrics'][name]:.4f}{_interval(score['intervals'].get(name))}{mark}"


def _interval(bounds: Sequence[float] | None) -> str:
    return f" \\[{bounds[0]:.3f}, {bounds[1]:.3f}\\]" if bounds else ""


def _differences(record: Mapping[str, Any]) -> str:
    words = {
        "better": "federated is better",
        "worse": "the single site is better",
        "not-separated": "not told apart by these data",
        "unknown": "no interval, so not known",
    }
    rows = [
        [
            text_of(one["metric"]),
            text_of(one["best_site"]),
            f"{one['difference']:+.4f}{_interval(one['interval'])}",
            words[one["verdict"]],
        ]
        for one in record["differences"]
    ]
    if not rows:
        return ""
    return "\n\nFederated less the best single site:\n\n" + _table(
        ["Metric", "Best site", "Difference", "Verdict"], rows
    )


def _classes(record: Mapping[str, Any]) -> str:
    federated = [one for one in record["scores"] if (one["model"], one["on_site"]) == ("federated", "")]
    rows = [
        [str(number), str(one["examples"]), *(_class_value(one, measure) for measure in ("recall", "precision"))]
        for score in federated
        for number, one in enumerate(score["classes"])
    ]
    return "## Each class\n\n" + _table(["Class", "Test examples", "Recall", "Precision"], rows) if rows else ""


def _class_value(one: Mapping[str, Any], measure: str) -> str:
    return "–" if one[measure] is None else f"{one[measure]:.3f}{_interval(one[f'{measure}_interval'])}"


def _how(record: Mapping[str, Any]) -> str:
    run = record["run"]
    versions = ", ".join(f"{text_of(name)} {text_of(value)}" for name, value in record["software"].items())
    lines = [
        f"- Seed: {'the app’s own' if run['seed'] is None else run['seed']}",
        f"- Models travelled in {text_of(run['wire_precision'])} precision",
        f"- The service's software: {versions}. The sites' own versions are not recorded.",
        f"- Aggregator's image: {_image(record)}",
    ]
    return "## How it was made\n\n" + "\n".join(lines)


def _image(record: Mapping[str, Any]) -> str:
    image = record["images"]["aggregator"]
    return f"`{image}`" if image else "none; it ran as a process of the service's account"


def _warnings(record: Mapping[str, Any]) -> str:
    return "## Limits\n\n" + "\n".join(f"- {one}" for one in warnings(record))


def warnings(record: Mapping[str, Any]) -> list[str]:
    """What a reader must hear, as Markdown sentences."""
    said = ["Made for research. Nobody has shown that it is fit for the care of patients."]
    if record["run"]["status"] != "finished":
        said.append(f"The run did not finish: {record['run']['status']}. {text_of(record['run']['message'])}".strip())
    said += _missed_rounds(record)
    said += [
        f"{text_of(one['site'])} tested with {one['test_examples']} examples only."
        for one in record["participants"]
        if 0 < one["test_examples"] < _FEW
    ]
    if _is_skewed([one["examples"] for one in record["labels"]]):
        said.append("The sites' classes differ in their shares: a metric of one site does not compare with another's.")
    if not any(one["intervals"] for one in record["scores"]):
        said.append("There are no intervals: how sure the numbers are is not known.")
    said += [
        "One run from one seed: another seed gives other numbers, by more than the intervals say.",
        "Test data come from the hospitals that trained it. For another hospital these numbers promise nothing.",
        "A model can give away something of the data that it was trained on. Nothing here adds noise.",
    ]
    return said


def _missed_rounds(record: Mapping[str, Any]) -> list[str]:
    """Which sites' data are in which rounds, where some are not in all."""
    missed: dict[str, list[str]] = {}
    for one in record["rounds"]:
        failed = [site["site"] for site in one["sites"] if site["error"] and not site["train_examples"]]
        for site in (*one["absent"], *failed):
            missed.setdefault(site, []).append(str(one["number"]))
    return [
        f"{text_of(site)} took no part in training in round {', '.join(numbers)}." for site, numbers in missed.items()
    ]


def _is_skewed(counts: Sequence[Sequence[int]]) -> bool:
    shares = [[n / sum(one) for n in one] for one in counts if sum(one)]
    return any(max(of_class) - min(of_class) > _SKEWED for of_class in zip(*shares, strict=False))


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
