"""What NVFlare runs at a site: one batch and its evaluation for each model that comes, and notes of when it was.

    client.py CONFIG FOLDER     CONFIG: JSON file of a workload's config; FOLDER: for one file of notes a site

NVFlare's FedAvg sends the global model once a round; a site evaluates it, trains it, and sends it back.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import nvflare.client as flare
from benchapp import work


def main() -> None:
    config = json.loads(Path(sys.argv[1]).read_text())
    notes = []
    flare.init()
    path = Path(sys.argv[2]) / f"{flare.get_site_name()}.json"
    while flare.is_running():
        model = flare.receive()
        if model is None:
            break
        loss, evaluated = work.timed(work.evaluate, config, model.params)
        state, trained = work.timed(work.train, config, model.params)
        notes.append((trained, evaluated))
        path.write_text(json.dumps(notes))
        flare.send(flare.FLModel(params=state, metrics={"loss": loss}))


main()
