"""Labels that annotations use and the labelling configuration does not have: what a renamed or removed label leaves.

Label Studio lets a label be renamed or removed while annotations use it. They keep the old name, which nothing in the
configuration explains; `lasagna labels rename` says what it is called now.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from backend.studio.client import LabelStudio
from backend.studio.images import task_data
from lasagna.errors import ConfigError
from lasagna.formats.regions import read_regions
from lasagna.labels.configuration import LabelConfig, parse_label_config
from lasagna.labels.history import LabelHistory


@dataclass
class Use:
    """How much a label is used: regions, and tasks that have any."""

    regions: int = 0
    tasks: int = 0


@dataclass(frozen=True)
class LabelUses:
    """What a project's configuration and annotations say of its labels.

    Attributes:
        standing: Labels of the configuration.
        unknown: Labels that annotations use and it does not have.
    """

    standing: tuple[str, ...]
    unknown: Mapping[str, Use]


def find_label_uses(
    label_studio: LabelStudio, project: int, on_task: Callable[[int, int], None] = lambda done, total: None
) -> LabelUses:
    """Reads every annotation of a project.

    Args:
        on_task: Called after each task, with how many of how many are read.

    Raises:
        LabelStudioError: Label Studio cannot be reached, or has no such project.
        ConfigError: Its labelling configuration cannot be used.
    """
    config: LabelConfig = parse_label_config(str(label_studio.project(project)["label_config"]))
    standing = dict.fromkeys(
        label.value for image in config.images for control in image.controls for label in control.labels
    )
    tasks, found = list(label_studio.annotated(project)), dict[str, Use]()
    for done, task in enumerate(label_studio.export(project, tasks), start=1):
        images = [image.config for image in config.of_task(task_data(task))]
        in_task = set[str]()
        for annotation in task["annotations"]:
            reading = read_regions(annotation.get("result") or (), images)
            for region in (region for regions in (*reading.of_image, reading.elsewhere) for region in regions):
                for name in region.unknown_labels:
                    found.setdefault(name, Use()).regions += 1
                    in_task.add(name)
        for name in in_task:
            found[name].tasks += 1
        on_task(done, len(tasks))
    return LabelUses(tuple(standing), found)


def check_rename(history: LabelHistory, uses: LabelUses, old: str, new: str) -> None:
    """Whether a label can have been renamed so.

    Raises:
        ConfigError: It stands there still, the new one does not, or nothing knows the old one.
    """
    known = {
        *uses.unknown,
        *history.renamed,
        *(label for one in history.seen for each in one.labels.values() for label in each),
    }
    standing = ", ".join(map(repr, uses.standing)) or "none"
    if old in uses.standing:
        raise ConfigError(
            f"the label {old!r} still stands in the labelling configuration; rename it in Label Studio first (Settings "
            "> Labeling Interface), then here"
        )
    if new not in uses.standing:
        raise ConfigError(
            f"the labelling configuration has no label {new!r}; it has {standing}. Rename the label in Label Studio "
            "first (Settings > Labeling Interface), then here"
        )
    if old not in known:
        gone = sorted(known - set(uses.standing))
        raise ConfigError(
            f"there was no label {old!r}: it stood in no labelling configuration that was seen, and no annotation uses "
            f"it. Labels that do not stand any more: {', '.join(map(repr, gone)) or 'none'}"
        )
