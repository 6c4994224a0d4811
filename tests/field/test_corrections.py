"""What training reads of annotations as people submit them: the cases of Label Studio's threads and their neighbours.

A class is absent only where somebody could have marked it and did not; what cannot be used leaves its own class out.
"""

import base64
import io
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lasagna.labels.configuration import parse_label_config
from lasagna.labels.history import label_set
from lasagna.masks.bitmask import mask_to_bitmask
from lasagna.masks.conversions import mask_to_brush_rle
from training.data.records import OTHER, UNKNOWN
from training.data.sources.label_studio import LabelStudioExport

WIDTH, HEIGHT = 40, 30
LABELS = '<Label value="sky"/><Label value="road"/><Label value="tree"/>'
CONFIG = f"""<View><Image name="image" value="$image" rotateControl="true"/>
<BrushLabels name="b" toName="image">{LABELS}</BrushLabels>
<PolygonLabels name="p" toName="image" choice="multiple">{LABELS}</PolygonLabels>
<RectangleLabels name="r" toName="image">{LABELS}</RectangleLabels>
<EllipseLabels name="e" toName="image">{LABELS}</EllipseLabels>
<BitmaskLabels name="m" toName="image">{LABELS}</BitmaskLabels>
<VectorLabels name="v" toName="image">{LABELS}</VectorLabels>
<KeyPointLabels name="k" toName="image" smart="true">{LABELS}</KeyPointLabels>
<Choices name="q" toName="image" perRegion="true"><Choice value="blurry"/></Choices></View>"""
TYPES = {
    "b": "brushlabels",
    "p": "polygonlabels",
    "r": "rectanglelabels",
    "e": "ellipselabels",
    "m": "bitmasklabels",
    "v": "vectorlabels",
    "k": "keypointlabels",
}


def area(x0: int, y0: int, x1: int, y1: int) -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[y0:y1, x0:x1] = True
    return mask


TOP, BOTTOM = area(0, 0, 20, 9), area(0, 18, 40, 30)


def region(control: str, label: str | list[str], value: dict[str, Any], **more: Any) -> dict[str, Any]:
    labels = [label] if isinstance(label, str) else label
    known = {"from_name": control, "to_name": "image", "type": TYPES[control], "origin": "manual"}
    sizes = {"original_width": WIDTH, "original_height": HEIGHT, "image_rotation": 0}
    written = {TYPES[control]: labels} if labels else {}
    return {"id": f"{control}-{'-'.join(labels)}", **known, **sizes, "value": {**value, **written}, **more}


def brush(label: str | list[str], mask: np.ndarray, **more: Any) -> dict[str, Any]:
    return region("b", label, {"format": "rle", "rle": mask_to_brush_rle(mask)}, **more)


def box(label: str | list[str], x: float, y: float, w: float, h: float, turn: float = 0, **more: Any) -> dict[str, Any]:
    return region("r", label, {"x": x, "y": y, "width": w, "height": h, "rotation": turn}, **more)


def polygon(label: str | list[str], points: list[list[float]], **more: Any) -> dict[str, Any]:
    return region("p", label, {"points": points, "closed": True}, **more)


def png(mode: str) -> str:
    file = io.BytesIO()
    Image.new(mode, (WIDTH, HEIGHT), 255 if mode == "L" else None).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


ROAD = box("road", 0, 60, 100, 40)
SKY = brush("sky", TOP)


@dataclass
class Read:
    """What an annotation teaches: class -> mask; classes that are absent; the others are undecided.

    `void`: pixels about which it says nothing; `said`: what is named.
    """

    result: list[dict[str, Any]]
    drawn: dict[str, np.ndarray] = field(default_factory=dict)
    absent: tuple[str, ...] = ()
    void: np.ndarray | None = None
    said: tuple[str, ...] = ()


