"""What segmentations are written as, checked with the readers that people use: Label Studio's SDK, pycocotools,
supervision (YOLO, VOC), Pillow."""

import contextlib
import io
import json
import math
from collections import Counter
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from label_studio_sdk.converter.brush import decode_rle
from label_studio_sdk.label_interface import LabelInterface
from PIL import Image
from pycocotools.coco import COCO
from scipy.ndimage import binary_dilation
from skimage.draw import polygon2mask
from supervision import DetectionDataset

from lasagna.formats import (
    indices_to_png,
    record_to_segmentation,
    segmentation_to_coco,
    segmentation_to_indices,
    segmentation_to_instances,
    segmentation_to_label_studio,
    segmentation_to_record,
    segmentation_to_voc,
    segmentation_to_yolo,
)
from lasagna.formats.coco import coco_category_ids, coco_frame
from lasagna.formats.png import class_table
from lasagna.formats.regions import read_regions
from lasagna.formats.yolo import yolo_data_yaml
from lasagna.labels.classes import make_label_config
from lasagna.labels.configuration import parse_label_config
from lasagna.masks.conversions import coco_rle_to_mask
from lasagna.masks.ordering import task_score
from lasagna.masks.palette import palette
from lasagna.masks.segmentation import ClassAnswer, ClassQuery, Mask, Segmentation

HEIGHT, WIDTH = 60, 90

CONFIG = """
<View>
  <Image name="img" value="$photo"/>
  <BrushLabels name="brush" toName="img"><Label value="sky"/><Label value="car" alias="Auto"/></BrushLabels>
  <PolygonLabels name="poly" toName="img"><Label value="car"/><Label value="ring"/></PolygonLabels>
  <RectangleLabels name="box" toName="img"><Label value="car"/></RectangleLabels>
  <Choices name="absent" toName="img" choice="multiple">
    <Choice value="dog"/><Choice value="cat" alias="kitty"/>
  </Choices>
</View>
"""
[CONFIG_OF_IMAGE] = parse_label_config(CONFIG).images


def area(rows: slice, columns: slice) -> Mask:
    mask = np.zeros((HEIGHT, WIDTH), dtype=bool)
    mask[rows, columns] = True
    return mask


@pytest.fixture(scope="module")
def scene() -> Segmentation:
    """Sky above; two cars, the larger partly in front of the sky; a ring; a present class without a pixel."""
    ring = area(slice(30, 50), slice(50, 70)) & ~area(slice(35, 45), slice(55, 65))
    cars = area(slice(15, 45), slice(5, 35)) | area(slice(50, 58), slice(70, 88))
    return Segmentation(
        (HEIGHT, WIDTH),
        (
            ClassAnswer("sky", 0.9, area(slice(0, 20), slice(0, WIDTH))),
            ClassAnswer("car", 0.8, cars),
            ClassAnswer("cat", 0.1, None),
            ClassAnswer("ring", 0.7, ring),
            ClassAnswer("tree", 0.02, None),
            ClassAnswer("ghost", 0.6, area(slice(0), slice(0))),
        ),
    )


# --- Label Studio -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def prediction(scene: Segmentation) -> dict[str, Any]:
    return segmentation_to_label_studio(scene, CONFIG_OF_IMAGE, "task 7", "nano-12345678")


def regions(prediction: dict[str, Any], control: str) -> list[dict[str, Any]]:
    return [region for region in prediction["result"] if region["from_name"] == control]


def test_prediction_passes_label_studios_own_validation(prediction: dict[str, Any]) -> None:
    assert LabelInterface(CONFIG).validate_prediction(prediction, return_errors=True) == []
    json.dumps(prediction, allow_nan=False)


def test_prediction_version_and_score(prediction: dict[str, Any], scene: Segmentation) -> None:
    assert prediction["model_version"] == "nano-12345678"
    assert prediction["score"] == pytest.approx(task_score(scene), abs=1e-6)
    nothing = Segmentation((4, 4), (ClassAnswer("sky", 0.2, None),))
    empty = segmentation_to_label_studio(nothing, CONFIG_OF_IMAGE, "k", "v")
    assert empty == {"model_version": "v", "score": pytest.approx(1 / 1.2, abs=1e-6), "result": []}


