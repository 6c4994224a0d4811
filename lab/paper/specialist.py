"""The specialist that `nano` is measured against: a fixed class list, a softmax, no language.

The backbone and the top-down pyramid are nano's own (`lasagna.network.pyramid.PyramidEncoder`), with a head on its
stride-4 features as in panoptic FPN (arXiv 1901.02446, section 3.1). It is trained on the same photos, views, rarity
weights, loss among classes and schedule as nano, so that what differs is the language model and the mask decoder. What
always
holds: void pixels count in no loss; background is one more class of the softmax where the set has one; a batch is a
function of the seed and the step, so a killed run goes on to the same weights.
"""

import copy
import json
import os
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lasagna.assistant.inputs import ImageLike, as_array
from lasagna.errors import CheckpointError, QueryError
from lasagna.masks.segmentation import ClassAnswer, ClassQuery, Segmentation, class_queries
from lasagna.network.config import DecoderConfig, VisionConfig
from lasagna.network.pyramid import PyramidEncoder
from training.data.records import OTHER
from training.engine.losses import competition_loss
from training.engine.start import load_backbone
from training.engine.weights import fixed_backbone, parameter_groups
from training.examples.augment import random_view
from training.examples.batches import batch_workers, made_ahead
from training.examples.mixture import VIEW_SIZE
from training.examples.photos import Photos
from training.recipe.values import Optimiser


@dataclass(frozen=True)
class SpecialistOptions:
    """How a specialist is trained; what is not given here is nano's (`recipes/nano.yaml`).

    Attributes:
        optimiser: The schedule; `batch_size` photos per step in one forward.
        width: Channels of the pyramid; the head at stride 4 has half of them.
        image_size: Longest side at which it sees a photo.
        view: (height, width) of the random views it is trained on.
        frozen_stages: As in nano's recipe.
        seed: Of everything random.
    """

    optimiser: Optimiser
    width: int = 128
    image_size: int = 512
    view: tuple[int, int] = VIEW_SIZE
    frozen_stages: int = 3
    seed: int = 1


