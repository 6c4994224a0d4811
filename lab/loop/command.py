"""`lasagna bench loop`: the learning loop from end to end, with a simulated annotator in a real Label Studio.

Photos of a data set become a project: some to be corrected, some that nobody touches. All are pre-labelled; the
annotator corrects the first, as a person's work would arrive; "Start Training" is pressed; and once the gate has
decided, the project is pre-labelled again. What is measured of the untouched photos is what Label Studio shows of them:
their newest predictions. What always holds: the processes are those of production, each on a free port of 127.0.0.1,
and end with the benchmark; the truth of an untouched photo reaches no other part.
"""

import hashlib
import json
import random
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np
import requests
from rich.console import Console
from rich.progress import Progress

from backend.demo.parts import Demo
from backend.instant.changes import Changes
from backend.loop.holdout import Sides, difference_hash
from backend.registry.registry import Registry
from backend.studio.project_id import project_uid
from backend.studio.version_names import base_version
from backend.web.predictions import Predictor
from lab.loop.annotator import Habits, SimulatedAnnotator
from lab.loop.product import running_product
from lasagna.environment import describe_environment
from lasagna.errors import DataError, ServiceError
from lasagna.formats.annotations import region_to_mask
from lasagna.formats.regions import read_regions
from lasagna.labels.classes import make_label_config
from lasagna.labels.configuration import parse_label_config
from lasagna.masks.image import load_image
from lasagna.masks.segmentation import ClassQuery
from lasagna.settings import registry_folder
from training.commands.options import DATA_HELP, DataSetFolder
from training.data.records import UNKNOWN
from training.data.sets import Subset
from training.data.sources.folder import Folder
from training.evaluation.tables import Cell, markdown_table

if TYPE_CHECKING:
    from rich.console import Console

    from backend.demo.parts import Demo
    from lasagna.masks.segmentation import Mask
    from training.data.sources import Source


_EVENTS, _AT_ONCE = 500, 8
"""A burst of webhook events while the model trains, and how many come at the same time."""


@dataclass(frozen=True)
class Shown:
    """What Label Studio shows of the untouched photos, against the truth.

    Attributes:
        version: Model version of the predictions.
        miou: Mean over the classes that are in a photo of intersection over union, each summed over all photos.
        f1: Of the decisions present or absent, over all photos and classes.
        changed_pixels: Per photo, the share of its pixels, in [0, 1], that a person must change, summed over classes.
        regions: Per photo, how many are right, must be changed, added, deleted (`lab.loop.annotator.Habits.accept`).
    """

    version: str
    miou: float
    f1: float
    changed_pixels: float
    regions: Mapping[str, float]


