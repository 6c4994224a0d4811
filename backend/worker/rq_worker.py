"""A worker of the queue, whichever jobs it takes. No torch: the process that trains loads it with its first job.

What always holds:

- jobs run in this process: CUDA does not survive a fork;
- RQ hears from the worker every few seconds also while a job runs (a thread), so a slow batch is not taken for a dead
  worker, and a dead worker is noticed within `_DEAD_AFTER` seconds;
- whoever is alive looks after jobs that a dead worker left (`recover`) and tasks whose job is lost;
- when Redis goes away the process lives on, and works when it is back;
- SIGTERM and Ctrl-C end the worker after the job at hand.
"""

import logging
import os
import socket
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import redis
from rq import SimpleWorker, worker_registration
from rq.exceptions import StopRequested
from rq.job import Job
from rq.registry import clean_registries
from rq.serializers import JSONSerializer
from rq.utils import now

from backend.queue import jobs
from backend.queue.append_only import mend_append_only_file
from backend.queue.counters import WAIT_BOUNDS, Meter, note_gpu
from backend.queue.heartbeat import beating
from backend.queue.store import PREFIX, Store
from lasagna.errors import ServiceError
from lasagna.logs import logged

if TYPE_CHECKING:
    from rq import Queue


logger = logging.getLogger(__name__)

_BEAT = 4
"""Seconds between two heart-beats during a job."""
_DEAD_AFTER = 15
"""Seconds without a heart-beat after which a job's worker is taken for dead."""
_LOOK_UP = 5
"""Seconds for which the worker waits for a job before it looks after other things."""
_MAINTENANCE = 5
"""Seconds between two looks for what dead workers left."""
_LOST_AFTER = 30
"""Seconds without a change after which it is checked whether a task's job still exists."""
_MAX_WAIT = 10.0
"""Longest pause between two attempts to reach Redis, in seconds."""


class LasagnaWorker(SimpleWorker):
    """RQ's worker without a fork, with heart-beats during a job and quick recovery."""

    max_connection_wait_time = _MAX_WAIT

    def __init__(
        self,
        connection: "redis.Redis",
        store: Store,
        batch_size: int,
        queues: Sequence[str] = jobs.PREDICTING,
        look_after: Callable[[], None] = lambda: None,
        model_version: str = "",
    ) -> None:
        super().__init__(
            [jobs.queue(connection, name) for name in queues],
            name=f"{socket.gethostname()}-{os.getpid()}-{uuid4().hex[:6]}",
            connection=connection,
            job_class=jobs.ListedJob,
            serializer=JSONSerializer,
            worker_ttl=_LOOK_UP + 15,  # RQ's rule: it waits for a job that much shorter
            maintenance_interval=_MAINTENANCE,
            log_job_description=False,
        )
        self.log_result_lifespan = False
        self.was_asked_to_stop = False
        self._store = store
        self._meter = Meter(connection)
        self._batch_size = batch_size
        self._look_after = look_after
        self._model_version = model_version

    def register_birth(self) -> None:
        """RQ's record of this worker, which ends with it, also says what it has loaded
        (`backend.queue.living_workers`)."""
        super().register_birth()
        self.connection.hset(self.key, "model_version", self._model_version)

    def stay_listed(self) -> None:
        """Takes its place among the workers again: one that stood still for a while, or whose Redis refused to write,
        is struck off by the others, and RQ lets it work on unlisted."""
        if not self.connection.sismember(self.redis_workers_keys, self.key):
            with self.connection.pipeline() as pipeline:
                pipeline.hset(self.key, mapping={**self.serialize(), "model_version": self._model_version})
                worker_registration.register(self, pipeline)
                pipeline.execute()

    def request_stop(self, signum: Any, frame: Any) -> None:
        self.was_asked_to_stop = True
        super().request_stop(signum, frame)

    def get_heartbeat_ttl(self, job: Job, working_time: float = 0.0) -> int:
        return _DEAD_AFTER

    def execute_job(self, job: Job, queue: "Queue") -> None:
        if job.enqueued_at is not None:  # clocks of machines may differ by a little
            self._meter.observe("wait", queue.name, max(0.0, (now() - job.enqueued_at).total_seconds()), WAIT_BOUNDS)
            self._meter.flush()
        execution = self.prepare_execution(job)
        with beating(_BEAT, lambda: self.maintain_heartbeats(job, execution), "heart-beat"), logged(job=job.id):
            self.perform_job(job, queue, execution)
        self.set_state("idle")

    def subscribe(self) -> None:
        """RQ's remote commands (stop a job, shut down) need a fork: nothing to listen to."""

    def unsubscribe(self) -> None:
        """Does nothing, like `subscribe`."""

    def run_maintenance_tasks(self) -> None:
        """RQ's own would hold a lock for 15 minutes if a worker died in it; this one's ends by itself."""
        self._look_after()
        self.stay_listed()
        note_gpu(self.connection)
        if self.connection.set(f"{PREFIX}maintenance", self.name, nx=True, ex=30):
            try:
                for queue in self.queues:
                    clean_registries(queue, self._exc_handlers)
                    worker_registration.clean_worker_registry(queue)
                recover(self._store, self._batch_size)
                mend_append_only_file(self.connection)
            finally:
                self.connection.delete(f"{PREFIX}maintenance")
        self.last_cleaned_at = now()  # type: ignore[assignment]


