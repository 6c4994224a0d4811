"""The training objective: text cross-entropy + lambda_bce * BCE + lambda_dice * DICE (the paper, equation 1), and the
terms of the small model.

What always holds: void pixels count in no term; BCE and DICE are taken per mask, then averaged over masks.
"""

from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from torch import Tensor

from training.recipe.values import ViewWeights


@dataclass
class Losses:
    """The terms of the loss of class lists, each without its weight."""

    text: Tensor
    copied: Tensor
    bce: Tensor
    dice: Tensor
    coarse_bce: Tensor
    coarse_dice: Tensor
    coarse_competition: Tensor
    competition: Tensor
    clicks: Tensor

    def total(self, weights: ViewWeights) -> Tensor:
        masks = weights.bce * self.bce + weights.dice * self.dice
        coarse = weights.bce * self.coarse_bce + weights.dice * self.coarse_dice
        return (
            weights.text * (self.text + weights.copied * self.copied)
            + masks
            + weights.coarse * coarse
            + weights.competition * (self.coarse_competition + self.competition)
            + weights.clicks * self.clicks
        )

    def items(self) -> dict[str, float]:
        return {field.name: float(getattr(self, field.name).detach()) for field in fields(self)}


def mask_losses(logits: Tensor, target: Tensor, known: Tensor, smoothing: float = 1.0) -> tuple[Tensor, Tensor]:
    """BCE and DICE, per mask.

    Args:
        logits: (M, h, w).
        target: (M, h, w) bool.
        known: (M, h, w) bool, False where a pixel is void.
        smoothing: s below.

    Returns:
        (M,) and (M,). DICE is 1 - (2 sum(p t) + s) / (sum(p) + sum(t) + s) over known pixels (V-Net, arXiv
        1606.04797, smoothed).
    """
    logits, weight, truth = logits.float(), known.float(), target.float()
    count = weight.sum((1, 2)).clamp(min=1)
    bce = (F.binary_cross_entropy_with_logits(logits, truth, reduction="none") * weight).sum((1, 2)) / count
    p, t = logits.sigmoid() * weight, truth * weight
    dice = 1 - (2 * (p * t).sum((1, 2)) + smoothing) / (p.sum((1, 2)) + t.sum((1, 2)) + smoothing)
    return bce, dice


def competition_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Softmax cross-entropy among the classes of one question and "none of them", whose logit is 0.

    A pixel weighs by the inverse square root of how many pixels of the photo have its class: IoU counts classes, not
    pixels, and the plain mean leaves thin things (a pole, 1 % of a street photo) to the class behind them.

    Args:
        logits: (N, h, w).
        labels: (h, w) int64: class index, -1 none of them, -2 void.

    Returns:
        The weighted mean over known pixels; 0 where there is none.
    """
    flat = torch.cat([torch.zeros_like(logits[:1]), logits]).float().flatten(1).T
    target = labels.flatten() + 1
    target = torch.where(target < 0, -100, target)
    known = target[target >= 0]
    if not len(known):
        return flat.sum() * 0
    weight = known.bincount(minlength=flat.shape[1]).clamp(min=1).rsqrt()
    return F.cross_entropy(flat, target, weight=weight)
