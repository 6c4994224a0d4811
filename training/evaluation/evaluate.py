"""Evaluation: how good are the masks, and does the model know what is not in the image?

Every image of a split is asked in one query with *all* classes about which its annotation decides (of most data sets:
all that they have), and with distractors: names of other sets that are certainly absent. What always holds: void pixels
count nowhere; a class is present in an image when the annotation has a pixel of it; distractors are scored for presence
only, though they take part in the query, so one that takes pixels from a class makes that class's IoU worse.
"""

import json
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from lasagna.contract.model import ClassListAnswerer
from lasagna.errors import DataError
from training.data.concepts import reason_not_negative
from training.data.sources import Source
from training.data.spread import spread
from training.evaluation.metrics import PresenceMetrics, SegmentationMetrics, reliability
from training.evaluation.pictures import photo_iou
from training.evaluation.scoring import PhotoScore, read_batches, score_photo


@dataclass(frozen=True)
class Distractors:
    """Names of other sets that are asked besides a set's own.

    Attributes:
        names: Those that are asked.
        skipped: Those that are not, and why.
    """

    names: tuple[str, ...] = ()
    skipped: dict[str, str] = field(default_factory=dict)


@dataclass
class Evaluation:
    """What was measured on one split of one data set.

    Attributes:
        classes: The set's own classes: the first classes of the two metrics.
        distractors: Asked after them; the remaining classes of `presence`.
        images: Scored images.
        seconds: Time of the model alone, all images together.
        failures: Image id -> why it could not be scored.
        unknown: Class that the model was not asked for, since it was never taught it -> scored photos that have it.
            These are in no other figure.
        photo_iou: Image id -> what the photo is ranked by (`training.evaluation.pictures`), where it is defined.
    """

    classes: tuple[str, ...]
    distractors: Distractors
    masks: SegmentationMetrics
    presence: PresenceMetrics
    images: int = 0
    seconds: float = 0.0
    failures: dict[str, str] = field(default_factory=dict)
    unknown: dict[str, int] = field(default_factory=dict)
    photo_iou: dict[str, float] = field(default_factory=dict)

    def add(self, image_id: str, score: PhotoScore, asked: Sequence[int]) -> None:
        """Adds one photo; `asked` are the places of its classes among the set's own and the distractors."""
        for one in score.classes:
            if one.is_unknown:
                self.unknown[one.name] = self.unknown.get(one.name, 0) + one.present
        asked = [place for place, one in zip(asked, score.classes, strict=True) if not one.is_unknown]
        score = replace(score, classes=tuple(one for one in score.classes if not one.is_unknown))
        if (iou := photo_iou(score)) is not None:
            self.photo_iou[image_id] = iou
        own = sum(place < len(self.classes) for place in asked)
        self.masks.update(score, asked[:own])
        self.presence.update(
            [one.present for one in score.classes],
            [one.said for one in score.classes],
            [one.probability for one in score.classes],
            asked,
        )
        self.images += 1

    def group(self, names: Collection[str]) -> dict[str, Any]:
        """The figures of some of the set's classes: `classes` (how many have an annotated pixel), `miou`,
        `average_precision`, and `prevalence`, the share of present pairs: the average precision of guessing."""
        chosen = [i for i, name in enumerate(self.classes) if name in names]
        present = self.presence.true_positives[chosen] + self.presence.false_negatives[chosen]
        absent = self.presence.false_positives[chosen] + self.presence.true_negatives[chosen]
        pairs = int(present.sum() + absent.sum())
        return {
            "classes": sum(bool(self.masks.truth[i]) for i in chosen),
            "miou": self.masks.mean_iou(chosen),
            "average_precision": self.presence.average_precision(chosen),
            "prevalence": float(present.sum() / pairs) if pairs else None,
        }

    def as_dict(self) -> dict[str, Any]:
        """The figures as they are written to JSON; an undefined one is None."""
        presence, own = self.presence, slice(0, len(self.classes))
        truth = presence.true_positives + presence.false_negatives
        return {
            "images": self.images,
            "classes": list(self.classes),
            "miou": self.masks.miou,
            "pixel_accuracy": self.masks.pixel_accuracy,
            "presence": {
                "precision": presence.precision(),
                "recall": presence.recall(),
                "f1": presence.f1(),
                "average_precision": presence.average_precision(),
            },
            "calibration_error": presence.calibration_error(),
            "calibration_error_of_halves": presence.calibration_error_of_halves(),
            "reliability": _reliability(presence),
            "absent_false_positive_rate": presence.absent_false_positive_rate(),
            "seconds_per_image": self.seconds / self.images if self.images else None,
            "per_class": {
                name: {
                    "iou": self.masks.iou[i],
                    "precision": presence.precision(i),
                    "recall": presence.recall(i),
                    "images": int(truth[i]),
                }
                for i, name in enumerate(self.classes)
                if name not in self.unknown
            },
            "unknown": self.unknown,
            "distractors": {
                "names": list(self.distractors.names),
                "skipped": self.distractors.skipped,
                "absent_false_positive_rate": presence.absent_false_positive_rate(slice(len(self.classes), None)),
                "own_absent_false_positive_rate": presence.absent_false_positive_rate(own),
            },
            "failures": self.failures,
        }


