"""Exports of Label Studio, written with the fields that the server writes."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lasagna.errors import ConfigError, DataError
from lasagna.labels.configuration import parse_label_config
from lasagna.labels.history import label_set
from lasagna.masks.conversions import mask_to_brush_rle, mask_to_polygons
from tests.training.data.sources import samples
from training.data.records import OTHER, Record
from training.data.sources import find_source
from training.data.sources.label_studio import LabelStudioExport

WIDTH, HEIGHT = 20, 10
CONFIG = """<View>
  <Image name="image" value="$photo"/>
  <BrushLabels name="brush" toName="image"><Label value="Cat"/><Label value="Dog"/><Label value="Sky"/></BrushLabels>
  <PolygonLabels name="polygon" toName="image"><Label value="Cat"/><Label value="Dog"/></PolygonLabels>
  <RectangleLabels name="box" toName="image"><Label value="Cat"/><Label value="Dog"/></RectangleLabels>
  <KeyPointLabels name="click" toName="image" smart="true"><Label value="Cat"/><Label value="Dog"/></KeyPointLabels>
  <EllipseLabels name="ellipse" toName="image"><Label value="Dog"/></EllipseLabels>
  <VectorLabels name="line" toName="image"><Label value="Dog"/></VectorLabels>
  <Choices name="quality" toName="image"><Choice value="sharp"/></Choices>
