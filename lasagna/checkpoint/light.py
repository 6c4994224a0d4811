"""Light checkpoints over a network that is in memory, so that several share what they have in common.

What always holds: `load_over` gives the same bits as `lasagna.checkpoint.folder.load_model` of the same folder.
"""

import contextlib
import copy
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from lasagna.checkpoint.folder import checkpoint_layers, open_weights, weight_problems
from lasagna.errors import CheckpointError
from lasagna.network.adapter import load_adapter
from lasagna.network.config import ModelConfig
from lasagna.network.model import LasagnaModel

_Network = TypeVar("_Network", bound=nn.Module)


def can_share(folder: Path, base: Path, network: LasagnaModel) -> bool:
    """Whether `load_over` can be used: a checkpoint holds only what differs from that of a network, directly or through
    one between them, and the network's weights have not been rounded since an adapter would have been added."""
    exact = network.dtype == torch.float32 or network.config.vision.kind == "clip-sam"  # as `load_model` goes about it
    return exact and base.resolve() in [layer.resolve() for layer in checkpoint_layers(folder)[:-1]]


def load_over(folder: Path, base: Path, network: LasagnaModel) -> LasagnaModel:
    """The network of a folder, in eval mode, on the device and in the type of another.

    Args:
        folder: Laid over `base`; see `can_share`.
        network: That of `base`. The two share every weight that the folders above the base do not change, so neither
            may be changed in place.

    Raises CheckpointError where the folder does not fit the base.
    """
    if ModelConfig.load(folder / "config.json") != network.config:
        raise CheckpointError(f"{folder}: its config.json is not that of {base}, which it is laid over")
    layers = checkpoint_layers(folder)
    above = layers[[layer.resolve() for layer in layers].index(base.resolve()) + 1 :]
    model = shared_copy(network)
    own, changed = model.state_dict(), dict[str, Tensor]()
    for layer in above:
        adapter = load_adapter(layer)
        with contextlib.ExitStack() as stack:
            contents = open_weights(layer, stack)
            shapes = {key: tuple(value.shape) for key, value in own.items()}
            found = {key: tuple(file.get_slice(key).get_shape()) for key, file in contents.items()}
            if problems := weight_problems(shapes, {**shapes, **found}):
                raise CheckpointError(f"{folder}: the weights do not fit the model:\n  " + "\n  ".join(problems[:10]))
            adapted = [f"language_model.{key}" for key in adapter.factors] if adapter else []
            for key in dict.fromkeys((*contents, *(key for key in adapted if key in own))):
                # on the CPU, where `load_weights` computes it
                value = contents[key].get_tensor(key) if key in contents else changed.get(key, own[key]).cpu()
                value = value.to(own[key].dtype)
                changed[key] = adapter.merge(key.removeprefix("language_model."), value) if adapter else value
    for key, value in changed.items():
        replace_weight(model, key, value.to(own[key].device))
    return model.eval()


def shared_copy(network: _Network) -> _Network:
    """A copy of the modules over the same weights."""
    return copy.deepcopy(network, {id(value): value for value in (*network.parameters(), *network.buffers())})


def replace_weight(model: nn.Module, key: str, value: Tensor) -> None:
    """Replaces a parameter or buffer of this module, and of no other that has the same tensor."""
    name, _, leaf = key.rpartition(".")
    module = model.get_submodule(name)
    if leaf in module._parameters:
        module._parameters[leaf] = nn.Parameter(value, requires_grad=False)
    else:
        module._buffers[leaf] = value


class LayeredWeights:
    """The weights of a checkpoint folder, whole or light, one at a time and without a network.

    Args:
        folder: The checkpoint.
        stack: Closes the files.
    """

    def __init__(self, folder: Path, stack: contextlib.ExitStack) -> None:
        self._layers = [
            (layer.resolve(), open_weights(layer, stack), load_adapter(layer)) for layer in checkpoint_layers(folder)
        ]

    def keys(self) -> list[str]:
        return sorted({key for _, contents, _ in self._layers for key in contents})

    def origin(self, key: str) -> tuple[Path, ...]:
        """The folders that decide a weight: where these are the same for two checkpoints, the weight is."""
        found: tuple[Path, ...] = ()
        for layer, contents, adapter in self._layers:
            if key in contents:
                found = (layer,)
            elif adapter and key.removeprefix("language_model.") in adapter.factors:
                found = (*found, layer)
        return found

    def get(self, key: str) -> Tensor:
        """A weight in float32, with every adapter added."""
        value = Tensor()
        for _, contents, adapter in self._layers:
            if key in contents:
                value = contents[key].get_tensor(key).float()
            if adapter and key.startswith("language_model."):
                value = adapter.merge(key.removeprefix("language_model."), value)
        return value
