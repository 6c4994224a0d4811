"""`lasagna bench images`: from decoded images to brush regions, by batch size, and where the time goes."""

import sys
import time
from typing import TYPE_CHECKING, Any

import click

from lab.bench.command import (
    ModelOptions,
    Numbers,
    Row,
    both_times,
    common_options,
    report,
    sample_classes,
    sample_images,
)
from lab.bench.measure import peak_memory, stage_seconds, synchronise
from lasagna.checkpoint.folder import Calibration
from lasagna.masks.conversions import mask_to_brush_rle

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from lasagna.assistant.lasagna import Lasagna
    from lasagna.masks.segmentation import Segmentation


def set_threshold(model: "Lasagna", classes: list[str], share: float) -> None:
    """Moves the model's calibration so that about `share` of the classes is present in the first sample image.

    A model with random weights finds all of them or none, which would make an image's masks cost too much or nothing.
    """
    from lab.bench.decoders import bias_for_share

    query = model.prompt.query([model.prompt.encode_name(name) for name in classes])
    tokens = model.encode_image(sample_images(1)[0]).encoded.tokens
    bias = bias_for_share(model.model, model.prompt, tokens, query, share, rounds=2)
    model.calibration = Calibration(offset=float(bias[0]))


@click.command(
    epilog="""\b
Examples:
  lasagna bench images --batch 1,4 --classes 20,133
  lasagna bench images --random-weights lasagna-7b --device cuda --dtype bfloat16 --batch 1,2,4,8 --classes 150
"""
)
@click.option("--batch", "batches", type=Numbers(), default="1,4", show_default=True, help="Images per call.")
@click.option("--classes", "counts", type=Numbers(), default="20,133", show_default=True, help="Lengths of the list.")
@click.option(
    "--present",
    "share",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    help="Set the threshold so that this share of the classes is present. [default: 0.2 of random weights]",
)
@common_options
def images(
    batches: tuple[int, ...],
    counts: tuple[int, ...],
    share: float | None,
    chosen: ModelOptions,
) -> None:
    """Answer whole images: preparing, encoding, decoding, masks at the image's size, brush RLE.

    The stages are measured in a run of their own, in which the accelerator is waited for after each. same_answers: the
    presence of every class is that of the image alone, in a batch of one; in half precision a decision near its
    threshold may differ, in float32 the exit code is 1 when one does.
    """
    rows: list[Row] = []
    for dtype in chosen.dtypes:
        model = chosen.load(dtype, max(counts))
        for count in counts:
            if share is not None or chosen.random_weights is not None:
                set_threshold(model, sample_classes(count), share or 0.2)
            rows += _rows(model, dtype, count, batches, chosen.repeats)
    setting: Row = {"model": chosen.random_weights or model.version, "repeats": chosen.repeats}
    report("images", setting, rows, device=str(model.model.device), as_json=chosen.as_json, out=chosen.out)
    if not all(row["same_answers"] for row in rows if row["dtype"] == "float32"):
        click.secho("error: an image's answer depends on the others of its batch", fg="red", err=True)
        sys.exit(1)


def _rows(model: "Lasagna", dtype: str, count: int, batches: tuple[int, ...], repeats: int) -> list[Row]:
    classes, photos = sample_classes(count), sample_images(max(batches))
    device = str(model.model.device)
    alone = [_presence(model.segment(photo, classes)) for photo in photos]
    kept: dict[int, list[Segmentation]] = {}

    def way(batch: int) -> Any:
        def run() -> None:
            kept[batch] = model.segment_batch(photos[:batch], [classes] * batch)
            _regions(kept[batch])

        return run

    ways = {str(batch): way(batch) for batch in batches}
    seconds = both_times(ways, repeats, device)
    rows: list[Row] = []
    for batch in batches:
        each, processor = (value / batch for value in seconds[str(batch)])
        stages = _stages(model, photos[:batch], classes)
        rows.append(
            {
                "classes": count,
                "dtype": dtype,
                "batch": batch,
                "same_answers": [_presence(one) for one in kept[batch]] == alone[:batch],
                "present": sum(map(sum, alone[:batch])) / (count * batch),
                "seconds_per_image": each,
                "processor_seconds_per_image": processor,
                "images_per_second": 1 / each,
                **{f"ms_{name}": 1000 * value / batch for name, value in stages.items()},
                "gib": peak_memory(ways[str(batch)], device)[1],
            }
        )
    return rows


def _presence(answer: "Segmentation") -> list[bool]:
    return [found.is_present for found in answer.classes]


def _regions(answers: "list[Segmentation]") -> None:
    for answer in answers:
        for found in answer.classes:
            if found.mask is not None:
                mask_to_brush_rle(found.mask)


def _stages(model: "Lasagna", photos: "list[NDArray[np.uint8]]", classes: list[str]) -> dict[str, float]:
    """Seconds by stage, for all photos together. "rest": reading decisions, masks to the image's size, threads."""
    network, device = model.model, str(model.model.device)
    began = time.perf_counter()
    for photo in photos:
        network.encoder.prepare(photo)
    prepare = time.perf_counter() - began
    parts = {"encoder": network.encoder, "language_model": network.language_model, "mask_decoder": network.segmenter}
    with stage_seconds(parts, device) as inside:
        synchronise(device)
        began = time.perf_counter()
        answers = model.segment_batch(photos, [classes] * len(photos))
        whole = time.perf_counter() - began
    began = time.perf_counter()
    _regions(answers)
    regions = time.perf_counter() - began
    rest = max(0.0, whole - prepare - sum(inside.values()))
    return {"prepare": prepare, **inside, "rest": rest, "brush_rle": regions}
