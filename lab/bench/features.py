"""`lasagna bench features`: a training step with and without kept features of the frozen image encoders.

What always holds: both ways take the same image files through the same loss and optimiser in one process, in turn;
features are read from disk in every step; the losses are compared in the same run.
"""

import io
import random
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click
import numpy as np
from PIL import Image

from lab.bench.command import Dtypes, Numbers, Row, report, sample_classes, sample_images, time_interleaved
from lab.bench.measure import peak_memory
from lab.bench.random_weights import random_config
from lasagna.checkpoint.folder import find_checkpoint
from lasagna.masks.image import load_image
from lasagna.network.config import ModelConfig
from lasagna.prompt.dialect import PromptFormat
from lasagna.prompt.sequences import Prompt
from training.data.records import UNKNOWN
from training.examples.sequences import ClassList

if TYPE_CHECKING:
    from torch import Tensor

    from lasagna.network.model import LasagnaModel
    from lasagna.network.vision import EncodedImages
    from lasagna.prompt.sequences import Prompt
    from training.engine.features import FrozenEncoder

_TOLERANCE = {"float32": 1e-3, "bfloat16": 3e-2, "float16": 3e-3}
"""Largest relative difference of the losses that is rounding."""


def seven_b(depth: int = 1) -> ModelConfig:
    """The paper's shapes, all three networks with 1 / depth of their layers, so that the parts of a step keep their
    proportion."""
    whole = random_config("lasagna-7b")
    blocks = whole.vision.sam["depth"] // depth
    # Of ViT-H's blocks, every eighth sees the whole image, the others windows of it.
    sam = {**whole.vision.sam, "depth": blocks, "global_attn_indexes": list(range(min(8, blocks) - 1, blocks, 8))}
    clip = {**whole.vision.clip, "num_hidden_layers": whole.vision.clip["num_hidden_layers"] // depth}
    text = {**whole.text, "num_hidden_layers": whole.text["num_hidden_layers"] // depth}
    return replace(whole, text=text, vision=replace(whole.vision, clip=clip, sam=sam))


def step_loss(
    model: "LasagnaModel",
    prompt: "Prompt",
    encoded: "EncodedImages",
    names: Sequence[str],
    labels: "Tensor",
    rng: random.Random,
) -> "Tensor":
    """The paper's loss (equation 1) of one question of all names about each photo.

    Args:
        encoded: B photos.
        labels: (B, h, w) int64 at the decoder's resolution (stride 4): index into `names`, -1 none of them, -2 void.
            A name is present where it has a pixel.
    """
    from training.engine.losses import mask_losses
    from training.engine.view_losses import answer_questions
    from training.examples.mixture import ViewBatch

    lists = [
        ClassList(tuple(names), tuple(bool((one == i).any()) for i in range(len(names))), tuple(range(len(names))))
        for one in labels
    ]
    answers = answer_questions(
        model, prompt, encoded.tokens, ViewBatch(labels[:0], labels, lists), rng, drop_tokens=0.0
    )
    there = answers.present.nonzero()[:, 0]
    owners, wanted = answers.owners[there], answers.names[there]
    masks, _ = model.segmenter(encoded, model.prompt_projection(answers.states[there]), owners)
    truth = labels.to(model.device)[owners]
    bce, dice = mask_losses(masks, truth == wanted[:, None, None], truth != UNKNOWN)
    loss: Tensor = answers.text + answers.copied + bce.mean() + 0.5 * dice.mean()
    return loss


class _Training:
    """A model in training, and one batch of image files and questions."""

    def __init__(self, config: ModelConfig, photos: int, dtype: str, device: str) -> None:
        import torch

        from lasagna.network.model import LasagnaModel, cast_weights
        from lasagna.prompt.tokenizer import load_tokenizer

        torch.manual_seed(0)
        with torch.device(device):
            self.model = cast_weights(LasagnaModel(config), getattr(torch, dtype))
        self._choose_trained()
        self.optimiser = torch.optim.AdamW([p for p in self.model.parameters() if p.requires_grad], lr=1e-5)
        # nano's words: few tokens per name, as in Llama's own vocabulary.
        tokenizer = load_tokenizer(find_checkpoint("nano"))
        self.prompt = Prompt(PromptFormat(), tokenizer, self.model.encoder.num_tokens)
        self.side = config.vision.image_size // 4
        self.files = []
        for image in sample_images(photos):
            file = io.BytesIO()
            Image.fromarray(image).save(file, "PNG")
            self.files.append(file.getvalue())

    def _choose_trained(self) -> None:
        """LoRA (rank 8) on the language model's q and v, the mask decoder, and the projection to it."""
        from peft import LoraConfig, inject_adapter_in_model

        self.model.requires_grad_(False)
        adapters = LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"])
        inject_adapter_in_model(adapters, self.model.language_model)
        self.model.segmenter.mask_decoder.requires_grad_(True)
        self.model.prompt_projection.requires_grad_(True)

    def ask(self, classes: int) -> None:
        """Makes the next steps ask this many names, of which every fifth has a stripe of each photo."""
        import torch

        self.names = sample_classes(classes)
        there = -(-classes // 5)
        stripes = torch.arange(self.side) * there // self.side * 5
        self.labels = stripes.expand(len(self.files), self.side, self.side).contiguous()

    def direct(self) -> float:
        """A step in which the encoders run; returns its loss."""
        import torch

        encoder = self.model.encoder
        prepared = [encoder.prepare(np.asarray(load_image(file))).pixels for file in self.files]
        weight = next(encoder.parameters())
        pixels = {name: torch.stack([one[name] for one in prepared]).to(weight) for name in prepared[0]}
        with torch.no_grad():
            encoded = encoder(pixels)
        return self._finish(encoded)

    def kept(self, features: "FrozenEncoder") -> float:
        """A step that reads the features from disk; returns its loss."""
        return self._finish(features.encode([features.read(file) for file in self.files]))

    def _finish(self, encoded: "EncodedImages") -> float:
        self.optimiser.zero_grad()
        loss = step_loss(self.model, self.prompt, encoded, self.names, self.labels, random.Random(0))
        loss.backward()
        self.optimiser.step()
        return loss.item()


@click.command(
    epilog="""\b
Examples:
  lasagna bench features --depth 8 --classes 1,20
  lasagna bench features --device cuda --dtype bfloat16 --batch 2
  lasagna bench features --config checkpoint/config.json --json
"""
)
@click.option(
    "--config",
    "path",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    help="A model's config.json; default: the paper's 7B shapes.",
)
@click.option(
    "--depth",
    type=click.Choice(["1", "2", "4", "8"]),
    default="1",
    show_default=True,
    help="Of the 7B shapes: all three networks have 1/DEPTH of their layers, for machines that do not hold them.",
)
@click.option("--classes", "counts", type=Numbers(), default="20", show_default=True, help="Names in the question.")
@click.option("--batch", type=click.IntRange(1), default=1, show_default=True, help="Photos per step.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option("--dtype", "dtypes", type=Dtypes(), default="float32", show_default=True)
@click.option("--repeats", type=click.IntRange(1), default=3, show_default=True, help="Median of so many.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of the table.")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="Write the JSON to a file too.")
def features(
    path: Path | None,
    depth: str,
    counts: tuple[int, ...],
    batch: int,
    device: str,
    dtypes: tuple[str, ...],
    repeats: int,
    as_json: bool,
    out: Path | None,
) -> None:
    """Time training steps that run the frozen image encoders ("direct"), or read their outputs from disk ("kept").

    A step is everything from the image files to the updated weights. Random weights; LoRA, the mask decoder and its
    projection train. tflop counts what the step computes, so that it shows how much could be saved at best. Exit code 1
    when the two losses differ by more than rounding.
    """
    import torch

    if path is not None and depth != "1":
        raise click.UsageError("--depth is for the 7B shapes; a --config says itself how deep its networks are")
    config = seven_b(int(depth)) if path is None else ModelConfig.load(path)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    rows: list[Row] = []
    for dtype in dtypes:
        training = _Training(config, batch, dtype, device)
        for count in counts:
            training.ask(count)
            rows.append(_row(training, count, dtype, device, repeats))
        del training
    shapes = str(path) if path else f"7B shapes, 1/{depth} of the layers" if depth != "1" else "7B shapes"
    setting: Row = {"config": shapes, "photos": batch, "repeats": repeats}
    report("features", setting, rows, device=device, as_json=as_json, out=out)
    if not all(row["same_loss"] for row in rows):
        click.secho("error: the losses differ by more than rounding", fg="red", err=True)
        sys.exit(1)


def _row(training: _Training, count: int, dtype: str, device: str, repeats: int) -> Row:
    from torch.utils.flop_counter import FlopCounterMode

    from training.engine.feature_store import FeatureStore
    from training.engine.features import FrozenEncoder

    with tempfile.TemporaryDirectory() as folder:
        store = FeatureStore(Path(folder))
        frozen = FrozenEncoder(training.model, store)
        frozen.encode([frozen.read(file) for file in training.files])
        ways = {"direct": training.direct, "kept": lambda: training.kept(frozen)}
        losses, tflop, memory = {}, {}, {}
        for name in ("kept", "direct"):  # the smaller first, whose peak would else be the larger's remains
            with FlopCounterMode(display=False) as counter:
                losses[name], memory[name] = peak_memory(ways[name], device)
            tflop[name] = counter.get_total_flops() / 1e12
        seconds = time_interleaved(ways, repeats, device)
        difference = abs(losses["kept"] / losses["direct"] - 1)
        return {
            "classes": count,
            "dtype": dtype,
            "seconds_direct": seconds["direct"],
            "seconds_kept": seconds["kept"],
            "times_faster": seconds["direct"] / seconds["kept"],
            "tflop_direct": tflop["direct"],
            "tflop_kept": tflop["kept"],
            "gib_direct": memory["direct"],
            "gib_kept": memory["kept"],
            "mb_per_photo": store.size() / len(training.files) / 1e6,
            "loss_difference": difference,
            "same_loss": difference < _TOLERANCE[dtype],
        }
