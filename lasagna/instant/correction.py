"""One corrected photo, reduced to what the head needs of it: at most 2 MB, from which everything can be fitted again.

It holds the statistics of *all* decided cells, and a sample of them with the model's answer there, on which the photo
is left out in turn. What always holds: a correction belongs to one encoder and one version of the model, which it
names; classes that it does not list are undecided, never absent; the same photo, masks and model give the same bytes.

As a file (safetensors, so that it can run no code):

    sums (K, D) float32, counts (K,) float64, moment (D (D + 1) / 2,) float32     lasagna.instant.statistics
    samples (n, D) float16, truth (n,) int16, weight (n,) float32                 sampled cells
    probability (C,) float32, said (C,) bool, mask_logits (n, C) float16          the model's answer; C asked classes
    present (C,) bool                                                             the annotation's
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from lasagna.errors import DataError
from lasagna.instant.features import FeatureMaps
from lasagna.instant.statistics import NONE, UNDECIDED, Statistics, collect
from lasagna.masks.segmentation import Mask

LARGEST = 2_000_000
"""Most bytes of a correction; samples are fewer where channels or classes are many."""
_SAMPLES = 1000
_FEWEST = 100
_FORMAT = 1


@dataclass(frozen=True, eq=False)
class ModelAnswer:
    """What the model says of a photo, before any threshold of masks.

    Attributes:
        version: Of the model, without a head; "" where there is none.
        probability: float32 (C,) that each asked class is present.
        said: bool (C,): its decision.
        mask_logits: (C, height, width) float32 on the grid of the features, or (n, C) float16 at sampled cells.
    """

    version: str
    probability: Tensor
    said: Tensor
    mask_logits: Tensor


@dataclass(frozen=True, eq=False)
class Correction:
    """A corrected photo.

    Attributes:
        id: What it is replaced and removed by: a task, a file name.
        order: Place in time; of two corrections the newer has the larger.
        encoder: Fingerprint of the encoder that made the features.
        classes: Asked classes, about which it decides: present or absent.
        statistics: Of all decided cells.
        samples: float16 (n, D) features of sampled cells.
        truth: int64 (n,): index into `classes`, or their number for "none".
        weight: float32 (n,): how many cells each stands for.
        present: bool (C,): classes that the annotation has.
        answer: The model's, at the sampled cells; None: the head is to work alone.
        is_evidence: Whether that answer says how good the model is: not where the model was trained on this photo.
        source: The caller's name for what it was made of (an annotation's id and time, a hash), so that it need not be
            made again.
    """

    id: str
    order: int
    encoder: str
    classes: tuple[str, ...]
    statistics: Statistics
    samples: Tensor
    truth: Tensor
    weight: Tensor
    present: Tensor
    answer: ModelAnswer | None = None
    is_evidence: bool = True
    source: str = ""

    @property
    def version(self) -> str:
        """Of the model that answered; "" where none did."""
        return "" if self.answer is None else self.answer.version

    @property
    def summary(self) -> "Summary":
        counts = dict(zip(self.statistics.names, self.statistics.counts.tolist(), strict=True))
        return Summary(self.id, self.order, self.encoder, self.version, self.digest, self.source, counts)

    def numbered(self, order: int) -> "Correction":
        return replace(self, order=order)

    def to_bytes(self) -> bytes:
        """The file's content."""
        tensors = {
            "sums": self.statistics.sums.float(),
            "counts": self.statistics.counts,
            "moment": self.statistics.moment,
            "samples": self.samples,
            "truth": self.truth.to(torch.int16),
            "weight": self.weight,
            "present": self.present,
        }
        notes = {
            "format": _FORMAT,
            "id": self.id,
            "order": self.order,
            "encoder": self.encoder,
            "classes": self.classes,
            "names": self.statistics.names,
            "is_evidence": self.is_evidence,
            "source": self.source,
            "version": None,
        }
        if self.answer is not None:
            notes["version"] = self.answer.version
            tensors |= {
                "probability": self.answer.probability.float(),
                "said": self.answer.said,
                "mask_logits": self.answer.mask_logits.half(),
            }
        return save({key: value.contiguous() for key, value in tensors.items()}, {"correction": json.dumps(notes)})

    @classmethod
    def from_bytes(cls, data: bytes, where: str = "a correction") -> "Correction":
        """Raises DataError where the bytes are not a whole correction of this format."""
        try:
            tensors, notes = load(data), read_notes(data, "correction")
            if notes.get("format") != _FORMAT:
                raise ValueError(f"its format is {notes.get('format')}, this version reads {_FORMAT}")
            statistics = Statistics(
                tuple(notes["names"]), tensors["counts"], tensors["sums"].double(), tensors["moment"]
            )
            answer = None
            if notes["version"] is not None:
                answer = ModelAnswer(notes["version"], tensors["probability"], tensors["said"], tensors["mask_logits"])
            return cls(
                notes["id"],
                int(notes["order"]),
                notes["encoder"],
                tuple(notes["classes"]),
                statistics,
                tensors["samples"],
                tensors["truth"].long(),
                tensors["weight"],
                tensors["present"],
                answer,
                bool(notes["is_evidence"]),
                str(notes.get("source", "")),
            )
        except (SafetensorError, ValueError, KeyError, TypeError, RuntimeError) as error:
            raise DataError(f"{where} cannot be read ({error}); remove it and learn from the photo again") from error

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the content, whatever its place in time: what a head is named by."""
        return hashlib.sha256(self.numbered(0).to_bytes()).hexdigest()


@dataclass(frozen=True)
class Summary:
    """What is kept in memory of every correction.

    Attributes:
        id, order, encoder, version, digest, source: As of `Correction`.
        counts: Cells by class, "none" among them.
    """

    id: str
    order: int
    encoder: str
    version: str
    digest: str
    source: str
    counts: Mapping[str, float]


def read_notes(data: bytes, key: str) -> dict:
    """The JSON object that a safetensors file carries under `key`. Raises ValueError, KeyError."""
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    notes = json.loads(header["__metadata__"][key])
    if not isinstance(notes, dict):
        raise ValueError(f"{key} is not a JSON object")
    return notes


def read_correction(path: Path) -> Correction:
    """Raises DataError where the file is damaged, OSError where it is not there."""
    return Correction.from_bytes(path.read_bytes(), str(path))


def make_correction(
    id: str,
    maps: FeatureMaps,
    masks: Mapping[str, Mask | None],
    size: tuple[int, int],
    *,
    encoder: str,
    undecided: Mask | None = None,
    answer: ModelAnswer | None = None,
    is_evidence: bool = True,
    order: int = 0,
    source: str = "",
) -> Correction:
    """Reduces a corrected photo.

    Args:
        id: See `Correction`.
        maps: The photo's features.
        masks: Every class about which the annotation decides, with its mask, bool (height, width); None or an empty
            mask: certainly absent. Where masks overlap the smaller one counts: a thing lies on what it lies on.
        size: (height, width) of the photo.
        undecided: bool (height, width): pixels that leave no trace. Other pixels without a class are "none".
        answer: The model's, of the classes in the order of `masks`, with mask logits (C, height, width) on the grid.
        encoder, is_evidence, order, source: See `Correction`.

    Raises:
        DataError: No class, or a mask of another size.
    """
    classes = tuple(masks)
    _check(classes, masks, size, undecided)
    labels = torch.from_numpy(_grid_labels(list(masks.values()), size, undecided, maps))
    if not all(bool(torch.isfinite(part).all()) for part in maps.parts):
        raise DataError("the features of the photo are not finite numbers, so that nothing can be learnt from it")
    features = maps.dense()
    statistics = collect(features, labels.to(features.device), [*classes, NONE])
    # The head's size, not the photo's: what is left of the budget goes to samples.
    fixed = 4 * statistics.moment.numel() + 4 * statistics.sums.numel() + 4096 + 64 * len(classes)
    most = max(_FEWEST, min(_SAMPLES, (LARGEST - fixed) // (2 * (maps.channels + len(classes)) + 6)))
    chosen, weight = _sample(labels, len(classes) + 1, most)
    if answer is not None:
        rows, columns = maps.covered
        at = answer.mask_logits[:, :rows, :columns].flatten(1).cpu()[:, chosen].T
        answer = ModelAnswer(
            answer.version, answer.probability.float().cpu(), answer.said.cpu(), at.clamp(-30, 30).half()
        )
    present = torch.tensor([mask is not None and bool(mask.any()) for mask in masks.values()])
    return Correction(
        id,
        order,
        encoder,
        classes,
        # As a file has it, so that a head from memory and one from files are the same.
        replace(statistics, sums=statistics.sums.float().double(), moment=statistics.moment.float()),
        features[chosen.to(features.device)].cpu().half(),
        labels[chosen],
        weight,
        present,
        answer,
        is_evidence,
        source,
    )


def _check(
    classes: Sequence[str], masks: Mapping[str, Mask | None], size: tuple[int, int], undecided: Mask | None
) -> None:
    if not classes or any(not name.strip() for name in classes):
        raise DataError("a correction needs the classes that it decides about, none of them blank")
    for name, mask in [*masks.items(), ("what is undecided", undecided)]:
        if mask is not None and (mask.shape != size or mask.dtype != np.bool_):
            raise DataError(
                f"the mask of {name!r} is {mask.dtype} {mask.shape}, the photo needs bool {size}; "
                "make masks at the photo's size, after its EXIF orientation"
            )


def _grid_labels(
    masks: Sequence[Mask | None], size: tuple[int, int], undecided: Mask | None, maps: FeatureMaps
) -> NDArray[np.int64]:
    """(cells on the photo,): index of the class at each cell's centre, `len(masks)` for none, or `UNDECIDED`."""
    at = np.ix_(*maps.centres(size))
    labels = np.full(maps.covered, len(masks), np.int64)
    areas = {i: int(mask.sum()) for i, mask in enumerate(masks) if mask is not None}
    for i in sorted(areas, key=lambda i: (-areas[i], i)):
        labels[masks[i][at]] = i  # type: ignore[index]
    if undecided is not None:
        labels[undecided[at]] = UNDECIDED
    return labels.ravel()


def _sample(labels: Tensor, classes: int, most: int) -> tuple[Tensor, Tensor]:
    """Cells spread evenly over each class, more than its share for a small class (by the square root of its cells).

    Returns:
        int64 (n,) places, in order, and float32 (n,) cells that each stands for.
    """
    counts = torch.bincount(labels[labels >= 0], minlength=classes)
    roots = counts.double().sqrt()
    wanted = (most * roots / roots.sum().clamp_min(1e-9)).floor().long().clamp(min=1).minimum(counts)
    places, weights = [], []
    for index in range(classes):
        count, number = int(counts[index]), int(wanted[index])
        if not number:
            continue
        own = (labels == index).nonzero()[:, 0]
        steps = ((torch.arange(number, dtype=torch.float64) + 0.5) * count / number).long()
        places.append(own[steps])
        weights.append(torch.full((number,), count / number, dtype=torch.float32))
    if not places:
        return torch.zeros(0, dtype=torch.long), torch.zeros(0)
    place, weight = torch.cat(places), torch.cat(weights)
    order = place.argsort()
    return place[order], weight[order]
