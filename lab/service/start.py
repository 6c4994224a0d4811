"""`lasagna bench start`: from nothing to the first answer."""

import json
import statistics
import subprocess
import sys
from pathlib import Path

import click

from lab.bench.command import Row, report
from lasagna.errors import DataError

_PROGRAM = """
import json, sys, time
stages, last = {}, (time.perf_counter(), time.process_time())
def lap(name):
    global last
    now = (time.perf_counter(), time.process_time())
    stages[name], last = [now[0] - last[0], now[1] - last[1]], now
import torch; lap("torch")
import lasagna.assistant.lasagna; lap("imports")
model = lasagna.assistant.lasagna.Lasagna.from_pretrained(sys.argv[1], device="cpu"); lap("load")
from lab.bench.command import sample_images; photo = sample_images(1)[0]; lap("photo")
model.segment(photo, ["sky", "road", "cat"]); lap("first answer")
model.segment(photo, ["sky", "road", "cat"]); lap("second answer")
print(json.dumps(stages))
"""


@click.command(
    epilog="""\b
Examples:
  lasagna bench start
  lasagna bench start --repeats 1 --json
"""
)
@click.option("--model", "model_name", default="nano", show_default=True, help="Shipped name, folder, hub id.")
@click.option("--repeats", type=click.IntRange(1), default=3, show_default=True, help="Median of so many.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of the table.")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="Write the JSON to a file too.")
def start(model_name: str, repeats: int, as_json: bool, out: Path | None) -> None:
    """Seconds from a new process to the first answer about a photo, by stage, on the CPU.

    Each repeat is a process of its own. wall is what a person waits, processor what the work takes; on a busy machine
    only the second says something. "photo" reads the sample; it is in no sum. "second answer" is what the first takes
    without lazy imports and set-up.
    """
    runs = [_run(model_name) for _ in range(repeats)]
    rows: list[Row] = [
        {
            "stage": stage,
            "wall_s": statistics.median(run[stage][0] for run in runs),
            "processor_s": statistics.median(run[stage][1] for run in runs),
        }
        for stage in runs[0]
        if stage != "photo"
    ]
    to_first = ("torch", "imports", "load", "first answer")
    rows.append(
        {
            "stage": "all up to the first answer",
            "wall_s": statistics.median(sum(run[stage][0] for stage in to_first) for run in runs),
            "processor_s": statistics.median(sum(run[stage][1] for stage in to_first) for run in runs),
        }
    )
    report("start", {"model": model_name, "repeats": repeats}, rows, device="cpu", as_json=as_json, out=out)


def _run(model_name: str) -> dict[str, list[float]]:
    """Stage: seconds on the clock and of the processor, in a new process. Raises DataError with what it said."""
    done = subprocess.run([sys.executable, "-c", _PROGRAM, model_name], capture_output=True, text=True, check=False)
    if done.returncode:
        raise DataError(f"the process that was to answer failed: {done.stderr.strip().splitlines()[-1]}")
    found: dict[str, list[float]] = json.loads(done.stdout)
    return found
