"""From mask logits at the encoder's input to masks of the image.

What always holds: masks have the size of the image that was given; padding is in none.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from lasagna.masks.segmentation import Mask
from lasagna.network.vision import PreparedImage


def draw_masks(small: Tensor, prepared: PreparedImage, exclusive: bool) -> tuple[list[Mask], list[float]]:
    """Masks of one image from their logits (M, h, w) at the input's size, and their stability."""
    logits = masks_to_image(small, prepared)
    masks = logits > 0
    if exclusive:
        masks &= torch.zeros_like(masks).scatter_(0, logits.argmax(0, keepdim=True), True)
    return [mask.numpy() for mask in masks.cpu()], mask_stability(small).tolist()


def masks_to_image(logits: Tensor, prepared: PreparedImage) -> Tensor:
    """(M, h, w) logits of the input, padding included, to float32 (M, H, W) of the original image."""
    resized = logits.float()[:, None]
    if prepared.through_input:
        resized = F.interpolate(resized, size=prepared.input_size, mode="bilinear", align_corners=False)
        resized = resized[..., : prepared.content_size[0], : prepared.content_size[1]]
    return F.interpolate(resized, size=prepared.original_size, mode="bilinear", align_corners=False)[:, 0]


def mask_stability(logits: Tensor) -> Tensor:
    """SAM's stability score (segment-anything, `calculate_stability_score`) of (M, h, w) logits.

    Returns float32 (M,), in [0, 1]: the intersection over union of the mask at a threshold of +1 with that at -1, which
    holds it. An empty mask, which no threshold between would change, has 1.
    """
    inner, outer = ((logits > threshold).flatten(1).sum(1).float() for threshold in (1, -1))
    return torch.where(outer > 0, inner / outer.clamp(min=1), torch.ones_like(inner)).cpu()