</View>"""


def area(x0: int, y0: int, x1: int, y1: int) -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[y0:y1, x0:x1] = True
    return mask


def region(control: str, kind: str, label: str | list[str], value: dict[str, Any], **more: Any) -> dict[str, Any]:
    labels = [label] if isinstance(label, str) else label
    shared = {"id": f"r{label}", "from_name": control, "to_name": "image", "type": kind, "origin": "manual"}
    sizes = {"original_width": WIDTH, "original_height": HEIGHT, "image_rotation": 0}
    return {**shared, **sizes, "value": {**value, kind: labels}, **more}


def brush(label: str | list[str], mask: np.ndarray, **more: Any) -> dict[str, Any]:
    return region("brush", "brushlabels", label, {"format": "rle", "rle": mask_to_brush_rle(mask)}, **more)


def polygon(label: str, mask: np.ndarray) -> dict[str, Any]:
    (corners,) = mask_to_polygons(mask, tolerance=0)
    points = (corners * (100 / WIDTH, 100 / HEIGHT)).tolist()
    return region("polygon", "polygonlabels", label, {"points": points, "closed": True})


def box(label: str, x: float, y: float, width: float, height: float, rotation: float = 0) -> dict[str, Any]:
    """In percent."""
    value = {"x": x, "y": y, "width": width, "height": height, "rotation": rotation}
    return region("box", "rectanglelabels", label, value)


def click(label: str) -> dict[str, Any]:
    return region("click", "keypointlabels", label, {"x": 50, "y": 50, "width": 0.5})


LINE = region("line", "vectorlabels", "Dog", {"vertices": [{"x": 10, "y": 10}, {"x": 50, "y": 50}], "closed": False})
SHARP = {"from_name": "quality", "to_name": "image", "type": "choices", "value": {"choices": ["sharp"]}}


def annotation(number: int, result: list[Any], **more: Any) -> dict[str, Any]:
    times = {"created_at": "2026-11-23T01:38:11.111805Z", "updated_at": "2026-11-23T01:38:11.111832Z"}
    shared = {"id": number, "completed_by": 1, "was_cancelled": False, "ground_truth": False}
    return {**shared, **times, "result": result, "prediction": {}, "lead_time": 1.5, **more}


def task(
    number: int, annotations: list[Any], photo: Any = "/data/upload/3/c2d0f86e-a.png", **more: Any
) -> dict[str, Any]:
    shared = {"id": number, "drafts": [], "predictions": [], "meta": {}, "project": 3, "data": {"photo": photo}}
    return {**shared, "annotations": annotations, **more}


ALWAYS = "2000-01-01T00:00:00Z"


def write(root: Path, tasks: Any, config: str = CONFIG, since: str | None = ALWAYS) -> None:
    """An export; `since`: when all labels of the configuration stood in it, None: nobody noted that."""
    (root / "project.json").write_text(json.dumps(tasks))
    (root / "label_config.xml").write_text(config)
    if since is not None:
        seen = {"at": since, "labels": label_set(parse_label_config(config).images)}
        (root / "labels.json").write_text(json.dumps({"seen": [seen]}))
    put_photo(root / "images" / "c2d0f86e-a.png")


def put_photo(path: Path, size: tuple[int, int] = (WIDTH, HEIGHT), **more: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size).save(path, **more)


def only_record(root: Path) -> Record:
    source = LabelStudioExport(root, "project")
    assert (len(source), source.skipped) == (1, {})
    return source[0]


def masks(record: Record) -> dict[str, np.ndarray]:
    labels = record.read()
    return {name: (labels == i).any(axis=0) for i, name in enumerate(record.classes)}


HOLED = area(2, 1, 12, 8) & ~area(4, 3, 7, 5)
TURNED = area(7, 2, 10, 8)  # 6 wide and 3 high before it is turned by 90 degrees about its corner (10, 2)
REGIONS = {
    "nothing": ([], {}),
    "only a choice": ([SHARP], {}),
    "brush": ([brush("Cat", HOLED)], {"Cat": HOLED}),
    "two strokes": ([brush("Cat", HOLED), brush("Cat", area(15, 1, 18, 3))], {"Cat": HOLED | area(15, 1, 18, 3)}),
    "polygon": ([polygon("Dog", HOLED)], {"Dog": HOLED}),
    "rectangle": ([box("Cat", 10, 20, 50, 40)], {"Cat": area(2, 2, 12, 6)}),
    "turned rectangle": ([box("Cat", 50, 20, 30, 30, 90)], {"Cat": TURNED}),
    "a photo that was looked at turned": (
        [brush("Cat", HOLED, image_rotation=90), {**box("Dog", 10, 20, 50, 40), "image_rotation": 270}],
        {"Cat": HOLED, "Dog": area(2, 2, 12, 6)},
    ),
    "a label that the configuration no longer has": (
        [brush("Bird", HOLED), box("Cat", 10, 20, 50, 40)],
        {"Cat": area(2, 2, 12, 6)},
    ),
    "overlap": (
        [brush("Cat", HOLED), polygon("Dog", area(0, 0, 6, 10)), brush("Sky", area(0, 0, 20, 2))],
        {"Cat": HOLED, "Dog": area(0, 0, 6, 10), "Sky": area(0, 0, 20, 2)},
    ),
    "one region of two labels": ([brush(["Cat", "Sky"], HOLED)], {"Cat": HOLED, "Sky": HOLED}),
    "the box of what is brushed": (
        [box("Cat", 10, 10, 50, 70), brush("Cat", HOLED), box("Cat", 80, 50, 10, 20), box("Dog", 10, 10, 50, 70)],
        {"Cat": HOLED | area(16, 5, 18, 7), "Dog": area(2, 1, 12, 8)},
    ),
    "a click on what is brushed": ([click("Cat"), brush("Cat", HOLED)], {"Cat": HOLED}),
}


@pytest.mark.parametrize("case", REGIONS)
def test_regions(tmp_path: Path, case: str) -> None:
    result, expected = REGIONS[case]
    write(tmp_path, [task(7, [annotation(1, result)])])
    record = only_record(tmp_path)
    assert record.classes == LabelStudioExport(tmp_path, "project").classes == ("Cat", "Dog", "Sky")
    assert (record.image_id, record.size, record.texts) == ("7", (HEIGHT, WIDTH), ())
    assert record.image_path == tmp_path / "images" / "c2d0f86e-a.png"
    labels = record.read()
    assert labels.dtype == np.int16
    assert set(np.unique(labels)) <= {OTHER, 0, 1, 2}
    for name, mask in masks(record).items():
        np.testing.assert_array_equal(mask, expected.get(name, np.zeros((HEIGHT, WIDTH), bool)), err_msg=name)


UNDECIDED = {
    "a click alone": ([click("Cat"), brush("Sky", HOLED)], ("Dog", "Sky")),
    "a line beside a polygon": ([LINE, polygon("Dog", HOLED), brush("Sky", HOLED)], ("Cat", "Sky")),
}


@pytest.mark.parametrize("case", UNDECIDED)
def test_a_class_whose_extent_is_unknown_is_left_out(tmp_path: Path, case: str) -> None:
    result, classes = UNDECIDED[case]
    write(tmp_path, [task(7, [annotation(1, result)])])
    record = only_record(tmp_path)
    assert record.classes == classes
    np.testing.assert_array_equal(record.read(), np.where(HOLED, 1, OTHER)[None])


def test_thousands_of_damaged_regions_are_told_in_a_few_words(tmp_path: Path) -> None:
    damaged = {**brush("Cat", HOLED), "value": {"format": "rle", "rle": [0] * 64, "brushlabels": ["Cat"]}}
    write(tmp_path, [task(7, [annotation(1, [{**damaged, "id": f"r{number}"} for number in range(3000)])])])
    source = LabelStudioExport(tmp_path, "project")
    [notes] = source.left_out.values()
    assert len(notes) == 21
    assert notes[-1] == "and 2980 more"


def test_more_regions_than_are_read_are_refused_before_one_is(tmp_path: Path) -> None:
    damaged = {"value": {"format": "rle", "rle": [0] * 64, "brushlabels": ["Cat"]}}
    many = [{**brush("Cat", HOLED), **damaged, "id": f"r{number}"} for number in range(20_001)]
    write(tmp_path, [task(7, [annotation(1, many)])])
    with pytest.raises(DataError, match=r"task 7: the annotation has 20001 regions, the limit is 20000$"):
        LabelStudioExport(tmp_path, "project")


EARLY, LATE = "2026-11-23T01:38:11Z", "2026-11-23T01:38:11.5Z"  # as text, the early one is the larger
OLD, NEW = annotation(1, [brush("Cat", HOLED)], updated_at=EARLY), annotation(2, [brush("Dog", HOLED)], updated_at=LATE)
ANNOTATIONS = {
    "one": ([OLD], "Cat"),
    "the newest": ([OLD, NEW], "Dog"),
    "the newest, whatever the order": ([NEW, OLD], "Dog"),
    "ground truth before the newest": ([{**OLD, "ground_truth": True}, NEW], "Cat"),
    "the newest is cancelled": ([OLD, {**NEW, "was_cancelled": True}], "Cat"),
    "ground truth is cancelled": ([{**OLD, "ground_truth": True, "was_cancelled": True}, NEW], "Dog"),
    "without a time of change": (
        [{**OLD, "updated_at": None, "created_at": LATE}, {**NEW, "updated_at": EARLY}],
        "Cat",
    ),
}


@pytest.mark.parametrize("case", ANNOTATIONS)
def test_which_annotation_counts(tmp_path: Path, case: str) -> None:
    annotations, present = ANNOTATIONS[case]
    prediction = {"id": 9, "result": [brush("Sky", HOLED)], "score": 0.9, "model_version": "x"}
    draft = {"id": 8, "result": [brush("Sky", HOLED)]}
    write(tmp_path, [task(7, annotations, predictions=[prediction], drafts=[draft])])
    assert [name for name, mask in masks(only_record(tmp_path)).items() if mask.any()] == [present]


def minimal(number: int, annotation_id: int | None, regions: list[dict[str, Any]], updated_at: str) -> dict[str, Any]:
    """An entry of JSON_MIN: as `label_studio_sdk.converter` writes it."""
    entry: dict[str, Any] = {"photo": "/data/upload/3/c2d0f86e-a.png", "id": number, "quality": "sharp"}
    for one in regions:
        sizes = {"original_width": WIDTH, "original_height": HEIGHT}
        entry.setdefault(one["from_name"], []).append({**one["value"], **sizes})
    times = {"created_at": updated_at, "updated_at": updated_at, "lead_time": 1.5}
    return {**entry, "annotator": 1, "annotation_id": annotation_id, **times}


def test_json_min(tmp_path: Path) -> None:
    newest = [brush("Cat", HOLED), polygon("Dog", area(0, 0, 6, 10)), click("Dog")]
    entries = [minimal(7, 2, newest, LATE), minimal(7, 1, [brush("Sky", HOLED)], EARLY), minimal(8, None, [], EARLY)]
    write(tmp_path, entries)
    source = LabelStudioExport(tmp_path, "project")
    assert (len(source), source.skipped) == (1, {"8": "not annotated"})
    found = masks(source[0])
    np.testing.assert_array_equal(found["Cat"], HOLED)
    np.testing.assert_array_equal(found["Dog"], area(0, 0, 6, 10))
    assert not found["Sky"].any()


def test_json_min_of_the_sdk(tmp_path: Path) -> None:
    from label_studio_sdk.converter import Converter

    drawn = annotation(1, [brush("Cat", HOLED), polygon("Dog", area(0, 0, 6, 10)), SHARP])
    export = tmp_path / "full.json"
    export.write_text(json.dumps([task(7, [drawn, annotation(2, [], was_cancelled=True)])]))
    Converter(CONFIG, str(tmp_path)).convert_to_json_min(str(export), str(tmp_path / "min"), is_dir=False)
    write(tmp_path, json.loads((tmp_path / "min" / "result.json").read_text()))
    found = masks(only_record(tmp_path))
    np.testing.assert_array_equal(found["Cat"], HOLED)
    np.testing.assert_array_equal(found["Dog"], area(0, 0, 6, 10))


ADDRESSES = {
    "an upload": ("/data/upload/3/c2d0f86e-b.png", "c2d0f86e-b.png"),
    "an upload in Label Studio's media": ("/data/upload/3/c2d0f86e-b.png", "upload/3/c2d0f86e-b.png"),
    "an upload under its own name": ("/data/upload/3/c2d0f86e-b.png", "b.png"),
    "an upload at a full address": ("http://localhost:8080/data/upload/3/c2d0f86e-b%20c.png", "c2d0f86e-b c.png"),
    "a local file": ("/data/local-files/?d=one/two/b%20c.png", "one/two/b c.png"),
    "a local file from a deeper root": ("/data/local-files/?d=one/two/b.png", "two/b.png"),
    "a local file by its name": ("/data/local-files/?d=one/two/b.png", "b.png"),
    "cloud storage": ("s3://bucket/one/b.png", "one/b.png"),
}


@pytest.mark.parametrize("place", ["images", "", "elsewhere"])
@pytest.mark.parametrize("case", ADDRESSES)
def test_photos_are_found(tmp_path: Path, case: str, place: str) -> None:
    address, file = ADDRESSES[case]
    write(tmp_path, [task(7, [annotation(1, [])], address)])
    shutil.rmtree(tmp_path / "images")
    put_photo(tmp_path / place / file)
    folder = tmp_path / place if place == "elsewhere" else None
    assert LabelStudioExport(tmp_path, "project", photos=folder)[0].image_path == tmp_path / place / file


GONE = "/data/upload/3/c2d0f86e-gone.png"
LEFT_OUT = {
    "no annotation": (task(8, []), "not annotated"),
    "skipped": (task(8, [annotation(1, [], was_cancelled=True)]), "skipped by the annotator"),
    "no photo": (task(8, [annotation(1, [])], GONE), f"{GONE} is not below .*images"),
    "a file of that name in another folder": (
        task(8, [annotation(1, [])], "/data/local-files/?d=one/d.png"),
        "one/d.png is not below",
    ),
    "a path that leaves the folder": (task(8, [annotation(1, [])], "/data/local-files/?d=../a.png"), "names no file"),
    "a photo inside the task": (task(8, [annotation(1, [])], "data:image/png;base64,AAAA"), "names no file"),
    "no address": (task(8, [annotation(1, [])], None), "'photo' with 'None', which is no address"),
    "not a photo": (task(8, [annotation(1, [])], "/data/upload/3/text.png"), "text.png: the photo cannot be read"),
    "another photo of the name": (
        task(8, [annotation(1, [box("Cat", 1, 1, 9, 9)])], "big.png"),
        "20 x 10 pixels.*60 x 40",
    ),
}


@pytest.mark.parametrize("case", LEFT_OUT)
def test_what_cannot_be_used_is_left_out_and_listed(tmp_path: Path, case: str) -> None:
    bad, reason = LEFT_OUT[case]
    write(tmp_path, [task(7, [annotation(1, [])]), bad])
    put_photo(tmp_path / "images" / "two" / "d.png")
    put_photo(tmp_path / "images" / "big.png", (60, 40))
    (tmp_path / "images" / "text.png").write_text("text")
    source = LabelStudioExport(tmp_path, "project")
    assert [source[i].image_id for i in range(len(source))] == ["7"]
    assert list(source.skipped) == ["8"]
    assert re.search(reason, source.skipped["8"])


def test_a_file_that_two_addresses_lead_to_is_guessed_for_neither(tmp_path: Path) -> None:
    addresses = ["/data/local-files/?d=one/a.png", "/data/local-files/?d=two/a.png"]
    write(
        tmp_path,
        [task(1, [annotation(1, [])]), *(task(2 + i, [annotation(2, [])], a) for i, a in enumerate(addresses))],
    )
    put_photo(tmp_path / "images" / "a.png")
    source = LabelStudioExport(tmp_path, "project")
    assert [source[i].image_id for i in range(len(source))] == ["1"]
    assert set(source.skipped) == {"2", "3"}
    assert all(address in source.skipped["3"] for address in addresses)


def test_labels_are_called_what_the_model_reads(tmp_path: Path) -> None:
    config = """<View><Image name="image" value="$photo"/><BrushLabels name="brush" toName="image">
      <Label value="c1" alias="cat"/><Label value="c2" hint="dog on a lead"/><Label value="c3" hint="cat"/>
    </BrushLabels></View>"""
    result = [brush("cat", area(0, 0, 3, 3)), brush("c2", area(5, 5, 9, 9)), brush("c3", area(12, 2, 14, 4))]
    write(tmp_path, [task(7, [annotation(1, result)])], config)
    found = masks(only_record(tmp_path))
    assert list(found) == ["cat", "dog on a lead"]
    np.testing.assert_array_equal(found["cat"], area(0, 0, 3, 3) | area(12, 2, 14, 4))
    np.testing.assert_array_equal(found["dog on a lead"], area(5, 5, 9, 9))


def test_the_photo_counts_as_the_editor_shows_it(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    write(tmp_path, [task(7, [annotation(1, [brush("Cat", HOLED)])])])
    put_photo(tmp_path / "images" / "c2d0f86e-a.png", (HEIGHT, WIDTH), exif=exif)
    np.testing.assert_array_equal(masks(only_record(tmp_path))["Cat"], HOLED)


RLE = mask_to_brush_rle(HOLED)
BROKEN = {
    "brush cut short": (
        brush("Cat", HOLED) | {"value": {"rle": RLE[:-8], "brushlabels": ["Cat"]}},
        "cannot be decoded",
    ),
    "brush of another size": (brush("Cat", HOLED[:5]), "an image of 20 x 10 needs 800"),
    "brush of no bytes": (region("brush", "brushlabels", "Cat", {"rle": [1000, "a"]}), "cannot be decoded"),
    "brush without run lengths": (region("brush", "brushlabels", "Cat", {"format": "rle"}), r"KeyError\('rle'\)"),
    "polygon of text": (region("polygon", "polygonlabels", "Cat", {"points": [["a", "b"]]}), "not what Label Studio"),
    "rectangle without a width": (region("box", "rectanglelabels", "Cat", {"x": 1, "y": 1}), r"KeyError\('width'\)"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_mask_leaves_its_class_out_and_is_named(tmp_path: Path, case: str) -> None:
    broken, said = BROKEN[case]
    write(tmp_path, [task(7, [annotation(1, [broken, polygon("Dog", area(0, 0, 6, 10)), box("Cat", 50, 20, 10, 10)])])])
    source = LabelStudioExport(tmp_path, "project")
    [record] = source
    assert record.classes == ("Dog", "Sky")
    np.testing.assert_array_equal(masks(record)["Dog"], area(0, 0, 6, 10))
    [note] = source.left_out["7"]
    assert re.search(rf"region rCat of \w+: .*{said}", note)


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"looked for\n  .*/nowhere"):
        LabelStudioExport(tmp_path / "nowhere", "project")
    write(tmp_path, [task(7, [annotation(1, [])])])
    with pytest.raises(DataError, match=r"no export test\.json; .*: project$"):
        LabelStudioExport(tmp_path, "test")
    (tmp_path / "label_config.xml").rename(tmp_path / "other.xml")
    with pytest.raises(DataError, match=r"looked for\n  .*/label_config\.xml"):
        LabelStudioExport(tmp_path, "project")
    assert len(LabelStudioExport(tmp_path, "project", label_config=tmp_path / "other.xml")) == 1
    (tmp_path / "other.xml").write_text("<View/>")
    with pytest.raises(ConfigError, match=r"other\.xml: .*shows no image"):
        LabelStudioExport(tmp_path, "project", label_config=tmp_path / "other.xml")


@pytest.mark.parametrize("content", ["{", '{"images": []}', '[{"id": 1, "data": {}}]', "[3]"])
def test_a_file_that_is_no_export_is_named(tmp_path: Path, content: str) -> None:
    write(tmp_path, [])
    (tmp_path / "project.json").write_text(content)
    with pytest.raises(DataError, match=r"project\.json: "):
        LabelStudioExport(tmp_path, "project")


def test_an_export_without_a_finished_task_says_why(tmp_path: Path) -> None:
    write(tmp_path, [task(7, []), task(8, [annotation(1, [])], GONE)])
    with pytest.raises(DataError, match=r"(?s)none of 2 tasks.*task 8: the photo.*task 7: not annotated"):
        LabelStudioExport(tmp_path, "project")


def test_a_single_export_has_splits_and_finds_what_annotate_wrote(tmp_path: Path) -> None:
    """The project has the label_config.xml of an output, whose report says where the photos are."""
    out = tmp_path / "out"
    out.mkdir()
    (out / "label_config.xml").write_text(
        '<View><Image name="image" value="$image"/><RectangleLabels name="box" toName="image"><Label value="cat"/>'
        "</RectangleLabels></View>"
    )
    (out / "report.json").write_text(json.dumps({"image_root": str(tmp_path / "photos")}))
    (out / "tasks.json").write_text("[]")
    tasks = []
    for i in range(30):
        samples.photo(tmp_path / "photos" / "north" / f"{i}.jpg")
        with (tmp_path / "photos" / "north" / f"{i}.jpg").open("ab") as photo:
            photo.write(bytes([i]))
        value = {"x": 0, "y": 0, "width": 50, "height": 100, "rotation": 0, "rectanglelabels": ["cat"]}
        region = {"id": "r", "from_name": "box", "to_name": "image", "type": "rectanglelabels", "value": value}
        address = f"/data/local-files/?d=photos/north/{i}.jpg"
        tasks.append({"id": i, "data": {"image": address}, "annotations": [{"id": i, "result": [region]}]})
    (out / "project-1-at-2026-11-30.json").write_text(json.dumps(tasks))
    for root in (out, out / "project-1-at-2026-11-30.json"):
        parts = {split: LabelStudioExport(root, split) for split in ("train", "val", "all")}
        names = {split: {part[i].image_id for i in range(len(part))} for split, part in parts.items()}
        assert names["all"] == {str(i) for i in range(30)}
        assert names["train"] | names["val"] == names["all"]
        assert names["val"]
        assert not names["train"] & names["val"]
        assert find_source("mine", tmp_path, path=root).reader == "label_studio"
    (out / "train.json").write_text(json.dumps(tasks))
    with pytest.raises(DataError, match=r"there is no export val\.json"):
        LabelStudioExport(out, "val")


def test_the_objects_of_a_record_are_its_regions(tmp_path: Path) -> None:
    """Cats and dogs are things; the sky is not, and has no objects."""
    drawn = [
        brush("Cat", area(0, 0, 5, 5), id="a"),
        brush("Cat", area(5, 0, 10, 5), id="b"),
        brush("Sky", area(0, 6, 20, 10), id="c"),
        brush("Sky", area(12, 0, 20, 4), id="d"),
    ]
    write(tmp_path, [task(1, [annotation(1, drawn)])])
    objects = only_record(tmp_path).objects
    assert objects is not None
    found = objects()
    assert set(found) == {"Cat", "Dog"}
    assert len(found["Dog"]) == 0
    cats = [each.mask for each in found["Cat"]]
    assert (cats[0] == area(0, 0, 5, 5)).all()
    assert (cats[1] == area(5, 0, 10, 5)).all()
    plain = CONFIG.replace('"Cat"/>', '"Cat" objects="false"/>').replace('"Dog"/>', '"Dog" objects="false"/>')
    write(tmp_path, [task(1, [annotation(1, drawn)])], plain)
    assert only_record(tmp_path).objects is None
