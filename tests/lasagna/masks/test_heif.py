"""HEIC, the photos of phones: real files, made here, upright, within the limits, through every door that takes photos;
and what is said where no package reads them."""

import io
import json
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pillow_heif
import pytest
from click.testing import CliRunner
from PIL import Image, ImageOps

from lasagna import Lasagna
from lasagna.annotate.archives import close_archives
from lasagna.commands.cli import main
from lasagna.errors import ImageError
from lasagna.masks import heif
from lasagna.masks.image import image_format, load_image


def heic(image: Image.Image, orientation: int = 1, **options: object) -> bytes:
    """An image as a phone stores it: turned in the file, and a note of EXIF that says how it was held."""
    heif.register()
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = io.BytesIO()
    pillow_heif.from_pillow(image).save(file, quality=95, chroma="444", exif=exif.tobytes(), **options)
    return file.getvalue()


@pytest.fixture(scope="module")
def scene() -> Image.Image:
    """120 x 80, smooth, no two corners alike, so that every flip and turn shows."""
    rows, columns = np.mgrid[:80, :120]
    pixels = np.stack([columns * 2, rows * 3, 255 - columns - rows], axis=-1)
    return Image.fromarray(pixels.astype(np.uint8))


def close(found: Image.Image, expected: Image.Image) -> bool:
    difference = np.abs(np.asarray(found, dtype=int) - np.asarray(expected, dtype=int))
    return found.mode == "RGB" and found.size == expected.size and float(difference.max()) <= 12


@pytest.mark.parametrize("orientation", range(1, 9))
def test_it_is_upright_and_turned_once(orientation: int, scene: Image.Image) -> None:
    """As the same pixels in a JPEG with this orientation are shown."""
    jpeg = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = orientation
    scene.save(jpeg, "JPEG", quality=98, subsampling=0, exif=exif.tobytes())
    with Image.open(jpeg) as stored:
        expected = ImageOps.exif_transpose(stored)
    found = load_image(heic(scene, orientation))
    assert close(found, expected)
    assert close(load_image(Image.open(io.BytesIO(heic(scene, orientation)))), expected), "a Pillow image, not loaded"


def test_transparency_is_on_white_and_of_several_pictures_the_main_one_counts(scene: Image.Image) -> None:
    clear = scene.convert("RGBA")
    clear.putalpha(0)
    assert close(load_image(heic(clear)), Image.new("RGB", scene.size, "white"))
    several, file = pillow_heif.from_pillow(scene), io.BytesIO()
    several.add_from_pillow(Image.new("RGB", (40, 40)))
    several.save(file, quality=95, chroma="444")
    assert close(load_image(file.getvalue()), scene)


def test_sixteen_bits(scene: Image.Image) -> None:
    deep = (np.asarray(scene).astype(np.uint16) << 8).tobytes()
    file = io.BytesIO()
    pillow_heif.from_bytes("RGB;16", scene.size, deep).save(file, quality=95, chroma="444")
    assert close(load_image(file.getvalue()), scene)


def test_limits_hold_before_anything_is_decoded(scene: Image.Image) -> None:
    data = heic(scene)
    with pytest.raises(ImageError, match=r"photo is 120 x 80 = 9600 pixels; the limit is 9599"):
        load_image(data, max_pixels=9599, name="photo")
    with pytest.raises(ImageError, match=r"photo would take up to \d+ bytes .*LASAGNA_MAX_IMAGE_MEMORY"):
        load_image(data, max_memory=9600 * 12, name="photo")
    assert load_image(data, max_memory=9600 * 40).size == (120, 80)


_PEAK = """
import resource, sys
from PIL import Image
from lasagna.masks.image import load_image
from lasagna.masks.image_memory import decoding_bytes
import pillow_heif, cv2
Image.init()
data = open(sys.argv[1], "rb").read()
load_image(open(sys.argv[2], "rb").read())
open("/proc/self/clear_refs", "w").write("5")
def peak():
    return int([line for line in open("/proc/self/status") if line.startswith("VmHWM")][0].split()[1]) * 1024
before = peak()
try:
    print(load_image(data, max_memory=1 << 40).size)
except Exception as error:
    print(error)
print(peak() - before)
"""


