"""The jobs in the queue: what is put in by the web process, and what the worker runs.

Four queues, in order of priority: `interactive` (a person waits), `instant` (a correction is learnt from), `predict`,
`train`. A job of the first three holds keys of works or a small JSON request; its functions are named by their path, so
that enqueuing imports no model.

What always holds: no pickle enters or leaves Redis (RQ's default serializer is pickle; ours is JSON), and a worker
calls `FUNCTIONS` and nothing else, whatever a job in Redis asks for (`ListedJob`). RQ would import and call any name,
so that whoever writes to Redis could run commands on the machines of the workers.

The functions find the loaded model in the `JobRunner` that the worker installed; they run in no other process.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol
from uuid import uuid4

import redis
from rq import Queue, Retry, get_current_job
from rq.job import Job
from rq.serializers import JSONSerializer

from backend.queue.counters import Meter
from backend.queue.store import KEEP_WORK, Store
from backend.studio.project_id import number_of
from lasagna.logs import logged

logger = logging.getLogger(__name__)

QUEUES = ("interactive", "instant", "predict", "train")
PREDICTING = QUEUES[:3]
"""Those of the process that holds the model for predictions; `train` has a process of its own."""
FUNCTIONS = frozenset(
    {
        "backend.queue.jobs.predict_batch",
        "backend.queue.jobs.answer_click",
        "backend.queue.jobs.learn_corrections",
        "backend.loop.process.run_job",
    }
)
"""All that a job may call."""
CRASHES = 3
"""How often a job is run again after its worker died; then its tasks have failed."""

_SECONDS_PER_TASK = 300
_SECONDS_PER_CLICK = 60


class JobRunner(Protocol):
    """What the jobs of a worker's process need: `backend.worker.runtime.Runtime`, which holds the loaded models."""

    @property
    def store(self) -> Store: ...

    @property
    def meter(self) -> Meter: ...

    def release(self, keys: Sequence[str], job: str) -> list[str]:
        """Takes what an earlier run of this job left and returns those keys, to be queued in other jobs."""

    def predict(self, keys: Sequence[str], job: str) -> dict[str, int]:
        """Predicts works. Returns how many ended how."""

    def click(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Answers one interactive request."""

    def learn(self, project: str) -> None:
        """Learns from what was corrected in a project."""


_runtime: JobRunner | None = None


class ListedJob(Job):
    """A job of RQ that calls one of `FUNCTIONS`; one that asks for anything else fails with the reason.

    What else RQ would do on a job's behalf (callbacks by name, requests to addresses that it calls webhooks, a method
    of an object in the job) is dropped: none of our jobs has any.
    """

    def restore(self, raw_data: Any) -> Any:
        found = super().restore(raw_data)
        self._success_callback_name = self._failure_callback_name = self._stopped_callback_name = None
        self.webhooks = []
        return found

    @property
    def func(self) -> Callable[..., Any]:
        if self.func_name not in FUNCTIONS or self.instance is not None:
            raise PermissionError(
                f"a job in Redis asks for {str(self.func_name)[:80]!r}, which is none of ours and was not called; who "
                "else writes to this Redis?"
            )
        return super().func


def queue(connection: redis.Redis, name: str) -> Queue:
    """The RQ queue of a name in `QUEUES`. Raises ValueError for another name."""
    if name not in QUEUES:
        raise ValueError(f"no queue is called {name!r}; there are {QUEUES}")
    return Queue(name, connection=connection, serializer=JSONSerializer, job_class=ListedJob)


def find_jobs(connection: redis.Redis, ids: Sequence[str]) -> list[ListedJob | None]:
    """The jobs with these ids; None where there is none."""
    found = ListedJob.fetch_many(list(ids), connection=connection, serializer=JSONSerializer)
    return [job if isinstance(job, ListedJob) else None for job in found]


def enqueue_works(
    store: Store, keys: Sequence[str], batch_size: int, *, urgent: bool = False, name: str = "predict"
) -> int:
    """Puts works into the queue, one job per model batch; returns the number of jobs.

    Args:
        store: Their records.
        keys: Works in the state "queued".
        batch_size: Images per job.
        urgent: Ahead of every batch: a person waits for it.
        name: The queue, where it is not urgent.
    """
    target = queue(store.redis, "interactive" if urgent else name)
    jobs = []
    for start in range(0, len(keys), batch_size):
        batch = list(keys[start : start + batch_size])
        job_id = uuid4().hex
        store.assign(batch, job_id)  # before the job exists: a worker may start it at once
        jobs.append(
            Queue.prepare_data(
                "backend.queue.jobs.predict_batch",
                args=[batch],
                job_id=job_id,
                timeout=_SECONDS_PER_TASK * len(batch),
                result_ttl=600,
                failure_ttl=KEEP_WORK,
                description=f"{len(batch)} task{'s' * (len(batch) > 1)}",
                retry=Retry(max=CRASHES),
            )
        )
    if jobs:
        target.enqueue_many(jobs)
    return len(jobs)


def enqueue_click(connection: redis.Redis, request: Mapping[str, Any], seconds: float) -> str:
    """Puts an interactive request into the queue and returns the key of its answer (`Store.take_answer`).

    It is dropped when nobody waits any more, after `seconds`.
    """
    key = uuid4().hex
    queue(connection, "interactive").enqueue(
        "backend.queue.jobs.answer_click",
        args=[key, dict(request)],
        job_timeout=_SECONDS_PER_CLICK,
        ttl=max(1, round(seconds)),
        result_ttl=60,
        failure_ttl=KEEP_WORK,
        description=f"click on task {request.get('task')}",
    )
    return key


# --- in the worker ----------------------------------------------------------------------------------------------------


def install(runtime: JobRunner | None) -> None:
    """Gives the job functions of this process the loaded model."""
    global _runtime
    _runtime = runtime


def predict_batch(keys: list[str]) -> dict[str, int]:
    """A job: predicts works. Returns how many ended in which way.

    After a crash of the worker each work of the batch gets a job of its own, so that one image that brings the process
    down fails alone.
    """
    runtime, job = _installed(), get_current_job()
    if job is not None and len(keys) > 1 and job.retries_left is not None and job.retries_left < CRASHES:
        waiting = runtime.release(keys, job.id)
        logger.warning("the worker died on a batch; its %d tasks are now tried one by one", len(waiting))
        enqueue_works(runtime.store, waiting, batch_size=1)
        return {"split": len(waiting)}
    return runtime.predict(keys, job.id if job is not None else uuid4().hex)


def answer_click(key: str, request: dict[str, Any]) -> None:
    """A job: answers one interactive request."""
    runtime = _installed()
    with logged(project=number_of(str(request["project"])), task=request.get("task")):
        answer = runtime.click(request)
    runtime.store.answer(key, answer)
    runtime.meter.count(f"clicks:{'refused' if 'error' in answer else 'answered'}")
    runtime.meter.flush()


def learn_corrections(project: str) -> None:
    """A job: learns from what was corrected in a project (its uid)."""
    runtime = _installed()
    with logged(project=number_of(project)):
        runtime.learn(project)


def _installed() -> JobRunner:
    if _runtime is None:
        raise RuntimeError(
            "this job runs in the process of `lasagna worker`, which has the model; it was run elsewhere"
        )
    return _runtime
