"""What a run reports: JSON lines in a file, and one line for a person that is kept up to date (or, where there is no
terminal, a line per log step)."""

import json
import time
from pathlib import Path
from types import TracebackType
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from training.recipe.values import Recipe


class Reporter:
    """What a run tells its user; this one says nothing."""

    def started(self, step: int, steps: int) -> None:
        """Training begins; `step` steps are done already."""

    def step(self, step: int) -> None:
        """A step is finished."""

    def line(self, line: dict[str, float]) -> None:
        """A log line was written."""


class LogFile:
    """`log.jsonl`: lines after the state that a run goes on from are dropped, so that a step is in it once."""

    def __init__(self, path: Path, reporter: Reporter) -> None:
        self._path, self._reporter = path, reporter
        self._file: TextIO | None = None
        self._last = (0, time.monotonic())

    def open(self, step: int, steps: int) -> None:
        """Opens the file for a run of `steps` steps of which `step` are done."""
        kept = []
        if self._path.exists():
            lines = self._path.read_text(encoding="utf-8").splitlines()
            kept = [line for line in lines if line.endswith("}") and json.loads(line)["step"] <= step]
        self._path.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
        self._file = self._path.open("a", encoding="utf-8")
        self._last = (step, time.monotonic())
        self._reporter.started(step, steps)

    def step(self, step: int) -> None:
        self._reporter.step(step)

    def write(self, line: dict[str, float]) -> None:
        assert self._file is not None, "opened first"
        step, now = int(line["step"]), time.monotonic()
        line["seconds_per_step"] = (now - self._last[1]) / max(1, step - self._last[0])
        self._last = (step, now)
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()
        self._reporter.line(line)

    def close(self) -> None:
        if self._file:
            self._file.close()


class TerminalReporter(Reporter):
    """A progress bar with the loss, on stderr; a context manager."""

    def __init__(self, recipe: Recipe, quiet: bool = False) -> None:
        self.console = Console(stderr=True, quiet=quiet, highlight=False, soft_wrap=True, markup=False)
        self._recipe = recipe
        columns = (TextColumn("training"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"))
        self._bar = Progress(*columns, TimeRemainingColumn(), console=self.console)
        self._task = self._bar.add_task("", total=recipe.optimiser.steps)

    def __enter__(self) -> "TerminalReporter":
        if self.console.is_terminal:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def started(self, step: int, steps: int) -> None:
        self._bar.update(self._task, completed=step)
        if step:
            self.console.print(f"{self._recipe.output}: going on after step {step} of {steps}")

    def step(self, step: int) -> None:
        self._bar.update(self._task, completed=step)

    def line(self, line: dict[str, float]) -> None:
        text = f"loss {line['loss']:.3f}, rate {line['learning_rate']:.1e}, {line['seconds_per_step']:.2f} s a step"
        self._bar.update(self._task, description=text)
        if not self.console.is_terminal:
            self.console.print(f"step {line['step']:.0f} of {self._recipe.optimiser.steps}: {text}")
