"""Results of `lasagna annotate` as they come, so that a run which was killed goes on where it was.

One JSON file per image content and set of options, in `OUT/.results/<options>/<content>.json`, where both names are
hashes. A file is written under another name and renamed, so it is complete or not there. What is not in the key
(formats, batch size, device, where the image lies) may change without anything being computed again.
"""

import fcntl
import hashlib
import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from lasagna.errors import ConfigError

_LAYOUT = 1  # part of every key: raise it when the records change


def write_atomically(path: Path, data: bytes | str, *, durable: bool = False) -> None:
    """Writes a file that others see complete or not at all. Text is UTF-8.

    Args:
        durable: Whether it is on the disk when this returns, so that a power failure cannot undo it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name[:100]}.tmp")  # always the same, so that a killed run leaves only one
    temporary.write_bytes(data if isinstance(data, bytes) else data.encode("utf-8"))
    if durable:
        flush_to_disk(temporary)
    os.replace(temporary, path)
    if durable:
        flush_to_disk(path.parent)


def flush_to_disk(path: Path) -> None:
    """Returns once a file's content, or a folder's list of names, is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def content_hash(data: bytes) -> str:
    """32 hex digits that identify a file's content."""
    return hashlib.sha256(data).hexdigest()[:32]


class ResultStore:
    """The results of one set of options in one output folder. Use it in a `with` statement.

    Args:
        out: The output folder.
        options: Everything the answers depend on besides the image, JSON-ready: model version, class list, parameters.

    Raises:
        ConfigError: Another run is writing into the folder.
    """

    def __init__(self, out: Path, options: dict[str, Any]) -> None:
        text = json.dumps([_LAYOUT, options], sort_keys=True)
        self._root = out / ".results"
        self._folder = self._root / hashlib.sha256(text.encode()).hexdigest()[:16]
        self._options = options
        self._lock = self._take_lock()

    def _take_lock(self) -> BinaryIO:
        """Held until this process ends, however it ends. Raises ConfigError if another run holds it."""
        self._root.mkdir(parents=True, exist_ok=True)
        lock = (self._root / "lock").open("wb")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            lock.close()
            raise ConfigError(
                f"another run is writing into {self._root.parent}; wait for it to end or choose another --out"
            ) from error
        return lock

    def __enter__(self) -> "ResultStore":
        return self

    def __exit__(self, *_: object) -> None:
        """Lets another run into the folder."""
        self._lock.close()

    def get(self, content: str) -> dict[str, Any] | None:
        """The record of an image content, or None. A file that is not a whole record counts as none."""
        try:
            record = json.loads((self._folder / f"{content}.json").read_bytes())
        except (OSError, ValueError):
            return None
        return record if isinstance(record, dict) else None

    def put(self, content: str, record: dict[str, Any]) -> None:
        write_atomically(self._folder / f"{content}.json", json.dumps(record))

    def changed_options(self) -> list[str]:
        """The names of the options that differ from those of the last run into this folder; then remembers these."""
        path = self._root / "options.json"
        try:
            last = json.loads(path.read_bytes())
        except (OSError, ValueError):
            last = None
        write_atomically(path, json.dumps(self._options, indent=1))
        if not isinstance(last, dict):
            return []
        ours = json.loads(json.dumps(self._options))
        return [name for name in ours.keys() | last.keys() if ours.get(name) != last.get(name)]


class OutputFolder:
    """The files that are assembled from the results.

    Remembers which ones it wrote, so that the next run takes away those of images that are no longer there. Nothing
    else is ever deleted, and what a run with other formats wrote stays.
    """

    def __init__(self, out: Path) -> None:
        self.path = out
        self._list = out / ".results" / "written.json"
        self._written: set[str] = set()

    def write(self, name: str, data: bytes | str) -> None:
        """Writes OUT/name, where name is relative and has "/"."""
        self._written.add(name)
        write_atomically(self.path / name, data)

    def write_with(self, name: str, save: Callable[[BinaryIO], object]) -> None:
        """As `write`; `save` writes the content into a binary file."""
        file = io.BytesIO()
        save(file)
        self.write(name, file.getvalue())

    def link(self, name: str, target: Path) -> None:
        """Makes OUT/name a symbolic link, in place of an older link."""
        path = self.path / name
        if path.is_symlink():
            path.unlink()
        path.symlink_to(target, target_is_directory=True)
        self._written.add(name)

    def keep(self, name: str) -> None:
        """Counts a file as written that is there already."""
        self._written.add(name)

    def finish(self) -> None:
        """Removes what an earlier run wrote and this one did not."""
        try:
            before = set(json.loads(self._list.read_bytes()))
        except (OSError, ValueError):
            before = set()
        folders = {name.partition("/")[0] for name in self._written if "/" in name}
        stale = {name for name in before - self._written if "/" in name and name.partition("/")[0] in folders}
        for name in stale:
            (self.path / name).unlink(missing_ok=True)
        write_atomically(self._list, json.dumps(sorted(before - stale | self._written)))
