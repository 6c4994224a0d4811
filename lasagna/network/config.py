"""The shape of a model, as stored in a checkpoint's `config.json`.

One configuration describes `nano` and the 7B sizes; nothing about a model's size is written anywhere else.
"""

import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from lasagna.errors import CheckpointError


@dataclass(frozen=True)
class VisionConfig:
    """The encoders of the image.

    Attributes:
        kind: "clip-sam": a CLIP tower for the language model and a SAM image encoder for the masks, each with its own
            input. "pyramid": one convolutional backbone that serves both.
        image_size: Longest side of the segmenter's input in pixels. "clip-sam" pads to a square, "pyramid" rounds the
            sides to multiples of 32.
        token_grid: Side of the square grid of image tokens that the language model sees ("pyramid" only).
        backbone: timm name of the backbone ("pyramid" only).
        clip: `CLIPVisionConfig` values ("clip-sam" only).
        clip_layer: Which of CLIP's layers the language model sees: -1 the last, -2 the one before ("clip-sam" only).
        sam: embed_dim, depth, num_heads, global_attn_indexes of SAM's image encoder ("clip-sam" only).
    """

    kind: str
    image_size: int
    token_grid: int = 10
    backbone: str = "tf_efficientnet_lite0"
    clip: dict[str, Any] = field(default_factory=dict)
    clip_layer: int = -2
    sam: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class DecoderConfig:
    """SAM's prompt encoder and mask decoder.

    Attributes:
        width: Channels of the image embedding and of a prompt (256 in SAM).
        heads, mlp_dim: Of the two-way transformer (8 and 2048 in SAM).
        mask_channels: Hidden channels of the mask prompt (16 in SAM).
        coarse_mask: Whether the dot product of a prompt with per-pixel embeddings gives a coarse mask that enters the
            decoder as its mask prompt and is added to what it returns.
        skip_channels: Channels of the stride-8 and stride-4 features that are added while the decoder upscales, or
            None (SAM).
    """

    width: int = 256
    heads: int = 8
    mlp_dim: int = 2048
    mask_channels: int = 16
    coarse_mask: bool = False
    skip_channels: tuple[int, int] | None = None


@dataclass(frozen=True)
class ModelConfig:
    """The whole model.

    Attributes:
        text: `LlamaConfig` values of the language model.
        vision: The image encoders.
        decoder: The mask decoder.
        projector: "linear" (LLaVA v1) or "mlp2x_gelu" (LLaVA 1.5), from vision tokens to the language model's width.
    """

    text: dict[str, Any]
    vision: VisionConfig
    decoder: DecoderConfig
    projector: str = "linear"

    def to_dict(self) -> dict[str, Any]:
        return {"model_type": "lasagna", **asdict(self)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "ModelConfig":
        """Raises CheckpointError for a key that is unknown or missing."""
        values = {key: value for key, value in values.items() if key != "model_type"}
        try:
            skip = values["decoder"].get("skip_channels")
            return cls(
                **{
                    **values,
                    "vision": VisionConfig(**values["vision"]),
                    "decoder": DecoderConfig(**{**values["decoder"], "skip_channels": tuple(skip) if skip else None}),
                }
            )
        except (TypeError, KeyError) as error:
            known = ", ".join(f.name for f in fields(cls))
            raise CheckpointError(
                f"config.json does not describe a LaSagnA model: {error}; it needs {known}"
            ) from error

    @classmethod
    def load(cls, path: Path) -> "ModelConfig":
        try:
            return cls.from_dict(json.loads(path.read_text()))
        except ValueError as error:
            raise CheckpointError(f"{path}: not readable as JSON ({error})") from error