def test_the_bound_on_memory_is_one(scene: Image.Image, tmp_path: Path) -> None:
    """Of a large photo with all that costs: 16 bits, alpha, a turn. And a file whose header says less is refused."""
    small, large, lying = (tmp_path / name for name in ("small.heic", "large.heic", "lying.heic"))
    small.write_bytes(heic(scene))
    width, height = 2400, 1800
    pixels = np.random.default_rng(0).integers(0, 1 << 16, (height // 8, width // 8, 4), dtype=np.uint16)
    deep = pixels.repeat(8, 0).repeat(8, 1).tobytes()
    exif = Image.Exif()
    exif[0x0112] = 6
    pillow_heif.from_bytes("RGBA;16", (width, height), deep).save(large, quality=60, chroma="444", exif=exif.tobytes())
    data = large.read_bytes()
    place = data.index(b"ispe") + 8
    assert data[place : place + 8] == width.to_bytes(4) + height.to_bytes(4)
    lying.write_bytes(data.replace(data[place : place + 8], (64).to_bytes(4) * 2))

    def measured(path: Path) -> tuple[str, int]:
        run = subprocess.run([sys.executable, "-c", _PEAK, path, small], capture_output=True, text=True, check=True)
        said, taken = run.stdout.splitlines()
        return said, int(taken)

    said, taken = measured(large)
    assert said == f"({height}, {width})"
    assert taken < 32 * width * height
    said, taken = measured(lying)
    assert "is damaged or incomplete" in said
    assert taken < 2 * width * height


def test_every_door_takes_them(
    scene: Image.Image, tmp_path: Path, random_checkpoint: Path, photos: dict[str, Path]
) -> None:
    with Image.open(photos["cat"]) as cat:
        data = heic(cat.convert("RGB").resize((150, 100)), orientation=6)
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "IMG_0001.HEIC").write_bytes(data)
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        archive.writestr("IMG_0001.HEIC", data)
    model = Lasagna.from_pretrained(str(random_checkpoint), device="cpu")
    asked = ["a", "b", "c", "d"]
    answers = [model.segment(source, asked) for source in (data, folder / "IMG_0001.HEIC", load_image(data))]
    assert {answer.size for answer in answers} == {(150, 100)}
    for source in (folder, tmp_path / "photos.zip"):
        out = tmp_path / f"out-{source.stem}{source.suffix}"
        words = ["annotate", str(source), "--labels", ",".join(asked), "--model", str(random_checkpoint)]
        done = CliRunner().invoke(main, [*words, "--out", str(out)])
        assert done.exit_code == 0, done.output
        [image] = json.loads((out / "coco.json").read_text())["images"]
        assert (image["file_name"], image["width"], image["height"]) == ("IMG_0001.HEIC", 100, 150)
        with Image.open(out / "masks" / "IMG_0001.png") as mask:
            assert mask.size == (100, 150)
    close_archives()


def test_what_a_snapshot_calls_it(scene: Image.Image) -> None:
    assert image_format(heic(scene)) == "heif"


@pytest.mark.parametrize("brand", [b"heic", b"heix", b"mif1", b"msf1"])
def test_damaged_ones(brand: bytes, scene: Image.Image) -> None:
    with pytest.raises(ImageError, match=r"photo is HEIC or HEIF that is not read here, or damaged; convert"):
        load_image(b"\0\0\0\x1cftyp" + brand + bytes(64), name="photo")
    data = heic(scene)
    with pytest.raises(ImageError, match="photo is"):
        load_image(data[: len(data) // 2], name="photo")


_WITHOUT = """
import sys
sys.modules["pillow_heif"] = sys.modules["pi_heif"] = None  # as where neither is installed
from lasagna.commands.cli import main
sys.argv[0] = "lasagna"
main()
"""


def test_without_the_extra_they_are_named_with_the_fix(
    scene: Image.Image, tmp_path: Path, random_checkpoint: Path
) -> None:
    scene.save(tmp_path / "a.jpg")
    (tmp_path / "b.heic").write_bytes(heic(scene))
    (tmp_path / "c.HIF").write_bytes(heic(scene))

    def annotate(path: Path, out: str) -> tuple[int, str]:
        words = ["annotate", path, "--labels", "a", "--model", random_checkpoint, "--out", tmp_path / out]
        done = subprocess.run([sys.executable, "-c", _WITHOUT, *words], capture_output=True, text=True, check=False)
        return done.returncode, " ".join((done.stdout + done.stderr).split())

    fix = "pip install 'lasagna-assist[heic]' reads HEIC and HEIF"
    code, said = annotate(tmp_path, "out")
    assert code == 0
    assert f"not read, for these formats are not: 1 x .heic, 1 x .hif ({fix})" in said
    code, said = annotate(tmp_path / "b.heic", "other")
    assert code != 0
    assert f"is HEIC or HEIF that is not read here, or damaged; {fix}; or convert it to JPEG" in said
