"""The classifier of taught names (`lasagna.instant.classifier`), fitted to the photos that a recipe trains on.

    classifier, calibration = fit_classifier(model, training_sets(recipe), held_out_records(recipe))

The linear weights come in closed form from the statistics of the training photos. How much they count beside the
language model is fitted to the photos that the recipe holds out, which neither has seen: a logistic regression on the
margin and the classifier's features for presence, and of `SHARES` the one with the best masks.

What always holds: every data set weighs the same in what is fitted to held-out photos; names that mean the same
(`training.data.concepts`) are one class; void pixels leave no trace; the model is left as it was.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lasagna import Lasagna
from lasagna.assistant.corrected import to_grid
from lasagna.checkpoint.folder import Calibration
from lasagna.errors import DataError
from lasagna.instant.classifier import Classifier
from lasagna.instant.discriminant import moments
from lasagna.instant.features import FeatureMaps
from lasagna.instant.presence import HEAD_FEATURES, Figures
from lasagna.instant.statistics import NONE, UNDECIDED, Statistics, collect
from training.data.concepts import concept_of
from training.data.records import UNKNOWN, LabelMap
from training.data.sources import Source
from training.evaluation.calibrate import logits_of
from training.evaluation.scoring import AskedPhoto, read_batches

SHARES = (0.0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4)
"""What a pixel's evidence may count in a mask's logit."""
SHRINKAGE = 1.0
"""lambda of the discriminant: the covariance is halfway to independent channels (`lasagna.instant.discriminant`)."""
_EVERY = 4
"""Of the cells of a photo one in so many is taken, a fresh start in each: neighbours say the same."""
_RIDGE = 1e-3
"""On the standardised weights of presence; there are thousands of answers."""


@dataclass(frozen=True)
class _Answers:
    """What language model and classifier say of the held-out photos of one set: of N photo-class pairs, and of pixels.

    Attributes:
        margins: (N,) of the language model.
        features: (N, 4) of the classifier.
        present: (N,) bool, the truth.
        intersection, union: (shares, classes) cells.
    """

    margins: Figures
    features: Figures
    present: NDArray[np.bool_]
    intersection: Figures
    union: Figures

    def miou(self) -> Figures:
        """(shares,): mean IoU of the masks of the classes that are there."""
        shown = self.union[0] > 0
        iou: Figures = (self.intersection[:, shown] / self.union[:, shown]).mean(1)
        return iou


def fit_classifier(
    model: Lasagna,
    training: Mapping[str, Source],
    held_out: Mapping[str, Source],
    on_photo: Callable[[], None] = lambda: None,
) -> tuple[Classifier, Calibration]:
    """Fits a classifier of every name of a model's vocabulary that the photos have.

    Args:
        model: A checkpoint that says what it was taught.
        training, held_out: By the name of the data set; no photo is in both.
        on_photo: Called after each photo of either.

    Returns:
        The classifier, and the probabilities' calibration with it.

    Raises:
        DataError: The model has no vocabulary, or there is nothing to fit to.
    """
    if model.vocabulary is None:
        raise DataError("the checkpoint does not say what it was taught; `lasagna calibrate --vocabulary` notes that")
    before, model.classifier = model.classifier, None
    try:
        statistics = gather_statistics(model, training, on_photo)
        plain = _unweighted(model, statistics)
        answers = [_answers(model, plain, source, on_photo) for source in held_out.values() if len(source)]
    finally:
        model.classifier = before
    answers = [each for each in answers if len(each.present)]
    if not answers:
        raise DataError("no held-out photo has a name that the checkpoint was taught: hold more photos out")
    share = SHARES[int(np.mean([each.miou() for each in answers if each.union.any()], axis=0).argmax())]
    presence, calibration = _presence(answers, model.calibration)
    return replace(plain, mask_share=share, presence=presence), calibration


def gather_statistics(
    model: Lasagna, sources: Mapping[str, Source], on_photo: Callable[[], None] = lambda: None
) -> Statistics:
    """The statistics of all photos, by concept. Raises DataError where no pixel is annotated."""
    total: Statistics | None = None
    for record, image, labels in _photos(sources.values(), on_photo):
        maps = model.feature_maps(model.encode_image(image))
        concepts = sorted({_concept(name) for name in record.classes})
        places = np.array([concepts.index(_concept(name)) for name in record.classes])
        cells = _cell_labels(labels, maps)
        owner = np.where(cells >= 0, places[cells.clip(min=0)], len(concepts))
        chosen = np.arange(_first_cell(record.image_id), len(cells), _EVERY)
        kept = torch.from_numpy(np.where(cells == UNKNOWN, UNDECIDED, owner)[chosen])
        found = collect(maps.dense()[chosen], kept, [*concepts, NONE])
        total = found if total is None else total + found
    if total is None or not total.pixels:
        raise DataError("no photo of the recipe's data sets has an annotated pixel")
    return total


def _first_cell(image_id: str) -> int:
    """Which of the first cells of a photo is taken: from its name, so that a run can be repeated."""
    return sum(image_id.encode()) % _EVERY


def _concept(name: str) -> str:
    return concept_of(name) or name.casefold()


def _photos(sources: Iterable[Source], on_photo: Callable[[], None]) -> Iterator[AskedPhoto]:
    """Photos with their label maps, one at a time; one that cannot be read is passed over with a warning."""
    for source in sources:
        records = (source[index] for index in range(len(source)))
        for batch in read_batches(records, 1, None, on_photo):
            yield batch[0]
            on_photo()


def _cell_labels(labels: LabelMap, maps: FeatureMaps) -> NDArray[np.int64]:
    """(cells on the photo,): the label at each cell's centre, of layers the last that has a class."""
    rows, columns = maps.centres((labels.shape[1], labels.shape[2]))
    at = labels[:, rows[:, None], columns]
    found = at[0].astype(np.int64)
    for layer in at[1:]:
        found = np.where(layer >= 0, layer, found)
    found[(at == UNKNOWN).any(0)] = UNKNOWN
    return found.ravel()


