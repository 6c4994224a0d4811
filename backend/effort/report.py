"""Edit effort of a project, by model version and by class: the figures of `lasagna report` and `/report/PROJECT`.

What always holds: tasks are read a few at a time, and only those that changed since they were last read; a task that
cannot be compared is counted and named. A figure is a sum over tasks by a sum over tasks (or a median), its interval is
that of a bootstrap over the tasks (`lasagna.bootstrap`). Versions stand in the order in which their first predictions
came, so each can be compared with the one before it.
"""

import threading
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from backend.effort.disagreement import Disagreement, disagreement
from backend.effort.measure import RegionCounts, TaskEffort, task_effort
from backend.registry.label_histories import LabelHistories
from backend.studio.client import LabelStudio
from backend.studio.project_id import project_uid
from backend.studio.version_names import version_family
from lasagna.bootstrap import bootstrap_counts, percentile_interval
from lasagna.errors import DataError
from lasagna.labels.configuration import LabelConfig, parse_label_config

Unknown = Callable[[str, LabelConfig, str], Collection[str]]
"""Uid of a project, labelling configuration, version -> labels."""
CONFIDENCE, RESAMPLES = 0.95, 2000
LEAST_TASKS = 3
"""Tasks below which there is no interval."""
PAGE = 20
"""Tasks whose annotations are in memory at the same time, as Label Studio's JSON."""


@dataclass(frozen=True)
class Estimate:
    """A figure with its interval; None where there is too little to say."""

    value: float | None
    interval: tuple[float, float] | None = None


@dataclass(frozen=True)
class ClassSummary:
    """One class under one version: `photos` in which it was predicted or submitted."""

    name: str
    photos: int
    regions: RegionCounts
    figures: Mapping[str, Estimate]


@dataclass(frozen=True)
class VersionSummary:
    """One model version.

    Attributes:
        version: As its predictions carry it; "nano-ec805b63+h" for all heads beside one version.
        tasks: Compared ones.
        since: When the first of their predictions was stored (ISO 8601).
        regions: Of all tasks and classes.
        figures: By name; see docs/effort.md.
        against_previous: What the figure is more (or less) than that of the version before; empty for the first.
        classes: Those with most changed pixels first.
        unknown: Class that the version was not asked for, since it was never taught it -> photos in which a person drew
            it; it is in none of the figures.
    """

    version: str
    tasks: int
    since: str
    regions: RegionCounts
    figures: Mapping[str, Estimate]
    against_previous: Mapping[str, Estimate]
    classes: tuple[ClassSummary, ...]
    unknown: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class EffortReport:
    """A project's edit effort.

    Attributes:
        skipped: Task -> why it could not be compared.
        disagreements: Task -> the classes that some of its annotations have and others have not.
    """

    project: int
    title: str
    versions: tuple[VersionSummary, ...]
    skipped: Mapping[int, str] = field(default_factory=dict)
    disagreements: Mapping[int, Disagreement] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        return {"confidence": CONFIDENCE, **asdict(self)}


class EffortReader:
    """Reads projects, and remembers the figures of tasks that have not changed since. Safe to share between threads.

    Args:
        histories: Which labels were renamed; None: none.
        unknown: The labels of a project that a version (as its predictions carry it) cannot be asked for.
    """

    def __init__(self, histories: LabelHistories | None = None, unknown: Unknown = lambda *_: ()) -> None:
        self._histories, self._unknown = histories, unknown
        self._known: dict[tuple[str, int], _Project] = {}
        self._lock = threading.Lock()

    def read(
        self, label_studio: LabelStudio, project: int, on_task: Callable[[int, int], None] = lambda done, total: None
    ) -> EffortReport:
        """The report of a project as it is now.

        Args:
            on_task: Called after each task that was read, with how many of how many are.

        Raises:
            LabelStudioError: Label Studio cannot be reached, or has no such project.
            ConfigError: Its labelling configuration cannot be used.
        """
        found = label_studio.project(project)
        xml = str(found["label_config"])
        config = parse_label_config(xml)
        with self._lock:
            known = self._known.setdefault((label_studio.url, project), _Project())
        with known.lock:
            uid = project_uid(found)
            renamed = self._histories.renamed(uid) if self._histories else {}
            if (known.config, known.renamed) != (xml, renamed):  # labels may have other names now
                known.config, known.renamed, known.tasks = xml, renamed, {}
            known.refresh(label_studio, project, config, on_task, partial(self._unknown, uid, config))
            outcomes = {task: outcome for task, (_, outcome) in known.tasks.items()}
            disagreements = dict(sorted(known.disagreements.items()))
        tasks = [outcome for outcome in outcomes.values() if isinstance(outcome, TaskEffort)]
        skipped = {task: outcome for task, outcome in outcomes.items() if isinstance(outcome, str)}
        title = str(found.get("title") or f"project {project}")
        return EffortReport(project, title, summarise(tasks), skipped, disagreements)


