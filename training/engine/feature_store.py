"""Tensors on disk by key: bounded in size, the least recently used leave first, safe with several processes.

    FOLDER/ab/abcd....safetensors     tensors in half precision, with a checksum and the caller's notes as metadata

What always holds: a file appears whole (it is written beside and renamed); a file that is damaged, or that another
process deletes meanwhile, reads as not there; no file can run code. A disk that is full ends the storing, not the run.

Why not a library: diskcache has had no release since 2023 and unpickles what lies in its folder (CVE-2025-69872), and
LMDB never gives space back.
"""

import json
import logging
import os
import tempfile
import time
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from lasagna.errors import ConfigError

logger = logging.getLogger(__name__)

_ENDING = ".safetensors"
_KEPT = 0.9
"""Share of the limit that eviction leaves, so that it is rare."""
_WRITING = 3600.0
"""Seconds after which a half-written file is what a killed process left."""


@dataclass(frozen=True)
class Stored:
    """The tensors and notes of one key.

    Attributes:
        tensors: On the CPU.
        notes: What the caller stored beside them: JSON values.
    """

    tensors: dict[str, Tensor]
    notes: dict[str, Any] = field(default_factory=dict)


class FeatureStore:
    """A folder of tensors.

    Several processes may use one folder, each with a store of its own; together they go over the limit by at most a
    fiftieth of it each before one of them evicts.

    Args:
        folder: Made where it is missing.
        limit: Bytes on disk, or None for no limit.

    Attributes:
        is_full: Whether the disk refused a file; nothing more is stored then.

    Raises:
        ConfigError: The folder cannot be written to, or the limit is not positive.
    """

    def __init__(self, folder: Path, limit: int | None = None) -> None:
        if limit is not None and limit <= 0:
            raise ConfigError(f"the limit of the feature store is a positive number of bytes, not {limit}")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            raise ConfigError(
                f"{folder}: features cannot be kept there ({error.strerror}); give another folder"
            ) from error
        self.folder, self.limit = folder, limit
        self.is_full = False
        self._size = self.size()
        self._written = 0  # since the folder was last measured

    def size(self) -> int:
        """Bytes of all files in the folder."""
        return sum(size for _, size, _ in self._files())

    def __len__(self) -> int:
        return sum(1 for _ in self._files())

    def __contains__(self, key: str) -> bool:
        return self._path(key).exists()

    def get(self, key: str) -> Stored | None:
        """What is stored, or None. Marks it as used just now."""
        path = self._path(key)
        try:
            data = path.read_bytes()
            tensors = load(data)
            # The format: the header's length in 8 bytes, then the header as JSON.
            metadata = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]
            if metadata.get("checksum") != str(_checksum(tensors, metadata["notes"])):
                raise SafetensorError("the checksum is another")
            notes = json.loads(metadata["notes"])
        except FileNotFoundError:
            return None
        except (SafetensorError, OSError, ValueError, KeyError) as error:
            logger.warning("%s is damaged (%s); it is computed again", path, error)
            with suppress(OSError):
                path.unlink()
            return None
        with suppress(OSError):  # another process may evict it just now
            os.utime(path)
        return Stored(tensors, notes)

    def put(self, key: str, tensors: Mapping[str, Tensor], notes: Mapping[str, Any] | None = None) -> Stored:
        """Stores tensors, and returns them as `get` will.

        Floating point is stored in half precision; a tensor that float16 cannot hold stays as it is.
        """
        halved = {name: _half(tensor.detach().cpu()).contiguous() for name, tensor in tensors.items()}
        stored = Stored(halved, dict(notes or {}))
        if self.is_full:
            return stored
        path = self._path(key)
        text = json.dumps(stored.notes)
        metadata = {"checksum": str(_checksum(halved, text)), "notes": text}
        temporary = path.with_name(f".{path.stem}-{os.getpid()}-{os.urandom(4).hex()}")
        try:
            path.parent.mkdir(exist_ok=True)
            data = save(halved, metadata)
            temporary.write_bytes(data)
            os.replace(temporary, path)
        except OSError as error:
            with suppress(OSError):
                temporary.unlink()
            self.is_full = True
            logger.warning("%s: no more features are kept (%s); training goes on, slower", self.folder, error)
            return stored
        self._size += len(data)
        self._written += len(data)
        if self.limit is not None and (self._size > self.limit or self._written > self.limit / 50):
            self._evict(self.limit)
        return stored

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}{_ENDING}"

    def _files(self) -> Iterator[tuple[float, int, str]]:
        """(time of last use, bytes, path) of each file, and of what a killed process left half written."""
        try:
            folders = [entry.path for entry in os.scandir(self.folder) if entry.is_dir()]
        except OSError:
            return
        for folder in folders:
            for entry in _entries(folder):
                try:
                    status = entry.stat()
                except FileNotFoundError:  # evicted by another process
                    continue
                if entry.name.startswith(".") and time.time() - status.st_mtime < _WRITING:
                    continue
                yield status.st_mtime, status.st_size, entry.path

    def _evict(self, limit: int) -> None:
        files = sorted(self._files())
        self._size, self._written = sum(size for _, size, _ in files), 0
        if self._size <= limit:
            return
        for _, size, path in files:
            Path(path).unlink(missing_ok=True)
            self._size -= size
            if self._size <= limit * _KEPT:
                break


def _entries(folder: str) -> Iterable["os.DirEntry[str]"]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError:
        return []


def _half(tensor: Tensor) -> Tensor:
    if not tensor.is_floating_point():
        return tensor
    halved = tensor.to(torch.float16)
    return halved if bool(halved.isfinite().all()) else tensor


def _checksum(tensors: Mapping[str, Tensor], notes: str) -> int:
    value = zlib.crc32(notes.encode())
    for name in sorted(tensors):
        value = zlib.crc32(name.encode(), value)
        value = zlib.crc32(tensors[name].contiguous().view(-1).view(torch.uint8).numpy().data, value)
    return value
