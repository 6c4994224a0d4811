"""Reading an image file: the one place where that happens, so the one place where it can go wrong.

What always holds for the image that `load_image` returns:

- mode RGB, 8 bits, at least 1 x 1, and fully decoded: nothing is read from the file later;
- EXIF orientation is applied, so its size is the one that a browser (and Label Studio's editor) shows;
- it came from a file within the limits on bytes and pixels; both are checked before anything of that size is allocated;
- a file that is not an image, is cut short or cannot be opened has raised `ImageError` instead.

Odd modes: transparency is composited on white; of an animation or a multi-page file the first frame counts; samples of
more than 8 bits are scaled by their bit depth (see `_grey_to_8_bits`), not clipped to white.
"""

import io
import math
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from lasagna.errors import ImageError

DEFAULT_MAX_BYTES = 64 * 1024 * 1024
DEFAULT_MAX_PIXELS = 178_956_970

# Pillow also opens EPS (by running Ghostscript), fonts, PDF-like and scientific containers: none of them is a photo.
_FORMATS = ("JPEG", "PNG", "GIF", "BMP", "DIB", "TIFF", "WEBP", "PPM", "JPEG2000", "AVIF", "TGA", "ICO")

IMAGE_SUFFIXES = frozenset({
    ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".gif", ".bmp", ".dib", ".tif", ".tiff", ".webp", ".ppm", ".pgm",
    ".pbm", ".pnm", ".jp2", ".j2k", ".avif", ".tga",
})  # fmt: skip
"""File name endings (lower case) that count as images when a folder is searched."""

UNREAD_SUFFIXES = frozenset({
    ".3fr", ".arw", ".cr2", ".cr3", ".dcm", ".dng", ".eps", ".exr", ".hdr", ".iiq", ".jxl", ".jxr", ".nef", ".nrw",
    ".orf", ".pef", ".psd", ".raf", ".raw", ".rw2", ".sr2", ".srw", ".svg", ".x3f", ".xcf",
})  # fmt: skip
"""Endings (lower case) of pictures that are not read: a search names what it passes over."""

ImageSource = str | os.PathLike[str] | bytes | BinaryIO

_pillow_limit_lock = threading.Lock()


def load_image(
    source: ImageSource,
    *,
    max_bytes: int = DEFAULT_MAX_BYTES,
    max_pixels: int = DEFAULT_MAX_PIXELS,
    name: str | None = None,
) -> Image.Image:
    """The image as RGB, upright, fully decoded.

    Args:
        source: A path, the content of a file as bytes, or a binary file object at the start of the image.
        max_bytes: Largest file.
        max_pixels: Largest width * height.
        name: What to call the image in errors; default: the path, or the file object's name.

    Raises:
        ImageError: The source cannot be read, is over a limit, or is not a complete image in a format we read.
    """
    name = name if name is not None else _name_of(source)
    data = source if isinstance(source, bytes) else read_image_bytes(source, max_bytes=max_bytes, name=name)
    check_bytes(len(data), max_bytes, name)
    # Decoders raise what they please on damaged data (OSError, SyntaxError, ValueError, struct.error, zlib.error, ...),
    # so everything but our own errors is the file's fault here.
    try:
        with _open(data) as image:
            width, height = image.size
            if width * height > max_pixels:
                raise ImageError(
                    f"{name} is {width} x {height} = {width * height} pixels; the limit is {max_pixels} "
                    "(LASAGNA_MAX_IMAGE_PIXELS); scale it down or raise the limit"
                )
            return _to_rgb(_upright(image))
    except ImageError:
        raise
    except UnidentifiedImageError as error:
        raise ImageError(
            f"{name} is not an image in a format that is read here: it starts with {data[:12]!r}; "
            "expected JPEG, PNG, WebP, TIFF, GIF, BMP or a similar format"
        ) from error
    except MemoryError as error:
        raise ImageError(f"{name} does not fit into memory; scale it down") from error
    except Exception as error:
        raise ImageError(
            f"{name} is damaged or incomplete: decoding it failed with {str(error) or type(error).__name__!r}; "
            "copy or export it again"
        ) from error


def read_image_bytes(
    source: str | os.PathLike[str] | BinaryIO, *, max_bytes: int = DEFAULT_MAX_BYTES, name: str | None = None
) -> bytes:
    """The content of an image file, not yet decoded; never more than `max_bytes` are read.

    Raises:
        ImageError: It cannot be opened, is not a regular file, is empty or is over the limit.
    """
    name = name if name is not None else _name_of(source)
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
            Image.init()  # a build of Pillow may lack a format, and naming that one would fail
            image = Image.open(io.BytesIO(data), formats=[name for name in _FORMATS if name in Image.OPEN])
        finally:
            Image.MAX_IMAGE_PIXELS = limit
    with image:
        yield image


def _upright(image: Image.Image) -> Image.Image:
    image.load()
    try:
        orientation = image.getexif().get(0x0112, 1)
    except Exception:  # damaged EXIF data: viewers ignore it, and show the image as it is stored
        return image
    if orientation not in range(2, 9):
        return image
    return ImageOps.exif_transpose(image)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        return Image.fromarray(_grey_to_8_bits(np.asarray(image))).convert("RGB")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        background = Image.new("RGB", image.size, "white")
        background.paste(rgba, mask=rgba.getchannel("A"))
        return background
    if image.mode == "RGB":
        image.info = {}  # orientation and colour profile were for the file, not for what is handed on
        return image.copy()
    return image.convert("RGB")


def _grey_to_8_bits(grey: NDArray[np.generic]) -> NDArray[np.uint8]:
    """Grey samples of more than 8 bits, (h, w), as uint8.

    Integers are divided by the full scale of the smallest bit depth of at least 8 that holds the largest sample, so
    that 10-, 12- and 14-bit camera data in a 16-bit file is neither black nor clipped, and 8-bit values stay as they
    are. Floats in [0, 1] are scaled by 255. Anything else (negative or larger floats) is stretched from its minimum
    to its maximum. NaN and infinities become black.
    """
    values = np.nan_to_num(grey.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)
    low, high = float(values.min()), float(values.max())
    if low < 0 or (grey.dtype.kind == "f" and high > 255):
        scaled = (values - low) * 255 / (high - low) if high > low else np.zeros_like(values)
    elif grey.dtype.kind == "f":
        scaled = values * 255 if high <= 1 else values
    else:
        bits = max(8, math.ceil(math.log2(high + 1)))
        scaled = values * 255 / (2**bits - 1)
    return np.rint(scaled).clip(0, 255).astype(np.uint8)
