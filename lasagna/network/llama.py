"""Llama (arXiv 2302.13971) as a decoder of embeddings, with a key/value cache that can be cut and reordered.

Weights have the names and the arithmetic of transformers' `LlamaModel`, which a test compares it with. It is written
out here because importing that class takes longer than a whole answer of a small model does: distributed tensors,
accelerate and the losses of every detector come with it. What always holds: nothing here depends on how a sequence is
cut into forwards, rounding apart; positions are given, never counted.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lasagna.errors import CheckpointError


@dataclass(frozen=True)
class LlamaShape:
    """A Llama's size: the values of transformers' `LlamaConfig` that matter here, with its defaults (the 7B).

    Attributes:
        num_key_value_heads: 0: as many as `num_attention_heads`; fewer share keys and values (arXiv 2305.13245).
        head_dim: 0: `hidden_size / num_attention_heads`.
        rope_theta: Base of the rotary positions (arXiv 2104.09864).
        rope_factor: Positions are divided by it (linear scaling, arXiv 2306.15595).
    """

    vocab_size: int = 32000
    hidden_size: int = 4096
    intermediate_size: int = 11008
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int = 0
    head_dim: int = 0
    max_position_embeddings: int = 2048
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    rope_factor: float = 1.0
    attention_bias: bool = False
    mlp_bias: bool = False
    initializer_range: float = 0.02

    @classmethod
    def from_config(cls, values: Mapping[str, Any]) -> "LlamaShape":
        """Values as `LlamaConfig` names them; what does not change the arithmetic is ignored.

        Raises CheckpointError for a number that cannot be, or a kind of Llama that is not built here.
        """
        known = {field.name: field.type for field in fields(cls)}
        kept = {key: value for key, value in values.items() if key in known and value is not None}
        rope = {**(values.get("rope_scaling") or {}), **(values.get("rope_parameters") or {})}
        kind = rope.get("rope_type", rope.get("type", "default"))
        if kind not in ("default", "linear") or values.get("hidden_act", "silu") != "silu":
            raise CheckpointError(
                f"config.json: a language model with {kind} rotary positions and {values.get('hidden_act', 'silu')} "
                "cannot be built; it is Llama with default or linear ones and silu"
            )
        kept["rope_theta"] = rope.get("rope_theta", kept.get("rope_theta", cls.rope_theta))
        kept["rope_factor"] = float(rope.get("factor", 1.0)) if kind == "linear" else 1.0
        try:
            shape = cls(**kept)
            heads = shape.num_key_value_heads or shape.num_attention_heads
            whole = all(
                isinstance(getattr(shape, name), int) and getattr(shape, name) > 0
                for name in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers")
            )
            if not whole or shape.hidden_size % shape.num_attention_heads or shape.num_attention_heads % heads:
                raise ValueError(f"{shape.hidden_size} wide, {shape.num_attention_heads} heads, {heads} of keys")
        except (TypeError, ValueError, ZeroDivisionError) as error:
            raise CheckpointError(f"config.json: not the shape of a language model: {error}") from error
        return shape

    @property
    def key_value_heads(self) -> int:
        return self.num_key_value_heads or self.num_attention_heads

    @property
    def head_size(self) -> int:
        return self.head_dim or self.hidden_size // self.num_attention_heads


class KeyValues:
    """Keys and values of the positions that were run, for R rows.

    Memory is taken ahead of need and kept, so that to append costs what is appended, and to cut costs nothing.

    Args:
        capacity: Positions that are expected; more can come.
    """

    def __init__(self, capacity: int = 0) -> None:
        self.capacity, self.length = capacity, 0
        self._layers: list[tuple[Tensor, Tensor]] = []

    def append(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Appends (R, heads, L, head size) to a layer, and returns all of it, (R, heads, length + L, head size).

        `length` grows with `advance`, when every layer has been run.
        """
        new = self.length + keys.shape[2]
        if layer == len(self._layers):
            self._layers.append((self._room(keys, new), self._room(values, new)))
        elif self._layers[layer][0].shape[2] < new:
            self.capacity = max(self.capacity, new + new // 2)
            kept = self._layers[layer]
            grown = (self._room(keys, new), self._room(values, new))
            for old, larger in zip(kept, grown, strict=True):
                larger[:, :, : self.length] = old[:, :, : self.length]
            self._layers[layer] = grown
        stored_keys, stored_values = self._layers[layer]
        stored_keys[:, :, self.length : new] = keys
        stored_values[:, :, self.length : new] = values
        return stored_keys[:, :, :new], stored_values[:, :, :new]

    def _room(self, like: Tensor, least: int) -> Tensor:
        rows, heads, _, size = like.shape
        return like.new_empty((rows, heads, max(self.capacity, least), size))

    def advance(self, count: int) -> None:
        self.length += count

    def crop(self, length: int) -> None:
        """Forgets the positions from `length` on."""
        self.length = min(self.length, length)

    def select(self, rows: Tensor) -> None:
        """Keeps these rows, in this order; a row may come more than once."""
        self._layers = [(keys[rows], values[rows]) for keys, values in self._layers]


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions of (R, heads, L, D), from cos and signed sin of (R, 1, L, D)."""
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, -1), sin)


def _take(x: Tensor, places: Tensor) -> Tensor:
    """(R, [1,] L, D) at (R, S) places of each row: (R, [1,] S, D)."""
    index = places[..., None].expand(-1, -1, x.shape[-1])
    return x.gather(-2, index if x.dim() == 3 else index[:, None])


class _Norm(nn.RMSNorm):
    def forward(self, x: Tensor) -> Tensor:
        """The norm as transformers has it: if the scale has another type, as in training, the result has that type."""
        if x.dtype == self.weight.dtype:
            return super().forward(x)
        return self.weight * F.rms_norm(x, self.normalized_shape, None, self.eps)


class _Attention(nn.Module):
    def __init__(self, shape: LlamaShape, index: int) -> None:
        super().__init__()
        self.index, self.head_size = index, shape.head_size
        width, bias = shape.hidden_size, shape.attention_bias
        inner, shared = shape.num_attention_heads * self.head_size, shape.key_value_heads * self.head_size
        self.grouped = inner != shared
        self.q_proj = nn.Linear(width, inner, bias=bias)
        self.k_proj = nn.Linear(width, shared, bias=bias)
        self.v_proj = nn.Linear(width, shared, bias=bias)
        self.o_proj = nn.Linear(inner, width, bias=bias)

    def forward(
        self,
        x: Tensor,
        rotation: tuple[Tensor, Tensor],
        mask: Tensor | None,
        causal: bool,
        cache: KeyValues | None,
        read: Tensor | None = None,
    ) -> Tensor:
        """(R, L, width) to the same, or to (R, S, width) of the positions `read`; `mask` (R or 1, 1, L or S, K) is
        added to the scores of K keys."""
        asked, turned = (x, rotation) if read is None else (_take(x, read), tuple(_take(r, read) for r in rotation))
        query, key, value = (
            part(states).unflatten(-1, (-1, self.head_size)).transpose(1, 2)
            for part, states in ((self.q_proj, asked), (self.k_proj, x), (self.v_proj, x))
        )
        query, key = _rotate(query, *turned), _rotate(key, *rotation)
        if cache is not None:
            key, value = cache.append(self.index, key, value)
        found = F.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, is_causal=causal, enable_gqa=self.grouped
        )
        projected: Tensor = self.o_proj(found.transpose(1, 2).flatten(2))
        return projected


class _MLP(nn.Module):
    def __init__(self, shape: LlamaShape) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(shape.hidden_size, shape.intermediate_size, bias=shape.mlp_bias)
        self.up_proj = nn.Linear(shape.hidden_size, shape.intermediate_size, bias=shape.mlp_bias)
        self.down_proj = nn.Linear(shape.intermediate_size, shape.hidden_size, bias=shape.mlp_bias)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return out


class _Layer(nn.Module):
    def __init__(self, shape: LlamaShape, index: int) -> None:
        super().__init__()
        self.self_attn = _Attention(shape, index)
        self.mlp = _MLP(shape)
        self.input_layernorm = _Norm(shape.hidden_size, shape.rms_norm_eps)
        self.post_attention_layernorm = _Norm(shape.hidden_size, shape.rms_norm_eps)

    def forward(
        self,
        x: Tensor,
        rotation: tuple[Tensor, Tensor],
        mask: Tensor | None,
        causal: bool,
        cache: KeyValues | None,
        read: Tensor | None = None,
    ) -> Tensor:
        attended = self.self_attn(self.input_layernorm(x), rotation, mask, causal, cache, read)
        x = (x if read is None else _take(x, read)) + attended
        out: Tensor = x + self.mlp(self.post_attention_layernorm(x))
        return out


class Llama(nn.Module):
    """The layers between embeddings and the head.

    Attributes:
        checkpointing: In training, whether a layer's activations are computed again in the backward.
    """

    def __init__(self, shape: LlamaShape) -> None:
        super().__init__()
        self.shape, self.checkpointing = shape, False
        self.embed_tokens = nn.Embedding(shape.vocab_size, shape.hidden_size)
        self.layers = nn.ModuleList(_Layer(shape, i) for i in range(shape.num_hidden_layers))
        self.norm = _Norm(shape.hidden_size, shape.rms_norm_eps)
        for part in self.modules():
            if isinstance(part, nn.Linear | nn.Embedding):
                nn.init.normal_(part.weight, std=shape.initializer_range)
            if isinstance(part, nn.Linear) and part.bias is not None:
                nn.init.zeros_(part.bias)

    def forward(
        self,
        embeddings: Tensor,
        positions: Tensor,
        valid: Tensor | None = None,
        cache: KeyValues | None = None,
        read: Tensor | None = None,
    ) -> Tensor:
        """Hidden states after the final norm.

        Args:
            embeddings: (R, L, width).
            positions: (R, L), of the rotary embedding.
            valid: (R, cached + L), 0 where a position is padding, which no other sees; None: there is none. Every
                position sees itself or an earlier one that is valid.
            cache: What was run before; it is extended. None: nothing was, and nothing is kept.
            read: (R, S) indices of the embeddings whose states are wanted, S may be 0; None: all. Of the others, the
                last layer computes keys and values alone.

        Returns:
            (R, L, width), or (R, S, width).
        """
        rotation = self._rotation(positions, embeddings.dtype)
        mask, causal = self._mask(embeddings, valid, cache.length if cache is not None else 0)
        x = embeddings
        for layer in self.layers if read is None else self.layers[:-1]:
            if self.checkpointing and self.training:
                x = checkpoint(layer, x, rotation, mask, causal, cache, use_reentrant=False)
            else:
                x = layer(x, rotation, mask, causal, cache)
        if read is not None:
            seen = self._mask_of(read, embeddings, valid, cache.length if cache is not None else 0)
            x = self.layers[-1](x, rotation, seen, False, cache, read)
        if cache is not None:
            cache.advance(embeddings.shape[1])
        normed: Tensor = self.norm(x)
        return normed

    def _rotation(self, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """cos and signed sin, (R, 1, L, head size). In float32 first: half precision would move every position."""
        size = self.shape.head_size
        steps = torch.arange(0, size, 2, device=positions.device, dtype=torch.float32) / size
        angles = positions[:, None, :, None].float() * (1.0 / (self.shape.rope_theta**steps) / self.shape.rope_factor)
        sin = angles.sin()
        return torch.cat([angles.cos()] * 2, -1).to(dtype), torch.cat([-sin, sin], -1).to(dtype)

    @staticmethod
    def _mask(embeddings: Tensor, valid: Tensor | None, cached: int) -> tuple[Tensor | None, bool]:
        """What is added to the scores, and whether the kernel is to do the causal part itself."""
        length = embeddings.shape[1]
        if valid is None and (length == 1 or not cached):
            return None, length > 1
        device = embeddings.device
        seen = torch.ones((length, cached + length), dtype=torch.bool, device=device).tril(cached)[None, None]
        if valid is not None:
            seen = seen & valid[:, None, None].bool()
        return torch.zeros_like(seen, dtype=embeddings.dtype).masked_fill(~seen, float("-inf")), False

    @staticmethod
    def _mask_of(read: Tensor, embeddings: Tensor, valid: Tensor | None, cached: int) -> Tensor:
        """What is added to the scores of the positions that are read: (R, 1, S, cached + L)."""
        keys = torch.arange(cached + embeddings.shape[1], device=embeddings.device)
        seen = keys <= cached + read[..., None]
        if valid is not None:
            seen = seen & valid[:, None].bool()
        return torch.zeros_like(seen, dtype=embeddings.dtype).masked_fill(~seen, float("-inf"))[:, None]
