"""What people's labelling configurations show of a task, and what is asked and drawn: the cases of Label Studio's
threads and their neighbours. Each is what the real editor shows (test_editor_forms.py)."""

import pickle
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from lasagna.errors import ConfigError, ImageError
from lasagna.formats.label_studio import join_predictions, segmentation_to_label_studio
from lasagna.formats.regions import read_regions
from lasagna.labels.configuration import LabelConfig, parse_label_config
from lasagna.masks.segmentation import ClassAnswer, ClassQuery, Segmentation

A, B = "/data/upload/2/a.jpg", "/data/upload/2/b.jpg"
IMAGE = '<Image name="image" value="$image"/>'
SKY = '<Label value="sky"/>'
SKY_ROAD = f'{SKY}<Label value="road"/>'
LABELS = f'<Labels name="labels" toName="image">{SKY_ROAD}</Labels>'


def brush(to: str = "image", name: str = "b", labels: str = SKY_ROAD) -> str:
    return f'<BrushLabels name="{name}" toName="{to}">{labels}</BrushLabels>'


@dataclass
class Shown:
    """What a task shows: image and page -> address, classes and the controls that draw them."""

    config: str
    data: dict[str, Any]
    images: list[tuple[str, int | None, str]]
    classes: tuple[str, ...] = ("sky", "road")
    drawn: list[tuple[str, str]] = field(default_factory=lambda: [("b", "brush")])
    not_served: tuple[str, ...] = ()


