"""SAM 3 (Carion et al., arXiv 2511.16719) behind the contract: a label set is a list of concepts on one photo.

The photo's vision features are computed once. A name's text features are computed once and kept. The detector runs for
all names, `block` at a time over the same features; the mask head runs for the present names alone (presence first).
What always holds: whether a name is present is decided from the detector's output, so the masks that are not drawn
would change no decision: nothing is left out that would have been present, and answers are those of the plain way.

A query's score is that of transformers' post-processing: sigmoid(its logit) * sigmoid(the name's presence logit). A
name's margin is the log-odds of its best query's score, which calibration takes as any other. Of stuff (sky, road) the
mask is the semantic head's; of every other name, and where objects are wanted, it is the union of the queries that
reach the name's threshold, each an object, better ones first.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from lasagna.assistant.devices import choose_device, choose_dtype
from lasagna.assistant.drawing import mask_stability
from lasagna.assistant.inputs import ImageLike, check_prompt
from lasagna.checkpoint.architectures import model_type
from lasagna.contract.model import Abilities
from lasagna.files import parse_json
from lasagna.labels.kinds import kind_of
from lasagna.masks.segmentation import Mask
from lasagna.models.closed_list import log_odds
from lasagna.models.foreign import (
    EncodedPhoto,
    ForeignModel,
    LargeMasks,
    Parts,
    Said,
    blocks,
    load_network,
    read_folder,
)
from lasagna.models.sam3_clicks import Clicks

TEXT_TOKENS = 32
"""A concept's length, as `Sam3Processor` pads it; a longer one is cut."""
SAME = 0.5
"""Share of a query's mask that objects of better queries must leave, else it is a part of one of them."""
_NETWORKS = {"sam3": "Sam3Model", "sam3_video": "Sam3Model", "sam3_lite_text": "Sam3LiteTextModel"}


def load(folder: Path, *, device: str = "auto", dtype: str = "auto") -> "Sam3":
    """Reads a folder of SAM 3's image model, with either text encoder, or of the video model that contains it."""
    place = choose_device(device)

    def read(transformers: Any) -> Sam3:
        kind = getattr(transformers, _NETWORKS[model_type(folder)])
        network = load_network(kind, folder, place, choose_dtype(dtype, place))
        clicks = None
        if _has_tracker(folder):
            tracker = load_network(transformers.Sam3TrackerModel, folder, place, choose_dtype(dtype, place))
            clicks = Clicks(tracker, network.vision_encoder.backbone)
        processor = transformers.Sam3Processor.from_pretrained(folder, local_files_only=True)
        return Sam3(folder, network, processor, clicks)

    return read_folder(folder, read)


def _has_tracker(folder: Path) -> bool:
    """Whether a folder of the video model has what answers clicks."""
    config = parse_json((folder / "config.json").read_text(encoding="utf-8"))
    return model_type(folder) == "sam3_video" and bool(config.get("tracker_config"))


@dataclass
class _Photo:
    """A photo, on the device: (1, 3, side, side) pixels, and what detector and tracker make of them when either is
    asked first."""

    pixels: Tensor
    vision: Any = None
    embeddings: list[Tensor] | None = None


