"""Writes a checkpoint folder tensor by tensor, all or nothing.

What always holds: the target appears at once, complete, or not at all; no more than one shard is in memory.
"""

import contextlib
import errno
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from lasagna.checkpoint.convert.source import Piece
from lasagna.checkpoint.folder import write_checksums
from lasagna.errors import CheckpointError, ConfigError

SHARD_BYTES = 1_000_000_000
"""Size of an output shard, which is what is held in memory; a larger tensor has a shard of its own."""


def size_of(pieces: Mapping[str, Piece]) -> int:
    """Bytes of all tensors."""
    return sum(_bytes(piece) for piece in pieces.values())


def _bytes(piece: Piece) -> int:
    return torch.Size(piece.shape).numel() * piece.dtype.itemsize


@contextlib.contextmanager
def new_folder(target: Path, needed: int) -> Iterator[Path]:
    """A temporary folder beside `target`, which becomes `target` when all went well, and is removed when not.

    Args:
        target: Must not exist.
        needed: Bytes that will be written.

    Raises ConfigError where there is something already, no room, or no right to write.
    """
    target = target.absolute()
    if target.exists():
        raise ConfigError(f"{target}: there is something of that name already; remove it or choose another")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(target.parent).free
        if free < needed * 1.01:
            raise ConfigError(
                f"{target.parent}: no room: the checkpoint takes {needed / 1e9:.2f} GB, {free / 1e9:.2f} GB are free; "
                "nothing was written"
            )
        temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    except OSError as error:
        raise ConfigError(f"{target}: cannot be written ({error.strerror})") from error
    try:
        yield temporary
        write_checksums(temporary)
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o777 & ~umask)
        for path in temporary.rglob("*"):  # safetensors makes its files private
            path.chmod((0o777 if path.is_dir() else 0o666) & ~umask)
        temporary.rename(target)
    except (OSError, SafetensorError) as error:
        full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(error)
        reason = "the disk is full" if full else str(error)
        raise ConfigError(f"{target}: cannot be written: {reason}; what was written is removed again") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_weights(folder: Path, pieces: Mapping[str, Piece]) -> None:
    """Reads every piece once, file by file, and writes safetensors shards with their index."""
    order = sorted(pieces, key=lambda key: pieces[key].file)
    plan: list[list[str]] = [[]]
    filled = 0
    for key in order:
        if filled and filled + _bytes(pieces[key]) > SHARD_BYTES:
            plan.append([])
            filled = 0
        plan[-1].append(key)
        filled += _bytes(pieces[key])
    if len(plan) == 1:
        save_file(_read(pieces, plan[0]), folder / "model.safetensors", {"format": "pt"})
        return
    names: dict[str, str] = {}
    for number, keys in enumerate(plan, 1):
        name = f"model-{number:05}-of-{len(plan):05}.safetensors"
        save_file(_read(pieces, keys), folder / name, {"format": "pt"})
        names |= dict.fromkeys(keys, name)
    index = {"metadata": {"total_size": size_of(pieces)}, "weight_map": names}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _read(pieces: Mapping[str, Piece], keys: list[str]) -> dict[str, Tensor]:
    tensors = {}
    for key in keys:
        # A copy: what is mapped from the source must not outlive its file, and may share memory with others.
        tensors[key] = pieces[key].read().detach().clone(memory_format=torch.contiguous_format)
        if not torch.isfinite(tensors[key]).all():
            raise CheckpointError(f"{pieces[key].origin}: a weight is not finite; the file is damaged")
    return tensors
