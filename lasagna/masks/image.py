"""Reading an image file: the one place where that happens, so the one place where it can go wrong.

What always holds for the image that `load_image` returns:

- mode RGB, 8 bits, at least 1 x 1, and fully decoded: nothing is read from the file later;
- EXIF orientation is applied, so its size is the one that a browser (and Label Studio's editor) shows;
- it came from a file within the limits on bytes, pixels and memory for decoding (`lasagna.masks.image_memory`); all are
  checked from the header, before anything of that size is allocated;
- a file that is not an image, is cut short or cannot be opened has raised `ImageError` instead.

Odd modes: transparency is composited on white; of an animation or a multi-page file the first frame counts; samples of
more than 8 bits are scaled by their bit depth (see `_to_8_bits`), not clipped to white.
"""

import functools
import io
import math
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from lasagna.errors import ImageError
from lasagna.masks import heif
from lasagna.masks.image_memory import (
    READ_FORMATS,
    check_memory,
    check_pixels,
    decoding_bytes,
    header_size,
)
from lasagna.settings import Settings, variable

IMAGE_SUFFIXES = frozenset({
    ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".gif", ".bmp", ".dib", ".tif", ".tiff", ".webp", ".ppm", ".pgm",
    ".pbm", ".pnm", ".avif", ".tga",
    *(heif.SUFFIXES if heif.is_installed() else ()),
})  # fmt: skip
"""File name endings (lower case) that count as images when a folder is searched."""

_UNREAD = frozenset({
    ".3fr", ".arw", ".cr2", ".cr3", ".dcm", ".dng", ".eps", ".exr", ".hdr", ".ico", ".iiq", ".j2c", ".j2k", ".jp2",
    ".jpf", ".jpx", ".jxl", ".jxr", ".nef", ".nrw", ".orf", ".pef", ".psd", ".raf", ".raw", ".rw2", ".sr2", ".srw",
    ".svg", ".x3f", ".xcf",
})  # fmt: skip
UNREAD_SUFFIXES = (_UNREAD | heif.SUFFIXES) - IMAGE_SUFFIXES
"""Endings (lower case) of pictures that are not read: a search names what it passes over."""

ImageSource = str | os.PathLike[str] | bytes | BinaryIO | Image.Image

_pillow_limit_lock = threading.Lock()


def load_image(
    source: ImageSource,
    *,
    max_bytes: int | None = None,
    max_pixels: int | None = None,
    max_memory: int | None = None,
    name: str | None = None,
) -> Image.Image:
    """The image as RGB, upright, fully decoded.

    Args:
        source: A path, the content of a file as bytes, a binary file object at the start of the image, or a Pillow
            image, which is left as it is. (Pillow has cut the samples of RGB files of 16 bits to 8 where such an image
            was loaded before; give the path.)
        max_bytes: Largest file; None, here and below: as the settings say (LASAGNA_MAX_IMAGE_BYTES).
        max_pixels: Largest width * height.
        max_memory: Most bytes that decoding may take, as far as the header tells.
        name: What to call the image in errors; default: the path, or the file object's name.

    Raises:
        ImageError: The source cannot be read, is over a limit, or is not a complete image in a format we read.
        ConfigError: A limit in the environment is no number.
    """
    max_bytes = _limit("max_image_bytes") if max_bytes is None else max_bytes
    max_pixels = _limit("max_image_pixels") if max_pixels is None else max_pixels
    max_memory = _limit("max_image_memory") if max_memory is None else max_memory
    name = name if name is not None else _name_of(source)
    data = b""
    if isinstance(source, Image.Image):
        file = _deep_file(source)
        if file is not None:
            return load_image(file, max_bytes=max_bytes, max_pixels=max_pixels, max_memory=max_memory, name=name)
    else:
        data = source if isinstance(source, bytes) else read_image_bytes(source, max_bytes=max_bytes, name=name)
        check_bytes(len(data), max_bytes, name)
    # Decoders raise what they please on damaged data (OSError, SyntaxError, ValueError, struct.error, zlib.error, ...),
    # so everything but our own errors is the file's fault here.
    try:
        if (size := header_size(data)) is not None:
            check_pixels(size, max_pixels, name)
        with nullcontext(source) if isinstance(source, Image.Image) else _open(data) as image:
            check_pixels(image.size, max_pixels, name)
            check_memory(_needed(image), max_memory, name)
            deep = _deep_colours(image, data)
            image.load()
            orientation = _orientation(image)  # of a TIFF 1 now: Pillow and OpenCV turn those themselves
            return _turned(_to_rgb(image, is_ours=image is not source) if deep is None else deep, orientation)
    except ImageError:
        raise
    except UnidentifiedImageError as error:
        raise ImageError(f"{name} {_what_it_is(data)}") from error
    except MemoryError as error:
        raise ImageError(f"{name} does not fit into memory; scale it down") from error
    except Exception as error:
        raise ImageError(
            f"{name} is damaged or incomplete: decoding it failed with {str(error) or type(error).__name__!r}; "
            "copy or export it again"
        ) from error