class Sam3(ForeignModel):
    """A loaded SAM 3.

    Attributes:
        presence_first: Whether masks are drawn of present names alone; False: of all, for comparisons of time.
        clicks: What answers clicks; None: the folder has no tracker.
    """

    abilities = Abilities(keeps_images=True, objects=True)
    block = 8
    presence_first = True

    def __init__(self, folder: Path, network: Any, processor: Any, clicks: Clicks | None = None) -> None:
        super().__init__(folder, network, processor)
        self.clicks = clicks
        self.abilities = replace(self.abilities, clicks=clicks is not None)

    def _encode(self, image: NDArray[np.uint8]) -> _Photo:
        pixels = self.processor.image_processor(images=[image], return_tensors="pt")["pixel_values"]
        return _Photo(pixels.to(self.network.device, self.network.dtype))

    def _vision(self, photo: _Photo) -> Any:
        if photo.vision is None:
            photo.vision = self.network.get_vision_features(pixel_values=photo.pixels)
        return photo.vision

    def segment_prompt(
        self,
        image: ImageLike | EncodedPhoto,
        *,
        points: Sequence[tuple[float, float, bool]] = (),
        box: tuple[float, float, float, float] | None = None,
    ) -> tuple[Mask, float]:
        """As the contract says, where the folder has a tracker."""
        if self.clicks is None:
            raise self.cannot("clicks")
        with self._lock, torch.inference_mode():
            encoded = self._encoded(image)
            check_prompt(points, box, encoded.size)
            photo: _Photo = encoded.features
            if photo.embeddings is None:
                photo.embeddings = self.clicks.embed(photo.pixels)
            side = (photo.pixels.shape[-2], photo.pixels.shape[-1])
            return self.clicks.answer(photo.embeddings, side, encoded.size, points, box)

    def _concepts(self, texts: list[str]) -> list[tuple[Tensor, Tensor]]:
        """(tokens, width) text features and the (tokens,) mask of each."""
        words = self.processor.tokenizer(
            texts, padding="max_length", max_length=TEXT_TOKENS, truncation=True, return_tensors="pt"
        ).to(self.network.device)
        mask = words["attention_mask"]
        features = self.network.get_text_features(input_ids=words["input_ids"], attention_mask=mask).pooler_output
        return list(zip(features, mask.bool(), strict=True))

    def _say(
        self,
        photo: EncodedPhoto,
        texts: list[str],
        even: Tensor,
        exclusive: bool,
        block: int,
        apart: Collection[str],
    ) -> Said:
        concepts, vision = self._kept_texts(texts, self._concepts), self._vision(photo.features)
        margins: list[Tensor] = []
        drawn = _Drawn(photo.size, exclusive)
        for part in blocks(len(texts), block):
            features, mask = (torch.stack(values) for values in zip(*concepts[part], strict=True))
            of_queries, states = self.detect(vision, features, mask)
            margin, level = of_queries.amax(1).cpu(), even[part]
            margins.append(margin)
            present = (margin >= level).nonzero()[:, 0]
            rows = present if self.presence_first else torch.arange(len(margin))
            if not len(rows):
                continue
            logits, semantic = self.draw(vision, features[rows], mask[rows], [state[rows] for state in states])
            for row, number in zip(torch.isin(rows, present).nonzero()[:, 0].tolist(), present.tolist(), strict=True):
                text, scores = texts[part.start + number], of_queries[number].cpu()
                if kind_of(text) == "stuff" and text not in apart:
                    drawn.add_stuff(semantic[row].float())
                    continue
                kept = (scores >= level[number]).nonzero()[:, 0]
                kept = kept[scores[kept].argsort(descending=True, stable=True)]
                drawn.add_things(logits[row, kept].float(), scores[kept], text in apart)
        return drawn.said(torch.cat(margins))

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

    def draw(self, vision: Any, text: Tensor, mask: Tensor, states: list[Tensor]) -> tuple[Tensor, Tensor]:
        """The mask head of N names: logits of the queries (N, Q, h, w) and of the semantic head (N, 1, h, w); arguments
        as of `detect`, with its states."""
        levels = [level.expand(len(text), *level.shape[1:]) for level in vision.fpn_hidden_states[:-1]]
        found = self.network.mask_decoder(
            decoder_queries=states[1],
            backbone_features=levels,
            encoder_hidden_states=states[0],
            prompt_features=text,
            prompt_mask=mask,
        )
        return found.pred_masks, found.semantic_seg


class _Drawn:
    """The present names of a photo, drawn one after the other.

    Args:
        size: (height, width) of the photo.
        exclusive: Whether a pixel belongs to at most one name.
    """

    def __init__(self, size: tuple[int, int], exclusive: bool) -> None:
        self._size, self._exclusive = size, exclusive
        self._masks = LargeMasks(size, 0.5, exclusive)
        self._stability: list[float | None] = []
        self._parts: list[Parts | None] = []

    def add_stuff(self, logits: Tensor) -> None:
        """By the semantic head's (1, h, w) logits."""
        self._add(_large(logits, self._size), logits, None)

    def add_things(self, logits: Tensor, scores: Tensor, apart: bool) -> None:
        """By the kept queries, the best first: (K, h, w) logits and the log-odds of their scores (K,), which are
        objects where `apart`.

        One query after the other, so that many objects of a large photo take the memory of one.
        """
        best = torch.zeros(self._size)
        numbers = np.zeros(self._size if apart else (0, 0), np.uint16)
        margins: list[float] = []
        for row, score in zip(logits, scores.tolist(), strict=True):
            large = _large(row[None], self._size)
            torch.maximum(best, large, out=best)
            if apart:
                _add(numbers, (large > 0.5).numpy(), margins, score)
        parts = Parts(numbers, torch.tensor(margins)) if apart else None
        self._add(best, logits.amax(0, keepdim=True), parts)

    def _add(self, large: Tensor, logits: Tensor, parts: Parts | None) -> None:
        self._masks.add(large)
        self._stability.append(float(mask_stability(logits)[0]))
        self._parts.append(parts)

    def said(self, margins: Tensor) -> Said:
        """What is said of all names with these margins, of which the present ones were drawn."""
        masks = self._masks.masks()
        if self._exclusive:  # objects lie inside
            for mask, parts in zip(masks, self._parts, strict=True):
                if parts is not None:
                    parts.numbers[~mask] = 0
        return Said(margins, masks, self._stability, self._parts)


def _add(numbers: NDArray[np.uint16], mask: Mask, margins: list[float], score: float) -> None:
    """Adds a query's mask to the objects of better ones, in place: as an object, or to that which it is part of."""
    fresh = mask & (numbers == 0)
    if not fresh.any():
        return
    if fresh.sum() >= SAME * mask.sum():
        margins.append(score)
        numbers[fresh] = len(margins)
    else:
        numbers[fresh] = np.bincount(numbers[mask])[1:].argmax() + 1


def _large(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """(1, h, w) logits to probabilities (H, W) on the CPU."""
    large = F.interpolate(logits[None].sigmoid(), size=size, mode="bilinear", align_corners=False)
    return large[0, 0].cpu()
