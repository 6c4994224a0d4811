"""Writing what predictions say into fields of their tasks, for the data manager: a thread of the worker.

It does so for projects whose extra parameter `data_fields` is true, once a prediction is delivered, many tasks in few
requests (`backend.studio.data_fields`). What always holds: nothing waits for it, so the delivery of predictions goes on
whatever happens here. While Label Studio is gone it tries again; what Label Studio refuses is dropped with a warning,
and `lasagna predictions fields` writes it at any time.
"""

import json
import logging
import threading
import time
from collections.abc import Mapping

import redis

from backend.queue.connections import Connections
from backend.queue.store import Store
from backend.studio.client import LabelStudioError
from backend.studio.data_fields import TOGETHER, write_fields
from backend.studio.project_id import number_of
from lasagna.errors import LasagnaError
from lasagna.logs import logged
from lasagna.settings import Settings

logger = logging.getLogger(__name__)

_LOOK_EVERY = 2.0
_GONE_SECONDS = 30.0


class FieldWriting(threading.Thread):
    """The thread. `stop` ends it after the tasks under way."""

    def __init__(self, settings: Settings, store: Store) -> None:
        super().__init__(name="fields", daemon=True)
        self._store = store
        self._connections = Connections(settings, store)
        self._stopping = threading.Event()
        self._not_before: dict[str, float] = {}  # of projects whose Label Studio is gone, by time.monotonic()

    def stop(self, seconds: float = 10.0) -> None:
        self._stopping.set()
        self.join(seconds)

    def run(self) -> None:
        while not self._stopping.wait(_LOOK_EVERY):
            try:
                self.step()
            except redis.RedisError as error:
                logger.debug("the fields of tasks wait for Redis: %s", error)
            except Exception:
                logger.exception("writing the fields of tasks failed unexpectedly; it goes on")
                self._stopping.wait(_GONE_SECONDS)

    def step(self) -> None:
        """Writes what is due, of each project."""
        for uid, due in self._store.fields_to_write(TOGETHER).items():
            if time.monotonic() >= self._not_before.get(uid, 0.0) and not self._stopping.is_set():
                with logged(project=number_of(uid)):
                    self._write(uid, due)

    def _write(self, uid: str, due: Mapping[str, str]) -> None:
        try:
            label_studio, _ = self._connections.of(uid)
            wanted = {int(task): json.loads(fields) for task, fields in due.items()}
            done = write_fields(label_studio, int(number_of(uid)), wanted)
        except LasagnaError as error:
            if isinstance(error, LabelStudioError) and error.is_temporary:
                self._not_before[uid] = time.monotonic() + _GONE_SECONDS
                logger.debug("the fields of %d tasks are tried again: %s", len(due), error)
                return
            logger.warning(
                "the fields of %d tasks are not written: %s; once that is mended, `lasagna predictions fields %s` "
                "writes them",
                len(due),
                error,
                number_of(uid),
            )
        else:
            logger.info("fields of %d tasks written", done.changed)
            if done.foreign:
                logger.warning("tasks with fields of somebody else under our names: %s", done.foreign[:20])
        self._store.fields_written(uid, due)
