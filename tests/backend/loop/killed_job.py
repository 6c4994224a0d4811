"""A training job in a process of its own that is killed (SIGKILL) in the middle of a stage."""

import os
import signal
from pathlib import Path

from backend.loop.access import StudioAccess
from backend.loop.job import TrainingJob
from backend.studio.client import LabelStudio
from lasagna.settings import Settings
from tests.forked import forks

COUNTED = ("train", "calibrate", "score")
"""Stages that are killed halfway; the others as they begin."""


def exit_code(registry: Path, id: str, environ: dict[str, str], url: str, token: str, stage: str) -> int | None:
    """Runs the job until it kills itself in the stage; how the process ended (-9: of SIGKILL)."""
    process = forks.Process(target=run, args=(registry, id, environ, url, token, stage))
    process.start()
    process.join(600)
    return process.exitcode


def run(registry: Path, id: str, environ: dict[str, str], url: str, token: str, stage: str) -> None:
    def say(at: str, step: int, steps: int, seconds: float | None) -> None:
        middle = step == max(1, steps // 2) if at in COUNTED else True
        if at == stage and middle:
            os.kill(os.getpid(), signal.SIGKILL)

    access = StudioAccess(LabelStudio(url, token))
    TrainingJob(registry, id, Settings.load(environ), lambda: access, say).run()
