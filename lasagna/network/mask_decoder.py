"""SAM's prompt encoder and mask decoder, for many prompts of many images in one batch.

segment-anything decodes many prompts of *one* image. Here every prompt says which image it belongs to, so that the
present classes of all images of a batch go through the decoder at once. With `DecoderConfig` at its defaults the
weights and the arithmetic are SAM's; `coarse_mask` and `skip_channels` add the two shortcuts of the small model.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lasagna.network.compat import ensure_torchvision
from lasagna.network.config import DecoderConfig
from lasagna.network.vision import EncodedImages


class SamMaskDecoder(nn.Module):
    """Prompt embeddings, points and boxes to masks."""

    def __init__(self, config: DecoderConfig, image_size: int) -> None:
        super().__init__()
        ensure_torchvision()
        from segment_anything.modeling import MaskDecoder, PromptEncoder, TwoWayTransformer

        self.config = config
        grid = image_size // 16
        self.prompt_encoder = PromptEncoder(
            embed_dim=config.width,
            image_embedding_size=(grid, grid),
            input_image_size=(image_size, image_size),
            mask_in_chans=config.mask_channels,
        )
        self.mask_decoder = MaskDecoder(
            transformer_dim=config.width,
            transformer=TwoWayTransformer(
                depth=2, embedding_dim=config.width, num_heads=config.heads, mlp_dim=config.mlp_dim
            ),
            num_multimask_outputs=3,
            iou_head_depth=3,
            iou_head_hidden_dim=config.width,
        )
        self.coarse_bias = nn.Parameter(torch.zeros(1)) if config.coarse_mask else None

    def coarse_logits(self, encoded: EncodedImages, prompts: Tensor, owners: Tensor) -> Tensor | None:
        """Dot products of prompts and pixel embeddings.

        Args:
            prompts: (M, width).
            owners: (M,) index of the image of each prompt.

        Returns:
            (M, 2h, 2w) logits at stride 8, or None where the model has no coarse mask.
        """
        if encoded.pixel_embedding is None or self.coarse_bias is None:
            return None
        # One batched product, prompts padded per image: gathering the pixel embeddings of every prompt would take
        # hundreds of megabytes, and a product per image would meet a new shape (and a new kernel) every time.
        images = len(encoded.pixel_embedding)
        height, width = encoded.pixel_embedding.shape[-2:]
        order = owners.argsort(stable=True)
        counts = owners.bincount(minlength=images)
        column = torch.arange(len(owners), device=owners.device) - (counts.cumsum(0) - counts)[owners[order]]
        longest = -(-int(counts.max()) // 16) * 16
        padded = prompts.new_zeros((images * longest, prompts.shape[1]))
        place = owners[order] * longest + column
        padded = padded.index_copy(0, place, prompts.index_select(0, order) * self.config.width**-0.5)
        logits = padded.view(images, longest, -1) @ encoded.pixel_embedding.flatten(2)
        logits = logits.flatten(0, 1).index_select(0, place).index_select(0, order.argsort())
        return logits.view(-1, height, width) + self.coarse_bias

    def forward(self, encoded: EncodedImages, prompts: Tensor, owners: Tensor) -> tuple[Tensor, Tensor | None]:
        """Masks of prompt embeddings that the language model gave.

        Args:
            encoded: B images.
            prompts: (M, width) prompt embeddings.
            owners: (M,) index of the image of each prompt.

        Returns:
            Mask logits (M, 4h, 4w) at stride 4, and the coarse logits (M, 2h, 2w) or None.
        """
        size = encoded.embedding.shape[-2:]
        coarse = self.coarse_logits(encoded, prompts, owners)
        if coarse is None:
            dense = self._no_mask(len(prompts), size)
            return self._decode(encoded, prompts[:, None], dense, owners)[0], None
        # A mask prompt of SAM has four times the embedding's side and is a map of logits.
        guide = F.interpolate(coarse[:, None], scale_factor=2.0, mode="bilinear", align_corners=False)
        dense = self.prompt_encoder.mask_downscaling(guide)
        return self._decode(encoded, prompts[:, None], dense, owners)[0] + guide[:, 0], coarse

    def from_clicks(
        self, encoded: EncodedImages, points: Tensor, labels: Tensor, owners: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Masks of points and boxes, SAM's own prompts.

        Args:
            points: (M, P, 2) as (x, y) in [0, 1] of the input, padding included.
            labels: (M, P): 1 foreground, 0 background, -1 no point, 2 and 3 the corners of a box.
            owners: (M,) index of the image of each prompt.

        Returns:
            Mask logits (M, 4h, 4w) at stride 4 and the predicted IoU (M,).
        """
        # What PromptEncoder.forward does, from relative coordinates: its input size is fixed, ours is not.
        encoder = self.prompt_encoder
        sparse = encoder.pe_layer._pe_encoding(points.float())
        rows = torch.cat([encoder.not_a_point_embed.weight, *(e.weight for e in encoder.point_embeddings)])
        sparse = torch.where((labels == -1)[..., None], torch.zeros_like(sparse), sparse) + rows[labels + 1]
        dense = self._no_mask(len(points), encoded.embedding.shape[-2:])
        return self._decode(encoded, sparse, dense, owners)

    def _no_mask(self, count: int, size: torch.Size) -> Tensor:
        return self.prompt_encoder.no_mask_embed.weight.reshape(1, -1, 1, 1).expand(count, -1, *size)

    def _decode(self, encoded: EncodedImages, sparse: Tensor, dense: Tensor, owners: Tensor) -> tuple[Tensor, Tensor]:
        """`MaskDecoder.predict_masks` of segment-anything for prompts of several images, first mask only."""
        decoder = self.mask_decoder
        output_tokens = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight])
        tokens = torch.cat([output_tokens.expand(sparse.shape[0], -1, -1), sparse.to(output_tokens.dtype)], dim=1)
        src = encoded.embedding.index_select(0, owners) + dense
        m, c, h, w = src.shape
        position = self.prompt_encoder.pe_layer((h, w)).to(src.dtype).expand(m, -1, -1, -1)
        hidden, src = decoder.transformer(src, position, tokens)
        src = src.transpose(1, 2).reshape(m, c, h, w)
        up1, norm, act1, up2, act2 = decoder.output_upscaling
        if encoded.skips is None:
            upscaled = decoder.output_upscaling(src)
        else:
            skip8, skip4 = encoded.skips
            upscaled = act1(norm(up1(src) + skip8.index_select(0, owners)))
            upscaled = act2(up2(upscaled) + skip4.index_select(0, owners))
        weights = decoder.output_hypernetworks_mlps[0](hidden[:, 1])
        masks = torch.einsum("mc,mchw->mhw", weights, upscaled)
        return masks, decoder.iou_prediction_head(hidden[:, 0])[:, 0]