def test_every_control_that_names_a_class_gets_it(prediction: dict[str, Any]) -> None:
    found = [(r["from_name"], r["type"], r["value"].get(r["type"])) for r in prediction["result"]]
    assert found == [
        ("brush", "brushlabels", ["sky"]),
        ("brush", "brushlabels", ["Auto"]),
        ("poly", "polygonlabels", ["car"]),
        ("poly", "polygonlabels", ["car"]),
        ("box", "rectanglelabels", ["car"]),
        ("box", "rectanglelabels", ["car"]),
        ("poly", "polygonlabels", ["ring"]),
        ("absent", "choices", ["kitty"]),
    ]
    scores = {r["value"][r["type"]][0]: r["score"] for r in prediction["result"][:-1]}
    assert scores == {"sky": 0.9, "Auto": 0.8, "car": 0.8, "ring": 0.7}
    assert all((r["original_width"], r["original_height"]) == (WIDTH, HEIGHT) for r in prediction["result"][:-1])


def test_regions_draw_the_masks(prediction: dict[str, Any], scene: Segmentation) -> None:
    brush = regions(prediction, "brush")[1]["value"]["rle"]
    assert np.array_equal(decode_rle(brush).reshape(HEIGHT, WIDTH, 4)[..., 3] == 255, scene["car"].mask)
    polygons = [np.array(r["value"]["points"]) / 100 * (WIDTH, HEIGHT) for r in regions(prediction, "poly")]
    drawn = [polygon2mask((HEIGHT, WIDTH), polygon[:, ::-1] - 0.5 + 1e-6) for polygon in polygons]
    for mask, expected in ((drawn[0] | drawn[1], scene["car"].mask), (drawn[2], scene["ring"].mask)):
        assert expected is not None
        assert (mask & expected).sum() / (mask | expected).sum() > 0.97
    box = regions(prediction, "box")[0]["value"]
    assert [box["x"], box["y"], box["width"], box["height"]] == pytest.approx(
        [100 * 5 / WIDTH, 100 * 15 / HEIGHT, 100 * 30 / WIDTH, 100 * 30 / HEIGHT], abs=1e-4
    )


def test_absent_classes_are_the_choices_that_exist(prediction: dict[str, Any]) -> None:
    (region,) = regions(prediction, "absent")
    assert region["value"] == {"choices": ["kitty"]}, "'tree' is absent too, but no choice of the configuration"


def test_ids_are_unique_and_stable(prediction: dict[str, Any], scene: Segmentation) -> None:
    ids = [region["id"] for region in prediction["result"]]
    assert len(set(ids)) == len(ids)
    again = segmentation_to_label_studio(scene, CONFIG_OF_IMAGE, "task 7", "other")
    assert [region["id"] for region in again["result"]] == ids
    other = segmentation_to_label_studio(scene, CONFIG_OF_IMAGE, "task 8", "nano-12345678")
    assert not {region["id"] for region in other["result"]} & set(ids)


def test_small_parts_are_left_out_of_polygons_and_boxes(scene: Segmentation) -> None:
    coarse = segmentation_to_label_studio(scene, CONFIG_OF_IMAGE, "k", "v", min_part=0.05)
    assert [len(regions(coarse, name)) for name in ("brush", "poly", "box")] == [2, 2, 1]


def test_a_class_asked_twice_is_drawn_once() -> None:
    mask = area(slice(0, 9), slice(0, 9))
    twice = Segmentation((HEIGHT, WIDTH), (ClassAnswer("sky", 0.9, mask), ClassAnswer("sky", 0.9, mask)))
    assert len(segmentation_to_label_studio(twice, CONFIG_OF_IMAGE, "k", "v")["result"]) == 1


def test_regions_lead_back_to_their_label(prediction: dict[str, Any]) -> None:
    [found] = read_regions(prediction["result"], [CONFIG_OF_IMAGE]).of_image
    assert [(region.control, region.labels[0].value) for region in found] == [
        ("brush", "sky"), ("brush", "car"), ("poly", "car"), ("poly", "car"), ("box", "car"), ("box", "car"),
        ("poly", "ring"),
    ]  # fmt: skip


@pytest.mark.parametrize("label", ["a, b", "<SEG>", '"', "x" * 300, "🐈", "line\nbreak"])
def test_odd_labels_survive_label_studio(label: str) -> None:
    xml = make_label_config([ClassQuery(label)])
    answer = Segmentation((2, 2), (ClassAnswer(label, 0.5, np.ones((2, 2), dtype=bool)),))
    prediction = segmentation_to_label_studio(answer, parse_label_config(xml).images[0], "k", "v")
    assert LabelInterface(xml).validate_prediction(prediction, return_errors=True) == []
    assert prediction["result"][0]["value"]["brushlabels"] == [label]


# --- COCO -------------------------------------------------------------------------------------------------------------


def read_with_pycocotools(dataset: dict[str, Any], tmp_path: Path) -> COCO:
    path = tmp_path / "coco.json"
    path.write_text(json.dumps(dataset))
    with contextlib.redirect_stdout(io.StringIO()):
        return COCO(str(path))