def _unweighted(model: Lasagna, statistics: Statistics) -> Classifier:
    """The discriminant of the statistics, a row for each concept and "none" last; it counts for nothing yet."""
    assert model.vocabulary is not None
    fitted = moments(statistics).solve(SHRINKAGE)
    names = [name for name in fitted.names if name != NONE]
    order = [fitted.names.index(name) for name in names]
    weight, bias = fitted.weight[order], fitted.bias[order]
    if NONE in fitted.names:
        none = fitted.names.index(NONE)
        last, constant = fitted.weight[none : none + 1], fitted.bias[none : none + 1]
    else:  # every photo is labelled throughout: the mean of all pixels, which has the score 0
        last, constant = torch.zeros_like(weight[:1]), torch.zeros(1)
    rows = {
        model.read_text(name): names.index(_concept(name)) for name in model.vocabulary.names if _concept(name) in names
    }
    return Classifier(rows, torch.cat([weight, last]), torch.cat([bias, constant]), 0.0, (0.0,) * (1 + HEAD_FEATURES))


class _MaskTally:
    """Intersections and unions by class, for every share of `SHARES`."""

    def __init__(self, classes: int) -> None:
        self.intersection, self.union = (np.zeros((len(SHARES), classes)) for _ in range(2))

    def add(self, logits: Tensor, evidence: Tensor, truth: Tensor, places: Sequence[int]) -> None:
        """Adds the classes that one photo has.

        Args:
            logits, evidence: float32 (P, cells), of the language model's masks and of the classifier.
            truth: int64 (cells,): an index into the P classes, P for anything else, `UNDECIDED`.
            places: The P classes' places among all of the set.
        """
        known = truth != UNDECIDED
        logits, evidence, truth = logits[:, known], evidence[:, known], truth[known]
        nothing = logits.new_zeros((1, logits.shape[1]))
        for row, share in enumerate(SHARES):
            drawn = torch.cat([logits + share * evidence, nothing]).argmax(0)
            for index, place in enumerate(places):
                both = int(((drawn == index) & (truth == index)).sum())
                self.intersection[row, place] += both
                self.union[row, place] += int((drawn == index).sum()) + int((truth == index).sum()) - both