SAME = {"sky": TOP}
READ = {
    "a brush": Read([SKY], SAME, ("road", "tree")),
    "nothing": Read([], {}, ("sky", "road", "tree")),
    "a brush on a turned view": Read([{**SKY, "image_rotation": 90}], SAME, ("road", "tree")),
    "a rectangle on a turned view": Read(
        [box("sky", 0, 0, 50, 30, image_rotation=270)], {"sky": TOP}, ("road", "tree")
    ),
    "an open polygon": Read(
        [polygon("sky", [[0, 0], [50, 0], [50, 30], [0, 30]]) | {"closed": False}], SAME, ("road", "tree")
    ),
    "a rectangle beyond the image": Read([box("sky", -10, -5, 130, 35)], {"sky": area(0, 0, 40, 9)}, ("road", "tree")),
    "a polygon beyond the image": Read(
        [polygon("sky", [[-20, -20], [120, -20], [120, 30], [-20, 30]])], {"sky": area(0, 0, 40, 9)}, ("road", "tree")
    ),
    "a rectangle that is turned by 90 degrees": Read(
        [box("sky", 50, 0, 40, 50, 90)], {"sky": area(5, 0, 20, 16)}, ("road", "tree")
    ),
    "a polygon that crosses itself": Read(
        [polygon("sky", [[0, 0], [50, 100], [50, 0], [0, 100]])],
        {"sky": None},
        ("road", "tree"),  # type: ignore[dict-item]
    ),
    "a region of two labels": Read(
        [polygon(["sky", "tree"], [[0, 0], [50, 0], [50, 30], [0, 30]])], {"sky": TOP, "tree": TOP}, ("road",)
    ),
    "imported without sizes": Read(
        [
            {"id": "x", "from_name": "r", "to_name": "image", "type": "rectanglelabels"}
            | {"value": {"x": 0, "y": 0, "width": 50, "height": 30, "rectanglelabels": ["sky"]}}
        ],
        SAME,
        ("road", "tree"),
    ),
    "hidden in the editor": Read([{**SKY, "hidden": True}], SAME, ("road", "tree")),
    "choices and a relation of the region": Read(
        [
            SKY,
            {**SKY, "from_name": "q", "type": "choices", "value": {**SKY["value"], "choices": ["blurry"]}},
            ROAD,
            {"from_id": "b-sky", "to_id": "r-road", "type": "relation", "direction": "right", "labels": []},
        ],
        {"sky": TOP, "road": BOTTOM},
        ("tree",),
    ),
    "an ellipse": Read(
        [region("e", "sky", {"x": 50, "y": 50, "radiusX": 50, "radiusY": 50, "rotation": 0}), ROAD],
        {"sky": None, "road": BOTTOM},  # type: ignore[dict-item]
        ("tree",),
    ),
    "a bitmask": Read(
        [region("m", "sky", {"imageDataURL": mask_to_bitmask(TOP)}), ROAD], SAME | {"road": BOTTOM}, ("tree",)
    ),
    "erased to nothing": Read(
        [brush("sky", area(0, 0, 0, 0)), ROAD], {"road": BOTTOM}, ("tree",), said=("b-sky of b has no area",)
    ),
    "a rectangle without area": Read(
        [box("sky", 50, 50, 0, 0), ROAD], {"road": BOTTOM}, ("tree",), said=("has no area",)
    ),
    "a polygon of two points": Read(
        [polygon("sky", [[0, 0], [50, 50]]), ROAD], {"road": BOTTOM}, ("tree",), said=("has no area",)
    ),
    "a polygon of two points of what is brushed": Read(
        [polygon("sky", [[0, 0], [50, 50]]), SKY], SAME, ("road", "tree"), said=("has no area",)
    ),
    "a brush without a label": Read(
        [brush([], TOP, id="x", type="brush"), ROAD],
        {"road": BOTTOM},
        void=TOP,
        said=("region x of b has no label, so that no class is absent here",),
    ),
    "a rectangle without a label over what is drawn": Read(
        [box([], 0, 0, 100, 100, id="x"), ROAD], {"road": BOTTOM}, void=~BOTTOM, said=("has no label",)
    ),
    "only a region without a label": Read([box([], 0, 0, 100, 40, id="x")], said=("region x of r has no label",)),
    "a point": Read(
        [region("k", "sky", {"x": 50, "y": 50, "width": 1}), ROAD], {"road": BOTTOM}, ("tree",), said=("has no area",)
    ),
    "a line": Read(
        [region("v", "sky", {"vertices": [{"x": 0, "y": 0}, {"x": 9, "y": 9}], "closed": False}), ROAD],
        {"road": BOTTOM},
        ("tree",),
        said=("v-sky of v is a line and has no area",),
    ),
    "a label that was removed": Read(
        [brush("moon", TOP), ROAD],
        {"road": BOTTOM},
        ("sky", "tree"),
        said=("has the label 'moon', which the labelling",),
    ),
    "a control that was removed": Read([{**SKY, "from_name": "old"}, ROAD], SAME | {"road": BOTTOM}, ("tree",)),
    "another image": Read(
        [{**SKY, "to_name": "thermal"}, ROAD],
        {"road": BOTTOM},
        ("tree",),
        said=("region b-sky of b lies on 'thermal', which the task does not show",),
    ),
    "an image that is no name": Read(
        [{**SKY, "to_name": ["image"]}, ROAD], {"road": BOTTOM}, ("tree",), said=("which the task does not show",)
    ),
    "a damaged mask": Read(
        [region("b", "sky", {"format": "rle", "rle": [1, 2]}), ROAD], {"road": BOTTOM}, ("tree",), said=("b-sky of b",)
    ),
    "a bitmask of another size": Read(
        [
            region("m", "sky", {"imageDataURL": mask_to_bitmask(TOP[:5])}),
            ROAD,
        ],
        {"road": BOTTOM},
        ("tree",),
        said=("a bitmask is of 40 x 5 pixels",),
    ),
    "a bitmask without transparency": Read(
        [region("m", "sky", {"imageDataURL": png("L")}), ROAD], {"road": BOTTOM}, ("tree",), said=("opaque all over",)
    ),
    "one region of another size": Read(
        [{**SKY, "original_width": 30, "original_height": 40}, ROAD],
        {"road": BOTTOM},
        ("tree",),
        said=("was drawn on 30 x 40 pixels, but the photo has 40 x 30",),
    ),
}


