"""`lasagna bench peer`: what one would pick instead, transformers' `Sam3Model`, at its real size with random weights.

SAM 3 (arXiv 2511.16719) takes one concept per prompt. Its image encoder runs once per photo, its text encoder and
detector once per concept, in batches. The time does not depend on what the weights have learnt; nothing is fetched.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import click

from lab.bench.command import Numbers, Row, report, time_interleaved
from lasagna.errors import ConfigError
from lasagna.network.compat import ensure_torchvision

_TINY: dict[str, Any] = {
    "vision_config": {
        "backbone_config": {
            "model_type": "sam3_vit_model",
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 224,
            "window_size": 8,
            "global_attn_indexes": [1],
            "pretrain_image_size": 112,
        },
        "fpn_hidden_size": 32,
        "backbone_feature_sizes": [[64, 64], [32, 32], [16, 16]],
    },
    "text_config": {
        "vocab_size": 100,
        "hidden_size": 32,
        "intermediate_size": 64,
        "projection_dim": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 32,
        "hidden_act": "gelu",
    },
    **{
        part: {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "num_layers": 1}
        for part in ("geometry_encoder_config", "detr_encoder_config", "detr_decoder_config")
    },
    "mask_decoder_config": {"hidden_size": 32, "num_attention_heads": 2},
}
_WORDS = 4
"""Tokens of a concept: start, two of the name, end; as many as class names have on average."""


@click.command(
    epilog="""\b
Examples:
  lasagna bench peer --classes 1,4 --repeats 1
  lasagna bench peer --classes 20,133 --device cuda --dtype bfloat16 --batch 32
"""
)
@click.option("--classes", "counts", type=Numbers(), default="1,4", show_default=True, help="Concepts that are run.")
@click.option("--batch", type=click.IntRange(1), default=8, show_default=True, help="Concepts per forward.")
@click.option("--size", type=click.Choice(["real", "tiny"]), default="real", show_default=True, help="tiny: for tests.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option("--dtype", type=click.Choice(["float32", "bfloat16", "float16"]), default="float32", show_default=True)
@click.option("--repeats", type=click.IntRange(1), default=1, show_default=True, help="Median of so many.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of the table.")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="Write the JSON to a file too.")
def peer(
    counts: tuple[int, ...],
    batch: int,
    size: str,
    device: str,
    dtype: str,
    repeats: int,
    as_json: bool,
    out: Path | None,
) -> None:
    """One photo's vision features, then so many concepts with them, by SAM 3 with random weights.

    seconds is vision and concepts together; per_concept is what one more concept costs.
    """
    from lasagna.assistant.lasagna import choose_device, choose_dtype

    place = choose_device(device)
    model = sam3(size, place, choose_dtype(dtype, place))
    vision, concepts = peer_ways(model, batch)
    ways: dict[str, Callable[[], Any]] = {"vision": vision}
    ways |= {str(count): partial(concepts, count) for count in counts}
    seconds = time_interleaved(ways, repeats, str(place))
    rows: list[Row] = [
        {
            "classes": count,
            "dtype": dtype,
            "seconds_vision": seconds["vision"],
            "seconds_concepts": seconds[str(count)],
            "seconds": seconds["vision"] + seconds[str(count)],
            "seconds_per_concept": seconds[str(count)] / count,
            "parameters": sum(p.numel() for p in model.parameters()),
        }
        for count in counts
    ]
    setting: Row = {"model": "Sam3Model, random weights", "size": size, "concepts per forward": batch}
    report("peer", {**setting, "repeats": repeats}, rows, device=str(place), as_json=as_json, out=out)


def sam3(size: str, device: Any, dtype: Any) -> Any:
    """The network with random weights, "real" or "tiny". Raises ConfigError where transformers has no SAM 3."""
    ensure_torchvision()
    try:
        from transformers import Sam3Config, Sam3Model
    except ImportError as error:
        raise ConfigError(f"this version of transformers has no Sam3Model ({error}); update it") from error
    import torch

    with torch.device(device):
        return Sam3Model(Sam3Config(**({} if size == "real" else _TINY))).to(dtype).eval()


def peer_ways(model: Any, batch: int) -> tuple[Callable[[], Any], Callable[[int], Any]]:
    """Runs the image encoder; runs so many concepts on its features, `batch` in a forward."""
    import torch

    side = model.config.image_size
    pixels = torch.randn(1, 3, side, side, device=model.device, dtype=model.dtype)
    kept: dict[str, Any] = {}

    @torch.inference_mode()
    def vision() -> None:
        kept["features"] = model.get_vision_features(pixel_values=pixels)

    @torch.inference_mode()
    def concepts(count: int) -> Any:
        found = []
        for first in range(0, count, batch):
            rows = min(batch, count - first)
            words = torch.randint(1, 90, (rows, _WORDS), device=model.device)
            found.append(model(vision_embeds=_repeated(kept["features"], rows), input_ids=words).pred_masks)
        return torch.cat(found)

    return vision, concepts


def _repeated(features: Any, rows: int) -> Any:
    """Features of one photo for a batch of concepts, without copying them."""
    return type(features)(
        **{
            name: tuple(level.expand(rows, *level.shape[1:]) for level in value)
            for name, value in features.items()
            if name.startswith("fpn_")
        }
    )
