"""Folders of other makers' models with random weights, written with transformers' own classes.

Their time does not depend on what the weights have learnt, and the code that reads a folder does not know the
difference. "tiny" is for tests. "real" has the shapes that transformers' configurations have by default, which are
those of the released weights (SAM 3, CLIPSeg, EoMT-L at 640). "small" of SAM 3 has the real text encoder, detector and
mask head behind a small tower on 336 pixels; of EoMT a network of ViT-S on 320. Nothing is fetched.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from lasagna.network.compat import ensure_torchvision

NAMES = ("sky", "road", "person", "car", "tree-merged", "sofa", "dining table", "airplane")
"""Of a closed list, where none is given."""
SIZES = ("tiny", "small", "real")
_TINY_TEXT = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}


def write_model(kind: str, folder: Path, size: str = "tiny", names: Sequence[str] = NAMES, seed: int = 0) -> Path:
    """Writes a folder.

    Args:
        kind: One of `KINDS`, or "sam3_lite_text", which is SAM 3 with another text encoder.
        size: One of `SIZES`; "small" of SAM 3 and EoMT alone.
        names: Of a closed list.
        seed: Of the weights.
    """
    ensure_torchvision()
    torch.manual_seed(seed)
    folder.mkdir(parents=True, exist_ok=True)
    {**_KINDS, **_VARIANTS}[kind](folder, size, list(names))
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\nRandom weights.\n", encoding="utf-8")
    return folder


def _clip_tokenizer(length: int) -> Any:
    """CLIP's tokenizer without merges: a token for each byte, so that any text can be read."""
    from transformers import CLIPTokenizer
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    letters = list(bytes_to_unicode().values())
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {word: number for number, word in enumerate(words)}
    return CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=length)


def _text(tokenizer: Any, tiny: bool, length: int) -> dict[str, Any]:
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": 0}
    vocabulary = len(tokenizer) if tiny else 49408
    shape = _TINY_TEXT if tiny else {}
    return {**shape, **ids, "vocab_size": vocabulary, "max_position_embeddings": length}


def _clipseg(folder: Path, size: str, names: list[str]) -> None:
    from transformers import CLIPSegConfig, CLIPSegForImageSegmentation, CLIPSegProcessor, ViTImageProcessor

    tiny, length = size == "tiny", 77
    tokenizer = _clip_tokenizer(length)
    side = 64 if tiny else 352
    vision: dict[str, Any] = {"image_size": side if tiny else 224, "patch_size": 16}
    values: dict[str, Any] = {}
    if tiny:
        vision |= {**_TINY_TEXT, "num_hidden_layers": 3}
        values = {"projection_dim": 16, "reduce_dim": 16, "decoder_num_attention_heads": 2, "extract_layers": [1, 2]}
        values |= {"decoder_intermediate_size": 32}
    config = CLIPSegConfig(text_config=_text(tokenizer, tiny, length), vision_config=vision, **values)
    CLIPSegForImageSegmentation(config).save_pretrained(folder)
    images = ViTImageProcessor(size={"height": side, "width": side})
    CLIPSegProcessor(images, tokenizer).save_pretrained(folder)


def _labels(names: list[str]) -> dict[str, Any]:
    return {"id2label": dict(enumerate(names)), "label2id": {name: number for number, name in enumerate(names)}}


