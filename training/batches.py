"""Micro-batches in the order of training, made on threads while the step before is computed.

What always holds: a micro-batch is a function of (recipe, step, part), where `part` counts the micro-batches of a step;
process r of n takes the parts r, n + r, 2n + r, ... So a run that goes on after a kill sees what it would have seen,
and a step is the same for any number of processes.
"""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

from lasagna.environment import usable_cores

Item = TypeVar("Item")
Made = TypeVar("Made")

AHEAD = 3
"""Micro-batches that wait, for each thread that makes them."""

GPU_THREADS = 4
"""A photo's random view takes about 15 ms of a core, a step of twelve photos 0.1 to 0.2 s of a GPU."""


def batch_threads(device: str, processes: int = 1) -> int:
    """How many threads of a process make its batches. One keeps up with a CPU's steps and takes the least from them."""
    return max(1, min(GPU_THREADS, usable_cores() // processes)) if device.startswith("cuda") else 1


def made_ahead(make: Callable[[Item], Made], items: Iterable[Item], threads: int) -> Iterator[Made]:
    """`make(item)` of every item, in order, the next `AHEAD` of each thread made while the last one is used."""
    waiting: list[Future[Made]] = []
    pool = ThreadPoolExecutor(threads, thread_name_prefix="batches")
    try:
        for item in items:
            waiting.append(pool.submit(make, item))
            if len(waiting) > AHEAD * threads:
                yield waiting.pop(0).result()
        while waiting:
            yield waiting.pop(0).result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


@dataclass(frozen=True)
class MicroBatch:
    """The examples of one forward, and which forward it is."""

    step: int
    part: int
    data: Any


class MicroBatches:
    """The micro-batches of one process, from any step on. Iterating again starts at `first_step()` anew.

    Args:
        draw: (step, part) to the examples.
        first_step: The step to start at, asked when iteration begins.
        steps: Steps of the whole run.
        accumulation: Micro-batches of this process per step.
        rank, processes: Of this process, and how many there are.
        threads: That make micro-batches.
    """

    def __init__(
        self,
        draw: Callable[[int, int], Any],
        first_step: Callable[[], int],
        steps: int,
        accumulation: int,
        rank: int = 0,
        processes: int = 1,
        threads: int = 1,
    ) -> None:
        self._draw, self._first_step, self._steps = draw, first_step, steps
        self._accumulation, self._rank, self._processes = accumulation, rank, processes
        self._threads = threads

    def __len__(self) -> int:
        return self._steps * self._accumulation

    def __iter__(self) -> Iterator[dict[str, MicroBatch]]:
        order = (
            (step, i * self._processes + self._rank)
            for step in range(self._first_step(), self._steps)
            for i in range(self._accumulation)
        )
        return ({"batch": batch} for batch in made_ahead(lambda at: self._make(*at), order, self._threads))

    def _make(self, step: int, part: int) -> MicroBatch:
        return MicroBatch(step, part, self._draw(step, part))