def _limit(setting: str) -> int:
    """A limit of the settings, as the environment has it now."""
    return _limit_of(setting, os.environ.get(variable(setting), ""))


@functools.lru_cache(maxsize=16)
def _limit_of(setting: str, text: str) -> int:
    return int(getattr(Settings.load({variable(setting): text} if text else {}), setting))


def image_format(data: bytes) -> str:
    """What a file that was loaded is, as Pillow calls it in lower case: "jpeg", "png", ...; else "image"."""
    try:
        with _open(data) as image:
            return (image.format or "image").lower()
    except Exception:  # as in `load_image`
        return "image"


def read_image_bytes(
    source: str | os.PathLike[str] | BinaryIO, *, max_bytes: int | None = None, name: str | None = None
) -> bytes:
    """The content of an image file, not yet decoded; never more than `max_bytes` (default: the setting) are read.

    Raises:
        ImageError: It cannot be opened, is not a regular file, is empty or is over the limit.
    """
    name = name if name is not None else _name_of(source)
    max_bytes = _limit("max_image_bytes") if max_bytes is None else max_bytes
    try:
        if isinstance(source, str | os.PathLike):
            path = Path(source)
            if path.exists() and not path.is_file():  # reading a pipe or a device would wait for ever
                raise ImageError(f"{name} is not a file but a {'folder' if path.is_dir() else 'special file'}")
            with path.open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                check_bytes(size, max_bytes, name)
                data = file.read(max_bytes + 1)
        else:
            data = source.read(max_bytes + 1)
    except OSError as error:
        raise ImageError(f"{name} cannot be read: {error.strerror or error}") from error
    check_bytes(len(data), max_bytes, name)
    return data


def check_bytes(size: int, max_bytes: int, name: str) -> None:
    """Raises ImageError for a file of no bytes, or of more than the limit."""
    if size == 0:
        raise ImageError(f"{name} is empty (0 bytes)")
    if size > max_bytes:
        raise ImageError(
            f"{name} has more than {max_bytes} bytes, the limit (LASAGNA_MAX_IMAGE_BYTES); "
            "make the file smaller or raise the limit"
        )


def _name_of(source: ImageSource) -> str:
    if isinstance(source, Image.Image):
        return str(getattr(source, "filename", "") or "the image")
    if isinstance(source, bytes):
        return "the image"
    if isinstance(source, str | os.PathLike):
        return os.fsencode(source).decode("utf-8", "backslashreplace")
    return str(getattr(source, "name", "the image"))


