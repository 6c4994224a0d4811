"""Which weights a run trains: the recipe's choice made on a model, and checked.

What always holds after `choose_trained`: a parameter requires a gradient exactly if `is_trained` says so of its name.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from lasagna.errors import ConfigError
from lasagna.network.model import LasagnaModel
from training.engine.adapters import EMBEDDING, HEAD, add_lora, add_token_rows, is_added
from training.recipe.values import Optimiser, Trained


def choose_trained(model: LasagnaModel, trained: Trained, new_tokens: Sequence[int] = ()) -> None:
    """Adds the recipe's adapters and freezes what it does not train.

    Args:
        new_tokens: Ids whose rows `token_rows: new` trains.

    Raises ConfigError for a part that the model does not have.
    """
    names = [name for name, _ in model.named_parameters()]
    for part in trained.parts:
        if not any(_within(name, part) for name in names):
            raise ConfigError(f"trained.parts: the model has no parameter in {part!r}")
    if trained.lora:
        layers = {name.split(".")[-2] for name, _ in model.language_model.named_parameters()}
        if unknown := set(trained.lora.modules) - layers:
            raise ConfigError(f"trained.lora.modules: the language model has no {', '.join(sorted(unknown))}")
        add_lora(model, trained.lora)
    if trained.token_rows == "new":
        add_token_rows(model, new_tokens)
    rule = trained_rule(model, trained)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(rule(name))
        if parameter.requires_grad:
            parameter.data = parameter.data.float()  # small steps are lost in half precision
    check_trained(model, trained)


def cast_frozen(model: LasagnaModel, dtype: torch.dtype) -> None:
    """Holds frozen weights in a type; batch normalisation stays float32, as in
    `lasagna.assistant.lasagna.cast_weights`."""
    kept = {id(p) for m in model.modules() if isinstance(m, nn.BatchNorm2d) for p in m.parameters()}
    for parameter in model.parameters():
        if not parameter.requires_grad and id(parameter) not in kept:
            parameter.data = parameter.data.to(dtype)


def checkpoint_gradients(model: LasagnaModel) -> None:
    """The language model's activations are computed again in the backward."""
    model.language_model.checkpointing = True


def trained_rule(model: LasagnaModel, trained: Trained) -> Callable[[str], bool]:
    """A function that says of a parameter's name whether it is trained."""
    fixed = fixed_backbone(model, trained.frozen_stages) if model.config.vision.kind == "pyramid" else set()

    def is_trained(name: str) -> bool:
        if is_added(name) or (trained.token_rows == "all" and name in (f"{EMBEDDING}.weight", f"{HEAD}.weight")):
            return True
        return name not in fixed and any(_within(name, part) for part in trained.parts)

    return is_trained


def check_trained(model: LasagnaModel, trained: Trained) -> None:
    """Raises ConfigError that names every parameter that is trained and should not be, or the reverse."""
    rule = trained_rule(model, trained)
    problems = [
        f"{name} is {'trained' if parameter.requires_grad else 'frozen'}, the recipe says otherwise"
        for name, parameter in model.named_parameters()
        if parameter.requires_grad != rule(name)
    ]
    if problems:
        shown = "\n  ".join(problems[:10])
        raise ConfigError(f"{len(problems)} parameters are not as `trained` says:\n  {shown}")


def fixed_backbone(model: LasagnaModel, stages: int) -> set[str]:
    """Names of the backbone's parameters that never move: its first stages, its normalisations, its depthwise kernels.

    The depthwise kernels for speed: the gradient of a 5x5 one's weights takes 30 to 60 ms in bfloat16 on a CPU, 40
    times its forward, and all of them together were a quarter of a step.
    """
    backbone = model.encoder.backbone
    modules: list[nn.Module] = [backbone.conv_stem, backbone.bn1, *backbone.blocks[:stages]] if stages else []
    modules += [m for m in backbone.modules() if isinstance(m, nn.BatchNorm2d) or getattr(m, "groups", 1) > 1]
    inside = {id(parameter) for module in modules for parameter in module.parameters()}
    return {name for name, parameter in model.named_parameters() if id(parameter) in inside}


def parameter_groups(model: nn.Module, options: Optimiser) -> list[dict[str, Any]]:
    """Backbone and rest, matrices with weight decay and vectors and embeddings without; empty groups left out."""
    groups = []
    for is_backbone in (False, True):
        for decayed in (False, True):
            parameters = [
                parameter
                for name, parameter in model.named_parameters()
                if parameter.requires_grad
                and ("encoder.backbone." in name) == is_backbone
                and (parameter.ndim > 1 and "embed" not in name) == decayed
            ]
            groups.append(
                {
                    "params": parameters,
                    "weight_decay": options.weight_decay if decayed else 0.0,
                    "lr": options.learning_rate * (options.backbone_rate if is_backbone else 1.0),
                }
            )
    return [group for group in groups if group["params"]]


def _within(name: str, part: str) -> bool:
    return name == part or name.startswith(part + ".")
