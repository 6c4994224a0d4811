"""SAM 3 (Carion et al., arXiv 2511.16719) behind the contract: a label set is a list of concepts on one photo.

The photo's vision features are computed once. A name's text features are computed once and kept. The detector runs for
all names, `block` at a time over the same features; the mask head runs for the present names alone (presence first).
What always holds: whether a name is present is decided from the detector's output, so the masks that are not drawn
would change no decision: nothing is left out that would have been present, and answers are those of the plain way.

A query's score is that of transformers' post-processing: sigmoid(its logit) * sigmoid(the name's presence logit). A
name's margin is the log-odds of its best query's score, which calibration takes as any other. Queries that reach the
name's threshold are kept, and the mask is their union.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from lasagna.assistant.devices import choose_device, choose_dtype
from lasagna.assistant.drawing import mask_stability
from lasagna.models.closed_list import log_odds
from lasagna.models.foreign import EncodedPhoto, ForeignModel, Said, blocks, load_network, read_folder

TEXT_TOKENS = 32
"""A concept's length, as `Sam3Processor` pads it; a longer one is cut."""


def load(folder: Path, *, device: str = "auto", dtype: str = "auto") -> "Sam3":
    """Reads a folder of SAM 3's image model, or of the video model that contains it."""
    place = choose_device(device)

    def read(transformers: Any) -> Sam3:
        network = load_network(transformers.Sam3Model, folder, place, choose_dtype(dtype, place))
        return Sam3(folder, network, transformers.Sam3Processor.from_pretrained(folder, local_files_only=True))

    return read_folder(folder, read)


class Sam3(ForeignModel):
    """A loaded SAM 3.

    Attributes:
        presence_first: Whether masks are drawn of present names alone; False: of all, for comparisons of time.
    """

    block = 8
    presence_first = True

    def _encode(self, image: NDArray[np.uint8]) -> Any:
        pixels = self.processor.image_processor(images=[image], return_tensors="pt")["pixel_values"]
        return self.network.get_vision_features(pixel_values=pixels.to(self.network.device, self.network.dtype))

    def _concepts(self, texts: list[str]) -> list[tuple[Tensor, Tensor]]:
        """(tokens, width) text features and the (tokens,) mask of each."""
        words = self.processor.tokenizer(
            texts, padding="max_length", max_length=TEXT_TOKENS, truncation=True, return_tensors="pt"
        ).to(self.network.device)
        mask = words["attention_mask"]
        features = self.network.get_text_features(input_ids=words["input_ids"], attention_mask=mask).pooler_output
        return list(zip(features, mask.bool(), strict=True))

    def _say(self, photo: EncodedPhoto, texts: list[str], even: Tensor, exclusive: bool, block: int) -> Said:
        concepts = self._kept_texts(texts, self._concepts)
        margins: list[Tensor] = []
        maps: list[Tensor] = []
        stability: list[float | None] = []
        for part in blocks(len(texts), block):
            features, mask = (torch.stack(values) for values in zip(*concepts[part], strict=True))
            of_queries, states = self.detect(photo.features, features, mask)
            margin, level = of_queries.amax(1).cpu(), even[part]
            margins.append(margin)
            present = (margin >= level).nonzero()[:, 0]
            drawn = present if self.presence_first else torch.arange(len(margin))
            if not len(drawn):
                continue
            logits = self.draw(photo.features, features[drawn], mask[drawn], [state[drawn] for state in states])
            for row, number in zip(logits[torch.isin(drawn, present)], present.tolist(), strict=True):
                kept = row[of_queries[number].cpu() >= level[number]].float()
                large = F.interpolate(kept[None].sigmoid(), size=photo.size, mode="bilinear", align_corners=False)
                maps.append(large[0].amax(0).cpu())
                stability += mask_stability(kept.amax(0, keepdim=True)).tolist()
        return Said(torch.cat(margins), _masks(maps, exclusive), stability)

    def detect(self, vision: Any, text: Tensor, mask: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The detector alone, as `Sam3Model.forward` runs it without boxes.

        Args:
            vision: Features of one photo.
            text: (N, tokens, width) features of N names, and their mask (N, tokens).

        Returns:
            (N, Q) log-odds of the queries' scores, and what `draw` needs: states of encoder and decoder.
        """
        network = self.network
        level = vision.fpn_hidden_states[:-1][-1]
        position = vision.fpn_position_encoding[:-1][-1]
        encoded = network.detr_encoder(
            vision_features=[level.expand(len(text), *level.shape[1:])],
            text_features=text,
            vision_pos_embeds=[position.expand(len(text), *position.shape[1:])],
            text_mask=mask,
        )
        decoded = network.detr_decoder(
            vision_features=encoded.last_hidden_state,
            text_features=encoded.text_features,
            vision_pos_encoding=encoded.pos_embeds_flattened,
            text_mask=mask,
            spatial_shapes=encoded.spatial_shapes,
        )
        queries = decoded.intermediate_hidden_states
        logits = network.dot_product_scoring(
            decoder_hidden_states=queries, text_features=encoded.text_features, text_mask=mask
        )
        score = F.logsigmoid(logits.squeeze(-1)[-1].float()) + F.logsigmoid(decoded.presence_logits[-1].float())
        return log_odds(score), [encoded.last_hidden_state, queries[-1]]

    def draw(self, vision: Any, text: Tensor, mask: Tensor, states: list[Tensor]) -> Tensor:
        """The mask head of N names: (N, Q, h, w) logits; arguments as of `detect`, with its states."""
        levels = [level.expand(len(text), *level.shape[1:]) for level in vision.fpn_hidden_states[:-1]]
        masks: Tensor = self.network.mask_decoder(
            decoder_queries=states[1],
            backbone_features=levels,
            encoder_hidden_states=states[0],
            prompt_features=text,
            prompt_mask=mask,
        ).pred_masks
        return masks


def _masks(maps: list[Tensor], exclusive: bool) -> list[Any]:
    """Probability maps (H, W) to masks."""
    if not maps:
        return []
    stacked = torch.stack(maps)
    masks = stacked > 0.5
    if exclusive:
        masks &= torch.zeros_like(masks).scatter_(0, stacked.argmax(0, keepdim=True), True)
    return [mask.numpy() for mask in masks]
