"""What is given to the Python interface: read as the command line reads it, or refused in words."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from lasagna import ClassQuery, Lasagna, LasagnaError, Segmentation, load_image
from lasagna.assistant.inputs import as_array
from lasagna.errors import ConfigError, ImageError, QueryError

CLASSES = ["sky", "road", "cat"]


@pytest.fixture(scope="module")
def model() -> Lasagna:
    return Lasagna.random(seed=1)


@pytest.fixture(scope="module")
def photo() -> Image.Image:
    rows, columns = np.mgrid[:40, :60]
    return Image.fromarray(np.stack([columns * 4, rows * 6, 255 - columns * 2 - rows * 2], axis=-1).astype(np.uint8))


def same(one: Segmentation, other: Segmentation) -> bool:
    return one.size == other.size and all(
        a.name == b.name and a.probability == pytest.approx(b.probability) and np.array_equal(a.mask, b.mask)  # type: ignore[arg-type]
        for a, b in zip(one, other, strict=True)
    )


# --- Images -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("ending", ["jpg", "png", "webp", "tif"])
def test_a_phone_photo_is_upright_however_it_is_given(
    orientation: int, ending: str, photo: Image.Image, tmp_path: Path
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"photo.{ending}"
    photo.save(path, exif=exif)
    expected = np.asarray(load_image(path))
    assert expected.shape == ((40, 60, 3) if orientation < 5 else (60, 40, 3))
    with Image.open(path) as image, path.open("rb") as file:
        loaded = Image.open(path)
        loaded.load()
        for given in (path, str(path), path.read_bytes(), image, loaded, file, image.convert("RGB")):
            assert np.array_equal(as_array(given), expected)
        if ending != "tif":  # Pillow turns a TIFF when it is loaded
            assert image.getexif().get(0x0112, 1) == orientation, "what was given is left as it is"
            assert image.size == (60, 40)


def test_answers_are_those_of_the_command_line(model: Lasagna, photo: Image.Image, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    photo.save(tmp_path / "photo.png", exif=exif)
    expected = model.segment(np.asarray(load_image(tmp_path / "photo.png")), CLASSES)
    assert expected.size == (60, 40)
    with Image.open(tmp_path / "photo.png") as image:
        found = model.segment_batch([image, tmp_path / "photo.png"], [CLASSES, CLASSES])
    assert all(same(answer, expected) for answer in found)


@pytest.mark.parametrize("bits", [10, 12, 14, 16])
@pytest.mark.parametrize("kind", ["grey", "rgb", "rgba", "tiff"])
def test_more_than_8_bits(bits: int, kind: str, photo: Image.Image, tmp_path: Path) -> None:
    """Of 12-bit data in a file of 16 bits, Pillow alone keeps the upper 8 of the 16, which is nearly black."""
    eight = np.asarray(photo.convert("L") if kind == "grey" else photo)
    deep = np.rint(eight / 255 * (2**bits - 1)).astype(np.uint16)
    samples = deep if kind == "grey" else deep[..., ::-1]
    if kind == "rgba":
        samples = np.dstack([samples, np.full(samples.shape[:2], 65535, np.uint16)])
    path = tmp_path / ("photo.tif" if kind == "tiff" else "photo.png")
    assert cv2.imwrite(str(path), samples)
    expected = np.dstack([eight] * 3) if kind == "grey" else eight
    with Image.open(path) as image:
        found = [np.asarray(load_image(path)), as_array(path.read_bytes()), as_array(image)]
    for array in found:
        assert np.abs(array.astype(int) - expected).max() <= 1


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("ending", ["png", "tif"])
def test_more_than_8_bits_and_turned(orientation: int, ending: str, photo: Image.Image, tmp_path: Path) -> None:
    path = tmp_path / f"deep.{ending}"
    deep = np.asarray(photo).astype(np.uint16) * 257
    plain = tmp_path / f"plain.{ending}"
    exif = Image.Exif()
    exif[0x0112] = orientation
    photo.save(plain, exif=exif)
    if ending == "png":
        assert cv2.imwrite(str(path), deep[..., ::-1])
        data, eight = path.read_bytes(), plain.read_bytes()
        at = eight.index(b"eXIf") - 4
        chunk = eight[at : at + 12 + int.from_bytes(eight[at : at + 4], "big")] if orientation > 1 else b""
        path.write_bytes(data[:33] + chunk + data[33:])  # behind the header
    else:
        tifffile.imwrite(path, deep, photometric="rgb", extratags=[(0x0112, "H", 1, orientation, True)])
    assert np.abs(np.asarray(load_image(path)).astype(int) - np.asarray(load_image(plain))).max() <= 1


def test_transparent_colours_of_16_bits_are_on_white(tmp_path: Path) -> None:
    samples = np.zeros((4, 6, 4), np.uint16)
    samples[..., 2], samples[:, :3, 3] = 65535, 65535
    assert cv2.imwrite(str(tmp_path / "half.png"), samples)
    found = np.asarray(load_image(tmp_path / "half.png"))
    assert (found[:, :3] == (255, 0, 0)).all()
    assert (found[:, 3:] == 255).all()


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (None, "an image is a path, the content of a file, a Pillow image or a uint8 array"),
        ([np.zeros((4, 4, 3), np.uint8)], "not list; several images go to segment_batch"),
        (7, "not int"),
        (torch.zeros(3, 4, 4), r"not Tensor \(3, 4, 4\)"),
        (np.zeros((4, 4, 3), np.uint16), r"not uint16 \(4, 4, 3\); give the file's path"),
        (np.zeros((4, 4), np.uint8), r"not uint8 \(4, 4\)"),
        (np.zeros((4, 4, 4), np.uint8), r"not uint8 \(4, 4, 4\)"),
        (np.zeros((0, 4, 3), np.uint8), r"not uint8 \(0, 4, 3\)"),
        (np.zeros((4, 4, 3)), "not float64"),
        ("no such file.jpg", "no such file.jpg cannot be read: No such file or directory"),
        (b"", "is empty"),
        (b"hello", "is not an image"),
        (Image.new("RGB", (0, 3)), "has no pixel"),
    ],
)
def test_what_is_no_image(given: Any, says: str, model: Lasagna) -> None:
    for call in (lambda: model.segment(given, CLASSES), lambda: model.encode_image(given)):
        with pytest.raises(ImageError, match=says):
            call()


def test_files_that_pillow_opens_and_cannot_read(model: Lasagna, photo: Image.Image, tmp_path: Path) -> None:
    photo.resize((600, 400)).save(tmp_path / "cut.jpg")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "cut.jpg").read_bytes()[:3000])
    with Image.open(tmp_path / "cut.jpg") as image, pytest.raises(ImageError, match="damaged or incomplete"):
        model.segment(image, CLASSES)


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"II*\0" + bytes(40), "not an image that is read here but a TIFF of another kind"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL"),
        (b"8BPS" + bytes(40), "a Photoshop file"),
        (b"%PDF-1.7" + bytes(40), "a PDF document"),
        (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "an SVG drawing"),
    ],
)
def test_formats_that_are_not_read_are_named(data: bytes, kind: str) -> None:
    with pytest.raises(ImageError, match=kind):
        load_image(data)


# --- Classes, thresholds, prompts -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("classes", "says"),
    [
        ("sky", r"not the text 'sky'; write \['sky'\]"),
        (b"sky", "not the text"),
        (None, "not None"),
        (7, "not int '7'"),
        (ClassQuery("sky"), "not ClassQuery"),
        ({"sky", "road"}, "not set"),
        ({"sky": 1}, "not dict"),
        (["sky", 7], "class 2 is int '7'; a class is a name or a ClassQuery"),
        ([["sky"]], "class 1 is list"),
        ([None], "class 1 is None"),
        ([], "the class list is empty"),
        ([" "], "is blank"),
    ],
)
def test_what_is_no_class_list(classes: Any, says: str, model: Lasagna, photo: Image.Image) -> None:
    with pytest.raises(QueryError, match=says):
        model.segment(photo, classes)


def test_one_class_list_for_a_batch(model: Lasagna, photo: Image.Image) -> None:
    with pytest.raises(QueryError, match=r"write \[\['sky', 'road', 'cat'\]\] \* 3 to ask all 3 images"):
        model.segment_batch([photo] * 3, CLASSES)  # type: ignore[arg-type]
    assert [answer.name for answer in model.segment_batch([photo], [("sky", ClassQuery("Auto", "car"))])[0]] == [
        "sky",
        "Auto",
    ]


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda m, p: m.segment_batch(p, [CLASSES]), "the images of a batch are a list"),
        (lambda m, p: m.segment_batch([p], "sky"), "a list of lists, not str"),
        (lambda m, p: m.segment_batch([p], None), "a list of lists, not NoneType"),
        (lambda m, p: m.segment_batch([p, p], [CLASSES]), "2 images need as many class lists"),
        (lambda m, p: m.segment(p, CLASSES, threshold="0.5"), "not '0.5'"),
        (lambda m, p: m.segment(p, CLASSES, threshold=float("nan")), "between 0 and 1"),
        (lambda m, p: m.segment(p, CLASSES, threshold=1), "between 0 and 1, not 1"),
        (lambda m, p: m.segment(p, CLASSES, threshold=True), "between 0 and 1, not True"),
        (lambda m, p: m.segment(p, CLASSES, chunk_size=0), "1 or more, not 0"),
        (lambda m, p: m.segment(p, CLASSES, chunk_size="2"), "1 or more, not '2'"),
        (lambda m, p: m.segment_prompt(m.encode_image(p)), "needs a point or a box"),
        (lambda m, p: m.segment_prompt(m.encode_image(p), points=[(float("nan"), 1, True)]), "in pixels"),
        (lambda m, p: m.segment_prompt(m.encode_image(p), points=[(61, 1, True)]), "outside of the image of 60 x 40"),
        (lambda m, p: m.segment_prompt(m.encode_image(p), points=[(1, 2)]), "a point is"),
        (lambda m, p: m.segment_prompt(m.encode_image(p), box=(1, 2, 3)), "a box is"),
        (lambda m, p: m.segment_prompt(m.encode_image(p), box=(1, 2, 3, float("inf"))), "a box is"),
        (lambda m, p: m.segment_prompt(m.encode_image(p), box=(70, 0, 90, 10)), "outside of the image"),
    ],
)
def test_what_else_cannot_be_asked(
    call: Callable[[Lasagna, Image.Image], object], says: str, model: Lasagna, photo: Image.Image
) -> None:
    with pytest.raises(LasagnaError, match=says):
        call(model, photo)


def test_a_point_on_the_border_is_in_the_image(model: Lasagna, photo: Image.Image) -> None:
    mask, _ = model.segment_prompt(model.encode_image(photo), points=[(60, 40, True)], box=(-5, -5, 70, 50))
    assert mask.shape == (40, 60)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("option", "value"), [("device", "mps"), ("device", 1.5), ("dtype", "float8"), ("dtype", None)]
)
def test_devices_and_types_that_are_not_used(option: str, value: Any, tmp_path: Path) -> None:
    Lasagna.random().save_pretrained(tmp_path / "tiny")
    with pytest.raises(ConfigError):
        Lasagna.from_pretrained(tmp_path / "tiny", **{"device": "cpu", option: value})


def test_a_dtype_of_torch(tmp_path: Path) -> None:
    Lasagna.random().save_pretrained(tmp_path / "tiny")
    loaded = Lasagna.from_pretrained(tmp_path / "tiny", device="cpu", dtype=torch.bfloat16)  # type: ignore[arg-type]
    assert loaded.model.dtype == torch.bfloat16


def test_an_answer_can_be_gone_through(model: Lasagna, photo: Image.Image) -> None:
    answer = model.segment(photo, CLASSES)
    assert [one.name for one in answer] == CLASSES
    assert len(answer) == 3
    assert "sky" in answer
    assert "cow" not in answer
    with pytest.raises(KeyError):
        answer["cow"]


def test_load_image_is_public(photo: Image.Image) -> None:
    file = io.BytesIO()
    photo.save(file, "PNG")
    assert np.array_equal(np.asarray(load_image(file.getvalue())), np.asarray(photo))


def test_prompts_of_an_image_are_those_of_its_features(model: Lasagna, photo: Image.Image) -> None:
    mask, score = model.segment_prompt(photo, points=[(5, 6, True)])
    again, same_score = model.segment_prompt(model.encode_image(photo), points=[(5, 6, True)])
    assert (mask == again).all()
    assert score == same_score


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda model, photo: model.segment(photo, CLASSES, exclusive="no"), "exclusive is True or False, not 'no'"),
        (lambda model, photo: model.ask(photo, 5), "a question is a text, not int"),
        (lambda model, photo: model.segment_prompt(photo, points=5), "points are a list"),
        (lambda model, photo: model.segment_prompt(photo, points=[5]), "a point is"),
        (lambda model, photo: model.segment_prompt(photo, box=7), "a box is"),
    ],
)
def test_a_wrong_type_is_named(
    model: Lasagna, photo: Image.Image, call: Callable[[Lasagna, Image.Image], Any], says: str
) -> None:
    with pytest.raises(QueryError, match=says):
        call(model, photo)
