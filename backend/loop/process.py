"""The process that trains: `lasagna worker --queues train`, which `lasagna worker` starts beside itself.

What always holds:

- One of these works per registry folder: a second one waits until the first has ended (a lock that the kernel drops).
- It runs at low priority, so that predictions go on; on a GPU it takes a share of the memory (`train_gpu_share`).
- A job that was cut off (SIGTERM, a kill, a reboot) goes on at the next start where it was.
- It loads torch when the first job begins, and not before.
"""

import fcntl
import gc
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import redis
from rq.exceptions import StopRequested

from backend.instant.policy import learns_at_once
from backend.loop.access import StudioAccess, snapshots_of
from backend.loop.tidy import tidy
from backend.loop.trainings import Triggers
from backend.queue.connections import Connections
from backend.queue.services import Service, state_dir
from backend.queue.store import Store
from backend.registry.known_projects import KnownProjects
from backend.registry.takeover import take_over
from backend.studio.project_id import number_of, project_uid
from backend.worker.rq_worker import LasagnaWorker, connect, work_until_stopped
from lasagna.errors import LasagnaError, in_words
from lasagna.logs import logged
from lasagna.settings import Settings, registry_folder, variable

logger = logging.getLogger(__name__)

_NICE = 10
_SAY_EVERY = 0.5
"""Seconds between two notes of a job's progress."""
_RESTART_AFTER = 10.0
"""Seconds between two starts of a training process that ends by itself."""


class TrainingRuntime:
    """What the jobs of the training process share.

    Args:
        settings: All of them.
        store: The records in Redis.
        triggers: Told when a job begins and ends.
    """

    def __init__(self, settings: Settings, store: Store, triggers: Triggers) -> None:
        self.should_stop = False
        self._settings, self._store, self._triggers = settings, store, triggers
        self._registry = registry_folder(settings)
        self._connections = Connections(settings, store)
        self._known = KnownProjects.from_settings(settings, store)

    def changed(self, project: str) -> set[int]:
        """The tasks of a project (uid) that were corrected since its newest snapshot."""
        label_studio, known = self._connections.of(project)
        return snapshots_of(self._settings, self._registry, project, StudioAccess(label_studio, known.url)).changed()

    def find_uid(self, number: str) -> str:
        """The uid of a number that nobody has told, from Label Studio; the number where that cannot be asked."""
        try:
            label_studio, _ = self._connections.of(number)
            uid = project_uid(label_studio.project(int(number)))
        except (LasagnaError, KeyError, ValueError) as error:
            logger.info("project %s is known by its number alone: %s", number, error)
            return number
        self._known.note(uid, label_studio.url)
        take_over(self._registry, self._store, uid)
        return uid

    def run(self, project: str, id: str) -> dict[str, Any]:
        """Runs a job to its end, or until this process is told to stop: then it goes on at the next start."""
        with logged(project=number_of(project), job=id):
            return self._run(project, id)

    def _run(self, project: str, id: str) -> dict[str, Any]:
        from backend.loop.job import StoppedError, TrainingJob  # torch

        def access() -> StudioAccess:
            label_studio, known = self._connections.of(job.project)
            return StudioAccess(label_studio, known.url, learns_at_once(self._settings, known))

        self._triggers.begin(project)
        _limit_gpu_memory(self._settings)
        try:
            job = TrainingJob(
                self._registry, id, self._settings, access, self._sayer(project), lambda: self.should_stop
            )
            result = job.run()
        except StoppedError:
            logger.info("job %s stops here, and goes on at the next start", id)
            return {"outcome": "stopped"}
        except LasagnaError as error:
            logger.error("job %s failed: %s", id, error)
            result = {"outcome": "failed", "summary": str(error)}
        except (redis.RedisError, StopRequested):
            raise
        except Exception as error:  # whatever a model or a library raises ends this job, not the process
            logger.exception("job %s failed", id)
            result = {"outcome": "failed", "summary": in_words(error)}
        finally:
            _free_memory()
        logger.info("job %s: %s, %s", id, result["outcome"], result.get("summary", ""))
        self._triggers.end(project, id, result)
        self._tidy()
        return result

    def _tidy(self) -> None:
        """Removes what earlier jobs left, by the default policy; what goes wrong there is no fault of the job."""
        try:
            for garbage in tidy(self._registry, state_dir(self._settings), self._store):
                logger.info("%s is removed: %s", garbage.what, garbage.why)
        except (LasagnaError, OSError, redis.RedisError) as error:
            logger.warning("nothing is tidied up: %s", error)

    def _sayer(self, project: str) -> Callable[[str, int, int, float | None], None]:
        last_stage, last_said = "", 0.0

        def say(stage: str, step: int, steps: int, seconds: float | None) -> None:
            nonlocal last_stage, last_said
            now = time.monotonic()
            if stage == last_stage and now - last_said < _SAY_EVERY and step != steps:
                return
            last_stage, last_said = stage, now
            left = "" if seconds is None else f"{seconds:.0f}"
            with suppress(redis.RedisError):  # the job goes on
                self._triggers.trainings.note(project, stage=stage, step=step, steps=steps, left=left)

        return say


