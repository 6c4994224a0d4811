"""An answer as roboflow's `supervision.Detections`, for its annotators, trackers, filters and counters."""

from typing import TYPE_CHECKING

import numpy as np

from lasagna.extras import load_extra
from lasagna.formats.pieces import pieces_of
from lasagna.masks.conversions import mask_to_box
from lasagna.masks.segmentation import Segmentation

if TYPE_CHECKING:
    from supervision import Detections


def segmentation_to_detections(segmentation: Segmentation, *, parts: bool = False) -> "Detections":
    """The present classes: a detection for each object, or one for each class whose objects are not told apart.

    Args:
        segmentation: A present class without a pixel gives none.
        parts: Whether each connected part of a class whose objects are not told apart is a detection of its own.

    Returns:
        `xyxy` with right and bottom edges outside, `mask`, `confidence` the object's score or the class's probability,
        `class_id` the class's place in the query, and its name in `data["class_name"]`; as supervision's own connectors
        give them.

    Raises:
        ConfigError: supervision is not installed.
    """
    supervision = load_extra("supervision", "supervision", "segmentation_to_detections")
    rows = [
        (mask, score, place, answer.name)
        for place, answer in enumerate(segmentation.classes)
        for mask, score in pieces_of(answer, parts=parts)
    ]
    if not rows:
        empty: Detections = supervision.Detections.empty()
        return empty
    found: Detections = supervision.Detections(
        xyxy=np.array([mask_to_box(mask) for mask, *_ in rows], np.float32),
        mask=np.stack([mask for mask, *_ in rows]),
        confidence=np.array([score for _, score, *_ in rows], np.float32),
        class_id=np.array([place for *_, place, _ in rows]),
        data={"class_name": np.array([name for *_, name in rows])},
    )
    return found
