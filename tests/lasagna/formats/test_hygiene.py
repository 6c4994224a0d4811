"""Hygiene of answers: what is left out, and that it is counted."""

from dataclasses import asdict
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lasagna.formats import segmentation_to_label_studio
from lasagna.formats.hygiene import Counts, Hygiene, clean_segmentation, limit_region_bytes
from lasagna.labels.configuration import parse_label_config
from lasagna.masks.segmentation import ClassAnswer, Mask, Segmentation
from lasagna.settings import Settings

SIZE = (60, 90)


def area(*boxes: tuple[int, int, int, int]) -> Mask:
    """A mask of boxes (left, top, right, bottom)."""
    mask = np.zeros(SIZE, dtype=bool)
    for left, top, right, bottom in boxes:
        mask[top:bottom, left:right] = True
    return mask


BLOCK, SPECK, LINE = (5, 5, 35, 35), (50, 50, 53, 53), (40, 2, 42, 58)

SCENE = Segmentation(
    SIZE,
    (
        ClassAnswer("car", 0.9, area(BLOCK, SPECK, LINE)),
        ClassAnswer("truck", 0.7, area((5, 5, 35, 34), (60, 5, 80, 25))),
        ClassAnswer("sky", 0.1, None),
        ClassAnswer("dot", 0.6, area((85, 55, 86, 56))),
    ),
)


@pytest.mark.parametrize(
    ("hygiene", "counts", "car", "truck", "dot"),
    [
        pytest.param({}, {}, [BLOCK, SPECK, LINE], [(5, 5, 35, 34), (60, 5, 80, 25)], [(85, 55, 86, 56)], id="none"),
        pytest.param(
            {"min_area": 9}, {"small": 1}, [BLOCK, SPECK, LINE], [(5, 5, 35, 34), (60, 5, 80, 25)], [], id="9"
        ),
        pytest.param(
            {"min_area": 10}, {"small": 2}, [BLOCK, LINE], [(5, 5, 35, 34), (60, 5, 80, 25)], [], id="minimum area"
        ),
        pytest.param(
            {"min_width": 2.9},
            {"slivers": 2},
            [BLOCK, SPECK],
            [(5, 5, 35, 34), (60, 5, 80, 25)],
            [],
            id="slivers: a line of two pixels and a dot, but no speck of three by three",
        ),
        pytest.param(
            {"duplicate_iou": 0.9},
            {"duplicates": 1},
            [BLOCK, SPECK, LINE],
            [(60, 5, 80, 25)],
            [(85, 55, 86, 56)],
            id="duplicate: of the less probable class",
        ),
        pytest.param(
            {"duplicate_iou": 0.98},
            {},
            [BLOCK, SPECK, LINE],
            [(5, 5, 35, 34), (60, 5, 80, 25)],
            [(85, 55, 86, 56)],
            id="not equal enough",
        ),
        pytest.param(
            {"max_regions": 3}, {"beyond_limit": 3}, [BLOCK], [(5, 5, 35, 34), (60, 5, 80, 25)], [], id="most regions"
        ),
        pytest.param(
            {"min_area": 10, "min_width": 3, "duplicate_iou": 0.9, "max_regions": 1},
            {"small": 2, "slivers": 1, "duplicates": 1, "beyond_limit": 1},
            [BLOCK],
            [],
            [],
            id="all, each part counted once",
        ),
    ],
)
def test_what_is_left_out(hygiene: Any, counts: Any, car: Any, truck: Any, dot: Any) -> None:
    clean, found = clean_segmentation(SCENE, Hygiene(**hygiene))
    assert asdict(found) == asdict(Counts(**counts))
    for name, boxes in (("car", car), ("truck", truck), ("dot", dot)):
        mask = clean[name].mask
        assert mask is not None, "present stays present"
        assert np.array_equal(mask, area(*boxes)), name
    assert clean["sky"] == SCENE["sky"]


@settings(deadline=None)
@given(st.data())
def test_masks_only_lose_whole_parts_and_cleaning_again_changes_nothing(data: st.DataObject) -> None:
    masks = [
        np.random.default_rng(data.draw(st.integers(0, 99))).random((12, 16)) < data.draw(st.floats(0, 1))
        for _ in range(data.draw(st.integers(1, 3)))
    ]
    answers = tuple(ClassAnswer(str(i), data.draw(st.floats(0, 1)), mask) for i, mask in enumerate(masks))
    hygiene = Hygiene(
        min_area=data.draw(st.integers(0, 6)),
        min_width=data.draw(st.floats(0, 3)),
        duplicate_iou=data.draw(st.sampled_from([0.0, 0.2, 0.7])),
        max_regions=data.draw(st.integers(0, 4)),
    )
    clean, counts = clean_segmentation(Segmentation((12, 16), answers), hygiene)
    for before, after in zip(answers, clean.classes, strict=True):
        assert before.mask is not None
        assert after.mask is not None
        assert not (after.mask & ~before.mask).any()
    again, nothing = clean_segmentation(clean, hygiene)
    assert nothing == Counts()
    assert all(np.array_equal(a.mask, b.mask) for a, b in zip(again.classes, clean.classes, strict=True))
    lost = any((a.mask != b.mask).any() for a, b in zip(answers, clean.classes, strict=True))  # type: ignore[union-attr]
    assert lost == (counts != Counts())


BRUSH = '<BrushLabels name="brush" toName="img"><Label value="car" alias="Auto"/><Label value="truck"/></BrushLabels>'
POLYGON = '<PolygonLabels name="poly" toName="img"><Label value="car"/></PolygonLabels>'


@pytest.mark.parametrize(
    ("controls", "limit", "kept", "counts"),
    [
        (BRUSH + POLYGON, 0, ["brush", "poly", "poly", "poly", "brush"], {}),
        (BRUSH + POLYGON, 100_000, ["brush", "poly", "poly", "poly", "brush"], {}),
        (BRUSH + POLYGON, 120, ["poly", "poly", "poly", "brush"], {"to_polygon": 1, "too_large": 1}),
        (BRUSH, 120, ["brush", "brush"], {"too_large": 2}),
        (BRUSH + POLYGON, 10, ["poly", "poly", "poly", "brush"], {"to_polygon": 1, "too_large": 4}),
    ],
    ids=["no limit", "below it", "a polygon instead", "no polygon to take instead", "polygons over it stay"],
)
def test_large_brush_regions(controls: str, limit: int, kept: list[str], counts: dict[str, int]) -> None:
    [config] = parse_label_config(f'<View><Image name="img" value="$image"/>{controls}</View>').images
    prediction = segmentation_to_label_studio(SCENE, config, "k", "v")
    limited, found = limit_region_bytes(prediction, config, limit)
    assert [region["from_name"] for region in limited["result"]] == kept
    assert asdict(found) == asdict(Counts(**counts))
    assert {**limited, "result": 0} == {**prediction, "result": 0}


def test_settings() -> None:
    assert Hygiene.of(Settings.load({})) == Hygiene(max_region_bytes=300_000)
    environ = {"LASAGNA_MIN_AREA": "30", "LASAGNA_DUPLICATE_IOU": "0.9"}
    assert Hygiene.of(Settings.load(environ)) == Hygiene(30, 0.0, 0.9, 0, 300_000)
    assert set(Settings.model_fields) >= set(asdict(Hygiene()))
