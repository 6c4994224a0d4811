"""What the processes count: numbers in one hash of Redis, which outlive every process.

What always holds:

- A number never falls, so a rate over it is right also after a worker was killed and started again. Only a Redis that
  lost its data begins at 0, which Prometheus takes for a restart.
- Each name and label comes from a list in the code, except versions in the pace; names hold no colon.
- How a task ends (failed, answered, posted, postponed) is counted inside the script that changes its state
  (`backend.queue.scripts`), so numbers and states agree. What the work took is gathered by a `Meter` and written once
  per job; while Redis is gone it is kept for the next time.

Beside them is the newest reading of each GPU's memory. Fields are `NAME:LABEL` or, of a histogram,
`NAME:LABEL:UPPER BOUND` and `NAME_sum:LABEL`; `backend.web.metrics` makes Prometheus's answer of them.
"""

import bisect
import json
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

import redis
from rq.timeouts import JobTimeoutException

from backend.queue.scripts import COUNTERS, PREFIX
from backend.studio.client import LabelStudioError
from lasagna.errors import CheckpointError, ConfigError, ImageError, QueryError, RegistryError

STAGES = ("fetch", "open", "model", "regions", "post")
"""Stages of a task: fetching its image's file, decoding it, the model, making regions of masks, posting."""
REASONS = (
    "image", "configuration", "label_studio", "unreachable", "version", "model", "timeout", "crash", "other",
)  # fmt: skip
"""Why a task failed (`reason_of`). "label_studio": it refused; "unreachable": it, or an image's host, did not answer
for as long as it is tried; "crash": the worker died each time."""
WAIT_BOUNDS = (0.1, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0, 1800.0, 7200.0)
"""Bounds in seconds of the histogram of waiting times."""
BATCH_BOUNDS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0)
"""Bounds of the histogram of images per batch."""
OUTCOMES = ("promoted", "candidate", "unchanged", "failed")
"""How a training job ends (`backend.loop.job`)."""

_GPUS = f"{PREFIX}gpus"
_GPU_SECONDS = 180.0
"""Seconds for which a GPU's reading counts. Workers read between two jobs."""


class Pace(NamedTuple):
    """How fast a version was so far: `seconds` of workers for `images`, from fetching to regions."""

    images: int
    seconds: float

    @property
    def seconds_per_image(self) -> float | None:
        return self.seconds / self.images if self.images else None


def reason_of(error: BaseException) -> str:
    """One of `REASONS` for what went wrong with a task."""
    if isinstance(error, LabelStudioError):
        return "unreachable" if error.is_temporary else "label_studio"
    kinds: tuple[tuple[type[BaseException], str], ...] = (
        (ImageError, "image"),
        (ConfigError, "configuration"),
        (QueryError, "configuration"),
        (RegistryError, "version"),
        (CheckpointError, "version"),
        (JobTimeoutException, "timeout"),
    )
    return next((reason for kind, reason in kinds if isinstance(error, kind)), "other")


class Meter:
    """Gathers counts and seconds, and adds them to Redis in one round trip. May be used by several threads."""

    def __init__(self, connection: "redis.Redis") -> None:
        self._redis: Any = connection
        self._gathered: Counter[str] = Counter()
        self._lock = threading.Lock()

    def count(self, field: str, by: float = 1.0) -> None:
        with self._lock:
            self._gathered[field] += by  # type: ignore[assignment]  # Counter is typed for whole numbers

    def observe(self, name: str, label: str, value: float, bounds: Sequence[float]) -> None:
        """Notes a value for a histogram with these upper bounds."""
        at = bisect.bisect_left(bounds, value)
        self.count(f"{name}:{label}:{bounds[at] if at < len(bounds) else 'inf'}")
        self.count(f"{name}_sum:{label}", value)

    @contextmanager
    def stage(self, name: str, images: int) -> Iterator[None]:
        """Times a stage that so many images go through; also where it fails."""
        started = time.monotonic()
        try:
            yield
        finally:
            self.count(f"seconds:{name}", time.monotonic() - started)
            self.count(f"stage_images:{name}", images)

    def pace(self, version: str, images: int, seconds: float) -> None:
        self.count(f"pace_images:{version}", images)
        self.count(f"pace_seconds:{version}", seconds)

    def flush(self) -> None:
        with self._lock:
            taken, self._gathered = self._gathered, Counter()
        if not taken:
            return
        try:
            with self._redis.pipeline(transaction=True) as pipe:
                for field, by in taken.items():
                    pipe.hincrbyfloat(COUNTERS, field, by)
                pipe.execute()
        except redis.RedisError:
            with self._lock:
                self._gathered.update(taken)


def read_counters(connection: "redis.Redis") -> dict[str, float]:
    """Every number by its field. Raises redis.RedisError."""
    found: Mapping[bytes, bytes] = connection.hgetall(COUNTERS)  # type: ignore[assignment]
    numbers = {}
    for field, value in found.items():
        with suppress(ValueError):
            numbers[field.decode()] = float(value)
    return numbers


def pace_of(counters: Mapping[str, float], version: str) -> Pace:
    return Pace(int(counters.get(f"pace_images:{version}", 0)), counters.get(f"pace_seconds:{version}", 0.0))


class GpuMemory(NamedTuple):
    """Memory of one GPU in bytes; what other programs hold is used too."""

    host: str
    gpu: str
    used: int
    total: int


def note_gpu(connection: "redis.Redis") -> None:
    """Notes the memory of the GPU that this process computes on; nothing where it uses none."""
    torch = sys.modules.get("torch")  # the training process has not loaded it before its first job
    if torch is None or not torch.cuda.is_available() or not torch.cuda.is_initialized():
        return
    free, total = torch.cuda.mem_get_info()
    gpu = str(torch.cuda.get_device_properties(torch.cuda.current_device()).uuid)
    seconds, _ = connection.time()
    reading = {"used": total - free, "total": total, "time": seconds}
    connection.hset(_GPUS, f"{socket.gethostname()}:{gpu}", json.dumps(reading))


def read_gpus(connection: "redis.Redis") -> list[GpuMemory]:
    """The GPUs that a worker has read lately. Raises redis.RedisError."""
    seconds, _ = connection.time()
    found: Mapping[bytes, bytes] = connection.hgetall(_GPUS)  # type: ignore[assignment]
    gpus = []
    for name, text in sorted(found.items()):
        reading = json.loads(text)
        if seconds - reading["time"] <= _GPU_SECONDS:
            host, _, gpu = name.decode().rpartition(":")
            gpus.append(GpuMemory(host, gpu, reading["used"], reading["total"]))
    return gpus
