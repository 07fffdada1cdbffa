"""What runs at a site: the notebook's `train` and `evaluate` on the site's own data.

The node's configuration names the folder of the data: `dataset-path`. A process that serves many messages keeps the
model and the data, and loads the data again when a run starts with other files or another configuration.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

from . import notebook, strategies, task

app = ClientApp()

_loaded: dict[str, tuple[Any, tuple[Any, Any]]] = {}
_checked: dict[str, tuple[int, tuple[int, int, int]]] = {}


def _clip(message: Message, context: Context, call_next: Callable[[Message, Context], Message]) -> Message:
    """A notebook with a strategy of its own may use the configuration's names for something else."""
    if hasattr(notebook, "strategy"):
        return call_next(message, context)
    return strategies.clip_where_asked(message, context, call_next)


@app.train(mods=[_clip])
def train(message: Message, context: Context) -> Message:
    """Train the model of the message on this site's training data."""
    config = _config(message, context)
    data, _ = _data(context)
    model = _model_of(message)
    task.seed_everything(config["seed"] + config["round"])
    metrics = notebook.train(model, data, config)
    content = RecordDict({"arrays": task.arrays_of(model), "metrics": task.metric_record("train", metrics, data)})
    return Message(content=content, reply_to=message)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Evaluate the model of the message on this site's test data."""
    config = _config(message, context)
    _, data = _data(context)
    metrics = notebook.evaluate(_model_of(message), data, config)
    content = RecordDict({"metrics": task.metric_record("evaluate", metrics, data)})
    return Message(content=content, reply_to=message)


def _config(message: Message, context: Context) -> dict[str, Any]:
    """The run's configuration, what the strategy adds to it for this round, and the round."""
    config: dict[str, Any] = dict(context.run_config)
    for record in message.content.config_records.values():
        config.update(record)
    config["round"] = int(config.get("server-round", 0))
    return config


def _model_of(message: Message) -> Any:
    model = _model()
    task.put_arrays(model, next(iter(message.content.array_records.values())))
    return model


@cache
def _model() -> Any:
    return notebook.build_model()


def _data(context: Context) -> tuple[Any, Any]:
    """The site's (train, test) data."""
    if "dataset-path" not in context.node_config:
        raise ValueError("this node's configuration names no dataset-path, so there are no data to work on")
    folder = str(context.node_config["dataset-path"])
    config = dict(context.run_config)
    key = (_stamp(folder, context.run_id), sorted(config.items()))
    if folder not in _loaded or _loaded[folder][0] != key:
        train_data, test_data = notebook.load_data(folder, config)
        _loaded[folder] = key, (train_data, test_data)
    return _loaded[folder][1]


def _stamp(folder: str, run_id: int) -> tuple[int, int, int]:
    """The folder's stamp as it was when this run first asked: a run works on one state of the data."""
    if folder not in _checked or _checked[folder][0] != run_id:
        _checked[folder] = run_id, task.folder_stamp(folder)
    return _checked[folder][1]
