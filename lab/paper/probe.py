"""The linear probe for presence: is a class in the image, by what the frozen ImageNet backbone alone knows?

A question to `nano` as well: a language model that ranks no better than this has added nothing. So the probe is made as
good as it can be without touching the backbone: the features are those that nano's language model sees (the last stage,
of the whole photo at nano's size), pooled over the image in every usual way, and both the pooling and the strength of
the regularisation are chosen by cross-validation inside the train split. What always holds: nothing is fitted or chosen
on the split that is scored; all image-class pairs are ranked together, as `training.evaluation.evaluate` does.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import KFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from lasagna.network.pyramid import PyramidEncoder
from training.data.sources import Source
from training.evaluation.metrics import PresenceMetrics, average_precision
from training.evaluation.scoring import read_photo

Features = NDArray[np.float64]

POOLINGS = ("mean", "max", "mean+max")
STRENGTHS = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
"""scikit-learn's C, the inverse of the L2 penalty, for features of unit variance."""
FOLDS = 5


@dataclass(frozen=True)
class Pooled:
    """What the backbone says of a split.

    Attributes:
        mean, max: (images, channels), pooled over the image.
        present: bool (images, classes), from the annotation.
    """

    mean: Features
    max: Features
    present: NDArray[np.bool_]

    def pooled(self, how: str) -> Features:
        return np.concatenate([getattr(self, name) for name in how.split("+")], axis=1)


@dataclass(frozen=True)
class Choice:
    """What cross-validation found: pooling, C, and the average precision it has on the left-out folds."""

    pooling: str
    strength: float
    average_precision: float


@torch.inference_mode()
def pool_features(encoder: PyramidEncoder, source: Source, on_image: Callable[[], None] = lambda: None) -> Pooled:
    """Runs the backbone over a split. Raises DataError, ImageError for a file that cannot be read."""
    means, maxima, present = [], [], []
    for index in range(len(source)):
        image, labels = read_photo(source[index])
        prepared = encoder.prepare(np.asarray(image))
        last, _ = encoder.backbone.forward_intermediates(prepared.pixels["image"][None])
        means.append(last.mean((2, 3))[0].double().numpy())
        maxima.append(last.amax((2, 3))[0].double().numpy())
        present.append(np.isin(np.arange(len(source.classes)), labels))
        on_image()
    return Pooled(np.stack(means), np.stack(maxima), np.stack(present))


class LinearProbe:
    """One logistic regression per class on one set of features. Fitted by `fit_probe`."""

    def __init__(self, prepare: Any, models: list[Any]) -> None:
        self._prepare, self._models = prepare, models

    def probabilities(self, features: Features) -> Features:
        """(images, channels) to (images, classes) in [0, 1]."""
        values = self._prepare.transform(features)
        columns = [
            np.full(len(values), model) if isinstance(model, float) else model.predict_proba(values)[:, 1]
            for model in self._models
        ]
        return np.stack(columns, axis=1)


def fit_probe(features: Features, present: NDArray[np.bool_], strengths: tuple[float, ...]) -> Iterator[LinearProbe]:
    """One probe per strength.

    A class that is in all or in none of the images has nothing to regress on; its probability is its frequency with one
    image more of either kind (Laplace).

    Args:
        features: (images, channels).
        present: (images, classes).
        strengths: scikit-learn's C.
    """
    # With more channels than images the solution lies in the images' span, and an L2 penalty does not see rotations:
    # all principal components give the same probe from a tenth of the numbers.
    prepare = make_pipeline(StandardScaler(), PCA())
    values = prepare.fit_transform(features)
    for strength in strengths:
        models: list[Any] = []
        for column in present.T:
            count = int(column.sum())
            if count in (0, len(column)):
                models.append((count + 1) / (len(column) + 2))
            else:
                models.append(LogisticRegression(C=strength, max_iter=200, tol=1e-3).fit(values, column))
        yield LinearProbe(prepare, models)


def choose_probe(train: Pooled, on_fit: Callable[[], None] = lambda: None) -> Choice:
    """The pooling and strength that rank the left-out folds of the train split best, all image-class pairs together."""
    folds = list(KFold(FOLDS, shuffle=True, random_state=0).split(train.present))
    best: Choice | None = None
    for pooling in POOLINGS:
        features = train.pooled(pooling)
        scores = np.zeros((len(STRENGTHS), *train.present.shape))
        for kept, left_out in folds:
            probes = fit_probe(features[kept], train.present[kept], STRENGTHS)
            for row, probe in zip(scores, probes, strict=True):
                row[left_out] = probe.probabilities(features[left_out])
            on_fit()
        for strength, row in zip(STRENGTHS, scores, strict=True):
            found = average_precision(train.present.ravel(), row.ravel()) or 0.0
            if best is None or found > best.average_precision:
                best = Choice(pooling, strength, found)
    assert best is not None
    return best


def score_probe(train: Pooled, test: Pooled, choice: Choice) -> PresenceMetrics:
    """Fits the chosen probe on all of train and scores it on another split."""
    (probe,) = fit_probe(train.pooled(choice.pooling), train.present, (choice.strength,))
    metrics = PresenceMetrics(test.present.shape[1])
    for present, probability in zip(test.present, probe.probabilities(test.pooled(choice.pooling)), strict=True):
        metrics.update(present.tolist(), (probability >= 0.5).tolist(), probability.tolist())
    return metrics
