"""Classes whose objects are told apart: the invariants of the core type, and one entry for each object in every format,
read back with the readers that people use."""

import contextlib
import io
import json
from collections import Counter
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from label_studio_sdk.converter.brush import decode_rle
from label_studio_sdk.label_interface import LabelInterface
from PIL import Image
from pycocotools.coco import COCO
from supervision import DetectionDataset

from lasagna.doors.supervision import segmentation_to_detections
from lasagna.formats import (
    record_to_segmentation,
    segmentation_to_coco,
    segmentation_to_instances,
    segmentation_to_label_studio,
    segmentation_to_record,
    segmentation_to_voc,
    segmentation_to_yolo,
)
from lasagna.formats.annotations import region_to_mask, regions_to_masks, regions_to_objects
from lasagna.formats.coco import coco_category_ids, coco_frame
from lasagna.formats.hygiene import Hygiene, clean_segmentation
from lasagna.formats.regions import read_regions
from lasagna.formats.yolo import yolo_data_yaml
from lasagna.labels.configuration import parse_label_config
from lasagna.masks.conversions import mask_to_polygon, polygons_to_mask
from lasagna.masks.objects import ObjectMask, Objects
from lasagna.masks.segmentation import ClassAnswer, Mask, Segmentation

SIZE = (40, 60)
KINDS = ("Brush", "Bitmask", "Polygon", "Rectangle", "Ellipse")
CONFIG = (
    '<View><Image name="i" value="$i"/>'
    + "".join(
        f'<{kind}Labels name="{kind}" toName="i"><Label value="car"/><Label value="sky"/></{kind}Labels>'
        for kind in KINDS
    )
    + "</View>"
)


def rectangle(top: int, left: int, bottom: int, right: int) -> Mask:
    mask = np.zeros(SIZE, np.bool_)
    mask[top:bottom, left:right] = True
    return mask


CARS = (
    rectangle(2, 2, 20, 20),
    rectangle(2, 20, 20, 40),  # touches the first
    rectangle(24, 5, 34, 20) | rectangle(24, 25, 34, 40),  # behind a pole
)
SCORES = (0.9, 0.6, 0.75)


@pytest.fixture(scope="module")
def scene() -> Segmentation:
    """Three cars, two of which touch, one in two parts; sky, which is one; a cat that is not there."""
    cars = CARS[0] | CARS[1] | CARS[2]
    return Segmentation(
        SIZE,
        (
            ClassAnswer("car", 0.9, cars, objects=Objects.of_masks(CARS, SCORES, SIZE)),
            ClassAnswer("sky", 0.8, rectangle(36, 0, 40, 30) | rectangle(36, 40, 40, 60)),
            ClassAnswer("cat", 0.1, None),
        ),
    )


# --- The core type ----------------------------------------------------------------------------------------------------


@st.composite
def numbers_of_objects(draw: st.DrawFn) -> tuple[np.ndarray, int]:
    size = draw(st.tuples(st.integers(1, 9), st.integers(1, 9)))
    count = draw(st.integers(0, 6))
    cells = draw(st.lists(st.integers(0, count), min_size=size[0] * size[1], max_size=size[0] * size[1]))
    return np.array(cells, np.int64).reshape(size), count


@settings(deadline=None)
@given(numbers_of_objects(), st.integers(0, 2**32))
def test_objects_share_no_pixel_and_are_together_the_mask(drawn: tuple[np.ndarray, int], seed: int) -> None:
    numbers, count = drawn
    scores = [(i + 1) / 10 for i in range(count)]
    objects = Objects.of_numbers(numbers, scores)
    assert [each.score for each in objects] == [(i + 1) / 10 for i in range(count) if (numbers == i + 1).any()]
    total = sum((each.mask.astype(int) for each in objects), np.zeros(numbers.shape, int))
    assert (total == (numbers > 0)).all()
    assert all(each.mask.any() for each in objects)
    same = Objects.of_masks([each.mask for each in objects], objects.scores, numbers.shape)
    assert (same.numbers == objects.numbers).all()
    answer = ClassAnswer("car", 0.5, numbers > 0, objects=objects)
    found = record_to_segmentation(
        json.loads(json.dumps(segmentation_to_record(Segmentation(numbers.shape, (answer,)))))
    )["car"]
    assert found.objects is not None
    assert (found.objects.numbers == objects.numbers).all()
    assert found.objects.scores == objects.scores
    inside = np.random.default_rng(seed).random(numbers.shape) < 0.5
    assert (objects.within(inside).union == ((numbers > 0) & inside)).all()


