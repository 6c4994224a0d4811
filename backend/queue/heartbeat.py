"""A sign of life beside work that may take long without a word."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import redis


@contextmanager
def beating(seconds: float, beat: Callable[[], None], name: str) -> Iterator[None]:
    """Calls `beat` in a thread of its own while the block runs.

    Args:
        seconds: Between two calls; the first comes after as long.
        beat: The sign of life. Where Redis refuses it, the work goes on and the next one may get through.
        name: Of the thread.
    """
    ended = threading.Event()

    def run() -> None:
        while not ended.wait(seconds):
            with suppress(redis.RedisError):
                beat()

    thread = threading.Thread(target=run, name=name, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
