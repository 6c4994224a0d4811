"""Which task the training process died on: a file of what it is busy with, which the next start looks at.

What always holds: a task is blamed only where the process died `DEATHS` times while it was busy with that task alone;
where it was busy with several, the next attempt takes all tasks one by one, so that its death would have one cause. A
process that is stopped in order, or ends by an error, blames nobody.
"""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lasagna.files import parse_json, write_atomically

DEATHS = 2
"""So often a process may die of a task: one death may be a power failure."""


class Dangers:
    """What one attempt is busy with, and what earlier ones died of. Threads may use it at once.

    Args:
        path: The file; None of an earlier attempt: nobody died.

    Attributes:
        one_by_one: Whether an earlier attempt died while it was busy with several tasks.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._lock = path, threading.Lock()
        self._busy: list[str] = []
        self._deaths, left, self.one_by_one = _read(path)
        if len(left) == 1:
            self._deaths[left[0]] = self._deaths.get(left[0], 0) + 1
        self.one_by_one = self.one_by_one or len(left) > 1
        self._write()

    def reason(self, task: str) -> str | None:
        """Why a task must not be touched again; None where it may be."""
        deaths = self._deaths.get(task, 0)
        if deaths < DEATHS:
            return None
        return (
            f"the training process died {deaths} times while it was busy with this task alone (out of memory?); to try "
            f"it again, remove {self._path}"
        )

    @contextmanager
    def busy_with(self, task: str) -> Iterator[None]:
        """Notes that a task is worked on, until the block ends in whatever way but death."""
        with self._lock:
            self._busy.append(task)
            self._write()
        try:
            yield
        finally:
            with self._lock:
                self._busy.remove(task)
                self._write()

    def survived(self) -> None:
        """Forgets the suspicion, not the deaths: the attempt came to its end."""
        self.one_by_one = False
        self._write()

    def _write(self) -> None:
        noted = {"deaths": self._deaths, "busy": self._busy, "one_by_one": self.one_by_one}
        if any(noted.values()):
            write_atomically(self._path, json.dumps(noted))
        else:
            self._path.unlink(missing_ok=True)


def _read(path: Path) -> tuple[dict[str, int], list[str], bool]:
    try:
        found = parse_json(path.read_bytes())
        deaths = {str(task): int(count) for task, count in found["deaths"].items()}
        return deaths, [str(task) for task in found["busy"]], bool(found["one_by_one"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}, [], False
