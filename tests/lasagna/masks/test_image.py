"""`load_image`: every odd file becomes upright 8-bit RGB or an ImageError in words."""

import io
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from lasagna.errors import ConfigError, ImageError
from lasagna.masks.image import image_format, load_image, read_image_bytes


def encoded(image: Image.Image, format: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


@pytest.fixture(scope="module")
def scene() -> Image.Image:
    """30 x 20, smooth, no two corners alike, so that every flip and turn shows."""
    rows, columns = np.mgrid[:20, :30]
    return Image.fromarray(np.stack([columns * 8, rows * 12, 255 - columns * 4 - rows * 4], axis=-1).astype(np.uint8))


def close(found: Image.Image, expected: np.ndarray | Image.Image, tolerance: float = 0) -> bool:
    difference = np.abs(np.asarray(found, dtype=int) - np.asarray(expected, dtype=int))
    return found.mode == "RGB" and float(difference.max()) <= tolerance


# --- Sources ----------------------------------------------------------------------------------------------------------


def test_path_bytes_and_file_give_the_same(tmp_path: Path, scene: Image.Image) -> None:
    path = tmp_path / "scene.png"
    path.write_bytes(encoded(scene))
    with path.open("rb") as file:
        images = [load_image(path), load_image(str(path)), load_image(path.read_bytes()), load_image(file)]
    assert all(close(image, scene) for image in images)


def test_the_image_outlives_its_file(tmp_path: Path, scene: Image.Image) -> None:
    path = tmp_path / "scene.png"
    path.write_bytes(encoded(scene))
    image = load_image(path)
    path.unlink()
    assert close(image, scene)


# --- Modes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("top", "scale"),
    [(65535, 65535), (40000, 65535), (4095, 4095), (3000, 4095), (1023, 1023), (255, 255), (3, 255)],
    ids=["16-bit", "dim 16-bit", "12-bit", "dim 12-bit", "10-bit", "8-bit in 16", "nearly black"],
)
def test_16_bit_grey_is_scaled_by_its_bit_depth(top: int, scale: int) -> None:
    samples = np.linspace(0, top, 64).astype(np.uint16).reshape(8, 8)
    image = load_image(encoded(Image.fromarray(samples)))
    assert close(image, np.repeat((samples * (255 / scale)).round()[..., None], 3, axis=-1))


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.0, 0.5, 1.0], [0, 128, 255]),
        ([0.0, 100.0, 200.0], [0, 100, 200]),
        ([-1.0, 0.0, 1.0], [0, 128, 255]),
        ([0.0, 500.0, 1000.0], [0, 128, 255]),
        ([0.0, float("nan"), 1.0], [0, 0, 255]),
    ],
    ids=["unit", "byte", "signed", "large", "nan"],
)
def test_float_tiff(values: list[float], expected: list[int]) -> None:
    image = load_image(encoded(Image.fromarray(np.array([values], dtype=np.float32)), "TIFF"))
    assert np.asarray(image)[0, :, 0].tolist() == expected


def test_32_bit_integer_tiff_with_negative_values() -> None:
    image = load_image(encoded(Image.fromarray(np.array([[-100, 0, 100]], dtype=np.int32)), "TIFF"))
    assert np.asarray(image)[0, :, 0].tolist() == [0, 128, 255]


def test_palette(scene: Image.Image) -> None:
    indexed = scene.convert("P", palette=Image.Palette.ADAPTIVE, colors=64)
    assert close(load_image(encoded(indexed)), indexed.convert("RGB"))


def test_palette_with_transparent_colour_is_white_there() -> None:
    indexed = Image.new("P", (2, 1))
    indexed.putpalette([255, 0, 0, 0, 0, 255])
    indexed.putdata([0, 1])
    assert np.asarray(load_image(encoded(indexed, transparency=0))).tolist() == [[[255, 255, 255], [0, 0, 255]]]


