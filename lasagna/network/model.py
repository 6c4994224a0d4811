"""The architecture: vision tower, projector, Llama, prompt projection, SAM mask decoder.

    image ─ encoder ─┬─ tokens ─ projector ─┐
                     │        question ─────┼─ Llama ─ hidden state before each decision ─┬─ lm_head: <SEG> or <NEG>
                     │        answer so far ┘                                             └─ projection ─┐
                     └─ embedding ────────────────────────────────────────────── SAM mask decoder ───────┴─ mask

One class serves every size; `ModelConfig` says which. The hidden state, after the final norm, at the position *before*
a decision gives both the decision and the mask's prompt embedding, as in the released model.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lasagna.errors import CheckpointError
from lasagna.network.config import DecoderConfig, ModelConfig, VisionConfig
from lasagna.network.llama import KeyValues, Llama, LlamaShape
from lasagna.network.mask_decoder import SamMaskDecoder
from lasagna.network.pyramid import PyramidEncoder


class LasagnaModel(nn.Module):
    """The network. Text in and out is token ids; see `lasagna.prompt.sequences` for how they are made."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        text = LlamaShape.from_config(config.text)
        self.encoder = build_encoder(config.vision, config.decoder)
        width = text.hidden_size
        if config.projector == "linear":
            self.projector: nn.Module = nn.Linear(self.encoder.token_dim, width)
        else:
            self.projector = nn.Sequential(nn.Linear(self.encoder.token_dim, width), nn.GELU(), nn.Linear(width, width))
        self.language_model = Llama(text)
        self.lm_head = nn.Linear(width, text.vocab_size, bias=False)
        self.prompt_projection = nn.Sequential(
            nn.Linear(width, width), nn.ReLU(), nn.Linear(width, config.decoder.width)
        )
        self.segmenter = SamMaskDecoder(config.decoder, config.vision.image_size)

    @classmethod
    def without_weights(cls, config: ModelConfig, device: torch.device, dtype: torch.dtype) -> "LasagnaModel":
        """The network with its memory allocated and nothing in it: what loading fills, at no more than its size.

        Args:
            dtype: Of the parameters; buffers are float32.
        """
        with torch.device("meta"):
            model = cls(config)
        cast_weights(model, dtype).to_empty(device=device)
        if config.vision.kind == "clip-sam":  # a buffer that no checkpoint holds
            embeddings = model.encoder.clip.embeddings
            embeddings.position_ids.copy_(torch.arange(embeddings.num_positions, device=device))
        return model

    @property
    def device(self) -> torch.device:
        return self.lm_head.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.lm_head.weight.dtype

    def embed(self, ids: Tensor | Sequence[int]) -> Tensor:
        """Token ids (...) to embeddings (..., width)."""
        return self.language_model.embed_tokens(torch.as_tensor(ids, device=self.device))

    def prefix(self, before_image: Sequence[int], tokens: Tensor) -> Tensor:
        """Embeddings of what all chunks of an image share.

        Args:
            before_image: Ids before the image.
            tokens: (B, T, C) image tokens of the encoder.

        Returns:
            (B, len(before_image) + T, width).
        """
        before = self.embed(before_image).expand(len(tokens), -1, -1)
        return torch.cat([before, self.projector(tokens.to(self.dtype)).to(before.dtype)], dim=1)

    def sequence(self, ids: Sequence[int], tokens: Tensor) -> Tensor:
        """Embeddings of a whole sequence.

        Args:
            ids: With one id below zero, in whose place the image's tokens come.
            tokens: (T, C) image tokens of the encoder.

        Returns:
            (len(ids) - 1 + T, width).
        """
        place = next(i for i, token in enumerate(ids) if token < 0)
        image = self.projector(tokens.to(self.dtype))
        return torch.cat([self.embed(ids[:place]), image, self.embed(ids[place + 1 :])])

    def run(
        self,
        embeddings: Tensor,
        mask: Tensor | None,
        positions: Tensor,
        cache: KeyValues | None,
        read: Tensor | None = None,
    ) -> Tensor:
        """One forward of the language model.

        Args:
            embeddings: (R, L, width).
            mask: (R, cached + L), 0 where a position is padding, or None.
            positions: (R, L).
            cache: Extended in place, or None.
            read: (R, S) indices of the embeddings whose states are wanted; None: all.

        Returns:
            (R, L or S, width) hidden states after the final norm.
        """
        hidden: Tensor = self.language_model(embeddings, positions, mask, cache, read)
        return hidden

    def margins(self, hidden: Tensor, seg: int, neg: int) -> Tensor:
        """logit(<SEG>) - logit(<NEG>) in float32: (..., width) to (...)."""
        rows = self.lm_head.weight[[seg, neg]].float()
        return hidden.float() @ (rows[0] - rows[1])


def cast_weights(model: LasagnaModel, dtype: torch.dtype) -> LasagnaModel:
    """Casts weights in place. Buffers (positional frequencies) and batch statistics stay float32: in half
    precision they would move every position."""
    kept = {id(p) for m in model.modules() if isinstance(m, nn.BatchNorm2d) for p in m.parameters()}
    for parameter in model.parameters():
        if id(parameter) not in kept:
            parameter.data = parameter.data.to(dtype)
    return model


def build_encoder(vision: VisionConfig, decoder: DecoderConfig) -> Any:
    """The encoder that `vision.kind` names. Raises CheckpointError for another kind."""
    if vision.kind == "pyramid":
        return PyramidEncoder(vision, decoder)
    if vision.kind == "clip-sam":
        from lasagna.network.clip_sam import ClipSamEncoder

        return ClipSamEncoder(vision, decoder)
    raise CheckpointError(f"unknown vision kind {vision.kind!r}; one of pyramid, clip-sam")
