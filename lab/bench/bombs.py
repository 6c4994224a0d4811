"""`lasagna bench bombs`: the most memory that reading each of a corpus of hostile or merely large images takes.

What always holds: every image is within the limits on bytes and pixels; each is read in a process of its own, whose
address space is bounded, so that what takes everything ends that process and nothing else.
"""

import io
import json
import os
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import click

from lab.bench.command import Row, report

BOUND = 8 * 1024**3
"""Bytes of address space of the process that reads an image."""

_READER = """
import json, resource, sys
from pathlib import Path
import cv2, numpy
from PIL import Image
from lasagna.errors import ImageError
try:
    from lasagna.masks.image import load_image
except ModuleNotFoundError:  # before 1.0
    from lasagna.image import load_image

Image.init()
resource.setrlimit(resource.RLIMIT_AS, (int(sys.argv[2]),) * 2)
Path("/proc/self/clear_refs").write_text("5")

def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM:")).split()[1])

before = peak()
try:
    image = load_image(sys.argv[1], **json.loads(sys.argv[3]))
    outcome = f"read, {image.width} x {image.height}"
except (ImageError, MemoryError) as error:
    outcome = str(error) or "MemoryError"
print(json.dumps({"outcome": outcome, "bytes": 1024 * (peak() - before)}))
"""


_ANNOTATION = """
import json, resource, sys, tempfile, time
from pathlib import Path
import numpy as np
import pycocotools.mask
from PIL import Image
try:
    from training.data.sources.label_studio import LabelStudioExport
except ModuleNotFoundError:  # before 1.0
    from training.sources.label_studio import LabelStudioExport

def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM:")).split()[1])

with tempfile.TemporaryDirectory() as folder:
    root, rng = Path(folder), np.random.default_rng(0)
    (root / "images").mkdir()
    Image.new("RGB", (4000, 3000)).save(root / "images" / "a.png")
    labels = "".join(f'<Label value="{name}"/>' for name in "abcde")
    (root / "label_config.xml").write_text(
        f'<View><Image name="image" value="$image"/><RectangleLabels name="box" toName="image">{labels}'
        "</RectangleLabels></View>"
    )
    regions = []
    for number in range(300):
        corner, extent = rng.uniform(0, 70, 2), rng.uniform(1, 30, 2)
        value = {"x": corner[0], "y": corner[1], "width": extent[0], "height": extent[1]}
        value["rectanglelabels"] = ["abcde"[number % 5]]
        regions.append({"id": str(number), "from_name": "box", "to_name": "image", "type": "rectanglelabels",
                        "original_width": 4000, "original_height": 3000, "value": value})
    task = {"id": 1, "data": {"image": "a.png"}, "annotations": [{"id": 1, "result": regions}]}
    (root / "train.json").write_text(json.dumps([task]))
    [record] = LabelStudioExport(root, "train")
    Path("/proc/self/clear_refs").write_text("5")
    before, began = peak(), time.perf_counter()
    record.read()
    seconds = time.perf_counter() - began
print(json.dumps({"outcome": f"read in {seconds:.1f} s", "bytes": 1024 * (peak() - before)}))
"""


# --- The corpus -------------------------------------------------------------------------------------------------------


