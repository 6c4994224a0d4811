"""Forms of labelling configurations in the real editor of Label Studio: pre-labelled by the real backend, corrected
with the mouse, submitted, and read as training reads it.

The pictures of docs/labelling.md are taken here: `make pictures`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lab.editor import Editor
from lasagna.checkpoint.folder import shipped_checkpoints
from lasagna.formats.annotations import region_to_mask
from lasagna.formats.regions import Region, read_regions
from lasagna.labels.configuration import parse_label_config
from training.data.sources.label_studio import LabelStudioExport

pytestmark = [pytest.mark.label_studio, pytest.mark.browser]

LABELS = '<Label value="sky" background="#0072b2"/><Label value="airplane" background="#d55e00"/>'
PERSON = '<Label value="person" background="#009e73"/>'
ALL = LABELS + PERSON
IMAGE = '<Image name="image" value="$image"/>'
SEPARATE = f'<Labels name="labels" toName="image">{LABELS}</Labels>'
PICTURES = {"two-images": 460, "pages": 760, "separate-labels": 760, "bitmask": 760}
"""Forms whose corrected regions docs/labelling.md shows, and how many pixels from the top of the window."""


@dataclass
class Form:
    """A configuration, the data of a task with two photos, and how a person draws a box or a stroke in it.

    Attributes:
        image: The image that is drawn on, and the page that is turned to first.
        kind: What the drawn region is.
        tool: That is taken up by hand, where choosing a label does not bring it.
    """

    config: str
    data: Any
    image: tuple[str, int | None] = ("image", None)
    kind: str = "rectangle"
    tool: str = ""
    turns: int = 0
    stage: int = 0
    types: tuple[str, ...] = ("rectanglelabels",)


RECTANGLES = f'<RectangleLabels name="r" toName="image">{LABELS}</RectangleLabels>'
FORMS = {
    "two-images": Form(
        f'<View style="display: flex"><View style="flex: 50%"><Image name="left" value="$left"/>'
        f'<BrushLabels name="bl" toName="left">{LABELS}</BrushLabels>'
        f'<RectangleLabels name="rl" toName="left">{LABELS}</RectangleLabels></View><View style="flex: 50%">'
        f'<Image name="right" value="$right"/><BrushLabels name="br" toName="right">{LABELS}</BrushLabels>'
        f'<RectangleLabels name="rr" toName="right">{PERSON}</RectangleLabels>'
        "</View></View>",
        lambda first, second: {"left": first, "right": second},
        ("right", None),
        stage=1,
    ),
    "pages": Form(
        f'<View><Image name="image" valueList="$images"/>'
        f'<BrushLabels name="b" toName="image">{ALL}</BrushLabels>'
        f'<RectangleLabels name="r" toName="image">{ALL}</RectangleLabels></View>',
        lambda first, second: {"images": [first, second]},
        ("image", 1),
        turns=1,
    ),
    "repeater": Form(
        '<View><Repeater on="$pages" indexFlag="{{idx}}" mode="pagination">'
        '<Image name="page_{{idx}}" value="$pages[{{idx}}].url"/>'
        f'<BrushLabels name="b_{{{{idx}}}}" toName="page_{{{{idx}}}}">{ALL}</BrushLabels>'
        f'<RectangleLabels name="r_{{{{idx}}}}" toName="page_{{{{idx}}}}">{ALL}</RectangleLabels></Repeater></View>',
        lambda first, second: {"pages": [{"url": first}, {"url": second}]},
        ("page_1", None),
        turns=1,
    ),
    "separate-labels": Form(
        f'<View>{IMAGE}{SEPARATE}<Brush name="s" toName="image"/><Rectangle name="x" toName="image"/></View>',
        lambda first, _: {"image": first},
        tool="RectangleTool",
        types=("rectangle", "labels"),
    ),
    "separate-ellipse": Form(
        f'<View>{IMAGE}{SEPARATE}<Ellipse name="x" toName="image"/><Polygon name="p" toName="image"/></View>',
        lambda first, _: {"image": first},
        kind="ellipse",
        tool="EllipseTool",
        types=("ellipse", "labels"),
    ),
    "magic-wand": Form(
        f'<View>{IMAGE}{SEPARATE}<MagicWand name="w" toName="image"/><Rectangle name="x" toName="image"/></View>',
        lambda first, _: {"image": first},
        tool="RectangleTool",
        types=("rectangle", "labels"),
    ),
    "bitmask": Form(
        f'<View><Image name="image" value="$image" smoothing="false"/>'
        f'<BitmaskLabels name="m" toName="image">{LABELS}</BitmaskLabels></View>',
        lambda first, _: {"image": first},
        kind="bitmask",
        types=("bitmasklabels",),
    ),
    "ellipse-labels": Form(
        f'<View>{IMAGE}<EllipseLabels name="e" toName="image">{LABELS}</EllipseLabels></View>',
        lambda first, _: {"image": first},
        kind="ellipse",
        types=("ellipselabels",),
    ),
    "turned": Form(
        f'<View><Image name="image" value="$image" rotateControl="true"/>{RECTANGLES}</View>',
        lambda first, _: {"image": first},
    ),
    "labels-of-the-task": Form(
        f'<View>{IMAGE}<BrushLabels name="b" toName="image" value="$labels"/>'
        '<RectangleLabels name="r" toName="image" value="$labels"/></View>',
        lambda first, _: {"image": first, "labels": [{"value": "sky"}, {"value": "airplane", "background": "#d55e00"}]},
    ),
    "nested-field": Form(
        f'<View><Image name="image" value="$photos[0].url"/>{RECTANGLES}</View>',
        lambda first, second: {"photos": [{"url": first}, {"url": second}]},
    ),
    "text-around": Form(
        f'<View><Image name="image" value="/data$path"/>{RECTANGLES}</View>',
        lambda first, _: {"path": first.removeprefix("/data")},
    ),
    "data-uri": Form(f"<View>{IMAGE}{RECTANGLES}</View>", lambda first, _: {"image": "data:"}),
}


@pytest.fixture(scope="module")
def editor(chromium: Any, label_studio: Any) -> Editor:
    return Editor(chromium, label_studio)


@pytest.fixture(scope="module")
def backend(start_backend: Any, random_checkpoint: Path) -> Any:
    return start_backend("nano" if "nano" in shipped_checkpoints() else str(random_checkpoint))


@pytest.fixture(scope="module")
def addresses(label_studio: Any, photos: dict[str, Path]) -> tuple[str, str]:
    """Of two photos in Label Studio."""
    api = label_studio.api()
    project = api.create_project("photos", f"<View>{IMAGE}</View>")
    api.upload(project, [photos["rocket"], photos["person"]])
    first, second = (str(task.data["image"]) for task in api.tasks(project))
    return first, second


def uri(photo: Path) -> str:
    import base64

    return "data:image/jpeg;base64," + base64.b64encode(photo.read_bytes()).decode()


def project_of(form: Form, label_studio: Any, addresses: tuple[str, str], backend: Any, title: str, photo: Path) -> Any:
    """A project with one task, pre-labelled by the backend: (project, task)."""
    api = label_studio.api()
    project = api.create_project(f"form {title}", form.config)
    data = form.data(*addresses)
    if data == {"image": "data:"}:
        data = {"image": uri(photo)}
    api.import_tasks(project, [{"data": data}])
    [task] = api.tasks(project)
    api.connect_backend(project, backend.url)
    return project, task.id


def exported(label_studio: Any, project: int, root: Path, names: dict[str, Path]) -> LabelStudioExport:
    """The project's annotations, as training reads them."""
    import json
    import shutil

    api = label_studio.api()
    tasks = list(api.export(project, [task.id for task in api.tasks(project)]))
    root.mkdir()
    (root / "project.json").write_text(json.dumps(tasks))
    (root / "label_config.xml").write_text(api.project(project)["label_config"])
    (root / "images").mkdir()
    for address, photo in names.items():
        shutil.copy(photo, root / "images" / address.rsplit("/", 1)[1])
    return LabelStudioExport(root, "project")