@click.command(
    epilog="""\b
Examples:
  lasagna bench loop --data atwork --corrections 20 --json
  lasagna bench loop --data cwfid --corrections 10 --rounds 1 --model ./my-checkpoint --out runs/loop"""
)
@click.option(
    "--data",
    required=True,
    type=DataSetFolder(),
    help=f"Its train split is corrected, its val split stays untouched: {DATA_HELP}.",
)
@click.option("--corrections", default=20, show_default=True, type=click.IntRange(1), help="Photos in each round.")
@click.option("--rounds", default=2, show_default=True, type=click.IntRange(1), help="Fine-tunes, one after another.")
@click.option("--untouched", default=100, show_default=True, type=click.IntRange(1), help="Photos that are measured.")
@click.option("--model", help="The checkpoint to begin with.  [default: nano]")
@click.option(
    "--swap",
    is_flag=True,
    help="Swap the classes in every correction that is trained on, so that the gate, "
    "whose photos are corrected rightly, has to refuse.",
)
@click.option(
    "--instant/--no-instant",
    default=True,
    show_default=True,
    help="Whether an instant head learns from each correction at once; its figures are rows of their own.",
)
@click.option("--seed", default=1, show_default=True, help="Of the choice of photos.")
@click.option("--timeout", default=3600.0, show_default=True, help="Seconds to wait for one training job.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder for the report of each round, logs and state.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout instead of the table.")
def loop(
    data: Path,
    corrections: int,
    rounds: int,
    untouched: int,
    model: str | None,
    swap: bool,
    instant: bool,
    seed: int,
    timeout: float,
    out: Path | None,
    as_json: bool,
) -> None:
    """Correct photos in a real Label Studio, fine-tune, and measure what that spares on photos nobody touched."""
    console = Console(stderr=True)
    wanted, measured = Folder(data, "train"), Folder(data, "val")
    if len(wanted) < corrections * rounds:
        raise DataError(f"{data}: {corrections} corrections in each of {rounds} rounds; it has {len(wanted)} photos")
    order = random.Random(seed).sample(range(len(wanted)), corrections * rounds)
    chosen = np.linspace(0, len(measured) - 1, min(untouched, len(measured))).round().astype(int)
    with running_product(model, out, console, instant=instant) as parts:
        sets = Subset(wanted, order), Subset(measured, chosen.tolist())
        bench = Bench(parts, wanted.name, *sets, console, timeout, instant)
        report = bench.run(corrections, rounds, swap)
        if out is not None:
            bench.keep_pages(out, report)
    report |= {
        "data": data.name,
        "corrections": corrections,
        "seed": seed,
        "swapped": swap,
        "instant": instant,
        "environment": describe_environment("cpu"),
    }
    if out is not None:
        (out / "loop.json").write_text(json.dumps(report, indent=1) + "\n")
    click.echo(json.dumps(report, indent=1) if as_json else table(report))


