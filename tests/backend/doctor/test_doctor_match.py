"""Regions that Label Studio stores and does not draw, or draws wrongly; each is named."""

from typing import Any

import numpy as np
import pytest

from backend.doctor.match import misfits
from lasagna.formats.label_studio import segmentation_to_label_studio
from lasagna.labels.configuration import parse_label_config
from lasagna.masks.brush_rle import encode_brush_rle
from lasagna.masks.conversions import mask_to_brush_rle
from lasagna.masks.segmentation import ClassAnswer, Segmentation

CONFIG = """<View><Image name="image" value="$image"/>
<BrushLabels name="brush" toName="image"><Label value="Cat"/><Label value="Dog" alias="hound"/></BrushLabels>
<PolygonLabels name="poly" toName="image"><Label value="Cat"/></PolygonLabels>
<RectangleLabels name="rect" toName="image"><Label value="Cat"/></RectangleLabels>
<Choices name="absent" toName="image" choice="multiple"><Choice value="Cat"/><Choice value="Dog"/></Choices></View>"""
[IMAGE] = parse_label_config(CONFIG).images
SIZE = (40, 30)
MASK = np.zeros((30, 40), dtype=bool)
MASK[5:15, 5:20] = True


def brush(**value: Any) -> dict[str, Any]:
    rle = mask_to_brush_rle(MASK)
    return region("brush", "brushlabels", {"format": "rle", "rle": rle, "brushlabels": ["Cat"], **value})


def region(control: str, kind: str, value: dict[str, Any], **more: Any) -> dict[str, Any]:
    known = {"id": "a", "from_name": control, "to_name": "image", "type": kind, "value": value}
    return {**known, "original_width": 40, "original_height": 30, "image_rotation": 0, **more}


POINTS = [[0, 0], [50, 0], [50, 100]]
BOX = {"x": 0, "y": 0, "width": 100, "height": 100, "rotation": 0, "rectanglelabels": ["Cat"]}


def test_what_the_worker_makes_fits() -> None:
    answer = Segmentation((30, 40), (ClassAnswer("Cat", 0.9, MASK), ClassAnswer("Dog", 0.8, MASK)))
    result = segmentation_to_label_studio(answer, IMAGE, "key", "v")["result"]
    assert {each["type"] for each in result} == {"brushlabels", "polygonlabels", "rectanglelabels"}
    assert misfits(result, [IMAGE], [SIZE]) == []
    absent = Segmentation((30, 40), (ClassAnswer("Cat", 0.1, None), ClassAnswer("Dog", 0.1, None)))
    assert misfits(segmentation_to_label_studio(absent, IMAGE, "key", "v")["result"], [IMAGE], [SIZE]) == []


@pytest.mark.parametrize(
    ("result", "words"),
    [
        ([{**brush(), "id": None}], "breaks the editor"),
        ([brush(), brush()], "the id 'a' comes 2 times"),
        ([{**brush(), "from_name": "other"}], "the control 'other', which the configuration does not have"),
        ([{**brush(), "to_name": "photo"}], "is for the image 'photo', and 'brush' draws on 'image'"),
        ([{**brush(), "type": "BrushLabels"}], "is of the type 'BrushLabels', and 'brush' draws brushlabels"),
        ([brush(brushlabels=["Bird"])], "has the label 'Bird', which 'brush' does not have"),
        ([brush(brushlabels=[], labels=["Cat"])], "has no label"),
        ([{**brush(), "original_width": 30, "original_height": 40}], "30 x 40 pixels, and this one has 40 x 30"),
        ([brush(rle=mask_to_brush_rle(MASK[:20]))], "cannot be drawn: a brush mask has 3200 values"),
        ([brush(rle=[1, 2])], "cannot be drawn"),
        ([brush(rle=encode_brush_rle(MASK.view(np.uint8), repeat=4))], "0 and 255 are the values, not 0 and 1"),
        ([region("poly", "polygonlabels", {"points": [[0, 0], [640, 0], [5, 5]], "polygonlabels": ["Cat"]})], "beyond"),
        ([region("rect", "rectanglelabels", {**BOX, "width": 640})], "coordinates are percent"),
    ],
    ids=[
        "no id", "id twice", "control", "image", "case of the type", "label", "labels for brushlabels", "turned",
        "RLE of another size", "damaged RLE", "RLE of 0 and 1", "polygon in pixels", "rectangle in pixels",
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named(result: list[dict[str, Any]], words: str) -> None:
    [found] = misfits(result, [IMAGE], [SIZE])
    assert words in found


@pytest.mark.parametrize(
    "fits",
    [
        brush(brushlabels=["hound"]),
        brush(brushlabels=["Dog"]),
        region("poly", "polygonlabels", {"points": POINTS, "polygonlabels": ["Cat"]}),
        region("rect", "rectanglelabels", BOX),
    ],
    ids=["alias", "value of a label with an alias", "polygon to the border", "the whole image"],
)
def test_what_fits_is_left_alone(fits: dict[str, Any]) -> None:
    assert misfits([fits], [IMAGE], [SIZE]) == []
