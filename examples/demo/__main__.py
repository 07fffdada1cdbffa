"""`make demo`: start everything, run the journey, print the table, and leave the Hub up.

usage: python -m examples.demo [--port 8000] [--data FOLDER] [--exit]
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
import time
from pathlib import Path

from examples.demo.browser import StepError
from examples.demo.data import DataError, find_image_sites, pool_images, pool_tables, write_wisconsin_sites
from examples.demo.deployment import DatasetFolder
from examples.demo.display import Display
from examples.demo.people import RESEARCHERS, STEWARDS, everyone
from examples.demo.scenario import Outcome, Study, run_journey
from examples.demo.stack import ROOT, Stack, StackError, embedded_sites, start_stack

FOLDER = ROOT / ".demo"
DATA = ROOT / ".demo-data"
POOLED = DATA / "pooled"
NOTEBOOKS = ROOT / "hub_service" / "starters"


def main() -> int:
    options = parse_options()
    display = Display()
    for ending in (signal.SIGTERM, signal.SIGHUP):  # the latter is what a terminal says that is closed
        signal.signal(ending, lambda number, _: sys.exit(128 + number))  # so that everything started is ended
    display.headline(
        "Notebook Federator",
        "Three hospitals train one model. No patient's data leaves its hospital.\n"
        "Hub, single sign-on, notebook servers and Flower are the real ones.\n"
        "They share this machine and account: nothing is isolated.",
    )
    stack: Stack | None = None
    try:
        with display.step("The three hospitals' data") as details:
            study, dataset = prepare_study(options.data)
            details.append(study.skew)
        with display.step("The identity provider, the Hub, its proxy and the federation service"):
            stack = start_stack(FOLDER, embedded_sites(dataset), port=options.port)
        outcome = asyncio.run(run_journey(stack.origin, study, RESEARCHERS, STEWARDS, display))
        tell_outcome(display, outcome)
        if not options.exit:
            leave_up(display, stack, outcome)
    except (StackError, StepError, DataError) as error:
        display.failure(str(error), str(FOLDER / "*.log"))
        return 1
    except KeyboardInterrupt:
        return 130
    finally:
        if stack is not None:
            stack.stop()
    return 0


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m examples.demo", description="Run the whole journey on this machine."
    )
    parser.add_argument("--port", type=int, default=8000, help="the Hub's port (default 8000)")
    parser.add_argument("--data", type=Path, help="a folder with one ImageFolder tree per hospital; three are used")
    parser.add_argument("--exit", action="store_true", help="end after the table instead of leaving the Hub up")
    return parser.parse_args()


def prepare_study(data: Path | None) -> tuple[Study, DatasetFolder]:
    """Choose the notebook, and cut or find the three hospitals' data."""
    sites = [one.site for one in RESEARCHERS]
    if data is None:
        skew = write_wisconsin_sites(DATA)
        folders = {site: DATA / site for site in sites}
        pool_tables(POOLED, [*folders.values()])
        dataset = DatasetFolder("biopsies", "Fine-needle aspirates", skew, folders)
        return Study("Breast aspirates", NOTEBOOKS / "tabular.ipynb", dataset.name, 10, skew, POOLED), dataset
    skew = (
        "The hospitals differ in stain, and in how many of their training images show a tumour: the latter does most."
    )
    found = find_image_sites(data)
    if len(found) != len(sites):
        raise DataError(f"{data} holds {len(found)} site folders; the demo has {len(sites)} hospitals")
    folders = dict(zip(sites, found, strict=True))
    pooled = POOLED.with_name("pooled-images")
    pool_images(pooled, found)
    dataset = DatasetFolder("patches", "Histopathology patches", skew, folders)
    return Study("Histopathology", NOTEBOOKS / "histopathology.ipynb", dataset.name, 20, skew, pooled), dataset


def tell_outcome(display: Display, outcome: Outcome) -> None:
    gain = 100 * (outcome.federated - outcome.best_alone)
    display.console.print(
        f"\n  Federated: [bold]{gain:+.1f} points[/] over the best single site. All data pooled: {outcome.pooled:.3f}."
    )
    display.note(outcome.conclusion)


def leave_up(display: Display, stack: Stack, outcome: Outcome) -> None:
    """Say where to look and as whom, and wait for Ctrl-C."""
    display.headline("The Hub stays up", "Open it in a browser and log in as anybody below. Ctrl-C ends everything.")
    display.lines(
        f"Hub      {stack.origin}",
        f"Project  {stack.origin}/services/federation/projects/{outcome.project_id}",
        "",
        *(f"{person.username:<9}{person.description}" for person in everyone()),
    )
    while True:
        time.sleep(1)
        if any(process.popen.poll() is not None for process in stack.processes):
            raise StackError(f"A part of the demo ended by itself. See {FOLDER}/*.log")


if __name__ == "__main__":
    sys.exit(main())
