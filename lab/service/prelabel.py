"""`lasagna bench prelabel`: a whole project is pre-labelled while it is killed again and again.

The processes are those of production, with a real Label Studio. `lasagna prelabel` runs on the project; at equal
shares of the way it is ended with SIGKILL, the first time together with the worker, and both are started again.
Meanwhile Label Studio is asked every second what a person's browser asks: the first page of the list of tasks, and an
opened task, the same as before the run. One task is annotated beforehand, on a prediction of another version. The
milliseconds of the worker's stages are those that it counts itself, as on `/metrics`; of a batch that was killed it
counts nothing. What always holds: what is counted at the end is what Label Studio has, asked task by task, and the
command exits with 1 unless every task has exactly one prediction of the version and the annotated one is as it was.

After that, predictions that the model made are stored in another project through the two ways of
`backend.worker.delivery`, one by one and many in one request, in turn, so that both meet the same Label Studio.
"""

import itertools
import json
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np
from rich.console import Console

from backend.queue.counters import STAGES, read_counters
from backend.queue.store import Post, Work
from backend.studio.version_names import base_version
from backend.worker.delivery import AT_ONCE, deliver, deliver_together
from lab.bench.command import report, sample_classes
from lab.loop.product import running_product
from lab.service.load import small_photos
from lasagna.errors import ServiceError
from lasagna.labels.classes import make_label_config
from lasagna.masks.segmentation import ClassQuery

if TYPE_CHECKING:
    from backend.demo.parts import Demo

_ASK_EVERY = 1.0
_CLASSES = 8
_STORE_ROUNDS = 4
_QUIET = 20.0
"""Seconds for which Label Studio is asked before the run."""


@click.command(
    epilog="""\b
Examples:
  lasagna bench prelabel
  LASAGNA_ENCODER=openvino lasagna bench prelabel --kills 0 --photos 200
  lasagna bench prelabel --photos 60 --kills 3 --model ./my-checkpoint --json"""
)
@click.option("--photos", default=600, show_default=True, type=click.IntRange(2), help="Tasks of the project.")
@click.option("--kills", default=2, show_default=True, type=click.IntRange(0), help="Of the command.")
@click.option("--model", help="Checkpoint: a shipped name, a folder or a hub id.  [default: nano]")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of the table.")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="Write the JSON to a file too.")
def prelabel(photos: int, kills: int, model: str | None, as_json: bool, out: Path | None) -> None:
    """Kill `lasagna prelabel` in the midst of a project, and count predictions at the end."""
    console = Console(stderr=True)
    with running_product(model, None, console) as parts:
        api = parts.api
        config = make_label_config([ClassQuery(name) for name in sample_classes(_CLASSES)])
        project = api.create_project("bench prelabel", config)
        with console.status(f"{photos} photos to Label Studio ..."):
            tasks = api.upload(project, small_photos(parts.folder / "photos", photos))
        shown = api.create_prediction(tasks[0], {"model_version": "another-1", "result": []})
        api.create_annotation(tasks[0], [], lead_time=3.0, prediction=shown)
        before = _human_work(parts, project, tasks[0])
        with _asking(parts, project, tasks[0]) as alone:
            time.sleep(_QUIET)
        counted = read_counters(parts.store.redis)
        began = time.monotonic()
        with _asking(parts, project, tasks[0]) as meanwhile, console.status("pre-labelling, and being killed ..."):
            outcome = _run(parts, project, photos, kills)
        seconds = time.monotonic() - began
        stages = _stages(counted, read_counters(parts.store.redis), seconds)
        version = parts.model_version
        with console.status("counting ..."):
            found = Counter(
                sum(base_version(one["model_version"]) == version for one in api.predictions(task))
                for task in tasks[1:]
            )
        untouched = _human_work(parts, project, tasks[0]) == before
        with console.status("storing one by one and together ..."):
            stored = _stored_per_second(parts, config, tasks[1 : 1 + _STORE_ROUNDS])
    setting = {
        "model": version,
        "tasks": photos,
        "kills": kills,
        "seconds": round(seconds, 1),
        **stages,
        "exactly one prediction": found[1],
        "none": found[0],
        "several": sum(count for number, count in found.items() if number > 1),
        "failed": len(outcome["failed"]),
        "annotated task as it was": untouched,
        **stored,
    }
    rows = [{"Label Studio": "before the run", **alone.row()}, {"Label Studio": "during it", **meanwhile.row()}]
    report("prelabel", setting, rows, device="cpu", as_json=as_json, out=out)
    if not untouched or found[1] != photos - 1:
        sys.exit(1)