@contextmanager
def _open(data: bytes) -> Iterator[Image.Image]:
    """Reads the header. Pillow's own limit, a process-wide variable that warns at one size and raises at twice that,
    is set aside meanwhile: `max_pixels` is checked right after, and before anything is decoded."""
    with _pillow_limit_lock:
        limit = Image.MAX_IMAGE_PIXELS
        Image.MAX_IMAGE_PIXELS = None
        try:
            if heif.is_heif(data):
                heif.register()
            Image.init()  # a build of Pillow may lack a format, and naming that one would fail
            image = Image.open(io.BytesIO(data), formats=[name for name in READ_FORMATS if name in Image.OPEN])
        finally:
            Image.MAX_IMAGE_PIXELS = limit
    with image:
        yield image


def _what_it_is(data: bytes) -> str:
    """Why a file is not read, by its first bytes, in words that follow its name."""
    if heif.is_heif(data):
        fix = "convert it to JPEG" if heif.register() else f"{heif.FIX}; or convert it to JPEG"
        return f"is HEIC or HEIF that is not read here, or damaged; {fix}"
    for start, at, kind in _SIGNATURES:
        if data[at : at + len(start)] == start:
            return (
                f"is not an image that is read here but {kind}; convert it to JPEG, PNG, or a TIFF of 8 or 16 bits, "
                "grey or RGB"
            )
    return (
        f"is not an image in a format that is read here: it starts with {data[:12]!r}; "
        "expected JPEG, PNG, WebP, TIFF, GIF, BMP or a similar format"
    )


_TIFF = "a TIFF of another kind (float or other samples in several bands, or another number of bands)"
_SIGNATURES = (
    (b"II*\0", 0, _TIFF),
    (b"MM\0*", 0, _TIFF),
    (b"II+\0", 0, _TIFF),
    (b"MM\0+", 0, _TIFF),
    (b"\0\0\1\0", 0, "an icon (ICO)"),
    (b"\0\0\0\x0cjP  ", 0, "JPEG 2000"),
    (b"\xff\x4f\xff\x51", 0, "JPEG 2000"),
    (b"\xff\x0a", 0, "JPEG XL"),
    (b"\0\0\0\x0cJXL ", 0, "JPEG XL"),
    (b"8BPS", 0, "a Photoshop file"),
    (b"v/1\x01", 0, "OpenEXR"),
    (b"DICM", 128, "DICOM"),
    (b"%PDF", 0, "a PDF document"),
    (b"<svg", 0, "an SVG drawing"),
    (b"<?xml", 0, "an XML document, perhaps an SVG drawing"),
)
"""First bytes, where they stand, and what the file then is."""


def _deep_file(image: Image.Image) -> bytes | None:
    """The file of a Pillow image that is not loaded yet and has 16 bits for each colour, which Pillow would cut."""
    file = getattr(image, "fp", None)
    if file is None or not _has_deep_colours(image):
        return None
    place = file.tell()
    file.seek(0)
    data: bytes = file.read()
    file.seek(place)
    return data


def _has_deep_colours(image: Image.Image) -> bool:
    tiles = getattr(image, "tile", None) or []
    return image.mode in ("RGB", "RGBA", "LA") and any(";16" in str(tile[3]) for tile in tiles)


