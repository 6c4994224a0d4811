"""CLIPSeg (Lüddecke and Ecker, CVPR 2022) behind the contract: one name gives one map.

CLIP's tower runs once per photo, its text encoder once per name (kept), the small decoder once per name and photo, in
blocks. CLIPSeg has no answer for presence: the margin of a name is the mean of the largest `PEAK` of its map's logits,
so that one bright pixel is no presence. It is not calibrated by its makers; `lasagna calibrate` does it.
"""

from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lasagna.assistant.devices import choose_device, choose_dtype
from lasagna.models.foreign import EncodedPhoto, ForeignModel, Said, blocks, load_network, masks_of_logits, read_folder

PEAK = 0.01
"""Share of the map whose mean logit is the margin."""


def load(folder: Path, *, device: str = "auto", dtype: str = "auto") -> "ClipSeg":
    """Reads a folder that transformers' `CLIPSegForImageSegmentation` and `CLIPSegProcessor` wrote."""
    place = choose_device(device)

    def read(transformers: Any) -> ClipSeg:
        network = load_network(transformers.CLIPSegForImageSegmentation, folder, place, choose_dtype(dtype, place))
        return ClipSeg(folder, network, transformers.CLIPSegProcessor.from_pretrained(folder, local_files_only=True))

    return read_folder(folder, read)


class ClipSeg(ForeignModel):
    """A loaded CLIPSeg."""

    def _encode(self, image: NDArray[np.uint8]) -> list[Tensor]:
        """The activations that the decoder reads: (1, tokens, width) each."""
        pixels = self.processor.image_processor(images=[image], return_tensors="pt")["pixel_values"]
        states = self.network.clip.vision_model(
            pixel_values=pixels.to(self.device, self.network.dtype),
            output_hidden_states=True,
            interpolate_pos_encoding=True,
        ).hidden_states
        return [states[layer + 1] for layer in self.network.extract_layers]

    def _say(
        self,
        photo: EncodedPhoto,
        texts: list[str],
        even: Tensor,
        exclusive: bool,
        block: int,
        apart: Collection[str],
    ) -> Said:
        conditions = torch.stack(self._kept_texts(texts, self._conditions))
        margins, kept = [], []
        for part in blocks(len(texts), block):
            rows = conditions[part]
            activations = [one.expand(len(rows), *one.shape[1:]) for one in photo.features]
            logits = self.network.decoder(activations, rows).logits.float()
            logits = logits.reshape(len(rows), *logits.shape[-2:])
            margin = peak(logits).cpu()
            margins.append(margin)
            kept.append(logits[margin >= even[part]])
        masks, stability = masks_of_logits(torch.cat(kept), photo.size, exclusive)
        return Said(torch.cat(margins), masks, stability, [None] * len(masks))

    def _conditions(self, texts: list[str]) -> list[Tensor]:
        words = self.processor.tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt")
        words = {key: words[key].to(self.device) for key in ("input_ids", "attention_mask")}
        found = self.network.get_conditional_embeddings(batch_size=len(texts), **words)
        return list(found)


def peak(logits: Tensor) -> Tensor:
    """(N, h, w) to (N,): the mean of the largest `PEAK` of each map."""
    flat = logits.flatten(1)
    return flat.topk(max(1, round(PEAK * flat.shape[1])), dim=1).values.mean(1)
