"""Foreign checkpoints to our own folder layout (`lasagna models convert`).

Read are (a) the released LaSagnA layout, (b) a fresh start from LLaVA, CLIP and SAM, whose new parts are initialised
here, (c) either, or a checkpoint of ours, with LoRA that was not merged. What always holds: every weight of the result
is accounted for before anything is written; the result appears complete or not at all; beside one output shard, no more
than one tensor is in memory.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lasagna.checkpoint import vocabulary as names_taught
from lasagna.checkpoint.convert import layouts
from lasagna.checkpoint.convert.source import Piece, WeightFiles
from lasagna.checkpoint.convert.vocabulary import Vocabulary, read_vocabulary
from lasagna.checkpoint.convert.writer import new_folder, size_of, write_weights
from lasagna.checkpoint.folder import ADAPTER, write_config
from lasagna.checkpoint.weights import weight_problems
from lasagna.errors import CheckpointError, ConfigError
from lasagna.network.adapter import Adapter, adapter_from_tensors, is_lora, read_adapter_config
from lasagna.network.config import ModelConfig
from lasagna.prompt.dialect import RELEASED, PromptFormat
from lasagna.prompt.tokenizer import LabelTokenizer, load_tokenizer

LORA_ALPHA = 16.0
"""The alpha of the released recipe, used where nothing says otherwise."""
_LANGUAGE = ("language_model.", "lm_head.", "projector.")
_PROJECTION_SEED = 0


@dataclass(frozen=True)
class Conversion:
    """What was made of what.

    Attributes:
        folder: The new checkpoint.
        kind: What the source was, in words.
        weights: How many tensors.
        parameters: How many values.
        size: Bytes of the weights.
        notes: What a user should know: what was initialised, what was left out.
    """

    folder: Path
    kind: str
    weights: int
    parameters: int
    size: int
    notes: tuple[str, ...]


@dataclass
class _Parts:
    """What a conversion gathers."""

    kind: str
    config: ModelConfig
    pieces: dict[str, Piece]
    tokenizer: LabelTokenizer
    format: PromptFormat
    notes: list[str]


def convert(
    source: Path,
    target: Path,
    *,
    clip: Path | None = None,
    sam: Path | None = None,
    adapter: Path | None = None,
    lora_alpha: float | None = None,
    keep_adapter: bool = False,
    bfloat16: bool = False,
) -> Conversion:
    """Makes a checkpoint of ours.

    Args:
        source: Folder of LaSagnA's, LLaVA's or our own layout.
        target: New folder; must not exist.
        clip: CLIP's folder; None where the source holds its vision tower (transformers' LLaVA).
        sam: segment-anything's `sam_vit_{h,l,b}.pth`, for a source without SAM.
        adapter: peft's folder of a LoRA adapter of the source.
        lora_alpha: Of low-rank keys in the source itself, which do not say it; None: 16.
        keep_adapter: Whether LoRA stays apart, in `adapter/`, instead of being added to the weights.
        bfloat16: Whether the language model and projector are rounded to bfloat16; else all types are kept.

    Raises:
        CheckpointError: The source is incomplete, damaged, or not what it says it is; lists every key that is missing,
            unexpected or of another shape.
        ConfigError: The target exists, or cannot be written.
    """
    source_config(source)
    files = WeightFiles(source)
    low_rank = {key: piece for key, piece in files.pieces.items() if is_lora(key)}
    plain = {key: piece for key, piece in files.pieces.items() if not is_lora(key)}
    changes = _read_adapter(source, low_rank, lora_alpha, adapter)
    replaced = _replaced(adapter) if adapter else {}
    parts = _ours(source, plain) if layouts.is_ours(plain) else _foreign(source, plain, clip, sam)
    if parts.kind == "ours" and (changes is None or clip or sam):
        raise ConfigError(f"{source}: it is in our layout already; only an --adapter can be added to it")
    parts.pieces |= replaced
    _check(source, parts)
    if changes is not None:
        parts.notes.append(_apply(parts, changes, keep_adapter))
    if bfloat16:
        _round(parts.pieces)
    taught = _taught(source, adapter) if parts.kind == "ours" else None
    if taught is None and parts.kind == "ours":
        parts.notes.append("what it was taught is not known (no vocabulary.json), so everything may be asked of it")
    size = size_of(parts.pieces)
    with new_folder(target, size) as folder:
        write_config(folder, parts.config)
        parts.format.save(folder / "prompt.json")
        parts.tokenizer.save(folder)
        write_weights(folder, parts.pieces)
        if changes is not None and keep_adapter:
            changes.save(folder / ADAPTER)
        if parts.kind == "ours":
            names_taught.write_vocabulary(folder, taught)
        (folder / "README.md").write_text(_card(source, parts), encoding="utf-8")
    parameters = sum(torch.Size(piece.shape).numel() for piece in parts.pieces.values())
    return Conversion(target, parts.kind, len(parts.pieces), parameters, size, tuple(parts.notes))


def source_config(source: Path) -> dict[str, Any]:
    """`config.json` of a source. Raises CheckpointError where the source is no folder, or has none."""
    if not source.is_dir():
        raise CheckpointError(f"{source}: not a folder; convert takes the folder of a checkpoint")
    return layouts.read_config(source)


# ------------------------------------------------------------------------------------------------------------ the parts


def _ours(source: Path, pieces: Mapping[str, Piece]) -> _Parts:
    config = ModelConfig.load(source / "config.json")
    format = PromptFormat.load(source / "prompt.json")
    return _Parts("ours", config, dict(pieces), load_tokenizer(source), format, [])


def _foreign(source: Path, pieces: Mapping[str, Piece], clip: Path | None, sam: Path | None) -> _Parts:
    raw = layouts.read_config(source)
    layer = layouts.clip_layer(raw)
    clip_values, clip_pieces = _clip(clip, raw, pieces)
    kept_layers = int(clip_values["num_hidden_layers"]) + layer + 1
    own = {key: piece for key, piece in layouts.rename(pieces).items() if not key.startswith("encoder.clip.")}
    own |= layouts.rename(clip_pieces, kept_layers)
    fresh = not any(key.startswith("prompt_projection.") for key in own)
    has_sam = any(key.startswith("encoder.sam.") for key in own)
    notes: list[str] = []
    if fresh and sam is None and not has_sam:
        raise CheckpointError(
            f"{source}: a LLaVA checkpoint has no segmenter; for a fresh start give segment-anything's file with "
            "--sam sam_vit_h_4b8939.pth"
        )
    if sam is not None:
        if has_sam:
            raise ConfigError(f"{source}: it has SAM's weights already; leave --sam out")
        own |= layouts.rename(WeightFiles(sam).pieces)
    for key in ("language_model.embed_tokens.weight", "lm_head.weight"):
        if key not in own:
            raise CheckpointError(f"{source}: missing {key} (by our name); is it a LaSagnA or LLaVA checkpoint?")
    vocabulary = read_vocabulary(source, len_rows=own["language_model.embed_tokens.weight"].shape[0], fresh=fresh)
    vision, decoder = layouts.sam_config(own)
    text = layouts.text_config(raw, vocabulary.rows)
    if fresh:
        _initialise(own, vocabulary, int(text["hidden_size"]), decoder.width)
        notes.append("prompt projection initialised at random (seed 0): it answers nothing before it is trained")
        if vocabulary.added:
            notes.append(f"rows of {' '.join(vocabulary.added)} initialised with the mean of the others")
    image = RELEASED.image if fresh or raw.get("mm_use_im_start_end", True) else "<image>\n"
    format = replace(RELEASED, image=image, max_length=int(text.get("max_position_embeddings", RELEASED.max_length)))
    config = ModelConfig(
        text=text,
        vision=replace(vision, clip=clip_values, clip_layer=layer),
        decoder=decoder,
        projector=layouts.projector_kind(own),
    )
    kind = "a fresh start from LLaVA, CLIP and SAM" if fresh else "the released LaSagnA layout"
    return _Parts(kind, config, own, vocabulary.tokenizer, format, notes)


def _clip(
    folder: Path | None, raw: Mapping[str, Any], pieces: Mapping[str, Piece]
) -> tuple[dict[str, Any], dict[str, Piece]]:
    """CLIP's configuration and weights: of its folder, else the source's own tower."""
    if folder is not None:
        values = layouts.clip_config(layouts.read_config(folder))
        layouts.check_preprocessing(folder, values)
        found = WeightFiles(folder).pieces
        # transformers 5.24 saves a vision tower without the prefix.
        bare = any(key.startswith("embeddings.") for key in found)
        return values, {f"vision_model.{key}" if bare else key: piece for key, piece in found.items()}
    inside = {k: p for k, p in pieces.items() if (layouts.our_key(k) or "").startswith("encoder.clip.")}
    if inside and raw.get("vision_config"):
        return layouts.clip_config(raw), inside
    name = raw.get("mm_vision_tower") or raw.get("vision_tower") or "openai/clip-vit-large-patch14"
    raise CheckpointError(
        f"CLIP's weights are not in the checkpoint (its config.json names {name}); give CLIP's folder or hub id with "
        "--clip"
    )


def _initialise(own: dict[str, Piece], vocabulary: Vocabulary, width: int, prompt_width: int) -> None:
    """New rows of the vocabulary, and the projection from hidden states to SAM's prompts."""
    for key in ("language_model.embed_tokens.weight", "lm_head.weight"):
        piece = own[key]
        own[key] = piece.change(vocabulary.extend, (vocabulary.rows, *piece.shape[1:]))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_PROJECTION_SEED)
        layers = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, prompt_width))
    for key, value in layers.state_dict().items():
        own[f"prompt_projection.{key}"] = _constant(value, f"prompt_projection.{key}")