def _deep_colours(image: Image.Image, data: bytes) -> Image.Image | None:
    """The image as RGB where it has 16 bits for each colour: Pillow would keep the upper 8 of them, and 10- or 12-bit
    data would be nearly black. None where Pillow is right, or OpenCV cannot read it."""
    if not data or not _has_deep_colours(image):
        return None
    import cv2

    try:
        samples = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error:
        return None
    if samples is None or samples.dtype != np.uint16 or samples.ndim != 3:
        return None
    image.load()
    if samples.shape[:2] != image.size[::-1]:
        return None
    scale = _scale_of([samples[..., :3]])
    colours = Image.new("RGB", image.size, "white")
    for top in range(0, image.height, rows := _rows(image.width)):
        part = samples[top : top + rows]
        strip = Image.fromarray(np.ascontiguousarray(scale(part[..., :3])[..., ::-1]))
        alpha = Image.fromarray((part[..., 3] // 256).astype(np.uint8)) if samples.shape[2] == 4 else None
        colours.paste(strip, (0, top), alpha)
    return colours


def _orientation(image: Image.Image) -> int:
    """EXIF's: 1 is upright; so is what says nothing, or nonsense."""
    try:
        orientation = image.getexif().get(0x0112, 1)
    except Exception:  # damaged EXIF data: viewers ignore it, and show the image as it is stored
        return 1
    return orientation if orientation in range(2, 9) else 1


_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What makes an image of each EXIF orientation upright (Exif 2.32, 4.6.4, tag 274)."""


def _turned(image: Image.Image, orientation: int) -> Image.Image:
    return image.transpose(_TURNS[orientation]) if orientation in _TURNS else image


def _needed(image: Image.Image) -> int:
    """Bytes that decoding takes at most; for what is decoded already, none."""
    if getattr(image, "fp", None) is None:
        return 0
    # A PNG may say it behind its pixels, and Pillow would decode them to look.
    may_turn = image.format == "PNG" or _orientation(image) != 1
    return decoding_bytes(image, is_deep=_has_deep_colours(image), may_turn=may_turn)


def _to_rgb(image: Image.Image, *, is_ours: bool) -> Image.Image:
    """RGB, of any mode, made in strips; the image itself is left as it is, unless it is ours and RGB already.
    Orientation and colour profile were for the file."""
    if image.mode == "RGB" and not image.has_transparency_data:
        rgb = image if is_ours else image.copy()
        rgb.info = {}
        return rgb
    strips = [(0, top, image.width, min(top + _rows(image.width), image.height)) for top in _tops(image)]
    is_deep = image.mode.startswith("I") or image.mode == "F"
    scale = _scale_of(np.asarray(image.crop(box)) for box in strips) if is_deep else None
    rgb = Image.new("RGB", image.size, "white")
    for box in strips:
        strip = image.crop(box)
        if scale is not None:
            rgb.paste(Image.fromarray(scale(np.asarray(strip))).convert("RGB"), box)
        elif image.has_transparency_data:
            rgba = strip.convert("RGBA")
            rgb.paste(rgba, box, rgba.getchannel("A"))
        else:
            rgb.paste(strip.convert("RGB"), box)
    return rgb


_STRIP_PIXELS = 1 << 20


def _rows(width: int) -> int:
    return max(1, _STRIP_PIXELS // width)


def _tops(image: Image.Image) -> range:
    return range(0, image.height, _rows(image.width))


def _scale_of(strips: Iterable[NDArray[np.generic]]) -> Callable[[NDArray[np.generic]], NDArray[np.uint8]]:
    """What turns samples of more than 8 bits, of any shape, into uint8.

    Integers are divided by the full scale of the smallest bit depth of at least 8 that holds the largest sample, so
    that 10-, 12- and 14-bit camera data in a 16-bit file is neither black nor clipped, and 8-bit values stay as they
    are. Floats in [0, 1] are scaled by 255. Anything else (negative or larger floats) is stretched from its minimum
    to its maximum. NaN and infinities become black.

    Args:
        strips: All samples of the image.
    """
    low, high, kind = math.inf, -math.inf, "u"
    for strip in strips:
        kind = strip.dtype.kind
        values = strip if kind in "ui" else _finite(strip)
        low, high = min(low, float(values.min())), max(high, float(values.max()))
    shift, times, over = 0.0, 255.0, 1.0
    if low < 0 or (kind == "f" and high > 255):
        shift, over = low, (high - low if high > low else 1.0)
    elif kind == "f":
        times = 255.0 if high <= 1 else 1.0
    else:
        over = 2.0 ** max(8, math.ceil(math.log2(high + 1))) - 1
    return lambda samples: np.rint((_finite(samples) - shift) * times / over).clip(0, 255).astype(np.uint8)


def _finite(samples: NDArray[np.generic]) -> NDArray[np.float64]:
    return np.nan_to_num(samples.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)
