"""`lasagna bench adapters`: several versions of one base in memory, answered version by version or in one batch.

What is timed is the language model's first forward over a whole query, which is where an adapter acts: the image's
tokens, the question and the answer with every class absent. What always holds: all ways have the same adapters and
take the same rows, and what they decide is compared with the merged weights in the same run.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from lab.bench.command import ModelOptions, Row, common_options, report, sample_classes, sample_images, time_interleaved
from lab.bench.random_weights import random_config
from lasagna.network.compat import ensure_torchvision

if TYPE_CHECKING:
    from torch import Tensor

    from lasagna.assistant.lasagna import Lasagna
    from lasagna.network.adapter import Adapter
    from lasagna.network.llama import Llama

_MODULES = ("q_proj", "v_proj")
_RANK, _ALPHA = 8, 16.0
"""The values of training/recipes/finetune-lora.yaml."""
_ROUNDING = 0.02
"""Share of the largest margin that bfloat16 may move a margin by."""


@dataclass(frozen=True)
class _Rows:
    """The rows of all versions, version after version.

    Attributes:
        embeddings: (R, L, width).
        positions: (R, L).
        slots: Where a hidden state decides about a class.
        each: Rows of one version.
    """

    embeddings: "Tensor"
    positions: "Tensor"
    slots: list[int]
    each: int

    def of(self, version: int) -> slice:
        return slice(version * self.each, (version + 1) * self.each)


@click.command(
    epilog="""\b
Examples:
  lasagna bench adapters --random-weights lasagna-7b-tiny
  lasagna bench adapters --random-weights lasagna-7b --device cuda --dtype bfloat16 --versions 8 --classes 150