def _run(parts: "Demo", project: int, photos: int, kills: int) -> dict[str, Any]:
    """The command until its end, through so many kills; what it said at the end."""
    arguments = ("prelabel", str(project), "--json")
    command = parts.command(*arguments)
    for number in range(1, kills + 1):
        while parts.store.counts()["done"] < photos * number / (kills + 1):
            command.check()
            parts.check()
            time.sleep(0.2)
        _kill(command)
        if number == 1:
            worker = next(service for service in parts.services if service.name == "lasagna worker")
            _kill(worker)
            parts.services.remove(worker)
            parts.services.append(parts.command("worker"))
        command = parts.command(*arguments)
    while command.running:
        parts.check()
        time.sleep(0.5)
    if command.process.returncode not in (0, 1):
        command.check()
    said = command.log.read_text(encoding="utf-8")
    found: dict[str, Any] = json.loads(said[said.rindex('{\n "version"') :].partition("\n}")[0] + "\n}")
    return found


def _stages(before: Mapping[str, float], after: Mapping[str, float], seconds: float) -> dict[str, float]:
    """Images per second of the whole run, the worker's milliseconds for one in each stage, and the share of the run
    that it spent in the model.

    Args:
        before, after: What the worker has counted.
        seconds: Of the run.
    """

    def spent(field: str) -> float:
        return after.get(field, 0.0) - before.get(field, 0.0)

    found = {"images/s": round(spent("stage_images:model") / seconds, 2)}
    for stage in STAGES:
        found[f"ms {stage}"] = round(1000 * spent(f"seconds:{stage}") / max(1.0, spent(f"stage_images:{stage}")), 1)
    return {**found, "share of the model": round(spent("seconds:model") / seconds, 3)}


def _stored_per_second(parts: "Demo", config: str, predicted: list[int]) -> dict[str, float]:
    """Predictions per second that Label Studio takes one by one and together, and the ratio: median and range."""
    project = parts.api.create_project("bench prelabel: stored", config)
    parts.api.import_tasks(project, [{"data": {"image": "/data/upload/none.png"}}] * (_STORE_ROUNDS * 2 * AT_ONCE))
    tasks = iter([task.id for task in parts.api.tasks(project)])
    made = [parts.api.predictions(task)[0] for task in predicted]
    singly: list[float] = []
    together: list[float] = []
    for number in range(_STORE_ROUNDS):
        prediction = {name: made[number % len(made)][name] for name in ("result", "score", "model_version")}
        posts = []
        for task in itertools.islice(tasks, 2 * AT_ONCE):
            work = Work(f"{project}.1", task, "{}", "config", prediction["model_version"])
            posts.append(Post(work.key, work, prediction, is_first=True))
        ways: list[tuple[list[float], Callable[[list[Post]], object]]] = [
            (singly, lambda some: [deliver(parts.api, post.work.task or 0, post) for post in some]),
            (together, lambda some: deliver_together(parts.api, some)),
        ]
        for place, (rates, way) in enumerate(ways if number % 2 else ways[::-1]):
            began = time.perf_counter()
            way(posts[place * AT_ONCE : (place + 1) * AT_ONCE])
            rates.append(AT_ONCE / (time.perf_counter() - began))
    if missing := sum(not parts.api.predictions(task) for task in [post.work.task or 0 for post in posts]):
        raise ServiceError(f"{missing} of the last {len(posts)} predictions were not stored")
    ratios = np.array(together) / np.array(singly)
    return {
        "stored/s one by one": round(float(np.median(singly)), 2),
        "stored/s together": round(float(np.median(together)), 2),
        "times as many": round(float(np.median(ratios)), 1),
        "times at least": round(float(ratios.min()), 1),
        "times at most": round(float(ratios.max()), 1),
    }


def _kill(service: Any) -> None:
    service.process.kill()
    service.process.wait()


def _human_work(parts: "Demo", project: int, task: int) -> tuple[Any, Any]:
    """The annotations of a task, and its predictions."""
    opened = parts.api.open_task(project, task)
    annotations = [{k: v for k, v in one.items() if k != "created_ago"} for one in opened["annotations"]]
    return annotations, [one["id"] for one in opened["predictions"]]


class _Asked:
    """How long Label Studio's answers took, in milliseconds."""

    def __init__(self) -> None:
        self.milliseconds: dict[str, list[float]] = {"list": [], "task": []}

    def row(self) -> dict[str, float]:
        found = {}
        for name, times in self.milliseconds.items():
            for figure, value in (
                ("median", np.median(times)),
                ("p95", np.percentile(times, 95)),
                ("worst", max(times)),
            ):
                found[f"{name} {figure} ms"] = round(float(value), 1)
        return found


@contextmanager
def _asking(parts: "Demo", project: int, task: int) -> Iterator[_Asked]:
    """Asks for the first page of the list of tasks and for a task, again and again."""
    found, ended = _Asked(), threading.Event()
    ways: dict[str, Callable[[], Any]] = {
        "list": lambda: next(parts.api.tasks(project, page_size=30)),
        "task": lambda: parts.api.open_task(project, task),
    }

    def ask() -> None:
        while not ended.wait(_ASK_EVERY):
            for name, way in ways.items():
                began = time.perf_counter()
                way()
                found.milliseconds[name].append(1000 * (time.perf_counter() - began))

    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(ask)
        try:
            yield found
        finally:
            ended.set()
        asking.result()