def _constant(value: Tensor, origin: str) -> Piece:
    return Piece(tuple(value.shape), value.dtype, lambda: value, origin)


def _check(source: Path, parts: _Parts) -> None:
    """Raises CheckpointError that lists every weight that does not fit the configuration."""
    text, width = parts.config.text, parts.pieces["language_model.embed_tokens.weight"].shape[1]
    layers = 1 + max((int(m[1]) for m in map(_layer, parts.pieces) if m), default=-1)
    said = (int(text["hidden_size"]), int(text["num_hidden_layers"]))
    if said != (width, layers):
        raise CheckpointError(
            f"{source}: config.json describes a language model of {said[1]} layers of width {said[0]} "
            f"{_nickname(*said)}, the weights are {layers} layers of width {width} {_nickname(width, layers)}; "
            "the files belong to different models"
        )
    clip_width = parts.config.vision.clip.get("hidden_size")
    first = parts.pieces.get("projector.weight") or parts.pieces.get("projector.0.weight")
    if parts.config.vision.kind == "clip-sam" and first is not None and first.shape[1] != clip_width:
        raise CheckpointError(
            f"{source}: its projector takes vision tokens of width {first.shape[1]}, this CLIP gives {clip_width}; "
            "give the CLIP that it was trained with"
        )
    found = {key: piece.shape for key, piece in parts.pieces.items()}
    problems = weight_problems(layouts.expected_shapes(parts.config), found)
    if problems:
        named = [f"{line} ({parts.pieces[key].origin})" if (key := _key(line)) in found else line for line in problems]
        raise CheckpointError(f"{source}: {len(problems)} weights do not fit:\n  " + "\n  ".join(named))


