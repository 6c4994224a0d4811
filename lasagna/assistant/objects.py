"""Which pixels of a present class are which object: where a query asks for it (`ClassQuery.objects`).

What always holds: nothing of an answer changes but `ClassAnswer.objects`; only present classes that were asked so get
objects; they share no pixel and are together the mask (`lasagna.masks.objects`).
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from lasagna.masks.objects import MOST_OBJECTS, Objects
from lasagna.masks.segmentation import ClassAnswer, ClassQuery, Segmentation
from lasagna.masks.splitting import Numbers, split_by_shape

_HALF_SURE = 1.2e-3
"""Share of the image's pixels at which an object is half as likely right as a large one of the same class."""


def tell_apart(segmentation: Segmentation, queries: Sequence[ClassQuery]) -> Segmentation:
    """The answer with the objects of the classes whose query asks for them.

    Args:
        segmentation: The answer; a class that already has objects keeps them.
        queries: What was asked, in the order of the answer's classes.
    """
    if not any(query.objects for query in queries):
        return segmentation
    pairs = zip(segmentation.classes, queries, strict=True)
    return Segmentation(segmentation.size, tuple(_with_objects(a) if q.objects else a for a, q in pairs))


def _with_objects(answer: ClassAnswer) -> ClassAnswer:
    if answer.mask is None or answer.objects is not None:
        return answer
    return replace(answer, objects=to_objects(split_by_shape(answer.mask), answer.probability))


def to_objects(numbers: Numbers, probability: float) -> Objects:
    """Objects of one class, with scores: its probability, less for small ones, which are more often wrong.

    Args:
        numbers: Of objects from 1 on, the largest first; beyond `MOST_OBJECTS` they are counted as one.
        probability: Of the class, in [0, 1].
    """
    numbers = np.minimum(numbers, MOST_OBJECTS)
    areas = np.bincount(numbers.reshape(-1))[1:]
    scores = probability * areas / (areas + _HALF_SURE * numbers.size)
    return Objects(numbers.astype(np.uint16), tuple(scores.tolist()))
