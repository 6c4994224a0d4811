"""Masks to and from brush RLE, polygons, boxes and COCO RLE. References here are slow and obvious."""

import cv2
import hypothesis.extra.numpy as npst
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from label_studio_sdk.converter.brush import decode_rle

from lasagna.errors import DataError
from lasagna.masks.conversions import (
    brush_rle_to_mask,
    coco_rle_to_mask,
    drop_specks,
    mask_to_box,
    mask_to_boxes,
    mask_to_brush_rle,
    mask_to_coco_rle,
    mask_to_polygons,
    mask_to_rings,
)
from lasagna.masks.segmentation import Mask

any_masks = npst.arrays(np.bool_, npst.array_shapes(min_dims=2, max_dims=2, max_side=24))


@st.composite
def blobs(draw: st.DrawFn) -> Mask:
    """Masks like a model's: smooth, with several parts and holes."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    height, width = draw(st.integers(8, 60)), draw(st.integers(8, 60))
    noise = cv2.GaussianBlur(rng.standard_normal((height, width)), (0, 0), draw(st.floats(1.0, 5.0)))
    return noise > np.quantile(noise, draw(st.floats(0.1, 0.9)))


def rasterised(polygons: list[np.ndarray], shape: tuple[int, int]) -> Mask:
    """The pixels whose centre has a winding number other than 0: how the canvas of a browser fills a path."""
    height, width = shape
    x, y = np.arange(width) + 0.5, np.arange(height) + 0.5
    inside = np.zeros(shape, dtype=bool)
    for polygon in polygons:
        winding = np.zeros(shape, dtype=int)
        for (x0, y0), (x1, y1) in zip(polygon, np.roll(polygon, -1, axis=0), strict=True):
            if y0 != y1:
                crosses = (y >= min(y0, y1)) & (y < max(y0, y1))
                at = x0 + (y - y0) * (x1 - x0) / (y1 - y0)
                winding += np.where(crosses[:, None] & (x > at[:, None]), 1 if y1 > y0 else -1, 0)
        inside |= winding != 0
    return inside


def parts_of(mask: Mask) -> list[Mask]:
    count, labels = cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)
    return [labels == i for i in range(1, count)]


# --- Brush RLE --------------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(any_masks)
def test_brush_rle_is_what_label_studio_decodes(mask: Mask) -> None:
    rle = mask_to_brush_rle(mask)
    assert all(isinstance(byte, int) and 0 <= byte <= 255 for byte in rle)
    decoded = decode_rle(rle).reshape(*mask.shape, 4)
    assert (decoded == np.where(mask, 255, 0)[..., None]).all(), "every channel is 0 or 255"


@settings(deadline=None)
@given(any_masks | blobs())
def test_brush_rle_comes_back(mask: Mask) -> None:
    assert np.array_equal(brush_rle_to_mask(mask_to_brush_rle(mask), mask.shape), mask)


def test_brush_rle_of_a_stroke_as_the_editor_paints_it() -> None:
    """Anti-aliased alpha; the colour channels are whatever the label's colour is."""
    from label_studio_sdk.converter.brush import encode_rle

    rgba = np.zeros((2, 3, 4), dtype=np.uint8)
    rgba[..., :3] = (230, 25, 75)
    rgba[..., 3] = [[0, 1, 127], [128, 254, 255]]
    rle = encode_rle(rgba.ravel())
    assert brush_rle_to_mask(rle, (2, 3)).tolist() == [[False, False, False], [True, True, True]]
    assert brush_rle_to_mask(rle, (2, 3), threshold=1).tolist() == [[False, True, True], [True, True, True]]


@pytest.mark.parametrize(
    ("rle", "says"),
    [
        ([], "has 0 values"),
        ([0, 0], "has 0 values"),
        ([255, 255, 255, 255, 57, 27], "4294967295 values where an image of 5 x 4 needs 80"),
        ([0, 0, 0, 80], "cannot be decoded"),
        (mask_to_brush_rle(np.eye(4, 5, dtype=bool))[:-3], "cannot be decoded"),
        (mask_to_brush_rle(np.eye(5, 5, dtype=bool)), "has 100 values"),
        ([0, 0, 0, 80, 300, 1], "cannot be decoded"),
        ([0, 0, 0, 80, "a"], "cannot be decoded"),
        ([0, 0, -1, 80], "cannot be decoded"),
    ],
    ids=["empty", "short", "huge", "no runs", "cut", "other size", "not a byte", "text", "negative"],
)
def test_damaged_brush_rle(rle: list, says: str) -> None:
    with pytest.raises(DataError, match=says):
        brush_rle_to_mask(rle, (4, 5))


