"""Kills the parts of the learning loop in the middle of their work, and looks for what was lost.

    python -m lab.faults.loop --kills 20

A real Label Studio, Redis, web process, worker and training process run with a tiny model. A simulated annotator
corrects one photo after another, each few corrections start a fine-tune, and meanwhile one part after another is ended
with SIGKILL and started again, as a supervisor would. At the end it must hold, else the exit code is 1:

- the loop finishes: the last fine-tune ends with a version or with nothing to do;
- every correction is in the newest snapshot;
- every version is whole: its weights have the content that its id says;
- every task has a prediction of the version that serves, and none has two of one version.

Faults of other kinds, while predictions are made: `lasagna bench faults`.
"""

import argparse
import json
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import redis
from PIL import Image

from backend.loop.trainings import Trainings
from backend.queue.services import port_is_free
from backend.queue.store import Store, connect
from backend.registry.registry import Registry
from backend.studio.client import LabelStudioError
from backend.studio.project_id import project_uid
from backend.web.predictions import Predictor
from backend.web.prelabel import ProjectRun
from lab.faults.parts import Parts, until
from lab.loop.annotator import SimulatedAnnotator
from lasagna.checkpoint.folder import checkpoint_version
from lasagna.labels.classes import make_label_config
from lasagna.labels.configuration import parse_label_config
from lasagna.masks.segmentation import ClassQuery
from lasagna.settings import registry_folder

PARTS = ("training", "worker", "redis", "label-studio")
CLASSES = ("red square", "nothing")
# A fine-tune of seconds, with a state after every step, so that a kill finds it anywhere.
QUICK = (
    "optimiser.steps=6 optimiser.batch_size=2 optimiser.micro_batch=1 optimiser.warmup=1 optimiser.log_every=1 "
    "optimiser.save_every=1 optimiser.precision=float32 augment.view=[64,64] tensorboard=false"
)


class Loop:
    """All processes, each of which can be killed and started again.

    Args:
        folder: For their data and logs.
        corrections: How many photos are corrected in all.
    """

    def __init__(self, folder: Path, corrections: int) -> None:
        self.folder = folder
        given = {
            "LASAGNA_TRAIN_WHEN": "every 4",
            "LASAGNA_TRAIN_CHANGES": QUICK,
            "LASAGNA_REPLAY_DATA": str(folder / "none"),
        }
        self.parts = Parts(folder, ("serve", "worker", "training"), given)
        self.settings = self.parts.settings
        self.kills = dict.fromkeys(PARTS, 0)
        self.store = Store(connect(self.parts.redis_url, timeout=30.0))
        self.registry = Registry(registry_folder(self.settings))
        xml = make_label_config([ClassQuery(name) for name in CLASSES])
        self.api = self.parts.label_studio.api()
        self.project = self.api.create_project("faults", xml)
        self.uid = project_uid(self.api.project(self.project))
        self.annotator = SimulatedAnnotator(self.api, parse_label_config(xml))
        photos, self._truth = _photos(folder / "photos", corrections)
        self.tasks = self.api.upload(self.project, photos)
        until(lambda: not port_is_free(self.parts.web_port), "the web process")
        self.api.connect_backend(self.project, f"http://127.0.0.1:{self.parts.web_port}")

    def stop(self) -> None:
        self.parts.stop()

    def correct(self, index: int) -> None:
        """One correction. Where Label Studio is gone, a person presses "Submit" again."""

        def submit() -> bool:
            try:
                if not any(a for a in self.api.open_task(self.project, self.tasks[index])["annotations"]):
                    self.annotator.correct(self.tasks[index], self._truth[index])
            except LabelStudioError:
                return False
            return True

        until(submit, f"correction {index + 1}", pause=1.0)

    def kill(self, part: str) -> None:
        """SIGKILL to a part and its children, and its start anew."""
        self.parts.restart(part)
        self.kills[part] += 1

    def finish(self) -> dict[str, str]:
        """Asks for a last fine-tune and waits until nothing is left to do; how it ended."""
        trainings, uid = Trainings(self.store), self.uid

        def idle() -> bool:
            try:
                return trainings.of(uid)["state"] == "idle"
            except redis.RedisError:
                return False

        until(idle, "the running fine-tune", pause=1.0)
        before = trainings.of(uid).get("ended", "")
        trainings.ask(uid, again=True)
        until(lambda: idle() and trainings.of(uid).get("ended", "") != before, "the last fine-tune", pause=1.0)
        return trainings.of(uid)

    def problems(self, ended: dict[str, str]) -> list[str]:
        """What was lost or broken, in words."""
        found = []
        if ended.get("outcome") not in ("promoted", "candidate", "unchanged"):
            found.append(f"the last fine-tune ended as {ended.get('outcome')}: {ended.get('summary')}")
        for version in self.registry.versions(self.uid):
            if checkpoint_version(version.checkpoint) != version.id:
                found.append(f"version {version.id} is not whole")
        seen = registry_folder(self.settings) / "snapshots" / self.uid / "seen.json"
        kept = {int(task) for task in json.loads(seen.read_text())["tasks"]} if seen.exists() else set()
        if lost := set(self.tasks) - kept:
            found.append(f"{len(lost)} of {len(self.tasks)} corrections are not in the newest snapshot: {sorted(lost)}")
        predictor = Predictor(self.settings, self.store)
        run = ProjectRun(predictor, self.api, self.project)
        if failed := run.run(lambda _: None).failed:
            found.append(f"{len(failed)} tasks were not predicted: {failed}")
        for task in self.tasks:
            versions = [one["model_version"] for one in self.api.predictions(task)]
            if len(set(versions)) != len(versions):
                found.append(f"task {task} has predictions of {versions}")
        return found


