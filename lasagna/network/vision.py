"""What image encoders take and give: pixels to what the language model and the mask decoder need.

Both encoders (`lasagna.network.pyramid`, `lasagna.network.clip_sam`) turn a uint8 RGB image into the same
`EncodedImages`. What always holds: an image's result does not depend on the other images of its batch, so images are
batched only with images of the same prepared shape.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor


@dataclass(frozen=True)
class PreparedImage:
    """One image as the encoder takes it.

    Attributes:
        pixels: Input tensors by name, each (3, H, W) float32, normalised.
        input_size: (height, width) of the segmenter's input, padding included.
        content_size: (height, width) of the part of that input that holds the image, from its top left corner.
        original_size: (height, width) of the image.
        through_input: Whether masks are brought to `input_size` before they are cut to `content_size` and brought to
            the image's size, as SAM does; else they go there at once.
    """

    pixels: dict[str, Tensor]
    input_size: tuple[int, int]
    content_size: tuple[int, int]
    original_size: tuple[int, int]
    through_input: bool = False


@dataclass
class EncodedImages:
    """What the encoders give for B images of one prepared shape.

    Attributes:
        tokens: (B, T, C) for the projector.
        embedding: (B, width, h, w) image embedding of SAM, at stride 16.
        pixel_embedding: (B, width, 2h, 2w) for coarse masks, or None.
        skips: (B, c8, 2h, 2w) and (B, c4, 4h, 4w) for the decoder's upscaling, or None.
        stages: The backbone's stages at stride 4 or coarser, finest first, as the instant head reads them
            (`lasagna.instant.features`): one that is finer, pooled by mean and by maximum. None in training, where
            there is no such backbone, and of features that were kept on disk.
    """

    tokens: Tensor
    embedding: Tensor
    pixel_embedding: Tensor | None = None
    skips: tuple[Tensor, Tensor] | None = None
    stages: tuple[Tensor, ...] | None = None

    def __getitem__(self, index: int) -> "EncodedImages":
        """The i-th image, as a batch of one."""
        one = slice(index, index + 1)
        return EncodedImages(
            self.tokens[one],
            self.embedding[one],
            None if self.pixel_embedding is None else self.pixel_embedding[one],
            None if self.skips is None else (self.skips[0][one], self.skips[1][one]),
            None if self.stages is None else tuple(stage[one] for stage in self.stages),
        )


def resize(image: NDArray[np.uint8], size: tuple[int, int], resample: Image.Resampling) -> NDArray[np.uint8]:
    """uint8 (H, W, 3) to (height, width) = `size`."""
    if image.shape[:2] == size:
        return image
    return np.asarray(Image.fromarray(image).resize((size[1], size[0]), resample))