def _reliability(presence: PresenceMetrics) -> dict[str, list[Any]] | None:
    if not len(presence.truth):
        return None
    found = reliability(presence.truth, presence.probability)
    means = {"predicted": found.predicted, "observed": found.observed}
    return {
        "count": found.count.tolist(),
        **{key: [None if np.isnan(value) else float(value) for value in values] for key, values in means.items()},
    }


def evaluate_dataset(
    model: ClassListAnswerer,
    source: Source,
    *,
    distractors: Distractors | None = None,
    limit: int | None = None,
    batch_size: int = 4,
    chunk_size: int | None = None,
    threshold: float | None = None,
    guess_unknown: bool = False,
    on_image: Callable[[], None] = lambda: None,
) -> Evaluation:
    """Asks every image of a split with all classes of its set, and scores the answers.

    Args:
        model: Answers `segment_batch`.
        source: The split, of class lists.
        distractors: Asked besides, after the set's own classes.
        limit: At most so many images, spread evenly over the split (neighbours are often frames of one video).
        batch_size: Images per call of the model.
        chunk_size: Most classes in one list of the model; None: the whole list where it fits.
        threshold: Probability from which on a class is said present; None: 0.5.
        guess_unknown: Whether the model is asked also for what it was never taught; else that is in no figure but
            `Evaluation.unknown`.
        on_image: Called after every image, scored or failed.

    Returns:
        The figures. An image or annotation that cannot be read, or whose sizes differ, is in `failures` and scored
        nowhere.

    Raises:
        DataError: The set has a class name twice, or no image, or no class list.
    """
    if len(set(source.classes)) != len(source.classes):
        twice = sorted({name for name in source.classes if source.classes.count(name) > 1})
        raise DataError(f"the classes hold {', '.join(twice)} twice; scores would be mixed up")
    if not len(source):
        raise DataError("the split lists no image")
    if not source.classes:
        raise DataError("a data set of texts has no class list; it is for the tables of texts")
    distractors = distractors or Distractors()
    names = [*source.classes, *distractors.names]
    result = Evaluation(
        source.classes, distractors, SegmentationMetrics(len(source.classes)), PresenceMetrics(len(names))
    )
    options: dict[str, Any] = {"threshold": threshold, "exclusive": True, "chunk_size": chunk_size}
    options |= {"guess_unknown": True} if guess_unknown else {}
    chosen = (source[index] for index in spread(len(source), limit))
    places = {name: index for index, name in enumerate(names)}
    for batch in read_batches(chosen, batch_size, result.failures.__setitem__, on_image):
        images = [image for _, image, _ in batch]
        queries = [[*record.classes, *distractors.names] for record, _, _ in batch]
        if not result.images:  # the first call is not typical of the rest
            model.segment_batch(images[:1], queries[:1], **options)
        began = time.perf_counter()
        answers = model.segment_batch(images, queries, **options)
        result.seconds += time.perf_counter() - began
        for (record, _, truth), query, answer in zip(batch, queries, answers, strict=True):
            score = score_photo(truth, answer, len(record.classes))
            result.add(record.image_id, score, [places[name] for name in query])
            on_image()
    return result


def read_names(source: Path) -> list[str]:
    """Class names of a data set folder (its `classes.json`, without the background), or of a text file, one per line.

    Raises DataError where there is neither.
    """
    path = source / "classes.json" if source.is_dir() else source
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix != ".json":
            return [line.strip() for line in text.splitlines() if line.strip()]
        values = json.loads(text)
        background = values.get("background_index")
        return [str(name) for i, name in enumerate(values["classes"]) if i != background]
    except OSError as error:
        raise DataError(
            f"{path}: no class names there ({error.strerror}); give a data set folder with a classes.json, "
            "or a text file with one name per line"
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: no list of class names ({error!r}); it needs a 'classes' list of names") from error


def choose_distractors(own_set: str, own_classes: Sequence[str], names: Iterable[str]) -> Distractors:
    """Those of the names that may be scored as absent on a set's photos.

    A name is skipped when it means the same as one of the set's own (the same word, a plural, a synonym), is a kind or
    a part of one, or may be in the photos unannotated; see `training.data.concepts`. A name or a set that is not in
    that table is compared with the set's own classes only: whoever gives it answers for its absence.
    """
    asked: dict[str, None] = {}
    skipped: dict[str, str] = {}
    for name in names:
        reason = reason_not_negative(own_set, own_classes, name, unknown_is_reason=False)
        if reason is None:
            asked[name] = None
        elif name not in own_classes:
            skipped[name] = reason
    return Distractors(tuple(asked), skipped)