def png(side: int, bits: int, colour: int, extra: bytes = b"") -> bytes:
    """A black PNG, written row by row. `colour` is IHDR's type: 0 grey, 2 RGB, 3 palette, 6 RGBA."""
    row = bytes(1 + -(-side * bits * {0: 1, 2: 3, 3: 1, 6: 4}[colour] // 8))
    packer = zlib.compressobj(9)
    packed = b"".join([packer.compress(row) for _ in range(side)] + [packer.flush()])

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, bits, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + extra + chunk(b"IDAT", packed) + chunk(b"IEND", b"")


def palette_png(side: int) -> bytes:
    """A palette whose first colour is transparent."""
    content = b"PLTE" + bytes(3)
    plte = struct.pack(">I", 3) + content + struct.pack(">I", zlib.crc32(content))
    content = b"tRNS" + b"\0"
    return png(side, 8, 3, plte + struct.pack(">I", 1) + content + struct.pack(">I", zlib.crc32(content)))


def ico(side: int) -> bytes:
    """An icon that holds a PNG, which Pillow decodes on opening, its limit on pixels set aside."""
    inner = png(side, 8, 6)
    return struct.pack("<HHHBBBBHHII", 0, 1, 1, 0, 0, 0, 0, 1, 32, len(inner), 22) + inner


def tiff(size: int, tile: int, *, repeated: bool = False) -> bytes:
    """A grey TIFF of one deflated tile; its pixels are not all there, as little as they are looked at.

    Args:
        size: Width and height.
        tile: Width and length of the tile.
        repeated: Whether the tile's sides are there twice, harmless the second time.
    """
    packed = zlib.compress(bytes(1024))
    tags = [(256, size), (257, size), (258, 8), (259, 8), (262, 1), (277, 1), (322, tile)]
    tags += [(322, 16), (323, tile), (323, 16)] if repeated else [(323, tile)]
    tags += [(324, 8), (325, len(packed))]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    start = 8 + len(packed)
    return b"II*\0" + struct.pack("<I", start) + packed + struct.pack("<H", len(tags)) + entries + bytes(4)


def jpeg_2000(side: int) -> bytes:
    """A codestream whose precincts have one pixel each: each takes a few hundred bytes before anything is decoded."""
    siz = struct.pack(">HHIIIIIIIIH", 41, 0, side, side, 0, 0, side, side, 0, 0, 1) + b"\x07\1\1"
    cod = b"\xff\x52" + struct.pack(">H", 13) + bytes([1, 0, 0, 1, 0, 0, 0, 0, 0, 1, 0])
    qcd = b"\xff\x5c\x00\x04\x40\x40"
    sot = b"\xff\x90" + struct.pack(">HHIBB", 10, 0, 0, 0, 1)
    return b"\xff\x4f\xff\x51" + siz + cod + qcd + sot + b"\xff\x93" + b"\x80" * 100 + b"\xff\xd9"


def bmp(side: int) -> bytes:
    """Run lengths: nothing but the mark of the end."""
    head = struct.pack("<IiiHHIIiiII", 40, side, side, 1, 8, 1, 2, 0, 0, 1, 1)
    return b"BM" + struct.pack("<IHHI", 60, 0, 0, 58) + head + bytes(4) + b"\0\1"


def encoded(format: str, mode: str = "RGB", **options: object) -> Callable[[int], bytes]:
    """A file of one colour as Pillow writes it."""

    def build(side: int) -> bytes:
        from PIL import Image

        file = io.BytesIO()
        picture = Image.new(mode, (side, side), 200 if len(mode) == 1 else (200, 30, 40, 9)[: len(mode)])
        picture.save(file, format, **options)
        return file.getvalue()

    return build


def deep_tiff(side: int) -> bytes:
    """Sixteen bits for each colour."""
    import cv2
    import numpy as np

    return cv2.imencode(".tiff", np.full((side, side, 3), 40_000, np.uint16))[1].tobytes()


CORPUS: dict[str, tuple[int, Callable[[int], bytes]]] = {
    "ICO with a large PNG": (13_000, ico),
    "TIFF 16 x 16, a tile of 30000 x 30000": (30_000, lambda side: tiff(16, side)),
    "the same, its tags twice": (30_000, lambda side: tiff(16, side, repeated=True)),
    "JPEG 2000, precincts of one pixel": (6_000, jpeg_2000),
    "PNG, 16-bit grey": (13_000, lambda side: png(side, 16, 0)),
    "PNG, 16-bit RGB": (13_000, lambda side: png(side, 16, 2)),
    "PNG, 16-bit RGBA, smaller": (8_000, lambda side: png(side, 16, 6)),
    "PNG, 8-bit RGB": (13_000, lambda side: png(side, 8, 2)),
    "PNG, 8-bit RGBA": (13_000, lambda side: png(side, 8, 6)),
    "PNG, palette, transparent": (13_000, palette_png),
    "PNG, one bit": (13_000, lambda side: png(side, 1, 0)),
    "BMP, run lengths": (13_000, bmp),
    "JPEG, progressive, 4:4:4": (13_000, encoded("JPEG", quality=50, subsampling=0, progressive=True)),
    "JPEG, progressive, CMYK": (10_000, encoded("JPEG", "CMYK", quality=50, progressive=True)),
    "TIFF, one strip, deflated": (13_000, encoded("TIFF", compression="tiff_adobe_deflate", strip_size=1 << 30)),
    "GIF": (13_000, encoded("GIF", "P")),
    "TIFF, 16-bit RGB": (8_000, deep_tiff),
    "WebP, lossless, transparent": (9_000, encoded("WEBP", "RGBA", lossless=True, method=0, quality=0)),
    "WebP": (9_000, encoded("WEBP", method=0, quality=50)),
    "WebP, lossless, larger": (12_000, encoded("WEBP", "RGBA", lossless=True, method=0, quality=0)),
    "AVIF": (8_000, encoded("AVIF", speed=10)),
}
"""Name of an image: its side, or that of what is hidden in it, and what makes it."""


def build(name: str, path: Path) -> None:
    """Writes an image of the corpus."""
    side, make = CORPUS[name]
    path.write_bytes(make(side))


def read_alone(path: Path, code: Path | None = None, limit: int | None = None) -> tuple[str, int | None]:
    """How reading an image ends, in words, and the most bytes that it took; None where the process did not live.

    Args:
        path: The image.
        code: A folder whose packages are used instead of these.
        limit: Bytes that decoding may take; default: what is the default there.
    """
    limits = json.dumps({} if limit is None else {"max_memory": limit})
    return _measured([_READER, str(path), str(BOUND), limits], code)


def _measured(program: list[str], code: Path | None) -> tuple[str, int | None]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    if code is not None:
        environment["PYTHONPATH"] = str(code.resolve())
    command = [sys.executable, "-c", *program]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=code)
    if done.returncode != 0:
        return f"the process ended ({done.returncode})", None
    found = json.loads(done.stdout)
    return found["outcome"], found["bytes"]


def _rows(code: Path | None) -> Iterator[Row]:
    from rich.console import Console

    from lasagna.progress import progress_bar

    with TemporaryDirectory() as folder, progress_bar(Console(stderr=True), "images", len(CORPUS)) as advance:
        for number, name in enumerate(CORPUS):
            path = Path(folder, f"{number}.bomb")
            # In a process of its own: what the encoder needed would be counted otherwise.
            subprocess.run(
                [
                    sys.executable,
                    "-c",
                    f"from lab.bench import bombs; bombs.build({name!r}, bombs.Path({str(path)!r}))",
                ],
                check=True,
            )
            outcome, most = read_alone(path, code)
            yield {
                "image": name,
                "bytes": path.stat().st_size,
                "outcome": outcome.replace(str(path), "it").split(";")[0][:90],
                "MB_at_most": None if most is None else round(most / 1e6),
            }
            path.unlink()
            advance()
    outcome, most = _measured([_ANNOTATION], code)
    yield {
        "image": "annotation of 300 rectangles on 4000 x 3000",
        "bytes": 0,
        "outcome": outcome,
        "MB_at_most": None if most is None else round(most / 1e6),
    }


@click.command(
    epilog="""\b
Examples:
  lasagna bench bombs
  lasagna bench bombs --code ../older-checkout
"""
)
@click.option(
    "--code",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="A checkout whose code reads the images, to compare with; default: this one.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of the table.")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="Write the JSON to a file too.")
def bombs(code: Path | None, as_json: bool, out: Path | None) -> None:
    """Read images that are made to take memory, each within the limits on bytes and pixels.

    MB_at_most: the peak of the resident set beyond what Python and the libraries take; "-" where the process ended,
    since it has 8 GiB of address space.
    """
    report("bombs", {"limit": "8 GiB"}, list(_rows(code)), device="cpu", as_json=as_json, out=out)
