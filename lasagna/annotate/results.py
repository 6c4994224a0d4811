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
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from lasagna.errors import ConfigError
from lasagna.files import write_atomically

_LAYOUT = 1  # part of every key: raise it when the records change


def content_hash(data: bytes) -> str:
    """32 hex digits that identify a file's content."""
    return hashlib.sha256(data).hexdigest()[:32]


@dataclass(frozen=True)
class Results:
    """The results in one folder, one per image content. Can be pickled; threads and processes may use it at once, for
    a result depends on its key alone."""

    folder: Path

    def get(self, content: str) -> dict[str, Any] | None:
        """The record of an image content, or None. A file that is not a whole record counts as none."""
        try:
            record = json.loads((self.folder / f"{content}.json").read_bytes())
        except (OSError, ValueError):
            return None
        return record if isinstance(record, dict) else None

    def put(self, content: str, record: dict[str, Any]) -> None:
        write_atomically(self.folder / f"{content}.json", json.dumps(record))


class ResultStore:
    """The results of one set of options in one output folder, for one run at a time. Use it in a `with` statement.

    Args:
        out: The output folder.
        options: Everything the answers depend on besides the image, JSON-ready: model version, class list, parameters.

    Attributes:
        results: Where they are.

    Raises:
        ConfigError: Another run is writing into the folder.
    """

    def __init__(self, out: Path, options: dict[str, Any]) -> None:
        text = json.dumps([_LAYOUT, options], sort_keys=True)
        self._root = out / ".results"
        self.results = Results(self._root / hashlib.sha256(text.encode()).hexdigest()[:16])
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


class PartFile:
    """A file of the output that grows while images come in, and is moved into place when it is complete.

    Args:
        path: Where it grows. What an earlier run left there is overwritten.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._file = path.open("w", encoding="utf-8", newline="")
        self.entries = 0

    def add(self, text: str) -> None:
        """An entry; a comma and a new line go before every one but the first."""
        self._file.write(f",\n{text}" if self.entries else text)
        self.entries += 1

    def write(self, text: str) -> None:
        """Appends text as it is, which is no entry."""
        self._file.write(text)

    def copy_to(self, other: "PartFile") -> None:
        """Appends what is here, which is closed, to another part."""
        self.close()
        with self.path.open(encoding="utf-8", newline="") as file:
            shutil.copyfileobj(file, other._file, 1 << 20)

    def close(self) -> None:
        self._file.close()

    def remove(self) -> None:
        """Takes it away: it was part of another."""
        self.close()
        self.path.unlink()


class OutputFolder:
    """The files of the output.

    Remembers which ones it wrote, so that the next run takes away those of images that are no longer there. Nothing
    else is ever deleted, and what a run with other formats wrote stays.
    """

    def __init__(self, out: Path) -> None:
        self.path = out
        self._list = out / ".results" / "written.json"
        self._written: set[str] = set()
        self._parts: list[PartFile] = []

    def write(self, name: str, data: bytes | str) -> None:
        """Writes OUT/name, where name is relative and has "/"."""
        self._written.add(name)
        write_atomically(self.path / name, data)

    def write_with(self, name: str, save: Callable[[BinaryIO], object]) -> None:
        """Writes a file like `write`, with the content that `save` writes into a binary file."""
        file = io.BytesIO()
        save(file)
        self.write(name, file.getvalue())

    def part(self, name: str) -> PartFile:
        """OUT/name to be written piece by piece, in a place of its own; `put` makes it appear."""
        part = PartFile(self.path / ".results" / "parts" / f"{name}.part")
        self._parts.append(part)
        return part

    def put(self, part: PartFile, name: str) -> None:
        """The part, complete, as OUT/name."""
        part.close()
        (self.path / name).parent.mkdir(parents=True, exist_ok=True)
        os.replace(part.path, self.path / name)
        self._written.add(name)

    def close(self) -> None:
        """Closes what a run that stops leaves half written."""
        for part in self._parts:
            part.close()

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
        stale = {name for name in before - self._written if name.partition("/")[0] in folders or _is_page(name)}
        for name in stale:
            (self.path / name).unlink(missing_ok=True)
        write_atomically(self._list, json.dumps(sorted(before - stale | self._written)))


def _is_page(name: str) -> bool:
    """Whether it is a page of the gallery after the first, of which there may be fewer now."""
    return name.startswith("gallery-") and name.endswith(".html")