def _layer(key: str) -> re.Match[str] | None:
    return re.match(r"language_model\.layers\.(\d+)\.", key)


def _key(problem: str) -> str:
    words = problem.split()
    return words[1] if words[0] in ("missing", "unexpected") else words[0]


def _nickname(width: int, layers: int) -> str:
    return {(4096, 32): "(7B)", (5120, 40): "(13B)", (8192, 80): "(70B)"}.get((width, layers), "")


# ------------------------------------------------------------------------------------------------------------ LoRA


def _read_adapter(
    source: Path, inside: Mapping[str, Piece], alpha: float | None, folder: Path | None
) -> Adapter | None:
    """The adapter of a folder, or of the source's own low-rank keys."""
    if folder is not None:
        if inside:
            raise ConfigError(f"{source}: it has LoRA of its own; an --adapter cannot be added to it")
        config = read_adapter_config(folder)
        pieces = {key: piece for key, piece in WeightFiles(folder).pieces.items() if is_lora(key)}
        alpha = float(config["lora_alpha"])
    elif inside:
        pieces = dict(inside)
        if (source / "adapter_config.json").exists():
            alpha = float(read_adapter_config(source)["lora_alpha"])
    else:
        return None
    tensors = {key: piece.read().clone() for key, piece in pieces.items()}
    return adapter_from_tensors(tensors, LORA_ALPHA if alpha is None else alpha, str(folder or source))


def _taught(source: Path, adapter: Path | None) -> names_taught.Vocabulary | None:
    """What a checkpoint of ours knows with an adapter, which says itself what it was taught, or beside its folder as in
    a light checkpoint; None where one of them does not say."""
    before = names_taught.load_vocabulary(source)
    if before is None or adapter is None:
        return before
    found = (names_taught.read_vocabulary(place / names_taught.VOCABULARY) for place in (adapter, adapter.parent))
    own = next((one for one in found if one is not None), None)
    return None if own is None else before.merged(own)


def _replaced(folder: Path) -> dict[str, Piece]:
    """Whole weights that an adapter's folder holds (peft's `modules_to_save`)."""
    return layouts.rename({k: p for k, p in WeightFiles(folder).pieces.items() if not is_lora(k)})


def _apply(parts: _Parts, changes: Adapter, keep: bool) -> str:
    """Adds LoRA to the pieces, or checks that it could be. Returns a note."""
    for key, (a, b) in changes.factors.items():
        piece = parts.pieces.get(f"language_model.{key}")
        if piece is None or piece.shape != (b.shape[0], a.shape[1]) or a.shape[0] != b.shape[1]:
            found = "the model has no such weight" if piece is None else f"the model's is {piece.shape}"
            raise CheckpointError(
                f"the adapter does not fit the model: its {key} is {(b.shape[0], a.shape[1])}, {found}; "
                "it was made for another model"
            )
        if not keep:
            parts.pieces[f"language_model.{key}"] = piece.change(lambda w, key=key: changes.merge(key, w))  # type: ignore[misc]
    what = f"LoRA of {len(changes.factors)} weights, alpha {changes.alpha:g}"
    return f"{what}, kept in {ADAPTER}/" if keep else f"{what}, merged"


def _round(pieces: dict[str, Piece]) -> None:
    for key, piece in pieces.items():
        if key.startswith(_LANGUAGE) and piece.dtype == torch.float32:
            pieces[key] = piece.cast(torch.bfloat16)


def _card(source: Path, parts: _Parts) -> str:
    lines = "".join(f"- {note}\n" for note in parts.notes)
    return (
        f"# {source.resolve().name}\n\nMade by `lasagna models convert` from {parts.kind}. The licences of what it was "
        f"made from hold for it: those of the language model, of CLIP and of SAM.\n\n{lines}"
    )