PAGES = (
    '<Repeater on="$pages" indexFlag="{{idx}}" mode="pagination">'
    '<Image name="page_{{idx}}" value="$pages[{{idx}}].url"/>'
    '<BrushLabels name="b_{{idx}}" toName="page_{{idx}}"><Label value="sky"/><Label value="road"/></BrushLabels>'
    "</Repeater>"
)
ONE = [("image", None, A)]
SHOWN = {
    "two images with one control": Shown(
        f'<Image name="rgb" value="$rgb"/><Image name="ref" value="$ref"/>{brush("rgb,ref")}',
        {"rgb": A, "ref": B},
        [("rgb", None, A), ("ref", None, B)],
        not_served=('<BrushLabels name="b">',),  # predicted, but the editor has no tool for it
    ),
    "two images, the names with a blank between": Shown(
        f'<Image name="rgb" value="$rgb"/><Image name="ref" value="$ref"/>{brush("rgb, ref")}',
        {"rgb": A, "ref": B},
        [("rgb", None, A), ("ref", None, B)],
        not_served=('<BrushLabels name="b">',),  # predicted, but the editor has no tool for it
    ),
    "an image that came later and is not in this task": Shown(
        f'<Image name="thermal" value="$thermal"/><Image name="image" value="$image"/>{brush("image,thermal")}',
        {"image": A},
        ONE,
        not_served=('<BrushLabels name="b">',),
    ),
    "an image that nothing draws on": Shown(
        f'{IMAGE}{brush()}<Image name="legend" value="$legend"/>',
        {"image": A},
        ONE,
        not_served=('<Image name="legend">',),
    ),
    "pages of a Repeater": Shown(
        PAGES, {"pages": [{"url": A}, {"url": B}]}, [("page_0", None, A), ("page_1", None, B)], drawn=[("b_0", "brush")]
    ),
    "a Repeater over addresses, with a flag of its own": Shown(
        PAGES.replace("{{idx}}].url", "{{idx}}]").replace("{{idx}}", "#n"),
        {"pages": [A, B]},
        [("page_0", None, A), ("page_1", None, B)],
        drawn=[("b_0", "brush")],
    ),
    "valueList": Shown(
        f'<Image name="image" valueList="$images"/>{brush()}', {"images": [A, B]}, [("image", 0, A), ("image", 1, B)]
    ),
    "valueList of a nested field": Shown(
        f'<Image name="image" valueList="$doc.pages"/>{brush()}',
        {"doc": {"pages": [A, B]}},
        [("image", 0, A), ("image", 1, B)],
    ),
    "valueList that holds one address": Shown(
        f'<Image name="image" valueList="$images"/>{brush()}', {"images": A}, [("image", 0, A)]
    ),
    "value and valueList: the list counts": Shown(
        f'<Image name="image" value="$image" valueList="$images"/>{brush()}',
        {"image": B, "images": [A]},
        [("image", 0, A)],
    ),
    "a list in value: the editor opens the first": Shown(
        f'<Image name="image" value="$images"/>{brush()}', {"images": [A, B]}, ONE
    ),
    "a nested field": Shown(f'<Image name="image" value="$photo.url"/>{brush()}', {"photo": {"url": A}}, ONE),
    "an item of a list": Shown(
        f'<Image name="image" value="$pages[0].url"/>{brush()}', {"pages": [{"url": A}, {"url": B}]}, ONE
    ),
    "a field whose name has a dot": Shown(f'<Image name="image" value="$photo.url"/>{brush()}', {"photo.url": A}, ONE),
    "text before the variable": Shown(
        f'<Image name="image" value="http://127.0.0.1:8191$path"/>{brush()}',
        {"path": A},
        [("image", None, f"http://127.0.0.1:8191{A}")],
    ),
    "text around the variable": Shown(
        f'<Image name="image" value="https://host/$id/full?w=9"/>{brush()}',
        {"id": 17},
        [("image", None, "https://host/17/full?w=9")],
    ),
    "the same image for all": Shown(f'<Image name="image" value="{A}"/>{brush()}', {"text": "x"}, ONE),
    "a data: URI": Shown(
        IMAGE + brush(), {"image": "data:image/png;base64,AAAA"}, [("image", None, "data:image/png;base64,AAAA")]
    ),
    "uploaded before there was a configuration": Shown(IMAGE + brush(), {"$undefined$": A}, ONE),
    "Brush with Labels": Shown(
        f'{IMAGE}{LABELS}<Brush name="s" toName="image"/>', {"image": A}, ONE, drawn=[("s", "brush")]
    ),
    "every shape with Labels": Shown(
        f'{IMAGE}{LABELS}<Polygon name="p" toName="image"/><Rectangle name="r" toName="image"/>'
        '<Ellipse name="e" toName="image"/><Bitmask name="m" toName="image"/>',
        {"image": A},
        ONE,
        drawn=[("p", "polygon"), ("r", "rectangle"), ("e", "ellipse"), ("m", "bitmask")],
    ),
    "a magic wand alone": Shown(
        f'{IMAGE}{LABELS}<MagicWand name="w" toName="image"/>', {"image": A}, ONE, drawn=[("w", "magicwand")]
    ),
    "a magic wand beside a brush draws nothing twice": Shown(
        f'{IMAGE}{LABELS}<MagicWand name="w" toName="image"/><Brush name="s" toName="image"/>',
        {"image": A},
        ONE,
        drawn=[("s", "brush")],
    ),
    "separate labels beside labels of their own": Shown(
        f'{IMAGE}{LABELS}<Brush name="s" toName="image"/><Polygon name="p" toName="image"/>'
        '<RectangleLabels name="r" toName="image"><Label value="sky"/></RectangleLabels>',
        {"image": A},
        ONE,
        drawn=[("s", "brush"), ("p", "polygon"), ("r", "rectangle")],
    ),
    "BitmaskLabels": Shown(
        f'{IMAGE}<BitmaskLabels name="m" toName="image">{SKY_ROAD}</BitmaskLabels>',
        {"image": A},
        ONE,
        drawn=[("m", "bitmask")],
    ),
    "BitmaskLabels beside BrushLabels": Shown(
        f'{IMAGE}<BitmaskLabels name="m" toName="image">{SKY_ROAD}</BitmaskLabels>{brush(labels=SKY)}',
        {"image": A},
        ONE,
        drawn=[("m", "bitmask"), ("b", "brush")],
    ),
    "EllipseLabels": Shown(
        f'{IMAGE}<EllipseLabels name="e" toName="image">{SKY_ROAD}</EllipseLabels>',
        {"image": A},
        ONE,
        drawn=[("e", "ellipse")],
    ),
    "labels of the task": Shown(
        f'{IMAGE}<BrushLabels name="b" toName="image" value="$labels"/>',
        {"image": A, "labels": [{"value": "sky"}, {"value": "road", "alias": "r"}]},
        ONE,
    ),
    "labels of the task beside others": Shown(
        f'{IMAGE}<BrushLabels name="b" toName="image" value="$more.labels"><Label value="sky"/></BrushLabels>',
        {"image": A, "more": {"labels": [{"value": "road"}]}},
        ONE,
    ),
    "Labels of the task": Shown(
        f'{IMAGE}<Labels name="labels" toName="image" value="$labels"/><Brush name="s" toName="image"/>',
        {"image": A, "labels": [{"value": "sky"}, {"value": "road"}]},
        ONE,
        drawn=[("s", "brush")],
    ),
    "a Taxonomy of regions": Shown(
        f'{IMAGE}<Taxonomy name="t" toName="image" perRegion="true"><Choice value="animal"><Choice value="cat"/>'
        '<Choice value="dog"/></Choice><Choice value="sky"/></Taxonomy><Brush name="s" toName="image"/>',
        {"image": A},
        ONE,
        classes=("animal / cat", "animal / dog", "sky"),
        drawn=[("s", "brush")],
    ),
    "Choices of regions": Shown(
        f'{IMAGE}<Choices name="c" toName="image" perRegion="true">'
        '<Choice value="sky"/><Choice value="road"/></Choices>'
        '<Rectangle name="r" toName="image"/>',
        {"image": A},
        ONE,
        drawn=[("r", "rectangle")],
    ),
    "Choices and a Taxonomy of labelled regions are left to people": Shown(
        f'{IMAGE}{brush()}<Choices name="q" toName="image" perRegion="true"><Choice value="blurry"/></Choices>'
        '<Taxonomy name="t" toName="image" perRegion="true"><Choice value="a"/></Taxonomy>'
        '<Relations><Relation value="on"/></Relations>',
        {"image": A},
        ONE,
    ),
    "two controls with the same labels": Shown(
        IMAGE + brush() + brush(name="damage", labels='<Label value="sky"/><Label value="crack"/>'),
        {"image": A},
        ONE,
        classes=("sky", "road", "crack"),
        drawn=[("b", "brush"), ("damage", "brush")],
    ),
    "names that differ in case": Shown(
        IMAGE + brush(labels='<Label value="sky"/><Label value="Sky"/><Label value="SKY"/>'),
        {"image": A},
        ONE,
        classes=("sky", "Sky", "SKY"),
    ),
    "labels in views, headers between": Shown(
        IMAGE
        + brush(labels='<View><Header value="Nature"/><Label value="sky"/><View><Label value="road"/></View></View>'),
        {"image": A},
        ONE,
    ),
    "comments and styles": Shown(
        f'<!-- <BrushLabels name="old" toName="image"/> --><Style>.a > .b {{ color: red }}</Style>{IMAGE}'
        + brush(labels="<!-- <Label value='car'/> -->" + SKY_ROAD),
        {"image": A},
        ONE,
    ),
    "a filter, hotkeys and limits": Shown(
        f'{IMAGE}<Filter name="f" toName="p" hotkey="shift+f" minlength="0"/>'
        '<PolygonLabels name="p" toName="image" choice="multiple"><Label value="sky" maxUsages="1" hotkey="c"/>'
        '<Label value="road" hotkey="s"/></PolygonLabels>',
        {"image": A},
        ONE,
        drawn=[("p", "polygon")],
    ),
    "other scripts": Shown(
        IMAGE
        + brush(
            labels='<Label value="سماء" hint="sky"/><Label value="空" alias="k"/><Label value="R&amp;D &lt;x&gt;"/>'
        ),
        {"image": A},
        ONE,
        classes=("سماء", "空", "R&D <x>"),
    ),
    "lines are named": Shown(
        f'{IMAGE}{brush()}<VectorLabels name="v" toName="image"><Label value="edge"/></VectorLabels>',
        {"image": A},
        ONE,
        not_served=('<VectorLabels name="v">',),
    ),
    "a video beside an image is named": Shown(
        f'{IMAGE}{brush()}<Video name="v" value="$video"/><VideoRectangle name="x" toName="v"/>'
        '<Labels name="vl" toName="v"><Label value="car"/></Labels>',
        {"image": A},
        ONE,
        not_served=('<VideoRectangle name="x">', '<Labels name="vl">'),
    ),
    "labels inside a shape, which the editor does not show, are named": Shown(
        f'{IMAGE}{brush()}<Brush name="s" toName="image"><Label value="car"/></Brush>',
        {"image": A},
        ONE,
        not_served=('<Brush name="s">',),
    ),
    "a Taxonomy that labels, which the editor does not do on images, is named": Shown(
        f'{IMAGE}{brush()}<Taxonomy name="t" toName="image" labeling="true"><Choice value="a"/></Taxonomy>',
        {"image": A},
        ONE,
        not_served=('<Taxonomy name="t">',),
    ),
}


