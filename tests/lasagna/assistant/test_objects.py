"""The model's answers where objects are asked for: nothing else of an answer changes, with a head as without."""

import numpy as np
import pytest

from lasagna import ClassQuery, Lasagna
from lasagna.formats.record import segmentation_to_record
from lasagna.masks.segmentation import Segmentation

NAMES = ["cat", "person", "sky", "road", "cup", "tree", "car", "dog"]


@pytest.fixture
def model() -> Lasagna:
    return Lasagna.random(3)


def photo(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (70, 90, 3), dtype=np.uint8)


def without_objects(answer: Segmentation) -> dict:
    record = segmentation_to_record(answer)
    for each in record["classes"]:
        each.pop("objects", None)
    return record


@pytest.mark.parametrize("with_head", [False, True])
def test_objects_of_the_classes_that_ask_for_them(model: Lasagna, with_head: bool) -> None:
    if with_head:
        mask = np.zeros((70, 90), np.bool_)
        mask[:30] = True
        for i in range(3):
            model.learn(photo(i), {"cat": mask, "sky": None})
    asked = [ClassQuery(name, objects=name in ("cat", "person", "car") or None) for name in NAMES]
    told = model.segment(photo(), asked, exclusive=True)
    plain = model.segment(photo(), NAMES, exclusive=True)
    assert without_objects(told) == segmentation_to_record(plain)
    assert any(answer.objects is not None for answer in told), "the fixture has a class with objects"
    for query, answer in zip(asked, told.classes, strict=True):
        assert (answer.objects is not None) == (answer.is_present and bool(query.objects))
        if answer.objects is not None and answer.mask is not None:
            assert (answer.objects.union == answer.mask).all()
            assert all(0 < each.score <= answer.probability for each in answer.objects)