def export(root: Path, tasks: list[dict[str, Any]], config: str = CONFIG, since: str | None = "2000-01-01") -> None:
    """An export; `since`: when the labels stood in the configuration, as far as anybody noted that."""
    (root / "project.json").write_text(json.dumps(tasks))
    (root / "label_config.xml").write_text(config)
    if since:
        seen = {"at": since, "labels": label_set(parse_label_config(config).images)}
        (root / "labels.json").write_text(json.dumps({"seen": [seen]}))
    (root / "images").mkdir(exist_ok=True)
    for name in ("a.png", "b.png"):
        Image.new("RGB", (WIDTH, HEIGHT)).save(root / "images" / name)


def task(number: int, result: list[Any], at: str = "2026-11-23T01:38:11Z", **data: Any) -> dict[str, Any]:
    annotation = {"id": number, "result": result, "created_at": at, "updated_at": at, "was_cancelled": False}
    return {"id": number, "data": data or {"image": "/data/upload/1/a.png"}, "annotations": [annotation]}


def taught(source: LabelStudioExport, position: int = 0) -> tuple[dict[str, np.ndarray], set[str], np.ndarray]:
    """Masks of what is there, classes that are absent, void pixels."""
    record = source[position]
    layers = record.read()
    masks = {name: (layers == i).any(axis=0) for i, name in enumerate(record.classes)}
    there = {name: mask for name, mask in masks.items() if mask.any()}
    return there, set(masks) - set(there), (layers == UNKNOWN).any(axis=0)


@pytest.mark.parametrize("case", READ)
def test_what_an_annotation_teaches(tmp_path: Path, case: str) -> None:
    wanted = READ[case]
    export(tmp_path, [task(1, [SKY]), task(2, wanted.result)])
    source = LabelStudioExport(tmp_path, "project")
    if not wanted.drawn and not wanted.absent:  # nothing is decided
        assert len(source) == 1
        assert all(words in source.skipped["2"] for words in wanted.said)
        return
    assert source.skipped == {}
    drawn, absent, void = taught(source, 1)
    assert absent == set(wanted.absent)
    assert drawn.keys() == wanted.drawn.keys()
    for name, mask in wanted.drawn.items():
        if mask is not None:
            np.testing.assert_array_equal(drawn[name], mask, err_msg=name)
    np.testing.assert_array_equal(void, np.zeros_like(void) if wanted.void is None else wanted.void)
    notes = "; ".join(source.left_out.get("2", []))
    assert all(words in notes for words in wanted.said)
    assert bool(notes) == bool(wanted.said)