ODD_ADDRESSES = {
    "a line break behind it": f"{A}\n",
    "blanks and tabs around it": f" \t{A} \r\n",
    "a line break within it": f"{A[:9]}\r\n{A[9:]}",
}
"""As lists from spreadsheets have them; the editor shows the image (measured in 1.23.2)."""


@pytest.mark.parametrize("case", ODD_ADDRESSES)
def test_what_a_browser_takes_off_an_address(case: str) -> None:
    for config in (f"{IMAGE}{brush()}", f'<Image name="image" value=" $image "/>{brush()}'):
        assert [one.address for one in parsed(config).shown({"image": ODD_ADDRESSES[case]})] == [A]


def test_labels_that_the_task_names() -> None:
    """`<Label value="$first"/>`: the editor shows "sky", and stores "$first" (measured in 1.23.2)."""
    labels = (
        '<Label value="$first"/><Label value="$second" hint="a cat"/><Label value="$5 note"/><Label value="$kind.a"/>'
    )
    config = parsed(f"{IMAGE}{brush(labels=labels)}")
    data = {"image": A, "first": "sky", "second": "ignored", "kind": {"a": "grass"}}
    [shown] = config.shown(data)
    assert [(query.name, query.reads_as) for query in shown.config.classes] == [
        ("$first", "sky"), ("$second", "a cat"), ("$5 note", None), ("$kind.a", "grass")]  # fmt: skip
    assert {label.value for control in shown.config.drawn for label in control.labels} == {
        "$first", "$second", "$5 note", "$kind.a"}  # fmt: skip
    assert config.data_read(data) != config.data_read({**data, "first": "sea"}), "its predictions are outdated then"
    assert config.data_read(data) == config.data_read({**data, "second": "else"})
    [without] = config.shown({"image": A})
    assert without.config.classes[0].reads_as is None


