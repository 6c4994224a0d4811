"""The running parts that `lasagna bench faults` strikes, and what one round of it finds (`Rig`, `Round`)."""

import io
import os
import random
import shutil
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import redis
from PIL import Image

from backend.queue.living_workers import predicting_workers
from backend.queue.services import port_is_free
from backend.queue.store import Store, connect
from backend.web.predictions import Predictor
from lab.faults.bad_gateway import BadGateway
from lasagna.errors import LasagnaError
from lasagna.labels.classes import make_label_config
from lasagna.masks.segmentation import ClassQuery

if TYPE_CHECKING:
    from lab.faults.parts import Parts

_POISON = b"poisoned image"
_FLAW = f"""# A flaw in a native image decoder: a file with the mark ends the process that reads it.
import os
import signal

import PIL.Image

_open = PIL.Image.open


def open(fp, *args, **options):
    if hasattr(fp, "getvalue") and {_POISON!r} in fp.getvalue():
        os.kill(os.getpid(), signal.SIGKILL)
    return _open(fp, *args, **options)


PIL.Image.open = open
"""
_CLASSES = ("cat", "dog", "sky")
_TMPFS = "64m"

_FAKETIME = "*/faketime/libfaketimeMT.so.1"


@dataclass(frozen=True)
class Fault:
    """What is done to the running parts.

    `strike` returns when the fault is over (but for what has to start again); False where it found nothing to strike.
    """

    name: str
    words: str
    strike: Callable[["Rig"], bool | None]
    needs: Callable[["Rig"], str] = lambda rig: ""
    """Why it cannot be done here, or "" where it can."""
    prepare: Callable[["Rig"], None] = lambda rig: None
    """What is done before its round."""
    waits: bool = False
    """Whether `strike` waits for its moment itself."""


@dataclass
class Round:
    """How a round ended: numbers of tasks, and what a failed one said."""

    number: int
    fault: str
    tasks: int
    seconds: float
    struck: bool = True
    predicted: int = 0
    failed: int = 0
    lost: list[int] = field(default_factory=list)
    twice: list[int] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)
    restarted: dict[str, int] = field(default_factory=dict)


