"""`lasagna bench quantise`: what 8 and 4 bits change in the answers, and what they save."""

from typing import TYPE_CHECKING

import click

from lab.bench.command import (
    ModelOptions,
    Numbers,
    Row,
    common_options,
    report,
    sample_classes,
    sample_images,
    time_interleaved,
)
from lab.bench.images import set_threshold
from lab.bench.random_weights import random_config

if TYPE_CHECKING:
    from lasagna.assistant.lasagna import Lasagna
    from lasagna.masks.segmentation import Segmentation

_CARDS = (12, 16, 24, 40, 80)
_RESERVE = 1.5
"""GiB of a card that are not for us: the driver's context, workspaces of libraries, activations."""


@click.command(
    epilog="""\b
Examples:
  lasagna bench quantise --images 12 --classes 133
  lasagna bench quantise --random-weights lasagna-7b --device cuda --dtype bfloat16 --classes 150
"""
)
@click.option("--images", "count", type=click.IntRange(1), default=3, show_default=True, help="Photos to ask about.")
@click.option("--classes", "counts", type=Numbers(), default="133", show_default=True, help="Lengths of the list.")
@common_options
def quantise(
    count: int,
    counts: tuple[int, ...],
    chosen: ModelOptions,
) -> None:
    """Answer the same photos with the language model's matrices in full, in 8 and in 4 bits.

    \b
    changed_decisions  share of all pairs of photo and class that are answered otherwise than in full
    mask_iou           mean over the classes that are present in both
    probability        mean change
    gib_weights        of this model
    gib_7b             of lasagna-7b in this format, computed from its shapes (matrices that are not quantised in
                       bfloat16), with the keys and values of 2048 positions
    fits_gb            the smallest card of 12, 16, 24, 40 and 80 GB that has 1.5 GiB left beside gib_7b
    """
    rows: list[Row] = []
    for dtype in chosen.dtypes:
        for classes in counts:
            rows += _rows(chosen, dtype, classes, count)
    setting: Row = {"model": chosen.random_weights or chosen.model_name, "images": count}
    report("quantise", setting, rows, device=chosen.device, as_json=chosen.as_json, out=chosen.out)


def _rows(chosen: ModelOptions, dtype: str, classes: int, count: int) -> list[Row]:
    from lasagna.network.quantise import KINDS, quantise_layers, weight_bytes

    names, photos = sample_classes(classes), sample_images(count)
    rows: list[Row] = []
    full: list[Segmentation] = []
    calibration = None
    for kind in KINDS:
        model = chosen.load(dtype, classes)
        if chosen.random_weights is not None and calibration is None:
            set_threshold(model, names, 0.2)
        calibration = calibration or model.calibration
        model.calibration = calibration
        quantise_layers(model.model, kind)
        answers = [model.segment(photo, names) for photo in photos]
        full = full or answers
        memory = memory_of_7b(kind)
        rows.append(
            {
                "quantise": kind,
                "dtype": dtype,
                "classes": classes,
                **_changes(full, answers),
                "gib_weights": weight_bytes(model.model) / 2**30,
                "gib_7b": memory,
                "fits_gb": next((size for size in _CARDS if memory + _RESERVE <= size), None),
                "seconds_per_image": _seconds(model, photos[0], names),
            }
        )
        del model
    return rows


def _seconds(model: "Lasagna", photo: object, names: list[str]) -> float:
    return time_interleaved({"answer": lambda: model.segment(photo, names)}, 1, str(model.model.device))["answer"]  # type: ignore[arg-type]


def _changes(full: "list[Segmentation]", answers: "list[Segmentation]") -> Row:
    """How the answers of one model differ from those of another to the same questions."""
    changed, pairs, moved = 0, 0, 0.0
    overlaps: list[float] = []
    for before, after in zip(full, answers, strict=True):
        for one, other in zip(before.classes, after.classes, strict=True):
            pairs += 1
            changed += one.is_present != other.is_present
            moved += abs(one.probability - other.probability)
            if one.mask is not None and other.mask is not None:
                union = int((one.mask | other.mask).sum())
                overlaps.append(int((one.mask & other.mask).sum()) / union if union else 1.0)
    return {
        "changed_decisions": changed / pairs,
        "mask_iou": sum(overlaps) / len(overlaps) if overlaps else None,
        "probability": moved / pairs,
    }


def memory_of_7b(kind: str) -> float:
    """GiB of the 7B's weights in a format, and of the keys and values of 2048 positions, from its shapes alone."""
    import torch

    from lasagna.network.model import LasagnaModel, cast_weights
    from lasagna.network.quantise import quantise_layers, weight_bytes

    config = random_config("lasagna-7b")
    with torch.device("meta"):
        model = cast_weights(LasagnaModel(config), torch.bfloat16)
        quantise_layers(model, kind)
    shape = model.language_model.shape
    cached = 2 * 2048 * shape.num_hidden_layers * shape.key_value_heads * shape.head_size * 2
    return (weight_bytes(model) + cached) / 2**30
