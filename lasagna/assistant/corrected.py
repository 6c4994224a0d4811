"""A model with an instant head (`lasagna.instant`): how a photo is observed, and how it is answered.

What always holds: the photo goes through the encoder once, whatever the head; while the gate keeps the head out, masks
and decisions are the model's; classes of one name get one answer.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lasagna.assistant.answers import ClassDecider, Decided, ImageFeatures
from lasagna.instant.correction import Correction, ModelAnswer, make_correction
from lasagna.instant.features import FeatureMaps, feature_maps
from lasagna.instant.head import Head
from lasagna.instant.painting import paint, stability
from lasagna.masks.segmentation import ClassAnswer, ClassQuery, Mask, Segmentation, class_queries

_DECODED = 8
"""Masks of a correction that are decoded at most beside those of the annotation and of the model's decision: those of
the likeliest classes. A mask takes 5 to 10 ms on a CPU."""
_LIKELY = 0.05
"""A class that is less likely is not decoded: at most that much of a pixel could be its."""
_NOT_DECODED = -4.0
"""The logit of the others everywhere: their class is neither in the photo nor likely."""


def observe(
    model: ClassDecider,
    features: ImageFeatures,
    masks: Mapping[str, Mask | None],
    id: str,
    *,
    classes: Sequence[str | ClassQuery] | None = None,
    undecided: Mask | None = None,
    is_evidence: bool = True,
    source: str = "",
) -> Correction:
    """Reduces a corrected photo to a `Correction`; see `Lasagna.observe`. Call it under the model's lock."""
    queries = {query.name: query for query in class_queries(list(masks) if classes is None else classes)}
    # A mask of a class that was not asked is as good as any other.
    for name in masks:
        queries.setdefault(name, ClassQuery(name))
    with torch.inference_mode():
        maps = feature_maps(model.model.encoder, features.prepared, features.encoded)
        drawn = {name for name, mask in masks.items() if mask is not None}
        answer = _model_answer(model, features, list(queries.values()), maps, drawn)
        return make_correction(
            id,
            maps,
            {name: masks.get(name) for name in queries},
            features.prepared.original_size,
            encoder=model.encoder_fingerprint,
            undecided=undecided,
            answer=answer,
            is_evidence=is_evidence,
            source=source,
        )


def _model_answer(
    model: ClassDecider, features: ImageFeatures, queries: list[ClassQuery], maps: FeatureMaps, drawn: set[str]
) -> ModelAnswer:
    """What the model says of each class, with its mask logits on the grid: of the classes that the model or the
    annotation has, and of the likeliest others.

    Args:
        drawn: Names that the annotation has.
    """
    texts = [model.read_text(query.text) for query in queries]  # also what it was never taught: a head combines it
    found = model.decide(features, texts)
    probability = torch.tensor([found[text].probability for text in texts])
    # What it was never taught is not asked while the model draws, so its guess is no answer that a head must beat.
    said = torch.tensor([found[t].present and model.knows(q) for t, q in zip(texts, queries, strict=True)])
    decoded = said | torch.tensor([query.name in drawn for query in queries])
    likeliest = probability.argsort(descending=True)[:_DECODED]
    decoded[likeliest] |= probability[likeliest] >= _LIKELY
    wanted = [found[text] for text, there in zip(texts, decoded.tolist(), strict=True) if there]
    logits = torch.full((len(texts), *maps.grid), _NOT_DECODED)
    if wanted:
        logits[decoded] = to_grid(model.mask_logits(features, wanted), maps).cpu()
    return ModelAnswer(model.base_version, probability, said, logits)


def answer_with_head(
    model: ClassDecider,
    head: Head,
    features: ImageFeatures,
    queries: list[ClassQuery],
    asked: Sequence[str | None],
    found: dict[str, Decided],
    threshold: float | None,
    exclusive: bool,
) -> Segmentation:
    """The answer about one photo.

    Args:
        asked: What the model read for each query; None: it was not asked, and the class is unknown.
        found: What the model says, by what it reads.
        threshold, exclusive: As of `Lasagna.segment_batch`; the masks of a head that serves exclude one another.
    """
    texts = {query.name: text for query, text in zip(queries, asked, strict=True) if text is not None}
    names = list(texts)
    decided = [found[texts[name]] for name in names]
    probability = np.array([each.probability for each in decided], np.float64)
    said = np.array([each.present for each in decided], bool)
    own = {query.name: query.threshold for query in queries if query.threshold is not None}
    level = np.array([own.get(name, 0.5 if threshold is None else threshold) for name in names], np.float64)
    prepared = features.prepared
    maps = feature_maps(model.model.encoder, prepared, features.encoded)
    judged = head.judge(maps, names, probability, said, level)
    shown = [each for each, there in zip(decided, judged.present, strict=True) if there]
    if head.serves:
        logits = to_grid(model.mask_logits(features, shown), maps) if shown and head.reads_masks else None
        if logits is None and head.reads_masks:
            logits = judged.scores.new_zeros((0, *maps.grid))
        scores = head.scores(judged, probability, logits)
        masks = paint(scores, features.grey, prepared.input_size, prepared.content_size)
        steady = stability(scores).tolist()
    else:
        masks, steady = model.draw(features, shown, exclusive)
    drawn = dict(zip(np.array(names, object)[judged.present], zip(masks, steady, strict=True), strict=True))
    place = {name: float(p) for name, p in zip(names, judged.probability, strict=True)}
    return Segmentation(
        prepared.original_size,
        tuple(
            ClassAnswer(query.name, place[query.name], *drawn.get(query.name, (None, None)))
            if query.name in place
            else ClassAnswer.unknown(query.name)
            for query in queries
        ),
    )


def to_grid(logits: Tensor, maps: FeatureMaps) -> Tensor:
    """(K, h, w) mask logits of the encoder's input to float32 on the features' grid."""
    if tuple(logits.shape[-2:]) == maps.grid:
        return logits.float()
    return F.adaptive_avg_pool2d(logits.float(), maps.grid)