# --- Polygons ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(any_masks | blobs())
def test_polygons_without_tolerance_are_exact(mask: Mask) -> None:
    polygons = mask_to_polygons(mask, tolerance=0)
    assert np.array_equal(rasterised(polygons, mask.shape), mask)
    assert len(polygons) == len(parts_of(mask))
    if mask.any():
        corners = np.concatenate(polygons)
        x0, y0, x1, y1 = mask_to_box(mask) or (0, 0, 0, 0)
        assert [*corners.min(axis=0), *corners.max(axis=0)] == [x0, y0, x1, y1], (
            "polygons reach the pixels' outer edges"
        )


@settings(max_examples=100, deadline=None)
@given(blobs(), st.floats(0.2, 3.0))
def test_polygons_stay_within_the_tolerance(mask: Mask, tolerance: float) -> None:
    """A pixel may change sides only if the mask's border is nearer than the tolerance (and half a pixel's diagonal)."""
    polygons = mask_to_polygons(mask, tolerance)
    changed = rasterised(polygons, mask.shape) != mask
    around = np.pad(mask, 1)
    to_border = np.where(
        mask,
        cv2.distanceTransform(around.astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)[1:-1, 1:-1],
        cv2.distanceTransform((~around).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)[1:-1, 1:-1],
    )
    assert (to_border[changed] <= tolerance + 1.5).all()
    assert all(len(polygon) >= 3 for polygon in polygons)
    assert len(polygons) == len(parts_of(mask)), "a thin part must not vanish"


def test_simplified_polygons_have_few_corners_and_almost_the_mask() -> None:
    rows, columns = np.mgrid[:200, :300]
    ellipse = ((columns - 150) / 120) ** 2 + ((rows - 100) / 80) ** 2 < 1
    (polygon,) = mask_to_polygons(ellipse, tolerance=1.0)
    found = rasterised([polygon], ellipse.shape)
    assert len(polygon) < 50
    assert (found & ellipse).sum() / (found | ellipse).sum() > 0.98


def test_full_mask_is_the_rectangle_of_the_image() -> None:
    (polygon,) = mask_to_polygons(np.ones((3, 5), dtype=bool))
    assert sorted(map(tuple, polygon.tolist())) == [(0, 0), (0, 3), (5, 0), (5, 3)]


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1)])
def test_thin_masks_keep_an_area_at_any_tolerance(shape: tuple[int, int]) -> None:
    (polygon,) = mask_to_polygons(np.ones(shape, dtype=bool), tolerance=20)
    assert np.array_equal(rasterised([polygon], shape), np.ones(shape, dtype=bool))


def test_hole_is_kept_by_a_bridge_and_an_island_in_it_is_a_part() -> None:
    mask = np.zeros((40, 40), dtype=bool)
    mask[2:38, 2:38] = True
    mask[10:30, 10:30] = False
    mask[18:22, 18:22] = True
    polygons = mask_to_polygons(mask, tolerance=1.0)
    assert len(polygons) == 2
    assert np.array_equal(rasterised(polygons, mask.shape), mask)
    (outer, hole), (island,) = mask_to_rings(mask, tolerance=1.0)
    assert (cv2.contourArea(outer.astype(np.float32)), cv2.contourArea(hole.astype(np.float32))) == (36 * 36, 20 * 20)
    assert cv2.contourArea(island.astype(np.float32)) == 16