@pytest.mark.parametrize(("variant", "least_iou"), [("rle", 1.0), ("polygons", 0.93)])
def test_coco(variant: Any, least_iou: float, scene: Segmentation, tmp_path: Path) -> None:
    names = [answer.name for answer in scene.classes]
    files = ["a/x.jpg", "b/x.jpg"]
    dataset = {
        **coco_frame(names, "nano-12345678"),
        "images": [
            {"id": i, "file_name": name, "width": WIDTH, "height": HEIGHT} for i, name in enumerate(files, start=1)
        ],
        "annotations": [
            annotation
            for i in (1, 2)
            for annotation in segmentation_to_coco(scene, coco_category_ids(names), i, 3 * i - 2, variant=variant)
        ],
    }
    coco = read_with_pycocotools(dataset, tmp_path)
    assert [c["name"] for c in coco.loadCats(coco.getCatIds())] == names
    assert [(i["file_name"], i["width"], i["height"]) for i in coco.loadImgs(coco.getImgIds())] == [
        ("a/x.jpg", WIDTH, HEIGHT),
        ("b/x.jpg", WIDTH, HEIGHT),
    ]
    assert sorted(coco.getAnnIds()) == [1, 2, 3, 4, 5, 6], "ids are unique; the class without a pixel has none"
    for annotation in coco.loadAnns(coco.getAnnIds()):
        mask = scene[names[annotation["category_id"] - 1]].mask
        found = coco.annToMask(annotation).astype(bool)
        assert mask is not None
        assert (found & mask).sum() / (found | mask).sum() >= least_iou
        assert annotation["area"] == mask.sum()
        x, y, width, height = annotation["bbox"]
        assert mask[y : y + height, x : x + width].sum() == mask.sum()
        assert annotation["iscrowd"] == 0


def test_coco_score_and_first_id(scene: Segmentation) -> None:
    ids = {answer.name: 10 + i for i, answer in enumerate(scene.classes)}
    annotations = segmentation_to_coco(scene, ids, image_id=3, first_id=40)
    assert [(a["id"], a["category_id"], a["image_id"], a["score"]) for a in annotations] == [
        (40, 10, 3, 0.9), (41, 11, 3, 0.8), (42, 13, 3, 0.7),
    ]  # fmt: skip


# --- PNG --------------------------------------------------------------------------------------------------------------


def test_semantic_png_small_masks_over_large_ones(scene: Segmentation, tmp_path: Path) -> None:
    indices = segmentation_to_indices(scene)
    sky, car = scene["sky"].mask, scene["car"].mask
    assert sky is not None
    assert car is not None
    assert (sky & car).any()
    assert (indices[sky & car] == 2).all(), "the car has fewer pixels than the sky, so it is in front"
    assert (indices[sky & ~car] == 1).all()
    assert set(np.unique(indices)) == {0, 1, 2, 4}
    indices_to_png(indices, len(scene.classes)).save(tmp_path / "mask.png")
    with Image.open(tmp_path / "mask.png") as png:
        assert png.mode == "P"
        assert np.array_equal(np.asarray(png), indices)
        assert np.asarray(png.convert("RGB"))[0, 89].tolist() == list(palette(6)[0])
    rows = class_table([answer.name for answer in scene.classes])
    assert [(row["index"], row["name"]) for row in rows[:3]] == [(0, None), (1, "sky"), (2, "car")]
    assert rows[1]["colour"] == list(palette(6)[0])


@pytest.mark.parametrize(("count", "mode"), [(255, "P"), (256, "I;16"), (500, "I;16")])
def test_more_than_255_classes_take_16_bits(count: int, mode: str, tmp_path: Path) -> None:
    indices = np.array([[0, 1, count]], dtype=np.uint16)
    indices_to_png(indices, count).save(tmp_path / "mask.png")
    with Image.open(tmp_path / "mask.png") as png:
        assert png.mode == mode
        assert np.asarray(png).tolist() == [[0, 1, count]]


def test_colours_are_distinct_stable_and_never_black() -> None:
    assert palette(40)[:10] == palette(10)
    assert len(set(palette(255))) > 245
    assert min(sum(colour) for colour in palette(500)) > 80


