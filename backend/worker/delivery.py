"""Posting predictions that no `/predict` answer carried: a thread of the worker, beside the model.

It empties the outbox of `backend.queue.store` through Label Studio's API. While Label Studio is gone it tries again
with growing pauses, for `delivery_timeout` seconds; then the task has failed with the reason, and `lasagna jobs retry`
puts it back. No prediction is posted twice: where an earlier attempt is in doubt (the connection broke, the process was
killed), Label Studio is asked first whether it has it.
"""

import logging
import threading
from collections.abc import Callable

import redis

from backend.instant.heads import base_version
from backend.queue.connections import Connections
from backend.queue.counters import Meter, reason_of
from backend.queue.jobs import enqueue_works
from backend.queue.store import Post, Store
from backend.studio.client import LabelStudio, LabelStudioError
from backend.studio.project_id import number_of
from lasagna.errors import LasagnaError
from lasagna.logs import logged
from lasagna.settings import Settings

logger = logging.getLogger(__name__)

_IDLE_SECONDS = 0.3
_GONE_SECONDS = 2.0


class Delivery(threading.Thread):
    """The thread. `stop` ends it after the post under way."""

    def __init__(self, settings: Settings, store: Store) -> None:
        super().__init__(name="delivery", daemon=True)
        self._settings = settings
        self._store = store
        self._meter = Meter(store.redis)
        self._connections = Connections(settings, store)
        self._stopping = threading.Event()
        self._redis_is_gone = False

    def stop(self, seconds: float = 10.0) -> None:
        self._stopping.set()
        self.join(seconds)

    def run(self) -> None:
        while not self._stopping.is_set():
            try:
                worked = self.step()
                self._redis_is_gone = False
            except redis.RedisError as error:
                if not self._redis_is_gone:  # said once
                    logger.warning("delivery waits for Redis: %s", error)
                self._redis_is_gone = True
                self._stopping.wait(_GONE_SECONDS)
                continue
            except Exception:
                logger.exception("delivery failed unexpectedly; it goes on")
                worked = False
            if not worked:
                self._stopping.wait(_IDLE_SECONDS)

    def step(self) -> bool:
        """Puts what waited for Label Studio back into the queue, and posts one prediction. False: nothing to do."""
        due = self._store.due_later()
        enqueue_works(self._store, due, self._settings.batch_size)
        post = self._store.take_post()
        if post is None:
            return bool(due)
        try:
            with logged(project=number_of(post.work.project), task=post.work.task):
                self._deliver(post)
        finally:
            self._meter.flush()
        return True

    def _deliver(self, post: Post) -> None:
        if post.work.task is None:
            self._store.fail(post.key, "the task has no id, so its prediction cannot be posted; ask for it again")
            return
        try:
            label_studio, _ = self._connections.of(post.work.project)
            with self._meter.stage("post", 1):
                prediction_id = deliver(label_studio, post.work.task, post)
        except LabelStudioError as error:
            if not error.is_temporary:
                self._store.fail(post.key, _refusal(post.work.task, error), reason_of(error))
                logger.warning("task %s: %s", post.work.task, error)
                return
            state = self._store.try_later(post.key, str(error), self._settings.delivery_timeout)
            logger.warning("task %s: %s; %s", post.work.task, error, "tried again" if state == "later" else "given up")
        except LasagnaError as error:
            self._store.fail(post.key, str(error), reason_of(error))
        else:
            self._store.posted(post.key, prediction_id)
            logger.info("task %s: prediction %d posted", post.work.task, prediction_id)


def deliver(label_studio: LabelStudio, task: int, post: Post) -> int:
    """Posts a prediction and returns its id; finds it instead where an earlier attempt may have got through.

    Raises:
        LabelStudioError: Label Studio cannot be reached or refuses it.
    """
    version = post.prediction["model_version"]
    before: list[int] = []
    if post.work.replace or not post.is_first:
        made_beside = base_version(version)
        all_heads = [
            p for p in label_studio.predictions(task) if base_version(str(p.get("model_version"))) == made_beside
        ]
        same = all_heads if post.work.replace else [p for p in all_heads if p.get("model_version") == version]
        if not post.is_first and (found := _find(same, post.prediction["result"], post.work.replace)) is not None:
            before = [int(p["id"]) for p in same if p["id"] != found] if post.work.replace else []
            _remove(label_studio.delete_prediction, before)
            return found
        before = [int(p["id"]) for p in same] if post.work.replace else []
    prediction_id = label_studio.create_prediction(task, post.prediction)
    _remove(label_studio.delete_prediction, before)
    return prediction_id


def _find(predictions: list[dict], result: object, exactly: bool) -> int | None:
    """The newest of the predictions; with `exactly` only one with the same regions counts."""
    fitting = [p for p in predictions if not exactly or p.get("result") == result]
    return max((int(p["id"]) for p in fitting), default=None)


def _remove(delete: Callable[[int], None], ids: list[int]) -> None:
    for prediction_id in ids:
        delete(prediction_id)


def _refusal(task: int, error: LabelStudioError) -> str:
    if error.status == 404:
        return f"Label Studio does not know task {task} any more"
    return str(error)