def test_what_are_no_objects_of_a_mask() -> None:
    mask = rectangle(0, 0, 10, 10)
    for wrong in (Objects.of_masks([rectangle(0, 0, 9, 10)], [1], SIZE), Objects.of_masks([], [], SIZE)):
        with pytest.raises(ValueError, match="together exactly its mask"):
            ClassAnswer("car", 0.5, mask, objects=wrong)
    with pytest.raises(ValueError, match="together exactly its mask"):
        ClassAnswer("car", 0.5, None, objects=Objects.of_masks([mask], [1], SIZE))
    with pytest.raises(ValueError, match="object 2 overlaps another"):
        Objects.of_masks([mask, rectangle(9, 9, 12, 12)], [1, 1], SIZE)
    with pytest.raises(ValueError, match=r"score of an object is in \[0, 1\]"):
        Objects.of_masks([mask], [1.5], SIZE)
    with pytest.raises(ValueError, match="each has a pixel"):
        Objects(np.array([[0, 2]], np.uint16), (0.5, 0.5))


def test_objects_are_a_sequence() -> None:
    objects = Objects.of_masks(CARS, SCORES, SIZE)
    assert len(objects) == 3
    last = objects[-1]
    assert isinstance(last, ObjectMask)
    assert (last.mask == CARS[2]).all()
    assert [each.score for each in objects[1:]] == [0.6, 0.75]
    with pytest.raises(IndexError):
        objects[3]


def test_what_is_left_out_of_a_mask_is_left_out_of_its_objects(scene: Segmentation) -> None:
    found, counts = clean_segmentation(scene, Hygiene(min_area=200))
    assert counts.small == 4  # both parts of the third car, and of the sky
    objects = found["car"].objects
    assert objects is not None
    assert (objects.union == (CARS[0] | CARS[1])).all()
    assert objects.scores == (0.9, 0.6)


# --- Formats ----------------------------------------------------------------------------------------------------------


def test_coco_read_by_pycocotools(scene: Segmentation, tmp_path: Path) -> None:
    names = [answer.name for answer in scene.classes]
    for variant in ("rle", "polygons"):
        annotations = segmentation_to_coco(scene, coco_category_ids(names), 7, variant=variant)  # type: ignore[arg-type]
        images = [{"id": 7, "file_name": "a.jpg", "width": SIZE[1], "height": SIZE[0]}]
        (tmp_path / "c.json").write_text(
            json.dumps({**coco_frame(names, "v"), "images": images, "annotations": annotations})
        )
        with contextlib.redirect_stdout(io.StringIO()):
            coco = COCO(str(tmp_path / "c.json"))
        cars = coco.loadAnns(coco.getAnnIds(catIds=[1], iscrowd=False))
        assert [round(car["score"], 6) for car in cars] == list(SCORES)
        assert all((coco.annToMask(car).astype(bool) == truth).all() for car, truth in zip(cars, CARS, strict=True))
        assert len(coco.getAnnIds(catIds=[2])) == 1


def test_yolo_and_voc_read_by_supervision(scene: Segmentation, tmp_path: Path) -> None:
    names = [answer.name for answer in scene.classes]
    for folder in ("images", "labels", "voc"):
        (tmp_path / folder).mkdir()
    Image.new("RGB", SIZE[::-1]).save(tmp_path / "images" / "a.png")
    (tmp_path / "labels" / "a.txt").write_text(segmentation_to_yolo(scene, {n: i for i, n in enumerate(names)}))
    (tmp_path / "data.yaml").write_text(yolo_data_yaml(names))
    data = DetectionDataset.from_yolo(
        str(tmp_path / "images"), str(tmp_path / "labels"), str(tmp_path / "data.yaml"), force_masks=True
    )
    [found] = data.annotations.values()
    assert Counter(found.class_id.tolist()) == {0: 3, 1: 2}
    for mask, truth in zip(found.mask[found.class_id == 0], CARS, strict=True):
        # OpenCV, which supervision draws with, takes in the border's pixels, and the bridge as a line
        assert (mask & truth).sum() / truth.sum() == 1
        assert (mask & ~truth).sum() < 0.35 * truth.sum()
    (tmp_path / "voc" / "a.xml").write_text(segmentation_to_voc(scene, "a.png"))
    voc = DetectionDataset.from_pascal_voc(str(tmp_path / "images"), str(tmp_path / "voc"))
    [boxes] = voc.annotations.values()
    cars = boxes[boxes.class_id == voc.classes.index("car")]
    assert cars.xyxy.round().astype(int).tolist() == [[2, 2, 20, 20], [20, 2, 40, 20], [5, 24, 40, 34]]
    assert len(ElementTree.fromstring(segmentation_to_voc(scene, "a.png")).findall("object")) == 5


