"""Micro-batches in the order of training, made on a thread while the step before is computed.

What always holds: a micro-batch is a function of (recipe, step, part), where `part` counts the micro-batches of a step;
process r of n takes the parts r, n + r, 2n + r, ... So a run that goes on after a kill sees what it would have seen,
and a step is the same for any number of processes.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

AHEAD = 3


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
    """

    def __init__(
        self,
        draw: Callable[[int, int], Any],
        first_step: Callable[[], int],
        steps: int,
        accumulation: int,
        rank: int = 0,
        processes: int = 1,
    ) -> None:
        self._draw, self._first_step, self._steps = draw, first_step, steps
        self._accumulation, self._rank, self._processes = accumulation, rank, processes

    def __len__(self) -> int:
        return self._steps * self._accumulation

    def __iter__(self) -> Iterator[dict[str, MicroBatch]]:
        order = (
            (step, i * self._processes + self._rank)
            for step in range(self._first_step(), self._steps)
            for i in range(self._accumulation)
        )
        waiting: list[Future[MicroBatch]] = []
        pool = ThreadPoolExecutor(1, thread_name_prefix="batches")
        try:
            for step, part in order:
                waiting.append(pool.submit(self._make, step, part))
                if len(waiting) > AHEAD:
                    yield {"batch": waiting.pop(0).result()}
            while waiting:
                yield {"batch": waiting.pop(0).result()}
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def _make(self, step: int, part: int) -> MicroBatch:
        return MicroBatch(step, part, self._draw(step, part))