def test_small_parts_and_holes_are_dropped_but_never_the_largest_part() -> None:
    mask = np.zeros((30, 30), dtype=bool)
    mask[1:11, 1:11] = True  # 100 pixels less a hole of 4
    mask[5:7, 5:7] = False
    mask[20:23, 20:23] = True  # 9 pixels
    mask[28, 28] = True
    assert [len(mask_to_polygons(mask, 0, area)) for area in (0, 1, 2, 9, 10, 96, 97, 1e9)] == [3, 3, 2, 2, 1, 1, 1, 1]
    assert [len(mask_to_boxes(mask, area)) for area in (0, 1, 2, 9, 10, 96, 97, 1e9)] == [3, 3, 2, 2, 1, 1, 1, 1]
    filled = rasterised(mask_to_polygons(mask, 0, min_area=5), mask.shape)
    assert filled[5:7, 5:7].all()
    assert not rasterised(mask_to_polygons(mask, 0, min_area=4), mask.shape)[5:7, 5:7].any()


@pytest.mark.slow
def test_a_ragged_mask_takes_no_quadratic_memory() -> None:
    mask = np.random.default_rng(0).random((500, 700)) < 0.55
    polygons = mask_to_polygons(mask, tolerance=1.0, min_area=4)
    assert sum(map(len, polygons)) > 10_000


# --- Boxes and COCO RLE -----------------------------------------------------------------------------------------------


@settings(deadline=None)
def without_specks(mask: Mask, min_area: float) -> Mask:
    """Part by part, then hole by hole."""
    found, tidy = mask.astype(np.uint8), mask.copy()
    count, parts = cv2.connectedComponents(found, connectivity=8)
    areas = [int((parts == i).sum()) for i in range(count)]
    for i in range(1, count):
        if areas[i] < min_area and i != 1 + int(np.argmax(areas[1:])):
            tidy[parts == i] = False
    count, holes = cv2.connectedComponents((~tidy).astype(np.uint8), connectivity=4)
    for i in range(1, count):
        if (holes == i).sum() < min_area:
            tidy[holes == i] = True
    return tidy


@given(blobs() | any_masks, st.integers(0, 40))
def test_specks_and_pinholes_go_and_the_largest_part_stays(mask: Mask, min_area: int) -> None:
    before = mask.copy()
    tidy = drop_specks(mask, min_area)
    assert (mask == before).all()
    assert tidy.any() == mask.any()
    assert (tidy == (without_specks(mask, min_area) if mask.any() else mask)).all()


def test_specks_by_hand() -> None:
    mask = np.zeros((20, 20), bool)
    mask[2:12, 2:12] = True
    mask[5:7, 5:7] = False  # a hole of 4
    mask[15, 15] = mask[16, 16] = True  # one part of 2, by a corner
    tidy = drop_specks(mask, 5)
    assert tidy[5:7, 5:7].all()
    assert not tidy[12:].any()
    assert drop_specks(mask, 2).sum() == mask.sum()


@given(any_masks)
def test_box(mask: Mask) -> None:
    box = mask_to_box(mask)
    if box is None:
        assert not mask.any()
        return
    x0, y0, x1, y1 = box
    inside = np.zeros_like(mask)
    inside[y0:y1, x0:x1] = True
    assert not (mask & ~inside).any()
    assert mask[y0, :].any()
    assert mask[y1 - 1, :].any()
    assert mask[:, x0].any()
    assert mask[:, x1 - 1].any()


@settings(deadline=None)
@given(blobs() | any_masks)
def test_boxes_are_those_of_the_parts_largest_first(mask: Mask) -> None:
    parts = parts_of(mask)
    boxes = mask_to_boxes(mask)
    assert sorted(boxes) == sorted(box for part in parts if (box := mask_to_box(part)))
    if parts:
        assert boxes[0] in [mask_to_box(part) for part in parts if part.sum() == max(p.sum() for p in parts)]


@settings(deadline=None)
@given(any_masks | blobs())
def test_coco_rle_comes_back(mask: Mask) -> None:
    assert np.array_equal(coco_rle_to_mask(mask_to_coco_rle(mask)), mask)


def test_empty_mask() -> None:
    empty = np.zeros((4, 6), dtype=bool)
    assert mask_to_polygons(empty) == []
    assert mask_to_boxes(empty) == []
    assert mask_to_box(empty) is None
    assert not brush_rle_to_mask(mask_to_brush_rle(empty), (4, 6)).any()
