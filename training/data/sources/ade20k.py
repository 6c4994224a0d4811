"""ADE20K as the scene parsing benchmark publishes it: 150 classes.

    images/{training,validation}/NAME.jpg
    annotations/{training,validation}/NAME.png   8-bit ids: 0 is none of the 150, 1 to 150 the classes

Source: ADEChallengeData2016 (sceneparsing.csail.mit.edu). The names are those that published results use: of each
line of its objectInfo150.txt, one synonym.
"""

from pathlib import Path

from training.data.records import UNKNOWN
from training.data.sources.label_images import (
    LabelImages,
    first_folder,
    id_table,
    pair_by_stem,
    published_names,
    published_split,
)

_WHAT = "ADE20K (ADEChallengeData2016: images/ and annotations/)"


def ade20k(root: Path, split: str) -> LabelImages:
    """The split "train" (training) or "val" (validation). Id 0 is void. Raises DataError."""
    own = published_split("ADE20K", split, {"train": "training", "val": "validation"})
    labels = first_folder(_WHAT, root, [f"annotations/{own}"])
    photos = pair_by_stem(root / "images" / own, labels)
    classes = published_names("ade20k.txt")
    table = id_table({0: UNKNOWN, **{i + 1: i for i in range(len(classes))}})
    return LabelImages("ade20k", _WHAT, labels, classes, table, photos)
