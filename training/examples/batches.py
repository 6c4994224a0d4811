"""Micro-batches in the order of training, made while the step before is computed.

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
"""Batches that wait, for each worker that makes them."""

GPU_WORKERS = 4
"""A photo's random view takes about 15 ms of a core, a step of 24 photos 0.25 s with an H200 (docs/training.md)."""


def batch_workers(device: str, processes: int = 1) -> int:
    """How many workers of a process make its batches; 0: a thread, which keeps up with a CPU's steps and takes the
    least from them. A GPU's step is mostly Python that launches kernels, and threads beside it would share its
    interpreter."""
    return max(1, min(GPU_WORKERS, usable_cores() // processes)) if device.startswith("cuda") else 0


def made_ahead(make: Callable[[Item], Made], items: Iterable[Item], workers: int) -> Iterator[Made]:
    """`make(item)` of every item, in order, the next `AHEAD` of each worker made while the last one is used.

    Args:
        workers: Forked processes of torch's DataLoader, which share what is in memory, so that `make` must not touch a
            GPU; 0: a thread.
    """
    if workers:
        from torch.utils.data import DataLoader

        loader: Any = DataLoader(
            _Made(make),  # type: ignore[arg-type]
            sampler=items,
            batch_size=None,
            num_workers=workers,
            collate_fn=_as_it_is,
            prefetch_factor=AHEAD,
            multiprocessing_context="fork",
        )
        for made, error in loader:
            if error is not None:
                raise error
            yield made
        return
    waiting: list[Future[Made]] = []
    pool = ThreadPoolExecutor(1, thread_name_prefix="batches")
    try:
        for item in items:
            waiting.append(pool.submit(make, item))
            if len(waiting) > AHEAD:
                yield waiting.pop(0).result()
        while waiting:
            yield waiting.pop(0).result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


class _Made:
    """What a worker makes, or the error that it met: DataLoader would wrap that in a traceback."""

    def __init__(self, make: Callable[[Any], Any]) -> None:
        self._make = make

    def __getitem__(self, item: Any) -> tuple[Any, Exception | None]:
        try:
            return self._make(item), None
        except Exception as error:
            return None, error


def _as_it_is(made: Any) -> Any:
    return made


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
        workers: That make micro-batches, as `batch_workers` says.
    """

    def __init__(
        self,
        draw: Callable[[int, int], Any],
        first_step: Callable[[], int],
        steps: int,
        accumulation: int,
        rank: int = 0,
        processes: int = 1,
        workers: int = 0,
    ) -> None:
        self._draw, self._first_step, self._steps = draw, first_step, steps
        self._accumulation, self._rank, self._processes = accumulation, rank, processes
        self._workers = workers

    def __len__(self) -> int:
        return self._steps * self._accumulation

    def __iter__(self) -> Iterator[dict[str, MicroBatch]]:
        order = (
            (step, i * self._processes + self._rank)
            for step in range(self._first_step(), self._steps)
            for i in range(self._accumulation)
        )
        return ({"batch": batch} for batch in made_ahead(lambda at: self._make(*at), order, self._workers))

    def _make(self, step: int, part: int) -> MicroBatch:
        return MicroBatch(step, part, self._draw(step, part))
