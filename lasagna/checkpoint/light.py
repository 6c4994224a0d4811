"""Light checkpoints over a network that is in memory, so that several share what they have in common.

What always holds: `load_over` gives the same bits as `lasagna.checkpoint.weights.load_model` of the same folder.
"""

import contextlib
import copy
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from lasagna.checkpoint.folder import checkpoint_layers
from lasagna.checkpoint.weights import LayeredWeights, refuse_misfits
from lasagna.errors import CheckpointError
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
    own = model.state_dict()
    with contextlib.ExitStack() as stack:
        weights = LayeredWeights(above, stack)
        shapes, found = {key: tuple(value.shape) for key, value in own.items()}, weights.shapes()
        refuse_misfits(folder, shapes, {**shapes, **found})
        keys = dict.fromkeys((*found, *(key for key in weights.adapted() if key in own)))
        # on the CPU, where `load_weights` computes it
        changed = {key: weights.get(key, own[key].dtype, own[key].cpu()) for key in keys}
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