class Bench:
    """One project of the benchmark, with its processes running.

    Args:
        parts: The processes.
        name: Of the data set.
        wanted: Photos to correct.
        measured: Photos that stay untouched.
        console: For progress.
        timeout: Seconds for one training job.
        instant: Whether the product learns at once.
    """

    def __init__(
        self,
        parts: "Demo",
        name: str,
        wanted: "Source",
        measured: "Source",
        console: "Console",
        timeout: float,
        instant: bool,
    ) -> None:
        from backend.loop.trainings import Trainings

        self._parts, self._wanted, self._measured = parts, wanted, measured
        self._console, self._timeout, self._instant = console, timeout, instant
        xml = make_label_config([ClassQuery(name) for name in wanted.classes])
        self._config = parse_label_config(xml)
        self._api = parts.api
        self._registry, self._trainings = Registry(registry_folder(parts.settings)), Trainings(parts.store)
        self._project = self._api.create_project(f"bench loop: {name}", xml)
        self._uid = project_uid(self._api.project(self._project))
        with self._step(f"{len(wanted) + len(measured)} photos to Label Studio"):
            photos = [*_photos(wanted), *_photos(measured)]
            tasks = self._api.upload(self._project, photos)
        self._to_correct, self._untouched = tasks[: len(wanted)], tasks[len(wanted) :]
        self._connection = self._api.connect_backend(self._project, parts.backend_url)

    def run(self, corrections: int, rounds: int, swap: bool) -> dict[str, Any]:
        """All rounds; see `table` for what the report holds."""
        report: dict[str, Any] = {"rounds": []}
        self._prelabel()
        report["rounds"].append({"corrected": 0, "shown": asdict(self._shown())})
        annotator = SimulatedAnnotator(self._api, self._config, Habits())
        sides = Sides(Path(self._parts.settings.state_dir) / "bench-sides.json")  # the job's will be the same
        for number in range(rounds):
            at = range(number * corrections, (number + 1) * corrections)
            counts = dict.fromkeys(("accepted", "changed", "added", "deleted"), 0)
            wrong = self._trained(sides, at.stop) if swap else set()
            with self._step(f"round {number + 1}: {corrections} corrections"):
                for index in at:
                    wanted = _truth(self._wanted, index)
                    wanted = _swapped(wanted, self._wanted.classes) if index in wrong else wanted
                    done = annotator.correct(self._to_correct[index], wanted)
                    for key in counts:
                        counts[key] += getattr(done, key)
            at_once = None
            if self._instant:
                self._learn_at_once(at.stop)
                at_once = asdict(self._shown())
            began = time.monotonic()
            with self._step("training job"):
                self._api.start_training(self._connection)
                before = str(report["rounds"][-1].get("ended", ""))
                self._wait_for_training(before, until_it_trains=True)
                meanwhile = self._meanwhile(self._to_correct[at[0]])
                ended = self._wait_for_training(before)
            seconds = time.monotonic() - began
            version = self._registry.version(ended["version"])
            verdict = json.loads((version.folder / "report.json").read_text(encoding="utf-8"))
            self._console.print(verdict["summary"], markup=False)
            if self._instant:
                self._learn_at_once(at.stop)
            else:
                with self._step("pre-labelling again"):
                    self._prelabel()
            report["rounds"].append(
                {
                    "corrected": at.stop,
                    "corrections": counts,
                    "at_once": at_once,
                    "version": version.id,
                    "promoted": ended["outcome"] == "promoted",
                    "promoted_later": self._promoted_later(report["rounds"][-1]),
                    "verdict": verdict["summary"],
                    "replay_miou": verdict["figures"].get("replay_miou"),
                    "training_seconds": round(seconds, 1),
                    "stages": version.metrics.get("took"),
                    "ended": ended["ended"],
                    "meanwhile": meanwhile,
                    "shown": asdict(self._shown()),
                }
            )
        return report

    def _promoted_later(self, before: Mapping[str, Any]) -> bool:
        """Whether the version of a round was refused in it, and promoted since, when it was judged again."""
        if before.get("promoted") is not False:
            return False
        history = self._registry.aliases(self._uid).history
        return any(event.action == "promote" and event.version == before["version"] for event in history)

    def _trained(self, sides: Sides, count: int) -> set[int]:
        """Those of the first `count` photos to correct that the job will train on, and not hold out."""
        contents = [path.read_bytes() for path in _photos(self._wanted)[:count]]
        photos = [hashlib.sha256(content).hexdigest() for content in contents]
        places = sides.divide(
            {photo: difference_hash(load_image(c)) for photo, c in zip(photos, contents, strict=True)}
        )
        return {index for index, photo in enumerate(photos) if places[photo].side == "train"}

    def keep_pages(self, folder: Path, report: Mapping[str, Any]) -> None:
        """The page of edit effort that the backend serves, and the gate's report of every round."""
        page = requests.get(f"{self._parts.backend_url}/report/{self._project}", timeout=120)
        page.raise_for_status()
        (folder / "effort.html").write_text(page.text, encoding="utf-8")
        for number, entry in enumerate(report["rounds"][1:], 1):
            shutil.copy(self._registry.version(entry["version"]).folder / "report.html", folder / f"gate-{number}.html")

    @contextmanager
    def _step(self, what: str) -> Iterator[None]:
        began = time.monotonic()
        with self._console.status(f"{what} ..."):
            yield
        self._console.print(f"[green]done[/] {what} [dim]({time.monotonic() - began:.1f} s)", highlight=False)

    def _prelabel(self) -> None:
        """`lasagna prelabel` on the project: predictions of the version that serves it for every untouched task."""
        from backend.web.prelabel import ProjectRun

        run = ProjectRun(Predictor(self._parts.settings, self._parts.store), self._api, self._project)
        with Progress(console=self._console) as progress:
            bar = progress.add_task("pre-labelling", total=run.total)
            outcome = run.run(lambda _: progress.advance(bar))
        if outcome.failed:
            task, reason = next(iter(outcome.failed.items()))
            raise ServiceError(f"{len(outcome.failed)} tasks were not predicted, task {task}: {reason}")

    def _learn_at_once(self, corrections: int) -> None:
        """Waits until the head beside what serves knows all corrections, and pre-labels with it."""
        project, changes = project_uid(self._api.project(self._project)), Changes(self._parts.store)
        with self._step("the instant head"):
            deadline = time.monotonic() + self._timeout
            while time.monotonic() < deadline:
                self._parts.check()
                said, serves = changes.said(project), base_version(self._parts.serving(self._project))
                learnt = said.get("version") == serves and int(said.get("corrections") or 0) >= corrections
                if learnt and not changes.waiting(project):
                    break
                time.sleep(1.0)
            else:
                raise ServiceError(
                    f"the head does not know the {corrections} corrections within {self._timeout:.0f} s: "
                    f"{said or 'nothing is learnt'}; left out: {changes.aside(project) or 'none'}"
                )
            self._console.print(f"  {said.get('reason')}", style="dim", markup=False)
        with self._step("pre-labelling again"):
            self._prelabel()

    def _shown(self) -> Shown:
        from backend.effort.measure import edit_effort

        names = self._measured.classes
        position = {name: i for i, name in enumerate(names)}
        both, either, present = (np.zeros(len(names), np.int64) for _ in range(3))
        said_right = said_wrong = missed = 0
        changed: list[float] = []
        regions = dict.fromkeys(("accepted", "changed", "added", "deleted"), 0)
        versions = set()
        for index, task in enumerate(self._untouched):
            newest = max(self._api.predictions(task), key=lambda one: int(one["id"]))
            versions.add(newest["model_version"])
            truth, valid = _truth(self._measured, index), _valid(self._measured, index)
            drawn: dict[str, Mask] = {}
            [found] = read_regions(newest["result"], self._config.images).of_image
            for region in found:
                if region.labels:
                    size = (valid.shape[0], valid.shape[1])
                    drawn[region.labels[0].value] = region_to_mask(region, size) & valid
            effort = edit_effort(drawn, truth)
            for name, one in effort.classes.items():
                union = (one.before + one.after + one.changed) // 2
                both[position[name]] += union - one.changed
                either[position[name]] += union
                if one.before and one.after:
                    right = union - one.changed >= Habits().accept * union
                    regions["accepted" if right else "changed"] += 1
                else:
                    regions["deleted" if one.before else "added"] += 1
            for name in truth:
                present[position[name]] += 1
            said_right += len(truth.keys() & drawn.keys())
            said_wrong += len(drawn.keys() - truth.keys())
            missed += len(truth.keys() - drawn.keys())
            changed.append(effort.changed / max(1, int(valid.sum())))
        count = len(self._untouched)
        return Shown(
            ", ".join(sorted(versions)),
            float((both[present > 0] / either[present > 0]).mean()),
            2 * said_right / max(1, 2 * said_right + said_wrong + missed),
            float(np.mean(changed)),
            {key: value / count for key, value in regions.items()},
        )

    def _meanwhile(self, task: int) -> dict[str, float]:
        """While the model trains: a burst of webhook events of another project, and a photo to predict.

        Args:
            task: A corrected task, whose annotation is what each event carries, as Label Studio sends it in full.

        Returns:
            `events`, `webhook_median_ms`, `webhook_worst_ms`, and `prediction_s`: of one photo, asked meanwhile.
        """
        opened = self._api.open_task(self._project, task)
        annotation = {**opened["annotations"][0], "task": task}
        event = {"action": "ANNOTATION_UPDATED", "project": {"id": 0}, "annotation": annotation, "task": {"id": task}}

        def send(_: int) -> float:
            began = time.perf_counter()
            requests.post(f"{self._parts.backend_url}/webhook", json=event, timeout=60).raise_for_status()
            return 1000 * (time.perf_counter() - began)

        # A label that was not asked yet, so that no result is known; a task without an id is answered and not stored.
        asked = make_label_config([ClassQuery(name) for name in (*self._wanted.classes, "not asked yet")])
        project = self._uid
        body = {"tasks": [{"data": opened["data"]}], "project": project, "label_config": asked, "params": {}}
        with ThreadPoolExecutor(_AT_ONCE + 1) as pool:
            began = time.perf_counter()
            predicted = pool.submit(requests.post, f"{self._parts.backend_url}/predict", json=body, timeout=120)
            times = list(pool.map(send, range(_EVENTS)))
            answer = predicted.result()
            answer.raise_for_status()
            if not answer.json()["results"][0]:
                raise ServiceError(f"no prediction while the model trains: {answer.json()['errors'] or 'too late'}")
            seconds = answer.elapsed.total_seconds()
        self._console.print(
            f"  {_EVENTS} events, {_AT_ONCE} at once, in {time.perf_counter() - began:.1f} s: median "
            f"{np.median(times):.0f} ms, worst {max(times):.0f} ms; a prediction meanwhile took {seconds:.1f} s"
        )
        return {
            "events": _EVENTS,
            "webhook_median_ms": float(np.median(times)),
            "webhook_worst_ms": max(times),
            "prediction_s": seconds,
        }

    def _wait_for_training(self, before: str, *, until_it_trains: bool = False) -> dict[str, str]:
        """How the training job ended (`backend.loop.trainings.Trainings`).

        Args:
            before: When the last one ended.
            until_it_trains: Return after the first steps.

        Raises:
            ServiceError: It failed, or it takes too long.
        """
        deadline, shown = time.monotonic() + self._timeout, ""
        while time.monotonic() < deadline:
            self._parts.check()
            found = self._trainings.of(self._uid)
            stage = found.get("stage", "") if found["state"] == "running" else ""
            if stage and stage != shown:
                self._console.print(f"  {stage}", style="dim")
                shown = stage
            if found["state"] == "idle" and found.get("ended", "") != before:
                if found.get("outcome") not in ("promoted", "candidate"):
                    raise ServiceError(f"the training job ended as {found.get('outcome')!r}: {found.get('summary')}")
                return found
            if until_it_trains and stage == "train" and int(found.get("step") or 0):
                return found
            time.sleep(1.0)
        raise ServiceError(f"no end within {self._timeout:.0f} s; `lasagna jobs` and the worker's log say why")