class _Project:
    """What is known of a project: task -> when it had changed last, and its figures or why there are none."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.config = ""
        self.renamed: dict[str, str] = {}
        self.tasks: dict[int, tuple[str, TaskEffort | str]] = {}
        self.disagreements: dict[int, Disagreement] = {}

    def refresh(
        self,
        label_studio: LabelStudio,
        project: int,
        config: LabelConfig,
        on_task: Callable[[int, int], None],
        unknown: Callable[[str], Collection[str]],
    ) -> None:
        annotated = label_studio.annotated(project)
        self.tasks = {task: known for task, known in self.tasks.items() if annotated.get(task) == known[0]}
        wanted = [task for task in annotated if task not in self.tasks]
        self.disagreements = {task: found for task, found in self.disagreements.items() if task in self.tasks}
        # Not by opening the task: at that, Label Studio asks for a prediction where there is none
        for done, task in enumerate(label_studio.export(project, wanted, page_size=PAGE), start=1):
            number = int(task["id"])
            outcome: TaskEffort | str
            try:
                shown = {**task, "predictions": label_studio.predictions(number)}
                outcome = task_effort(shown, config, self.renamed, unknown)
            except DataError as error:
                outcome = str(error)
            self.tasks[number] = annotated[number], outcome
            if found := disagreement(task, config, self.renamed):
                self.disagreements[number] = found
            on_task(done, len(wanted))


# --- Figures ----------------------------------------------------------------------------------------------------------

_Ratio = tuple[NDArray[np.float64], NDArray[np.float64]]
"""Numerator and denominator of each task."""


def summarise(tasks: Iterable[TaskEffort], *, resamples: int = RESAMPLES, seed: int = 0) -> tuple[VersionSummary, ...]:
    """The figures of every version, in the order of their first predictions."""
    by_version: dict[str, list[TaskEffort]] = {}
    for task in tasks:
        by_version.setdefault(version_family(task.model_version), []).append(task)
    order = sorted(by_version, key=lambda version: (min(task.predicted_at for task in by_version[version]), version))
    summaries: list[VersionSummary] = []
    before: dict[str, tuple[float, NDArray[np.float64]]] = {}
    for number, version in enumerate(order):
        chosen = sorted(by_version[version], key=lambda task: task.task)
        drawn = _drawn(chosen, resamples, seed + number)  # another seed: versions have different photos
        against = {
            name: _estimate(value - before[name][0], values - before[name][1], len(chosen))
            for name, (value, values) in drawn.items()
            if name in before
        }
        total = RegionCounts()
        for task in chosen:
            total += task.counts
        summaries.append(
            VersionSummary(
                version,
                len(chosen),
                min(task.predicted_at for task in chosen),
                total,
                {name: _estimate(value, values, len(chosen)) for name, (value, values) in drawn.items()},
                against,
                tuple(_classes(chosen, resamples, seed)),
                dict(Counter(name for task in chosen for name in task.unknown).most_common()),
            )
        )
        before = drawn if len(chosen) >= LEAST_TASKS else {}
    return tuple(summaries)


def _drawn(tasks: Sequence[TaskEffort], resamples: int, seed: int) -> dict[str, tuple[float, NDArray[np.float64]]]:
    """Every figure of these tasks, and in each draw of a bootstrap."""
    ratios: dict[str, Callable[[TaskEffort], tuple[float, float]]] = {
        "changed_pixels": lambda t: (t.effort.changed, 1),
        "changed_share": lambda t: (t.effort.changed / t.pixels if t.pixels else 0, 1),
        "boundary": lambda t: _boundaries([c.boundary for c in t.effort.classes.values()]),
        "accepted": lambda t: (t.counts.accepted, t.counts.accepted + t.counts.changed + t.counts.deleted),
        "untouched": lambda t: (_is_untouched(t), 1),
        "regions_changed": lambda t: (t.counts.changed, 1),
        "regions_added": lambda t: (t.counts.added, 1),
        "regions_deleted": lambda t: (t.counts.deleted, 1),
        "objects_cut": lambda t: (t.counts.cut, 1),
        "objects_merged": lambda t: (t.counts.merged, 1),
    }
    counts = bootstrap_counts(len(tasks), resamples, seed)
    found = {name: _ratio([of(task) for task in tasks], counts) for name, of in ratios.items()}
    timed = [task.seconds for task in tasks if task.seconds is not None]
    if timed:
        found["seconds"] = _median(np.array(timed), bootstrap_counts(len(timed), resamples, seed))
    return found


def _classes(tasks: Sequence[TaskEffort], resamples: int, seed: int) -> list[ClassSummary]:
    names = dict.fromkeys(name for task in tasks for name in (*task.effort.classes, *task.regions))
    found = []
    for name in names:
        chosen = [task for task in tasks if name in task.effort.classes]
        regions = RegionCounts()
        for task in tasks:
            regions += task.regions.get(name, RegionCounts())
        figures: dict[str, Estimate] = {}
        if chosen:
            counts = bootstrap_counts(len(chosen), resamples, seed)
            rows = [(task.effort.classes[name], task.regions.get(name, RegionCounts())) for task in chosen]
            ratios: dict[str, list[tuple[float, float]]] = {
                "changed_pixels": [(one.changed, 1.0) for one, _ in rows],
                "boundary": [_boundaries([one.boundary]) for one, _ in rows],
                "accepted": [(r.accepted, r.accepted + r.changed + r.deleted) for _, r in rows],
            }
            figures = {key: _estimate(*_ratio(pairs, counts), len(chosen)) for key, pairs in ratios.items()}
        found.append(ClassSummary(name, len(chosen), regions, figures))
    return sorted(found, key=lambda one: (-_total(one), one.name))


def _total(one: ClassSummary) -> float:
    mean = one.figures.get("changed_pixels")
    return one.photos * (mean.value or 0.0) if mean else 0.0


def _is_untouched(task: TaskEffort) -> bool:
    counts = task.counts
    return not (counts.changed or counts.added or counts.deleted)


def _boundaries(distances: Sequence[float | None]) -> tuple[float, float]:
    known = [distance for distance in distances if distance is not None]
    return sum(known), len(known)


def _ratio(pairs: Sequence[tuple[float, float]], counts: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
    part, whole = np.array(pairs, np.float64).reshape(-1, 2).T

    def ratio(weights: NDArray[np.float64]) -> NDArray[np.float64]:
        total = weights @ whole
        return np.divide(weights @ part, total, out=np.full(len(total), np.nan), where=total > 0)

    return float(ratio(np.ones((1, len(pairs))))[0]), ratio(counts)


def _median(values: NDArray[np.float64], counts: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
    ordered = np.argsort(values)
    reached = counts[:, ordered].cumsum(1) >= len(values) / 2
    return float(np.median(values)), values[ordered][reached.argmax(1)]


def _estimate(value: float, values: NDArray[np.float64], tasks: int) -> Estimate:
    if np.isnan(value):
        return Estimate(None)
    return Estimate(float(value), percentile_interval(values, CONFIDENCE) if tasks >= LEAST_TASKS else None)
