"""Answers as a data set of Hugging Face's `datasets`: for its hub, its viewer, and training with transformers.

    dataset = answers_to_dataset((load_image(path), model.segment(path, classes, exclusive=True)) for path in photos)
    dataset.push_to_hub("me/pre-labels")

What always holds: a row has the columns of semantic segmentation there, `image` and `label`; a pixel of `label` is 0
for no class, else one more than the class's place in the query, of overlapping masks the smaller one's; an unknown
class has no probability.
"""

import io
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from lasagna.errors import DataError
from lasagna.extras import load_extra
from lasagna.formats.png import segmentation_to_indices
from lasagna.masks.segmentation import Segmentation

if TYPE_CHECKING:
    from datasets import Dataset


def answers_to_dataset(answers: "Iterable[tuple[Image.Image, Segmentation]]") -> "Dataset":
    """A data set in memory, a row for each photo.

    Args:
        answers: Photos with answers about one class list.

    Returns:
        Columns `image`, `label` (one channel), `present` (names), and `probability` (of each class, in order).

    Raises:
        ConfigError: The package datasets is not installed.
        DataError: There is no answer, or another class list.
    """
    datasets = load_extra("datasets", "datasets", "answers_to_dataset")
    rows: list[dict[str, Any]] = []
    names: list[str] = []
    for image, answer in answers:
        asked = [found.name for found in answer.classes]
        if rows and asked != names:
            raise DataError(
                f"photo {len(rows) + 1} was asked for {asked[:5]} ..., the first for {names[:5]} ...: one list"
            )
        names = asked
        rows.append(
            {
                "image": {"bytes": _png(image), "path": None},
                "label": {"bytes": _png(_label(answer)), "path": None},
                "present": [found.name for found in answer.present],
                "probability": [None if found.is_unknown else float(found.probability) for found in answer.classes],
            }
        )
    if not rows:
        raise DataError("a data set needs at least one answer")
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "label": datasets.Image(),
            "present": datasets.Sequence(datasets.ClassLabel(names=names)),
            "probability": datasets.Sequence(datasets.Value("float32")),
        }
    )
    made: Dataset = datasets.Dataset.from_list(rows, features=features)
    return made


def _label(answer: Segmentation) -> Image.Image:
    indices = segmentation_to_indices(answer)
    return Image.fromarray(indices if len(answer.classes) > 255 else indices.astype(np.uint8))


def _png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()
