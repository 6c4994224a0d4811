"""HEIC and HEIF, the photos of phones: read where the extra `heic` is installed (pillow-heif, or pi-heif, which is the
same without an encoder); else a search names them as not read.

What always holds: Pillow's reader of them is registered when the first such file comes, and turns nothing twice: what
the file itself says about its rotation (`irot`, `imir`) is applied on decoding, and the EXIF orientation beside it,
which repeats that, is taken out. The decoder refuses, before anything is allocated, a picture that is larger than the
header says, so that limits on pixels and memory hold.
"""

import importlib
from functools import cache
from importlib.util import find_spec

SUFFIXES = frozenset({".heic", ".heics", ".heif", ".heifs", ".hif"})
FIX = "pip install 'lasagna-assist[heic]' reads HEIC and HEIF"
_PACKAGES = ("pillow_heif", "pi_heif")
_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"mif2", b"msf1")
"""Of ISO/IEC 23008-12: of HEVC, and of any codec. AVIF's own are Pillow's matter."""


def is_installed() -> bool:
    """Whether a package is there that reads them."""
    return any(find_spec(name) is not None for name in _PACKAGES)


def is_heif(data: bytes) -> bool:
    """Whether a file is HEIC or HEIF, by its first bytes."""
    return data[4:8] == b"ftyp" and data[8:12] in _BRANDS


@cache
def register() -> bool:
    """Gives Pillow the reader; False where no package has one."""
    for name in _PACKAGES:
        try:
            importlib.import_module(name).register_heif_opener(thumbnails=False)
        except ImportError:
            continue
        return True
    return False
