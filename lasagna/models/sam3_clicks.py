"""Clicks and boxes for SAM 3: the tracker of its video model, asked about one photo.

The released folder holds the video model: a detector, which answers names, and a tracker, which answers an annotator's
points and boxes. Both read the same backbone, each through a neck of its own. What always holds: the backbone's weights
are in memory once; masks and scores are those of transformers' `Sam3TrackerModel` and its post-processing.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lasagna.masks.segmentation import Mask


class Clicks:
    """A loaded tracker.

    Args:
        network: A `Sam3TrackerModel` in eval mode.
        backbone: The detector's, which takes the place of its own.
    """

    def __init__(self, network: Any, backbone: Any) -> None:
        network.vision_encoder.backbone = backbone
        self.network = network

    def embed(self, pixels: Tensor) -> list[Tensor]:
        """What `answer` needs of a photo: (1, 3, side, side) pixels, as the detector gets them."""
        found: list[Tensor] = self.network.get_image_embeddings(pixels)
        return found

    def answer(
        self,
        embeddings: list[Tensor],
        side: tuple[int, int],
        size: tuple[int, int],
        points: Sequence[tuple[float, float, bool]],
        box: tuple[float, float, float, float] | None,
    ) -> tuple[Mask, float]:
        """The mask of points and a box, and the predicted IoU in [0, 1].

        A single point may mean a part or the whole: the best of three masks is taken. More say what is meant: one mask.

        Args:
            side: (height, width) of the pixels that were embedded.
            size: (height, width) of the image.
            points, box: In pixels of the image.
        """
        scale = torch.tensor([side[1] / size[1], side[0] / size[0]])
        asked: dict[str, Tensor] = {}
        like = embeddings[-1]
        if points:
            places = torch.tensor([[x, y] for x, y, _ in points]) * scale
            asked["input_points"] = places[None, None].to(like.device, like.dtype)
            asked["input_labels"] = torch.tensor([[[int(inside) for *_, inside in points]]], device=like.device)
        if box is not None:
            x0, x1 = sorted((box[0], box[2]))
            y0, y1 = sorted((box[1], box[3]))
            corners = (torch.tensor([[x0, y0], [x1, y1]]) * scale).reshape(1, 1, 4)
            asked["input_boxes"] = corners.to(like.device, like.dtype)
        several = box is None and len(points) == 1
        found = self.network(image_embeddings=embeddings, multimask_output=several, **asked)
        scores = found.iou_scores[0, 0].float()
        best = int(scores.argmax())
        logits = found.pred_masks[0, :, best].float()
        large = F.interpolate(logits[None], size=size, mode="bilinear", align_corners=False)[0, 0]
        return (large > 0).cpu().numpy(), float(scores[best].clamp(0, 1))
