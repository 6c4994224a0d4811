"""What the frozen encoder knows of each cell of a photo: the features that the instant head tells classes apart by.

They come from the pass that is made anyway. nano's convolutional backbone gives, at stride 4: the pixels, the first
stage (stride 2) pooled by mean and by maximum, and every later stage, brought up bilinearly: 3 + 2 * 16 + 24 + 40 + 112
+ 320 = 531 channels. The 7B's pair of encoders gives, at stride 8 of SAM's input (as many cells): the pixels, SAM's
embedding, and CLIP's tokens where CLIP sees the photo, projected to at most 256 channels by a fixed orthonormal matrix
(Johnson and Lindenstrauss 1984), so that a correction stays small.

What always holds: channels are bounded by `BOUND`, so that half precision holds them; a linear map of the dense
features equals the sum of the maps of the parts, each at its own stride, because bilinear upsampling is linear and acts
on every channel alike.
"""

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from lasagna.errors import CheckpointError

BOUND = 100.0
"""Largest absolute value of a feature; larger ones are cut."""
CLIP_CHANNELS = 256
"""Most channels that CLIP's tokens are projected to."""
_KIND = "1"
"""Changes when the features of one encoder change: heads and corrections of before are refused then."""
_PROBED = 4096
"""Values of each tensor that the fingerprint reads."""


