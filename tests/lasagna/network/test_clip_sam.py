"""Pixels of the paper's pair of encoders, and SAM's attention with the fused kernel."""

import numpy as np
import pytest
import torch
from PIL import Image

from lasagna.network.clip_sam import ClipSamEncoder
from lasagna.network.config import DecoderConfig, VisionConfig


@pytest.fixture(scope="module")
def encoder() -> ClipSamEncoder:
    torch.manual_seed(0)
    vision = VisionConfig(
        kind="clip-sam",
        image_size=256,
        clip={"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2},
        sam={"embed_dim": 32, "depth": 2, "num_heads": 2, "global_attn_indexes": [1]},
    )
    encoder = ClipSamEncoder(vision, DecoderConfig(width=16)).eval()
    for name, parameter in encoder.sam.named_parameters():
        if "rel_pos" in name or "pos_embed" in name:
            torch.nn.init.normal_(parameter)
    return encoder


def test_pixels_are_those_of_transformers_and_segment_anything(encoder: ClipSamEncoder) -> None:
    import transformers
    from segment_anything.utils.transforms import ResizeLongestSide

    image = np.random.default_rng(0).integers(0, 256, (60, 170, 3), dtype=np.uint8)
    prepared = encoder.prepare(image)
    # Before it had a backend in its name, it was the one that resizes with Pillow.
    processor = getattr(transformers, "CLIPImageProcessorPil", None) or transformers.CLIPImageProcessor
    clip = processor(size={"shortest_edge": 224}, crop_size=224)(Image.fromarray(image))
    np.testing.assert_allclose(prepared.pixels["clip"].numpy(), clip["pixel_values"][0], atol=2e-6)
    resized = ResizeLongestSide(256).apply_image(image)
    assert prepared.content_size == resized.shape[:2] == (90, 256)
    mean, std = torch.tensor([123.675, 116.28, 103.53]), torch.tensor([58.395, 57.12, 57.375])
    wanted = ((torch.from_numpy(resized) - mean) / std).permute(2, 0, 1)
    assert torch.equal(prepared.pixels["image"][:, :90], wanted)
    assert not prepared.pixels["image"][:, 90:].any()


@pytest.mark.parametrize("size", [(1, 1), (3, 1200), (1200, 3), (1, 60000), (60000, 1)])
def test_thin_images(encoder: ClipSamEncoder, size: tuple[int, int]) -> None:
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    prepared = encoder.prepare(image)
    assert prepared.pixels["clip"].shape == (3, 224, 224)
    assert prepared.pixels["image"].shape == (3, 256, 256)


def test_a_strips_middle_is_what_clip_sees_of_it(encoder: ClipSamEncoder) -> None:
    image = np.zeros((2, 1000, 3), np.uint8)
    image[:, 499:501] = 200
    image[:, :100] = image[:, 900:] = 90
    longer = np.pad(image, ((0, 0), (100, 100), (0, 0)))
    assert torch.equal(encoder.prepare(image).pixels["clip"], encoder.prepare(longer).pixels["clip"])
    assert encoder.prepare(image).pixels["clip"].max() > 1


def test_the_fused_attention_is_segment_anythings(encoder: ClipSamEncoder) -> None:
    from segment_anything.modeling.image_encoder import Attention

    for block in encoder.sam.blocks:
        side = (len(block.attn.rel_pos_h) + 1) // 2
        plain = Attention(32, 2, use_rel_pos=True, input_size=(side, side))
        plain.load_state_dict(block.attn.state_dict())
        x = torch.randn(3, side, side, 32)
        with torch.inference_mode():
            torch.testing.assert_close(block.attn(x), plain(x), atol=1e-5, rtol=1e-4)


def test_layers_above_the_one_that_is_read_are_not_there(encoder: ClipSamEncoder) -> None:
    from transformers import CLIPVisionConfig, CLIPVisionModel

    torch.manual_seed(1)
    whole = CLIPVisionModel(CLIPVisionConfig(**encoder.vision.clip)).eval()
    tower = getattr(whole, "vision_model", whole)
    encoder.clip.load_state_dict(tower.state_dict(), strict=False)
    pixels = torch.randn(2, 3, 224, 224)
    with torch.inference_mode():
        wanted = whole(pixels, output_hidden_states=True).hidden_states[-2][:, 1:]
        torch.testing.assert_close(encoder.tokens(pixels), wanted, atol=1e-5, rtol=1e-4)
