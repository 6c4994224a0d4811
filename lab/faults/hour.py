"""`lasagna bench hour`: does what the product takes stay the same while everything goes on, faults too?

A real Label Studio, Redis, the web process, two workers and the training process run with a shipped model. An
annotator opens one photo after another, clicks on it and submits masks, which starts a fine-tune every few corrections;
a project is pre-labelled again and again; somebody reads the pages; and every few minutes a fault strikes. The photos
are the same all the time: each is annotated anew (the older annotation is deleted), so that nothing has a reason to
grow but what is kept of each prediction for seven days, which is counted apart.

What always holds: the web process, the first worker and the training process are never ended, so that their memory is
that of the whole time; everything that is asked again after a fault is asked until it is answered, or counted.
"""

import json
import random
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np
import requests
from rich.console import Console

from backend.queue.services import port_is_free
from backend.queue.store import connect
from backend.registry.registry import Registry
from backend.studio.project_id import project_uid
from lab.bench.command import report, sample_classes
from lab.faults.bad_gateway import BadGateway
from lab.faults.catalogue import FAULTS
from lab.faults.loop import QUICK
from lab.faults.rig import Fault, Rig
from lab.loop.annotator import SimulatedAnnotator
from lab.service.soak import make_photos
from lab.service.watch import Sample, plot_samples, table_of, take_sample
from lasagna.errors import LasagnaError
from lasagna.labels.classes import make_label_config
from lasagna.labels.configuration import parse_label_config
from lasagna.masks.segmentation import ClassQuery
from lasagna.settings import registry_folder

if TYPE_CHECKING:
    from lab.faults.parts import Parts

_CLASSES = 8
_SIDE = 256
_PHOTOS = 24
"""In each of the two projects."""
_SETTINGS = {
    "LASAGNA_TRAIN_WHEN": "every 12",
    # Steps that are as small as a step can be: what is looked at is what a fine-tune leaves behind.
    "LASAGNA_TRAIN_CHANGES": QUICK,
    "LASAGNA_PREDICT_DEADLINE": "30",
    "LASAGNA_IMAGE_TIMEOUT": "15",
    "LASAGNA_DELIVERY_TIMEOUT": "600",
    "LASAGNA_GUESS_UNKNOWN": "yes",
}
_KEPT = ("label-studio", "memory", "500", "502", "slow", "half", "slow-clients", "events")
"""Faults of `lasagna bench faults` that end none of the processes whose memory is looked at."""
_PAGES = ("/health", "/ready", "/metrics", "/status", "/versions", "/jobs", "/report/1")


@click.command(
    epilog="""\b
Examples:
  lasagna bench hour --out runs/hour
  lasagna bench hour --minutes 6 --every 60 --out runs/hour --plot docs/lab/hour.svg

\b
Needs Label Studio (make setup). A run that is ended with Ctrl-C reports what it has. samples.jsonl in the folder has
every figure of every moment."""
)
@click.option("--minutes", type=click.FloatRange(min=1), default=60.0, show_default=True)
@click.option(
    "--every", type=click.FloatRange(min=10), default=150.0, show_default=True, help="Seconds between faults."
)
@click.option("--model", default="nano", show_default=True, help="Shipped name, folder or hub id.")
@click.option("--seed", default=1, show_default=True, help="Of the faults and their moments.")
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), help="Folder for data, logs and samples.")
@click.option("--plot", type=click.Path(path_type=Path, dir_okay=False), help="Draw it there too (SVG, PNG, PDF).")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of the table.")
def hour(
    minutes: float, every: float, model: str, seed: int, out: Path | None, plot: Path | None, as_json: bool
) -> None:
    """Requests, corrections, fine-tunes and faults for an hour: memory, keys and disk, and where they end up."""
    from lab.faults.parts import Parts

    console = Console(stderr=True)
    with ExitStack() as stack:
        folder = (out or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="lasagna-hour-")))).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        gateway = BadGateway()
        stack.callback(gateway.stop)
        with console.status("starting Label Studio, Redis, the web process, two workers and the training process ..."):
            given = {**_SETTINGS, "LASAGNA_MODEL": model}
            ours = ("serve", "worker-a", "worker-b", "training")
            parts = Parts(folder, ours, given, label_studio_url=gateway.to, fsync="everysec")
            stack.callback(parts.stop)
            run = Hour(parts, Rig(parts, gateway, None, None, seed), console)
        with suppress(KeyboardInterrupt):
            run.go(minutes, every)
        run.stop()
    if plot is not None:
        plot_samples(plot, run.samples, _PANELS)
    setting = {"model": model, "minutes": round(run.samples[-1]["minutes"], 1), **run.counts, "failed_with": run.failed}
    report("hour", setting, table_of(run.samples, run.names()), device="cpu", as_json=as_json, out=None)