def table(report: Mapping[str, Any]) -> str:
    """The report as Markdown: a row before training, one of the instant head in each round, and one after its
    fine-tune."""
    headings = ["corrected", "what serves", "promoted", "mIoU", "presence F1", "pixels to change", "regions right",
                "to change", "to add", "to delete", "replay mIoU", "training"]  # fmt: skip
    rows: list[list[Cell]] = []
    for entry in report["rounds"]:
        replay = entry.get("replay_miou") or {}
        promoted = {True: "yes", False: "no"}.get(entry.get("promoted"), "")
        if entry.get("promoted_later"):
            promoted += ", the one before"
        if entry.get("at_once"):
            rows.append([entry["corrected"], "model and head, at once", "", *_shown_cells(entry["at_once"]), "", ""])
        after = "after the fine-tune" if "promoted" in entry else "the model"
        rows.append(
            [
                entry["corrected"], after, promoted, *_shown_cells(entry["shown"]),
                f"{replay['champion']:.3f} to {replay['candidate']:.3f}" if replay else "",
                f"{entry['training_seconds']:.0f} s" if "training_seconds" in entry else "",
            ]
        )  # fmt: skip
    return markdown_table(headings, rows)


def _shown_cells(shown: Mapping[str, Any]) -> list[Cell]:
    regions = (f"{shown['regions'][key]:.2f}" for key in ("accepted", "changed", "added", "deleted"))
    return [shown["miou"], shown["f1"], f"{100 * shown['changed_pixels']:.1f} %", *regions]


def _photos(source: "Source") -> list[Path]:
    found = [source[index].image_path for index in range(len(source))]
    return [path for path in found if path is not None]


def _truth(source: "Source", index: int) -> "dict[str, Mask]":
    labels = source[index].read()
    return {source.classes[i]: (labels == i).any(0) for i in np.unique(labels) if i >= 0}


def _valid(source: "Source", index: int) -> "Mask":
    return np.asarray((source[index].read() != UNKNOWN).all(0))


def _swapped(truth: "Mapping[str, Mask]", classes: Sequence[str]) -> "dict[str, Mask]":
    """Every class under the name of the next one."""
    following = dict(zip(classes, [*classes[1:], classes[0]], strict=True))
    return {following[name]: mask for name, mask in truth.items()}
