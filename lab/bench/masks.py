"""`lasagna bench masks`: the present classes' masks in one batch, against one after the other and against all."""

import sys
from typing import TYPE_CHECKING

import click

from lab.bench.command import (
    ModelOptions,
    Numbers,
    Row,
    common_options,
    report,
    sample_images,
    time_interleaved,
)

if TYPE_CHECKING:
    from lasagna.assistant.lasagna import Lasagna

_TOLERANCE = {"float32": 1e-4, "bfloat16": 0.1, "float16": 1e-2}
"""Largest relative difference of logits that is rounding."""


@click.command(
    epilog="""\b
Examples:
  lasagna bench masks --present 4,27 --classes 133
  lasagna bench masks --random-weights lasagna-7b --device cuda --dtype bfloat16 --present 30 --classes 150
"""
)
@click.option("--present", "counts", type=Numbers(), default="4,27", show_default=True, help="Classes with a mask.")
@click.option("--classes", type=click.IntRange(1), default=133, show_default=True, help="Of the list: for 'every'.")
@common_options
def masks(
    counts: tuple[int, ...],
    classes: int,
    chosen: ModelOptions,
) -> None:
    """Decode masks of one image: the present classes in one batch (ours), one by one, and of every class of the list.

    same: the logits of a batch are those of one by one, up to rounding. Exit code 1 when they are not.
    """
    rows: list[Row] = []
    for dtype in chosen.dtypes:
        model = chosen.load(dtype)
        rows += [_row(model, dtype, count, classes, chosen.repeats) for count in counts]
    setting: Row = {"model": chosen.random_weights or model.version, "repeats": chosen.repeats}
    report("masks", setting, rows, device=str(model.model.device), as_json=chosen.as_json, out=chosen.out)
    if not all(row["same"] for row in rows):
        click.secho("error: masks of a batch are not those of one by one", fg="red", err=True)
        sys.exit(1)


def _row(model: "Lasagna", dtype: str, present: int, classes: int, repeats: int) -> Row:
    import torch
    from torch import Tensor

    network = model.model
    encoded = model.encode_image(sample_images(1)[0]).encoded
    generator = torch.Generator().manual_seed(0)
    prompts = torch.randn(max(present, classes), network.config.decoder.width, generator=generator)
    prompts = prompts.to(network.device, network.dtype)

    @torch.inference_mode()
    def decode(some: Tensor) -> Tensor:
        owners = torch.zeros(len(some), dtype=torch.long, device=network.device)
        logits: Tensor = network.segmenter(encoded, some, owners)[0]
        return logits

    def batched() -> Tensor:
        return decode(prompts[:present])

    def one_by_one() -> Tensor:
        return torch.cat([decode(prompts[i : i + 1]) for i in range(present)])

    def every() -> Tensor:
        return decode(prompts[:classes])

    right = one_by_one().float()
    difference = float((batched().float() - right).abs().max() / right.abs().max())
    ways = {"batched": batched, "one_by_one": one_by_one, "every": every}
    seconds = time_interleaved(ways, repeats, str(network.device))
    return {
        "present": present,
        "classes": classes,
        "dtype": dtype,
        "same": difference < _TOLERANCE[dtype],
        "difference": difference,
        **{f"ms_{name}": 1000 * value for name, value in seconds.items()},
        "times_faster_than_one_by_one": seconds["one_by_one"] / seconds["batched"],
        "times_faster_than_every": seconds["every"] / seconds["batched"],
    }
