"""Is the class in the photo at all? One logistic regression for all classes, on what the head and the model say.

Of a class in a photo, with the head's softmax p over its pixels and its logit l = log p - log(1 - p):

    4 asinh(l / 4) of the 0.999, the 0.98 and the 0.9 quantile of l; the log of the mean of p; the logit of the model's
    probability

The logit is computed from the scores, where it does not saturate: discriminants of a few photos are sure of everything,
and only how sure tells classes apart. asinh keeps their order and bounds their reach.

Because one regression serves all classes, a handful of photos is enough to refine it. Its default weights
(`presence.json`, made by `lasagna experiment presence`) come from other data sets' left-out answers; from
`REFINED_FROM` corrections on it is fitted to the project's own left-out answers, pulled to the default by a ridge:

    min_w  sum log loss + RIDGE / 2 |w - w_default|^2        (features standardised by the default's constants)

The constant is pulled with `RIDGE_BIAS` only: which features count is much the same everywhere, how sure heads of few
photos are of themselves is not.

While the model draws, its own probabilities stay, unless the left-out answers were better with the head's features
(`lasagna.instant.fit.refines`); a class that no correction has keeps the model's always then. Where the head draws, the
odds of such a class are halved (what was named and never drawn is rarer than the model believes), and that, too, is
refined, by the answers of the model about classes that no *other* photo has: how often was it right? (As Good 1953
asks of counts.)

What always holds: a class is present from probability one half on, as everywhere in this project; two classes with the
same features have the same probability.
"""

import json
import math
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

RIDGE, RIDGE_BIAS = 30.0, 1.0
RIDGE_UNSEEN = 2.0
"""Of classes without a correction: about as much as two answers."""
REFINED_FROM = 5
PRESENT_FROM = 0.5
QUANTILES = (0.999, 0.98, 0.9)
HEAD_FEATURES = len(QUANTILES) + 1
_LINEAR = 4.0
"""Logits up to about this are features as they are; beyond, their logarithm is."""
_FAINT = 1e-30
"""Below this the sum of exponentials of all but the likeliest class has lost its digits in float32."""
_THINNED = 4096
"""Cells that are enough for all but the highest quantile."""

