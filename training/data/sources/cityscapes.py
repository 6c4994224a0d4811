"""Cityscapes, fine annotations: 19 classes.

    leftImg8bit/{train,val}/CITY/NAME_leftImg8bit.png
    gtFine/{train,val}/CITY/NAME_gtFine_labelIds.png   8-bit ids 0 to 33

Source: cityscapes-dataset.com (gtFine_trainvaltest.zip, leftImg8bit_trainvaltest.zip); which of the 34 labels are
classes is in labels.py of github.com/mcordts/cityscapesScripts. The other labels, and the car that carries the camera,
are void.
"""

from pathlib import Path

from training.data.records import UNKNOWN
from training.data.sources.label_images import (
    LabelImages,
    LabelledPhoto,
    first_folder,
    id_table,
    published_names,
    published_split,
)

_WHAT = "Cityscapes (gtFine and leftImg8bit)"
_COUNT = 34
# The ids of the 19 classes, in their order ("trainId").
_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
_PHOTO, _LABELS = "_leftImg8bit.png", "_gtFine_labelIds.png"


def cityscapes(root: Path, split: str) -> LabelImages:
    """The split "train" or "val"; "test" is published without labels. Raises DataError."""
    own = published_split("Cityscapes", split, {"train": "train", "val": "val"})
    labels = first_folder(_WHAT, root, [f"gtFine/{own}"])
    photos = root / "leftImg8bit" / own
    names = {str(path.relative_to(photos)).removesuffix(_PHOTO) for path in photos.glob(f"*/*{_PHOTO}")}
    names |= {str(path.relative_to(labels)).removesuffix(_LABELS) for path in labels.glob(f"*/*{_LABELS}")}
    items = [
        LabelledPhoto(Path(name).name, photos / f"{name}{_PHOTO}", labels / f"{name}{_LABELS}")
        for name in sorted(names)
    ]
    table = id_table({**dict.fromkeys(range(_COUNT), UNKNOWN), **{raw: i for i, raw in enumerate(_IDS)}})
    return LabelImages("cityscapes", _WHAT, labels, published_names("cityscapes.txt"), table, items)
