"""LoRA and trained token rows, made by peft inside a `LasagnaModel`, and written as a light checkpoint.

A light checkpoint holds what was trained, over the checkpoint that it started from:

    base.json                the folder or hub id of that checkpoint
    adapter/                 the LoRA adapter in peft's layout
    model.safetensors        every other trained tensor, under its usual name
    config.json, tokenizer, prompt.json, calibration.json   as in any checkpoint

What always holds: after `unwrapped_name` a parameter has the name that it has without peft.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from lasagna.checkpoint.folder import ADAPTER, BASE, Calibration, write_calibration
from lasagna.network.adapter import Adapter
from lasagna.network.compat import ensure_torchvision
from lasagna.network.model import LasagnaModel
from lasagna.prompt.dialect import PromptFormat
from lasagna.prompt.tokenizer import LabelTokenizer
from training.recipe.values import Lora

EMBEDDING, HEAD = "language_model.embed_tokens", "lm_head"
_ADDED = re.compile(r"\.(lora_A|lora_B|trainable_tokens_delta)\.")


def is_added(name: str) -> bool:
    """Whether peft added the parameter of this name."""
    return _ADDED.search(name) is not None


def unwrapped_name(name: str) -> str:
    """The name that a parameter of the model has without peft's wrappers."""
    return name.replace(".base_layer.", ".")


def new_token_ids(tokenizer: LabelTokenizer) -> list[int]:
    """Ids of the control tokens that no plain language model has: decisions, marks of class list and image."""
    known = {tokenizer.bos, tokenizer.eos, tokenizer.pad}
    return sorted({i for token, i in tokenizer.controls.items() if i not in known and token != "<unk>"})


def add_lora(model: LasagnaModel, lora: Lora) -> None:
    """Adapters, zero at first, on the named projections of every layer of the language model."""
    ensure_torchvision()
    from peft import LoraConfig

    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]
        lora_dropout=lora.dropout,
        target_modules=list(lora.modules),
        bias="none",
    )
    _inject(config, model.language_model)


def add_token_rows(model: LasagnaModel, ids: Sequence[int]) -> None:
    """Rows of the embedding and of lm_head that are trained while the others stay."""
    ensure_torchvision()
    from peft import TrainableTokensConfig

    for parent, module in ((model.language_model, "embed_tokens"), (model, HEAD)):
        config = TrainableTokensConfig(token_indices=list(ids), target_modules=[module])
        _inject(config, parent)


def _inject(config: Any, module: nn.Module) -> None:
    """Puts peft's layers into a module.

    All have the adapter name "default": to name another one makes it the only active one of every layer. What peft
    notes at the module is taken off again, since it is for several adapters of one kind.
    """
    from peft import inject_adapter_in_model

    inject_adapter_in_model(config, module)
    if hasattr(module, "peft_config"):
        del module.peft_config


def lora_adapter(model: LasagnaModel, lora: Lora) -> Adapter:
    """The adapter as it stands in the model."""
    pairs: dict[str, dict[str, Tensor]] = {}
    for name, parameter in model.language_model.named_parameters():
        if match := re.fullmatch(r"(.+)\.lora_([AB])\.default\.weight", name):
            pairs.setdefault(f"{match[1]}.weight", {})[match[2]] = parameter.detach().float().cpu()
    return Adapter(lora.alpha, {key: (pair["A"], pair["B"]) for key, pair in pairs.items()})


def whole_rows(module: nn.Module) -> Tensor:
    """The weight of an embedding or lm_head with its trained rows in place."""
    if not hasattr(module, "trainable_tokens_delta"):
        return module.weight.detach()  # type: ignore[operator]
    with torch.no_grad():
        return module.get_merged_weights(module.active_adapters).detach()  # type: ignore[operator]


def save_light(
    folder: Path,
    model: LasagnaModel,
    tokenizer: LabelTokenizer,
    format: PromptFormat,
    base: str,
    lora: Lora,
) -> None:
    """Writes a light checkpoint.

    Args:
        base: The checkpoint that it is laid over: a folder, a shipped name or a hub id.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lora_adapter(model, lora).save(folder / ADAPTER, lora.dropout)
    tensors = {
        unwrapped_name(name): parameter.detach()
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and not is_added(name)
    }
    if hasattr(model.lm_head, "trainable_tokens_delta"):
        tensors |= {f"{EMBEDDING}.weight": whole_rows(model.language_model.embed_tokens)}
        tensors |= {f"{HEAD}.weight": whole_rows(model.lm_head)}
    save_file({name: value.cpu().contiguous() for name, value in tensors.items()}, folder / "model.safetensors")
    over = str(Path(base).resolve()) if Path(base).is_dir() else base
    (folder / BASE).write_text(json.dumps({"base": over}, indent=2) + "\n", encoding="utf-8")
    (folder / "config.json").write_text(json.dumps(model.config.to_dict(), indent=2) + "\n", encoding="utf-8")
    write_calibration(folder, Calibration())
    tokenizer.save(folder)
    format.save(folder / "prompt.json")
