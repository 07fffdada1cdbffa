"""Between the notebook's functions and Flower's records."""

import random
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, MetricRecord

NUM_EXAMPLES = "num-examples"


def seed_everything(seed: int) -> None:
    """Make what follows repeatable: the standard library's, numpy's and torch's random numbers."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    if (torch := sys.modules.get("torch")) is not None:
        torch.manual_seed(seed)


def arrays_of(model: Any) -> ArrayRecord:
    """The model's weights: `state_dict()` of a torch module, or `get_weights()`, a list of numpy arrays."""
    if hasattr(model, "state_dict"):
        return ArrayRecord(dict(model.state_dict()))
    if hasattr(model, "get_weights"):
        return ArrayRecord([np.asarray(weight) for weight in model.get_weights()])
    raise TypeError(
        f"build_model() returned a {type(model).__name__}; a torch.nn.Module, or an object with get_weights() and "
        "set_weights(), is needed"
    )


def put_arrays(model: Any, arrays: ArrayRecord) -> None:
    """Give the model these weights."""
    if hasattr(model, "load_state_dict"):
        model.load_state_dict(arrays.to_torch_state_dict())
    else:
        model.set_weights(arrays.to_numpy_ndarrays())


def metric_record(function: str, metrics: Any, data: Any) -> MetricRecord:
    """The metrics that `train` or `evaluate` returned, with the number of examples that stand behind them.

    `evaluate` may return the counts of a confusion table as "confusion": a row for each true class.

    Raises:
        ValueError: a metric is no number and no list of numbers; the text names the function and the key.
    """
    if not isinstance(metrics, Mapping):
        raise ValueError(f"{function}() returned {type(metrics).__name__}; a dictionary of numbers is needed")
    record = MetricRecord()
    for key, value in metrics.items():
        record[str(key)] = _value(function, str(key), value)
    if NUM_EXAMPLES not in record:
        record[NUM_EXAMPLES] = count_examples(function, data)
    if record[NUM_EXAMPLES] == 0:
        raise ValueError(f"{function}(): the data hold no examples")
    return record


def _value(function: str, key: str, value: Any) -> int | float | list[int] | list[float]:
    """A plain number, or a plain list of numbers: a table, such as confusion counts, is put row behind row."""
    is_array = hasattr(value, "tolist")  # numpy's and torch's
    if is_array:
        value = value.tolist()
    if not isinstance(value, list | tuple):
        return _number(function, key, value)
    numbers = [_number(function, key, one) for one in _flat(value)]
    if not numbers:
        raise ValueError(f"{function}(): the metric {key!r} is an empty list")
    if is_array and len(numbers) == 1:
        return numbers[0]
    if all(isinstance(one, int) for one in numbers):
        return [int(one) for one in numbers]
    return [float(one) for one in numbers]


def _flat(values: Any) -> Iterator[Any]:
    for one in values:
        if isinstance(one, list | tuple):
            yield from _flat(one)
        else:
            yield one


def _number(function: str, key: str, value: Any) -> int | float:
    if hasattr(value, "item"):
        value = value.item()
    if not isinstance(value, int | float):
        raise ValueError(f"{function}(): the metric {key!r} is a {type(value).__name__}, not a number")
    return int(value) if isinstance(value, int) else value


def count_examples(function: str, data: Any) -> int:
    """The number of examples: of a loader's dataset, of arrays side by side (features, labels), else `len`."""
    if hasattr(data, "dataset"):
        data = data.dataset
    elif isinstance(data, tuple) and data and all(hasattr(part, "shape") for part in data):
        data = data[0]
    try:
        return len(data)
    except TypeError as error:
        raise ValueError(
            f"{function}(): the number of examples is unknown; return it as metrics[{NUM_EXAMPLES!r}]"
        ) from error


def folder_stamp(folder: str) -> tuple[int, int, int]:
    """Changes when files below the folder are added, removed or rewritten."""
    stats = [path.stat() for path in Path(folder).rglob("*")]
    return len(stats), sum(stat.st_size for stat in stats), max((stat.st_mtime_ns for stat in stats), default=0)
