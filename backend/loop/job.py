"""A fine-tune of one project, from its corrections to a judged version, in stages that survive a kill.

    REGISTRY/jobs/ID/job.json          what was asked: project, why
    REGISTRY/jobs/ID/STAGE.json        what a finished stage found (`STAGES`)
    REGISTRY/jobs/ID/starts.json       where each attempt began: one that dies too often at one place is given up
    REGISTRY/jobs/ID/run/              the training run (`training.engine.run`): states, log, TensorBoard
    REGISTRY/jobs/ID/checkpoint/NAME/  the candidate with its probabilities calibrated
    REGISTRY/jobs/ID/report/           the gate's report

What always holds: a stage's file is written when the stage is finished, whole; a job that is run again skips
finished stages, and goes on within training from the last saved step, to the same weights. What the job starts from is
noted in the first two stages (the champion, or a refused version that later corrections let serve): if another one
serves by the time it ends, the result stays a candidate. Where the project learns at once, what serves is a model with
its instant head, and so both are judged: each beside a head of the snapshot's corrections, and each held-out photo by a
head that has not seen it.
"""

import json
import logging
import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

from backend.loop.access import StudioAccess, snapshots_of
from backend.loop.finetune import describe_sets, for_what_is_known, make_recipe, replay_records
from backend.loop.recheck import judge_again, new_to, photo_hash, refused_version
from backend.loop.report_facts import report_facts
from backend.loop.snapshot import Snapshot
from backend.registry.records import project_number
from backend.registry.registry import Registry, name_after
from backend.registry.trained import trained_photos
from backend.studio.client import LabelStudioError
from lasagna import Lasagna
from lasagna.checkpoint.architectures import architecture_of
from lasagna.checkpoint.folder import (
    checkpoint_version,
    find_checkpoint,
    load_calibration,
    write_calibration,
    write_labels,
)
from lasagna.contract.model import ClassListAnswerer
from lasagna.errors import DataError, TrainingError
from lasagna.files import write_atomically
from lasagna.settings import Settings
from training.data.sources.label_studio import LabelStudioExport
from training.data.spread import spread
from training.engine.run import train
from training.engine.run_report import Reporter
from training.evaluation.calibrate import answers_by_class, fit_calibration, fit_class_offsets
from training.evaluation.gate import Limits, judge
from training.evaluation.gate_report import choose_samples, make_samples, write_report
from training.evaluation.paired import Pair
from training.evaluation.scores import ImageScore, Latency, measure_latency, objects_in_words, score_images
from training.instant.left_out import LeaveOneOut
from training.recipe.files import recipe_from_values, to_values
from training.recipe.values import Recipe

logger = logging.getLogger(__name__)

STAGES = ("snapshot", "recheck", "train", "calibrate", "score", "judge", "register")
GIVEN_UP_AFTER = 10
"""Attempts that began at the same place: the next would end as they did."""
_LATENCY_PHOTOS = 6
_PHOTOS_BEFORE = 24
"""Photos that are trained on, and that the champion is asked about before."""
_PAUSE = 15.0
"""Seconds between two attempts to reach Label Studio."""

Say = Callable[[str, int, int, float | None], None]
"""Called with stage, step, number of steps, and the seconds left in the stage where they can be told."""


class StoppedError(Exception):
    """The process was told to end; the job goes on when it is run again."""


