"""`lasagna bench load`: how long annotators wait, alone and while a whole project is pre-labelled.

The processes are those of production: a real Label Studio, Redis, `lasagna serve`, `lasagna worker`. Annotators are
threads that send what Label Studio sends when a person opens a task that has no prediction (`/predict` with one task,
whose photo the worker fetches from Label Studio) and then clicks on it twice. First alone, then beside a `POST /jobs`
that pre-labels another project through the same worker. What always holds: no photo is asked twice, so that no answer
comes from a cache but the features that clicks on an open photo share; a request counts as failed unless it has its
prediction; and the batch runs until the last request has its answer, or the command says so and exits with 1.
"""

import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click
import numpy as np
import requests
from PIL import Image
from rich.console import Console

from backend.studio.project_id import project_uid
from lab.bench.command import report, sample_classes, sample_images
from lab.loop.product import running_product
from lab.service.slow import slow_clients
from lasagna.errors import ServiceError, in_words
from lasagna.labels.classes import make_label_config
from lasagna.masks.segmentation import ClassQuery

if TYPE_CHECKING:
    from rich.console import Console

    from backend.demo.parts import Demo

SIZE = (320, 240)
_CLICKS = 2
"""On each photo that is opened."""
_CLASSES = 8
_TIMEOUT = 100.0
"""Seconds; Label Studio's own for /predict."""


class Timed(NamedTuple):
    """One request: "open" or "click", how long it took, and why it failed ("": it did not)."""

    kind: str
    seconds: float
    failed: str


@click.command(
    epilog="""\b
Examples:
  lasagna bench load
  lasagna bench load --photos 400 --annotators 8 --json
  lasagna bench load --slow 30
  lasagna bench load --model ./my-checkpoint --out runs/load.json"""
)
@click.option("--photos", default=240, show_default=True, type=click.IntRange(1), help="In the project of the batch.")
@click.option("--annotators", default=3, show_default=True, type=click.IntRange(1, 20), help="At the same time.")
@click.option("--opened", default=10, show_default=True, type=click.IntRange(1), help="Photos that each one opens.")
@click.option("--slow", default=0, show_default=True, type=click.IntRange(0, 500),
              help="Clients that send half a request and wait, in a phase of their own.")  # fmt: skip
@click.option("--model", help="Checkpoint: a shipped name, a folder or a hub id.  [default: nano]")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of the table.")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="Write the JSON to a file too.")
def load(
    photos: int, annotators: int, opened: int, slow: int, model: str | None, as_json: bool, out: Path | None
) -> None:
    """Measure how long annotators wait while a whole project is pre-labelled, in a real Label Studio."""
    console = Console(stderr=True)
    with running_product(model, None, console) as parts:
        bench = Load(parts, photos, annotators, opened, console, phases=3 if slow else 2)
        alone = bench.annotate(0)
        disturbed: list[Timed] = []
        if slow:
            with slow_clients(parts.backend_url, slow):
                disturbed = bench.annotate(2, f"beside {slow} slow clients")
        with bench.batch() as batch:
            beside = bench.annotate(1, "beside the batch")
            batch.was_running = bench.job()["state"] == "running"
            batch.at_the_end = bench.job()["through"]
    setting = {
        "model": parts.model_version,
        "annotators": annotators,
        "batch photos": photos,
        "photo": f"{SIZE[0]}x{SIZE[1]}",
        "classes": _CLASSES,
        "batch tasks/s": round(batch.rate, 3),
        "batch failed": batch.failed,
        "batch ran throughout": batch.was_running,
    }
    rows = [_row("alone", kind, alone) for kind in ("open", "click")]
    if slow:
        rows += [_row(f"beside {slow} slow clients", kind, disturbed) for kind in ("open", "click")]
    rows += [_row("beside a batch", kind, beside) for kind in ("open", "click")]
    report("load", setting, rows, device="cpu", as_json=as_json, out=out)
    for reason in sorted({one.failed for one in (*alone, *disturbed, *beside) if one.failed}):
        console.print(f"failed: {reason}", style="red", markup=False)
    if not batch.was_running:
        console.print(f"the batch ended first ({batch.at_the_end} of {photos} tasks): give more --photos", style="red")
    if batch.failed or not batch.was_running or any(row["failed"] for row in rows):
        sys.exit(1)


@dataclass
class Batch:
    """The pre-labelling of a project: tasks per second over its whole run, tasks that failed."""

    rate: float = 0.0
    failed: int = 0
    was_running: bool = False
    at_the_end: int = 0


