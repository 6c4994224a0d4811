"""`lasagna bench limit`: the least time that an image can take on a machine, from operations and bytes alone.

A stage needs at least its floating-point operations over the rate of a large matrix product, and at least the time in
which its weights are read once. The operations are counted by running the network without weights (on the meta device,
attention written out as products), so that they follow the code. What is left out makes the true limit higher: reading
activations and the cache, norms, softmax, resizing of masks.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np

from lab.bench import measure
from lab.bench.command import Dtypes, Row, report, sample_classes
from lab.bench.random_weights import random_config, word_tokenizer
from lasagna.prompt.dialect import RELEASED, PromptFormat
from lasagna.prompt.sequences import Prompt

if TYPE_CHECKING:
    from torch import nn

    from lasagna.network.config import ModelConfig


@click.command(
    epilog="""\b
Examples:
  lasagna bench limit --random-weights lasagna-7b
  lasagna bench limit --random-weights lasagna-7b --dtype bfloat16 --flops 989e12 --bandwidth 3.35e12
"""
)
@click.option("--random-weights", "shape", metavar="SHAPE", default="lasagna-7b", show_default=True, help="Its shape.")
@click.option("--dialect", type=click.Choice(["paper", "released"]), default="released", show_default=True)
@click.option("--classes", type=click.IntRange(1), default=150, show_default=True, help="Length of the list.")
@click.option("--present", type=click.IntRange(0), default=10, show_default=True, help="Classes with a mask.")
@click.option("--batch", type=click.IntRange(1), default=1, show_default=True, help="Images that share the weights.")
@click.option("--passes", type=click.IntRange(1), default=3, show_default=True, help="Over the answer.")
@click.option("--flops", type=float, help="Operations per second of another machine, as published. [default: measured]")
@click.option("--bandwidth", type=float, help="Bytes per second of another machine, as published. [default: measured]")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N: what is measured.")
@click.option("--dtype", "dtypes", type=Dtypes(), default="float32", show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of the table.")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="Write the JSON to a file too.")
def limit(
    shape: str,
    dialect: str,
    classes: int,
    present: int,
    batch: int,
    passes: int,
    flops: float | None,
    bandwidth: float | None,
    device: str,
    dtypes: tuple[str, ...],
    as_json: bool,
    out: Path | None,
) -> None:
    """The least time per stage: operations over the matrix rate, weights over the bandwidth, whichever is longer.

    A pass after the first runs at least one position: how many depends on what changes. Token by token is the same
    model with a cache, one forward per token of the answer.
    """
    import torch

    from lasagna.assistant.devices import choose_device

    if min(x for x in (flops, bandwidth, 1.0) if x is not None) <= 0:
        raise click.UsageError("--flops and --bandwidth are above 0")
    place = choose_device(device)
    config = random_config(shape)
    rows: list[Row] = []
    found: Row = {}
    for name in dtypes:
        dtype = getattr(torch, name)
        rate = measure.matrix_rate(place, dtype) if flops is None else flops
        width = measure.bandwidth(place, dtype) if bandwidth is None else bandwidth
        found |= {f"tflop_per_s_{name}": f"{rate / 1e12:.3g}", f"gb_per_s_{name}": f"{width / 1e9:.3g}"}
        rows += limit_rows(config, dialect, classes, present, batch, passes, name, rate, width)
    setting: Row = {
        "shape": shape,
        "dialect": dialect,
        "classes": classes,
        "present": present,
        "images": batch,
        "rate": "measured" if flops is None else "published, not measured",
        "bandwidth": "measured" if bandwidth is None else "published, not measured",
        **found,
    }
    report("limit", setting, rows, device=str(place), as_json=as_json, out=out)


def limit_rows(
    config: "ModelConfig",
    dialect: str,
    classes: int,
    present: int,
    batch: int,
    passes: int,
    dtype: str,
    rate: float,
    bandwidth: float,
) -> list[Row]:
    """One row per stage and their sum, for all images of a batch.

    Args:
        rate: Floating-point operations per second.
        bandwidth: Bytes per second.
    """
    import torch

    from lasagna.network.llama import KeyValues
    from lasagna.network.model import LasagnaModel

    with torch.device("meta"):
        model = LasagnaModel(config).eval()
    names = sample_classes(classes)
    prompt = Prompt(PromptFormat() if dialect == "paper" else RELEASED, word_tokenizer(names), model.encoder.num_tokens)
    query = prompt.query([prompt.encode_name(name) for name in names])
    start, answer = len(prompt.before_image) + prompt.image_tokens, len(query.answer)
    first = len(query.question) + answer
    width = model.language_model.shape.hidden_size

    def run(length: int, cached: int) -> Callable[[], Any]:
        cache = KeyValues(cached + length)
        if cached:
            model.run(torch.empty(batch, cached, width, device="meta"), None, _positions(batch, 0, cached), cache)
        embeddings = torch.empty(batch, length, width, device="meta")
        return lambda: model.run(embeddings, None, _positions(batch, cached, length), cache)

    language = model.language_model.layers
    stages = [
        *_encoders(model, batch),
        ("prefix", language, run(start, 0), 1),
        ("first pass", language, run(first, start), 1),
        ("later passes", language, run(1, start + first - 1), passes - 1),
        *_masks(model, batch, present),
    ]
    size = getattr(torch, dtype).itemsize
    rows = [_stage(name, part, way, times, size, dtype, rate, bandwidth) for name, part, way, times in stages]
    rows.append(_sum("all", rows, dtype, rate, bandwidth))
    token = _stage("a token", language, run(1, start + len(query.question)), answer, size, dtype, rate, bandwidth)
    kept = [row for row in rows[:-1] if row["stage"] not in ("first pass", "later passes")]
    question = _stage("question", language, run(len(query.question), start), 1, size, dtype, rate, bandwidth)
    rows.append(_sum("all, token by token", [*kept, question, token], dtype, rate, bandwidth))
    return rows


_Stage = tuple[str, "nn.Module", Callable[[], Any], int]
"""Name, the part whose weights are read, the work, and how often it is done."""


def _pixels(model: Any, batch: int) -> dict[str, Any]:
    import torch

    shapes = {name: value.shape for name, value in model.encoder.prepare(_photo()).pixels.items()}
    return {name: torch.empty(batch, *shape, device="meta") for name, shape in shapes.items()}


def _encoders(model: Any, batch: int) -> list[_Stage]:
    """The image encoders on a batch of photos."""
    pixels, encoder = _pixels(model, batch), model.encoder
    if model.config.vision.kind != "clip-sam":
        return [("encoder", encoder, lambda: encoder(pixels), 1)]
    return [
        ("clip", encoder.clip, lambda: encoder.tokens(pixels["clip"]), 1),
        ("sam", encoder.sam, lambda: encoder.sam(pixels["image"]), 1),
    ]


def _masks(model: Any, batch: int, present: int) -> list[_Stage]:
    """The mask decoder on the present classes of a batch; nothing where there is none."""
    import torch

    from lasagna.network.vision import EncodedImages

    if not present:
        return []
    encoded = model.encoder(_pixels(model, batch))
    prompts = torch.empty(present * batch, model.config.decoder.width, device="meta")
    owners = torch.zeros(present * batch, dtype=torch.long, device="meta")
    mine = EncodedImages(encoded.tokens, encoded.embedding, encoded.pixel_embedding, encoded.skips)
    return [("masks", model.segmenter, lambda: model.segmenter(mine, prompts, owners), 1)]


def _positions(batch: int, start: int, length: int) -> Any:
    import torch

    return torch.arange(start, start + length, device="meta").expand(batch, -1)


def _photo() -> Any:
    return np.zeros((768, 1024, 3), np.uint8)


def _stage(
    name: str,
    part: "nn.Module",
    way: Callable[[], Any],
    times: int,
    size: int,
    dtype: str,
    rate: float,
    bandwidth: float,
) -> Row:
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    counter = FlopCounterMode(display=False)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
        way()
    read = sum(parameter.numel() for parameter in part.parameters()) * size * times
    operations = counter.get_total_flops() * times
    return _row(name, dtype, operations, read, 1000 * max(operations / rate, read / bandwidth), rate, bandwidth)


def _sum(name: str, rows: list[Row], dtype: str, rate: float, bandwidth: float) -> Row:
    operations = sum(row["tflop"] for row in rows) * 1e12
    read = sum(row["gb_read"] for row in rows) * 1e9
    return _row(name, dtype, operations, read, sum(row["ms_least"] for row in rows), rate, bandwidth)


def _row(name: str, dtype: str, operations: float, read: float, least: float, rate: float, bandwidth: float) -> Row:
    return {
        "stage": name,
        "dtype": dtype,
        "tflop": operations / 1e12,
        "gb_read": read / 1e9,
        "ms_operations": 1000 * operations / rate,
        "ms_weights": 1000 * read / bandwidth,
        "ms_least": least,
    }
