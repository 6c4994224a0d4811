"""What foreign checkpoints call things, and what they say about their shape.

Read are the layout of the released LaSagnA and LISA code, LLaVA's own (v1 with one projector layer, 1.5 with two) and
transformers' ("llava-hf"), CLIP with or without its text tower, segment-anything's `.pth`, and any of these with LoRA
that was not merged. Keys are first brought to LLaVA's names, then to ours.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lasagna.checkpoint.convert.source import Piece
from lasagna.errors import CheckpointError
from lasagna.network.config import DecoderConfig, ModelConfig, VisionConfig
from lasagna.network.llama import LlamaShape

_TO_LLAVA = (
    # peft, around a whole model
    (r"^base_model\.model\.", ""),
    (r"\.base_layer\.", "."),
    (r"\.modules_to_save\.[^.]+\.", "."),
    (r"\.original_module\..*", ".dropped"),
    # transformers' LLaVA, before and after its model was nested
    (r"^language_model\.model\.", "model."),
    (r"^language_model\.lm_head\.", "lm_head."),
    (r"^model\.language_model\.", "model."),
    (r"^(?:model\.)?multi_modal_projector\.linear_1\.", "model.mm_projector.0."),
    (r"^(?:model\.)?multi_modal_projector\.linear_2\.", "model.mm_projector.2."),
    # CLIP
    (r"^(?:model\.)?vision_tower\.(?:vision_tower\.)?(?:vision_model\.)?", "clip."),
    (r"^vision_model\.", "clip."),
    # segment-anything's file
    (r"^(image_encoder|prompt_encoder|mask_decoder)\.", r"model.visual_model.\1."),
)
_TO_OURS = (
    ("model.visual_model.image_encoder.", "encoder.sam."),
    ("model.visual_model.prompt_encoder.", "segmenter.prompt_encoder."),
    ("model.visual_model.mask_decoder.", "segmenter.mask_decoder."),
    ("model.text_hidden_fcs.0.", "prompt_projection."),
    ("model.mm_projector.", "projector."),
    ("model.", "language_model."),
    ("lm_head.", "lm_head."),
    ("clip.", "encoder.clip."),
)
_OURS = ("language_model.", "lm_head.", "projector.", "prompt_projection.", "encoder.", "segmenter.")
# Buffers that are computed, and CLIP's parts that the image's tokens do not pass through.
_DROPPED = re.compile(
    r".*\.rotary_emb\.(inv_freq|cos_cached|sin_cached)|.*\.dropped|.*\.visual_model\.pixel_(mean|std)"
    r"|clip\.embeddings\.position_ids|clip\.post_layernorm\..*"
    r"|text_model\..*|text_projection\..*|visual_projection\..*|logit_scale"
)
_CLIP_LAYER = re.compile(r"encoder\.clip\.encoder\.layers\.(\d+)\..*")


def our_key(key: str) -> str | None:
    """Our name of a foreign key; None for what is not taken over, the key itself for what is not known."""
    for pattern, replacement in _TO_LLAVA:
        key = re.sub(pattern, replacement, key)
    if _DROPPED.fullmatch(key):
        return None
    for theirs, ours in _TO_OURS:
        if key.startswith(theirs):
            return ours + key.removeprefix(theirs)
    return key


def rename(pieces: Mapping[str, Piece], clip_layers: int | None = None) -> dict[str, Piece]:
    """Pieces by our key, without what is not taken over.

    Args:
        clip_layers: CLIP's layers from here on are not taken over; None: all are.
    """
    renamed: dict[str, Piece] = {}
    for key, piece in pieces.items():
        name = our_key(key)
        match = _CLIP_LAYER.fullmatch(name or "")
        if name is None or (clip_layers is not None and match and int(match[1]) >= clip_layers):
            continue
        if name in renamed:
            raise CheckpointError(f"two weights are {name}: {renamed[name].origin} and {piece.origin}")
        renamed[name] = piece
    return renamed


def is_ours(pieces: Mapping[str, Piece]) -> bool:
    """Whether the keys are those of our own checkpoints already."""
    return all(key.startswith(_OURS) for key in pieces) and "language_model.norm.weight" in pieces


def read_config(folder: Path) -> dict[str, Any]:
    """`config.json` of a folder. Raises CheckpointError."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"{folder}: no config.json in it ({error.strerror}); is it a checkpoint?") from error
    except ValueError as error:
        raise CheckpointError(f"{folder / 'config.json'}: not readable as JSON ({error})") from error
    if not isinstance(config, dict):
        raise CheckpointError(f"{folder / 'config.json'}: not a JSON object")
    return config


_TEXT_KEYS = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "hidden_act",
    "max_position_embeddings",
    "initializer_range",
    "rms_norm_eps",
    "rope_theta",
    "rope_scaling",
    "rope_parameters",
    "attention_bias",
    "mlp_bias",
    "head_dim",
)


def _described(what: str, kind: Any, values: dict[str, Any]) -> Any:
    """A configuration of transformers with values of a file. Raises CheckpointError where they make no sense to it."""
    try:
        return kind(**values)
    except Exception as error:  # what it checks, and how, differs between versions
        raise CheckpointError(f"config.json: not the shape of a {what}: {error}") from error