def nano_optimiser(steps: int, batch_size: int = 6) -> Optimiser:
    """nano's optimiser for a run of other length: the same share of it is warm-up, at most nano's 150 steps."""
    return Optimiser(
        steps=steps,
        batch_size=batch_size,
        micro_batch=batch_size,
        learning_rate=6e-4,
        backbone_rate=0.1,
        betas=(0.9, 0.98),
        warmup=min(150, steps // 8),
        weight_decay=0.05,
        clip=1.0,
        ema=0.995,
        save_every=100,
    )


class SpecialistModel(nn.Module):
    """Backbone, pyramid, and one logit per class at stride 4."""

    def __init__(self, classes: int, image_size: int, width: int, backbone: str = "tf_efficientnet_lite0") -> None:
        super().__init__()
        fine = width // 2  # at stride 4, where every channel is dear
        self.encoder = PyramidEncoder(
            VisionConfig(kind="pyramid", image_size=image_size, backbone=backbone),
            DecoderConfig(width=width, skip_channels=(fine, fine)),
        )
        self.head = nn.Sequential(
            nn.Conv2d(fine, fine, 3, padding=1, bias=False), nn.GroupNorm(1, fine), nn.GELU(), nn.Dropout2d(0.1)
        )
        self.classifier = nn.Conv2d(fine, classes, 1)

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) normalised to logits (B, classes, H / 4, W / 4)."""
        skips = self.encoder({"image": pixels}).skips
        assert skips is not None
        stride8, stride4 = skips
        above = F.interpolate(stride8, size=stride4.shape[-2:], mode="bilinear", align_corners=False)
        logits: Tensor = self.classifier(self.head(stride4 + above))
        return logits


class Specialist:
    """A trained specialist; answers class lists of its own names as `Lasagna` does
    (`lasagna.contract.model.ClassListAnswerer`)."""

    def __init__(self, model: SpecialistModel, classes: Sequence[str], background: bool) -> None:
        self.model, self.classes, self._background = model.eval(), tuple(classes), background

    @classmethod
    def load(cls, folder: Path, device: str = "cpu") -> "Specialist":
        """Raises CheckpointError where the folder holds no finished specialist."""
        path = folder / "specialist.pt"
        if not path.exists():
            raise CheckpointError(f"{path} is missing; `lasagna experiment specialist` writes it when it has trained")
        saved = torch.load(path, weights_only=True, map_location="cpu")
        model = SpecialistModel(**saved["shape"])
        model.load_state_dict(saved["weights"])
        return cls(model.to(device), saved["classes"], saved["background"])

    @torch.inference_mode()
    def segment_batch(
        self,
        images: Sequence[ImageLike],
        class_lists: Sequence[Sequence[str | ClassQuery]],
        /,
        *,
        threshold: float | None = None,
        exclusive: bool = False,
        chunk_size: int | None = None,
        guess_unknown: bool = False,
    ) -> list[Segmentation]:
        """Masks of the classes that are asked, out of a softmax over all that it knows.

        A class is present where it wins a pixel; `threshold`, where it is given, asks for that probability instead. Its
        probability is the largest softmax over the pixels. Masks are exclusive anyway, and there are no chunks.

        Raises:
            QueryError: A name is not one of its own: a specialist knows no other.
        """
        answers = []
        for image, asked in zip(images, class_lists, strict=True):
            queries = class_queries(asked)
            unknown = [query.name for query in queries if query.text not in self.classes]
            if unknown:
                raise QueryError(
                    f"asked for {unknown[0]!r}: the specialist knows its own {len(self.classes)} names alone"
                )
            prepared = self.model.encoder.prepare(as_array(image))
            logits = self.model(prepared.pixels["image"][None].to(self.model.classifier.weight.device)).float()
            if self._background:  # its logit is 0, behind the classes
                logits = torch.cat([logits, torch.zeros_like(logits[:, :1])], dim=1)
            most = logits.softmax(1)[0].flatten(1).amax(1).tolist()
            winner = F.interpolate(logits, size=prepared.original_size, mode="bilinear", align_corners=False)
            labels = winner[0].argmax(0).cpu().numpy()
            found = []
            for query in queries:
                index = self.classes.index(query.text)
                mask = labels == index
                present = mask.any() if threshold is None else most[index] >= threshold
                found.append(ClassAnswer(query.name, most[index], mask if present else None))
            answers.append(Segmentation(prepared.original_size, tuple(found)))
        return answers


class _Views:
    """Batches of random views of one data set."""

    def __init__(self, photos: Photos, options: SpecialistOptions) -> None:
        self._photos, self._options = photos, options

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """float32 (B, 3, H, W), and int64 (B, H / 4, W / 4) labels in the middle of each stride-4 cell."""
        rng = random.Random(f"{self._options.seed}-{step}")
        pixels, labels = [], []
        for index in rng.choices(
            range(len(self._photos)), weights=self._photos.weights, k=self._options.optimiser.batch_size
        ):
            image, mask = self._photos.images[index], self._photos.masks[index]
            view, mask = random_view(image, mask, self._options.view, self._options.image_size, rng)
            pixels.append(PyramidEncoder.normalise(view))
            labels.append(torch.from_numpy(mask[2::4, 2::4].astype(np.int64)))
        return torch.stack(pixels), torch.stack(labels)


class _State:
    """What a killed run goes on from: complete, or not there.

    Args:
        parts: What is kept, by name.
    """

    def __init__(self, path: Path, options: SpecialistOptions, photos: Photos, parts: Mapping[str, Any]) -> None:
        self._path, self._parts = path, parts
        self._run = json.dumps({**asdict(options), "classes": photos.classes}, sort_keys=True)

    def load(self, device: str) -> int:
        """The step to go on from; 0 where nothing is kept. Raises CheckpointError for a run with other options."""
        if not self._path.exists():
            return 0
        saved = torch.load(self._path, weights_only=True, map_location=device)
        if saved["run"] != self._run:
            raise CheckpointError(
                f"{self._path.parent} holds a run with other options; give another folder, or delete this one"
            )
        for name, part in self._parts.items():
            part.load_state_dict(saved[name])
        return int(saved["step"])

    def save(self, step: int) -> None:
        kept = {name: part.state_dict() for name, part in self._parts.items()}
        _replace({"run": self._run, **kept, "step": step}, self._path)


def train_specialist(
    photos: Photos, options: SpecialistOptions, output: Path, device: str = "cpu"
) -> Iterator[dict[str, float]]:
    """Trains to `output/specialist.pt`; goes on from `output/state.pt` where that is of the same options.

    Yields:
        A line every `log_every` steps: `step`, `loss` (mean since the last line), `seconds_per_step`.

    Raises:
        CheckpointError: The folder holds a run with other options.
    """
    rates = options.optimiser
    shape: dict[str, Any] = {"classes": len(photos.classes), "image_size": options.image_size, "width": options.width}
    torch.manual_seed(options.seed)
    model = SpecialistModel(**shape)
    network: Any = model  # these two take anything with `encoder.backbone`
    load_backbone(network)
    fixed = fixed_backbone(network, options.frozen_stages)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in fixed)
    model.to(device).train()
    average = copy.deepcopy(model).eval().requires_grad_(False)
    groups = parameter_groups(model, rates)
    peaks = [group["lr"] for group in groups]
    optimiser = torch.optim.AdamW(groups, betas=rates.betas)
    state = _State(output / "state.pt", options, photos, {"model": model, "average": average, "optimiser": optimiser})
    step = state.load(device)
    dtype = getattr(torch, rates.precision)
    trained = [p for p in model.parameters() if p.requires_grad]
    total, began = 0.0, time.monotonic()
    for pixels, labels in made_ahead(_Views(photos, options).batch, range(step, rates.steps), batch_workers(device)):
        torch.manual_seed(options.seed * 1_000_003 + step)  # of the dropout, also after a resume
        for group, peak in zip(optimiser.param_groups, peaks, strict=True):
            group["lr"] = peak * rates.rate(step)
        with torch.autocast(device.split(":")[0], dtype, enabled=dtype != torch.float32):
            logits = model(pixels.to(device))
        loss = torch.stack([competition_loss(*one) for one in zip(logits, labels.to(device), strict=True)]).mean()
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(trained, rates.clip)
        optimiser.step()
        step += 1
        _average(average, model, min(rates.ema, (1 + step) / (10 + step)))
        total += loss.item()
        if step % rates.save_every == 0 or step == rates.steps:
            state.save(step)
        if step % rates.log_every == 0 or step == rates.steps:
            count, now = (step - 1) % rates.log_every + 1, time.monotonic()
            yield {"step": step, "loss": total / count, "seconds_per_step": (now - began) / count}
            total, began = 0.0, now
    trained_model = {
        "shape": shape,
        "classes": list(photos.classes),
        "background": any((mask == OTHER).any() for mask in photos.masks),
        "weights": average.state_dict(),
    }
    _replace(trained_model, output / "specialist.pt")


@torch.no_grad()
def _average(average: nn.Module, model: nn.Module, decay: float) -> None:
    mine, theirs = average.state_dict(), model.state_dict()
    floats = [key for key, value in mine.items() if value.is_floating_point()]
    torch._foreach_lerp_([mine[key] for key in floats], [theirs[key] for key in floats], 1 - decay)


def _replace(values: dict[str, Any], path: Path) -> None:
    """Writes a file that is complete or not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".new")
    torch.save(values, temporary)
    os.replace(temporary, path)
