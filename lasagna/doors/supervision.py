"""An answer as roboflow's `supervision.Detections`, for its annotators, trackers, filters and counters."""

from typing import TYPE_CHECKING

import numpy as np

from lasagna.extras import load_extra
from lasagna.masks.conversions import mask_to_box, mask_to_parts
from lasagna.masks.segmentation import Segmentation

if TYPE_CHECKING:
    from supervision import Detections


def segmentation_to_detections(segmentation: Segmentation, *, parts: bool = False) -> "Detections":
    """The present classes, one detection each.

    Args:
        segmentation: A present class without a pixel gives none.
        parts: Whether each connected part of a class is a detection of its own.

    Returns:
        `xyxy` with right and bottom edges outside, `mask`, `confidence` the probability, `class_id` the class's place
        in the query, and its name in `data["class_name"]`; as supervision's own connectors give them.

    Raises:
        ConfigError: supervision is not installed.
    """
    supervision = load_extra("supervision", "supervision", "segmentation_to_detections")
    rows = [
        (mask, answer.probability, place, answer.name)
        for place, answer in enumerate(segmentation.classes)
        if answer.mask is not None and answer.mask.any()
        for mask in (mask_to_parts(answer.mask) if parts else [answer.mask])
    ]
    if not rows:
        empty: Detections = supervision.Detections.empty()
        return empty
    found: Detections = supervision.Detections(
        xyxy=np.array([mask_to_box(mask) for mask, *_ in rows], np.float32),
        mask=np.stack([mask for mask, *_ in rows]),
        confidence=np.array([probability for _, probability, *_ in rows], np.float32),
        class_id=np.array([place for *_, place, _ in rows]),
        data={"class_name": np.array([name for *_, name in rows])},
    )
    return found