def test_grey_and_bilevel() -> None:
    grey = Image.fromarray(np.arange(0, 250, 10, dtype=np.uint8).reshape(5, 5))
    assert close(load_image(encoded(grey)), grey.convert("RGB"))
    assert close(load_image(encoded(grey.convert("1"))), grey.convert("1").convert("RGB"))


def test_cmyk_jpeg_keeps_its_colours(scene: Image.Image) -> None:
    assert close(load_image(encoded(scene.convert("CMYK"), "JPEG", quality=100, subsampling=0)), scene, tolerance=12)


@pytest.mark.parametrize(
    ("mode", "pixel", "expected"),
    [
        ("RGBA", (10, 20, 30, 0), (255, 255, 255)),
        ("RGBA", (10, 20, 30, 255), (10, 20, 30)),
        ("RGBA", (0, 0, 0, 128), (127, 127, 127)),
        ("LA", (50, 0), (255, 255, 255)),
        ("LA", (50, 255), (50, 50, 50)),
    ],
)
def test_transparency_is_composited_on_white(mode: str, pixel: tuple, expected: tuple) -> None:
    assert load_image(encoded(Image.new(mode, (3, 2), pixel))).getpixel((1, 1)) == expected


def test_animated_gif_gives_its_first_frame() -> None:
    frames = [Image.new("RGB", (6, 4), colour) for colour in ("red", "lime", "blue")]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:], duration=50)
    assert close(load_image(data), frames[0])


@pytest.mark.parametrize("format", ["JPEG", "WEBP", "BMP", "TIFF", "PPM", "AVIF"])
def test_other_formats(format: str, scene: Image.Image) -> None:
    assert close(load_image(encoded(scene, format)), scene, tolerance=40)


# --- Size -------------------------------------------------------------------------------------------------------------


def test_1x1() -> None:
    assert load_image(encoded(Image.new("RGB", (1, 1), (1, 2, 3)))).getpixel((0, 0)) == (1, 2, 3)


