"""The head and the model as one: their log probabilities added, or their probabilities mixed.

Of a pixel x and the classes that compete for it (those that are present, and "none"):

    log p_model(k|x) = log P(k present) + log sigmoid(mask logit of k at x),  "none": log 0.02        (normalised)
    log p_head(k|x)  = log softmax of the discriminant's scores; a class that no correction has gets an equal share of
                       u, the chance that a pixel is of an unseen class (Good 1953, after Turing)     (normalised)
    product b:  log p_model + b log p_head          mixture w:  log((1 - w) p_model + w p_head)

No fixed weight is good everywhere, so it is chosen by leaving photos out (`lasagna.instant.leave_out`). What always
holds: a class that does not compete gets no pixel; "none" is never impossible.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

NONE_SHARE = 0.02
"""What "none" has in the model's answer at a pixel, against classes that are sure of their presence and their mask."""


@dataclass(frozen=True)
class Stacking:
    """How the two are combined.

    Attributes:
        kind: "product", "mixture" or "head" (alone).
        weight: b of a product, w of a mixture.
    """

    kind: str
    weight: float = 0.0

    def __str__(self) -> str:
        return self.kind if self.kind == "head" else f"{self.kind} {self.weight:g}"


HEAD = Stacking("head")
CANDIDATES = (
    *(Stacking("product", b) for b in (0.25, 0.5, 1.0, 2.0, 4.0)),
    *(Stacking("mixture", w) for w in (0.1, 0.25, 0.5, 0.75)),
    HEAD,
)


def model_log(probability: Tensor, mask_logits: Tensor) -> Tensor:
    """log p_model of the classes and, last, "none".

    Args:
        probability: (K,) in (0, 1).
        mask_logits: (K, ...) at each pixel.

    Returns:
        (K + 1, ...), not normalised.
    """
    prior = probability.clamp(1e-6, 1 - 1e-6).log().view(-1, *[1] * (mask_logits.ndim - 1))
    own = prior + torch.nn.functional.logsigmoid(mask_logits)
    none = mask_logits.new_full((1, *mask_logits.shape[1:]), NONE_SHARE)
    return torch.cat([own, none.log()])


def head_log(scores: Tensor, seen: Tensor, unseen_share: float) -> Tensor:
    """log p_head of classes and, last, "none".

    Args:
        scores: (K + 1, ...): the discriminant's; what stands for unseen classes is not read.
        seen: bool (K + 1,): which a correction has.
        unseen_share: u; nothing is given away where every class is seen.
    """
    result = torch.empty_like(scores)
    missing = int((~seen[:-1]).sum())
    some = bool(seen.any())
    u = unseen_share if missing and some else float(not some)
    if some:
        result[seen] = scores[seen].log_softmax(0) + math.log(1 - u)
    result[~seen] = math.log(max(u, 1e-6) / max(missing, 1))
    if not bool(seen[-1]):  # photos are labelled throughout
        result[-1] = -math.inf if some else math.log(NONE_SHARE)
    return result


def combine(stacking: Stacking, model: Tensor | None, head: Tensor) -> Tensor:
    """Log scores (C, ...) of the competing classes; comparable at a pixel, not normalised.

    Args:
        model: (C, ...) of `model_log`; not read by "head".
        head: (C, ...) of `head_log`.
    """
    if stacking.kind == "head":
        return head
    assert model is not None
    if stacking.kind == "product":
        # -inf (an unseen "none") must stay a veto only where the head has one to give: the model still may say none.
        return model + stacking.weight * head.clamp_min(-30)
    share = torch.tensor(stacking.weight)
    return torch.logaddexp(
        (1 - share).log() + model.log_softmax(0), share.log() + (head - head.logsumexp(0)).clamp_min(-60)
    )
