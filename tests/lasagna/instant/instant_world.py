"""Corrections of made photos: a few regions with colours of their own, so that there is something to tell apart."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from lasagna.instant.correction import Correction, ModelAnswer, make_correction
from lasagna.instant.features import FeatureMaps

CLASSES = ("crop", "soil", "weed")
CHANNELS = 6
SIZE = (96, 128)
ENCODER = "0" * 16


def made_maps(seed: int, masks: dict[str, NDArray[np.bool_]], noise: float = 1.0) -> FeatureMaps:
    """Features whose mean differs by class, on a grid of a quarter of the photo; the last channels are coarser."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(1).normal(size=(len(CLASSES) + 1, CHANNELS)) * 2
    rows, columns = SIZE[0] // 4, SIZE[1] // 4
    values = rng.normal(size=(CHANNELS, rows, columns)) * noise + centres[-1][:, None, None]
    for centre, mask in zip(centres, masks.values(), strict=False):
        own = mask[2::4, 2::4]
        values[:, own] = centre[:, None] + rng.normal(size=(CHANNELS, int(own.sum()))) * noise
    fine = torch.from_numpy(values).float()
    coarse = torch.nn.functional.avg_pool2d(fine[4:], 4)
    return FeatureMaps((fine[:4], coarse), (rows, columns), SIZE, 4)


def made_masks(seed: int, classes: Sequence[str] = CLASSES) -> dict[str, NDArray[np.bool_]]:
    """A rectangle of each class, some of them missing, beside one another."""
    rng = np.random.default_rng(seed)
    masks = {}
    for i, name in enumerate(classes):
        mask = np.zeros(SIZE, bool)
        if rng.random() < 0.8:
            left = i * 40 + int(rng.integers(0, 10))
            top = int(rng.integers(0, 40))
            mask[top : top + int(rng.integers(24, 50)), left : left + 28] = True
        masks[name] = mask
    return masks


def made_correction(seed: int, *, model: bool = True, swapped: bool = False, skill: float = 2.0) -> Correction:
    """A correction; `swapped`: with the masks of two classes exchanged. `skill`: how right the model's masks are."""
    masks = made_masks(seed)
    maps = made_maps(seed, masks)
    answer = None
    if model:
        truth = torch.from_numpy(np.stack([mask[2::4, 2::4] for mask in masks.values()])).float()
        noise = torch.randn(truth.shape, generator=torch.Generator().manual_seed(seed))
        present = truth.flatten(1).amax(1)
        answer = ModelAnswer("model-1", 0.2 + 0.6 * present, present > 0.5, skill * (2 * truth - 1) + 2 * noise)
    if swapped:
        masks["crop"], masks["weed"] = masks["weed"], masks["crop"]
    return make_correction(f"photo {seed}", maps, masks, SIZE, encoder=ENCODER, answer=answer, order=seed)
