"""What runs at each site."""

from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from own_loop.task import load_table, scores, step

app = ClientApp()


@app.train()
def train(msg: Message, context: Context) -> Message:
    features, labels = load_table(context.node_config, "train")
    weights = msg.content["model"]["weights"].numpy()
    for _ in range(10):
        weights = step(weights, features, labels, context.run_config["learning-rate"])
    content = RecordDict(
        {
            "model": ArrayRecord({"weights": Array(weights)}),
            "metrics": MetricRecord(scores(weights, features, labels)),
        }
    )
    return Message(content=content, reply_to=msg)


@app.evaluate()
def evaluate(msg: Message, context: Context) -> Message:
    features, labels = load_table(context.node_config, "test")
    metrics = scores(msg.content["model"]["weights"].numpy(), features, labels)
    return Message(content=RecordDict({"metrics": MetricRecord(metrics)}), reply_to=msg)