def test_instance_png_has_a_number_per_part(scene: Segmentation, tmp_path: Path) -> None:
    numbers, table = segmentation_to_instances(scene)
    Image.fromarray(numbers).save(tmp_path / "instances.png")
    with Image.open(tmp_path / "instances.png") as png:
        assert png.mode == "I;16"
        read = np.asarray(png)
    assert np.array_equal(read, numbers)
    assert [(row["id"], row["class"]) for row in table] == [(1, "sky"), (2, "car"), (3, "ring"), (4, "car")]
    for row in table:
        x, y, width, height = row["bbox"]
        assert (read == row["id"]).sum() == row["area"] == (read[y : y + height, x : x + width] == row["id"]).sum()
        mask = scene[row["class"]].mask
        assert mask is not None
        assert mask[read == row["id"]].all()
    assert read.max() == 4
    nothing, rows = segmentation_to_instances(Segmentation((3, 4), (ClassAnswer("sky", 0.1, None),)))
    assert (nothing.any(), rows) == (False, [])


# --- YOLO and VOC -----------------------------------------------------------------------------------------------------


def test_yolo(scene: Segmentation) -> None:
    ids = {answer.name: i for i, answer in enumerate(scene.classes)}
    lines = segmentation_to_yolo(scene, ids).splitlines()
    assert [line.split()[0] for line in lines] == ["0", "1", "1", "3"]
    points = np.array(lines[0].split()[1:], dtype=float).reshape(-1, 2)
    assert (points.min(axis=0).tolist(), points.max(axis=0).tolist()) == ([0, 0], [1, pytest.approx(1 / 3, abs=1e-5)])
    assert yaml.safe_load(yolo_data_yaml(["sky", "yes", "a: b"]))["names"] == {0: "sky", 1: "yes", 2: "a: b"}


@pytest.fixture
def photo_folder(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    (tmp_path / "labels").mkdir()
    Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / "images" / "x.png")
    return tmp_path


def test_supervision_reads_yolo(scene: Segmentation, photo_folder: Path) -> None:
    names = [answer.name for answer in scene.classes]
    ids = {name: i for i, name in enumerate(names)}
    (photo_folder / "labels" / "x.txt").write_text(segmentation_to_yolo(scene, ids))
    (photo_folder / "data.yaml").write_text(yolo_data_yaml(names))
    found = DetectionDataset.from_yolo(
        str(photo_folder / "images"), str(photo_folder / "labels"), str(photo_folder / "data.yaml"), force_masks=True
    )
    assert found.classes == names
    ((_, _, detections),) = list(found)
    assert [names[i] for i in detections.class_id] == ["sky", "car", "car", "ring"]
    for name in ("sky", "car", "ring"):
        drawn = np.any([m for m, i in zip(detections.mask, detections.class_id, strict=True) if names[i] == name], 0)
        mask = scene[name].mask
        assert mask is not None
        assert drawn[mask].all()
        assert not drawn[~binary_dilation(mask, np.ones((3, 3)))].any(), "supervision draws the border's pixels too"


def test_supervision_reads_voc(scene: Segmentation, photo_folder: Path) -> None:
    (photo_folder / "labels" / "x.xml").write_text(segmentation_to_voc(scene, "x.png"))
    found = DetectionDataset.from_pascal_voc(str(photo_folder / "images"), str(photo_folder / "labels"))
    ((_, _, detections),) = list(found)
    boxes = [
        (found.classes[i], *box)
        for i, box in zip(detections.class_id, detections.xyxy.astype(int).tolist(), strict=True)
    ]
    # supervision counts from 0 again, and its right and bottom edges are outside
    assert boxes == [("sky", 0, 0, 90, 20), ("car", 5, 15, 35, 45), ("car", 70, 50, 88, 58), ("ring", 50, 30, 70, 50)]


def test_voc(scene: Segmentation) -> None:
    root = ElementTree.fromstring(segmentation_to_voc(scene, "a/x & y.jpg"))
    assert (root.findtext("folder"), root.findtext("filename")) == ("a", "x & y.jpg")
    assert [root.findtext(f"size/{tag}") for tag in ("width", "height", "depth")] == ["90", "60", "3"]
    boxes = [
        (o.findtext("name"), *(int(e.text or "") for e in o.iter() if e.tag[1:] in ("min", "max")))
        for o in root.iter("object")
    ]
    assert boxes == [("sky", 1, 1, 90, 20), ("car", 6, 16, 35, 45), ("car", 71, 51, 88, 58), ("ring", 51, 31, 70, 50)]


