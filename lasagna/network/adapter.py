"""LoRA adapters of the language model (arXiv 2106.09685), in peft's file layout.

A checkpoint may hold one un-merged in its folder `adapter/` (`adapter_config.json`, `adapter_model.safetensors`); peft
can load it onto `LasagnaModel.language_model`, and what reads the checkpoint for inference adds it to the weights.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lasagna.errors import CheckpointError

FOLDER = "adapter"
_KEY = re.compile(r"(?:.*\.)?(layers\.\d+\..+)\.lora_([AB])(?:\.[^.]+)?\.weight")


@dataclass(frozen=True)
class Adapter:
    """Low-rank changes of weights.

    Attributes:
        alpha: The change of a weight is alpha / r * B @ A.
        factors: By the key of the changed weight in the language model ("layers.0.self_attn.q_proj.weight"): A of
            (r, inputs) and B of (outputs, r).
    """

    alpha: float
    factors: dict[str, tuple[Tensor, Tensor]]

    def merge(self, key: str, weight: Tensor) -> Tensor:
        """The weight with its change added in float32, in the weight's type; as it is where there is none.

        Raises CheckpointError where the adapter was made for a weight of another shape.
        """
        if key not in self.factors:
            return weight
        a, b = (factor.to(weight.device, torch.float32) for factor in self.factors[key])
        if (b.shape[0], a.shape[1]) != tuple(weight.shape) or a.shape[0] != b.shape[1]:
            raise CheckpointError(
                f"the adapter does not fit the model: {key} is {tuple(weight.shape)}, the adapter has "
                f"{tuple(b.shape)} x {tuple(a.shape)}; it was made for another model"
            )
        return (weight.float() + self.alpha / a.shape[0] * (b @ a)).to(weight.dtype)

    def save(self, folder: Path, dropout: float = 0.0) -> None:
        """Writes the two files of peft's layout into a folder."""
        from safetensors.torch import save_file

        folder.mkdir(parents=True, exist_ok=True)
        rank = next(iter(self.factors.values()))[0].shape[0]
        config = {
            "peft_type": "LORA",
            "task_type": None,
            "base_model_name_or_path": None,
            "r": rank,
            "lora_alpha": self.alpha,
            "lora_dropout": dropout,
            "bias": "none",
            "fan_in_fan_out": False,
            "target_modules": sorted({key.split(".")[-2] for key in self.factors}),
        }
        (folder / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        tensors = {}
        for key, (a, b) in self.factors.items():
            stem = f"base_model.model.{key.removesuffix('.weight')}"
            tensors[f"{stem}.lora_A.weight"], tensors[f"{stem}.lora_B.weight"] = a.contiguous(), b.contiguous()
        save_file(tensors, folder / "adapter_model.safetensors", {"format": "pt"})


def adapter_from_tensors(tensors: Mapping[str, Tensor], alpha: float, name: str) -> Adapter:
    """Pairs of A and B by key, whatever stands before "layers." in it. Raises CheckpointError for half a pair."""
    found: dict[str, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        match = _KEY.fullmatch(key)
        if match is None:
            raise CheckpointError(f"{name}: {key} is not LoRA of a layer of the language model")
        found.setdefault(f"{match[1]}.weight", {})[match[2]] = value
    halves = [key for key, pair in found.items() if len(pair) < 2]
    if halves:
        raise CheckpointError(f"{name}: one of lora_A and lora_B is missing for {', '.join(halves)}")
    return Adapter(alpha, {key: (pair["A"], pair["B"]) for key, pair in found.items()})


def is_lora(key: str) -> bool:
    """Whether a key is that of a low-rank factor."""
    return ".lora_A." in key or ".lora_B." in key


def read_adapter_config(folder: Path) -> dict[str, Any]:
    """`adapter_config.json`. Raises CheckpointError where it is missing, not JSON, or not plain LoRA."""
    path = folder / "adapter_config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        alpha, rank = float(config["lora_alpha"]), int(config["r"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: not a peft configuration of LoRA ({error!r})") from error
    special = ("use_dora", "use_rslora", "fan_in_fan_out", "rank_pattern", "alpha_pattern")
    used = [key for key in special if config.get(key)]
    if config.get("peft_type") != "LORA" or used or config.get("bias", "none") != "none" or alpha <= 0 or rank <= 0:
        raise CheckpointError(f"{path}: only plain LoRA is read; this is {config.get('peft_type')} {' '.join(used)}")
    return dict(config)


def load_adapter(folder: Path) -> Adapter | None:
    """The un-merged adapter of a checkpoint folder, or None."""
    from safetensors.torch import load_file

    if not (folder / FOLDER).is_dir():
        return None
    config = read_adapter_config(folder / FOLDER)
    path = folder / FOLDER / "adapter_model.safetensors"
    try:
        return adapter_from_tensors(load_file(path), float(config["lora_alpha"]), str(path))
    except Exception as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{path}: not readable as safetensors ({error})") from error