class Load:
    """Two projects, with the processes running: one for the batch, one for the annotators.

    Attributes:
        shown: Number of the annotators' project.
        tasks: Its tasks, as Label Studio sends them.

    Args:
        parts: The processes.
        photos: Of the batch.
        annotators: How many there are.
        opened: Photos that each opens in each phase.
        console: For progress.
        phases: So often they annotate.
    """

    def __init__(
        self, parts: "Demo", photos: int, annotators: int, opened: int, console: "Console", phases: int = 2
    ) -> None:
        self.parts, self.console = parts, console
        self._annotators, self._opened = annotators, opened
        self.classes = sample_classes(_CLASSES)
        brushes = make_label_config([ClassQuery(name) for name in self.classes])
        labels = "".join(f'<Label value="{name}"/>' for name in self.classes)
        clicks = f'<KeyPointLabels name="click" toName="image" smart="true">{labels}</KeyPointLabels></View>'
        self.config = brushes.replace("</View>", clicks)
        needed = photos + phases * annotators * opened
        files = small_photos(parts.folder / "photos", needed)
        api = parts.api
        with console.status(f"{needed} photos to Label Studio ..."):
            self._batch = api.create_project("bench load: batch", self.config)
            api.upload(self._batch, files[:photos])
            shown = self.shown = api.create_project("bench load: annotators", self.config)
            api.upload(shown, files[photos:])
        api.connect_backend(shown, parts.backend_url, interactive=True)
        self._project = project_uid(api.project(shown))
        self.tasks = [{"id": task.id, "project": shown, "data": task.data} for task in api.tasks(shown)]
        self._job = ""

    def annotate(self, phase: int, what: str = "alone") -> list[Timed]:
        """All annotators once, each with photos of its own; `what` says beside what."""
        per_phase = self._annotators * self._opened
        tasks = self.tasks[phase * per_phase : (phase + 1) * per_phase]
        with ThreadPoolExecutor(self._annotators) as pool:
            shares = [tasks[i :: self._annotators] for i in range(self._annotators)]
            found = [one for timed in pool.map(self._work, shares) for one in timed]
        self.parts.check()
        self.console.print(f"[green]done[/] {len(found)} requests {what}")
        return found

    def _work(self, tasks: Sequence[dict[str, Any]]) -> list[Timed]:
        found = []
        with requests.Session() as session:
            for task in tasks:
                found.append(self._ask(session, "open", task, None))
                for number in range(_CLICKS):
                    found.append(self._ask(session, "click", task, self._click(number)))
        return found

    def _ask(self, session: requests.Session, kind: str, task: dict[str, Any], context: Any) -> Timed:
        body = {"tasks": [task], "project": self._project, "label_config": self.config, "params": {"context": context}}
        began = time.perf_counter()
        try:
            answer = session.post(f"{self.parts.backend_url}/predict", json=body, timeout=_TIMEOUT)
            seconds = time.perf_counter() - began
            said = answer.json()
            errors = [str(said.get("error") or ""), *said.get("errors", {}).values()]
            failed = next(filter(None, errors), "" if answer.ok and said["results"][0] else "no prediction in time")
        except (requests.RequestException, ValueError) as error:
            seconds, failed = time.perf_counter() - began, in_words(error)
        return Timed(kind, seconds, failed)

    def _click(self, number: int) -> dict[str, Any]:
        """A click as Label Studio sends it, in percent of the photo."""
        value = {"x": 30.0 + 30 * number, "y": 50.0, "width": 0.5, "keypointlabels": [self.classes[number]]}
        region = {"type": "keypointlabels", "from_name": "click", "to_name": "image", "is_positive": True}
        return {"result": [{**region, "value": value}]}

    @contextmanager
    def batch(self) -> Iterator[Batch]:
        """Begins the batch, and waits for its end."""
        found = Batch()
        answer = requests.post(f"{self.parts.backend_url}/jobs", json={"project": self._batch}, timeout=30)
        answer.raise_for_status()
        self._job = answer.json()["id"]
        self._wait(lambda job: job["predicted"])
        yield found
        job = self._wait(lambda job: job["state"] not in ("queued", "running"))
        if job["state"] != "done":
            raise ServiceError(f"the batch ended as {job['state']}: {job['reason']}")
        found.rate, found.failed = job["rate"] or 0.0, job["failed"]

    def job(self) -> dict[str, Any]:
        """The batch as `GET /jobs/ID` shows it."""
        answer = requests.get(f"{self.parts.backend_url}/jobs/{self._job}", timeout=30)
        answer.raise_for_status()
        return dict(answer.json())

    def _wait(self, ready: Any) -> dict[str, Any]:
        with self.console.status("batch ..."):
            while not ready(job := self.job()):
                self.parts.check()
                if job["state"] == "failed":
                    raise ServiceError(f"the batch failed: {job['reason']}")
                time.sleep(0.3)
        return job


def small_photos(folder: Path, count: int) -> list[Path]:
    """Small JPEG files, each with another content: the real photos of `lab.bench.command.sample_images`, shifted."""
    folder.mkdir(parents=True, exist_ok=True)
    photos = [np.asarray(Image.fromarray(photo).resize(SIZE)) for photo in sample_images(3)]
    files = []
    for number in range(count):
        files.append(folder / f"{number:05}.jpg")
        shifted = np.roll(photos[number % 3], (number // 960, number // 3 % 320), axis=(0, 1))
        Image.fromarray(shifted).save(files[-1], quality=90)
    return files


def _row(phase: str, kind: str, timed: Sequence[Timed]) -> dict[str, Any]:
    seconds = [one.seconds for one in timed if one.kind == kind and not one.failed]
    return {
        "requests": f"{kind}, {phase}",
        "count": sum(one.kind == kind for one in timed),
        "failed": sum(one.kind == kind and bool(one.failed) for one in timed),
        "median_s": float(np.median(seconds)) if seconds else None,
        "p95_s": float(np.percentile(seconds, 95)) if seconds else None,
        "worst_s": max(seconds, default=None),
    }
