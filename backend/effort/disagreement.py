"""Where the annotators of one task disagree: classes that some of its annotations have and others have not.

What always holds: only submitted annotations count; regions are read by the one reader (`lasagna.formats.regions`), so
that every control counts alike, a region that cannot be read as a mask too, and a renamed label is one class. Which
annotation is trained on follows from another rule (`lasagna.formats.annotations.choose_annotation`: the ground truth,
else the newest).
"""

from collections.abc import Mapping
from typing import Any

from lasagna.formats.regions import read_regions
from lasagna.labels.configuration import LabelConfig

Disagreement = Mapping[str, tuple[int, int]]
"""Class -> how many of how many submitted annotations have it."""


def disagreement(
    task: Mapping[str, Any], config: LabelConfig, renamed: Mapping[str, str] | None = None
) -> dict[str, tuple[int, int]]:
    """Of a task as Label Studio exports it; empty where all its annotations have the same classes, or there is one.

    Args:
        config: Of its project.
        renamed: Labels that were renamed: old name -> new name.
    """
    finished = [one for one in task.get("annotations") or () if not one.get("was_cancelled")]
    if len(finished) < 2:
        return {}
    images = [image.config for image in config.of_task(task.get("data") or {})]
    labels = []
    for annotation in finished:
        reading = read_regions(annotation.get("result") or (), images, renamed)
        regions = [region for each in (*reading.of_image, reading.elsewhere) for region in each]
        labels.append(
            {name for region in regions for name in (*(one.value for one in region.labels), *region.unknown_labels)}
        )
    names = sorted(set().union(*labels))
    counts = {name: (sum(name in found for found in labels), len(labels)) for name in names}
    return {name: count for name, count in counts.items() if count[0] < count[1]}


def in_words(found: Disagreement) -> str:
    """E.g. "sky in 1 of 2 annotations, road in 2 of 3"."""
    words = [f"{name} in {some} of {every}" for name, (some, every) in found.items()]
    return ", ".join([f"{words[0]} annotations", *words[1:]]) if words else ""