def test_instance_png_read_by_pillow(scene: Segmentation, tmp_path: Path) -> None:
    numbers, table = segmentation_to_instances(scene)
    Image.fromarray(numbers).save(tmp_path / "a.png")
    read = np.asarray(Image.open(tmp_path / "a.png"))
    assert read.dtype == np.uint16
    cars = [row for row in table if row["class"] == "car"]
    assert [row["score"] for row in cars] == [0.9, 0.6, 0.75] or {row["score"] for row in cars} == set(SCORES)
    found = {row["score"]: read == row["id"] for row in cars}
    assert all((found[score] == truth).all() for score, truth in zip(SCORES, CARS, strict=True))
    assert [row for row in table if row["class"] == "sky" and "score" in row] == []


def test_label_studio_has_a_region_for_each_object(scene: Segmentation) -> None:
    prediction = segmentation_to_label_studio(scene, parse_label_config(CONFIG).images[0], "k", "v", min_part=0.0)
    assert LabelInterface(CONFIG).validate_prediction(prediction, return_errors=True) == []
    [regions] = read_regions(prediction["result"], parse_label_config(CONFIG).images).of_image
    counts = Counter((region.control, region.labels[0].value) for region in regions)
    assert {kind: counts[kind, "car"] for kind in KINDS} == dict.fromkeys(KINDS, 3)
    assert {kind: counts[kind, "sky"] for kind in KINDS} == {k: 1 if k in ("Brush", "Bitmask") else 2 for k in KINDS}
    assert len({region.id for region in regions}) == len(regions)
    for kind in ("Brush", "Bitmask", "Polygon"):
        cars = [region for region in regions if region.control == kind and region.labels[0].value == "car"]
        assert [region.score for region in cars] == list(SCORES)
        for region, truth in zip(cars, CARS, strict=True):
            assert (region_to_mask(region, SIZE) == truth).all()
    brushes: list[Any] = [r for r in prediction["result"] if r["from_name"] == "Brush"]
    for region, truth in zip(brushes, CARS, strict=False):  # the SDK's own decoder
        assert (decode_rle(region["value"]["rle"]).reshape(*SIZE, 4)[..., 3] > 127).tolist() == truth.tolist()


def test_supervision(scene: Segmentation) -> None:
    found = segmentation_to_detections(scene)
    assert Counter(found.data["class_name"].tolist()) == {"car": 3, "sky": 1}
    assert found.confidence is not None
    assert found.confidence[:3].tolist() == pytest.approx(SCORES)


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**32), st.floats(0.2, 0.8))
def test_one_ring_around_an_object_in_any_parts(seed: int, share: float) -> None:
    mask = np.random.default_rng(seed).random((9, 11)) < share
    ring = mask_to_polygon(mask, tolerance=0)
    assert (ring is None) == (not mask.any())
    if ring is not None:
        assert (polygons_to_mask([ring], mask.shape) == mask).all()


# --- What people drew -------------------------------------------------------------------------------------------------


def test_one_region_is_one_object(scene: Segmentation) -> None:
    """The model's own regions, read back: each control has each object, and each object is found once."""
    images = parse_label_config(CONFIG).images
    prediction = segmentation_to_label_studio(scene, images[0], "k", "v", min_part=0.0)
    [regions] = read_regions(prediction["result"], images).of_image
    for kinds in (("Brush",), ("Polygon",), ("Brush", "Bitmask", "Polygon", "Rectangle", "Ellipse")):
        pairs = [(r.labels[0].value, r) for r in regions if r.control in kinds]
        found, masks = dict(regions_to_objects(pairs, SIZE)), dict(regions_to_masks(pairs, SIZE))
        assert [(each.mask == truth).all() for each, truth in zip(found["car"], CARS, strict=True)] == [True] * 3
        assert set(found["car"].scores) == {1.0}
        assert all((found[name].union == masks[name]).all() for name in masks)
    boxes = [(r.labels[0].value, r) for r in regions if r.control == "Rectangle" and r.labels[0].value == "car"]
    assert len(dict(regions_to_objects(boxes, SIZE))["car"]) == 3


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 50), st.integers(1, 12), st.booleans()), max_size=7))
def test_objects_of_regions_are_together_their_mask(drawn: list[tuple[int, int, int, bool]]) -> None:
    images = parse_label_config(CONFIG).images
    result = []
    for i, (top, left, side, is_box) in enumerate(drawn):
        mask = rectangle(top, left, min(40, top + side), min(60, left + side))
        one = Segmentation(SIZE, (ClassAnswer("car", 0.9, mask),))
        regions = segmentation_to_label_studio(one, images[0], f"{i}", "v", min_part=0.0)["result"]
        result += [r for r in regions if r["from_name"] == ("Rectangle" if is_box else "Brush")]
    [regions] = read_regions(result, images).of_image
    pairs = [("car", region) for region in regions]
    found, masks = dict(regions_to_objects(pairs, SIZE)), dict(regions_to_masks(pairs, SIZE))
    assert found.keys() == masks.keys()
    for name, objects in found.items():
        assert (objects.union == masks[name]).all()
        assert len(objects) <= len(drawn)
