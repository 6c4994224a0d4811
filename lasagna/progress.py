"""The progress of long commands (how many of how many, the rate, the time left), and durations in words.

What always holds: a terminal shows a bar; a log file gets a line at every twentieth of the work, and every minute.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text


class _RateColumn(ProgressColumn):
    """Images per second, or seconds per image where that is slower; at the end of all, over the time beside it."""

    def render(self, task: Task) -> Text:
        speed = task.completed / task.finished_time if task.finished_time else task.speed
        if not speed:
            return Text("")
        return Text(f"{speed:.1f}/s" if speed >= 1 else f"{1 / speed:.1f} s each")


def in_time(seconds: float) -> str:
    """A duration in words: "40 s", "12 min", "3.5 h"."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


LINE_SECONDS, LINE_SHARE = 60.0, 0.05
"""Of a log file: the longest time without a line, and the share of the work after which there is another."""


@contextmanager
def progress_bar(console: Console, what: str, total: int) -> Iterator[Callable[..., None]]:
    """A progress bar on the console; yields a function that advances it by one and may set a note behind it.

    Where the console is no terminal (a log file), there are lines instead, so that it can be seen that work goes on.
    """
    if not console.is_terminal:
        lines = _Lines(console, what, total)
        try:
            yield lines.advance
        finally:
            lines.close()
        return
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        _RateColumn(),
        TimeRemainingColumn(elapsed_when_finished=True),
        TextColumn("{task.fields[note]}", style="red", markup=False),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(what, total=total, note="")

        def advance(note: str = "") -> None:
            progress.update(task, advance=1, note=note)

        yield advance


class _Lines:
    """Lines of a log file. A thread of its own writes those of every minute: one item may take longer."""

    def __init__(self, console: Console, what: str, total: int) -> None:
        self._console, self._what, self._total = console, what, total
        self._started = self._last = time.monotonic()
        self._done = self._shown = 0
        self._note = ""
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="progress", daemon=True)
        self._thread.start()

    def advance(self, note: str = "") -> None:
        with self._lock:
            self._done += 1
            self._note = note
            if self._done == self._total or self._done - self._shown >= LINE_SHARE * self._total:
                self._print()

    def close(self) -> None:
        self._ended.set()
        self._thread.join()
        with self._lock:
            if self._shown < self._done or not self._done:
                self._print()

    def _beat(self) -> None:
        while not self._ended.wait(max(0.01, self._last + LINE_SECONDS - time.monotonic())):
            with self._lock:
                if time.monotonic() - self._last >= LINE_SECONDS:
                    self._print()

    def _print(self) -> None:
        self._last, self._shown = time.monotonic(), self._done
        seconds = self._last - self._started
        parts = [f"{self._what}: {self._done} of {self._total}"]
        if self._total:
            parts[0] += f" ({100 * self._done // self._total} %)"
        if self._done and seconds > 0:
            speed = self._done / seconds
            parts.append(f"{speed:.1f}/s" if speed >= 1 else f"{1 / speed:.1f} s each")
            if self._done < self._total:
                parts.append(f"about {in_time((self._total - self._done) / speed)} left")
            else:
                parts.append(f"took {in_time(seconds)}")
        if self._note:
            parts.append(self._note)
        self._console.print(", ".join(parts), markup=False, highlight=False, soft_wrap=True)
