"""Which workers are alive: the one answer for `/health`, `/ready`, `/metrics`, the status page and every command.

What always holds: a worker counts from its start (it gives signs of life only once its model is loaded) until it ends,
or until `SILENT_AFTER` seconds after its last sign where it was killed. RQ itself forgets such a worker minutes later.
Every function raises `redis.RedisError` where Redis is gone.
"""

import socket
from collections.abc import Sequence
from dataclasses import dataclass

from rq.worker import BaseWorker, Worker

from backend.queue.jobs import queue
from backend.queue.store import Store, as_text

SILENT_AFTER = 30.0
"""Seconds without a sign of life after which a worker counts as gone; it gives one every few seconds, also during a
job (`backend.worker.rq_worker`)."""


@dataclass(frozen=True)
class PredictingWorker:
    """A worker that has its model loaded."""

    name: str
    version: str


def living_workers(store: Store, queue_name: str | None = None) -> list[BaseWorker]:
    """The workers, or those that take jobs from a queue, by name."""
    now = store.now()
    known = (
        Worker.all(connection=store.redis) if queue_name is None else Worker.all(queue=queue(store.redis, queue_name))
    )
    living = [w for w in known if w.last_heartbeat is not None and now - w.last_heartbeat.timestamp() < SILENT_AFTER]
    return sorted(living, key=lambda worker: worker.name)


def current_job(store: Store, worker: BaseWorker) -> str:
    """The id of a job that a worker runs; "" where it runs none.

    RQ's own reader raises KeyError where a worker's sign of life came just after its job had ended: of that job's
    record nothing but the time is left then.
    """
    running = sorted(as_text(member) for member in store.redis.smembers(worker.executions_key))  # JOB:EXECUTION
    return running[0].rpartition(":")[0] if running else ""


def predicting_workers(store: Store) -> list[PredictingWorker]:
    """The workers that make predictions (one that only trains is none), with their own model's version."""
    versions = ((w.name, store.redis.hget(w.key, "model_version")) for w in living_workers(store, "predict"))
    return [PredictingWorker(name, version.decode() if version else "unknown") for name, version in versions]


def alive_here(store: Store, queue_names: Sequence[str]) -> bool:
    """Whether each of the queues has a worker on this machine (by its host name)."""
    here = f"{socket.gethostname()}-"
    return all(any(w.name.startswith(here) for w in living_workers(store, name)) for name in queue_names)


def in_words(workers: Sequence[PredictingWorker], store: Store) -> str:
    """How many there are, with which models, and what the newest of these cannot do beside answering class lists."""
    versions = ", ".join(sorted({worker.version for worker in workers}))
    cannot = (store.model() or {}).get("cannot", ())
    return f"{len(workers)} with the model {versions}" + (f"; it cannot {', '.join(cannot)}" if cannot else "")