def test_an_ellipse_is_its_area(tmp_path: Path) -> None:
    export(tmp_path, [task(1, [region("e", "sky", {"x": 50, "y": 50, "radiusX": 25, "radiusY": 50, "rotation": 0})])])
    drawn, _, _ = taught(LabelStudioExport(tmp_path, "project"))
    ys, xs = np.mgrid[0:HEIGHT, 0:WIDTH] + 0.5
    np.testing.assert_array_equal(drawn["sky"], ((xs - 20) / 10) ** 2 + ((ys - 15) / 15) ** 2 <= 1)


def test_all_regions_of_another_size_are_of_another_photo(tmp_path: Path) -> None:
    export(tmp_path, [task(1, [SKY]), task(2, [{**SKY, "original_width": 30, "original_height": 40}])])
    source = LabelStudioExport(tmp_path, "project")
    assert len(source) == 1
    assert "drawn on 30 x 40 pixels, but the photo has 40 x 30: is it another?" in source.skipped["2"]


SEPARATE = f"""<View><Image name="image" value="$image"/><Labels name="l" toName="image">{LABELS}</Labels>
<Brush name="s" toName="image"/><Rectangle name="x" toName="image"/></View>"""


def two(shape: str, kind: str, label: str | None, value: dict[str, Any]) -> list[dict[str, Any]]:
    """A region whose label stands in a tag of its own, as the editor writes it: two results with one id."""
    known = {"id": f"{shape}-{label}", "to_name": "image", "original_width": WIDTH, "original_height": HEIGHT}
    found = [{**known, "from_name": shape, "type": kind, "value": value}]
    if label:
        found.append({**known, "from_name": "l", "type": "labels", "value": {**value, "labels": [label]}})
    return found


@pytest.mark.parametrize("order", [1, -1], ids=["as written", "labels first"])
def test_labels_in_a_tag_of_their_own(tmp_path: Path, order: int) -> None:
    rle = {"format": "rle", "rle": mask_to_brush_rle(TOP)}
    rectangle = {"x": 0, "y": 60, "width": 100, "height": 40, "rotation": 0}
    result = [*two("s", "brush", "sky", rle), *two("x", "rectangle", "road", rectangle)][::order]
    export(tmp_path, [task(1, result)], SEPARATE)
    drawn, absent, _ = taught(LabelStudioExport(tmp_path, "project"))
    assert absent == {"tree"}
    np.testing.assert_array_equal(drawn["sky"], TOP)
    np.testing.assert_array_equal(drawn["road"], BOTTOM)


def test_a_shape_whose_label_was_never_chosen_is_undecided(tmp_path: Path) -> None:
    rle = {"format": "rle", "rle": mask_to_brush_rle(TOP)}
    rectangle = {"x": 0, "y": 60, "width": 100, "height": 40, "rotation": 0}
    result = [*two("s", "brush", None, rle), *two("x", "rectangle", "road", rectangle)]
    export(tmp_path, [task(1, result)], SEPARATE)
    drawn, absent, void = taught(LabelStudioExport(tmp_path, "project"))
    assert (set(drawn), absent) == ({"road"}, set())
    np.testing.assert_array_equal(void, TOP)


