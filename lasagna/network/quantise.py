"""The language model's matrices in 8 or 4 bits: less memory, for a small change of the answers.

Only weights are quantised; activations and sums keep the model's number format (weight-only quantisation). What always
holds: embeddings, head, norms and both image encoders stay as they are; on a device there is never more than one matrix
in full beside the quantised ones. `lasagna bench quantise` measures what changes.

torchao is not used: it imports torch's compiler, which takes longer than a whole start of ours, and its 4-bit kernels
are of one kind of GPU. A matrix is unpacked when it is used, so that this saves memory and no time.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lasagna.errors import ConfigError
from lasagna.network.model import LasagnaModel

KINDS = ("none", "int8", "int4")
GROUP = 64
"""Inputs that share a scale and an offset in 4 bits."""


class Int8Linear(nn.Module):
    """A linear layer with one scale per output: w = scale * q, q in -127 ... 127."""

    values: Tensor
    scale: Tensor
    bias: Tensor | None

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        full = weight.detach().float()
        scale = full.abs().amax(1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny) / 127
        self.register_buffer("values", (full / scale).round().to(torch.int8))
        self.register_buffer("scale", scale[:, 0].to(weight.dtype))
        self.register_buffer("bias", None if bias is None else bias.detach())

    def forward(self, x: Tensor) -> Tensor:
        """(..., inputs) to (..., outputs). The scale is applied to the product, which is smaller than the matrix."""
        out = F.linear(x, self.values.to(x.dtype)) * self.scale
        return out if self.bias is None else out + self.bias


class Int4Linear(nn.Module):
    """A linear layer with a scale and an offset per output and `GROUP` inputs: w = step * q + low, q in 0 ... 15.

    Two values share a byte, the first of them in its lower half.
    """

    values: Tensor
    step: Tensor
    low: Tensor
    bias: Tensor | None

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.inputs = weight.shape[1]
        full = F.pad(weight.detach().float(), (0, -self.inputs % GROUP)).unflatten(1, (-1, GROUP))
        low = full.amin(2, keepdim=True)
        step = (full.amax(2, keepdim=True) - low).clamp(min=torch.finfo(torch.float32).tiny) / 15
        values = ((full - low) / step).round().clamp(0, 15).to(torch.uint8)
        self.register_buffer("values", values[..., ::2] | (values[..., 1::2] << 4))
        self.register_buffer("step", step.to(weight.dtype))
        self.register_buffer("low", low.to(weight.dtype))
        self.register_buffer("bias", None if bias is None else bias.detach())

    def weight(self) -> Tensor:
        """The matrix, (outputs, inputs), in the type of its scales."""
        values = torch.stack([self.values & 15, self.values >> 4], -1).flatten(2)
        return torch.addcmul(self.low, values.to(self.step.dtype), self.step).flatten(1)[:, : self.inputs]

    def forward(self, x: Tensor) -> Tensor:
        """(..., inputs) to (..., outputs)."""
        return F.linear(x, self.weight(), self.bias)


def quantise_layers(model: LasagnaModel, kind: str, device: torch.device | None = None) -> LasagnaModel:
    """Replaces the linear layers of the language model, in place, one by one.

    Args:
        kind: One of `KINDS`.
        device: Where the whole model is to be; its other parts are moved there afterwards. None: where it is.

    Raises ConfigError for another kind.
    """
    if kind not in KINDS:
        raise ConfigError(f"unknown quantisation {kind!r}; it is {', '.join(KINDS)}")
    if kind != "none":
        made = Int8Linear if kind == "int8" else Int4Linear
        for parent in list(model.language_model.layers.modules()):
            for name, layer in list(parent.named_children()):
                if isinstance(layer, nn.Linear):
                    weight = layer.weight if device is None else layer.weight.to(device)
                    setattr(parent, name, made(weight, layer.bias))
    return model if device is None else model.to(device)


def quantisation_of(model: LasagnaModel) -> str:
    """Which of `KINDS` the language model's matrices are in."""
    for layer in model.language_model.layers.modules():
        if isinstance(layer, Int8Linear | Int4Linear):
            return "int8" if isinstance(layer, Int8Linear) else "int4"
    return "none"


def weight_bytes(model: nn.Module) -> int:
    """Bytes of all parameters and buffers; works on the device "meta" too."""
    return sum(tensor.numel() * tensor.element_size() for tensor in [*model.parameters(), *model.buffers()])
