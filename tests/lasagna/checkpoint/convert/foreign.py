"""A tiny random model in the layouts of others."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from lasagna.assistant.random_model import piece_tokenizer
from lasagna.network.model import LasagnaModel
from lasagna.prompt.tokenizer import SentencePieceTokenizer

CLIP = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
    "projection_dim": 16,
}
TEXT = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-6,
    "hidden_act": "silu",
}
ROWS = 407
Weights = dict[str, Tensor]


def llava_weights(network: LasagnaModel) -> Weights:
    """Language model and projector by LLaVA's keys, in bfloat16, with the buffers that old files hold."""
    names = {"language_model.": "model.", "projector.": "model.mm_projector.", "lm_head.": "lm_head."}
    weights = {}
    for key, value in network.state_dict().items():
        for ours, theirs in names.items():
            if key.startswith(ours):
                weights[theirs + key.removeprefix(ours)] = value.bfloat16()
    for i in range(TEXT["num_hidden_layers"]):
        weights[f"model.layers.{i}.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    return weights


def sam_weights(network: LasagnaModel) -> Weights:
    """SAM by segment-anything's keys."""
    state = network.state_dict()
    encoder = {k.replace("encoder.sam.", "image_encoder."): v for k, v in state.items() if k.startswith("encoder.sam.")}
    return encoder | {k.removeprefix("segmenter."): v for k, v in state.items() if k.startswith("segmenter.")}


def released_weights(network: LasagnaModel) -> Weights:
    state = network.state_dict()
    weights = llava_weights(network) | {f"model.visual_model.{k}": v for k, v in sam_weights(network).items()}
    return weights | {
        k.replace("prompt_projection.", "model.text_hidden_fcs.0."): v
        for k, v in state.items()
        if k.startswith("prompt_projection.")
    }


def clip_weights(network: LasagnaModel) -> Weights:
    """CLIP's vision tower, with the layer and the norm that are never run."""
    weights = {
        k.replace("encoder.clip.", "vision_model."): v
        for k, v in network.state_dict().items()
        if k.startswith("encoder.clip.")
    }
    last = {k.replace("layers.1.", "layers.2."): v.clone() for k, v in weights.items() if ".layers.1." in k}
    norm = {f"vision_model.post_layernorm.{part}": torch.ones(16) for part in ("weight", "bias")}
    return {**weights, **last, **norm}


def write_json(path: Path, values: dict) -> None:
    path.write_text(json.dumps(values))


def save(weights: Weights, path: Path) -> None:
    save_file({k: v.contiguous() for k, v in weights.items()}, path, {"format": "pt"})


def write_shards(folder: Path, weights: Weights) -> None:
    keys = sorted(weights)
    halves = {"pytorch_model-00001-of-00002.bin": keys[::2], "pytorch_model-00002-of-00002.bin": keys[1::2]}
    for name, half in halves.items():
        torch.save({key: weights[key].clone() for key in half}, folder / name)
    index = {key: name for name, half in halves.items() for key in half}
    write_json(folder / "pytorch_model.bin.index.json", {"metadata": {}, "weight_map": index})


def write_clip(folder: Path, network: LasagnaModel) -> None:
    folder.mkdir()
    save(clip_weights(network), folder / "model.safetensors")
    write_json(folder / "config.json", {"model_type": "clip_vision_model", **CLIP})
    write_json(folder / "preprocessor_config.json", {"resample": 3, "crop_size": {"height": 28, "width": 28}})


def llava(network: LasagnaModel, rows: int) -> dict[str, Tensor]:
    weights = llava_weights(network)
    for key in ("model.embed_tokens.weight", "lm_head.weight"):
        weights[key] = weights[key][:rows]
    return weights


def write_llava(folder: Path, weights: dict[str, Tensor], config: dict, added: dict[str, int]) -> Path:
    folder.mkdir()
    save(weights, folder / "model.safetensors")
    write_json(folder / "config.json", config)
    SentencePieceTokenizer(piece_tokenizer()._model, added).save(folder)
    return folder


def low_rank(network: LasagnaModel, alpha: float) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Factors by LLaVA's key of the weight, and the weights with their change, by our key."""
    torch.manual_seed(5)
    factors, changed = {}, {}
    for i in range(2):
        for name in ("q_proj", "v_proj"):
            stem = f"layers.{i}.self_attn.{name}"
            a, b = torch.randn(4, 32), torch.randn(32, 4) * 0.1
            factors[f"model.{stem}.lora_A"], factors[f"model.{stem}.lora_B"] = a, b
            weight = network.state_dict()[f"language_model.{stem}.weight"]
            changed[f"language_model.{stem}.weight"] = (weight + alpha / 4 * b @ a).bfloat16().float()
    return factors, changed


def write_adapter(folder: Path, factors: dict[str, Tensor], alpha: float, **config: object) -> Path:
    folder.mkdir()
    save({f"base_model.model.{k}.weight": v for k, v in factors.items()}, folder / "adapter_model.safetensors")
    values = {"peft_type": "LORA", "r": 4, "lora_alpha": alpha, "bias": "none", "target_modules": ["q_proj", "v_proj"]}
    write_json(folder / "adapter_config.json", {**values, **config})
    return folder
