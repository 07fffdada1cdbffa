"""A Flower app that knows nothing of us, with its own loop over the grid, runs to its end."""

from __future__ import annotations

from pathlib import Path

from hub_service.domain.runs import EventKind
from tests.fakes.fleet import fleet
from tests.fakes.flower_apps import averaging_app

OWN_LOOP = """
import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.serverapp import ServerApp

app = ServerApp()


@app.main()
def main(grid, context):
    weight = np.zeros((2, 3), dtype=np.float32)
    for number in range(1, 3):
        content = RecordDict({"arrays": ArrayRecord({"weight": Array(weight)}), "config": ConfigRecord({})})
        messages = [
            Message(content, node, "train", group_id=str(number), ttl=60.0) for node in grid.get_node_ids()
        ]
        replies = list(grid.send_and_receive(messages, timeout=60.0))
        weight = np.mean([reply.content["arrays"]["weight"].numpy() for reply in replies], axis=0)
    messages = [Message(RecordDict({"arrays": ArrayRecord({"weight": Array(weight)})}), node, "evaluate", group_id="2")
                for node in grid.get_node_ids()]
    open_ids = set(grid.push_messages(messages))
    while open_ids:
        open_ids -= {reply.metadata.reply_to_message_id for reply in grid.pull_messages(open_ids)}
"""


async def test_an_own_loop_over_the_grid_runs_to_its_end(tmp_path: Path) -> None:
    async with fleet(tmp_path) as it:
        app = averaging_app(server=OWN_LOOP)
        members = [it.start_node(name, target, app) for name, target in (("a", 1.0), ("b", 3.0))]
        await it.start_run(app, members)
        events = await it.end_of_run()
        assert events[-1].kind is EventKind.FINISHED
        seen = [(event.message_type, event.round) for event in events if event.kind is EventKind.REPLY]
        assert sorted(seen) == [("evaluate", 2)] * 2 + [("train", 1)] * 2 + [("train", 2)] * 2
        assert [event.round for event in events if event.kind is EventKind.MODEL] == [1, 2]