class Rig:
    """The running parts. Every round has a project of its own."""

    def __init__(self, parts: "Parts", gateway: BadGateway, disk: Path | None, state: Path | None, seed: int) -> None:
        self.parts, self.gateway, self.disk, self.state = parts, gateway, disk, state
        self.rng = random.Random(seed)
        self.store = Store(connect(parts.redis_url, timeout=30.0))
        self.api = parts.label_studio.api()
        self.project = 0
        self._made = 0
        self._config = make_label_config([ClassQuery(name) for name in _CLASSES])
        self._tasks: list[list[int]] = []
        self.done: list[Round] = []
        """Those whose tasks were not looked at once more."""
        self._restarted: Counter[str] = Counter()

    @classmethod
    @contextmanager
    def started(cls, folder: Path, seed: int) -> Iterator["Rig"]:
        """Everything running, and ended afterwards."""
        from lab.faults.parts import Parts

        with ExitStack() as stack:
            disk, state = _small_disk(folder / "disk", stack), _small_disk(folder / "state", stack)
            flaw = folder / "flaw"
            flaw.mkdir(exist_ok=True)
            (flaw / "sitecustomize.py").write_text(_FLAW)
            (folder / "clock").write_text("+0")
            gateway = BadGateway()
            stack.callback(gateway.stop)
            given = {
                "LASAGNA_PREDICT_DEADLINE": "10",
                "LASAGNA_BATCH_SIZE": "2",
                "LASAGNA_IMAGE_TIMEOUT": "15",
                "LASAGNA_DELIVERY_TIMEOUT": "600",
                "PYTHONPATH": str(flaw),
            }
            # Redis as in production: everysec. What was answered is with the kernel, so a kill loses nothing.
            parts = Parts(folder, ("serve",), given, label_studio_url=gateway.to, redis_folder=disk, fsync="everysec")
            stack.callback(parts.stop)
            if library := faketime():
                parts.more["worker-b"] = {
                    "LD_PRELOAD": library,
                    "FAKETIME_TIMESTAMP_FILE": str(folder / "clock"),
                    "FAKETIME_NO_CACHE": "1",
                    "DONT_FAKE_MONOTONIC": "1",
                }
            for name in ("worker-a", "worker-b"):
                parts.start(name)
            yield cls(parts, gateway, disk, state, seed)

    # --- a round ------------------------------------------------------------------------------------------------------

    def round(self, number: int, fault: Fault, photos: int) -> Round:
        """New photos, a fault, and how the tasks ended."""
        began = time.monotonic()
        self._restarted.clear()
        self.until(self._is_up, "the parts")
        fault.prepare(self)
        self.project = self.api.create_project(f"round {number}: {fault.name}", self._config)
        self.api.connect_backend(self.project, f"http://127.0.0.1:{self.parts.web_port}")
        tasks = self._upload(photos, poison=fault.name == "poison")
        outcome: dict[int, str] = {}
        ended = threading.Event()
        threads = [threading.Thread(target=self._prelabel, args=(outcome, ended), daemon=True)]
        if fault.name != "poison":  # it would be tried anew when it is asked for anew
            threads.append(threading.Thread(target=self._retrieve, daemon=True))
        for thread in threads:
            thread.start()
        if not fault.waits:
            self.wait(self.rng.uniform(0.2, 4.0))
        struck = fault.strike(self) is not False
        self.until(ended.is_set, "the end of the job")
        for thread in threads:
            self.until(lambda thread=thread: not thread.is_alive(), "Label Studio's own request")  # type: ignore[misc]
        self.until(self._are_settled, "the last posts", patience=400.0)
        result = Round(number, fault.name, photos, 0.0, struck, restarted=dict(self._restarted))
        self._look(result, tasks, outcome)
        result.seconds = round(time.monotonic() - began, 1)
        self.done.append(result)
        return result

    def look_again(self, on_round: Callable[[], None] = lambda: None) -> None:
        """Every task of the rounds once more, of those that it was not done for: what came after its round."""
        self.until(self._is_up, "the parts")
        self.wait(5.0)
        for one, tasks in zip(self.done, self._tasks, strict=False):  # the last may have been cut off
            one.twice = [task for task in tasks if _is_twice(self.api.predictions(task))]
            on_round()
        self.done.clear()
        self._tasks.clear()

    def _look(self, result: Round, tasks: list[int], outcome: dict[int, str]) -> None:
        for task in tasks:
            found = self.api.predictions(task)
            if _is_twice(found):
                result.twice.append(task)
            if found:
                result.predicted += 1
            elif outcome.get(task):
                result.failed += 1
                result.reasons.append(f"task {task}: {outcome[task]}")
            else:
                result.lost.append(task)

    def more_tasks(self, photos: int) -> list[int]:
        """Tasks beside those that must have a prediction."""
        return self.api.upload(self.project, self._make_photos(photos))

    def _upload(self, photos: int, *, poison: bool) -> list[int]:
        tasks = self.api.upload(self.project, self._make_photos(photos, photos // 2 if poison else None))
        self._tasks.append(tasks)
        return tasks

    def _make_photos(self, photos: int, poisoned: int | None = None) -> list[Path]:
        folder = self.parts.folder / "photos"
        folder.mkdir(exist_ok=True)
        paths = []
        for index in range(photos):
            rng = np.random.default_rng(self._made)
            buffer = io.BytesIO()
            Image.fromarray(rng.integers(0, 256, (48, 64, 3), dtype=np.uint8)).save(buffer, "PNG")
            mark = _POISON if index == poisoned else b""
            paths.append(folder / f"{self._made:05}.png")
            paths[-1].write_bytes(buffer.getvalue() + mark)  # behind the end of the picture
            self._made += 1
        return paths

    def _prelabel(self, outcome: dict[int, str], ended: threading.Event) -> None:
        """`lasagna prelabel`, typed again where it ended with an error."""
        from backend.web.prelabel import ProjectRun

        while True:
            try:
                store = Store(connect(self.parts.redis_url, timeout=10.0))
                run = ProjectRun(Predictor(self.parts.settings, store), self.api, self.project)
                outcome.update(run.run(lambda reason: None).failed)
                break
            except (LasagnaError, redis.RedisError):
                time.sleep(1.0)
        ended.set()

    def _retrieve(self) -> None:
        with suppress(LasagnaError):  # Label Studio or the web process was killed
            self.api.retrieve_predictions(self.project)

    def _are_settled(self) -> bool:
        try:
            counts = self.store.counts()
        except redis.RedisError:
            return False
        return not counts["queued"] + counts["running"] + counts["ready"]

    # --- supervising --------------------------------------------------------------------------------------------------

    def until(self, ready: Callable[[], bool], what: str, patience: float = 900.0, pause: float = 0.3) -> None:
        """Waits, and starts again what has ended."""
        from lab.faults.parts import until

        def look() -> bool:
            self._restarted.update(self.parts.tend())
            return ready()

        until(look, what, pause=pause, seconds=patience)

    def wait(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        self.until(lambda: time.monotonic() > end, "nothing")

    def _is_up(self) -> bool:
        try:
            return not port_is_free(self.parts.web_port) and len(predicting_workers(self.store)) >= 2
        except redis.RedisError:
            return False


def _is_twice(predictions: list[dict[str, Any]]) -> bool:
    versions = [one["model_version"] for one in predictions]
    return len(set(versions)) != len(versions)


def _small_disk(folder: Path, stack: ExitStack) -> Path | None:
    """A tmpfs, where we may mount one."""
    folder.mkdir(exist_ok=True)
    if os.geteuid() != 0 or not shutil.which("mount"):
        return None
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={_TMPFS}", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode:
        return None
    stack.callback(subprocess.run, ["umount", "-l", str(folder)], check=False)
    return folder


def faketime() -> str:
    """The library that gives a process another clock; "" where it is not installed."""
    return next((str(path) for path in Path("/usr/lib").glob(_FAKETIME)), "")