def parsed(config: str) -> LabelConfig:
    return parse_label_config(f"<View>{config}</View>")


@pytest.mark.parametrize("case", SHOWN)
def test_what_a_task_shows(case: str) -> None:
    wanted = SHOWN[case]
    config = parsed(wanted.config)
    shown = config.shown(wanted.data)
    assert [(one.config.image_name, one.config.item_index, one.address) for one in shown] == wanted.images
    first = shown[0].config
    assert tuple(query.name for query in first.classes) == wanted.classes
    assert [(control.name, control.kind) for control in first.drawn] == wanted.drawn
    assert tuple(part.tag for part in config.not_served) == wanted.not_served
    assert pickle.loads(pickle.dumps(config)).shown(wanted.data) == shown


MASK = np.zeros((40, 60), bool)
MASK[5:20, 10:40] = True


@pytest.mark.parametrize("case", SHOWN)
def test_what_is_drawn_is_read_back(case: str) -> None:
    """A prediction of every image with every class; each region is found again on its image, with its label."""
    wanted = SHOWN[case]
    shown = parsed(wanted.config).shown(wanted.data)
    predictions = []
    for image in shown:
        answers = tuple(ClassAnswer(query.name, 0.9, MASK) for query in image.config.classes)
        key = f"photo {image.config.name}"
        predictions.append(segmentation_to_label_studio(Segmentation((40, 60), answers), image.config, key, "v"))
    result = join_predictions(predictions)["result"]
    reading = read_regions(result, [image.config for image in shown])
    assert reading.elsewhere == ()
    for image, regions in zip(shown, reading.of_image, strict=True):
        found = [(region.control, region.labels[0].value) for region in regions]
        drawn = [(c.name, label.value) for q in image.config.classes for c, label in image.config.controls_for(q.name)]
        assert found == drawn
        assert all(not region.unknown_labels and region.size == (40, 60) for region in regions)
    ids = [(entry["id"], entry["from_name"]) for entry in result]
    assert len(set(ids)) == len(ids)