def _photos(folder: Path, count: int) -> tuple[list[Path], list[dict[str, Any]]]:
    """Photos of a red square on noise, every third without it, and the truth."""
    folder.mkdir(parents=True)
    paths, truth = [], []
    for number in range(count):
        rng = np.random.default_rng(number)
        pixels = rng.integers(60, 200, (10, 12, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
        mask = np.zeros(pixels.shape[:2], bool)
        if number % 3:
            left, top = int(rng.integers(0, 56)), int(rng.integers(0, 40))
            mask[top : top + 36, left : left + 36] = True
            pixels[mask] = (220, 20, 20)
        paths.append(folder / f"{number:03}.png")
        Image.fromarray(pixels).save(paths[-1])
        truth.append({CLASSES[0]: mask})
    return paths, truth


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20, help="of each part")
    parser.add_argument("--parts", default=",".join(PARTS), help="which, separated by commas")
    parser.add_argument("--corrections", type=int, default=40)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--keep", type=Path, help="folder for data and logs; default: a temporary one")
    given = parser.parse_args()
    parts = given.parts.split(",")
    if unknown := [part for part in parts if part not in PARTS]:
        parser.error(f"--parts: {', '.join(unknown)} is none of {', '.join(PARTS)}")
    rng = random.Random(given.seed)
    order = [part for part in parts for _ in range(given.kills)]
    rng.shuffle(order)
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        began = time.monotonic()
        loop = Loop(folder, given.corrections)
        try:
            # Corrections and kills in one stream, evenly mixed.
            events = [("kill", part) for part in order]
            step = max(1, len(events) // given.corrections)
            for index in range(given.corrections):
                loop.correct(index)
                for _, part in events[index * step : (index + 1) * step if index < given.corrections - 1 else None]:
                    time.sleep(rng.uniform(0.2, 3.0))
                    loop.kill(part)
                    print(f"{time.monotonic() - began:6.0f} s  killed {part} ({loop.kills[part]})", flush=True)
            ended = loop.finish()
            problems = loop.problems(ended)
        finally:
            loop.stop()
    versions = ended.get("version") or "none"
    print(f"kills: {loop.kills}; {given.corrections} corrections; last fine-tune: {ended.get('outcome')}, {versions}")
    print("\n".join(f"problem: {problem}" for problem in problems) or "nothing was lost, doubled or half-written")
    return bool(problems)


if __name__ == "__main__":
    sys.exit(main())