def _eomt(folder: Path, size: str, names: list[str]) -> None:
    from transformers import EomtConfig, EomtForUniversalSegmentation, EomtImageProcessor

    side = {"tiny": 64, "small": 320, "real": 640}[size]
    shapes: dict[str, dict[str, Any]] = {
        "tiny": {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "num_queries": 12}
        | {"num_blocks": 2, "num_upscale_blocks": 1, "mlp_ratio": 2},
        "small": {"hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 6},
        "real": {},
    }
    config = EomtConfig(image_size=side, patch_size=16, **shapes[size], **_labels(names))
    EomtForUniversalSegmentation(config).save_pretrained(folder)
    edges: Any = {"shortest_edge": side, "longest_edge": None}
    EomtImageProcessor(size=edges, do_split_image=True, do_pad=False).save_pretrained(folder)


def _swin() -> Any:
    from transformers import SwinConfig

    values: dict[str, Any] = {
        "image_size": 64,
        "window_size": 4,
        "embed_dim": 16,
        "depths": [1, 1, 1, 1],
        "num_heads": [1, 2, 2, 2],
    }
    values["out_features"] = ["stage1", "stage2", "stage3", "stage4"]
    return SwinConfig(**values)


_TINY_DECODER = {"hidden_dim": 32, "num_attention_heads": 2, "dim_feedforward": 32, "encoder_layers": 1}


def _mask2former(folder: Path, size: str, names: list[str]) -> None:
    from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation, Mask2FormerImageProcessor

    shape: dict[str, Any] = {**_TINY_DECODER, "feature_size": 32, "mask_feature_size": 32, "decoder_layers": 2}
    shape |= {"encoder_feedforward_dim": 32, "num_queries": 12, "backbone_config": _swin()}
    tiny = size == "tiny"
    config = Mask2FormerConfig(**(shape if tiny else {}), **_labels(names))
    Mask2FormerForUniversalSegmentation(config).save_pretrained(folder)
    edges = {"height": 64, "width": 64} if tiny else {"shortest_edge": 640, "longest_edge": 2560}
    Mask2FormerImageProcessor(size=edges, ignore_index=255).save_pretrained(folder)


def _oneformer(folder: Path, size: str, names: list[str]) -> None:
    from transformers import OneFormerConfig, OneFormerForUniversalSegmentation, OneFormerImageProcessor

    length = 77
    tokenizer = _clip_tokenizer(length)
    shape: dict[str, Any] = {**_TINY_DECODER, "conv_dim": 32, "mask_dim": 32, "decoder_layers": 2, "num_queries": 12}
    shape |= {"encoder_feedforward_dim": 32, "backbone_config": _swin(), "text_encoder_width": 32}
    shape |= {"text_encoder_num_layers": 1, "text_encoder_vocab_size": len(tokenizer), "query_dec_layers": 1}
    shape |= {"task_seq_len": length, "text_encoder_context_length": length}
    tiny = size == "tiny"
    config = OneFormerConfig(**(shape if tiny else {}), is_training=False, **_labels(names))
    OneFormerForUniversalSegmentation(config).save_pretrained(folder)
    edges = {"height": 64, "width": 64} if tiny else {"shortest_edge": 800, "longest_edge": 1333}
    OneFormerImageProcessor(size=edges, num_labels=len(names)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _sam3(folder: Path, size: str, names: list[str]) -> None:
    from transformers import Sam3Config, Sam3Model

    values, side, tokenizer = _sam3_shapes(size)
    Sam3Model(Sam3Config(**values)).save_pretrained(folder)
    _sam3_processor(folder, side, tokenizer)


def _sam3_lite_text(folder: Path, size: str, names: list[str]) -> None:
    from transformers import Sam3LiteTextConfig, Sam3LiteTextModel

    values, side, tokenizer = _sam3_shapes(size)
    Sam3LiteTextModel(Sam3LiteTextConfig(**values)).save_pretrained(folder)
    _sam3_processor(folder, side, tokenizer)


def _sam3_processor(folder: Path, side: int, tokenizer: Any) -> None:
    from transformers import Sam3ImageProcessor, Sam3Processor

    Sam3Processor(Sam3ImageProcessor(size={"height": side, "width": side}), tokenizer).save_pretrained(folder)


def _sam3_shapes(size: str) -> tuple[dict[str, Any], int, Any]:
    """Values of the configuration, the side of its images, and the tokenizer."""
    tiny, tokenizer = size == "tiny", _clip_tokenizer(32)
    backbone: dict[str, Any] = {"model_type": "sam3_vit_model"}
    if tiny:
        backbone |= {**_TINY_TEXT, "image_size": 112, "window_size": 4, "pretrain_image_size": 56}
    else:
        backbone |= {"hidden_size": 384, "intermediate_size": 1536, "num_hidden_layers": 8, "num_attention_heads": 6}
        backbone |= {"image_size": 336, "window_size": 12, "pretrain_image_size": 168}
    cells = backbone["image_size"] // 14
    backbone["global_attn_indexes"] = [1] if tiny else [3, 7]
    vision: dict[str, Any] = {
        "backbone_config": backbone,
        "backbone_feature_sizes": [[cells * k, cells * k] for k in (4, 2, 1)],
    }
    values: dict[str, Any] = {"vision_config": vision}
    if tiny:
        part = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "num_layers": 1}
        vision["fpn_hidden_size"] = 32
        values |= {"geometry_encoder_config": part, "detr_encoder_config": part}
        values |= {"detr_decoder_config": {**part, "num_queries": 12}}
        values |= {"mask_decoder_config": {"hidden_size": 32, "num_attention_heads": 2}}
        values |= {"text_config": {**_text(tokenizer, tiny, 32), "projection_dim": 32, "hidden_act": "gelu"}}
    return ({}, 1008, tokenizer) if size == "real" else (values, backbone["image_size"], tokenizer)


_KINDS: dict[str, Callable[[Path, str, list[str]], None]] = {
    "clipseg": _clipseg,
    "eomt": _eomt,
    "mask2former": _mask2former,
    "oneformer": _oneformer,
    "sam3": _sam3,
}
_VARIANTS = {"sam3_lite_text": _sam3_lite_text}
KINDS = tuple(_KINDS)