@pytest.mark.parametrize("name", FORMS)
def test_pre_labelled_corrected_and_read(
    name: str,
    editor: Editor,
    label_studio: Any,
    backend: Any,
    addresses: tuple[str, str],
    photos: dict[str, Path],
    eventually: Any,
    tmp_path: Path,
    pytestconfig: pytest.Config,
) -> None:
    form, api = FORMS[name], label_studio.api()
    project, task = project_of(form, label_studio, addresses, backend, name, photos["rocket"])
    api.open_task(project, task)
    [prediction] = eventually(lambda: api.predictions(task), 120, "the prediction")
    config = parse_label_config(form.config)
    data = next(api.tasks(project)).data
    images = [image.config for image in config.shown(data)]
    predicted = read_regions(prediction["result"], images)
    assert all(predicted.of_image), "something is predicted on every image"

    begun = editor.work_on(project, task)
    expected = [(image, region) for image, found in zip(images, predicted.of_image, strict=True) for region in found]
    assert len(begun) == len(expected)
    for (kind, labels, image_name, page), (image, region) in zip(begun, expected, strict=True):
        assert (kind, image_name, page) == (f"{region.kind}region", image.image_name, image.item_index)
        assert labels == [label.written for label in region.labels]
    for _ in range(form.turns):
        editor.turn_page()
    label = "person" if name == "two-images" else "airplane"
    if name == "turned":
        editor.browser.execute_script("Htx.annotationStore.selected.names.get('image').rotate(90)")
        editor.settle()
    editor.choose(label)
    if form.tool:
        editor.take(form.tool)
    place = next(i for i, one in enumerate(images) if (one.image_name, one.item_index) == form.image)
    photo = photos["rocket" if place == 0 else "person"]
    size = _size(photo)
    box, wanted = beside_regions(predicted.of_image[place], size, name == "turned")
    editor.drag(box, form.stage)
    drawn = [result for result in editor.results() if result["origin"] == "manual"]
    assert tuple(result["type"] for result in drawn) == form.types
    if name == "turned":
        assert drawn[0]["image_rotation"] == 90
    pictures = pytestconfig.getoption("--pictures")
    if pictures and name in PICTURES:
        editor.picture(Path(pictures) / f"labelling-{name}.png", PICTURES[name], 1000)
    editor.submit()
    said = editor.errors()
    if name == "text-around":  # the list of tasks beside the editor takes the field alone for an address
        said = [error for error in said if "404 (Not Found)" not in error]
    assert said == []

    [annotation] = api.open_task(project, task)["annotations"]
    submitted = read_regions(annotation["result"], images)
    assert submitted.elsewhere == ()
    [own] = [region for region in submitted.of_image[place] if region.id == drawn[0]["id"]]
    assert (own.kind, [found.value for found in own.labels]) == (form.kind, [label])
    assert own.size == size
    covered = region_to_mask(own, size)
    assert covered.any()
    if form.kind == "rectangle":
        rows, columns = np.nonzero(covered)
        found = (columns.min() / size[1], rows.min() / size[0], columns.max() / size[1], rows.max() / size[0])
        assert found == pytest.approx(wanted, abs=0.05)

    names = dict(zip(addresses, (photos["rocket"], photos["person"]), strict=True))
    if name == "data-uri":  # training reads files
        return
    source = exported(label_studio, project, tmp_path / "export", names)
    assert source.skipped == {}
    record = source[place]
    layers = record.read()
    trained = (layers == record.classes.index(label)).any(axis=0)
    if form.kind != "ellipse":
        assert (trained & covered).sum() >= 0.99 * covered.sum() or form.kind == "rectangle"


