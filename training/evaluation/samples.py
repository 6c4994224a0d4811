"""Annotated photos with answers beside the annotation, as a part of a page (`training/templates/samples.html`)."""

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from lasagna.annotate.gallery import image_to_thumbnail, make_card
from lasagna.masks.segmentation import ClassAnswer, Segmentation
from training.data.records import LabelMap


def truth_to_segmentation(truth: LabelMap, classes: Sequence[str]) -> Segmentation:
    """An annotation as answers that are certain."""
    masks = [(truth == index).any(0) for index in range(len(classes))]
    answers = [
        ClassAnswer(name, float(mask.any()), mask if mask.any() else None)
        for name, mask in zip(classes, masks, strict=True)
    ]
    return Segmentation((truth.shape[1], truth.shape[2]), tuple(answers))


def blank(image: Image.Image) -> Image.Image:
    """White, of the size of a photo: for a page whose photos may not be passed on."""
    return Image.new("RGB", image.size, "white")


def sample_for_page(
    name: str,
    image: Image.Image,
    columns: Sequence[tuple[str, Segmentation]],
    note: str,
    tone: str = "soft",
) -> dict[str, Any]:
    """What the template shows of a photo.

    Args:
        name: Of the photo.
        columns: Each answer with what it is; all of the same classes, so that a class has one colour.
        note: Behind the name, in the style `tone`: "good", "bad" or "soft".
    """
    photo = base64.b64encode(image_to_thumbnail(image)).decode()
    cards = [(what, make_card(name, Path("photo"), "", Path(), answer, 0.0)) for what, answer in columns]
    legend = {shape.index: shape for _, card in cards for shape in card.present}
    return {
        "name": name,
        "note": note,
        "tone": tone,
        "photo": f"data:image/jpeg;base64,{photo}",
        "cards": cards,
        "legend": [legend[index] for index in sorted(legend)],
    }
