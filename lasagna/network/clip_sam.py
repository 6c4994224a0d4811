"""The paper's pair of image encoders: CLIP's vision transformer for the language model, SAM's for the masks.

Pixels are prepared to the last bit as the released code prepares them: CLIP sees the centre square of the image (what
lies beside it does not reach the language model), SAM all of it, padded at the bottom and on the right.
"""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from lasagna.errors import CheckpointError
from lasagna.network.compat import ensure_torchvision
from lasagna.network.config import DecoderConfig, VisionConfig
from lasagna.network.vision import EncodedImages, PreparedImage, resize

ensure_torchvision()  # before segment_anything

from segment_anything.modeling import ImageEncoderViT  # noqa: E402
from segment_anything.modeling.image_encoder import Attention, get_rel_pos  # noqa: E402
from transformers import CLIPVisionConfig, CLIPVisionModel  # noqa: E402

# Channel means and standard deviations: CLIP's of pixels in [0, 1], SAM's of pixels in [0, 255].
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
SAM_MEAN, SAM_STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)

_LONGEST = 200
"""How many times its short side an image may be long before CLIP is given its middle alone."""
_BYTES = np.arange(256)[None]


def _table(values: NDArray[np.float32], mean: tuple[float, ...], std: tuple[float, ...]) -> NDArray[np.float32]:
    """Normalised value of each byte: float32 (3, 256)."""
    return (values - np.array(mean, np.float32)[:, None]) / np.array(std, np.float32)[:, None]


# The released code divides by 255 in double precision, and rounds to single before it normalises.
_CLIP_TABLE = _table((_BYTES * (1 / 255)).astype(np.float32), CLIP_MEAN, CLIP_STD)
_SAM_TABLE = _table(_BYTES.astype(np.float32), SAM_MEAN, SAM_STD)


def _normalise(image: NDArray[np.uint8], table: NDArray[np.float32]) -> Tensor:
    """uint8 (H, W, 3) to float32 (3, H, W)."""
    return torch.from_numpy(np.stack([table[channel][image[..., channel]] for channel in range(3)]))


class _Attention(Attention):
    """SAM's attention with the library's fused kernel; the decomposed relative position bias enters as its mask."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) to the same shape."""
        batch, height, width, channels = x.shape
        shape = (batch, height * width, 3, self.num_heads, channels // self.num_heads)
        q, k, v = self.qkv(x).reshape(shape).permute(2, 0, 3, 1, 4).unbind(0)
        grid = q.unflatten(2, (height, width))
        rows = torch.einsum("bnhwc,hkc->bnhwk", grid, get_rel_pos(height, height, self.rel_pos_h))
        columns = torch.einsum("bnhwc,wkc->bnhwk", grid, get_rel_pos(width, width, self.rel_pos_w))
        bias = (rows[..., :, None] + columns[..., None, :]).reshape(*q.shape[:3], height * width)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        return self.proj(out.transpose(1, 2).reshape(batch, height, width, channels))


class ClipSamEncoder(nn.Module):
    """CLIP's patch tokens of one layer, and SAM's image embedding."""

    def __init__(self, vision: VisionConfig, decoder: DecoderConfig) -> None:
        super().__init__()
        if decoder.skip_channels or decoder.coarse_mask:
            raise CheckpointError("config.json: skip_channels and coarse_mask need the 'pyramid' vision encoder")
        self.vision = vision
        full = CLIPVisionConfig(**vision.clip)
        # Layers above the one that is read are never run, and not part of the checkpoint.
        layers = int(full.num_hidden_layers) + vision.clip_layer + 1
        self.clip_config: Any = CLIPVisionConfig(**{**vision.clip, "num_hidden_layers": layers})
        self.clip_config._attn_implementation = "sdpa"
        tower = CLIPVisionModel(self.clip_config)
        self.clip = getattr(tower, "vision_model", tower)  # transformers 5.24 dropped the level
        self.clip.post_layernorm = nn.Identity()
        self.token_dim, self.width = int(self.clip_config.hidden_size), decoder.width
        self.sam = ImageEncoderViT(
            img_size=vision.image_size,
            patch_size=16,
            out_chans=decoder.width,
            use_rel_pos=True,
            window_size=14,
            qkv_bias=True,
            mlp_ratio=4,
            norm_layer=lambda width: nn.LayerNorm(width, eps=1e-6),
            **{k: tuple(v) if isinstance(v, list) else v for k, v in vision.sam.items()},
        )
        for block in self.sam.blocks:
            old = block.attn
            size = ((len(old.rel_pos_h) + 1) // 2, (len(old.rel_pos_w) + 1) // 2)
            block.attn = _Attention(old.proj.in_features, old.num_heads, use_rel_pos=True, input_size=size)

    @property
    def num_tokens(self) -> int:
        return int((self.clip_config.image_size // self.clip_config.patch_size) ** 2)

    def prepare(self, image: NDArray[np.uint8]) -> PreparedImage:
        """uint8 (H, W, 3): CLIP's short side resized and centre-cropped; SAM's longest side resized, padded bottom and
        right with zeros after normalisation."""
        height, width = image.shape[:2]
        clip_pixels = _normalise(self._centre(image), _CLIP_TABLE)
        size = self.vision.image_size
        scale = size / max(height, width)
        content = (max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5)))
        sam_pixels = _normalise(resize(image, content, Image.Resampling.BILINEAR), _SAM_TABLE)
        sam_pixels = F.pad(sam_pixels, (0, size - content[1], 0, size - content[0]))
        return PreparedImage(
            {"clip": clip_pixels, "image": sam_pixels}, (size, size), content, (height, width), through_input=True
        )

    def _centre(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """What CLIP sees: uint8 (side, side, 3)."""
        side = int(self.clip_config.image_size)
        short, long = sorted(image.shape[:2])
        if long > _LONGEST * short:
            # The whole of a thin strip would take gigabytes at CLIP's height; far from the centre nothing is seen.
            axis = int(np.argmax(image.shape[:2]))
            image = image.take(range((long - _LONGEST * short) // 2, (long + _LONGEST * short) // 2), axis)
        height, width = image.shape[:2]
        size = (int(side * height / short), int(side * width / short))
        resized = resize(image, size, Image.Resampling.BICUBIC)
        top, left = (size[0] - side) // 2, (size[1] - side) // 2
        return resized[top : top + side, left : left + side]

    def forward(self, pixels: dict[str, Tensor]) -> EncodedImages:
        return EncodedImages(tokens=self.tokens(pixels["clip"]), embedding=self.sam(pixels["image"]))

    def tokens(self, pixels: Tensor) -> Tensor:
        """(B, 3, side, side) to (B, T, C): patch tokens of the layer that is read, the class token dropped."""
        return self.clip(pixels).last_hidden_state[:, 1:]
