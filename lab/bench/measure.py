"""What several benchmarks measure: seconds inside parts of a network, peak memory, what the machine can do at most."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import torch
    from torch import nn


_Result = TypeVar("_Result")


def synchronise(device: str) -> None:
    """Waits until an accelerator has done what it was given."""
    if device.startswith("cuda"):
        import torch

        torch.cuda.synchronize()


@contextmanager
def stage_seconds(parts: "Mapping[str, nn.Module]", device: str) -> Iterator[dict[str, float]]:
    """Sums the seconds spent in calls of modules, by the names given to them.

    The accelerator is waited for at both ends of every call, which costs time: a run that is measured so is not one
    whose total is reported.
    """
    seconds = dict.fromkeys(parts, 0.0)
    began: dict[str, float] = {}

    def enter(name: str) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            synchronise(device)
            began[name] = time.perf_counter()

        return hook

    def leave(name: str) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            synchronise(device)
            seconds[name] += time.perf_counter() - began[name]

        return hook

    handles = []
    for name, part in parts.items():
        handles += [part.register_forward_pre_hook(enter(name)), part.register_forward_hook(leave(name))]
    try:
        yield seconds
    finally:
        for handle in handles:
            handle.remove()


def peak_memory(way: Callable[[], _Result], device: str) -> tuple[_Result, float | None]:
    """What a function returns, and the most memory in GiB while it runs: the accelerator's, else this process's, what
    it had before included; None where the system does not tell."""
    if device.startswith("cuda"):
        import torch

        torch.cuda.reset_peak_memory_stats()
        return way(), torch.cuda.max_memory_allocated() / 2**30
    try:
        Path("/proc/self/clear_refs").write_text("5")  # Linux: resets the peak of the resident set
    except OSError:
        return way(), None
    result = way()
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
    return result, int(line.split()[1]) / 2**20


def matrix_rate(
    device: "torch.device", dtype: "torch.dtype", repeats: int = 5, clock: Callable[[], float] = time.perf_counter
) -> float:
    """Floating-point operations per second of a large product of matrices, the best of the repeats.

    Args:
        clock: `time.process_time` on a processor that other work shares, for one thread.
    """
    import torch

    side = 8192 if device.type == "cuda" else 1024
    left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    return 2 * side**3 / _best(lambda: left @ right, repeats, str(device), clock)


def convolution_rate(
    device: "torch.device", dtype: "torch.dtype", repeats: int = 5, clock: Callable[[], float] = time.perf_counter
) -> float:
    """The same of a 3x3 convolution of 128 channels; see `matrix_rate`."""
    import torch
    import torch.nn.functional as F

    image = torch.randn(1, 128, 96, 128, device=device).to(dtype, memory_format=torch.channels_last)
    weight = torch.randn(128, 128, 3, 3, device=device).to(dtype, memory_format=torch.channels_last)
    with torch.inference_mode():
        seconds = _best(lambda: F.conv2d(image, weight, padding=1), repeats, str(device), clock)
    return 2 * image.numel() * 128 * 9 / seconds


def bandwidth(device: "torch.device", dtype: "torch.dtype", repeats: int = 5) -> float:
    """Bytes per second at which weights are read: a matrix, larger than any cache, times a vector; the best of the
    repeats."""
    import torch

    rows = (2**31 if device.type == "cuda" else 2**28) // (4096 * dtype.itemsize)
    matrix = torch.ones(rows, 4096, device=device, dtype=dtype)
    vector = torch.ones(4096, device=device, dtype=dtype)
    return matrix.numel() * dtype.itemsize / _best(lambda: matrix @ vector, repeats, str(device))


def _best(way: Callable[[], Any], repeats: int, device: str, clock: Callable[[], float] = time.perf_counter) -> float:
    best = float("inf")
    for i in range(repeats + 1):
        synchronise(device)
        began = clock()
        way()
        synchronise(device)
        best = min(best, clock() - began) if i else best  # the first is not timed
    return best
