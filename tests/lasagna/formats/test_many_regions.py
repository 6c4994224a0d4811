"""Annotations of many regions, or of hostile ones, drawn for real in a process whose memory is measured."""

import json
import subprocess
import sys

import numpy as np
import pytest

from lasagna.errors import DataError
from lasagna.formats.annotations import MOST_REGIONS, has_area, region_to_mask, regions_to_masks
from lasagna.formats.regions import Region
from lasagna.masks.bitmask import mask_to_bitmask
from lasagna.masks.conversions import mask_to_brush_rle, polygons_to_mask
from lasagna.masks.runs import LONGEST_OUTLINE

_MEASURED = """
import json, sys
from pathlib import Path
import numpy as np
from lasagna.formats.annotations import regions_to_masks
from lasagna.formats.regions import Region
from training.data.records import stack_masks
import pycocotools.mask, label_studio_brush_rle_rs

def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM:")).split()[1]) // 1024

rng = np.random.default_rng(0)
size, classes = (3000, 4000), 5
regions = []
for number in range(300):
    x, y, width, height = rng.uniform(0, 70), rng.uniform(0, 70), rng.uniform(1, 30), rng.uniform(1, 30)
    value = {"x": x, "y": y, "width": width, "height": height}
    regions.append((number % classes, Region(f"{number}", "box", "rectangle", value)))
Path("/proc/self/clear_refs").write_text("5")
before = peak()
labels = stack_masks(size, regions_to_masks(regions, size))
print(json.dumps({"MB": peak() - before, "layers": len(labels), "covered": int((labels >= 0).any(axis=0).sum())}))
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_regions() -> None:
    done = subprocess.run([sys.executable, "-c", _MEASURED], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert found["layers"] == 5
    assert found["covered"] > 9_000_000
    # five layers of 24 MB, twice while they are stacked, and a mask or two
    assert found["MB"] < 400


@pytest.mark.parametrize("corners", [1_000_000, 20_000])
def test_a_polygon_without_bound_is_refused(corners: int) -> None:
    points = np.random.default_rng(0).uniform(0, 3000, (corners, 2))
    with pytest.raises(DataError, match=f"a polygon of {corners} corners .* the limit is {LONGEST_OUTLINE}"):
        polygons_to_mask([points], (3000, 4000))


def test_a_polygon_of_many_corners_is_drawn() -> None:
    angle = np.linspace(0, 2 * np.pi, 1_000_000, endpoint=False)
    mask = polygons_to_mask([np.stack([500 + 400 * np.cos(angle), 500 + 400 * np.sin(angle)], axis=1)], (1000, 1000))
    assert mask.sum() == pytest.approx(np.pi * 400**2, rel=1e-3)


def test_too_many_regions_are_named() -> None:
    value = {"x": 1, "y": 1, "width": 1, "height": 1}
    regions = [(0, Region("one", "box", "rectangle", value))] * (MOST_REGIONS + 1)
    with pytest.raises(DataError, match=f"{MOST_REGIONS + 1} regions, the limit is {MOST_REGIONS}"):
        list(regions_to_masks(regions, (100, 100)))


def test_a_damaged_region_is_named_among_many() -> None:
    value = {"x": 1, "y": 1, "width": 1, "height": 1}
    regions = [(0, Region("6", "box", "rectangle", value)), (0, Region("7", "box", "rectangle", {"x": 1}))]
    with pytest.raises(DataError, match="region 7 of box"):
        list(regions_to_masks(regions, (100, 100)))


def test_the_union_is_that_of_the_masks_one_by_one() -> None:
    rng, size = np.random.default_rng(1), (60, 80)
    regions = []
    for number in range(60):
        x, y, width, height = rng.uniform(0, 80), rng.uniform(0, 80), rng.uniform(1, 20), rng.uniform(1, 20)
        value = {"x": x, "y": y, "width": width, "height": height, "rotation": rng.uniform(0, 90)}
        kind = "rectangle"
        if number % 20 in (0, 10):
            mask = rng.random(size) < 0.02
            kind, value = "brush", {"rle": mask_to_brush_rle(mask)}
            if number % 20:
                kind, value = "bitmask", {"imageDataURL": mask_to_bitmask(mask)}
        elif number % 5 == 0:
            kind, value = "polygon", {"points": rng.uniform(0, 100, (6, 2)).tolist()}
        elif number % 7 == 0:
            kind, value = "ellipse", {"x": x, "y": y, "radiusX": width / 2, "radiusY": height / 2}
        regions.append((number % 7, Region(f"{number}", "any", kind, value)))
    for key, mask in regions_to_masks(regions, size):
        own = [region for other, region in regions if other == key]
        traced = np.zeros(size, np.bool_)
        for region in own:
            if region.kind not in ("rectangle", "ellipse"):
                traced |= region_to_mask(region, size)
        expected = traced.copy()
        for region in own:
            drawn = region_to_mask(region, size)
            assert has_area(region, size) == drawn.any()
            if region.kind in ("rectangle", "ellipse") and not (drawn & traced).any():
                expected |= drawn
        assert (mask == expected).all()