_runtime: TrainingRuntime | None = None


def run_job(project: str, id: str) -> dict[str, Any]:
    """A job of the queue `train`."""
    if _runtime is None:
        raise RuntimeError("this job runs in the process of `lasagna worker --queues train`; it was run elsewhere")
    return _runtime.run(project, id)


def run_training_worker(settings: Settings, redis_url: str) -> None:
    """Decides when to train and trains, until it is told to stop (SIGTERM, Ctrl-C)."""
    global _runtime
    _be_nice()
    _choose_gpu(settings)
    registry = registry_folder(settings)
    with _alone(registry / "jobs" / "lock"):
        store = Store(connect(redis_url))
        asked = Store(connect(redis_url))
        triggers = Triggers(
            settings, asked, registry, lambda uid: runtime.changed(uid), lambda number: runtime.find_uid(number)
        )
        runtime = _runtime = TrainingRuntime(settings, store, triggers)
        is_started = False

        def make() -> LasagnaWorker:
            nonlocal is_started
            take_over(registry, store)
            triggers.resume()
            if not is_started:
                triggers.start()
                is_started = True
            logger.info("waiting for jobs in train")
            return _TrainingWorker(store.redis, store, settings.batch_size, runtime)

        try:
            work_until_stopped(make)
        finally:
            triggers.stop()
            _runtime = None


class _TrainingWorker(LasagnaWorker):
    """Takes jobs of the queue `train` alone; told to stop, it stops between two steps."""

    def __init__(self, connection: "redis.Redis", store: Store, batch_size: int, runtime: TrainingRuntime) -> None:
        super().__init__(connection, store, batch_size, ("train",))
        self._training = runtime

    def request_stop(self, signum: Any, frame: Any) -> None:
        self._training.should_stop = True
        super().request_stop(signum, frame)


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            logger.info("another training process works on %s; waiting for its end", path.parent.parent)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _be_nice() -> None:
    """Low priority, also where the kernel shares out time by session first (autogroup, sched(7)): of a session of our
    own only, as a child of `lasagna worker` has it, since it would slow down everything else in a terminal's."""
    with suppress(OSError):
        os.nice(_NICE)
    if os.getsid(0) == os.getpid():
        with suppress(OSError):
            Path("/proc/self/autogroup").write_text(str(_NICE))


def _choose_gpu(settings: Settings) -> None:
    name, _, number = settings.device.partition(":")
    if name == "cuda" and number:
        os.environ.setdefault("CUDA_VISIBLE_DEVICES", number)


def _limit_gpu_memory(settings: Settings) -> None:
    import torch

    if settings.device != "cpu" and torch.cuda.is_available():
        torch.cuda.set_per_process_memory_fraction(settings.train_gpu_share)


def _free_memory() -> None:
    """Gives back what a job held, the GPU's memory too: the process may wait for days for the next one."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


# --- beside a worker --------------------------------------------------------------------------------------------------


class TrainingProcess:
    """The training process as a child of `lasagna worker`, which starts it again when it ends. From the main thread."""

    def __init__(self, settings: Settings, redis_url: str) -> None:
        self._log = state_dir(settings) / "training.log"
        self._environ = {**os.environ, **_as_environment(settings), "LASAGNA_REDIS_URL": redis_url}
        self._service: Service | None = None
        self._started = 0.0

    def look_after(self) -> None:
        """Starts it where it does not run."""
        if self._service is not None and self._service.running:
            return
        if self._service is not None:
            if time.monotonic() - self._started < _RESTART_AFTER:
                return
            code = self._service.process.returncode
            logger.warning("the training process ended with exit code %s; it is started again (%s)", code, self._log)
        command = [sys.executable, "-m", "lasagna", "worker", "--queues", "train"]
        self._service = Service("lasagna worker --queues train", command, log=self._log, env=self._environ)
        self._started = time.monotonic()

    def stop(self) -> None:
        if self._service is not None:
            self._service.stop()


def _as_environment(settings: Settings) -> Mapping[str, str]:
    """The settings that came from the command line, for a child."""
    given = [name for name, origin in settings.origins.items() if origin == "command line"]
    return {variable(name): str(getattr(settings, name)) for name in given}
