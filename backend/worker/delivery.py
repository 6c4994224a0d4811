"""Posting predictions that no `/predict` answer carried: a thread of the worker, beside the model.

It empties the outbox of `backend.queue.store` through Label Studio's API, as many at once as wait there. While Label
Studio is gone it tries again with growing pauses, for `delivery_timeout` seconds; then the task has failed with the
reason, and `lasagna jobs retry` puts it back. A task that was deleted meanwhile is no failure.

No prediction is posted twice: where an earlier attempt is in doubt (the connection broke, the process was killed),
Label Studio is asked first whether it has it. It is the one that is equal in version and regions. That holds for
several in one request too, which is many times faster than one by one; what was refused together, or left out, is
posted by itself (`deliver_together`).

One case is left: Label Studio works on the earlier attempt all the time, and stores it after it was asked and after the
next attempt; it does not notice that it has had a request before. So a task is noted before it is sent again what is in
doubt, and looked at a minute and ten minutes later: of equal predictions one is kept (`settle`).
"""

import json
import logging
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import redis

from backend.queue.connections import Connections
from backend.queue.counters import Meter, reason_of
from backend.queue.jobs import enqueue_works
from backend.queue.store import Doubt, Post, Store
from backend.studio.client import LabelStudio, LabelStudioError
from backend.studio.project_id import number_of
from backend.studio.version_names import base_version
from lasagna.errors import LasagnaError
from lasagna.logs import logged
from lasagna.settings import Settings

logger = logging.getLogger(__name__)

_IDLE_SECONDS = 0.3
_GONE_SECONDS = 2.0
AT_ONCE = 50
"""Predictions in one request: enough that the request's own cost no longer counts, and few enough that Label Studio has
stored them within a second or two, and that all of them together are stored or refused (see `import_predictions`)."""
_BYTES_AT_ONCE = 1 << 22
"""Of JSON: gateways in front of Label Studio refuse large requests."""
_SETTLE_AT_ONCE = 20


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
        """Puts what waited for Label Studio back into the queue, and posts what waits, or else looks once more at what
        was posted in doubt. False: nothing to do."""
        due = self._store.due_later()
        enqueue_works(self._store, due, self._settings.batch_size)
        posts = self._store.take_posts(AT_ONCE, _BYTES_AT_ONCE)
        if not posts:
            return self._settle() or bool(due)
        try:
            if len(posts) == 1:
                with logged(project=number_of(posts[0].work.project), task=posts[0].work.task):
                    self._deliver(posts[0])
            else:
                with logged(project=number_of(posts[0].work.project)):
                    self._deliver_together(posts)
        finally:
            self._meter.flush()
        return True

    def _deliver(self, post: Post) -> None:
        task = post.work.task
        if task is None:
            self._store.fail(post.key, "the task has no id, so its prediction cannot be posted; ask for it again")
            return
        try:
            label_studio, _ = self._connections.of(post.work.project)
            with self._meter.stage("post", 1):
                prediction_id = deliver(label_studio, task, post, self._store.note_doubt)
        except LasagnaError as error:
            self._not_delivered([post], error)
        else:
            if prediction_id is None:
                self._store.gone(post.key)
                logger.info("task %s was deleted in Label Studio: its prediction is not needed any more", task)
                return
            self._store.posted(post.key, prediction_id)
            logger.info("task %s: prediction %d posted", task, prediction_id)

    def _deliver_together(self, posts: Sequence[Post]) -> None:
        try:
            label_studio, _ = self._connections.of(posts[0].work.project)
            with self._meter.stage("post", len(posts)):
                there = deliver_together(label_studio, posts, self._store.note_doubt)
        except LasagnaError as error:
            self._not_delivered(posts, error)
            return
        self._store.posted_all([post.key for post in posts if post.key in there])
        self._store.post_alone([post.key for post in posts if post.key not in there])
        logger.info("%d predictions posted together, %d are posted one by one", len(there), len(posts) - len(there))

    def _settle(self) -> bool:
        """Looks at some tasks whose predictions may be there twice. False: none is due."""
        due = self._store.take_doubts(_SETTLE_AT_ONCE)
        for doubt in due:
            try:
                label_studio, _ = self._connections.of(doubt.project)
                removed = settle(label_studio, doubt.task, doubt.version)
            except LasagnaError as error:
                if isinstance(error, LabelStudioError) and error.is_temporary:
                    self._store.note_doubt([doubt])
                logger.debug("task %s is not looked at for what is there twice: %s", doubt.task, error)
                continue
            if removed:
                with logged(project=number_of(doubt.project), task=doubt.task):
                    logger.info("task %s: an earlier attempt was stored late; %d removed", doubt.task, removed)
        return bool(due)

    def _not_delivered(self, posts: Sequence[Post], error: LasagnaError) -> None:
        for post in posts:
            task = post.work.task
            if isinstance(error, LabelStudioError) and error.is_temporary:
                state = self._store.try_later(post.key, str(error), self._settings.delivery_timeout)
                what_next = "tried again" if state == "later" else "given up"
                logger.warning("task %s: %s; %s", task, error, what_next)
                continue
            self._store.fail(post.key, str(error), reason_of(error))
            logger.warning("task %s: %s", task, error)