def recover(store: Store, batch_size: int) -> int:
    """Looks after tasks whose job is lost: queues them again, or records why the job failed. Returns how many.

    A job is lost when its worker died between taking it and noting so, when Redis lost the last second before a crash,
    or when its worker died too often (`jobs.CRASHES`).
    """
    time_there, lost, failed = store.now(), [], 0
    _forget_ghosts(store)
    for state in ("queued", "running"):
        keys = store.keys(state, limit=500, oldest_first=True)
        for key, fields in zip(keys, store.fields(keys), strict=True):
            if (
                not fields
                or time_there - float(fields["changed"]) < _LOST_AFTER
                or store.is_waiting_for_label_studio(key)
            ):
                continue
            status, reason = _job_status(store.redis, fields.get("job", ""))
            if status == "failed":
                store.fail(key, reason, "crash")
                failed += 1
            elif status == "gone":
                lost.append(key)
                store.requeue(key)
    if lost:
        logger.warning("%d tasks had lost their job; they are queued again", len(lost))
        jobs.enqueue_works(store, lost, batch_size)
    return len(lost) + failed


def _forget_ghosts(store: Store) -> None:
    """Works in a list without a record: thrown away by a Redis that has no memory for them. They are lost, and must not
    stand before those that are not."""
    for state in ("queued", "running", "ready"):
        keys = store.keys(state, limit=20_000, oldest_first=True)
        ghosts = [key for key, known in zip(keys, store.states(keys), strict=True) if not known]
        lost = store.forget(ghosts)
        if lost:
            words = (
                "%d tasks are lost: Redis has no record of them any more (%s); `lasagna doctor` says whether it keeps"
            )
            logger.error(f"{words} what it is given", lost, state)


def _job_status(connection: "redis.Redis", job_id: str) -> tuple[str, str]:
    """("alive" | "gone" | "failed", reason) of a job that a task is waiting for."""
    job = jobs.find_jobs(connection, [job_id])[0] if job_id else None
    if job is None:
        return "gone", ""
    status = job.get_status(refresh=False)
    if status == "failed":
        result = job.latest_result()
        said = (result.exc_string or "").strip().splitlines() if result is not None else []
        if said and "AbandonedJobError" not in said[-1]:
            return "failed", said[-1]
        return "failed", f"the worker died {jobs.CRASHES + 1} times while it worked on this task (out of memory?)"
    if status == "started":
        beat = job.last_heartbeat
        is_alive = beat is not None and (now() - beat).total_seconds() < 3 * _DEAD_AFTER
        return ("alive" if is_alive else "gone"), ""
    if status == "queued":
        queue = jobs.queue(connection, job.origin)
        return ("alive" if queue.get_job_position(job_id) is not None else "gone"), ""
    return "gone", ""


# --- the process ------------------------------------------------------------------------------------------------------


def connect(url: str) -> redis.Redis:
    """A client of Redis for the worker.

    Raises:
        ServiceError: It does not answer.
    """
    from backend.queue.store import connect as connect_quickly

    client = connect_quickly(url, timeout=4 * _LOOK_UP)  # longer than RQ waits for a job in one call
    try:
        client.ping()
    except redis.RedisError as error:
        raise ServiceError(
            f"Redis cannot be reached ({error}); start it, or set LASAGNA_REDIS_URL to the address of one that runs"
        ) from error
    return client


def work_until_stopped(make: Callable[[], LasagnaWorker]) -> None:
    """Works until a worker is told to stop (SIGTERM, Ctrl-C), with a new worker whenever Redis was gone.

    Args:
        make: Makes a worker, after what else has to be done each time that Redis is there.
    """
    pause = 1.0
    worker: LasagnaWorker | None = None
    try:
        while True:
            try:
                worker = make()
                pause = 1.0
                worker.work(logging_level="WARNING")
            except redis.RedisError as error:
                logger.warning("Redis is gone (%s); trying again in %.0f s", error, pause)
            until = time.monotonic() + pause
            # The signal goes to the last worker, also where it comes while there is no new one yet.
            while time.monotonic() < until and not (worker is not None and worker.was_asked_to_stop):
                time.sleep(0.2)
            if worker is not None and worker.was_asked_to_stop:
                return
            pause = min(pause * 2, _MAX_WAIT)
    except StopRequested:  # RQ's signal handler, where it interrupted something else than its own waiting
        return
