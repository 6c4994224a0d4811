"""Writing files so that a reader, a crash or a power failure never meets half of one; and naming their content."""

import hashlib
import json
import os
import threading
from pathlib import Path
from typing import Any


def write_atomically(path: Path, data: bytes | str, *, durable: bool = False) -> None:
    """Writes a file that others see complete or not at all. Text is UTF-8.

    Args:
        durable: Whether it is on the disk when this returns, so that a power failure cannot undo it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # its own for each thread, for two may write the same file
    beginning = os.fsdecode(os.fsencode(path.name)[:100])
    temporary = path.with_name(f".{beginning}.{os.getpid()}-{threading.get_ident():x}.tmp")
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


def file_digest(path: Path) -> bytes:
    """SHA-256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def parse_json(text: bytes | str) -> Any:
    """What JSON says. Raises ValueError, also where it is nested deeper than Python can follow."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
