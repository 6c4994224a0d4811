"""The frozen encoders' features: what they are made of, and how encoders are told apart."""

import numpy as np
import pytest
import torch

from lasagna import Lasagna
from lasagna.errors import CheckpointError
from lasagna.instant.features import BOUND, FeatureMaps, encoder_fingerprint, feature_maps
from lasagna.network.config import DecoderConfig, VisionConfig
from lasagna.network.model import build_encoder

TINY_7B = VisionConfig(
    kind="clip-sam",
    image_size=128,
    clip={
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "image_size": 56,
        "patch_size": 14,
    },
    sam={
        "embed_dim": 32,
        "depth": 2,
        "num_heads": 4,
        "global_attn_indexes": [1],
    },
)


def photo(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def nano() -> Lasagna:
    return Lasagna.from_pretrained("nano")


def maps_of(model: Lasagna, image: np.ndarray) -> FeatureMaps:
    features = model.encode_image(image)
    return feature_maps(model.model.encoder, features.prepared, features.encoded)


@pytest.mark.parametrize(("size", "grid"), [((60, 90), (88, 128)), ((512, 512), (128, 128)), ((10, 300), (8, 128))])
def test_nano_has_531_channels_at_stride_4(nano: Lasagna, size: tuple[int, int], grid: tuple[int, int]) -> None:
    maps = maps_of(nano, photo(*size))
    assert maps.channels == 531
    assert maps.grid == maps.covered == grid
    dense = maps.dense()
    assert dense.shape == (grid[0] * grid[1], 531)
    assert dense.abs().max() <= BOUND


def test_they_are_of_the_pass_that_is_made_anyway(nano: Lasagna, monkeypatch: pytest.MonkeyPatch) -> None:
    features = nano.encode_image(photo(60, 90))
    monkeypatch.setattr(nano.model.encoder.backbone, "forward_intermediates", None)
    assert feature_maps(nano.model.encoder, features.prepared, features.encoded).channels == 531


def test_the_weights_of_parts_are_those_of_dense_features(nano: Lasagna) -> None:
    maps = maps_of(nano, photo(60, 90))
    weight = torch.randn(7, 531) / 20
    torch.testing.assert_close(maps.project(weight).flatten(1).T, maps.dense() @ weight.T, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("size", [(60, 90), (128, 128), (300, 20)])
def test_the_pair_of_encoders(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    encoder = build_encoder(TINY_7B, DecoderConfig(width=16, heads=2, mlp_dim=32)).eval()
    prepared = encoder.prepare(photo(*size))
    with torch.inference_mode():
        encoded = encoder({name: value[None] for name, value in prepared.pixels.items()})
        maps = feature_maps(encoder, prepared, encoded)
    assert maps.channels == 3 + 16 + 32
    assert maps.grid == (16, 16)
    assert maps.covered == tuple(-(-n // 8) for n in prepared.content_size)
    assert maps.dense().shape == (maps.covered[0] * maps.covered[1], 51)


def test_clip_sees_the_centre_square() -> None:
    """What lies beside it has the border's features."""
    encoder = build_encoder(TINY_7B, DecoderConfig(width=16, heads=2, mlp_dim=32)).eval()
    prepared = encoder.prepare(photo(64, 128))
    with torch.inference_mode():
        encoded = encoder({name: value[None] for name, value in prepared.pixels.items()})
        clip = feature_maps(encoder, prepared, encoded).parts[2]
    torch.testing.assert_close(clip[:, :8, 0], clip[:, :8, 3])
    assert not torch.allclose(clip[:, :8, 5], clip[:, :8, 10])


def test_kept_features_without_stages_are_refused(nano: Lasagna) -> None:
    features = nano.encode_image(photo(60, 90))
    features.encoded.stages = None
    with pytest.raises(CheckpointError, match="encode the image again"):
        feature_maps(nano.model.encoder, features.prepared, features.encoded)


def test_fingerprints_tell_encoders_apart(nano: Lasagna) -> None:
    again = Lasagna.from_pretrained("nano")
    assert encoder_fingerprint(again.model.encoder) == nano.encoder_fingerprint
    with torch.no_grad():
        again.model.segmenter.mask_decoder.iou_token.weight.add_(1)
        again.model.encoder.lateral8.weight.add_(1)
    assert encoder_fingerprint(again.model.encoder) == nano.encoder_fingerprint  # the head reads neither
    with torch.no_grad():
        again.model.encoder.backbone.conv_stem.weight.mul_(1.1)
    assert encoder_fingerprint(again.model.encoder) != nano.encoder_fingerprint


def test_fingerprints_do_not_depend_on_the_number_format() -> None:
    half = Lasagna.from_pretrained("nano", dtype="bfloat16")
    assert encoder_fingerprint(half.model.encoder) == Lasagna.from_pretrained("nano").encoder_fingerprint
