"""One call of a model at a time, also where processes are forked, copied and sent.

What always holds: a fork waits until no thread is inside a call, as it does for the logging module, so the child never
gets a lock that nobody will open, nor a model in the middle of its work; a pickled or copied lock arrives open.
"""

import os
import threading
import weakref
from typing import Any

_locks: "weakref.WeakSet[CallLock]" = weakref.WeakSet()
_held: "list[CallLock]" = []


class CallLock:
    """A lock for a `with` statement; a thread that has it may take it again."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        _locks.add(self)

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def __reduce__(self) -> tuple[Any, ...]:
        return CallLock, ()

    def __deepcopy__(self, _: dict[int, Any]) -> "CallLock":
        return CallLock()


def _before_fork() -> None:
    for lock in sorted(_locks, key=id):
        lock._lock.acquire()
        _held.append(lock)


def _after_fork() -> None:
    while _held:
        _held.pop()._lock.release()


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork)
