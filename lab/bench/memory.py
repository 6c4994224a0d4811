"""`lasagna bench memory`: what a model takes, and what a batch takes on top of it."""

from typing import TYPE_CHECKING

import click

from lab.bench.command import ModelOptions, Numbers, Row, common_options, report, sample_classes, sample_images
from lab.bench.images import set_threshold
from lab.bench.measure import peak_memory

if TYPE_CHECKING:
    from lasagna.assistant.lasagna import Lasagna


@click.command(
    epilog="""\b
Examples:
  lasagna bench memory --batch 1,4 --classes 133
  lasagna bench memory --random-weights lasagna-7b --device cuda --dtype bfloat16 --batch 1,2,4,8 --classes 150
"""
)
@click.option("--batch", "batches", type=Numbers(), default="1,4", show_default=True, help="Images per call.")
@click.option("--classes", "counts", type=Numbers(), default="133", show_default=True, help="Lengths of the list.")
@common_options
def memory(
    batches: tuple[int, ...],
    counts: tuple[int, ...],
    chosen: ModelOptions,
) -> None:
    """Memory of the weights, and the peak while images are answered with a fifth of the classes present.

    gib_peak is the accelerator's, or that of the whole process (Python, libraries and the weights included); its first
    answer is not measured, since libraries are loaded then. The largest of the repeats counts.
    """
    rows: list[Row] = []
    for dtype in chosen.dtypes:
        model = chosen.load(dtype, max(counts))
        place = str(model.model.device)
        rows += [_row(model, dtype, count, batch, chosen.repeats) for count in counts for batch in sorted(batches)]
        del model  # before the next is loaded
    setting: Row = {"model": chosen.random_weights or chosen.model_name, "repeats": chosen.repeats}
    report("memory", setting, rows, device=place, as_json=chosen.as_json, out=chosen.out)


def _row(model: "Lasagna", dtype: str, count: int, batch: int, repeats: int) -> Row:
    classes, photos = sample_classes(count), sample_images(batch)
    set_threshold(model, classes, 0.2)

    def answer() -> None:
        model.segment_batch(photos, [classes] * batch)

    answer()
    peaks = [peak_memory(answer, str(model.model.device))[1] for _ in range(repeats)]
    known = [peak for peak in peaks if peak is not None]
    parameters = list(model.model.parameters())
    return {
        "classes": count,
        "dtype": dtype,
        "batch": batch,
        "parameters": sum(p.numel() for p in parameters),
        "gib_weights": sum(p.numel() * p.element_size() for p in parameters) / 2**30,
        "gib_peak": max(known) if known else None,
    }
