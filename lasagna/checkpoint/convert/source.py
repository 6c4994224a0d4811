"""Tensors of foreign checkpoints, opened without reading them.

What always holds: nothing of a file is executed (pickles are read with `weights_only`), shapes and types are known
before any value is read, and values are mapped from disk one at a time. A `.bin` or `.pth` of before torch 1.6 cannot
be mapped: such a file is read whole.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lasagna.errors import CheckpointError

SUFFIXES = (".safetensors", ".bin", ".pth", ".pt")
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


@dataclass(frozen=True)
class Piece:
    """One tensor that is not read yet.

    Attributes:
        shape, dtype: Of what `read` gives.
        read: Reads it, on the CPU.
        origin: File and key, for messages.
        file: Index of the file, so that files are read one after the other.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    read: Callable[[], Tensor]
    origin: str
    file: int = -1

    def change(self, function: Callable[[Tensor], Tensor], shape: tuple[int, ...] | None = None) -> "Piece":
        """The piece with a function applied when it is read; the type stays."""
        new = self.shape if shape is None else shape
        return Piece(new, self.dtype, lambda: function(self.read()).to(self.dtype), self.origin, self.file)

    def cast(self, dtype: torch.dtype) -> "Piece":
        """The piece in another type."""
        return Piece(self.shape, dtype, lambda: self.read().to(dtype), self.origin, self.file)


class WeightFiles:
    """The weights of a folder or of one file, by key.

    Raises CheckpointError for files that are missing, cut short, damaged, or hold code.
    """

    def __init__(self, path: Path) -> None:
        self._files = weight_files(path)
        self._open: tuple[int, Any] | None = None
        self.pieces: dict[str, Piece] = {}
        for number, file in enumerate(self._files):
            for key, shape, dtype in self._describe(number):
                if key in self.pieces:
                    raise CheckpointError(f"{path}: the key {key} is in two files")
                self.pieces[key] = Piece(shape, dtype, self._reader(number, key), f"{file.name}: {key}", number)

    def _reader(self, number: int, key: str) -> Callable[[], Tensor]:
        return lambda: self._tensor(number, key)

    def _describe(self, number: int) -> Iterator[tuple[str, tuple[int, ...], torch.dtype]]:
        opened = self._file(number)
        if isinstance(opened, dict):
            for key, value in opened.items():
                yield key, tuple(value.shape), value.dtype
            return
        for key in opened.keys():  # noqa: SIM118 (not a dict)
            one = opened.get_slice(key)
            if one.get_dtype() not in _DTYPES:
                raise CheckpointError(f"{self._files[number]}: {key} has the type {one.get_dtype()}, which is not read")
            yield key, tuple(one.get_shape()), _DTYPES[one.get_dtype()]

    def _tensor(self, number: int, key: str) -> Tensor:
        opened = self._file(number)
        return opened[key] if isinstance(opened, dict) else opened.get_tensor(key)

    def _file(self, number: int) -> Any:
        if self._open is None or self._open[0] != number:
            self._open = None  # unmaps the other file first
            self._open = (number, open_weights(self._files[number]))
        return self._open[1]


def weight_files(path: Path) -> list[Path]:
    """The files of a folder that hold its weights, as its index lists them, safetensors before pickles."""
    if path.is_file():
        return [path]
    for stem in ("model.safetensors", "pytorch_model.bin", "adapter_model.safetensors", "adapter_model.bin"):
        index = path / f"{stem}.index.json"
        if index.exists():
            return _indexed(path, index)
        if (path / stem).exists():
            return [path / stem]
    for suffix in SUFFIXES:
        found = sorted(path.glob(f"*{suffix}"))
        if found:
            return found
    raise CheckpointError(f"{path}: there are no weights in it (looked for {', '.join('*' + s for s in SUFFIXES)})")


def _indexed(folder: Path, index: Path) -> list[Path]:
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{index}: not an index of shards ({error!r})") from error
    inside = [name for name in names if Path(name).name != name]
    if inside:
        raise CheckpointError(f"{index}: a shard's name has a folder in it ({inside[0]!r})")
    missing = [name for name in names if not (folder / name).exists()]
    if missing:
        raise CheckpointError(
            f"{folder}: {len(missing)} of {len(names)} shards are missing: {', '.join(missing)}; fetch them"
        )
    return [folder / name for name in names]


def open_weights(path: Path) -> Any:
    """A file's handle: that of safetensors, or a dict of mapped tensors."""
    size = path.stat().st_size
    try:
        if path.suffix == ".safetensors":
            return safe_open(path, "pt")
        try:
            loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError as error:
            if "mmap can only be used" not in str(error):
                raise
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises RuntimeError, EOFError, UnpicklingError, ...; safetensors its own
        reason = str(error).split("\n")[0]
        if "weights_only" in str(error) or "Unsupported" in reason:
            raise CheckpointError(
                f"{path}: it holds more than tensors, which could run code, and is not read ({reason})"
            ) from error
        kind = "safetensors" if isinstance(error, SafetensorError) else type(error).__name__
        raise CheckpointError(
            f"{path}: cannot be read; it is cut short or damaged ({size} bytes; {kind}: {reason}): fetch it again"
        ) from error
    while isinstance(loaded, dict) and len(loaded) <= 3:  # {"state_dict": {...}, "epoch": 3}
        inner = [value for key, value in loaded.items() if key in ("state_dict", "model", "module")]
        if not inner:
            break
        loaded = inner[0]
    tensors = {str(k): v for k, v in loaded.items() if isinstance(v, Tensor)} if isinstance(loaded, dict) else {}
    if not tensors:
        raise CheckpointError(f"{path}: there are no tensors in it")
    return tensors