REFUSED = {
    "labels alone": (f"{IMAGE}{LABELS}", 'found .*<Labels name="labels">.*no Brush, Bitmask, MagicWand'),
    "a brush alone": (
        f'{IMAGE}<Brush name="s" toName="image"/>',
        'found .*<Brush name="s">.*add <Labels name="labels"',
    ),
    "labels inside a brush": (
        f'{IMAGE}<Brush name="s" toName="image">{SKY_ROAD}</Brush>',
        "labels that stand inside it; write BrushLabels instead",
    ),
    "a video": (
        '<Video name="v" value="$video"/><VideoRectangle name="box" toName="v"/><Labels name="l" toName="v">'
        '<Label value="sky"/></Labels>',
        'shows no image .found <Video name="v">, <VideoRectangle name="box">, <Labels name="l">',
    ),
    "lines alone": (
        f'{IMAGE}<VectorLabels name="v" toName="image">{SKY_ROAD}</VectorLabels>',
        'found .*<VectorLabels name="v">.*lines have no area',
    ),
    "toName of no image": (f"{IMAGE}{brush('photo')}", "there is no image 'photo', which its toName says"),
    "an image without a value": (f'<Image name="image"/>{brush()}', "has neither value=.* nor valueList"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_nothing_to_draw_is_refused_and_names_what_is_there(case: str) -> None:
    config, words = REFUSED[case]
    with pytest.raises(ConfigError, match=words):
        parsed(config)


NO_IMAGE = {
    "no such field": (IMAGE + brush(), {"photo": A}, "no field 'image', where .* it has: photo"),
    "nothing in it": (IMAGE + brush(), {"image": None}, "'image' with 'None', which is no address"),
    "nothing at the path": (
        f'<Image name="image" value="$photo.url"/>{brush()}',
        {"photo": {"address": A}},
        "a field 'photo' with nothing at 'photo.url'",
    ),
    "an object": (IMAGE + brush(), {"image": {"url": A}}, "holds .*url.*, which is no address of an image"),
    "no pages": (PAGES, {"pages": []}, "no pages"),
    "an empty list": (f'<Image name="image" valueList="$images"/>{brush()}', {"images": []}, "no address of an image"),
    "no labels in the task": (
        f'{IMAGE}<BrushLabels name="b" toName="image" value="$labels"/>',
        {"image": A, "labels": []},
        "the task lists no labels for the image 'image'",
    ),
}


@pytest.mark.parametrize("case", NO_IMAGE)
def test_a_task_without_an_image_says_what_is_there(case: str) -> None:
    config, data, words = NO_IMAGE[case]
    with pytest.raises(ImageError, match=words):
        parsed(config).shown(data)


MADE = {
    "a plain field": (IMAGE + brush(), {"image": A}),
    "a nested field": (f'<Image name="image" value="$photo.url"/>{brush()}', {"photo": {"url": A}}),
    "an item of a list": (f'<Image name="image" value="$pages[1].url"/>{brush()}', {"pages": [None, {"url": A}]}),
    "pages of a Repeater": (PAGES, {"pages": [{"url": A}]}),
    "valueList": (f'<Image name="image" valueList="$images"/>{brush()}', {"images": [A]}),
    "text before the variable": (f'<Image name="image" value="/data$path"/>{brush()}', {"path": "/upload/2/a.jpg"}),
    "two images": (
        f'<Image name="rgb" value="$rgb"/><Image name="ref" value="$ref"/>{brush("rgb,ref")}',
        {"rgb": A, "ref": A},
    ),
    "labels of the task": (
        f'{IMAGE}<BrushLabels name="b" toName="image" value="$labels"/>',
        {"image": A, "labels": [{"value": "sky"}, {"value": "Auto", "hint": "car"}]},
    ),
}


@pytest.mark.parametrize("case", MADE)
def test_tasks_that_are_written_show_the_image(case: str) -> None:
    xml, data = MADE[case]
    config = parsed(xml)
    assert config.make_data(A, [ClassQuery("sky"), ClassQuery("Auto", "car")]) == data
    assert {image.address for image in config.shown(data)} == {A}


def test_an_address_that_the_configuration_cannot_show_is_refused() -> None:
    with pytest.raises(ConfigError, match="does not begin and end so; choose the addresses with --image-url-prefix"):
        parsed(f'<Image name="image" value="https://host/$id"/>{brush()}').make_data(A)
    with pytest.raises(ConfigError, match="always shows"):
        parsed(f'<Image name="image" value="{A}"/>{brush()}').make_data(A)