@pytest.mark.slow
def test_12000x9000_without_a_warning() -> None:
    data = encoded(Image.new("L", (12000, 9000), 77), "PNG", compress_level=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        image = load_image(data)
    assert (image.size, image.mode, image.getpixel((11999, 8999))) == ((12000, 9000), "RGB", (77, 77, 77))
    assert Image.MAX_IMAGE_PIXELS is not None, "Pillow's own limit must be back for everyone else"


def test_over_the_limits() -> None:
    data = encoded(Image.new("RGB", (40, 30)))
    with pytest.raises(ImageError, match=r"photo is 40 x 30 = 1200 pixels; the limit is 1199"):
        load_image(data, max_pixels=1199, name="photo")
    assert load_image(data, max_pixels=1200).size == (40, 30)
    with pytest.raises(ImageError, match=f"more than {len(data) - 1} bytes"):
        load_image(data, max_bytes=len(data) - 1)
    assert load_image(data, max_bytes=len(data)).size == (40, 30)


def test_a_decompression_bomb_is_refused_before_it_is_decoded() -> None:
    bomb = bytearray(encoded(Image.new("L", (10, 10))))
    bomb[16:24] = (200_000).to_bytes(4, "big") + (200_000).to_bytes(4, "big")  # IHDR: 40 gigapixels in 70 bytes
    bomb[29:33] = __import__("zlib").crc32(bomb[12:29]).to_bytes(4, "big")
    with pytest.raises(ImageError, match="200000 x 200000"):
        load_image(bytes(bomb))


def test_a_large_file_is_not_read_whole() -> None:
    class Endless(io.RawIOBase):
        asked = 0

        def read(self, size: int = -1) -> bytes:
            assert 0 <= size <= 1001
            return b"x" * size

    with pytest.raises(ImageError, match="more than 1000 bytes"):
        read_image_bytes(Endless(), max_bytes=1000)  # type: ignore[arg-type]


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF", "GIF", "BMP", "PPM", "AVIF", "TGA"])
def test_memory_for_decoding_has_a_limit_in_every_format(format: str, scene: Image.Image) -> None:
    data = encoded(scene, format)
    with pytest.raises(ImageError, match=r"photo would take up to \d+ bytes .*LASAGNA_MAX_IMAGE_MEMORY"):
        load_image(data, max_memory=599, name="photo")
    assert load_image(data, max_memory=100_000).size == (30, 20)


@pytest.mark.parametrize(
    ("start", "kind"),
    [
        (b"\xff\x0a", "JPEG XL"),
        (bytes(128) + b"DICM", "DICOM"),
        (b"%PDF-1.7", "PDF"),
        (b"<svg xmlns=", "SVG"),
    ],
)
def test_formats_that_are_not_read_are_named(start: bytes, kind: str) -> None:
    with pytest.raises(
        ImageError, match=rf"photo is not an image that is read here but .*{kind}.*; convert it to JPEG"
    ):
        load_image(start + bytes(64), name="photo")


@pytest.mark.parametrize(("format", "kind"), [("ICO", "an icon"), ("JPEG2000", "JPEG 2000")])
def test_formats_whose_memory_cannot_be_told_are_not_opened(format: str, kind: str, scene: Image.Image) -> None:
    with pytest.raises(ImageError, match=kind):
        load_image(encoded(scene, format))
    assert image_format(encoded(scene, format)) == "image"


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "1", "CMYK", "I;16", "F", "deep"])
def test_strips_make_the_image_that_one_piece_makes(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(3)
    samples = rng.integers(0, 3000, (23, 17, 4)).astype(np.uint16)
    if mode == "deep":
        data = cv2.imencode(".png", samples)[1].tobytes()
    elif mode in ("I;16", "F"):
        data = encoded(Image.fromarray(samples[..., 0].astype(np.uint16 if mode == "I;16" else np.float32)), "TIFF")
    else:
        data = encoded(Image.fromarray((samples // 12).astype(np.uint8), "RGBA").convert(mode), "TIFF")
    whole = load_image(data)
    monkeypatch.setattr("lasagna.masks.image._STRIP_PIXELS", 17 * 5)
    assert close(load_image(data), whole)


# --- EXIF -------------------------------------------------------------------------------------------------------------

UPRIGHT: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: np.rot90(a, 1),
}


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_exif_orientation(orientation: int, format: str, scene: Image.Image) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = load_image(encoded(scene, format, exif=exif))
    assert close(image, UPRIGHT[orientation](np.asarray(scene)), tolerance=40)
    again = load_image(encoded(image))
    assert close(again, image), "the orientation must not be applied twice"


@pytest.mark.parametrize("orientation", [0, 9, 255])
def test_orientations_that_do_not_exist_are_ignored(orientation: int, scene: Image.Image) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert close(load_image(encoded(scene, "PNG", exif=exif)), scene)


@pytest.mark.parametrize("junk", [b"", b"Exif\0\0", b"Exif\0\0MM\0*\0\0", b"Exif\0\0" + bytes(range(200))])
def test_damaged_exif_is_ignored(junk: bytes, scene: Image.Image) -> None:
    assert close(load_image(encoded(scene, "JPEG", exif=junk)), scene, tolerance=40)


# --- Bad files --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF", "GIF", "BMP"])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.95])
def test_truncated(format: str, share: float, photos: dict[str, Path]) -> None:
    with Image.open(photos["cat"]) as photo:
        data = encoded(photo.resize((200, 133)), format)
    with pytest.raises(ImageError, match=r"cut\.jpg is (damaged|not an image)"):
        load_image(data[: int(len(data) * share)], name="cut.jpg")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"hello, I am text\n" * 20, "not an image"),
        (b"", "empty"),
        (b"\x89PNG\r\n\x1a\n", "damaged|not an image"),
        (b"\xff\xd8\xff", "damaged|not an image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", "not an image"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not an image"),
    ],
    ids=["text", "empty", "png header", "jpeg header", "eps", "svg"],
)
def test_not_an_image(content: bytes, says: str, tmp_path: Path) -> None:
    path = tmp_path / "photo.jpg"
    path.write_bytes(content)
    with pytest.raises(ImageError, match=says) as caught:
        load_image(path)
    assert "photo.jpg" in str(caught.value)


def test_missing_folder_and_pipe(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    for name, says in (("nothing.jpg", "No such file"), (".", "a folder"), ("pipe.jpg", "special file")):
        with pytest.raises(ImageError, match=says):
            load_image(tmp_path / name)


@pytest.fixture
def secret(scene: Image.Image) -> Iterator[Path]:
    """A file that this user may not read; root, who may read everything, becomes nobody meanwhile."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "secret.png")
        path.write_bytes(encoded(scene))
        path.chmod(0)
        Path(folder).chmod(0o755)
        user = os.geteuid()
        if user == 0:
            os.seteuid(65534)
        yield path
        os.seteuid(user)


def test_no_read_permission(secret: Path) -> None:
    with pytest.raises(ImageError, match=r"secret\.png cannot be read: Permission denied"):
        load_image(secret)


# --- Memory -----------------------------------------------------------------------------------------------------------


def in_scans(jpeg: bytes) -> bytes:
    """A baseline JPEG whose first scan has one of its three components, as one that comes component by component."""
    at = jpeg.index(b"\xff\xda")
    length = int.from_bytes(jpeg[at + 2 : at + 4], "big")
    return jpeg[:at] + b"\xff\xda\x00\x08\x01" + jpeg[at + 5 : at + 7] + b"\x00\x3f\x00" + jpeg[at + 2 + length :]


def test_coefficients_count_where_a_jpeg_keeps_them() -> None:
    """1.2 Mpx of 4:4:4 take 4.9 MB in Pillow, which keeps RGB in four bytes, and 7.4 MB of coefficients."""
    photo = Image.effect_noise((1280, 960), 40).convert("RGB")
    baseline = encoded(photo, "JPEG", subsampling=0)
    assert load_image(baseline, max_memory=5_000_000).size == photo.size
    for kept in (encoded(photo, "JPEG", subsampling=0, progressive=True), in_scans(baseline)):
        with pytest.raises(ImageError, match=r"would take up to 12288000 bytes .*LASAGNA_MAX_IMAGE_MEMORY"):
            load_image(kept, max_memory=12_000_000)
    # what looks like a scan in a comment is none
    comment = b"\xff\xfe\x00\x0e\xff\xda\x00\x08\x01\x01\x00\x00\x3f\x00\x00\x00"
    assert load_image(baseline[:2] + comment + baseline[2:], max_memory=5_000_000).size == photo.size


@pytest.mark.parametrize(("limit", "words"), [("MEMORY", "bytes of memory"), ("PIXELS", "pixels"), ("BYTES", "bytes")])
def test_the_settings_hold_wherever_an_image_is_read(
    scene: Image.Image, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, limit: str, words: str
) -> None:
    """Also for training, evaluation and the Python API, which give no limits of their own."""
    path = tmp_path / "scene.png"
    path.write_bytes(encoded(scene))
    assert load_image(path).size == scene.size
    monkeypatch.setenv(f"LASAGNA_MAX_IMAGE_{limit}", "50")
    with pytest.raises(ImageError, match=rf"{words}.*LASAGNA_MAX_IMAGE_{limit}"):
        load_image(path)
    monkeypatch.setenv(f"LASAGNA_MAX_IMAGE_{limit}", "1000000")
    assert load_image(path).size == scene.size
    monkeypatch.setenv(f"LASAGNA_MAX_IMAGE_{limit}", "much")
    with pytest.raises(ConfigError, match=f"LASAGNA_MAX_IMAGE_{limit}"):
        load_image(path)
