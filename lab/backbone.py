"""nano's backbone by itself, for what is measured against it."""

from typing import Any

from lasagna.network.config import DecoderConfig, VisionConfig
from lasagna.network.pyramid import PyramidEncoder
from training.engine.start import load_backbone


def make_backbone(image_size: int = 512, name: str = "tf_efficientnet_lite0") -> PyramidEncoder:
    """nano's encoder with the ImageNet weights, of which only the backbone is used."""
    encoder = PyramidEncoder(
        VisionConfig(kind="pyramid", image_size=image_size, backbone=name), DecoderConfig(width=16)
    ).eval()
    holder: Any = type("Holder", (), {"encoder": encoder})
    load_backbone(holder)
    return encoder
