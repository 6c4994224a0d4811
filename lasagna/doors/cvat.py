"""A function for CVAT's auto-annotation: a task's label set in one question, masks or polygons of what is present.

    cvat-cli task auto-annotate 137 --function-module lasagna.doors.cvat -p model=str:nano -p labels=str:person,cat

CVAT asks the function for its labels (`spec`) and then for the shapes of each image (`detect`); its driver matches our
labels with those of the task, of type mask or polygon (cvat_sdk.auto_annotation,
https://docs.cvat.ai/docs/api_sdk/sdk/auto-annotation/). What always holds: ids of labels are their places in the list;
an absent class, an unknown one, and one without a pixel have no shape.
"""

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from lasagna.contract.model import ClassListModel
from lasagna.errors import ConfigError
from lasagna.extras import load_extra
from lasagna.formats.pieces import pieces_of
from lasagna.labels.classes import read_labels
from lasagna.masks.conversions import mask_to_polygons
from lasagna.masks.segmentation import ClassQuery
from lasagna.models.loading import load_model

if TYPE_CHECKING:
    from PIL import Image

SHAPES = ("mask", "polygon")
_SUREST = 1 - 1e-6
"""A model's probability is never 1."""


class CvatFunction:
    """What CVAT calls a detection function.

    Args:
        model: Answers.
        classes: The labels, as CVAT's task has them.
        shape: "mask": one for each class; "polygon": one for each connected part.
        tolerance: Pixels by which a polygon may leave the border.

    Raises:
        ConfigError: cvat-sdk is not installed, or another shape.
    """

    def __init__(
        self, model: ClassListModel, classes: Sequence[ClassQuery], shape: str = "mask", tolerance: float = 1.0
    ) -> None:
        if shape not in SHAPES:
            raise ConfigError(f"shape is {' or '.join(SHAPES)}, not {shape!r}")
        self._cvat = load_extra("cvat_sdk.auto_annotation", "cvat", "CVAT's auto-annotation")
        self._masks = load_extra("cvat_sdk.masks", "cvat", "CVAT's auto-annotation")
        self._model, self._classes, self._shape, self._tolerance = model, list(classes), shape, tolerance

    @cached_property
    def spec(self) -> Any:
        """The labels."""
        labels = [
            self._cvat.label_spec(query.name, place, type=self._shape) for place, query in enumerate(self._classes)
        ]
        return self._cvat.DetectionFunctionSpec(labels=labels)

    def detect(self, context: Any, image: "Image.Image") -> list[Any]:
        """The shapes of one image; `context.conf_threshold` is the probability from which a class is present, 0 or None
        the checkpoint's own."""
        threshold = min(context.conf_threshold, _SUREST) if context.conf_threshold else None
        answer = self._model.segment(image, self._classes, threshold=threshold)
        as_polygons = self._shape == "polygon" or context.conv_mask_to_poly
        shapes = []
        for place, found in enumerate(answer.classes):
            if found.mask is None or not found.mask.any():
                continue
            if as_polygons:
                shapes += [
                    self._cvat.polygon(place, ring.ravel().tolist())
                    for part, _ in pieces_of(found, parts=True)
                    for ring in mask_to_polygons(part, self._tolerance)
                    if len(ring) >= 3
                ]
            else:
                shapes += [self._cvat.mask(place, self._masks.encode_mask(piece)) for piece, _ in pieces_of(found)]
        return shapes


def create(
    labels: str,
    model: str = "nano",
    shape: str = "mask",
    tolerance: float = 1.0,
    device: str = "auto",
    dtype: str = "auto",
) -> CvatFunction:
    """What `cvat-cli` calls, with the parameters of its `-p name=type:value`.

    Args:
        labels: As of `lasagna annotate --labels`.
        model: A shipped checkpoint, a folder, or a hub id.
        shape, tolerance: As of `CvatFunction`.
        device, dtype: As of `lasagna.models.loading.load_model`.
    """
    classes = read_labels(labels)
    return CvatFunction(load_model(model, device=device, dtype=dtype), classes, shape, tolerance)