Figures = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Presence:
    """A logistic regression on standardised features.

    Attributes:
        weight: (F,), F = 4 of a head alone, or 5 with the model's logit.
        bias: Added.
        center, scale: (F,) each: features are (x - center) / scale.
    """

    weight: Figures
    bias: float
    center: Figures
    scale: Figures

    def probability(self, features: Figures) -> Figures:
        """(..., F) to (...) in (0, 1)."""
        return 1 / (1 + np.exp(-self._score(features)))

    def _score(self, features: Figures) -> Figures:
        score: Figures = (features - self.center) / self.scale @ self.weight + self.bias
        return score.clip(-30, 30)

    def refine(
        self, features: Figures, truth: NDArray[np.bool_], ridge: float = RIDGE, ridge_bias: float = RIDGE_BIAS
    ) -> "Presence":
        """Fitted to a project's answers (n, F) and truths (n,), pulled to these weights."""
        x = np.column_stack([(features - self.center) / self.scale, np.ones(len(features))])
        start = np.append(self.weight, self.bias)
        pull = np.append(np.full(len(self.weight), ridge), ridge_bias)
        fitted = _fit(x, truth.astype(np.float64), start, pull)
        return Presence(fitted[:-1], float(fitted[-1]), self.center, self.scale)

    def to_dict(self) -> dict[str, Any]:
        return {
            "weight": self.weight.tolist(),
            "bias": self.bias,
            "center": self.center.tolist(),
            "scale": self.scale.tolist(),
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Presence":
        arrays = [np.array(values[name], np.float64) for name in ("weight", "center", "scale")]
        return cls(arrays[0], float(values["bias"]), arrays[1], arrays[2])


@lru_cache(maxsize=2)
def default_presence(with_model: bool) -> Presence:
    """The shipped weights.

    Args:
        with_model: Whether there is a model's probability beside the head's.
    """
    values = json.loads(Path(__file__).with_name("presence.json").read_text(encoding="utf-8"))
    return Presence.from_dict(values["with_model" if with_model else "alone"])


def fit_presence(features: Figures, truth: NDArray[np.bool_], weights: Figures) -> Presence:
    """Weights from nothing: how the shipped ones are made. A ridge of 1 on all but the bias.

    Args:
        features: (n, F).
        truth: (n,).
        weights: (n,) how much each answer counts.
    """
    center = np.average(features, axis=0, weights=weights)
    scale = np.sqrt(np.average((features - center) ** 2, axis=0, weights=weights))
    x = np.column_stack([(features - center) / scale, np.ones(len(features))])
    ridge = np.append(np.ones(features.shape[1]), 0.0)
    fitted = _fit(x, truth.astype(np.float64), np.zeros(x.shape[1]), ridge, weights)
    return Presence(fitted[:-1], float(fitted[-1]), center, scale)


@lru_cache(maxsize=1)
def as_the_model() -> Presence:
    """The model's own probability, and nothing of the head."""
    features = HEAD_FEATURES + 1
    return Presence(np.append(np.zeros(HEAD_FEATURES), 1.0), 0.0, np.zeros(features), np.ones(features))


def log_loss(probability: Figures, truth: NDArray[np.bool_]) -> float:
    """The mean of minus the log of what was given to what is true."""
    return float(-np.log(np.where(truth, probability, 1 - probability)).mean())


def default_unseen() -> Presence:
    """Of classes that no correction has, on the model's logit alone: its odds, halved."""
    return Presence(np.array([3.0]), -math.log(2), np.zeros(1), np.array([3.0]))


def model_logit(probability: Figures) -> Figures:
    """The feature of the model's probability."""
    near = 1e-5
    p = probability.clip(near, 1 - near)
    logit: Figures = np.log(p / (1 - p))
    return logit


def map_features(scores: Tensor, rows: Tensor | None = None) -> Figures:
    """The head's features of a whole photo.

    Args:
        scores: float32 (K, cells): the discriminant's, of all classes that compete ("none" is one of them).
        rows: int64 (C,): the classes that are asked for; None: all.

    Returns:
        float64 (C, 4), or (K, 4).
    """
    everything = torch.arange(len(scores), device=scores.device)
    asked, place = (everything, everything) if rows is None else rows.unique(return_inverse=True)
    logits, mean = _logits_and_mean(scores, asked)
    step = max(1, scores.shape[1] // _THINNED)
    values = logits.cpu().numpy()
    thin = values[:, ::step]
    if step == 1:
        quantiles = _highest(values, QUANTILES)
    else:
        quantiles = np.column_stack([_highest(values, QUANTILES[:1]), _highest(thin, QUANTILES[1:])])
    return _features(torch.from_numpy(quantiles), mean.cpu())[place.cpu().numpy()]


def _highest(values: NDArray[np.float32], quantiles: tuple[float, ...]) -> NDArray[np.float32]:
    """(C, n) to (C, Q): the quantiles of each row."""
    ranks = [-max(1, round((1 - quantile) * values.shape[1])) for quantile in quantiles]
    # numpy's partition takes a tenth of the time of torch's topk
    found: NDArray[np.float32] = np.partition(values, ranks, axis=1)[:, ranks]
    return found


def sample_features(scores: Tensor, weights: Tensor) -> Figures:
    """The same from weighted samples.

    Args:
        scores: float32 (K, n).
        weights: float32 (n,): cells that each sample stands for.
    """
    share = weights / weights.sum()
    logits = class_logits(scores)
    # numpy's sort takes a third of torch's time
    order = torch.from_numpy(np.argsort(-logits.cpu().numpy(), axis=1)).to(logits.device)
    values = logits.gather(1, order)
    reached = share[order].cumsum(1)
    picks = []
    for quantile in QUANTILES:
        rank = (reached < (1 - quantile)).sum(1, keepdim=True).clamp(max=values.shape[1] - 1)
        picks.append(values.gather(1, rank)[:, 0])
    return _features(torch.stack(picks, 1), scores.softmax(0) @ share)


def class_logits(scores: Tensor) -> Tensor:
    """log p - log(1 - p) of the softmax p of (K, n) scores, exact also where p rounds to 0 or 1.

    1 - p of the likeliest class is the sum of the others; of every other class p is at most one half. Of one class
    alone: 1000, as sure as can be.
    """
    return _logits_and_mean(scores, torch.arange(len(scores), device=scores.device))[0]


def _logits_and_mean(scores: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """`class_logits` of different classes, (C, n), and the means of their p, (C,)."""
    chosen = scores[rows]
    if len(scores) == 1:
        return torch.full_like(chosen, 1000.0), torch.ones_like(chosen[:, 0])
    peak = scores.amax(0)
    below = scores - peak
    other = -below.sign()  # 0 of the likeliest class of a cell, else 1
    # Beyond -87 an exponential is a denormal number, with which a processor computes ten times more slowly.
    parts = below.clamp(min=-87.0).exp_()
    # Of several that are the likeliest, all but one are among the others.
    others = (parts * other).sum(0) + (len(scores) - 1 - other.sum(0))
    total = 1 + others
    log_others = others.log()
    faint = (others < _FAINT).nonzero()[:, 0]  # where the others' parts round to nothing
    if len(faint):
        apart = scores[:, faint].masked_fill(other[:, faint] == 0, -torch.inf)
        log_others[faint] = apart.logsumexp(0) - peak[faint]
    p = parts[rows] / total
    log_rest = torch.where(other[rows] == 0, log_others - total.log(), torch.log1p(-p.clamp(max=0.5)))
    return chosen - (peak + total.log()) - log_rest, p.mean(1)


def _features(quantiles: Tensor, mean: Tensor) -> Figures:
    squashed = _LINEAR * torch.asinh(quantiles.double() / _LINEAR)
    columns = torch.cat([squashed, mean.double().clamp_min(1e-6).log()[:, None]], 1)
    return columns.cpu().numpy()


def _fit(x: Figures, truth: Figures, start: Figures, ridge: Figures, weights: Figures | None = None) -> Figures:
    """Newton's method with halved steps on a convex loss; `ridge` pulls each weight to its start."""
    each = np.ones(len(x)) if weights is None else weights

    def loss(w: Figures) -> float:
        score = x @ w
        return float((each * (np.logaddexp(0, score) - truth * score)).sum() + (ridge * (w - start) ** 2).sum() / 2)

    w = start.copy()
    current = loss(w)
    for _ in range(50):
        p = 1 / (1 + np.exp(-(x @ w).clip(-30, 30)))
        gradient = x.T @ (each * (p - truth)) + ridge * (w - start)
        curvature = (x * (each * p * (1 - p))[:, None]).T @ x + np.diag(ridge + 1e-9)
        step = np.linalg.solve(curvature, gradient)
        for _ in range(20):
            after = loss(w - step)
            if after <= current:
                break
            step = step / 2
        else:
            break
        w, before, current = w - step, current, after
        if before - current < 1e-10 * max(1.0, abs(before)):
            break
    return w
