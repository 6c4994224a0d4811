"""Predictions for every task of a project that has none of the version that serves it, through the queue.

A task that is annotated keeps the prediction that its annotator was shown: a newer one would help nobody, and what a
correction changed is measured against the one that was shown.

Resumable by construction: what is predicted and posted is found in Label Studio, what is under way in the queue.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from backend.images import image_address
from backend.label_studio import LabelStudio, Task, project_uid
from backend.predictions import Predictor
from backend.readiness import predicting_workers
from backend.store import Work
from lasagna.errors import ImageError
from lasagna.labels import LabelConfig, parse_label_config

_ASK_AT_ONCE = 200
_LOOK_EVERY = 0.5
_MAX_OUTSTANDING = 2000
"""Tasks that are in the queue at the same time, so that a project of any size fits into Redis."""


@dataclass
class Outcome:
    """How a run ended.

    Attributes:
        done: Tasks that have a prediction now.
        had_one: Tasks that had one of the version before.
        annotated: Tasks that are annotated and were left with the prediction of another version.
        failed: The reason of each that failed, by the task.
    """

    done: int = 0
    had_one: int = 0
    annotated: int = 0
    failed: dict[int, str] = field(default_factory=dict)


class ProjectRun:
    """Pre-labelling of one project.

    Args:
        predictor: The queue.
        label_studio: The project's Label Studio, with a token that works.
        project_id: The project.
        refresh: Also tasks that have a prediction of the current version, which the new one replaces, and annotated
            ones.

    Raises:
        ConfigError: The project's labelling configuration cannot be used.
        ServiceError: Label Studio cannot be reached or does not know the project, or no model version is known.
    """

    def __init__(
        self, predictor: Predictor, label_studio: LabelStudio, project_id: int, *, refresh: bool = False
    ) -> None:
        self.predictor = predictor
        self.label_studio = label_studio
        self.project: dict[str, Any] = label_studio.project(project_id)
        self.plan: LabelConfig = parse_label_config(self.project["label_config"])
        self.uid = project_uid(self.project)
        self.version = predictor.model_version(self.uid)
        self.refresh = refresh
        known = predictor.store.project(self.uid)
        predictor.store.keep_project(self.uid, replace(known, url=label_studio.url, given_token=label_studio.token))
        self._config_key = predictor.store.keep_config(self.project["label_config"])

    @property
    def total(self) -> int:
        """Tasks of the project."""
        return int(self.project.get("task_number") or 0)

    def has_worker(self) -> bool:
        return bool(predicting_workers(self.predictor.store))

    def run(self, advance: Callable[[str], None]) -> Outcome:
        """Asks for what is missing and waits until every task is done or has failed.

        Args:
            advance: Called once per task, with the reason if it failed.
        """
        outcome = Outcome()
        outstanding: dict[str, int] = {}
        tasks = self.label_studio.tasks(self.project["id"])
        exhausted = False
        while outstanding or not exhausted:
            while not exhausted and len(outstanding) < _MAX_OUTSTANDING:
                chunk = _take(tasks, _ASK_AT_ONCE)
                exhausted = len(chunk) < _ASK_AT_ONCE
                outstanding.update(self._ask(chunk, outcome, advance))
            if outstanding:
                time.sleep(_LOOK_EVERY)
                self._look(outstanding, outcome, advance)
        return outcome

    def _ask(self, tasks: list[Task], outcome: Outcome, advance: Callable[[str], None]) -> dict[str, int]:
        works: list[Work] = []
        for task in tasks:
            has_one = self.version in task.model_versions
            if has_one and not self.refresh:
                outcome.had_one += 1
                advance("")
                continue
            if task.is_annotated and task.model_versions and not self.refresh:
                outcome.annotated += 1
                advance("")
                continue
            try:
                image = image_address({"data": task.data}, self.plan.image_variable)
            except ImageError as error:
                outcome.failed[task.id] = str(error)
                advance(f"task {task.id}: {error}")
                continue
            works.append(Work(self.uid, task.id, image, self._config_key, self.version, replace=has_one))
        self.predictor.ask(works, lease=0)
        return {work.key: work.task for work in works if work.task is not None}

    def _look(self, outstanding: dict[str, int], outcome: Outcome, advance: Callable[[str], None]) -> None:
        keys = list(outstanding)
        states = self.predictor.store.states(keys)
        ended = [key for key, state in zip(keys, states, strict=True) if state in ("done", "failed", "")]
        for key, fields in zip(ended, self.predictor.store.fields(ended), strict=True):
            task = outstanding.pop(key)
            if fields.get("state") == "done":
                outcome.done += 1
                advance("")
            else:
                outcome.failed[task] = fields.get("reason") or "its record is gone from Redis"
                advance(f"task {task}: {outcome.failed[task]}")


def _take(tasks: Iterator[Task], count: int) -> list[Task]:
    return [task for _, task in zip(range(count), tasks, strict=False)]
