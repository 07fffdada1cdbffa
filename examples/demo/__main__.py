"""`make demo`: start everything, run the journey, print the table, and leave the Hub up.

usage: python -m examples.demo [--port 8000] [--data FOLDER] [--exit]
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
import threading
from pathlib import Path

from examples.demo.data import DataError, find_image_sites, write_wisconsin_sites
from examples.demo.display import Display
from examples.demo.people import RESEARCHERS, STEWARDS, everyone
from examples.demo.person import StepError
from examples.demo.scenario import Outcome, Study, run_journey
from examples.demo.stack import ROOT, Stack, StackError, start_stack

FOLDER = ROOT / ".demo"
NOTEBOOKS = ROOT / "examples" / "notebooks"


def main() -> int:
    options = parse_options()
    display = Display()
    display.headline(
        "Notebook Federator",
        "Three hospitals train one model. No patient's data leaves its hospital.\n"
        "Real Hub, real single sign-on, real notebook servers, real Flower; all on this one machine,\n"
        "as one user, so this demo shows the work and isolates nothing.",
    )
    stack: Stack | None = None
    try:
        with display.step("The three hospitals' data") as details:
            study, datasets = prepare_study(options.data)
            details.append(study.skew)
        with display.step("The identity provider, the Hub, its proxy and the federation service"):
            stack = start_stack(FOLDER, datasets, port=options.port)
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


def prepare_study(data: Path | None) -> tuple[Study, dict[str, Path]]:
    """Choose notebook and data: site slug -> its dataset's folder."""
    sites = [one.site for one in RESEARCHERS]
    if data is None:
        folder = FOLDER.with_name(".demo-data")
        skew = write_wisconsin_sites(folder, sites)
        study = Study("Breast aspirates", NOTEBOOKS / "tabular.ipynb", "biopsies", 10, skew)
        return study, {site: folder / site for site in sites}
    folders = find_image_sites(data, len(sites))
    skew = "The hospitals differ in how many of their training images show a tumour; that skew does most of the work."
    study = Study("Histopathology", NOTEBOOKS / "histopathology.ipynb", "biopsies", 20, skew)
    return study, dict(zip(sites, folders, strict=True))


def tell_outcome(display: Display, outcome: Outcome) -> None:
    gain = 100 * (outcome.federated - outcome.best_alone)
    display.console.print(
        f"\n  On all test data together the federated model is [bold]{gain:+.1f} points[/] from the best single site "
        f"({outcome.federated:.3f} against {outcome.best_alone:.3f})."
    )


def leave_up(display: Display, stack: Stack, outcome: Outcome) -> None:
    """Say where to look and as whom, and wait for Ctrl-C."""
    lines = [f"  {person.username:<12} {person.description}" for person in everyone()]
    display.headline(
        "The Hub stays up",
        f"Open    {stack.origin}\n"
        f"Project {stack.origin}/services/federation/projects/{outcome.project_id}\n\n"
        "Log in as one of them (no password, the identity provider asks for the name only):\n"
        + "\n".join(lines)
        + "\n\nCtrl-C ends everything.",
    )
    ended = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: ended.set())
    while not ended.wait(1):
        if any(process.popen.poll() is not None for process in stack.processes):
            raise StackError(f"A part of the demo ended by itself. See {FOLDER}/*.log")


if __name__ == "__main__":
    sys.exit(main())
