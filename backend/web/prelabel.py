"""Predictions for every task of a project that has none which answers the question of now, through the queue.

What `lasagna prelabel` and `POST /jobs` (`backend.web.prelabel_jobs`) do. What always holds:

- Human work is left alone: no annotation or draft is written or read, and a task that is annotated keeps the prediction
  that its annotator was shown. A newer one would help nobody, and what a correction changed is measured against the one
  that was shown. Where somebody has begun (a draft), the new prediction comes beside the older ones.
- A new prediction takes the place of older ones of the same version: an answer that nobody asks for any more would only
  be taken for one of now.
- Resumable by construction: what is predicted and posted is found in Label Studio, what is under way in the queue. A
  run that was killed, or two at the same time, make no second prediction.
- A task is done when Label Studio has its prediction. One that went along with the answer to a request of its own may
  not have been stored (the connection was cut, the process killed): it is looked up, and asked for again.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from backend.queue.counters import pace_of, read_counters
from backend.queue.freshness import Freshness, Reasons, Why
from backend.queue.living_workers import predicting_workers
from backend.queue.store import Store, Work
from backend.queue.works import work_of
from backend.studio.client import LabelStudio, StudioTask
from backend.studio.project_id import project_uid
from backend.studio.version_names import base_version
from backend.web.predictions import Predictor
from lasagna.errors import ImageError
from lasagna.labels.configuration import LabelConfig, parse_label_config
from lasagna.labels.question import name_version

_ASK_AT_ONCE = 200
_LOOK_EVERY = 0.5
_CONFIRM_EVERY = 5.0
_STORED_WITHIN = 60.0
"""Seconds that Label Studio is given to store what it got in the answer to its own `/predict`, perhaps many tasks."""
_MAX_OUTSTANDING = 2000
"""Tasks that are in the queue at the same time, so that a project of any size fits into Redis."""

Fate = Literal["missing", "outdated", "replaced", "had_one", "annotated"]
"""What happens to a task. The first three are predicted: it has no prediction, only outdated ones
(`backend.queue.freshness`), or (with refresh) one of now, which is replaced. "had_one": it has one of now; "annotated":
it keeps an older one."""
_PREDICTED: tuple[Fate, ...] = ("missing", "outdated", "replaced")


@dataclass
class Outcome:
    """How a run ended.

    Attributes:
        done: Tasks that have a prediction now.
        had_one: Tasks that had one of the version before.
        annotated: Tasks that are annotated and were left with the prediction that they had.
        deleted: Tasks that somebody deleted meanwhile.
        cancelled: Tasks that were waiting when the run was cancelled.
        why: Why predictions are renewed: how many tasks by the reason in words.
        failed: The reason of each that failed, by the task.
    """

    done: int = 0
    had_one: int = 0
    annotated: int = 0
    deleted: int = 0
    cancelled: int = 0
    why: dict[str, int] = field(default_factory=dict)
    failed: dict[int, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    """What a run would do.

    Attributes:
        version: That the predictions would carry.
        total: Tasks that are looked at: the sum of the next five, which are numbers of tasks by `Fate`.
        why: Why those that are outdated are: `kind`, `words` and the number of `tasks`, the most frequent first.
        workers: That run now.
        seconds_per_task: Of one worker so far, by its predictions of this version; None where there are none yet.
        seconds: How long it would take the workers (one, where none runs); None where that is not known.
    """

    version: str
    total: int
    missing: int
    outdated: int
    replaced: int
    had_one: int
    annotated: int
    why: tuple[dict[str, Any], ...]
    workers: int
    seconds_per_task: float | None
    seconds: float | None

    @property
    def to_predict(self) -> int:
        return self.missing + self.outdated + self.replaced

    def as_dict(self) -> dict[str, Any]:
        """The fields and the number of tasks to predict, JSON-ready."""
        return {**asdict(self), "to_predict": self.to_predict}


class ProjectRun:
    """Pre-labelling of one project.

    Args:
        predictor: The queue.
        label_studio: The project's Label Studio, with a token that works.
        project_id: The project.
        tab: Only the tasks of this tab of its Data Manager, as its filters have them now.
        refresh: Also tasks that have a prediction of now and are not annotated: the new one replaces it.

    Raises:
        ConfigError: The project's labelling configuration cannot be used, or it has no such tab.
        ServiceError: Label Studio cannot be reached or does not know the project, or no model version is known.
    """

    def __init__(
        self,
        predictor: Predictor,
        label_studio: LabelStudio,
        project_id: int,
        *,
        tab: int | None = None,
        refresh: bool = False,
    ) -> None:
        self.predictor = predictor
        self.label_studio = label_studio
        self.project: dict[str, Any] = label_studio.project(project_id)
        self.plan: LabelConfig = parse_label_config(self.project["label_config"])
        self.uid = project_uid(self.project)
        predictor.connect(self.uid, label_studio.url)
        question = predictor.question(self.uid, self.plan)
        self.version = name_version(predictor.model_version(self.uid), question)
        renamed = predictor.histories.renamed(self.uid)
        reasons = Reasons(predictor.provenance, self.version, question, renamed)
        self._freshness = Freshness(predictor.provenance, self.uid, self.plan, reasons)
        self.refresh = refresh
        # Listed before anything is asked: a filter such as "no predictions" lets ever fewer tasks through.
        self._chosen = None if tab is None else label_studio.tasks_in_tab(project_id, tab)
        self._begun = label_studio.tasks_with_drafts(project_id)
        known = predictor.store.project(self.uid)
        predictor.store.keep_project(self.uid, replace(known, url=label_studio.url, given_token=label_studio.token))
        self._config_key = predictor.store.keep_config(self.project["label_config"])

    @property
    def total(self) -> int:
        """Tasks that are looked at."""
        return int(self.project.get("task_number") or 0) if self._chosen is None else len(self._chosen)

    def unknown_labels(self) -> list[str]:
        """The labels that the version was never taught: no prediction draws them."""
        return self.predictor.unknown_labels(self.uid, self.plan, self.version)

    def has_worker(self) -> bool:
        return bool(predicting_workers(self.predictor.store))

    def dry_run(self, advance: Callable[[str], None] = lambda reason: None) -> Plan:
        """What `run` would do; nothing is asked for.

        Args:
            advance: Called once per task.
        """
        fates = dict.fromkeys(("missing", "outdated", "replaced", "had_one", "annotated"), 0)
        reasons: Counter[Why] = Counter()
        tasks = self._tasks()
        while chunk := _take(tasks, _ASK_AT_ONCE):
            for _, fate, why in self._fates(chunk):
                fates[fate] += 1
                reasons.update([why] if fate == "outdated" and why else [])
                advance("")
        workers = len(predicting_workers(self.predictor.store))
        each = seconds_per_task(self.predictor.store, self.version)
        wanted = sum(fates[fate] for fate in _PREDICTED)
        seconds = None if each is None else wanted * each / max(1, workers)
        return Plan(
            self.version,
            sum(fates.values()),
            **fates,
            why=tuple({**asdict(why), "tasks": count} for why, count in reasons.most_common()),
            workers=workers,
            seconds_per_task=each,
            seconds=seconds,
        )

    def run(
        self,
        advance: Callable[[str], None],
        outcome: Outcome | None = None,
        is_cancelled: Callable[[], bool] = lambda: False,
    ) -> Outcome:
        """Asks for what is missing and waits until every task is done or has failed.

        Args:
            advance: Called once per task, with the reason if it failed.
            outcome: Is filled in; one that the caller may look at meanwhile.
            is_cancelled: Asked again and again; once it is true, nothing more is asked for, and what no worker has
                begun is taken out of the queue.
        """
        outcome = outcome or Outcome()
        outstanding: dict[str, int] = {}
        answered: dict[int, float] = {}
        tasks = self._tasks()
        exhausted = False
        while outstanding or answered or not exhausted:
            if is_cancelled():
                self.predictor.store.cancel(list(outstanding))
                exhausted, answered = True, {}
            while not exhausted and len(outstanding) < _MAX_OUTSTANDING:
                chunk = _take(tasks, _ASK_AT_ONCE)
                exhausted = len(chunk) < _ASK_AT_ONCE
                outstanding.update(self._ask(chunk, outcome, advance))
            if outstanding:
                time.sleep(_LOOK_EVERY)
                self._look(outstanding, answered, outcome, advance)
            elif answered and exhausted:
                missing = self._confirm(answered, outcome, advance)
                outstanding.update(self._ask(missing, outcome, advance, again=True))
                if not missing and answered:
                    time.sleep(_CONFIRM_EVERY)
        return outcome

    def _tasks(self) -> Iterator[StudioTask]:
        for task in self.label_studio.tasks(self.project["id"]):
            if self._chosen is None or task.id in self._chosen:
                yield task

    def _fates(self, tasks: Sequence[StudioTask]) -> Iterator[tuple[StudioTask, Fate, Why | None]]:
        """What happens to each task, and why its predictions are outdated, where they are."""
        for task, why in zip(tasks, self._freshness.outdated(tasks), strict=True):
            yield task, self._fate(task, why), why

    def _fate(self, task: StudioTask, why: Why | None) -> Fate:
        if not task.model_versions:
            return "missing"
        if task.is_annotated:
            return "annotated" if why else "had_one"
        if why:
            return "outdated"
        return "replaced" if self.refresh else "had_one"

    def _has_ours(self, task: StudioTask) -> bool:
        """Whether it has a prediction of the version that serves, whatever head and question."""
        ours = base_version(self.version)
        return any(base_version(version) == ours for version in task.model_versions)

    def _ask(
        self, tasks: list[StudioTask], outcome: Outcome, advance: Callable[[str], None], *, again: bool = False
    ) -> dict[str, int]:
        """Asks for predictions; `again`: one that comes late after all is replaced."""
        works: list[Work] = []
        for task, fate, why in self._fates(tasks):
            if fate in ("had_one", "annotated"):
                outcome.had_one += fate == "had_one"
                outcome.annotated += fate == "annotated"
                advance("")
                continue
            try:
                sent = {"id": task.id, "data": task.data}
                replace = task.id not in self._begun and (again or self._has_ours(task))
                works.append(work_of(self.plan, sent, self.uid, self._config_key, self.version, replace=replace))
            except ImageError as error:
                outcome.failed[task.id] = str(error)
                advance(f"task {task.id}: {error}")
                continue
            if why:
                outcome.why[why.words] = outcome.why.get(why.words, 0) + 1
        self.predictor.ask(works, lease=0)
        return {work.key: work.task for work in works if work.task is not None}

    def _confirm(
        self, answered: dict[int, float], outcome: Outcome, advance: Callable[[str], None]
    ) -> list[StudioTask]:
        """Takes out what Label Studio has by now, and those that it will not get any more, which are returned."""
        missing, time_there = [], self.predictor.store.now()
        listed = {task.id: task for task in self._tasks() if task.id in answered}
        for number, since in list(answered.items()):
            task = listed.get(number)
            if task is None or self.version in task.model_versions:
                outcome.deleted += task is None
                outcome.done += task is not None
                advance("")
            elif time_there - since > _STORED_WITHIN:
                missing.append(task)
            else:
                continue
            del answered[number]
        return missing

    def _look(
        self,
        outstanding: dict[str, int],
        answered: dict[int, float],
        outcome: Outcome,
        advance: Callable[[str], None],
    ) -> None:
        keys = list(outstanding)
        states = self.predictor.store.states(keys)
        ended = [key for key, state in zip(keys, states, strict=True) if state in ("done", "failed", "")]
        for key, fields in zip(ended, self.predictor.store.fields(ended), strict=True):
            task = outstanding.pop(key)
            if fields.get("state") == "done" and fields.get("delivery") == "answered":
                answered[task] = float(fields["changed"])
            elif fields.get("delivery") == "cancelled":
                outcome.cancelled += 1
                advance("")
            elif fields.get("state") == "done":
                outcome.deleted += fields.get("delivery") == "gone"
                outcome.done += fields.get("delivery") != "gone"
                advance("")
            else:
                outcome.failed[task] = fields.get("reason") or "its record is gone from Redis"
                advance(f"task {task}: {outcome.failed[task]}")


def seconds_per_task(store: Store, version: str) -> float | None:
    """How long one worker took for a task of a version so far; None where it has predicted nothing.

    Posting goes on beside the model, so the slower of the two counts.
    """
    numbers = read_counters(store.redis)
    predicting = pace_of(numbers, base_version(version)).seconds_per_image
    if predicting is None:
        return None
    posted = numbers.get("stage_images:post", 0.0)
    return max(predicting, numbers.get("seconds:post", 0.0) / posted if posted else 0.0)


def _take(tasks: Iterator[StudioTask], count: int) -> list[StudioTask]:
    return [task for _, task in zip(range(count), tasks, strict=False)]