def text_config(config: Mapping[str, Any], vocabulary: int) -> dict[str, Any]:
    """`LlamaConfig` values of a LLaVA configuration, transformers' defaults filled in."""
    given = config.get("text_config") or config
    values = {key: given[key] for key in _TEXT_KEYS if given.get(key) is not None}
    shape = LlamaShape.from_config(values)
    sizes = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    filled = {key: int(getattr(shape, key)) for key in sizes} | {"num_key_value_heads": shape.key_value_heads}
    return {**filled, **values, "vocab_size": vocabulary}


def clip_layer(config: Mapping[str, Any]) -> int:
    """Which layer of CLIP is read. Raises CheckpointError for features that are not patches of one layer."""
    select = config.get("mm_vision_select_feature", config.get("vision_feature_select_strategy", "patch"))
    layer = config.get("mm_vision_select_layer", config.get("vision_feature_layer", -2))
    if select not in ("patch", "default") or not isinstance(layer, int) or layer >= 0:
        raise CheckpointError(
            f"config.json: the language model reads {select!r} of CLIP's layer {layer!r}; only patches of one layer, "
            "counted from the last, can be read"
        )
    return layer


_CLIP_KEYS = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "image_size",
    "patch_size",
    "hidden_act",
    "layer_norm_eps",
    "projection_dim",
)


def clip_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """`CLIPVisionConfig` values of the configuration of CLIP, of its vision tower, or of transformers' LLaVA."""
    from transformers import CLIPVisionConfig

    given = config.get("vision_config") or config
    values = {key: given[key] for key in _CLIP_KEYS if given.get(key) is not None}
    defaults = _described("CLIP", CLIPVisionConfig, values)
    return {key: getattr(defaults, key) for key in _CLIP_KEYS}


def check_preprocessing(folder: Path, clip: Mapping[str, Any]) -> None:
    """Raises CheckpointError where CLIP's `preprocessor_config.json` asks for other pixels than we prepare."""
    from lasagna.network.clip_sam import CLIP_MEAN, CLIP_STD

    path = folder / "preprocessor_config.json"
    if not path.exists():
        return
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path}: not readable as JSON ({error})") from error
    side = clip["image_size"]
    wanted: dict[str, tuple[Any, ...]] = {
        "do_resize": (True,),
        "do_center_crop": (True,),
        "do_normalize": (True,),
        "resample": (3,),
        "size": (side, {"shortest_edge": side}),
        "crop_size": (side, {"height": side, "width": side}),
        "image_mean": (list(CLIP_MEAN),),
        "image_std": (list(CLIP_STD),),
    }
    for key, values in wanted.items():
        if key in config and config[key] not in values:
            raise CheckpointError(f"{path}: {key} is {config[key]}, which is not what CLIP of {side} px is given here")


def sam_config(pieces: Mapping[str, Piece]) -> tuple[VisionConfig, DecoderConfig]:
    """The shape of SAM, from the shapes of its weights (by our keys); CLIP's part is left empty.

    Raises CheckpointError where there is no SAM, or one of another kind.
    """
    encoder = "encoder.sam."
    needed = (
        encoder + "pos_embed",
        encoder + "neck.0.weight",
        encoder + "blocks.0.attn.rel_pos_h",
        "segmenter.prompt_encoder.no_mask_embed.weight",
        "segmenter.prompt_encoder.mask_downscaling.3.weight",
        "segmenter.mask_decoder.transformer.layers.0.mlp.lin1.weight",
    )
    missing = [key for key in needed if key not in pieces]
    if missing:
        raise CheckpointError(
            f"SAM is not complete: no weights for {', '.join(missing)}; give segment-anything's file with --sam"
        )
    shape = {key: pieces[key].shape for key in pieces}
    grid, width = shape[needed[0]][1], shape[needed[0]][3]
    depth = len({key.split(".")[3] for key in pieces if key.startswith(f"{encoder}blocks.")})
    tables = [shape.get(f"{encoder}blocks.{i}.attn.rel_pos_h", (0, 1)) for i in range(depth)]
    vision = VisionConfig(
        kind="clip-sam",
        image_size=grid * 16,
        sam={
            "embed_dim": width,
            "depth": depth,
            "num_heads": width // tables[0][1],
            "global_attn_indexes": [i for i, table in enumerate(tables) if table[0] == 2 * grid - 1],
        },
    )
    decoder = DecoderConfig(width=shape[needed[3]][1], mlp_dim=shape[needed[5]][0], mask_channels=shape[needed[4]][0])
    return vision, decoder


def projector_kind(pieces: Mapping[str, Piece]) -> str:
    """ "linear" or "mlp2x_gelu". Raises CheckpointError for another."""
    kinds = {
        frozenset({"projector.weight", "projector.bias"}): "linear",
        frozenset({f"projector.{i}.{part}" for i in (0, 2) for part in ("weight", "bias")}): "mlp2x_gelu",
    }
    found = frozenset(key for key in pieces if key.startswith("projector."))
    if found not in kinds:
        raise CheckpointError(
            f"the projector from CLIP to the language model is {', '.join(sorted(found)) or 'missing'}; "
            "known are one linear layer (LLaVA v1) and two with GELU (LLaVA 1.5)"
        )
    return kinds[found]


def expected_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Key and shape of every weight of a model, without making it."""
    import torch

    from lasagna.network.model import LasagnaModel

    try:
        with torch.device("meta"):
            return {key: tuple(value.shape) for key, value in LasagnaModel(config).state_dict().items()}
    except (ValueError, TypeError, RuntimeError, ZeroDivisionError) as error:
        raise CheckpointError(f"config.json: no such model can be made ({error})") from error