# --- Records ----------------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.data())
def test_records_come_back_exactly(data: st.DataObject) -> None:
    size = data.draw(st.tuples(st.integers(1, 12), st.integers(1, 12)))
    answers = []
    for name in data.draw(st.lists(st.text(min_size=1, max_size=5), max_size=5)):
        bits = data.draw(st.none() | st.integers(0, 2 ** math.prod(size) - 1))
        mask = None
        if bits is not None:
            mask = np.array([bits >> i & 1 for i in range(math.prod(size))], dtype=bool).reshape(size)
        answers.append(ClassAnswer(name, data.draw(st.floats(0, 1)), mask))
    segmentation = Segmentation(size, tuple(answers))
    found = record_to_segmentation(json.loads(json.dumps(segmentation_to_record(segmentation))))
    assert found.size == size
    for one, other in zip(found.classes, segmentation.classes, strict=True):
        assert (one.name, one.probability, one.is_present) == (other.name, other.probability, other.is_present)
        assert one.mask is None or (other.mask is not None and np.array_equal(one.mask, other.mask))


# --- Parts ------------------------------------------------------------------------------------------------------------


def test_one_object_per_part_in_every_format_alike() -> None:
    """Two cars apart, one of them with a hole, a third that touches the second by a corner, and a cat under a car."""
    cars = np.zeros((40, 60), np.bool_)
    cars[2:12, 2:20] = cars[20:34, 30:50] = cars[34:36, 50:52] = True
    cars[25:28, 35:40] = False
    cat = np.zeros((40, 60), np.bool_)
    cat[3:6, 3:8] = cat[38, 59] = True
    nothing = np.zeros((40, 60), np.bool_)  # present, and not a pixel of it
    answers = (ClassAnswer("car", 0.9, cars), ClassAnswer("cat", 0.8, cat), ClassAnswer("road", 0.7, nothing))
    scene = Segmentation((40, 60), (*answers, ClassAnswer("dog", 0.1, None)))
    ids = {"car": 1, "cat": 2, "road": 3, "dog": 4}
    expected = {"car": 2, "cat": 2}

    assert [a["category_id"] for a in segmentation_to_coco(scene, ids, 1)] == [1, 2]
    for variant in ("rle", "polygons"):
        annotations = segmentation_to_coco(scene, ids, 1, variant=variant, parts=True)  # type: ignore[arg-type]
        assert [a["category_id"] for a in annotations] == [1, 1, 2, 2]
        assert [a["id"] for a in annotations] == [1, 2, 3, 4]
        assert [a["bbox"] for a in annotations] == [[30, 20, 22, 16], [2, 2, 18, 10], [3, 3, 5, 3], [59, 38, 1, 1]]
        assert sum(a["area"] for a in annotations[:2]) == cars.sum()
    masks = [coco_rle_to_mask(a["segmentation"]) for a in segmentation_to_coco(scene, ids, 1, parts=True)]
    assert (masks[0] | masks[1] == cars).all()
    assert not (masks[0] & masks[1]).any()

    kinds = ("Brush", "Bitmask", "Polygon", "Rectangle", "Ellipse")
    [config] = parse_label_config(
        '<View><Image name="i" value="$i"/>'
        + "".join(
            f'<{kind}Labels name="{kind}" toName="i">'
            + "".join(f'<Label value="{name}"/>' for name in ids)
            + f"</{kind}Labels>"
            for kind in kinds
        )
        + "</View>"
    ).images
    regions = segmentation_to_label_studio(scene, config, "k", "v", parts=True)["result"]
    found = Counter((region["from_name"], region["value"][region["type"]][0]) for region in regions)
    assert found == {(kind, name): 2 for kind in kinds for name in expected}
    assert len({region["id"] for region in regions}) == len(regions)

    rows = Counter(int(line.split()[0]) for line in segmentation_to_yolo(scene, ids).splitlines())
    assert {name: rows[ids[name]] for name in expected} == expected
    voc = ElementTree.fromstring(segmentation_to_voc(scene, "x"))
    assert Counter(item.findtext("name") for item in voc.iter("object")) == expected
    numbers, table = segmentation_to_instances(scene, covered=True)
    assert Counter(row["class"] for row in table) == expected
    assert [row["id"] for row in table] == [1, 2, 3, 4]
    assert {row["id"] for row in table if row["area"]} == set(np.unique(numbers)) - {0}


def test_a_part_that_is_wholly_covered() -> None:
    below, above = np.zeros((8, 8), np.bool_), np.zeros((8, 8), np.bool_)
    below[2:5, 2:5] = above[2:5, 2:5] = True  # of the same size: painted in the order of the classes
    scene = Segmentation((8, 8), (ClassAnswer("cat", 0.8, below), ClassAnswer("dog", 0.7, above)))
    assert [row["class"] for row in segmentation_to_instances(scene)[1]] == ["dog"]
    rows = segmentation_to_instances(scene, covered=True)[1]
    assert [(row["class"], row["area"]) for row in rows] == [("cat", 0), ("dog", 9)]