def test_a_taxonomy_of_regions(tmp_path: Path) -> None:
    config = """<View><Image name="image" value="$image"/><Taxonomy name="t" toName="image" perRegion="true">
    <Choice value="animal"><Choice value="cat" alias="felis"/><Choice value="dog"/></Choice><Choice value="sky"/>
    </Taxonomy><Brush name="s" toName="image"/></View>"""
    rle = {"format": "rle", "rle": mask_to_brush_rle(TOP)}
    known = {"id": "a", "to_name": "image", "original_width": WIDTH, "original_height": HEIGHT}
    result = [
        {**known, "from_name": "s", "type": "brush", "value": rle},
        {**known, "from_name": "t", "type": "taxonomy", "value": {**rle, "taxonomy": [["animal", "felis"]]}},
    ]
    export(tmp_path, [task(1, result)], config)
    drawn, absent, _ = taught(LabelStudioExport(tmp_path, "project"))
    assert (set(drawn), absent) == ({"felis"}, {"dog", "sky"})  # what the model reads


TWO = f"""<View><Image name="left" value="$left"/><Image name="right" value="$right"/>
<BrushLabels name="b" toName="left,right">{LABELS}</BrushLabels></View>"""


def test_two_images_are_two_records(tmp_path: Path) -> None:
    result = [{**SKY, "to_name": "left"}, {**brush("road", BOTTOM), "to_name": "right"}]
    export(tmp_path, [task(1, result, left="/data/upload/1/a.png", right="/data/upload/1/b.png")], TWO)
    source = LabelStudioExport(tmp_path, "project")
    assert [source[i].image_id for i in range(len(source))] == ["1:left", "1:right"]
    assert [path.name for path in (source[0].image_path, source[1].image_path) if path] == ["a.png", "b.png"]
    for position, (name, mask) in enumerate([("sky", TOP), ("road", BOTTOM)]):
        drawn, absent, _ = taught(source, position)
        assert (set(drawn), absent) == ({name}, {"sky", "road", "tree"} - {name})
        np.testing.assert_array_equal(drawn[name], mask)


def test_pages_are_records_and_a_page_that_nobody_marked_is_none(tmp_path: Path) -> None:
    config = CONFIG.replace('value="$image"', 'valueList="$images"')
    addresses = ["/data/upload/1/a.png", "/data/upload/1/b.png", "/data/upload/1/b.png"]
    result = [
        {**SKY, "item_index": 0},
        {**brush("road", BOTTOM), "item_index": 2},
        {**ROAD, "id": "z", "item_index": 7},
    ]
    export(tmp_path, [task(1, result, images=addresses)], config)
    source = LabelStudioExport(tmp_path, "project")
    assert [source[i].image_id for i in range(len(source))] == ["1:image, page 1", "1:image, page 3"]
    assert "nothing is drawn on this page" in source.skipped["1:image, page 2"]
    drawn, absent, _ = taught(source)
    assert (set(drawn), absent) == ({"sky"}, {"tree"})  # of road there is something on a page that is not shown
    assert "lies on 'image, page 8'" in source.left_out["1:image, page 1"][0]


def test_a_list_in_value_does_not_say_which_image_is_meant(tmp_path: Path) -> None:
    config = CONFIG.replace('value="$image"', 'value="$images"')
    export(
        tmp_path,
        [task(1, [SKY], images=["/data/upload/1/a.png"]), task(2, [SKY], images=["/data/upload/1/b.png", "c.png"])],
        config,
    )
    source = LabelStudioExport(tmp_path, "project")
    assert [source[i].image_id for i in range(len(source))] == ["1"]
    assert "a list of 2 images" in source.skipped["2"]


def test_labels_of_the_task(tmp_path: Path) -> None:
    config = '<View><Image name="image" value="$image"/><BrushLabels name="b" toName="image" value="$labels"/></View>'
    labels = [{"value": "sky"}, {"value": "weg", "hint": "road"}]
    data = {"image": "/data/upload/1/a.png", "labels": labels}
    export(tmp_path, [task(1, [SKY], **data), task(2, [], **data | {"labels": labels[:1]})], config)
    source = LabelStudioExport(tmp_path, "project")
    assert source.classes == ("sky", "road")
    assert taught(source, 0)[1] == {"road"}
    assert taught(source, 1)[1] == {"sky"}  # nobody could mark a road there


