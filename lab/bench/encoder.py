"""`lasagna bench encoder`: the image encoders, by batch; SAM's attention against segment-anything's own."""

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

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
    from torch import Tensor

    from lasagna.assistant.lasagna import Lasagna

_TOLERANCE = {"float32": 1e-3, "bfloat16": 0.1, "float16": 1e-2}
"""Largest relative difference of embeddings that is rounding."""


@click.command(
    epilog="""\b
Examples:
  lasagna bench encoder --batch 1,4
  lasagna bench encoder --random-weights lasagna-7b-tiny
  lasagna bench encoder --random-weights lasagna-7b --device cuda --dtype bfloat16 --batch 1,8
"""
)
@click.option("--batch", "batches", type=Numbers(), default="1,4", show_default=True, help="Images per call.")
@common_options
def encoder(
    batches: tuple[int, ...],
    chosen: ModelOptions,
) -> None:
    """Encode prepared images.

    \b
    batched      all images in one call (ours)
    one_by_one   a call each
    plain        in one call, with segment-anything's own attention instead of the fused kernel; only with SAM
    again        so often as chunks of 20 of 133 classes would, had they no common cache

    same: the embeddings of all ways are alike up to rounding. Exit code 1 when they are not.
    """
    rows: list[Row] = []
    for dtype in chosen.dtypes:
        model = chosen.load(dtype)
        rows += [_row(model, dtype, batch, chosen.repeats) for batch in batches]
    setting: Row = {"model": chosen.random_weights or model.version, "repeats": chosen.repeats}
    report("encoder", setting, rows, device=str(model.model.device), as_json=chosen.as_json, out=chosen.out)
    if not all(row["same"] for row in rows):
        click.secho("error: the ways of encoding do not agree", fg="red", err=True)
        sys.exit(1)


def _row(model: "Lasagna", dtype: str, batch: int, repeats: int) -> Row:
    import torch

    network = model.model
    prepared = [network.encoder.prepare(sample_images(1)[0]).pixels] * batch
    pixels = {
        name: torch.stack([one[name] for one in prepared]).to(network.device, network.dtype) for name in prepared[0]
    }

    @torch.inference_mode()
    def batched() -> "Tensor":
        return network.encoder(pixels).embedding

    @torch.inference_mode()
    def one_by_one() -> "Tensor":
        singles = [{name: values[i : i + 1] for name, values in pixels.items()} for i in range(batch)]
        return torch.cat([network.encoder(one).embedding for one in singles])

    ways: dict[str, Callable[[], Any]] = {"batched": batched, "one_by_one": one_by_one}
    if network.config.vision.kind == "clip-sam":
        ways["plain"] = _plain(network.encoder, batched)
    ways["again"] = lambda: [batched() for _ in range(7)]
    right = one_by_one().float()
    apart = {
        name: float((way().float() - right).abs().max() / right.abs().max())
        for name, way in ways.items()
        if name in ("batched", "plain")
    }
    seconds = time_interleaved(ways, repeats, str(network.device))
    plain = seconds.get("plain")
    return {
        "batch": batch,
        "dtype": dtype,
        "same": max(apart.values()) < _TOLERANCE[dtype],
        "difference": max(apart.values()),
        **{f"ms_{name}": 1000 * seconds[name] / batch for name in ("batched", "one_by_one", "again")},
        "ms_plain": None if plain is None else 1000 * plain / batch,
        "times_faster_than_one_by_one": seconds["one_by_one"] / seconds["batched"],
        "times_faster_than_plain": None if plain is None else plain / seconds["batched"],
    }


def _plain(encoder: Any, way: "Callable[[], Tensor]") -> "Callable[[], Tensor]":
    """The way with segment-anything's own attention, which has the same weights and builds the whole matrix."""
    from segment_anything.modeling.image_encoder import Attention

    def run() -> "Tensor":
        kinds = [type(block.attn) for block in encoder.sam.blocks]
        try:
            for block in encoder.sam.blocks:
                block.attn.__class__ = Attention
            return way()
        finally:
            for block, kind in zip(encoder.sam.blocks, kinds, strict=True):
                block.attn.__class__ = kind

    return run
