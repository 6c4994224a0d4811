"""What the instant head knows after 1, 2, 5, ... corrections, on photos that it has not seen.

Corrections are annotated photos of a set's train split, taken in a random order; the head is scored on photos of the
val split at their own size, as `training.evaluation` scores. What always holds: nothing is learnt or chosen on the val
split; one choice of photos is a prefix of the next longer one; seconds are processor seconds of this process.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from lab.backbone import make_backbone
from lasagna.assistant.answers import Decided, ImageFeatures, grey
from lasagna.assistant.corrected import answer_with_head
from lasagna.assistant.lasagna import Lasagna
from lasagna.instant.correction import Correction, make_correction
from lasagna.instant.features import encoder_fingerprint, feature_maps
from lasagna.instant.fit import Learner
from lasagna.instant.head import Head
from lasagna.instant.painting import paint
from lasagna.masks.segmentation import ClassAnswer, Mask, Segmentation, class_queries
from training.data.records import UNKNOWN
from training.data.sources.folder import Folder
from training.data.spread import spread
from training.evaluation.metrics import PresenceMetrics, SegmentationMetrics
from training.evaluation.scoring import read_photo, score_photo

Row = dict[str, Any]
Advance = Callable[[], None]


@dataclass(frozen=True, eq=False)
class Photo:
    """An annotated photo that was encoded.

    Attributes:
        truth: int16 (H, W): index of the class, `OTHER` or `UNKNOWN`.
        features: What the encoder gave.
        found: What the model says of each class, where there is one.
    """

    truth: NDArray[np.int16]
    features: ImageFeatures
    found: dict[str, Decided]


class Eyes(Protocol):
    """What sees the photos: a model, or a backbone alone."""

    def encode(self, image: NDArray[np.uint8], classes: Sequence[str]) -> tuple[ImageFeatures, dict[str, Decided]]: ...

    def observe(self, photo: Photo, masks: dict[str, Mask | None], undecided: Mask, id: str) -> Correction: ...

    def answer(self, head: Head | None, photo: Photo, classes: Sequence[str]) -> Segmentation: ...


class ModelEyes:
    """A model: the head stands beside it. As in the product, what the model was never taught is drawn by a head alone,
    and counts as not found before."""

    def __init__(self, model: Lasagna) -> None:
        self.model = model

    def encode(self, image: NDArray[np.uint8], classes: Sequence[str]) -> tuple[ImageFeatures, dict[str, Decided]]:
        features = self.model.encode_image(image)
        with torch.inference_mode():
            return features, self.model.decide(features, [self.model.read_text(name) for name in classes])

    def observe(self, photo: Photo, masks: dict[str, Mask | None], undecided: Mask, id: str) -> Correction:
        return self.model.observe(photo.features, masks, id, undecided=undecided)

    @torch.inference_mode()
    def answer(self, head: Head | None, photo: Photo, classes: Sequence[str]) -> Segmentation:
        queries = class_queries(classes)
        learnt = head.names if head is not None and head.serves else ()
        can = [self.model.knows(query) or query.name in learnt for query in queries]
        if head is not None:
            texts = [self.model.read_text(name) if asked else None for name, asked in zip(classes, can, strict=True)]
            answer = answer_with_head(self.model, head, photo.features, queries, texts, photo.found, None, True)
            return replace(answer, classes=tuple(_not_found(each) for each in answer.classes))
        found = [
            replace(each, present=each.present and asked, probability=each.probability if asked else 0.0)
            for name, asked in zip(classes, can, strict=True)
            for each in [photo.found[self.model.read_text(name)]]
        ]
        masks, steady = self.model.draw(photo.features, [each for each in found if each.present], True)
        drawn = iter(zip(masks, steady, strict=True))
        answers = [
            ClassAnswer(name, each.probability, *(next(drawn) if each.present else (None, None)))
            for name, each in zip(classes, found, strict=True)
        ]
        return Segmentation(photo.features.prepared.original_size, tuple(answers))


def _not_found(answer: ClassAnswer) -> ClassAnswer:
    return ClassAnswer(answer.name, 0.0, None) if answer.is_unknown else answer


class BackboneEyes:
    """The backbone with its ImageNet weights: the head works alone, and nothing has seen any of the sets."""

    def __init__(self) -> None:
        self.encoder = make_backbone()
        self.fingerprint = encoder_fingerprint(self.encoder)

    @torch.inference_mode()
    def encode(self, image: NDArray[np.uint8], classes: Sequence[str]) -> tuple[ImageFeatures, dict[str, Decided]]:
        prepared = self.encoder.prepare(image)
        encoded = self.encoder({"image": prepared.pixels["image"][None]})
        return ImageFeatures(encoded, prepared, grey(image)), {}

    @torch.inference_mode()
    def observe(self, photo: Photo, masks: dict[str, Mask | None], undecided: Mask, id: str) -> Correction:
        maps = feature_maps(self.encoder, photo.features.prepared, photo.features.encoded)
        size = photo.features.prepared.original_size
        return make_correction(id, maps, masks, size, encoder=self.fingerprint, undecided=undecided)

    @torch.inference_mode()
    def answer(self, head: Head | None, photo: Photo, classes: Sequence[str]) -> Segmentation:
        prepared = photo.features.prepared
        if head is None:
            return Segmentation(prepared.original_size, tuple(ClassAnswer(name, 0.0, None) for name in classes))
        judged = head.judge(feature_maps(self.encoder, prepared, photo.features.encoded), list(classes), None, None)
        masks = paint(head.scores(judged, None, None), photo.features.grey, prepared.input_size, prepared.content_size)
        drawn = iter(masks)
        answers = [
            ClassAnswer(name, float(p), next(drawn) if there else None)
            for name, p, there in zip(classes, judged.probability, judged.present, strict=True)
        ]
        return Segmentation(prepared.original_size, tuple(answers))


def encode_photo(eyes: Eyes, data: Folder, index: int) -> Photo:
    """Reads and encodes one photo of a set."""
    opened, labels = read_photo(data[index])
    return Photo(labels[0], *eyes.encode(np.asarray(opened), data.classes))


def observe_photo(eyes: Eyes, photo: Photo, classes: Sequence[str], id: str) -> Correction:
    """The photo with its annotation as a correction."""
    masks: dict[str, Mask | None] = {name: photo.truth == i for i, name in enumerate(classes)}
    return eyes.observe(photo, masks, photo.truth == UNKNOWN, id)


def measure_set(
    eyes: Eyes,
    folder: Path,
    counts: Sequence[int],
    choices: int,
    photos: int,
    advance: Advance = lambda: None,
    known: Sequence[Row] = (),
) -> Iterator[Row]:
    """The curve of one set: a row without corrections, then one for each choice and number of corrections.

    Args:
        folder: The set.
        counts: Numbers of corrections, increasing; those that the train split does not have are passed over, but for
            the first of these, which becomes all of it.
        choices: Random orders of the train split.
        photos: Most val photos, evenly spread.
        advance: Called for each photo that was encoded, and where a choice is known for each that was not.
        known: Rows of this set that were measured before: they are given again, and a choice of photos that has all of
            its rows there is not measured.
    """
    train, val = Folder(folder, "train"), Folder(folder, "val")
    classes = val.classes
    steps = possible_counts(counts, len(train))
    had = {(row["choice"], row["corrections"]): row for row in known}
    wanted = [(None, 0), *((choice, count) for choice in range(choices) for count in steps)]
    if all(each in had for each in wanted):
        for _ in range(min(photos, len(val)) + choices * steps[-1]):
            advance()
        yield from (had[each] for each in wanted)
        return
    scored = []
    for index in spread(len(val), photos):
        scored.append(encode_photo(eyes, val, index))
        advance()
    before = had.get((None, 0)) or score(eyes, None, scored, classes)
    yield {"set": val.name, "choice": None, "corrections": 0, **before}
    for choice in range(choices):
        if all((choice, count) in had for count in steps):
            for _ in range(steps[-1]):
                advance()
            yield from (had[choice, count] for count in steps)
            continue
        order = np.random.default_rng(choice).permutation(len(train))[: steps[-1]]
        learner = Learner()
        head: Head | None = None
        for number, index in enumerate(order, 1):
            photo = encode_photo(eyes, train, int(index))
            began = time.process_time()
            correction = observe_photo(eyes, photo, classes, train[int(index)].image_id)
            learner.put(correction.numbered(number))
            if number in steps:
                head = learner.fit(number=number, previous=None if head is None else head.decision)
                seconds = time.process_time() - began
                figures = score(eyes, head, scored, classes)
                figures["extra_seconds"] = figures.pop("seconds") - before["seconds"]
                yield {
                    "set": val.name,
                    "choice": choice,
                    "corrections": number,
                    **figures,
                    "update_seconds": seconds,
                    "serves": head.serves,
                    "stacking": str(head.stacking),
                    "shrinkage": head.shrinkage.value,
                    "prior": head.shrinkage.prior,
                    "gate": head.decision.to_dict(),
                }
            advance()


def possible_counts(counts: Sequence[int], available: int) -> list[int]:
    """The counts that a split of so many photos has, and all of it where one is larger."""
    return sorted({min(count, available) for count in counts})


def score(eyes: Eyes, head: Head | None, photos: Sequence[Photo], classes: Sequence[str]) -> Row:
    """The figures of a head, or of the model alone, on photos.

    `change` is what is left to correct: pixels that a class has too many or too few, over the decided pixels; one that
    goes from one class to another counts twice. `seconds` are those of the answer without encoding, the mean per photo.
    """
    masks, presence = SegmentationMetrics(len(classes)), PresenceMetrics(len(classes))
    wrong = decided = 0
    began = time.process_time()
    answers = [eyes.answer(head, photo, classes) for photo in photos]
    seconds = (time.process_time() - began) / len(photos)
    for photo, answer in zip(photos, answers, strict=True):
        scored = score_photo(photo.truth[None], answer)
        masks.update(scored)
        wrong += sum(one.union - one.intersection for one in scored.classes)
        decided += scored.pixels
        presence.update(
            [one.present for one in scored.classes],
            [one.said for one in scored.classes],
            [one.probability for one in scored.classes],
        )
    return {
        "miou": masks.miou,
        "accuracy": masks.pixel_accuracy,
        "ap": presence.average_precision(),
        "f1": presence.f1(),
        "fpr": presence.absent_false_positive_rate(),
        "ece": presence.calibration_error(),
        "change": wrong / decided,
        "seconds": seconds,
    }