class TestLabelsOfItsTime:
    """A label that could not be chosen when a photo was annotated is undecided there."""

    OLD, NEW = "2026-11-01T10:00:00Z", "2026-11-02T10:00:00Z"

    def absent(self, root: Path) -> dict[str, set[str]]:
        source = LabelStudioExport(root, "project")
        return {source[i].image_id: taught(source, i)[1] for i in range(len(source))}

    def test_a_label_that_was_added(self, tmp_path: Path) -> None:
        export(tmp_path, [task(1, [SKY], self.OLD), task(2, [SKY], self.NEW)])
        seen = [
            {"at": "2026-10-01T00:00:00Z", "labels": {"image": ["road", "sky"]}},
            {"at": "2026-11-02T00:00:00Z", "labels": {"image": ["road", "sky", "tree"]}},
        ]
        (tmp_path / "labels.json").write_text(json.dumps({"seen": seen}))
        assert self.absent(tmp_path) == {"1": {"road"}, "2": {"road", "tree"}}
        left_out = LabelStudioExport(tmp_path, "project").left_out
        assert left_out == {"1": ["not known to have been a label when this was annotated: tree"]}

    def test_a_label_that_was_away_for_a_while(self, tmp_path: Path) -> None:
        export(tmp_path, [task(1, [SKY], self.OLD), task(2, [SKY], self.NEW)])
        everything = {"image": ["road", "sky", "tree"]}
        seen = [
            {"at": "2026-10-01T00:00:00Z", "labels": everything},
            {"at": "2026-10-15T00:00:00Z", "labels": {"image": ["sky", "tree"]}},
            {"at": "2026-11-02T00:00:00Z", "labels": everything},
        ]
        (tmp_path / "labels.json").write_text(json.dumps({"seen": seen}))
        assert self.absent(tmp_path) == {"1": {"tree"}, "2": {"road", "tree"}}

    def test_where_nobody_noted_it_the_first_use_tells(self, tmp_path: Path) -> None:
        first = "2026-11-01T12:00:00Z"
        tasks = [task(1, [SKY], self.OLD), task(2, [brush("road", BOTTOM)], first), task(3, [SKY], self.NEW)]
        export(tmp_path, tasks, since=None)
        assert self.absent(tmp_path) == {"1": set(), "2": {"sky"}, "3": {"road"}}  # a tree was never used

    def test_connected_after_the_first_annotations(self, tmp_path: Path) -> None:
        tasks = [
            task(1, [brush("road", BOTTOM)], self.OLD),
            task(2, [SKY], "2026-11-01T12:00:00Z"),
            task(3, [], self.NEW),
        ]
        export(tmp_path, tasks, since="2026-11-02T00:00:00Z")
        assert self.absent(tmp_path) == {"1": set(), "2": {"road"}, "3": {"sky", "road", "tree"}}

    def test_a_renamed_label_is_the_same(self, tmp_path: Path) -> None:
        config = CONFIG.replace('"sky"', '"Himmel"')
        export(tmp_path, [task(1, [SKY], self.OLD), task(2, [], self.OLD)], config)
        seen = [
            {"at": "2026-10-01T00:00:00Z", "labels": {"image": ["road", "sky", "tree"]}},
            {"at": "2026-11-02T00:00:00Z", "labels": {"image": ["Himmel", "road", "tree"]}},
        ]
        (tmp_path / "labels.json").write_text(json.dumps({"seen": seen}))
        assert self.absent(tmp_path) == {"1": {"road", "tree"}, "2": {"road", "tree"}}
        assert "has the label 'sky'" in LabelStudioExport(tmp_path, "project").left_out["1"][0]
        (tmp_path / "labels.json").write_text(json.dumps({"seen": seen, "renamed": {"sky": "Himmel"}}))
        assert self.absent(tmp_path) == {"1": {"road", "tree"}, "2": {"Himmel", "road", "tree"}}
        drawn, _, _ = taught(LabelStudioExport(tmp_path, "project"))
        np.testing.assert_array_equal(drawn["Himmel"], TOP)

    def test_nothing_but_void_is_other(self, tmp_path: Path) -> None:
        export(tmp_path, [task(1, [SKY])])
        layers = LabelStudioExport(tmp_path, "project")[0].read()
        assert set(np.unique(layers)) == {OTHER, 0}