def _answers(model: Lasagna, plain: Classifier, source: Source, on_photo: Callable[[], None]) -> _Answers:
    margins: list[Figures] = [np.zeros(0)]
    features: list[Figures] = [np.zeros((0, HEAD_FEATURES))]
    present: list[NDArray[np.bool_]] = [np.zeros(0, bool)]
    masks = _MaskTally(len(source.classes))
    for record, image, labels in _photos([source], on_photo):
        texts = [model.read_text(name) for name in record.classes]
        asked = [i for i, text in enumerate(texts) if text in plain.rows]
        shown = [i for i in asked if (labels == i).any()]
        photo = model.encode_image(image)
        maps = model.feature_maps(photo)
        with torch.inference_mode():
            found = model.decide(photo, texts)
            probability = np.array([found[texts[i]].probability for i in asked])
            margins.append(logits_of(probability) * model.calibration.temperature + model.calibration.offset)
            features.append(plain.photo_features(maps, [texts[i] for i in asked]))
            present.append(np.isin(asked, shown))
            if not shown:
                continue
            logits = to_grid(model.mask_logits(photo, [found[texts[i]] for i in shown]), maps)
            evidence = plain.evidence(maps, [texts[i] for i in shown])
        down, across = maps.covered
        logits, evidence = (each[:, :down, :across].flatten(1).cpu() for each in (logits, evidence))
        places = [source.classes.index(record.classes[i]) for i in shown]
        masks.add(logits, evidence, torch.from_numpy(_among(_cell_labels(labels, maps), shown)), places)
    return _Answers(
        np.concatenate(margins), np.concatenate(features), np.concatenate(present), masks.intersection, masks.union
    )


def _among(cells: NDArray[np.int64], shown: Sequence[int]) -> NDArray[np.int64]:
    """Labels of cells as places in `shown`; its length for anything else."""
    result = np.full(len(cells), len(shown))
    for place, label in enumerate(shown):
        result[cells == label] = place
    result[cells == UNKNOWN] = UNDECIDED
    return result


def _presence(answers: Sequence[_Answers], before: Calibration) -> tuple[tuple[float, ...], Calibration]:
    """The constant and weights of `Classifier.presence`, and the calibration that goes with them.

    The offset stays what it was, so that names that were not taught are present from the same margin on as before.
    """
    from scipy.optimize import minimize

    every = np.concatenate([np.column_stack([each.margins, each.features]) for each in answers])
    truth = np.concatenate([each.present for each in answers])
    weight = np.concatenate([np.full(len(each.present), 1 / len(each.present) / len(answers)) for each in answers])
    centre, scale = every.mean(0), every.std(0).clip(1e-9)
    x = (every - centre) / scale

    def loss(w: Figures) -> tuple[float, Figures]:
        logits = x @ w[1:] + w[0]
        value = float(weight @ np.logaddexp(0, np.where(truth, -logits, logits)) + _RIDGE * (w[1:] ** 2).sum())
        slope = weight * (1 / (1 + np.exp(-logits.clip(-30, 30))) - truth)
        return value, np.append(slope.sum(), x.T @ slope + 2 * _RIDGE * w[1:])

    w = minimize(loss, np.zeros(1 + x.shape[1]), jac=True, method="L-BFGS-B").x
    slopes = w[1:] / scale
    if not slopes[0] > 1e-3:
        raise DataError(
            f"classes with larger margins are not more often present (fitted slope {slopes[0]:.3g}); train the model "
            "first"
        )
    constant = (w[0] - centre @ slopes) / slopes[0] + before.offset
    return (
        (float(constant), *(float(value) for value in slopes[1:] / slopes[0])),
        Calibration(1 / float(slopes[0]), before.offset),
    )
