"""A simulated annotator: corrects tasks of a Label Studio project as a person who sees the truth would.

For tests and benchmarks of the learning loop. It works through Label Studio's API alone, and what it submits has the
fields of an annotation that the editor submits (region ids and scores kept, `origin`, `parent_prediction`), so that
everything behind it sees a person's work. What always holds: the same photos, predictions and truth give the same
annotation; a class that is right stays untouched, so that what it did can be counted.
"""

import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from backend.demo.local_label_studio import Projects
from lasagna.errors import ConfigError
from lasagna.formats.regions import read_regions
from lasagna.labels.configuration import Control, ImageConfig, Label, LabelConfig
from lasagna.masks.conversions import brush_rle_to_mask, mask_to_brush_rle
from lasagna.masks.segmentation import Mask


@dataclass(frozen=True)
class Habits:
    """When a person leaves a region alone, and how long things take.

    Attributes:
        accept: IoU with the truth, in [0, 1], from which on a region is left as it is.
        open_seconds: For looking at the task at all.
        add_seconds, change_seconds, delete_seconds: Of one region. These make the `lead_time` that is submitted; they
            are guesses and no measurement of people.
    """

    accept: float = 0.9
    open_seconds: float = 4.0
    add_seconds: float = 25.0
    change_seconds: float = 15.0
    delete_seconds: float = 2.0


@dataclass(frozen=True)
class CorrectedTask:
    """What was done in one task: numbers of regions, and the annotation's id."""

    annotation: int
    accepted: int
    changed: int
    added: int
    deleted: int


class SimulatedAnnotator:
    """Corrects one task after another.

    Args:
        label_studio: With the token of the user who annotates.
        config: The project's labelling configuration. It shows one image, and each of its classes needs a brush.
        habits: When a region is left as it is, and how long things take; None: the defaults.

    Raises:
        ConfigError: A class has no brush.
    """

    def __init__(self, label_studio: Projects, config: LabelConfig, habits: Habits | None = None) -> None:
        self._label_studio, self._habits = label_studio, habits or Habits()
        [self._config] = config.images
        self._brushes = {query.name: _brush(self._config, query.name) for query in config.classes}

    def correct(self, task: int, truth: Mapping[str, Mask]) -> CorrectedTask:
        """Opens a task, takes its newest prediction, makes the regions right and submits.

        Args:
            task: Its id.
            truth: Class name -> bool (height, width) of the upright photo; a class that is not in it, or has no pixel,
                is absent.

        Raises:
            LabelStudioError: Label Studio cannot be reached or refused.
        """
        shown = max(self._label_studio.predictions(task), key=lambda one: int(one["id"]), default=None)
        wanted = {name: mask for name, mask in truth.items() if mask.any()}
        result: list[dict[str, Any]] = []
        counts = {"accepted": 0, "changed": 0, "added": 0, "deleted": 0}
        predicted = shown["result"] if shown else []
        [drawn_before] = read_regions(predicted, [self._config]).of_image  # not the list of absent classes
        known = {region.id: region for region in drawn_before}
        for region in (one for one in predicted if one["id"] in known):
            before = known[region["id"]]
            label = before.labels[0].value if before.labels else ""
            if before.kind != "brush" or label not in wanted:
                counts["deleted"] += 1
                continue
            mask = wanted.pop(label)
            drawn = brush_rle_to_mask(region["value"]["rle"], (mask.shape[0], mask.shape[1]))
            if _iou(drawn, mask) >= self._habits.accept:
                counts["accepted"] += 1
                result.append({**region, "origin": "prediction"})
            else:
                counts["changed"] += 1
                value = {**region["value"], "rle": mask_to_brush_rle(mask)}
                result.append({**region, "value": value, "origin": "prediction-changed"})
        for name, mask in wanted.items():
            counts["added"] += 1
            result.append(self._region(task, name, mask))
        absent = [written for name, written in self._config.absent_values if name not in truth or not truth[name].any()]
        if self._config.absent_choices and absent:
            result.append(self._choices(task, self._config.absent_choices, absent))
        annotation = self._label_studio.create_annotation(
            task, result, lead_time=self._seconds(counts), prediction=int(shown["id"]) if shown else None
        )
        return CorrectedTask(annotation, **counts)

    def _region(self, task: int, name: str, mask: Mask) -> dict[str, Any]:
        control, label = self._brushes[name]
        height, width = mask.shape
        return {
            "id": _region_id(task, name),
            "from_name": control.name,
            "to_name": control.to_name,
            "type": "brushlabels",
            "origin": "manual",
            "original_width": width,
            "original_height": height,
            "image_rotation": 0,
            "value": {"format": "rle", "rle": mask_to_brush_rle(mask), "brushlabels": [label.written]},
        }

    def _choices(self, task: int, control: str, absent: list[str]) -> dict[str, Any]:
        return {
            "id": _region_id(task, control),
            "from_name": control,
            "to_name": self._config.image_name,
            "type": "choices",
            "origin": "manual",
            "value": {"choices": absent},
        }

    def _seconds(self, counts: Mapping[str, int]) -> float:
        habits = self._habits
        return (
            habits.open_seconds
            + counts["added"] * habits.add_seconds
            + counts["changed"] * habits.change_seconds
            + counts["deleted"] * habits.delete_seconds
        )


def _brush(config: ImageConfig, name: str) -> tuple[Control, Label]:
    for control, label in config.controls_for(name):
        if control.kind == "brush":
            return control, label
    raise ConfigError(f"the simulated annotator paints, and {name!r} has no BrushLabels in the configuration")


def _region_id(task: int, name: str) -> str:
    return uuid.uuid5(uuid.NAMESPACE_URL, f"{task}/{name}").hex[:10]


def _iou(one: Mask, other: Mask) -> float:
    union = int(np.count_nonzero(one | other))
    return np.count_nonzero(one & other) / union if union else 1.0
