"""`lasagna bench submit`: from a submitted annotation to the next opened task that shows it, in a real Label Studio.

The processes are those of production, as in `lasagna bench load`. One annotator opens a task, submits a mask, and opens
the next one as soon as a head that knows of it serves: Label Studio sends the webhook, the worker learns, Label Studio
asks for the opened task. First alone, then while another project is pre-labelled through the same worker. What always
holds: no task has a prediction before it is opened; a correction counts as failed unless the opened task has a
prediction of a newer head; and the batch runs until the last one, or the command says so and exits with 1.
"""

import itertools
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
from rich.console import Console

from backend.studio.version_names import without_question
from lab.bench.command import report
from lab.loop.product import running_product
from lab.service.load import SIZE, Load
from lasagna.formats.label_studio import segmentation_to_label_studio
from lasagna.labels.configuration import parse_label_config
from lasagna.masks.segmentation import ClassAnswer, Segmentation

_LEARNT_WITHIN = 60.0
_LOOK_EVERY = 0.05


@dataclass(frozen=True)
class Submitted:
    """One correction.

    Attributes:
        learnt: Seconds from the submit until a newer head serves.
        shown: Seconds from the submit until the next task was opened with its prediction.
        failed: Why there is none; "": there is.
    """

    learnt: float | None = None
    shown: float | None = None
    failed: str = ""


@click.command(
    epilog="""\b
Examples:
  lasagna bench submit
  lasagna bench submit --corrections 40 --photos 400 --json"""
)
@click.option("--photos", default=200, show_default=True, type=click.IntRange(1), help="In the project of the batch.")
@click.option("--corrections", default=20, show_default=True, type=click.IntRange(1), help="Alone, and beside it.")
@click.option("--model", help="Checkpoint: a shipped name, a folder or a hub id.  [default: nano]")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of the table.")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="Write the JSON to a file too.")
def submit(photos: int, corrections: int, model: str | None, as_json: bool, out: Path | None) -> None:
    """Measure how long a correction takes to the next opened task, alone and beside a batch."""
    console = Console(stderr=True)
    with running_product(model, None, console) as parts:
        bench = Load(parts, photos, 1, corrections + 1, console)
        alone = correct(bench, bench.tasks[: corrections + 1])
        with bench.batch() as batch:
            beside = correct(bench, bench.tasks[corrections + 1 :])
            batch.was_running = bench.job()["state"] == "running"
            batch.at_the_end = bench.job()["through"]
        setting = {
            "model": parts.model_version,
            "batch photos": photos,
            "batch tasks/s": round(batch.rate, 3),
            "batch failed": batch.failed,
            "batch ran throughout": batch.was_running,
        }
    rows = [row_of("alone", alone), row_of("beside a batch", beside)]
    report("submit", setting, rows, device="cpu", as_json=as_json, out=out)
    for reason in sorted({one.failed for one in (*alone, *beside) if one.failed}):
        console.print(f"failed: {reason}", style="red", markup=False)
    if not batch.was_running:
        console.print(f"the batch ended first ({batch.at_the_end} of {photos} tasks): give more --photos", style="red")
    if batch.failed or not batch.was_running or any(row["failed"] for row in rows):
        sys.exit(1)


def correct(bench: Load, tasks: Sequence[dict[str, Any]]) -> list[Submitted]:
    """Opens the first task, and then submits each and opens the one after it."""
    api, found = bench.parts.api, []
    api.open_task(bench.shown, tasks[0]["id"])
    with bench.console.status("correcting ..."):
        for task, following in itertools.pairwise(tasks):
            before = bench.parts.serving(bench.shown)
            began = time.monotonic()
            api.create_annotation(task["id"], _regions(bench, task["id"]), lead_time=5.0)
            learnt = _newer_head(bench, before, began)
            if learnt is None:
                found.append(Submitted(failed=f"no newer head within {_LEARNT_WITHIN:g} s"))
                continue
            served = bench.parts.serving(bench.shown)
            opened = api.open_task(bench.shown, following["id"])["predictions"]
            versions = {without_question(each["model_version"]) for each in opened}
            shown = time.monotonic() - began
            failed = "" if served in versions else f"the opened task has {sorted(versions) or 'no prediction'}"
            found.append(Submitted(learnt, shown, failed))
            bench.parts.check()
    return found


def _newer_head(bench: Load, before: str, began: float) -> float | None:
    while (seconds := time.monotonic() - began) < _LEARNT_WITHIN:
        if bench.parts.serving(bench.shown) != before:
            return seconds
        time.sleep(_LOOK_EVERY)
    return None


def _regions(bench: Load, task: int) -> list[dict[str, Any]]:
    """What an annotator draws: three classes, each a band of the photo, at places that differ from task to task."""
    width, height = SIZE
    edges = np.sort(np.random.default_rng(task).integers(8, height - 8, 4))
    answers = []
    for name, (top, bottom) in zip(bench.classes, itertools.pairwise(edges), strict=False):
        mask = np.zeros((height, width), bool)
        mask[top : bottom + 1] = True
        answers.append(ClassAnswer(name, 1.0, mask))
    [image] = parse_label_config(bench.config).images
    answer = Segmentation((height, width), tuple(answers))
    drawn = segmentation_to_label_studio(answer, image, f"submit-{task}", "person")["result"]
    return [{**{key: value for key, value in region.items() if key != "score"}, "origin": "manual"} for region in drawn]


def row_of(phase: str, submitted: Sequence[Submitted]) -> dict[str, Any]:
    """Median, 95th percentile and worst of the seconds of those that did not fail."""
    good = [one for one in submitted if not one.failed]
    row: dict[str, Any] = {"correction": phase, "count": len(submitted), "failed": len(submitted) - len(good)}
    for name in ("learnt", "shown"):
        seconds = [getattr(one, name) for one in good]
        row[f"{name}_median_s"] = float(np.median(seconds)) if seconds else None
        row[f"{name}_p95_s"] = float(np.percentile(seconds, 95)) if seconds else None
        row[f"{name}_worst_s"] = max(seconds, default=None)
    return row
