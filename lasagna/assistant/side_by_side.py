"""The photos of a batch side by side, each on its share of a processor's cores.

What a photo is asked after its encoder is many small products of matrices. Two cores that share each of them wait for
one another most of the time; two cores that have a photo each do not (docs/lab/log.md).

What always holds: results are in order, and those of one photo after the other; nothing runs any more when a call
returns or raises; within a share nothing is shared out again; a process that was forked starts threads of its own.
"""

import os
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import TypeVar

import torch

Result = TypeVar("Result")

_making = threading.Lock()
_pools: dict[tuple[int, int], ThreadPoolExecutor] = {}
"""By threads, and cores of each."""
_thread = threading.local()
"""`shares` in the threads of a pool."""


def side_by_side(run: Callable[[int], Result], count: int) -> list[Result]:
    """`[run(0), ..., run(count - 1)]`, as many at a time as torch has threads, which they share.

    Raises:
        Exception: What the first of those that failed raised, when all have ended.
    """
    cores = torch.get_num_threads()
    threads = min(count, cores)
    if threads < 2 or getattr(_thread, "shares", False):
        return [run(i) for i in range(count)]
    pool = _pool(threads, cores // threads, cores)
    futures: list[Future[Result]] = []
    try:
        for i in range(count):
            futures.append(pool.submit(run, i))
        wait(futures)
    finally:  # a signal (a job that takes too long) ends the waiting, and must not leave them running
        for future in futures:
            future.cancel()
        wait(futures)
    return [future.result() for future in futures]


def _pool(threads: int, each: int, cores: int) -> ThreadPoolExecutor:
    """Threads that compute with `each` cores; they stay, idle."""
    with _making:
        if (threads, each) not in _pools:
            ready = threading.Barrier(threads + 1)
            pool = ThreadPoolExecutor(threads, "photo", initializer=_compute_with, initargs=(each,))
            try:
                for _ in range(threads):
                    pool.submit(ready.wait)
                ready.wait()
            except BaseException:  # a signal: no thread must wait for the others for ever
                ready.abort()
                pool.shutdown(wait=False)
                raise
            finally:
                torch.set_num_threads(cores)  # the number that a thread takes which is new to torch
            _pools[threads, each] = pool
        return _pools[threads, each]


def _compute_with(cores: int) -> None:
    """Sets this thread's number; torch keeps one for each thread from the first time that it is asked for it."""
    torch.get_num_threads()
    torch.set_num_threads(cores)
    _thread.shares = True


def _after_fork() -> None:
    global _making
    _making = threading.Lock()
    _pools.clear()


os.register_at_fork(after_in_child=_after_fork)
