"""Objects that a person cut in two or put together: they cost something, though no pixel of the class changes."""

from typing import Any

import numpy as np
import pytest

from backend.effort.measure import RegionCounts, task_effort
from lasagna.labels.configuration import parse_label_config
from lasagna.masks.conversions import mask_to_brush_rle

SIZE = (40, 60)
XML = """<View><Image name="image" value="$image"/>
<BrushLabels name="brush" toName="image"><Label value="car"/><Label value="wall"/></BrushLabels>
<RectangleLabels name="box" toName="image"><Label value="car"/></RectangleLabels></View>"""
PLAN = parse_label_config(XML)


def area(left: int, right: int) -> np.ndarray:
    mask = np.zeros(SIZE, np.bool_)
    mask[10:30, left:right] = True
    return mask


def brush(id: str, mask: np.ndarray, label: str = "car") -> dict[str, Any]:
    value = {"format": "rle", "rle": mask_to_brush_rle(mask), "brushlabels": [label]}
    sizes = {"original_width": SIZE[1], "original_height": SIZE[0], "image_rotation": 0}
    return {"id": id, "from_name": "brush", "to_name": "image", "type": "brushlabels", "value": value, **sizes}


def box(id: str, left: int, right: int) -> dict[str, Any]:
    value = {"x": left / 0.6, "y": 25, "width": (right - left) / 0.6, "height": 50, "rotation": 0}
    sizes = {"original_width": SIZE[1], "original_height": SIZE[0], "image_rotation": 0}
    shared = {"id": id, "from_name": "box", "to_name": "image", "type": "rectanglelabels", **sizes}
    return {**shared, "value": {**value, "rectanglelabels": ["car"]}}


def counts(before: list[Any], after: list[Any], label: str = "car") -> RegionCounts:
    task = {
        "id": 1,
        "data": {"image": "/a.jpg"},
        "predictions": [{"id": 5, "model_version": "v", "created_at": "2026-11-23T10:00:00Z", "result": before}],
        "annotations": [{"id": 7, "parent_prediction": 5, "created_at": "2026-11-24T10:00:00Z", "result": after}],
    }
    found = task_effort(task, PLAN)
    assert found.effort.classes[label].changed == 0, "no pixel of the class changes in any of these"
    return found.regions[label]


WHOLE, LEFT, MIDDLE, RIGHT = area(5, 50), area(5, 20), area(20, 35), area(35, 50)


def test_an_object_that_is_cut() -> None:
    found = counts([brush("a", WHOLE)], [brush("a", LEFT), brush("b", MIDDLE | RIGHT)])
    assert found == RegionCounts(changed=1, added=1, cut=1)
    found = counts([brush("a", WHOLE)], [brush("a", LEFT), brush("b", MIDDLE), brush("c", RIGHT)])
    assert found == RegionCounts(changed=1, added=2, cut=2)


def test_objects_that_are_merged() -> None:
    found = counts([brush("a", LEFT), brush("b", MIDDLE), brush("c", RIGHT)], [brush("a", WHOLE)])
    assert found == RegionCounts(changed=1, deleted=2, merged=2)


def test_another_border_between_two_is_neither() -> None:
    before = [brush("a", LEFT), brush("b", MIDDLE | RIGHT)]
    assert counts(before, [brush("a", LEFT | area(20, 22)), brush("b", area(22, 50))]) == RegionCounts(changed=2)


def test_boxes_beside_the_brush_count_once() -> None:
    before = [brush("a", WHOLE), box("x", 5, 50)]
    after = [brush("a", LEFT), brush("b", MIDDLE | RIGHT), box("x", 5, 20), box("y", 20, 50)]
    assert counts(before, after) == RegionCounts(changed=2, added=2, cut=1)


def test_classes_whose_objects_are_not_told_apart() -> None:
    before, after = [brush("a", WHOLE, "wall")], [brush("a", LEFT, "wall"), brush("b", MIDDLE | RIGHT, "wall")]
    assert counts(before, after, "wall") == RegionCounts(changed=1, added=1)


@pytest.mark.parametrize("label", ["car", "wall"])
def test_what_nobody_touched(label: str) -> None:
    region = brush("a", WHOLE, label)
    assert counts([region], [region], label) == RegionCounts(accepted=1)
