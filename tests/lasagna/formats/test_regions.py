"""The reader of regions takes whatever a program has stored as an annotation: Label Studio checks none of it."""

import itertools
import math
from contextlib import suppress
from typing import Any

import pytest

from lasagna.errors import DataError
from lasagna.formats.annotations import region_to_mask
from lasagna.formats.regions import read_regions
from lasagna.labels.configuration import parse_label_config

CONFIG = parse_label_config(
    '<View><Image name="image" value="$image"/><RectangleLabels name="r" toName="image"><Label value="sky"/>'
    '</RectangleLabels><Brush name="b" toName="image"/>'
    '<Labels name="l" toName="image"><Label value="sky"/></Labels></View>'
)
VALUE = {"x": 10, "y": 10, "width": 20, "height": 30, "rotation": 0, "rectanglelabels": ["sky"]}
REGION = {"id": "a", "from_name": "r", "to_name": "image", "type": "rectanglelabels", "original_width": 40,
          "original_height": 30, "image_rotation": 0, "value": VALUE}  # fmt: skip
ODD: list[Any] = [None, 5, 1.5, math.inf, math.nan, True, "x", "\ud800", [], ["image"], [["a"]], {}, {"a": 1}]


@pytest.mark.parametrize(
    "key", [*REGION, "score", "item_index", "origin", "parentID", "meta", "hidden", "locked", "labels", "direction"]
)
def test_odd_entries_of_a_region(key: str) -> None:
    for odd, others in itertools.product(ODD, ([], [REGION])):
        found = read_regions([*others, {**REGION, key: odd}], CONFIG.images)
        regions = [region for of_image in (*found.of_image, found.elsewhere) for region in of_image]
        assert len(regions) >= len(others) + (key not in ("value", "id", "from_name", "to_name", "item_index", "type"))
        assert all(isinstance(region.name, str) for region in regions)


@pytest.mark.parametrize(
    "key", [*VALUE, "points", "rle", "format", "radiusX", "imageDataURL", "vertices", "labels", "text"]
)
def test_odd_entries_of_a_shape(key: str) -> None:
    for odd in ODD:
        [of_image] = read_regions([{**REGION, "value": {**VALUE, key: odd}}], CONFIG.images).of_image
        for region in of_image:
            with suppress(DataError):  # says what is wrong; nothing else is raised
                assert region_to_mask(region, (30, 40)).shape == (30, 40)


@pytest.mark.parametrize("target", [["image"], {"name": "image"}, 3])
def test_a_region_whose_image_is_no_name_lies_elsewhere(target: Any) -> None:
    """The editor shows it on no image (measured in 1.23.2)."""
    found = read_regions([{**REGION, "to_name": target}, REGION], CONFIG.images)
    assert [len(of_image) for of_image in found.of_image] == [1]
    assert len(found.elsewhere) == 1


def test_what_belongs_to_a_region_and_is_none() -> None:
    """Relations, texts and choices of a region; groups, hidden and locked ones."""
    note = {**REGION, "from_name": "t", "type": "textarea", "value": {**VALUE, "text": ["seen by Ann"]}}
    note["value"].pop("rectanglelabels")
    relation = {"from_id": "a", "to_id": "b", "type": "relation", "direction": "right", "labels": ["part of"]}
    inner = {**REGION, "id": "b", "parentID": "a", "hidden": True, "locked": True, "meta": {"text": ["x"]}}
    [of_image] = read_regions([REGION, note, relation, inner], CONFIG.images).of_image
    assert [(region.id, [label.value for label in region.labels]) for region in of_image] == [
        ("a", ["sky"]), ("b", ["sky"])]  # fmt: skip
