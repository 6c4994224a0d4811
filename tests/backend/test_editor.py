"""What a person sees: our regions in the real editor of Label Studio, in a real Chromium.

The picture in the README, docs/editor.png, is taken here: `make screenshot`.
"""

import io
from importlib.resources import files

import numpy as np
import pytest
from PIL import Image, ImageDraw

from backend.worker.questions import MAX_NEW_TOKENS
from lab.editor import Editor
from lasagna import Lasagna
from lasagna.checkpoint.folder import shipped_checkpoints
from lasagna.formats.label_studio import segmentation_to_label_studio
from lasagna.labels.configuration import parse_label_config
from lasagna.masks.image import load_image
from lasagna.masks.segmentation import ClassAnswer, Segmentation

pytestmark = [pytest.mark.label_studio, pytest.mark.browser]

SHAPES_CONFIG = """<View>
  <Image name="image" value="$image"/>
  <BrushLabels name="brush" toName="image" opacity="0.5"><Label value="hook" background="#ff0000"/></BrushLabels>
  <PolygonLabels name="polygon" toName="image" opacity="0.5" strokeWidth="1">
    <Label value="triangle" background="#ff0000"/>
  </PolygonLabels>
  <RectangleLabels name="rectangle" toName="image" opacity="0.5" strokeWidth="1">
    <Label value="bar" background="#ff0000"/>
  </RectangleLabels>
</View>"""


@pytest.fixture(scope="module")
def editor(chromium, label_studio):
    return Editor(chromium, label_studio)


def shapes(size):
    """White shapes on black that no turn or mirror maps onto themselves: class -> bool (height, width)."""
    width, height = size
    drawn = {
        "hook": [(0.08, 0.1), (0.4, 0.1), (0.4, 0.25), (0.2, 0.25), (0.2, 0.6), (0.08, 0.6)],
        "triangle": [(0.55, 0.2), (0.92, 0.12), (0.7, 0.5)],
        "bar": [(0.3, 0.7), (0.85, 0.7), (0.85, 0.85), (0.3, 0.85)],
    }
    masks = {}
    for name, corners in drawn.items():
        image = Image.new("1", size)
        ImageDraw.Draw(image).polygon([(x * width, y * height) for x, y in corners], fill=1)
        masks[name] = np.asarray(image)
    return masks


# How a camera stores an upright picture for each value of EXIF's Orientation.
_STORED = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def photo_with_orientation(path, orientation):
    """A JPEG of the shapes that is stored turned and mirrored as EXIF says."""
    upright = np.any(list(shapes((600, 400)).values()), axis=0)
    picture = Image.fromarray(np.where(upright, np.uint8(255), np.uint8(0))).convert("RGB")
    if (change := _STORED[orientation]) is not None:
        picture = picture.transpose(change)
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture.save(path, quality=95, exif=exif)
    return path


@pytest.fixture(scope="module")
def oriented_tasks(label_studio, tmp_path_factory):
    """A project with the shapes in all eight orientations, pre-labelled: (project, orientation -> task)."""
    folder = tmp_path_factory.mktemp("oriented")
    files = {n: photo_with_orientation(folder / f"orientation{n}.jpg", n) for n in range(1, 9)}
    api = label_studio.api()
    project = api.create_project("Orientations", SHAPES_CONFIG)
    tasks = dict(zip(files, api.upload(project, list(files.values())), strict=True))
    [plan] = parse_label_config(SHAPES_CONFIG).images
    for orientation, file in files.items():
        width, height = load_image(file).size
        answers = tuple(ClassAnswer(name, 0.9, mask) for name, mask in shapes((width, height)).items())
        answer = Segmentation((height, width), answers)
        api.create_prediction(tasks[orientation], segmentation_to_label_studio(answer, plan, file.name, "shapes-1"))
    return project, tasks


