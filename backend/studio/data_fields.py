"""Our fields in the data of tasks, so that Label Studio's data manager can filter and sort tasks by them.

What always holds, measured in Label Studio 1.23.2:

- Only our own fields are written, each by itself (the action "Add Or Modify Data Field" of the data manager): what
  else a task's data holds is not sent, `updated_at` stays, no webhook is sent, and annotations and predictions are not
  touched. A PATCH of the task would send all of its data, and turn the field `$undefined$` of a task that was uploaded
  before its project had a configuration into the one that the configuration names today.
- A task that has a field of one of our names without `MARK` beside it is somebody else's: it is left alone.
- The fields play no part in what a prediction was made of (`backend.queue.works.read_of_task`).
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from backend.studio.client import LabelStudio, LabelStudioError, StudioTask
from backend.studio.version_names import parse_version
from lasagna.errors import ConfigError
from lasagna.labels.configuration import LabelConfig
from lasagna.labels.task_data import UNDEFINED

MARK = "lasagna_version"
"""Written first and removed last: a task with it has fields of ours."""
NAMES = (MARK, "lasagna_score", "lasagna_regions", "lasagna_lowest", "lasagna_classes")
AT_ONCE = 200
"""Tasks whose fields are looked at in one request; their numbers stand in its address."""
TOGETHER = 1000
"""Tasks that are best written together: many of them have values in common, and share requests."""

Fields = dict[str, str | float]
"""Values by name, for all of `NAMES`."""


@dataclass
class Written:
    """What became of the tasks.

    Attributes:
        changed: Tasks with a field that is another now.
        same: Tasks whose fields were right.
        foreign: Tasks that have a field of somebody else's under one of our names.
    """

    changed: int = 0
    same: int = 0
    foreign: list[int] = field(default_factory=list)


def fields_of(prediction: Mapping[str, Any]) -> Fields:
    """The fields that tell a prediction (`model_version`, `score`, `result`).

    Returns:
        `lasagna_score`, the prediction's own, and `lasagna_lowest`, the lowest probability of a region (1 where there
        is none), to two decimals, so that tasks share values and texts of them sort like numbers; `lasagna_regions`,
        their number; `lasagna_classes`, their labels, joined by ", "; `lasagna_version`.
    """
    regions = [one for one in prediction.get("result") or () if one.get("type") != "choices"]
    labels = dict.fromkeys(name for region in regions for name in _labels(region))
    scores = [float(region["score"]) for region in regions if region.get("score") is not None]
    values: tuple[str | float, ...] = (
        str(prediction["model_version"]),
        round(float(prediction.get("score") or 0.0), 2),
        float(len({region.get("id") for region in regions})),
        round(min(scores, default=1.0), 2),
        ", ".join(labels),
    )
    return dict(zip(NAMES, values, strict=True))


def check_names(config: LabelConfig) -> None:
    """Raises ConfigError where the labelling configuration takes images or labels from fields of our names."""
    if taken := sorted(set(NAMES) & set(config.fields)):
        raise ConfigError(
            f"the labelling configuration reads {', '.join(taken)} of each task, so nothing is written there; call the "
            "field otherwise in the configuration and in the tasks"
        )


def newest_of_ours(predictions: Iterable[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """The newest prediction whose version names a question, as ours do; None where there is none."""
    ours = [one for one in predictions if parse_version(str(one.get("model_version"))).question]
    return max(ours, key=lambda one: int(one["id"]), default=None)


def write_fields(label_studio: LabelStudio, project: int, wanted: Mapping[int, Fields]) -> Written:
    """Writes the fields of tasks, in few requests: those with the same value together. Tasks that are gone are none.

    Raises:
        LabelStudioError: Label Studio cannot be reached, or refuses; what is written by then is right.
    """
    done = Written()
    numbers = list(wanted)
    differing: dict[tuple[str, str | float], list[int]] = defaultdict(list)
    for first in range(0, len(numbers), AT_ONCE):
        for task in label_studio.chosen_tasks(project, numbers[first : first + AT_ONCE]):
            if not is_ours(task):
                done.foreign.append(task.id)
                continue
            changed = [name for name in NAMES if task.data.get(name) != wanted[task.id][name]]
            for name in changed:
                differing[name, wanted[task.id][name]].append(task.id)
            done.changed += bool(changed)
            done.same += not changed
    for (name, value), tasks in sorted(differing.items(), key=lambda entry: NAMES.index(entry[0][0])):
        label_studio.set_data_field(project, tasks, name, value)
    return done


def is_ours(task: StudioTask) -> bool:
    """Whether fields of our names in a task, if any, are ours."""
    return MARK in task.data or not set(NAMES) & set(task.data)


def remove_fields(
    label_studio: LabelStudio, project: int, tasks: Sequence[StudioTask], advance: Callable[[], None] = lambda: None
) -> None:
    """Takes our fields out of tasks that have them, and out of the data manager's columns; killed in the midst, the
    rest goes with the next run.

    Label Studio removes a field only with all of a task's data. So each task is read right before, and `$undefined$` is
    put back where the task had it.

    Raises:
        LabelStudioError: Label Studio cannot be reached, or refuses.
    """
    for first in range(0, len(tasks), AT_ONCE):
        numbers = [task.id for task in tasks[first : first + AT_ONCE]]
        undefined = label_studio.tasks_with_field(project, UNDEFINED, numbers)
        shown_as = label_studio.first_data_column(project) if undefined else ""
        for number in numbers:
            for task in label_studio.chosen_tasks(project, [number]):
                data = {name: value for name, value in task.data.items() if name not in NAMES}
                if number in undefined and shown_as in data:
                    data = {UNDEFINED if name == shown_as else name: value for name, value in data.items()}
                label_studio.replace_data(number, data)
            advance()
    with suppress(LabelStudioError):  # without the right to it, the columns stay for now, empty
        label_studio.reset_summary(project)


def _labels(region: Mapping[str, Any]) -> list[str]:
    """The labels of a region's result; [] of a shape whose labels are another result of the same region."""
    found = (region.get("value") or {}).get(str(region.get("type")))
    listed = found if isinstance(found, list) else []
    return [str(one[-1]) if isinstance(one, list) and one else str(one) for one in listed]