def beside_regions(regions: Sequence[Region], size: tuple[int, int], is_turned: bool) -> tuple[list[Any], list[float]]:
    """Two corners of a box, in shares of the image as it is shown, and (x0, y0, x1, y1) of it on the photo. It begins
    where no region is: a press on one selects it, and nothing is drawn."""
    taken = np.zeros(size, np.bool_)
    for region in regions:
        taken |= region_to_mask(region, size)
    shares = np.arange(0.03, 0.98, 0.02)
    for u, v in ((u, v) for v in shares for u in shares):
        # turned by 90 degrees clockwise, what is shown at (u, v) lies at (v, 1 - u) of the photo
        x, y = (v, 1 - u) if is_turned else (u, v)
        rows, columns = (
            slice(int((at - 0.02) * n), int((at + 0.02) * n) + 1) for at, n in zip((y, x), size, strict=True)
        )
        if not taken[rows, columns].any():
            break
    else:
        raise AssertionError("regions cover the whole image")
    end = (u + 0.25 if u < 0.5 else u - 0.25, v + 0.25 if v < 0.5 else v - 0.25)
    corners = [(b, 1 - a) if is_turned else (a, b) for a, b in ((u, v), end)]
    (x0, x1), (y0, y1) = (sorted(pair) for pair in zip(*corners, strict=True))
    return [(u, v), end], [x0, y0, x1, y1]


def _size(photo: Path) -> tuple[int, int]:
    from PIL import Image

    with Image.open(photo) as image:
        return image.height, image.width


def test_a_control_with_two_images_has_no_tools(
    editor: Editor,
    label_studio: Any,
    backend: Any,
    addresses: tuple[str, str],
    photos: dict[str, Path],
    eventually: Any,
) -> None:
    """Both images are predicted; that nobody can draw is Label Studio's, and is said (`not_served`)."""
    form = Form(
        '<View><Image name="rgb" value="$rgb"/><Image name="ref" value="$ref"/>'
        f'<BrushLabels name="b" toName="rgb,ref">{ALL}</BrushLabels></View>',
        lambda first, second: {"rgb": first, "ref": second},
    )
    project, task = project_of(form, label_studio, addresses, backend, "shared", photos["rocket"])
    api = label_studio.api()
    api.open_task(project, task)
    eventually(lambda: api.predictions(task), 120, "the prediction")
    assert {image for _, _, image, _ in editor.work_on(project, task)} == {"rgb", "ref"}
    tools = editor.browser.execute_script(
        "return [...Htx.annotationStore.selected.names.values()].filter(t => t.type === 'image')"
        ".flatMap(i => i.getToolsManager().allTools().map(t => t.toolName))"
    )
    assert "BrushTool" not in tools
    assert editor.errors() == []