def deliver_together(
    label_studio: LabelStudio,
    posts: Sequence[Post],
    note_doubt: Callable[[Sequence[Doubt]], None] = lambda doubts: None,
) -> set[str]:
    """Posts predictions of one project in one request: the keys of those that Label Studio has now.

    The others it refused together, or left out: they are to be posted by themselves, where each gets an answer of its
    own. Label Studio is asked which predictions it has before, about those whose earlier attempt is in doubt, and after
    an answer that does not say that all were stored. Those that are posted once more are told to `note_doubt` before.

    Raises:
        LabelStudioError: Label Studio cannot be reached, or is overloaded: each of them is in doubt.
    """
    project = _number(posts[0])
    doubtful = [post for post in posts if not post.is_first]
    there = _stored(label_studio, project, doubtful) if doubtful else set()
    rest = [post for post in posts if post.key not in there]
    if not rest:
        return there
    _note(note_doubt, rest)
    try:
        stored = label_studio.import_predictions(
            project, [{"task": post.work.task, **post.prediction} for post in rest]
        )
    except LabelStudioError as error:
        if error.is_temporary:
            raise
        logger.info("%d predictions are not taken together (%s)", len(rest), error)
        stored = 0
    if stored == len(rest):
        return there | {post.key for post in rest}
    return there | _stored(label_studio, project, rest)


def _stored(label_studio: LabelStudio, project: int, posts: Sequence[Post]) -> set[str]:
    """The keys of those that Label Studio has."""
    tasks = {post.key: task for post in posts if (task := post.work.task) is not None}
    versions = label_studio.model_versions(project, list(tasks.values()))
    likely = [post for post in posts if post.prediction["model_version"] in versions.get(tasks.get(post.key, 0), ())]
    return {post.key for post in likely if _equal(label_studio.predictions(tasks[post.key]), post)}


def settle(label_studio: LabelStudio, task: int, version: str) -> int:
    """Of equal predictions of a version that a task has, removes all but the first, and returns how many. Where
    somebody has begun to annotate, all stay: they may have begun with any of them.

    Raises:
        LabelStudioError: Label Studio cannot be reached or refuses it.
    """
    groups: dict[str, list[int]] = {}
    for one in label_studio.predictions(task):
        if one.get("model_version") == version:
            groups.setdefault(json.dumps(one.get("result"), sort_keys=True), []).append(int(one["id"]))
    twice = [sorted(ids) for ids in groups.values() if len(ids) > 1]
    if not twice or label_studio.is_begun(task):
        return 0
    late = [id for ids in twice for id in ids[1:]]
    _remove(label_studio.delete_prediction, late)
    return len(late)


def deliver(
    label_studio: LabelStudio,
    task: int,
    post: Post,
    note_doubt: Callable[[Sequence[Doubt]], None] = lambda doubts: None,
) -> int | None:
    """Posts a prediction and returns its id; finds it instead where an earlier attempt may have got through.

    None: the task was deleted in Label Studio, while its project is still there.

    Raises:
        LabelStudioError: Label Studio cannot be reached or refuses it.
    """
    try:
        return _post(label_studio, task, post, note_doubt)
    except LabelStudioError as error:
        # for a task that is gone it answers 400, for that and for other things
        if error.status in (400, 404) and task not in label_studio.model_versions(_number(post), [task]):
            return None
        raise


def _post(label_studio: LabelStudio, task: int, post: Post, note_doubt: Callable[[Sequence[Doubt]], None]) -> int:
    version = post.prediction["model_version"]
    before: list[int] = []
    if post.work.replace or not post.is_first:
        made_beside = base_version(version)
        all_heads = [
            p for p in label_studio.predictions(task) if base_version(str(p.get("model_version"))) == made_beside
        ]
        if not post.is_first and (equal := _equal(all_heads, post)):
            found = max(equal)
            before = [int(p["id"]) for p in all_heads if p["id"] != found] if post.work.replace else []
            _remove(label_studio.delete_prediction, before)
            return found
        before = [int(p["id"]) for p in all_heads] if post.work.replace else []
    _note(note_doubt, [post])
    prediction_id = label_studio.create_prediction(task, post.prediction)
    _remove(label_studio.delete_prediction, before)
    return prediction_id


def _equal(predictions: Iterable[dict[str, Any]], post: Post) -> list[int]:
    """Those of the predictions with the version and the regions of one that was to be posted."""
    wanted = (post.prediction["model_version"], post.prediction["result"])
    return [int(p["id"]) for p in predictions if (p.get("model_version"), p.get("result")) == wanted]


def _note(note_doubt: Callable[[Sequence[Doubt]], None], posts: Sequence[Post]) -> None:
    """Notes those of the posts, about to be sent, whose earlier attempt is in doubt."""
    doubts = [
        Doubt(post.work.project, post.work.task, post.prediction["model_version"])
        for post in posts
        if not post.is_first and post.work.task is not None
    ]
    if doubts:
        note_doubt(doubts)


def _remove(delete: Callable[[int], None], ids: list[int]) -> None:
    for prediction_id in ids:
        delete(prediction_id)


def _number(post: Post) -> int:
    return int(number_of(post.work.project))
