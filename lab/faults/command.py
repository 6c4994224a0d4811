"""`lasagna bench faults`: is a prediction lost, or made twice, whatever happens to the parts?

In each round a real Label Studio gets new photos and asks for predictions ("Retrieve Predictions" of the data manager),
`lasagna prelabel` runs besides, and at a random moment one fault strikes (`lab.faults.catalogue`). What ended is
started again, as Compose or systemd would. Then every task must have exactly one prediction of the version, or have
failed with a reason. After the last round all tasks are looked at once more: what came late counts too.

Everything is real but three things: the model is a tiny one with random weights, so that a round takes seconds; the
gateway (`lab.faults.bad_gateway`) between us and Label Studio, which passes everything on until it is told to
misbehave; and the flaw of the image decoder that the fault "poison" needs, which is patched into the workers (`_FLAW`).
"""

import json
import tempfile
from contextlib import ExitStack, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from lab.faults.catalogue import FAULTS
from lab.faults.rig import Rig, Round
from lasagna.environment import describe_environment
from lasagna.progress import progress_bar
from training.evaluation.tables import Cell, markdown_table


@click.command(
    epilog="""\b
Examples:
  lasagna bench faults --rounds 20
  lasagna bench faults --rounds 100 --json
  lasagna bench faults --rounds 5 --only poison --photos 8 --out /tmp/faults

\b
Needs Label Studio (make setup). As root, Redis's file lies on a small tmpfs, so that the disk can be filled; with
libfaketime (apt-get install faketime) a worker's clock jumps. What cannot be done is skipped, and said."""
)
@click.option("--rounds", default=20, show_default=True, type=click.IntRange(1), help="One fault each, in turn.")
@click.option("--photos", default=20, show_default=True, type=click.IntRange(2), help="In each round.")
@click.option("--only", metavar="NAME,...", help="Only these faults.")
@click.option("--seed", default=1, show_default=True, help="Of the moments, the order and the photos.")
@click.option(
    "--out", type=click.Path(path_type=Path), help="Folder for data, logs and faults.json; else a temporary one."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout instead of the table.")
def faults(rounds: int, photos: int, only: str | None, seed: int, out: Path | None, as_json: bool) -> None:
    """Kill, fill, stop and slow down every part during jobs, and count the tasks lost and the predictions twice."""
    names = [fault.name for fault in FAULTS] if only is None else [name.strip() for name in only.split(",")]
    if unknown := [name for name in names if name not in {fault.name for fault in FAULTS}]:
        raise click.UsageError(f"--only: {', '.join(unknown)}; there are {', '.join(fault.name for fault in FAULTS)}")
    console = Console(stderr=True)
    with ExitStack() as stack:
        folder = out or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="lasagna-faults-")))
        folder.mkdir(parents=True, exist_ok=True)
        with console.status("starting Label Studio, Redis, the web process and two workers ..."):
            rig = stack.enter_context(Rig.started(folder, seed))
        possible = [fault for fault in FAULTS if fault.name in names and not fault.needs(rig)]
        skipped = {fault.name: why for fault in FAULTS if fault.name in names and (why := fault.needs(rig))}
        for name, why in skipped.items():
            console.print(f"skipped: {name}: {why}", style="yellow", markup=False, highlight=False)
        done: list[Round] = []
        # Ctrl-C ends it early, with the figures so far; a round that was cut off does not count.
        with progress_bar(console, "Rounds", rounds) as advance, suppress(KeyboardInterrupt):
            while len(done) < rounds and possible:
                for fault in rig.rng.sample(possible, len(possible))[: rounds - len(done)]:
                    done.append(rig.round(len(done) + 1, fault, photos))
                    one = done[-1]
                    said = f"{one.number}: {fault.name}, {one.seconds:.0f} s, {one.predicted} done, {one.failed} failed"
                    console.print(said, style="red" if one.lost or one.twice else "", highlight=False, markup=False)
                    advance()
                    if out is not None:
                        (out / "faults.json").write_text(json.dumps(_report(done, skipped, seed), indent=1))
        with progress_bar(console, "A second look", len(rig.done)) as advance:
            rig.look_again(advance)
        report = {**_report(done, skipped, seed), "environment": describe_environment("cpu")}
    if out is not None:
        (out / "faults.json").write_text(json.dumps(report, indent=1))
    click.echo(json.dumps(report, indent=1) if as_json else table(report))
    if report["tasks_lost"] or report["predictions_twice"]:
        raise SystemExit(1)


def _report(done: list[Round], skipped: dict[str, str], seed: int) -> dict[str, Any]:
    return {
        "benchmark": "faults",
        "seed": seed,
        "faults_injected": sum(one.struck for one in done),
        "tasks": sum(one.tasks for one in done),
        "tasks_predicted": sum(one.predicted for one in done),
        "tasks_failed_with_a_reason": sum(one.failed for one in done),
        "tasks_lost": sum(len(one.lost) for one in done),
        "predictions_twice": sum(len(one.twice) for one in done),
        "skipped": skipped,
        "rounds": [asdict(one) for one in done],
    }


def table(report: dict[str, Any]) -> str:
    """The report as Markdown: a row for each kind of fault, and their sum."""
    rows: list[list[Cell]] = []
    for fault in FAULTS:
        those = [one for one in report["rounds"] if one["fault"] == fault.name]
        if those:
            seconds = sorted(one["seconds"] for one in those)
            rows.append(
                [f"{fault.name}: {fault.words}", len(those), sum(one["tasks"] for one in those),
                 sum(one["failed"] for one in those), sum(len(one["lost"]) for one in those),
                 sum(len(one["twice"]) for one in those), f"{seconds[len(seconds) // 2]:.0f} s"]
            )  # fmt: skip
    rows.append(
        ["all", report["faults_injected"], report["tasks"], report["tasks_failed_with_a_reason"], report["tasks_lost"],
         report["predictions_twice"], ""]
    )  # fmt: skip
    headings = ["fault", "rounds", "tasks", "failed with a reason", "lost", "predicted twice", "a round takes"]
    return markdown_table(headings, rows)