@pytest.mark.parametrize("orientation", range(1, 9))
def test_regions_lie_on_the_image_whatever_its_exif_orientation(editor, oriented_tasks, orientation):
    project, tasks = oriented_tasks
    regions = editor.open(project, tasks[orientation])
    assert sorted((kind, *labels) for kind, labels, _ in regions) == [
        ("brushregion", "hook"),
        ("polygonregion", "triangle"),
        ("rectangleregion", "bar"),
    ]
    # White shapes on black under half transparent red: blue tells the photo, red less blue tells the region.
    pixels = editor.image_pixels().astype(int)
    assert pixels.shape[1] > 1.4 * pixels.shape[0] > 400, "the picture is not upright"
    pixels = pixels[:, : int(0.95 * pixels.shape[1])]  # the rest is below the tool bar
    shape, region = pixels[..., 2] > 64, pixels[..., 0] - pixels[..., 2] > 64
    assert (shape & region).sum() / (shape | region).sum() > 0.95
    assert editor.errors() == []


@pytest.fixture(scope="module")
def labelled_photos(label_studio, start_backend, random_checkpoint, photos):
    """Photos that the real backend has pre-labelled under label_config/all.xml: (project, name -> task)."""
    # The picture in the README shows the shipped model; the regions are compared with the prediction in any case.
    model = "nano" if "nano" in shipped_checkpoints() else str(random_checkpoint)
    config = (files("label_config") / "all.xml").read_text(encoding="utf-8")
    api = label_studio.api()
    project = api.create_project("Brush, polygon and rectangle", config)
    chosen = {name: photos[name] for name in ("person", "motorcycle", "rocket")}
    tasks = dict(zip(chosen, api.upload(project, list(chosen.values())), strict=True))
    api.connect_backend(project, start_backend(model).url, interactive=True)
    for task in tasks.values():
        api.open_task(project, task)
    return project, tasks


DRAWN_AS = {"brushlabels": "brushregion", "polygonlabels": "polygonregion", "rectanglelabels": "rectangleregion"}


@pytest.mark.parametrize("name", ["motorcycle", "person", "rocket"])
def test_brush_polygon_and_rectangle_of_the_model_are_in_the_editor(
    editor, label_studio, labelled_photos, name, eventually, pytestconfig
):
    project, tasks = labelled_photos
    stored = eventually(lambda: label_studio.api().predictions(tasks[name]), 120, "the prediction")[-1]["result"]
    expected = sorted(
        (DRAWN_AS[region["type"]], tuple(region["value"][region["type"]]), round(region["score"], 4))
        for region in stored
        if region["type"] in DRAWN_AS
    )
    assert {kind for kind, _, _ in expected} == set(DRAWN_AS.values())
    regions = [region for region in editor.open(project, tasks[name]) if region[0] in DRAWN_AS.values()]
    assert sorted((kind, tuple(labels), round(score, 4)) for kind, labels, score in regions) == expected
    assert editor.errors() == []
    if name == "person" and (target := pytestconfig.getoption("--screenshot")):
        picture = Image.open(io.BytesIO(editor.browser.get_screenshot_as_png())).convert("RGB")
        picture.quantize(256, dither=Image.Dither.NONE).save(target, optimize=True)  # a third of the bytes


def test_a_question_in_the_smart_text_field_is_answered_in_the_other(
    editor, label_studio, start_backend, photos, tmp_path, eventually
):
    """label_config/question.xml as its comment says, with a random model, which answers freely."""
    model = Lasagna.random(0, "released")
    model.save_pretrained(tmp_path / "model")
    api = label_studio.api()
    config = (files("label_config") / "question.xml").read_text(encoding="utf-8")
    project = api.create_project("Questions", config)
    [task] = api.upload(project, [photos["person"]])
    api.connect_backend(project, start_backend(str(tmp_path / "model")).url, interactive=True)
    editor.ask(project, task, placeholder="the person on the left", question="What is there?")
    written = eventually(lambda: editor.texts("answer"), 120, "an answer in the editor")
    expected = model.ask(load_image(photos["person"]), "What is there?", max_new_tokens=MAX_NEW_TOKENS)
    assert written == [expected.text]
    assert editor.texts("question") == ["What is there?"]
    assert editor.errors() == []