_PANELS: Sequence[tuple[str, str, Callable[[str], bool]]] = (
    ("Memory of the processes", "MiB", lambda name: name.startswith("mib:") and name != "mib:redis data"),
    ("Keys of Redis", "keys", lambda name: name.startswith("keys:")),
    ("Files", "MB", lambda name: name.startswith("mb:")),
)  # fmt: skip


class Hour:
    """Everything at work.

    Attributes:
        samples: What was taken, in the order of time.
        counts: How often what was done.
        failed: Why something was not answered, and how often; beside a fault some is not.

    Args:
        parts: The processes.
        rig: What the faults strike.
        console: For progress.
    """

    def __init__(self, parts: "Parts", rig: Rig, console: Console) -> None:
        self.parts, self.rig, self.console = parts, rig, console
        self.samples: list[Sample] = []
        self.counts: Counter[str] = Counter()
        self.failed: Counter[str] = Counter()
        self._over = threading.Event()
        self._threads: list[threading.Thread] = []
        self._rng = random.Random(0)
        self._config = make_label_config([ClassQuery(name) for name in sample_classes(_CLASSES)]).replace(
            "</View>", _CLICKS
        )
        rig.until(lambda: not port_is_free(parts.web_port), "the web process")
        photos = parts.folder / "photos"
        if not photos.exists():
            make_photos(photos, 2 * _PHOTOS, _SIDE)
        files = sorted(photos.iterdir())
        self._projects = [rig.api.create_project(f"hour {number}", self._config) for number in (1, 2)]
        self._tasks = [
            rig.api.upload(project, files[_PHOTOS * number : _PHOTOS * (number + 1)])
            for number, project in enumerate(self._projects)
        ]
        self._url = f"http://127.0.0.1:{parts.web_port}"
        for project in self._projects:
            rig.api.connect_backend(project, self._url, interactive=True)
        rig.project = self._projects[0]

    def names(self) -> list[str]:
        """The figures."""
        return sorted({name for one in self.samples for name in one} - {"minutes"})

    def go(self, minutes: float, every: float) -> None:
        """Lets everything work for so long, and strikes a fault every so many seconds."""
        began = time.monotonic()
        for work in (self._annotate, self._prelabel, self._read, lambda: self._watch(began)):
            self._threads.append(threading.Thread(target=work, daemon=True))
            self._threads[-1].start()
        faults = [fault for fault in FAULTS if fault.name in _KEPT]
        faults += [Fault("worker", "kill -9 of the second worker", lambda rig: rig.parts.kill("worker-b")),
                   Fault("redis", "kill -9 of Redis", lambda rig: rig.parts.kill("redis"))]  # fmt: skip
        end = began + 60 * minutes
        while time.monotonic() < end:
            for fault in self._rng.sample(faults, len(faults)):
                self.rig.wait(min(every, max(0.0, end - time.monotonic())))
                if time.monotonic() >= end:
                    break
                fault.strike(self.rig)
                self.counts["faults"] += 1
                said = ", ".join(f"{count} {name}" for name, count in sorted(self.counts.items()))
                self.console.print(f"{(time.monotonic() - began) / 60:.0f} min: {fault.name}; {said}", highlight=False)

    def stop(self) -> None:
        """Ends what works; what it is about is finished first."""
        self._over.set()
        for thread in self._threads:
            self.rig.until(lambda thread=thread: not thread.is_alive(), "the end")  # type: ignore[misc]
        for project in self._projects:
            self.counts["fine-tunes"] += len(self._ended(project))
        self.counts["versions"] = len([*Registry(registry_folder(self.parts.settings)).versions()])

    def _ended(self, project: int) -> list[Path]:
        jobs = registry_folder(self.parts.settings) / "jobs"
        return [*jobs.glob(f"*-{project}-*/end.json")]

    def _until_over(self, what: str, work: Callable[[], None], pause: float) -> None:
        while not self._over.wait(pause):
            try:
                work()
            except (LasagnaError, requests.RequestException, OSError, ValueError, KeyError) as error:
                self.failed[f"{what}: {type(error).__name__}"] += 1

    # --- who works ----------------------------------------------------------------------------------------------------

    def _annotate(self) -> None:
        """Opens, clicks, submits, photo after photo, in both projects in turn."""
        api, plan = self.parts.label_studio.api(), parse_label_config(self._config)
        annotator = SimulatedAnnotator(api, plan)
        places = [(number, index) for index in range(_PHOTOS) for number in range(2)]
        done = 0

        def work() -> None:
            nonlocal done
            number, index = places[done % len(places)]
            project, task = self._projects[number], self._tasks[number][index]
            found = api.open_task(project, task)
            self.counts["opened"] += 1
            self._click(project, found)
            for annotation in found["annotations"]:
                api.delete_annotation(int(annotation["id"]))
            annotator.correct(task, _truth(sample_classes(_CLASSES), task, done // len(places)))
            self.counts["corrected"] += 1
            done += 1

        self._until_over("annotator", work, pause=1.0)

    def _click(self, project: int, task: dict[str, Any]) -> None:
        value = {"x": 40.0, "y": 50.0, "width": 0.5, "keypointlabels": [sample_classes(1)[0]]}
        region = {"type": "keypointlabels", "from_name": "click", "to_name": "image", "is_positive": True}
        body = {
            "tasks": [{"id": task["id"], "project": project, "data": task["data"]}],
            "project": project_uid(self.rig.api.project(project)),
            "label_config": self._config,
            "params": {"context": {"result": [{**region, "value": value}]}},
        }
        answer = requests.post(f"{self._url}/predict", json=body, timeout=60)
        self.counts["clicked" if answer.ok else "not clicked"] += 1

    def _prelabel(self) -> None:
        """The second project is pre-labelled again as soon as it was."""

        def work() -> None:
            answer = requests.post(f"{self._url}/jobs", json={"project": self._projects[1]}, timeout=30)
            answer.raise_for_status()
            id = answer.json()["id"]
            while not self._over.wait(1.0):
                with suppress(requests.RequestException, ValueError):
                    job = requests.get(f"{self._url}/jobs/{id}", timeout=30).json()
                    if job.get("state") not in (None, "queued", "running"):
                        self.counts[f"jobs {job.get('state')}"] += 1
                        return

        self._until_over("prelabel", work, pause=20.0)

    def _read(self) -> None:
        """Reads every page of ours, and sends a photo of its own to the interactive queue."""

        def work() -> None:
            for page in _PAGES:
                answer = requests.get(self._url + page, timeout=60)
                self.counts["pages"] += 1
                if not answer.ok:
                    self.failed[f"{page}: {answer.status_code}"] += 1

        self._until_over("reader", work, pause=2.0)

    def _watch(self, began: float) -> None:
        """Notes the figures, every few seconds."""
        connection = connect(self.parts.redis_url, timeout=10.0)
        state = self.parts.settings.state_dir
        folder = self.parts.folder
        with (folder / "samples.jsonl").open("a") as file:

            def work() -> None:
                groups = {name: service.process.pid for name, service in self.parts.services.items()}
                folders = {f"state/{path.name}": path for path in Path(str(state)).iterdir() if path.is_dir()}
                folders = {name: path for name, path in folders.items() if path.name != "registry"}
                registry = registry_folder(self.parts.settings)
                folders |= {f"registry/{path.name}": path for path in registry.glob("[!.]*") if path.is_dir()}
                folders |= {"redis": folder / "redis"}
                sample = take_sample(began, groups, connection, folders)
                sample["mb:logs"] = sum(path.stat().st_size for path in folder.glob("*.log")) / 1e6
                self.samples.append(sample)
                file.write(json.dumps(sample) + "\n")
                file.flush()

            self._until_over("watch", work, pause=10.0)


_CLICKS = (
    '<KeyPointLabels name="click" toName="image" smart="true">'
    + "".join(f'<Label value="{name}"/>' for name in sample_classes(_CLASSES))
    + "</KeyPointLabels></View>"
)


def _truth(names: Sequence[str], task: int, turn: int) -> dict[str, Any]:
    """Masks that mean nothing: two boxes, which differ from photo to photo and, so that there is something to train on,
    whenever the photo's turn comes again."""
    rng = np.random.default_rng([task, turn])
    width = height = _SIDE
    found = {}
    for name in rng.choice(names, 2, replace=False):
        left, top = int(rng.integers(0, width // 2)), int(rng.integers(0, height // 2))
        mask = np.zeros((height, width), bool)
        mask[top : top + height // 3, left : left + width // 3] = True
        found[str(name)] = mask
    return found
