"""How much memory decoding an image takes at most, told from its header before anything of that size is allocated.

What always holds: the figure is an upper bound, per format, of what is allocated at once until the image is upright RGB
(the decoder's own buffers, the samples as they are stored, the result); `lasagna bench bombs` measures it. A format
whose decoder allocates by what the header does not say is not read at all: ICO (decoded by being opened), JPEG 2000
(180 bytes with precincts of one pixel take more than 8 GB), and whatever runs a program.
"""

from typing import BinaryIO, Literal

from PIL import Image

from lasagna.errors import ImageError

READ_FORMATS = ("JPEG", "PNG", "GIF", "BMP", "DIB", "TIFF", "WEBP", "PPM", "AVIF", "TGA", "HEIF")
"""Pillow's names of the formats whose memory is known from the header."""

_MODE_BYTES = {"1": 1, "L": 1, "P": 1}
_PIXEL_BYTES = 4  # Pillow keeps every other mode in four bytes, but 16-bit grey, which has two

_DECODER_BYTES = {
    "WEBP": 17,  # two canvases of RGBA, a lossless image's own, its alpha plane, the copy that Pillow takes
    "AVIF": 20,  # planes of up to 16 bits with alpha, film grain's copy, RGBA, the copy that Pillow takes
    "HEIF": 24,  # planes of up to 16 bits with alpha, the same once more to turn them, RGBA, the copy that Pillow takes
    "PPM": 4,  # decoded in Python into a buffer of its own
    "BMP": 2,
    "DIB": 2,
}
"""Bytes per pixel of a format's decoder beside Pillow's image; others have a row or so."""

_DEEP_BYTES = 12
"""Bytes per pixel of colours of 16 bits beside Pillow's image: four samples as OpenCV reads them, and RGB."""

_TILE_WIDTH, _TILE_LENGTH, _ROWS_PER_STRIP, _SAMPLES, _BITS, _PHOTOMETRIC = 322, 323, 278, 277, 258, 262
"""Tags of TIFF 6.0."""
_YCBCR = 6

_JPEG_BLOCK = 32
"""Pixels that the sides of a JPEG are rounded up to at most (8 of a block, times a sampling factor of 4)."""


def decoding_bytes(image: Image.Image, *, is_deep: bool, may_turn: bool) -> int:
    """Bytes that decoding takes at most.

    Args:
        image: Opened, not loaded.
        is_deep: Whether it has 16 bits for each colour.
        may_turn: Whether EXIF may say that it has to be turned, which takes a copy.
    """
    width, height = image.size
    pixels = width * height
    stored = 2 if image.mode.startswith("I;16") else _MODE_BYTES.get(image.mode, _PIXEL_BYTES)
    is_result = image.mode == "RGB" and not is_deep and "transparency" not in image.info
    result = 0 if is_result else _PIXEL_BYTES
    turned = _PIXEL_BYTES if may_turn else 0
    each = stored + result + turned + _DECODER_BYTES.get(image.format or "", 0) + (_DEEP_BYTES if is_deep else 0)
    return pixels * each + _buffers(image)


def header_size(data: bytes) -> tuple[int, int] | None:
    """Width and height of formats whose canvas Pillow allocates on opening (WebP), from the first bytes; else None.

    The container is described in RFC 9649, sections 2.5 to 2.7 and 3.4.
    """
    if data[:4] != b"RIFF" or data[8:12] != b"WEBP" or len(data) < 30:
        return None
    kind = data[12:16]
    if kind == b"VP8X":
        return int.from_bytes(data[24:27], "little") + 1, int.from_bytes(data[27:30], "little") + 1
    if kind == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    return int.from_bytes(data[26:28], "little") & 0x3FFF, int.from_bytes(data[28:30], "little") & 0x3FFF


def check_pixels(size: tuple[int, int], max_pixels: int, name: str) -> None:
    """Raises ImageError for an image of no pixel, or of more than the limit."""
    width, height = size
    if width * height > max_pixels:
        raise ImageError(
            f"{name} is {width} x {height} = {width * height} pixels; the limit is {max_pixels} "
            "(LASAGNA_MAX_IMAGE_PIXELS); scale it down or raise the limit"
        )
    if width * height == 0:
        raise ImageError(f"{name} has no pixel: it is {width} x {height}")


