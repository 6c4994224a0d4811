"""Runs a training job in a process of its own that is killed (SIGKILL) once in each stage, then to its end.

    killed_job.py REGISTRY JOB LABEL_STUDIO TOKEN STAGE...

Every attempt is a fork of this process, which has imported everything and computed nothing. Prints the result as JSON.
"""

import json
import os
import signal
import sys
from pathlib import Path

import torch

from backend.loop.job import StudioAccess, TrainingJob
from backend.studio.client import LabelStudio
from lasagna.settings import Settings

COUNTED = ("train", "calibrate", "score")
"""Stages that are killed halfway; the others as they begin."""


def attempt(stage: str) -> int:
    """Runs the job in a fork, which kills itself in the middle of the stage; the signal that it died of."""
    child = os.fork()
    if not child:

        def say(at: str, step: int, steps: int, seconds: float | None) -> None:
            middle = step == max(1, steps // 2) if at in COUNTED else True
            if at == stage and middle:
                os.kill(os.getpid(), signal.SIGKILL)

        job(say).run()
        os._exit(0)
    return os.WTERMSIG(os.waitpid(child, 0)[1])


def job(say) -> TrainingJob:  # type: ignore[no-untyped-def]
    registry, id, url, token = sys.argv[1:5]
    return TrainingJob(Path(registry), id, Settings.load(), lambda: StudioAccess(LabelStudio(url, token)), say)


torch.set_num_threads(1)
died = {stage: attempt(stage) for stage in sys.argv[5:]}
steps: list[int] = []
result = job(lambda stage, step, count, seconds: steps.append(step) if stage == "train" else None).run()
print(json.dumps({"died": died, "trained": steps, **result}))
