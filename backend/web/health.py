"""What `/health` says of Redis and the workers, within half a second whatever Redis does.

What always holds: one thread at a time asks Redis, however many requests come; a request waits for it for at most
`WAIT_SECONDS`, and says that Redis does not answer where that is not enough. Label Studio gives `/health` one second.
"""

import threading
from concurrent.futures import Future
from typing import Any

import redis

from backend.queue.living_workers import predicting_workers
from backend.queue.store import Store

WAIT_SECONDS = 0.5


class Health:
    """Looks at Redis for many requests at once.

    Args:
        store: The records in Redis.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._asked: Future[dict[str, Any]] | None = None

    def look(self) -> dict[str, Any]:
        """`redis` ("up" or why not), `workers` and `model_version` (None where they are not known)."""
        with self._lock:
            asked = self._asked
            if asked is None or asked.done():
                asked = self._asked = Future()
                threading.Thread(target=self._ask, args=(asked,), name="health", daemon=True).start()
        try:
            return asked.result(WAIT_SECONDS)
        except TimeoutError:
            return _down(f"no answer within {WAIT_SECONDS} s")

    def _ask(self, asked: "Future[dict[str, Any]]") -> None:
        try:
            model = self._store.model()
            workers = len(predicting_workers(self._store))
            asked.set_result({"redis": "up", "workers": workers, "model_version": model["version"] if model else None})
        except redis.RedisError as error:
            asked.set_result(_down(str(error)))
        except Exception as error:  # what is kept there is no answer of ours
            asked.set_result(_down(f"{type(error).__name__}: {error}"))


def _down(why: str) -> dict[str, Any]:
    return {"redis": f"down: {why}", "workers": None, "model_version": None}
