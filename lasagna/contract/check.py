"""Does a model keep the contract? `broken` asks it, and says in words what it found.

    from lasagna.contract.check import broken
    assert broken(model) == []

For tests of models, ours and others'. What always holds: every sentence of `ClassListModel` that can be looked at from
outside is looked at here; nothing of the model is changed.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
from PIL import Image

from lasagna.contract.model import ClassListModel
from lasagna.errors import LasagnaError, QueryError
from lasagna.masks.segmentation import ClassQuery, Segmentation

NAMES = ("sky", "road", "person", "a, b", "<SEG>", "x" * 300, "sky")
"""What is asked: common names, odd ones, and one twice."""
TOLERANCE = 2e-3
"""Probabilities may differ by so much between two ways of asking the same: rounding, no more."""


def broken(model: ClassListModel, names: Sequence[str] = NAMES, images: Sequence[Any] = ()) -> list[str]:
    """What of the contract a model does not keep, in words; [] where it keeps all.

    Args:
        names: Asked of every image.
        images: PIL images or arrays, of two sizes at least; (): two of noise.
    """
    given = list(images) or [_noise(48, 64), Image.fromarray(_noise(40, 32, 1))]
    found: list[str] = []
    for look in (_version, _answers, _thresholds, _exclusive, _unknown, _refusals, _abilities):
        try:
            found += look(model, list(names), given)
        except Exception as error:
            found.append(f"{look.__name__.strip('_')}: {type(error).__name__}: {error}")
    return found


def _noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    coarse = np.random.default_rng(seed).integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
    return coarse.repeat(8, 0).repeat(8, 1)


def _size(image: Any) -> tuple[int, int]:
    return (image.height, image.width) if isinstance(image, Image.Image) else image.shape[:2]


def _version(model: ClassListModel, names: list[str], images: list[Any]) -> Iterator[str]:
    if not isinstance(model.version, str) or not model.version or model.version.split() != [model.version]:
        yield f"version: one word, not {model.version!r}"
    if not isinstance(model.precision, str):
        yield f"precision: a text, not {model.precision!r}"


def _answers(model: ClassListModel, names: list[str], images: list[Any]) -> Iterator[str]:
    if model.segment_batch([], []) != []:
        yield "an empty batch has no answers"
    together = model.segment_batch(images, [names] * len(images))
    if len(together) != len(images):
        yield f"{len(images)} images have as many answers, not {len(together)}"
        return
    for number, (image, answer) in enumerate(zip(images, together, strict=True)):
        if answer.size != tuple(_size(image)):
            yield f"image {number}: the answer is of the size {answer.size}, the image of {_size(image)}"
        if [one.name for one in answer] != names:
            yield f"image {number}: one answer per class, in the order asked, names unchanged"
        if any(not one.is_unknown and not 0 <= one.probability <= 1 for one in answer):
            yield f"image {number}: a probability outside of [0, 1]"
        for words, again in (
            ("asked again", model.segment_batch([image], [names])[0]),
            ("as queries", model.segment(image, [ClassQuery(name) for name in names])),
            ("as an array", model.segment(np.asarray(image), names)),
        ):
            if not _same(answer, again):
                yield f"image {number}: another answer {words}; answers depend on the image and the list alone"
        seen: dict[str, tuple[float, bool]] = {}
        for one in answer:
            if not one.is_unknown and seen.setdefault(one.name, (one.probability, one.is_present)) != (
                one.probability,
                one.is_present,
            ):
                yield f"image {number}: {one.name[:20]!r} was asked twice and has two answers"


def _same(one: Segmentation, other: Segmentation) -> bool:
    for a, b in zip(one, other, strict=True):
        if a.is_unknown or b.is_unknown:
            if a.state != b.state:
                return False
        elif abs(a.probability - b.probability) > TOLERANCE or (
            a.state != b.state and abs(a.probability - 0.5) > TOLERANCE
        ):
            return False
    return True


def _thresholds(model: ClassListModel, names: list[str], images: list[Any]) -> Iterator[str]:
    for level in (0.02, 0.5, 0.98):
        answer = model.segment(images[0], names, threshold=level)
        own = model.segment(images[0], [ClassQuery(name, threshold=level) for name in names])
        if not _same(answer, own):
            yield f"a threshold of {level} for all is not that of each class"
        for one in answer:
            is_clear = not one.is_unknown and abs(one.probability - level) > TOLERANCE
            if is_clear and one.is_present != (one.probability >= level):
                yield f"{one.name[:20]!r} has the probability {one.probability:.3f} and is {one.state} at {level}"


def _exclusive(model: ClassListModel, names: list[str], images: list[Any]) -> Iterator[str]:
    answer = model.segment(images[0], sorted(set(names)), threshold=0.02, exclusive=True)
    masks = [one.mask for one in answer.present if one.mask is not None]
    if masks and int(np.sum(masks, axis=0).max()) > 1:
        yield "exclusive: a pixel belongs to two classes"


def _unknown(model: ClassListModel, names: list[str], images: list[Any]) -> Iterator[str]:
    for one in model.segment(images[0], names):
        if model.knows(ClassQuery(one.name)) == one.is_unknown:
            yield f"{one.name[:20]!r}: `knows` says another thing than the answer, which is {one.state}"


def _refusals(model: ClassListModel, names: list[str], images: list[Any]) -> Iterator[str]:
    asked: dict[str, Callable[[], Any]] = {
        "an empty list": lambda: model.segment_batch(images[:1], [[]]),
        "a blank label": lambda: model.segment_batch(images[:1], [["sky", " "]]),
        "a threshold of 2": lambda: model.segment_batch(images[:1], [names], threshold=2.0),
        "fewer lists than images": lambda: model.segment_batch(images[:1], []),
    }
    for words, ask in asked.items():
        try:
            ask()
        except QueryError:
            continue
        yield f"{words} is a QueryError"


def _abilities(model: ClassListModel, names: list[str], images: list[Any]) -> Iterator[str]:
    able = model.abilities
    height, width = _size(images[0])
    encoded = images[0]
    if able.keeps_images:
        encoded = model.encode_image(images[0])
        if not _same(model.segment(images[0], names), model.segment_batch([encoded], [names])[0]):
            yield "keeps_images: an encoded image has another answer than the image"
    else:
        yield from _must_refuse("keeps_images", lambda: model.encode_image(images[0]))
    if able.clicks:
        for more in ({"points": [(width / 2, height / 2, True)]}, {"box": (1.0, 1.0, width / 2, height / 2)}):
            mask, score = model.segment_prompt(encoded, **more)
            if mask.shape != (height, width) or mask.dtype != np.bool_ or not 0 <= score <= 1:
                yield f"clicks: a bool mask of the image's size and a score in [0, 1], not {mask.dtype} {mask.shape}"
    else:
        yield from _must_refuse("clicks", lambda: model.segment_prompt(encoded, points=[(1.0, 1.0, True)]))
    if able.questions:
        with suppress(QueryError):  # a checkpoint need not be trained for every kind of question
            if not isinstance(model.ask_features(encoded, "what is this?", max_new_tokens=2).text, str):
                yield "questions: the answer has a text"
    else:
        yield from _must_refuse("questions", lambda: model.ask_features(encoded, "what is this?"))
    if able.instant:
        if not model.encoder_fingerprint:
            yield "instant: the encoder has a fingerprint"
    else:
        yield from _must_refuse("instant", lambda: model.encoder_fingerprint)


def _must_refuse(ability: str, ask: Callable[[], Any]) -> Iterator[str]:
    try:
        ask()
    except LasagnaError:
        return
    yield f"{ability}: it is not among the abilities, and does not say so when it is asked (`cannot`)"
