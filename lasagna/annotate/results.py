"""Results of `lasagna annotate` as they come, so that a run which was killed goes on where it was.

One JSON file per image content and set of options, in `OUT/.results/<options>/<content>.json`, where both names are
hashes. A file is written under another name and renamed, so it is complete or not there. What is not in the key
(formats, batch size, device, where the image lies) may change without anything being computed again.
"""

import fcntl
import hashlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from lasagna.errors import ConfigError
from lasagna.files import parse_json, write_atomically

_LAYOUT = 1  # part of every key: raise it when the records change


def content_hash(data: bytes | str) -> str:
    """32 hex digits that identify a file's content. Text is UTF-8."""
    return hashlib.sha256(data if isinstance(data, bytes) else data.encode("utf-8")).hexdigest()[:32]


@dataclass(frozen=True)
class Results:
    """The results in one folder, one per image content. Can be pickled; threads and processes may use it at once, for
    a result depends on its key alone."""

    folder: Path

    def get(self, content: str) -> dict[str, Any] | None:
        """The record of an image content, or None. A file that is not a whole record counts as none."""
        try:
            record = parse_json((self.folder / f"{content}.json").read_bytes())
        except (OSError, ValueError):
            return None
        return record if isinstance(record, dict) else None

    def remove_shards(self) -> None:
        """Takes away what `lasagna.annotate.ray_engine` keeps here until everything is in the output."""
        shutil.rmtree(self.folder / "shards", ignore_errors=True)

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
            last = parse_json(path.read_bytes())
        except (OSError, ValueError):
            last = None
        write_atomically(path, json.dumps(self._options, indent=1))
        if not isinstance(last, dict):
            return []
        ours = json.loads(json.dumps(self._options))
        return [name for name in ours.keys() | last.keys() if ours.get(name) != last.get(name)]