"""
)
@click.option("--versions", type=click.IntRange(1), default=4, show_default=True, help="Adapters on one base.")
@click.option("--images", type=click.IntRange(1), default=1, show_default=True, help="Photos of each version.")
@click.option("--classes", type=click.IntRange(1), default=20, show_default=True, help="Length of the list.")
@common_options
def adapters(versions: int, images: int, classes: int, chosen: ModelOptions) -> None:
    """Ask several fine-tuned versions of one base: adapters merged into weights of their own, or kept apart.

    \b
    no adapter             the base alone with all rows in one batch: what no way can beat
    merged, one by one     ours: each version has its own projections, and shares all else (`lasagna.checkpoint.light`)
    apart, one by one      peft: the factors beside the base's projections
    apart, in one batch    peft's adapter_names: each row with its own version
    mib_version            what a version takes beside the base; mib_version_7b: at the 7B's shapes in bfloat16
    largest_change         of the margins between present and absent, against the merged ones
    changed_decisions      of those whose margin is over 2 % of the largest, below which it is rounding; exit code 1
                           if there is one

    Token rows that a recipe trains are the same 0.5 GiB in every way, and peft cannot mix them in a batch.
    """
    rows: list[Row] = []
    tokens = 0
    for dtype in chosen.dtypes:
        model = chosen.load(dtype, classes)
        asked = _asked(model, sample_classes(classes), versions, images)
        tokens = asked.embeddings.shape[1]
        rows += _measure(model, dtype, versions, asked, chosen.repeats)
    setting: Row = {
        "model": chosen.random_weights or chosen.model_name,
        "versions": versions,
        "images": images,
        "classes": classes,
        "tokens": tokens,
        "repeats": chosen.repeats,
    }
    report("adapters", setting, rows, device=chosen.device, as_json=chosen.as_json, out=chosen.out)
    if any(row["changed_decisions"] for row in rows):
        click.secho("error: adapters that are kept apart decide otherwise than merged ones", fg="red", err=True)
        sys.exit(1)


def _asked(model: "Lasagna", names: list[str], versions: int, images: int) -> _Rows:
    import torch

    network, prompt = model.model, model.prompt
    query = prompt.query([prompt.encode_name(model.format.read_text(name)) for name in names])
    answer = [prompt.neg if token == -1 else token for token in query.answer[: query.slots[-1]]]
    tokens = torch.cat([model.encode_image(photo).encoded.tokens for photo in sample_images(images)])
    with torch.inference_mode():
        prefix = network.prefix(prompt.before_image, tokens)
        asked = network.embed([*query.question, *answer]).expand(len(tokens), -1, -1)
        embeddings = torch.cat([prefix, asked], 1).repeat(versions, 1, 1)
    positions = torch.arange(embeddings.shape[1], device=network.device).expand(len(embeddings), -1)
    start = prefix.shape[1] + len(query.question) - 1
    return _Rows(embeddings, positions, [start + slot for slot in query.slots], images)


def _measure(model: "Lasagna", dtype: str, versions: int, asked: _Rows, repeats: int) -> list[Row]:
    import torch
    from torch import Tensor

    base = model.model.language_model
    made = [_random_adapter(base, seed) for seed in range(versions)]
    merged = [_merged(base, adapter) for adapter in made]
    apart = _kept_apart(base, made)
    owners = [str(version) for version in range(versions) for _ in range(asked.each)]

    def alone(version: int) -> tuple[Tensor, Tensor]:
        return asked.embeddings[asked.of(version)], asked.positions[asked.of(version)]

    def mixed(version: int) -> Tensor:
        return apart(*alone(version), adapter_names=owners[asked.of(version)])

    ways = {
        "no adapter": lambda: base(asked.embeddings, asked.positions),
        "merged, one by one": lambda: torch.cat([one(*alone(version)) for version, one in enumerate(merged)]),
        "apart, one by one": lambda: torch.cat([mixed(version) for version in range(versions)]),
        "apart, in one batch": lambda: apart(asked.embeddings, asked.positions, adapter_names=owners),
    }
    with torch.inference_mode():
        seconds = time_interleaved(ways, repeats, str(model.model.device))
        seg, neg = model.prompt.seg, model.prompt.neg
        margins = {name: model.model.margins(way()[:, asked.slots], seg, neg) for name, way in ways.items()}
    sizes = _sizes(made[0], base, asked.embeddings.element_size())
    rows: list[Row] = []
    for name in ways:
        own, own_7b = (0.0, 0.0) if name == "no adapter" else sizes["merged" if "merged" in name else "apart"]
        change, changed = _compare(margins["merged, one by one"], margins[name])
        rows.append(
            {
                "way": name,
                "dtype": dtype,
                "ms": 1e3 * seconds[name],
                "ms_per_image": 1e3 * seconds[name] / len(asked.embeddings),
                "mib_version": own,
                "mib_version_7b": own_7b,
                "largest_change": None if name == "no adapter" else change,
                "changed_decisions": None if name == "no adapter" else changed,
            }
        )
    return rows


def _kept_apart(base: Any, made: Sequence[Any]) -> Any:
    """The language model with every adapter beside it, as peft keeps them."""
    from lasagna.checkpoint.light import shared_copy

    ensure_torchvision()
    from peft import LoraConfig, get_peft_model, set_peft_model_state_dict

    config = LoraConfig(r=_RANK, lora_alpha=_ALPHA, target_modules=list(_MODULES))  # type: ignore[arg-type]
    apart = get_peft_model(shared_copy(base), config, adapter_name="0")
    for number, adapter in enumerate(made):
        if number:
            apart.add_adapter(str(number), config)
        factors = {
            f"base_model.model.{key.removesuffix('.weight')}.lora_{letter}.weight": factor
            for key, pair in adapter.factors.items()
            for letter, factor in zip("AB", pair, strict=True)
        }
        set_peft_model_state_dict(apart, factors, adapter_name=str(number))
    apart.to(base.embed_tokens.weight.dtype).eval()
    return apart


def _sizes(adapter: Any, base: Any, bytes_each: int) -> dict[str, tuple[float, float]]:
    """MiB of a version whose adapter is merged, and of one that is kept apart: of this model, and of a 7B model in half
    precision."""
    whole = sum(base.get_parameter(key).numel() for key in adapter.factors)
    small = sum(factor.numel() for pair in adapter.factors.values() for factor in pair)
    text = random_config("lasagna-7b").text
    matrices, width = len(_MODULES) * int(text["num_hidden_layers"]), int(text["hidden_size"])
    return {
        "merged": (whole * bytes_each / 2**20, matrices * width**2 * 2 / 2**20),
        "apart": (small * bytes_each / 2**20, matrices * 2 * width * _RANK * 2 / 2**20),
    }


def _compare(merged: "Tensor", found: "Tensor") -> tuple[float, int]:
    """The largest change of a margin, and how many decisions changed that are further from zero than rounding."""
    difference = (found - merged).abs().max().item()
    sure = merged.abs() > _ROUNDING * merged.abs().max()
    return difference, int((sure & ((found >= 0) != (merged >= 0))).sum())


def _random_adapter(base: "Llama", seed: int) -> "Adapter":
    """An adapter that changes each weight by about a tenth of its size."""
    import torch

    from lasagna.network.adapter import Adapter

    generator = torch.Generator().manual_seed(seed)
    factors = {}
    for key, weight in base.named_parameters():
        if key.split(".")[-2] in _MODULES:
            outputs, inputs = weight.shape
            a = torch.randn((_RANK, inputs), generator=generator)
            b = torch.randn((outputs, _RANK), generator=generator)
            b *= 0.1 * float(weight.detach().float().std()) / (_ALPHA / _RANK) / _RANK**0.5
            factors[key] = (a.to(weight.device), b.to(weight.device))
    return Adapter(_ALPHA, factors)


def _merged(base: "Llama", adapter: "Adapter") -> "Llama":
    from lasagna.checkpoint.light import replace_weight, shared_copy

    model = shared_copy(base)
    for key in adapter.factors:
        replace_weight(model, key, adapter.merge(key, base.get_parameter(key).detach()))
    return model