def check_memory(needed: int, max_memory: int, name: str) -> None:
    """Raises ImageError for an image that takes more bytes than the limit."""
    if needed > max_memory:
        raise ImageError(
            f"{name} would take up to {needed} bytes of memory to decode; the limit is {max_memory} "
            "(LASAGNA_MAX_IMAGE_MEMORY); save it with fewer pixels, 8 bits for each colour and smaller tiles, "
            "or raise the limit"
        )


def _buffers(image: Image.Image) -> int:
    """Bytes of what a decoder keeps beside the pixels: the coefficients of a JPEG of several scans, a TIFF's tile or
    strip."""
    width, height = image.size
    if image.format in ("JPEG", "MPO"):
        if not _keeps_coefficients(image):
            return 0
        layers = [(h, v) for _, h, v, _ in getattr(image, "layer", [])] or [(1, 1)] * 4
        most = max(h for h, _ in layers) * max(v for _, v in layers)
        rounded = _rounded(width) * _rounded(height)
        return 2 * rounded * sum(h * v for h, v in layers) // most
    if image.format == "TIFF":
        _refuse_repeated_tags(image.fp)  # type: ignore[attr-defined]
        tags = getattr(image, "tag_v2", {})
        bits = tags.get(_BITS, 8)
        deepest = max(bits if isinstance(bits, tuple) else (bits,), default=8)
        # libtiff decodes YCbCr into four bytes for each pixel
        is_ycbcr = tags.get(_PHOTOMETRIC) == _YCBCR
        each = max(4 * is_ycbcr, int(tags.get(_SAMPLES, 1)) * -(-int(deepest) // 8))
        tile = abs(int(tags.get(_TILE_WIDTH, 0)) * int(tags.get(_TILE_LENGTH, 0)))
        strip = width * min(height, abs(int(tags.get(_ROWS_PER_STRIP, height))))
        return each * max(tile, strip)
    return 0


def _keeps_coefficients(image: Image.Image) -> bool:
    """Whether libjpeg keeps all coefficients of a JPEG: where it is progressive, or its first scan has not all of its
    components, so that more scans have to follow (`initial_setup` in jdinput.c); else it decodes row by row."""
    if image.info.get("progressive"):
        return True
    file = image.fp  # type: ignore[attr-defined]
    place = file.tell()
    file.seek(2)
    try:
        while (marker := _next_marker(file)) != _SOS:
            if marker in _ALONE:
                continue
            file.seek(int.from_bytes(file.read(2), "big") - 2, 1)
        components = file.read(3)[2]
    except (ValueError, IndexError, OSError):
        return True  # whatever it is, what it may take is counted
    finally:
        file.seek(place)
    return bool(components < len(getattr(image, "layer", ())) or not getattr(image, "layer", ()))


_SOS, _ALONE = 0xDA, frozenset({0x01, 0xD8, *range(0xD0, 0xD8)})
"""Markers of ITU-T T.81, table B.1: start of a scan, and those that no length follows."""


def _next_marker(file: BinaryIO) -> int:
    """The next marker of a JPEG; what stands before it is passed over, as in libjpeg. Raises IndexError at the end."""
    while True:
        while file.read(1)[0] != 0xFF:
            pass
        while (marker := file.read(1)[0]) == 0xFF:
            pass
        if marker:
            return marker


def _rounded(side: int) -> int:
    return -(-side // _JPEG_BLOCK) * _JPEG_BLOCK


def _refuse_repeated_tags(file: BinaryIO) -> None:
    """Of a tag that is there twice libtiff takes the first and Pillow the last, so that what is checked here would not
    be what is decoded. Raises ValueError."""
    place = file.tell()
    file.seek(0)
    head = file.read(16)
    order: Literal["little", "big"] = "little" if head[:2] == b"II" else "big"
    is_big = 43 in (head[2], head[3])
    start, counted, entry = (head[8:16], 8, 20) if is_big else (head[4:8], 2, 12)
    file.seek(int.from_bytes(start, order))
    count = int.from_bytes(file.read(counted), order)
    entries = file.read(min(count, 1 << 16) * entry)
    file.seek(place)
    tags = [entries[at : at + 2] for at in range(0, len(entries), entry)]
    if len(set(tags)) < len(tags):
        raise ValueError("its directory has a tag twice")