class TrainingJob:
    """One job. `run` is called once per process.

    Args:
        registry: The registry's folder.
        id: From `new_job`.
        settings: `model`, `device`, `dtype`, limits on images, `train_*`, `replay_data`.
        access: The way to Label Studio, asked for in the first stage only.
        say: Told how far it is.
        should_stop: Asked between steps and photos.
    """

    def __init__(
        self,
        registry: Path,
        id: str,
        settings: Settings,
        access: Callable[[], StudioAccess],
        say: Say = lambda stage, step, steps, seconds: None,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> None:
        self.folder = registry / "jobs" / id
        self.asked = json.loads((self.folder / "job.json").read_text(encoding="utf-8"))
        self.project: str = self.asked["project"]
        self._root, self._registry = registry, Registry(registry)
        self._settings, self._access, self._say, self._should_stop = settings, access, say, should_stop
        self._as_served: dict[str, ClassListAnswerer] = {}

    def run(self) -> dict[str, Any]:
        """Goes through the stages that are left and returns the last one's result: `outcome` ("promoted", "candidate"
        or "unchanged"), `version`, `summary`.

        Raises:
            StoppedError: The process was told to end; the job goes on when it is run again.
            LasagnaError: It cannot be done: too few corrections, a wrong recipe, no space, Label Studio gone for long.
        """
        self._note_start()
        snapshot = self._stage("snapshot", self._take_snapshot)
        if snapshot["outcome"]:
            return dict(snapshot)
        self._stage("recheck", self._recheck)
        self._let_serve()
        for name, work in (
            ("train", self._train),
            ("calibrate", self._calibrate),
            ("score", self._score),
            ("judge", self._judge),
            ("register", self._register),
        ):
            self._stage(name, work)
        self._clean()
        return self.result("register")

    def result(self, stage: str) -> dict[str, Any]:
        """What a finished stage found; {} where it is not finished."""
        path = self.folder / f"{stage}.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}

    def _stage(self, name: str, work: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
        if not (self.folder / f"{name}.json").exists():
            self._check_stop()
            self._say(name, 0, 0, None)
            began = time.monotonic()
            found = {**work(), "seconds": round(time.monotonic() - began, 1)}
            write_atomically(self.folder / f"{name}.json", json.dumps(found, ensure_ascii=False))
            logger.info("job %s: %s took %.1f s", self.folder.name, name, found["seconds"])
        return self.result(name)

    def _check_stop(self) -> None:
        if self._should_stop():
            raise StoppedError

    def _note_start(self) -> None:
        """Notes where this attempt begins. Raises TrainingError where too many began here."""
        path = self.folder / "starts.json"
        starts = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
        stage = next((name for name in STAGES if not (self.folder / f"{name}.json").exists()), "end")
        states = [int(state.name.split("-")[1]) for state in self.folder.glob("run/states/checkpoint-*")]
        here = [stage, max(states, default=0)]
        if stage != "end" and starts[-GIVEN_UP_AFTER:] == [here] * GIVEN_UP_AFTER:
            raise TrainingError(
                f"the training process ended {GIVEN_UP_AFTER} times in stage {stage!r} after step {here[1]} without a "
                "word (out of memory?); its log says more. `lasagna train --project` starts anew"
            )
        write_atomically(path, json.dumps([*starts, here]))

    # --- stages -------------------------------------------------------------------------------------------------------

    def _take_snapshot(self) -> dict[str, Any]:
        champion = self._registry.champion(self.project)
        start = champion.checkpoint if champion else find_checkpoint(self._settings.model)
        if (other := architecture_of(start)) is not None:
            raise TrainingError(
                f"{start} is a model of the type {other.model_type!r}, which is not fine-tuned here; corrections stay "
                "in Label Studio. To train on them, serve a checkpoint of LaSagnA (LASAGNA_MODEL=nano)"
            )
        access = self._access()
        snapshot = self._patiently(lambda: snapshots_of(self._settings, self._root, self.project, access).take())
        parent = champion.id if champion else checkpoint_version(start)
        found = {
            **snapshot.as_dict(),
            "start": str(start),
            "parent": parent,
            "is_champion": champion is not None,
            "learns_at_once": access.learns_at_once,
        }
        same = [
            version
            for version in self._registry.versions(self.project)
            if version.snapshot == snapshot.id and (version.parent == parent or version.id == parent)
        ]
        if same and not self.asked.get("again"):
            words = f"nothing has changed since {same[-1].id} was trained"
            return {**found, "outcome": "unchanged", "version": same[-1].id, "summary": words}
        return {**found, "outcome": ""}

    def _recheck(self) -> dict[str, Any]:
        """Judges the project's candidate again, on what was held out and on corrections that came since: nothing was
        trained on those yet, and few held-out photos refuse much that is better."""
        if (self.folder / "recipe.json").exists():  # begun by a release that had no such stage
            return {}
        waiting = refused_version(self._registry, self.project, self._origin["parent"], self._snapshot.classes)
        if waiting is None:
            return {}
        since = new_to(self._snapshot.folder.parent, waiting, self._to_train_on(), self._champions_photos())
        if not since:
            return {}
        held = [*self._held_out, *since]
        replay = replay_records(make_recipe(self._settings, self._start, self._snapshot.folder, self.folder / "run")[0])
        learnt = len(self._to_train_on()) + len(self._held_out) if self._learns_at_once else 0
        advance = self._counter("recheck", 2 * (len(held) + len(replay) + learnt))
        models = self._load(self._start), self._load(waiting.checkpoint)
        trained = self._champions_photos(), trained_photos(self._snapshot.folder.parent / waiting.snapshot) or set()
        serving = [self._as_it_serves(*each, advance) for each in zip(models, trained, strict=True)]
        verdict = judge_again(models, (serving[0], serving[1]), held, replay, _LATENCY_PHOTOS, advance)
        return {"version": waiting.id, "new": len(since), "passed": verdict.passed, "summary": verdict.in_words()}

    def _let_serve(self) -> None:
        """Promotes the version that passed when it was judged again, unless another one serves meanwhile, or training
        has begun (somebody may have rolled it back since)."""
        if not self.result("recheck").get("passed") or (self.folder / "recipe.json").exists():
            return
        if self._is_champion(self.result("snapshot")):
            self._registry.promote(self.project, self.result("recheck")["version"], self._rechecked())

    def _rechecked(self) -> str:
        """What came of the candidate that waited, in words; "" where none was judged again."""
        looked = self.result("recheck")
        if not looked.get("version"):
            return ""
        return f"{looked['version']}, judged again with {looked['new']} photos corrected since: {looked['summary']}"

    def _patiently(self, take: Callable[[], Snapshot]) -> Snapshot:
        """Tries again while Label Studio is gone, for the setting `delivery_timeout`."""
        until = time.monotonic() + self._settings.delivery_timeout
        while True:
            try:
                return take()
            except LabelStudioError as error:
                if not error.is_temporary or time.monotonic() > until:
                    raise
                logger.warning("%s; tried again in %.0f s", error, _PAUSE)
                for _ in range(int(_PAUSE)):
                    self._check_stop()
                    time.sleep(1)

    def _train(self) -> dict[str, Any]:
        plan = self.folder / "recipe.json"
        if not plan.exists():  # an attempt that goes on must not see other settings
            recipe, notes = make_recipe(self._settings, self._start, self._snapshot.folder, self.folder / "run")
            if recipe.trained.lora is None:  # adapters have not been measured at another rate
                recipe, more = for_what_is_known(self._settings, recipe, self._miou_before())
                notes += more
            write_atomically(plan, json.dumps({"values": _recipe_values(recipe), "notes": notes}))
        recipe, notes = self._recipe, json.loads(plan.read_text(encoding="utf-8"))["notes"]
        for note in notes:
            logger.warning("job %s: %s", self.folder.name, note)
        train(recipe, _device(self._settings), _Progress(recipe.optimiser.steps, self._say, self._check_stop))
        return {"notes": notes, "steps": recipe.optimiser.steps, "replayed": describe_sets(recipe)}

    def _miou_before(self) -> float:
        """The champion's mean IoU on photos that are to be trained on, without those that it was trained on itself, if
        there are others: it knows those by heart."""
        every, by_heart = self._to_train_on(), self._champions_photos()
        new = [one for one in every if photo_hash(one) not in by_heart] or every
        records = [new[i] for i in spread(len(new), _PHOTOS_BEFORE)]
        scores = score_images(self._champion, records, self._check_stop)
        return Pair(scores, scores, Limits(), "trained").miou.champion or 0.0

    def _calibrate(self) -> dict[str, Any]:
        before = load_calibration(self._start)
        beside = self.folder / "checkpoint.new"
        shutil.rmtree(beside, ignore_errors=True)
        shutil.copytree(self.folder / "run" / "checkpoint", beside)
        write_calibration(beside, before)
        model = self._load(beside)
        records = self._held_out
        scores = score_images(model, records, self._counter("calibrate", len(records)))
        answers = answers_by_class(scores, before, model.read_text)
        if not answers:
            raise DataError(f"no held-out photo of {self._snapshot.folder} could be asked")
        overall = fit_calibration(list(answers.values()), before)
        fitted = fit_class_offsets(answers, overall, others=before.offset)
        write_calibration(beside, fitted)
        write_labels(beside, self._snapshot.classes)
        shutil.rmtree(self._checkpoint.parent, ignore_errors=True)
        self._checkpoint.parent.mkdir()
        beside.rename(self._checkpoint)
        return {"temperature": fitted.temperature, "offset": fitted.offset, "class_offsets": fitted.class_offsets}

    def _score(self) -> dict[str, Any]:
        sets = {"holdout": self._held_out, "replay": replay_records(self._recipe)}
        learnt = len(self._to_train_on()) + len(self._held_out) if self._learns_at_once else 0
        advance = self._counter("score", 2 * (learnt + sum(map(len, sets.values()))))
        found: dict[str, Any] = {"heads": {}}
        for side, model in (("champion", self._champion), ("candidate", self._candidate)):
            served = self._served(side, advance)
            if isinstance(served, LeaveOneOut):
                found["heads"][side] = served.reason
            for name, asked in (("holdout", served), ("replay", model)):
                scores = score_images(asked, sets[name], advance)
                found[f"{name}_{side}"] = [score.as_dict() for score in scores]
        latency = measure_latency(self._champion, self._candidate, self._held_out, _LATENCY_PHOTOS)
        return {**found, "latency": latency.as_json()}

    def _judge(self) -> dict[str, Any]:
        scores, snapshot, trained = self.result("score"), self._snapshot, self.result("train")
        champion, candidate = (_scores(scores[f"holdout_{side}"]) for side in ("champion", "candidate"))
        verdict = judge(
            champion,
            candidate,
            _scores(scores["replay_champion"]),
            _scores(scores["replay_candidate"]),
            Latency.from_json(scores["latency"]),
        )
        chosen = choose_samples(champion, candidate)
        samples = make_samples(self._held_out, chosen, self._served("champion"), self._served("candidate"))
        about = report_facts(
            project_number(self.project), snapshot, trained, scores.get("heads", {}), self._rechecked()
        )
        if objects := objects_in_words(champion, candidate):
            about["objects of the held-out photos"] = objects
        versions = (self._champion.version, self._candidate.version)
        write_report(verdict, samples, self.folder / "report", versions=versions, about=about)
        return verdict.as_dict()

    def _register(self) -> dict[str, Any]:
        verdict, snapshot, origin = self.result("judge"), self._snapshot, self._origin
        seconds = {name: self.result(name)["seconds"] for name in STAGES[:-1]}
        version = self._registry.add(
            self._checkpoint,
            project=self.project,
            parent=origin["parent"],
            snapshot=snapshot.id,
            metrics={
                **{name: verdict[name] for name in ("passed", "summary", "figures", "classes")},
                "took": seconds,
            },
            reports=sorted((self.folder / "report").glob("report.*")),
            labels=snapshot.classes,
        )
        summary = verdict["summary"]
        if self.result("recheck").get("passed"):
            summary += f" Promoted before: {self._rechecked()}"
        found = {"version": version.id, "summary": summary, "reports": [str(p) for p in version.reports]}
        serving = self._registry.champion(self.project)
        if serving is not None and serving.id == version.id:  # promoted by an attempt that was killed here
            return {**found, "outcome": "promoted"}
        if not verdict["passed"]:
            return {**found, "outcome": "candidate"}
        if not self._is_champion(origin):
            words = f"{version.id} passed, but against {origin['parent']}, and another model serves now: a candidate"
            return {**found, "outcome": "candidate", "summary": words}
        self._registry.promote(self.project, version.id, verdict["summary"])
        return {**found, "outcome": "promoted"}

    def _clean(self) -> None:
        """Removes states and weights of a finished job, which are large and are in the version; leaves its record."""
        for name in ("run/states", "run/checkpoint", "checkpoint"):
            with suppress(OSError):
                shutil.rmtree(self.folder / name)

    # --- what stages share --------------------------------------------------------------------------------------------

    @cached_property
    def _snapshot(self) -> Snapshot:
        found = self.result("snapshot")
        return Snapshot.from_dict({name: found[name] for name in Snapshot.__dataclass_fields__})

    @property
    def _origin(self) -> dict[str, Any]:
        """`start`, `parent` and `is_champion` of what the fine-tune starts from."""
        looked = self.result("recheck")
        if not looked.get("passed"):
            return self.result("snapshot")
        version = self._registry.version(looked["version"])
        return {"start": str(version.checkpoint), "parent": version.id, "is_champion": True}

    @property
    def _start(self) -> Path:
        return Path(self._origin["start"])

    def _is_champion(self, origin: Mapping[str, Any]) -> bool:
        """Whether what the job started from still serves."""
        serving = self._registry.champion(self.project)
        return (serving.id if serving else "") == (origin["parent"] if origin["is_champion"] else "")

    def _to_train_on(self) -> list[Any]:
        source = LabelStudioExport(self._snapshot.folder, "train")
        return [source[i] for i in range(len(source))]

    def _champions_photos(self) -> set[str]:
        """The photos that it was trained on in this project, by their hashes."""
        origin = self._origin
        version = self._registry.version(origin["parent"]) if origin["is_champion"] else None
        if version is None or not version.snapshot:
            return set()
        return trained_photos(self._snapshot.folder.parent / version.snapshot) or set()

    @property
    def _learns_at_once(self) -> bool:
        return bool(self.result("snapshot").get("learns_at_once"))

    def _served(self, side: str, on_image: Callable[[], None] = lambda: None) -> ClassListAnswerer:
        """The champion or the candidate as it answers held-out photos; made once."""
        if side not in self._as_served:
            trained = self._champions_photos()
            if side == "champion":
                self._as_served[side] = self._as_it_serves(self._champion, trained, on_image)
            else:
                trained |= {photo_hash(record) for record in self._to_train_on()}
                self._as_served[side] = self._as_it_serves(self._candidate, trained, on_image)
        return self._as_served[side]

    def _as_it_serves(self, model: Lasagna, trained: set[str], on_image: Callable[[], None]) -> ClassListAnswerer:
        """A model, beside its instant head where the project has one.

        Args:
            trained: Hashes of the project's photos that the model was trained on: no evidence of how good it is.
        """
        if not self._learns_at_once:
            return model
        records = [*self._to_train_on(), *self._held_out]
        return LeaveOneOut(model, records, lambda record: photo_hash(record) not in trained, on_image)

    @cached_property
    def _recipe(self) -> Recipe:
        return recipe_from_values(json.loads((self.folder / "recipe.json").read_text(encoding="utf-8"))["values"])

    @cached_property
    def _held_out(self) -> list[Any]:
        source = LabelStudioExport(self._snapshot.folder, "holdout")
        return [source[i] for i in range(len(source))]

    @cached_property
    def _champion(self) -> Lasagna:
        return self._load(self._start)

    @cached_property
    def _candidate(self) -> Lasagna:
        return self._load(self._checkpoint)

    @property
    def _checkpoint(self) -> Path:
        """The calibrated candidate, under the name that the registry gives it: its version is the later one's id."""
        return self.folder / "checkpoint" / name_after(self._origin["parent"])

    def _load(self, folder: Path) -> Lasagna:
        return Lasagna.from_pretrained(folder, device=_device(self._settings), dtype=self._settings.dtype)

    def _counter(self, stage: str, total: int) -> Callable[[], None]:
        done, began = 0, time.monotonic()

        def advance() -> None:
            nonlocal done
            self._check_stop()
            done += 1
            self._say(stage, done, total, (time.monotonic() - began) / done * (total - done))

        return advance


class _Progress(Reporter):
    """Hands the steps of a run on."""

    def __init__(self, steps: int, say: Say, check_stop: Callable[[], None]) -> None:
        self._steps, self._say, self._check_stop = steps, say, check_stop
        self._first = (0, time.monotonic())

    def started(self, step: int, steps: int) -> None:
        self._first = (step, time.monotonic())
        self._say("train", step, steps, None)

    def step(self, step: int) -> None:
        self._check_stop()
        per_step = (time.monotonic() - self._first[1]) / max(1, step - self._first[0])
        self._say("train", step, self._steps, per_step * (self._steps - step))


def _scores(values: list[dict[str, Any]]) -> list[ImageScore]:
    return [ImageScore.from_dict(one) for one in values]


def _recipe_values(recipe: Recipe) -> dict[str, Any]:
    return to_values(recipe)


def _device(settings: Settings) -> str:
    """For the engine, which is told by CUDA_VISIBLE_DEVICES which GPU."""
    return settings.device.split(":")[0]
