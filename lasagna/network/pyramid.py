"""The small image encoder: one backbone for the language model and for the masks."""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from lasagna.errors import CheckpointError
from lasagna.network.compat import create_timm_model
from lasagna.network.config import DecoderConfig, VisionConfig
from lasagna.network.vision import EncodedImages, PreparedImage, resize

PYRAMID_STATISTICS = [127.5] * 3, [127.5] * 3
"""Channel means and standard deviations on the 0-255 scale, of timm's EfficientNet-Lite."""


def _normalise(image: NDArray[np.uint8], mean: list[float], std: list[float]) -> Tensor:
    pixels = torch.tensor(np.ascontiguousarray(image)).permute(2, 0, 1).float()
    return (pixels - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)


class _ConvNorm(nn.Sequential):
    """3x3 depthwise + 1x1 convolution, each followed by group normalisation (one group: no batch statistics)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(
            nn.Conv2d(inputs, inputs, 3, padding=1, groups=inputs, bias=False),
            nn.GroupNorm(1, inputs),
            nn.Conv2d(inputs, outputs, 1, bias=False),
            nn.GroupNorm(1, outputs),
            nn.GELU(),
        )


class PyramidEncoder(nn.Module):
    """One convolutional backbone for both uses: image tokens from its last features, SAM's embedding from a top-down
    pyramid (Feature Pyramid Networks, arXiv 1612.03144) over strides 32, 16, 8 and 4."""

    def __init__(self, vision: VisionConfig, decoder: DecoderConfig) -> None:
        super().__init__()
        self.backbone: Any
        try:
            self.backbone = create_timm_model(vision.backbone, num_classes=0, global_pool="")
        except RuntimeError as error:
            raise CheckpointError(f"unknown backbone {vision.backbone!r} ({error}); it is a name of timm") from error
        c4, c8, c16, _ = [int(stage["num_chs"]) for stage in self.backbone.feature_info][-4:]
        self.token_dim = int(self.backbone.num_features)
        self.vision = vision
        # What computes in the place of torch, where somebody asked for it (`lasagna.network.exported`).
        self.engine: Any = None
        width = decoder.width
        self.lateral32 = nn.Conv2d(self.token_dim, width, 1)
        self.lateral16 = nn.Conv2d(c16, width, 1)
        self.lateral8 = nn.Conv2d(c8, width, 1)
        self.context = nn.Linear(self.token_dim, width)
        self.embedding_head = _ConvNorm(width, width)
        self.stride8_head = _ConvNorm(width, width)
        self.embedding_out = nn.Conv2d(width, width, 1)
        self.pixel_out = nn.Conv2d(width, width, 1) if decoder.coarse_mask else None
        skips = decoder.skip_channels
        self.skip8 = nn.Conv2d(width, skips[0], 1) if skips else None
        self.skip4 = nn.Conv2d(c4, skips[1], 1) if skips else None

    @property
    def num_tokens(self) -> int:
        return self.vision.token_grid**2

    def prepare(self, image: NDArray[np.uint8]) -> PreparedImage:
        """uint8 (H, W, 3): longest side to `image_size`, both sides rounded to multiples of 32, no padding."""
        height, width = image.shape[:2]
        scale = self.vision.image_size / max(height, width)
        size = (max(32, round(height * scale / 32) * 32), max(32, round(width * scale / 32) * 32))
        pixels = self.normalise(resize(image, size, Image.Resampling.BILINEAR))
        return PreparedImage({"image": pixels}, size, size, (height, width))

    @staticmethod
    def normalise(image: NDArray[np.uint8]) -> Tensor:
        """uint8 (H, W, 3) to float32 (3, H, W) in [-1, 1], as the backbone was trained."""
        return _normalise(image, *PYRAMID_STATISTICS)

    def train(self, mode: bool = True) -> "PyramidEncoder":
        """The backbone keeps its ImageNet batch statistics whatever the mode: batches here are small."""
        super().train(mode)
        self.backbone.eval()
        return self

    def forward(self, pixels: dict[str, Tensor]) -> EncodedImages:
        image = pixels["image"]
        if self.engine is not None and self.engine.runs(image):
            found: EncodedImages = self.engine(image)
            return found
        image = image.contiguous(memory_format=torch.channels_last)
        last, features = self.backbone.forward_intermediates(image)
        f4, f8, f16 = features[1:4]
        grid = self.vision.token_grid
        tokens = F.adaptive_avg_pool2d(last, grid).flatten(2).transpose(1, 2)
        x32 = self.lateral32(last) + self.context(last.mean((2, 3)))[:, :, None, None]
        x16 = self.lateral16(f16) + F.interpolate(x32, size=f16.shape[-2:], mode="bilinear", align_corners=False)
        x16 = self.embedding_head(x16)
        x8 = self.lateral8(f8) + F.interpolate(x16, size=f8.shape[-2:], mode="bilinear", align_corners=False)
        x8 = self.stride8_head(x8)
        return EncodedImages(
            tokens=tokens,
            embedding=self.embedding_out(x16),
            pixel_embedding=None if self.pixel_out is None else self.pixel_out(x8),
            skips=None if self.skip8 is None or self.skip4 is None else (self.skip8(x8), self.skip4(f4)),
            stages=None if self.training else self._pooled(features),
        )

    def _pooled(self, stages: list[Tensor]) -> tuple[Tensor, ...]:
        """The backbone's stages, finest first; one that is finer than stride 4 as its means, then its maxima, there."""
        found: list[Tensor] = []
        for stage, facts in zip(stages, self.backbone.feature_info, strict=True):
            if (stride := int(facts["reduction"])) < 4:
                found += [F.avg_pool2d(stage, 4 // stride), F.max_pool2d(stage, 4 // stride)]
            else:
                found.append(stage)
        return tuple(found)
