"""Label Studio's bitmask: a PNG as a data URL, opaque where the mask is, of the size of the upright image.

Measured in Label Studio 1.23: the editor writes black on transparent as RGBA; a palette of one bit with one transparent
entry is drawn alike and is a fraction of the size. It takes the size from the PNG itself.
"""

import base64
import binascii
import io
import struct

import numpy as np
from PIL import Image

from lasagna.errors import DataError
from lasagna.masks.segmentation import Mask

_PREFIX = "data:image/png;base64,"
_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_HALF = 128
"""Opacity from which a pixel belongs to the mask, as of brushes."""


def mask_to_bitmask(mask: Mask) -> str:
    """The data URL of a mask, bool (height, width)."""
    image = Image.fromarray(mask.view(np.uint8)).convert("P")
    image.putpalette([0, 0, 0, 0, 0, 0])
    file = io.BytesIO()
    image.save(file, "PNG", bits=1, transparency=0)
    return _PREFIX + base64.b64encode(file.getvalue()).decode()


def bitmask_to_mask(url: str, size: tuple[int, int]) -> Mask:
    """The mask of a data URL. `size` is (height, width) of the image.

    Raises:
        DataError: It is no PNG of that size (looked at before a pixel is read), or has no transparent part, so that it
            does not say where the mask is.
    """
    if not isinstance(url, str) or not url.startswith("data:image/"):
        raise DataError(f"a bitmask is a PNG as a data URL, not {str(url)[:40]!r}")
    try:
        data = base64.b64decode(url.partition(",")[2], validate=True)
        width, height = struct.unpack(">II", data[16:24])  # of the header, which comes first
        if data.startswith(_SIGNATURE) and (height, width) != size:
            raise DataError(f"a bitmask is of {width} x {height} pixels, and the image of {size[1]} x {size[0]}")
        with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
            if not image.has_transparency_data:
                raise DataError("a bitmask is opaque all over, so that it does not say where the mask is")
            return np.asarray(image.convert("RGBA").getchannel("A")) >= _HALF
    except (OSError, ValueError, SyntaxError, struct.error, binascii.Error, Image.DecompressionBombError) as error:
        raise DataError(f"a bitmask cannot be decoded ({error}); expected a PNG as the editor writes it") from error