@dataclass(frozen=True)
class FeatureMaps:
    """Features of one photo, each part at its own stride.

    Attributes:
        parts: (C, h, w) float32 each; all cover the encoder's input, padding included.
        grid: (height, width) in cells of the finest grid.
        inside: (height, width) in pixels of the input that hold the photo, from the top left corner.
        stride: Pixels of the input per cell.
    """

    parts: tuple[Tensor, ...]
    grid: tuple[int, int]
    inside: tuple[int, int]
    stride: int

    @property
    def channels(self) -> int:
        return sum(len(part) for part in self.parts)

    @property
    def covered(self) -> tuple[int, int]:
        """(rows, columns) of cells that lie on the photo at least in part."""
        return (-(-self.inside[0] // self.stride), -(-self.inside[1] // self.stride))

    def centres(self, size: tuple[int, int]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The rows and the columns of a photo of (height, width) pixels in which the centres of its cells lie."""
        found = []
        for cells, content, pixels in zip(self.covered, self.inside, size, strict=True):
            centre = (np.arange(cells) + 0.5) * self.stride / content * pixels
            found.append(np.minimum(centre.astype(np.int64), pixels - 1))
        return found[0], found[1]

    def halved(self) -> "FeatureMaps":
        """The same on a grid of half the sides: parts that are finer than it are averaged."""
        grid = (-(-self.grid[0] // 2), -(-self.grid[1] // 2))
        parts = tuple(F.avg_pool2d(part, 2, ceil_mode=True) if part.shape[1] > grid[0] else part for part in self.parts)
        return FeatureMaps(parts, grid, self.inside, 2 * self.stride)

    def dense(self) -> Tensor:
        """float32 (cells on the photo, channels), row by row: a transposed view, channels lie together."""
        rows, columns = self.covered
        maps = [_bring_up(part, self.grid)[:, :rows, :columns] for part in self.parts]
        return torch.cat(maps).flatten(1).T

    def project(self, weight: Tensor) -> Tensor:
        """The linear map `weight` (K, channels) of every cell: float32 (K, height, width) of the whole grid.

        Applied at each part's own stride and brought up afterwards: 20 times less work than on the dense features.
        """
        height, width = self.grid
        total = weight.new_zeros((len(weight), height, width))
        first = 0
        for part in self.parts:
            own, cells = weight[:, first : first + len(part)], part.flatten(1)
            first += len(part)
            if part.shape[1:] == self.grid:
                total.flatten(1).addmm_(own, cells)
                continue
            # As products of matrices, bilinear interpolation takes a third of the time of torch's.
            across = _interpolation(part.shape[2], width).to(weight)
            down = _interpolation(part.shape[1], height).to(weight)
            scores = (own @ cells).view(-1, part.shape[2]) @ across.T
            total.baddbmm_(down.expand(len(own), -1, -1), scores.view(len(own), -1, width))
        return total


def feature_maps(encoder: Any, prepared: Any, encoded: Any) -> FeatureMaps:
    """The features of one photo, from what its pass through the encoder gave.

    Args:
        encoder: `PyramidEncoder` or `ClipSamEncoder`.
        prepared: The `PreparedImage`.
        encoded: Its `EncodedImages`, a batch of one.

    Raises:
        CheckpointError: The pass kept no stages (features that were stored on disk without them).
    """
    pixels = prepared.pixels["image"].to(encoded.tokens.device, torch.float32)[None]
    if encoder.vision.kind == "pyramid":
        if encoded.stages is None:
            raise CheckpointError("these encoded images hold no backbone stages; encode the image again")
        stride = 4
        parts = [F.avg_pool2d(pixels, stride), *(stage.float() for stage in encoded.stages)]
    else:
        stride = 8
        parts = [F.avg_pool2d(pixels, stride), encoded.embedding.float(), _clip_part(encoder, prepared, encoded)]
    bounded = tuple(part[0].float().clamp(-BOUND, BOUND).contiguous() for part in parts)
    height, width = pixels.shape[-2:]
    return FeatureMaps(bounded, (height // stride, width // stride), prepared.content_size, stride)


def feature_channels(encoder: Any) -> int:
    """How many channels `feature_maps` gives for an encoder."""
    if encoder.vision.kind == "pyramid":
        stages = encoder.backbone.feature_info
        return 3 + sum(int(stage["num_chs"]) * (2 if stage["reduction"] < 4 else 1) for stage in stages)
    return 3 + encoder.width + min(CLIP_CHANNELS, encoder.token_dim)


def encoder_fingerprint(encoder: Any) -> str:
    """16 hexadecimal digits that tell encoders apart whose features differ.

    From a sample of every tensor of the frozen part, in bfloat16: the same for a checkpoint on a CPU in float32 and on
    a GPU in bfloat16.
    """
    digest = hashlib.sha256(f"{_KIND} {encoder.vision.kind} {encoder.vision.image_size}".encode())
    if encoder.vision.kind == "pyramid":
        tensors = {f"backbone.{key}": value for key, value in encoder.backbone.state_dict().items()}
    else:
        tensors = encoder.state_dict()
    for key in sorted(tensors):
        value = tensors[key].detach().flatten()
        step = max(1, len(value) // _PROBED)
        sample = value[::step].to("cpu", torch.bfloat16).contiguous().view(torch.uint8).numpy()
        digest.update(f"{key} {tuple(tensors[key].shape)} ".encode() + sample.tobytes())
    return digest.hexdigest()[:16]


def _clip_part(encoder: Any, prepared: Any, encoded: Any) -> Tensor:
    """CLIP's tokens on SAM's grid: (1, C, h, w). Beside the centre square, which is all that CLIP sees, its border."""
    tokens = encoded.tokens.float()
    side = round(tokens.shape[1] ** 0.5)
    channels = min(CLIP_CHANNELS, tokens.shape[2])
    projected = tokens @ _projection(tokens.shape[2], channels).to(tokens.device)
    small = projected.transpose(1, 2).unflatten(2, (side, side))
    stride = 8
    rows, columns = (n // stride for n in prepared.input_size)
    places = []
    for cells, content, extent in zip(
        (rows, columns), prepared.content_size, prepared.original_size, strict=True
    ):  # [-1, 1] over the centre square
        pixel = (torch.arange(cells, device=tokens.device) + 0.5) * stride / content * extent
        places.append((pixel - extent / 2) / (min(prepared.original_size) / 2))
    y, x = torch.meshgrid(*places, indexing="ij")
    return F.grid_sample(small, torch.stack([x, y], -1)[None], padding_mode="border", align_corners=False)


@lru_cache(maxsize=2)
def _projection(wide: int, narrow: int) -> Tensor:
    """(wide, narrow) with orthonormal columns, always the same."""
    if wide == narrow:
        return torch.eye(wide)
    random = torch.randn(wide, narrow, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    q, r = torch.linalg.qr(random)
    return (q * r.diagonal().sign()).float()


@lru_cache(maxsize=64)
def _interpolation(cells: int, to: int) -> Tensor:
    """(to, cells): how `_bring_up` mixes the cells of one side."""
    return _bring_up(torch.eye(cells)[None], (to, cells))[0]


def _bring_up(maps: Tensor, grid: tuple[int, int]) -> Tensor:
    """(C, h, w) to (C, *grid), bilinearly."""
    if tuple(maps.shape[1:]) == grid:
        return maps
    return F.interpolate(maps[None], size=grid, mode="bilinear", align_corners=False)[0]
