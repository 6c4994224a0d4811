"""What the backbone's own features say of the names that a checkpoint was taught, beside what its language model says.

The language model names and draws through a neck of 128 channels, and a few thousand photos do not fill it. The
features before it (`lasagna.instant.features`) know more. A linear discriminant on them, of the photos that the
checkpoint was trained on, says for every taught name c, with its score s_c and that of "none of the annotated classes":

    of a pixel x     mask logit of c at x  +=  mask_share * (s_c(x) - s_none(x))
    of a photo       margin of c           +=  constant + weights . features of log p(c | x) over all pixels x

where p is the softmax over all taught names and "none", and the features are those of the instant head's presence
(`lasagna.instant.presence`). Both are linear in what the language model says, so the decoding stays exact: the second
is an offset of its own for each photo and name.

What always holds: what is said of a name depends on the photo and on that name, not on what else is asked; a name that
was not taught gets nothing; only the photos of training made the weights.

As a file, `classifier/taught.safetensors` of a checkpoint: weight (K, D) and bias (K,) float32, the rest as JSON under
the key "classifier". `lasagna calibrate RECIPE --classifier` makes it (`training.instant.classifier`).
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save_file
from torch import Tensor

from lasagna.checkpoint.folder import CLASSIFIER, checkpoint_layers
from lasagna.errors import CheckpointError
from lasagna.instant.correction import read_notes
from lasagna.instant.features import FeatureMaps
from lasagna.instant.presence import HEAD_FEATURES, Figures, map_features

_FORMAT = 1
_MOST = 20.0
"""Beyond this a pixel's evidence says no more: a discriminant is sure of everything."""


@dataclass(frozen=True, eq=False)
class Classifier:
    """A linear classifier of taught names.

    Attributes:
        rows: What the model reads -> its row; names that mean the same share one.
        weight, bias: float32 (K, D) and (K,); the last row is "none".
        mask_share: What is added to a mask's logit for each unit of evidence.
        presence: A constant, and the weights of the features of a photo, in units of the language model's margin.
    """

    rows: dict[str, int]
    weight: Tensor
    bias: Tensor
    mask_share: float
    presence: tuple[float, ...]

    def to(self, device: torch.device) -> "Classifier":
        """The same on a device."""
        return replace(self, weight=self.weight.to(device), bias=self.bias.to(device))

    def photo_features(self, maps: FeatureMaps, names: Sequence[str]) -> Figures:
        """float64 (C, 4): what the photo's pixels say of each name; zeros of one that was not taught."""
        coarse = maps.halved()
        down, across = coarse.covered
        scores = (coarse.project(self.weight) + self.bias[:, None, None])[:, :down, :across].flatten(1)
        known = [i for i, name in enumerate(names) if name in self.rows]
        result: Figures = np.zeros((len(names), HEAD_FEATURES))
        if known:
            chosen = torch.tensor([self.rows[names[i]] for i in known], device=scores.device)
            result[known] = map_features(scores, chosen)
        return result

    def margins(self, maps: FeatureMaps, names: Sequence[str]) -> Tensor:
        """What is added to the language model's margins: float32 (C,), on the CPU."""
        features = self.photo_features(maps, names)
        added = self.presence[0] + features @ np.array(self.presence[1:])
        taught = torch.tensor([name in self.rows for name in names])
        return torch.from_numpy(added).float() * taught

    def evidence(self, maps: FeatureMaps, names: Sequence[str]) -> Tensor:
        """s_c - s_none of each pixel: float32 (C, height, width) of the features' grid; zeros of untaught names."""
        result = maps.parts[0].new_zeros((len(names), *maps.grid))
        known = [i for i, name in enumerate(names) if name in self.rows]
        if known:
            rows = torch.tensor([self.rows[names[i]] for i in known], device=self.weight.device)
            weight, bias = self.weight[rows] - self.weight[-1], self.bias[rows] - self.bias[-1]
            result[known] = (maps.project(weight) + bias[:, None, None]).clamp(-_MOST, _MOST)
        return result

    def save(self, folder: Path) -> None:
        """Writes it into a checkpoint's folder, as part of its content."""
        notes = {
            "format": _FORMAT,
            "rows": self.rows,
            "mask_share": self.mask_share,
            "presence": list(self.presence),
        }
        tensors = {"weight": self.weight.cpu().contiguous(), "bias": self.bias.cpu().contiguous()}
        path = folder / CLASSIFIER
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)  # a copy may be read-only
        save_file(tensors, path, {"classifier": json.dumps(notes, ensure_ascii=False)})


def find_classifier(folder: Path) -> Path | None:
    """The file of a checkpoint, or of the nearest one that it is laid over; None where none has one."""
    files = (layer / CLASSIFIER for layer in reversed(checkpoint_layers(folder)))
    return next((file for file in files if file.exists()), None)


def load_classifier(folder: Path, channels: int) -> Classifier | None:
    """That of a checkpoint (`find_classifier`), or None.

    Args:
        channels: Of the features of its encoder.

    Raises:
        CheckpointError: The file is damaged, or of another encoder.
    """
    path = find_classifier(folder)
    if path is None:
        return None
    try:
        data = path.read_bytes()
        tensors, notes = load(data), read_notes(data, "classifier")
        if notes.get("format") != _FORMAT:
            raise ValueError(f"its format is {notes.get('format')}, this version reads {_FORMAT}")
        weight, bias = tensors["weight"], tensors["bias"]
        rows = {str(name): int(row) for name, row in notes["rows"].items()}
        if weight.shape != (len(bias), channels) or not all(0 <= row < len(bias) - 1 for row in rows.values()):
            raise ValueError(f"its weights are {tuple(weight.shape)}, the encoder has {channels} channels")
        presence = tuple(float(value) for value in notes["presence"])
        if len(presence) != 1 + HEAD_FEATURES:
            raise ValueError(f"{len(presence)} constants of presence")
        return Classifier(rows, weight, bias, float(notes["mask_share"]), presence)
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise CheckpointError(
            f"{path}: not a classifier of this checkpoint ({error}); remove the file, or make it again with "
            "`lasagna calibrate RECIPE --classifier`"
        ) from error
