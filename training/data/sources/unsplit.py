"""What readers of one's own data share: splits of a set that has none, and photos of what `lasagna annotate` wrote.

What always holds: a photo's side follows from its content alone, so it is the same in every run, whatever other photos
come and however they were annotated: masks, COCO and Label Studio agree.
"""

import hashlib
from pathlib import Path

from lasagna.files import file_digest
from training.data.sources.annotations import read_json

VAL_SHARE = 0.1
UNSPLIT = ("train", "val", "all")
"""Splits of a set without lists: "val" is a tenth of the photos, "train" the rest, "all" both."""

SPLIT_NAMES = ("train", "val", "valid", "validation", "test")
"""Names of files that are one split: others are not looked for in them."""


def is_in_split(split: str, photo: Path, content: str = "") -> bool:
    """Whether a photo belongs to a split of `UNSPLIT`. One that cannot be read belongs to "train".

    Args:
        content: The first 32 hex digits of the SHA-256 of its content, where they are known.
    """
    if split == "all":
        return True
    try:
        known = content or file_digest(photo).hex()
    except OSError:
        return split == "train"
    # Of a hash of the hash: its own digits say what a recipe's `holdout` keeps out.
    is_val = int(hashlib.sha256(known[:32].encode()).hexdigest()[:8], 16) < VAL_SHARE * 2**32
    return is_val == (split == "val")


def photo_folders(out: Path, root: str) -> list[Path]:
    """Where the photos of an output of `lasagna annotate` may be: where it found them, in `images`, or where they are
    if both were moved together.

    Args:
        out: The output folder.
        root: `image_root` of its report.
    """
    together = (out.resolve().parent / Path(root).name, out.resolve().parent.parent / Path(root).name)
    return [Path(root), out / "images", out / "yolo" / "images", *together]


def annotated_photos(out: Path) -> list[Path]:
    """`photo_folders` of a folder, if `lasagna annotate` wrote into it."""
    report = out / "report.json"
    content = read_json(report) if report.is_file() else None
    root = content.get("image_root") if isinstance(content, dict) else None
    return photo_folders(out, root) if isinstance(root, str) else []
