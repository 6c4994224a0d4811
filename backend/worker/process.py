"""The process that owns the model: `lasagna worker`.

What always holds: the model is loaded once and warmed before the first job; when Redis goes away it stays loaded.
"""

import logging
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import redis

from backend.queue import jobs
from backend.queue.store import Store
from backend.registry.takeover import take_over
from backend.worker.delivery import Delivery
from backend.worker.field_writing import FieldWriting
from backend.worker.rq_worker import LasagnaWorker, connect, work_until_stopped
from backend.worker.runtime import Runtime
from lasagna.formats.hygiene import Hygiene
from lasagna.models.loading import about as about_model
from lasagna.settings import Settings, registry_folder

if TYPE_CHECKING:
    from lasagna.contract.model import ClassListModel

logger = logging.getLogger(__name__)


def run_worker(
    settings: Settings, redis_url: str, model: "ClassListModel", look_after: Callable[[], None] = lambda: None
) -> None:
    """Works until it is told to stop (SIGTERM, Ctrl-C). The caller has loaded the model.

    Args:
        look_after: Called every few seconds between jobs, from this thread.
    """
    connection = connect(redis_url)
    store = Store(connection)
    runtime = Runtime(model, settings, store)
    seconds = runtime.warm_up()
    logger.info("model %s is ready (first run %.1f s)", model.version, seconds)
    jobs.install(runtime)
    delivery = Delivery(settings, Store(connect(redis_url)))
    delivery.start()
    fields = FieldWriting(settings, Store(connect(redis_url)))
    fields.start()

    def looks_after() -> None:
        look_after()
        runtime.learning.look_after()

    def make() -> LasagnaWorker:
        about: dict[str, Any] = {
            "version": model.version,
            "name": settings.model,
            "pid": os.getpid(),
            "left_out": asdict(Hygiene.of(settings)),
            "cannot": model.abilities.missing,
            "about": [] if model.abilities.training else about_model(model),
        }
        take_over(registry_folder(settings), store)
        store.publish_model(about)
        logger.info("waiting for jobs in %s", ", ".join(jobs.PREDICTING))
        return LasagnaWorker(
            connection, store, settings.batch_size, look_after=looks_after, model_version=model.version
        )

    try:
        work_until_stopped(make)
    finally:
        delivery.stop()
        fields.stop()
        jobs.install(None)
        with suppress(redis.RedisError):
            connection.close()
