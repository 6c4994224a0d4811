"""Corrections and heads of one project in a folder.

    FOLDER/corrections/ab12....safetensors     one a correction, named by the hash of its id
    FOLDER/heads/h12-3f9c....safetensors       one a head: its number, and what it was learnt from
    FOLDER/current.json                        {"head": its file's name, "of": the digest of the corrections then}
    FOLDER/lock

What always holds: every file appears whole and is on the disk when the call returns, so that a process that is killed
at any moment leaves the state before or after its call; `refresh` finds out by content whether corrections changed, so
that nothing is lost or counted twice by a kill between the two; numbers only grow; at most `limit` corrections count,
the newest, and older ones are removed.
"""

import hashlib
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lasagna.errors import CheckpointError, DataError
from lasagna.files import flush_to_disk, write_atomically
from lasagna.instant.correction import Correction, Summary, read_correction
from lasagna.instant.fit import Learner
from lasagna.instant.head import Head

logger = logging.getLogger(__name__)

LIMIT = 300
"""Corrections of a project: 300 of at most 2 MB are 0.6 GB."""
_POINTER = "current.json"
KEPT_HEADS = 20
"""Heads that can be rolled back to."""


class HeadStore:
    """The corrections and heads of one project.

    One process writes at a time: hold `lock()` around `put`, `remove`, `clear`, `refresh` and `rollback` where several
    may. Readers need no lock.

    Args:
        folder: Made where it is missing.
        limit: Most corrections that count.
    """

    def __init__(self, folder: Path | str, limit: int = LIMIT) -> None:
        self.folder, self.limit = Path(folder), limit
        self._corrections, self._heads = self.folder / "corrections", self.folder / "heads"
        for each in (self._corrections, self._heads):
            each.mkdir(parents=True, exist_ok=True)
        self._learner: Learner | None = None
        self._state: frozenset[tuple[str, int, int]] = frozenset()

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Waits until no other process or thread holds it."""
        import fcntl

        for each in (self._corrections, self._heads):  # it may have been removed, to begin anew
            each.mkdir(parents=True, exist_ok=True)
        with (self.folder / "lock").open("w") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield

    @property
    def corrections(self) -> list[Summary]:
        """In order of time."""
        return self._load().corrections

    def has(self, id: str, source: str) -> bool:
        """Whether there is a correction of that id, made of that source."""
        return any((known.id, known.source) == (id, source) for known in self._load().corrections)

    def read(self, id: str) -> Correction:
        """Raises DataError where it is damaged or not there."""
        path = self._path(id)
        try:
            return read_correction(path)
        except OSError as error:
            raise DataError(f"there is no correction {id!r} in {self.folder}") from error

    def put(self, correction: Correction) -> None:
        """Adds a correction as the newest, or replaces that of its id; the same content changes nothing.

        Raises:
            DataError: The others are of another encoder or another model: `clear` the store and observe them again.
        """
        learner = self._load()
        if any((known.id, known.digest) == (correction.id, correction.digest) for known in learner.corrections):
            return
        numbered = correction.numbered(learner.next_order)
        self._learner = None  # should writing fail, the folder is read again
        learner.put(numbered)
        write_atomically(self._path(correction.id), numbered.to_bytes(), durable=True)
        for old in learner.corrections[: max(0, len(learner) - self.limit)]:
            logger.warning("%s: correction %s leaves, for only the newest %d count", self.folder, old.id, self.limit)
            learner.remove(old.id)
            self._path(old.id).unlink(missing_ok=True)
        self._learner, self._state = learner, self._listing()

    def remove(self, id: str) -> bool:
        """Takes a correction away; whether there was one."""
        learner = self._load()
        if id not in learner:
            return False
        self._learner = None
        learner.remove(id)
        self._path(id).unlink(missing_ok=True)
        flush_to_disk(self._corrections)
        self._learner, self._state = learner, self._listing()
        return True

    def clear(self) -> None:
        """Removes all corrections: they are of an encoder or a model that no longer serves. Heads stay."""
        self._learner = None
        for path in self._corrections.glob("*.safetensors"):
            path.unlink()
        flush_to_disk(self._corrections)

    def is_of(self, encoder: str, version: str) -> bool:
        """Whether the corrections are of this encoder and this model (without a head). True of none."""
        return all((known.encoder, known.version) == (encoder, version) for known in self.corrections)

    def refresh(self) -> Head | None:
        """The head of the corrections as they are: the current one, or a new one with the next number.

        Returns:
            None where there is no correction left; then no head is current.
        """
        learner = self._load()
        if not len(learner):
            if self._pointer()["head"]:
                self._point("", "")
            return None
        digest, before = learner.digest, None
        try:
            before = self.current()
            if before is not None and self._pointer()["of"] == digest:
                return before
        except CheckpointError as error:  # damaged, or of an older version of this package
            logger.warning("%s; it is made again from the corrections", error)
        numbers = [0, *self._numbers()]
        head = learner.fit(number=max(numbers) + 1, previous=None if before is None else before.decision)
        name = f"{head.suffix}-{digest[:12]}.safetensors"
        write_atomically(self._heads / name, head.to_bytes(), durable=True)
        self._point(name, digest)
        self._prune(name)
        return head

    def current(self) -> Head | None:
        """The head in use; None where there is none."""
        name = self._pointer()["head"]
        return Head.load(self._heads / name) if name else None

    def head(self, number: int) -> Head:
        """Raises CheckpointError where there is no such head (any more)."""
        path = self._numbers().get(number)
        if path is None:
            there = ", ".join(f"h{n}" for n in sorted(self._numbers())) or "none"
            raise CheckpointError(f"there is no head h{number} in {self.folder}; there are: {there}")
        return Head.load(path)

    def path(self, number: int) -> Path:
        """The file of a head. Raises CheckpointError."""
        self.head(number)
        return self._numbers()[number]

    def rollback(self, number: int) -> Head:
        """Uses an earlier head again, until corrections change. Raises CheckpointError."""
        head = self.head(number)
        self._point(self._numbers()[number].name, self._load().digest)
        return head

    def _pointer(self) -> dict[str, str]:
        try:
            pointer = json.loads((self.folder / _POINTER).read_text(encoding="utf-8"))
            return {key: str(pointer[key]) for key in ("head", "of")}
        except FileNotFoundError:
            return {"head": "", "of": ""}
        except (ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"{self.folder / _POINTER} is damaged ({error}); remove it") from error

    def _point(self, name: str, digest: str) -> None:
        write_atomically(self.folder / _POINTER, json.dumps({"head": name, "of": digest}) + "\n", durable=True)

    def _numbers(self) -> dict[int, Path]:
        found = {}
        for path in self._heads.glob("h*-*.safetensors"):
            number = path.name[1:].split("-")[0]
            if number.isdigit():
                found[int(number)] = path
        return found

    def _prune(self, current: str) -> None:
        for _, path in sorted(self._numbers().items())[:-KEPT_HEADS]:
            if path.name != current:
                path.unlink(missing_ok=True)

    def _path(self, id: str) -> Path:
        return self._corrections / f"{hashlib.sha256(id.encode()).hexdigest()[:32]}.safetensors"

    def _listing(self) -> frozenset[tuple[str, int, int]]:
        """What tells that another process has changed the corrections."""
        found = []
        for path in self._corrections.glob("*.safetensors"):
            try:
                status = path.stat()
            except FileNotFoundError:
                continue
            found.append((path.name, status.st_mtime_ns, status.st_size))
        return frozenset(found)

    def _load(self) -> Learner:
        """The corrections, read again where another process has changed the folder."""
        state = self._listing()
        if self._learner is not None and state == self._state:
            return self._learner
        learner = Learner(self.read)
        for name, _, _ in sorted(state):
            try:
                learner.put(read_correction(self._corrections / name))
            except FileNotFoundError:
                continue
            except DataError as error:
                logger.warning("%s; the correction does not count", error)
        self._learner, self._state = learner, state
        return learner
