"""COCO-Stuff: 80 things and 91 kinds of stuff on COCO's photos.

    cocostuff/{train,val}2017/ID.png                         the set's "stuffthingmaps", where LISA's code has them
    coco/stuffthingmaps_trainval2017/{train,val}2017/ID.png  or where LaSagnA's has them
    coco/stuff_{train,val}2017_pixelmaps/ID.png              COCO's own stuff annotations, in which things are one id
    coco/{train,val}2017/ID.jpg

Source: github.com/nightrome/cocostuff. Its labels.txt numbers 182 labels, eleven of which no photo has;
`names/cocostuff.txt` lists the other 171. A stuffthingmap holds that number minus one, and 255 where nothing is
labelled; a pixelmap holds the number itself, 0 where nothing is labelled, and 183 for things.
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from training.data.records import OTHER, UNKNOWN
from training.data.sources.coco_json import plain_name
from training.data.sources.label_images import (
    LabelImages,
    LabelledPhoto,
    first_folder,
    id_table,
    published_names,
    published_split,
)

_FIRST_STUFF = 92
_THINGS = 183


def coco_stuff_labels() -> dict[int, str]:
    """Number in labels.txt -> name, of the 171 labels that occur."""
    lines = (line.partition(": ") for line in published_names("cocostuff.txt"))
    return {int(number): plain_name(name) for number, _, name in lines}


def cocostuff(root: Path, split: str) -> LabelImages:
    """All 171 classes, "train" or "val". Raises DataError.

    Args:
        root: The folder that holds `cocostuff` and `coco`.
        split: The split.
    """
    labels = coco_stuff_labels()
    table = id_table({255: UNKNOWN, **{number - 1: i for i, number in enumerate(labels)}})
    folders = ["cocostuff/{}", "coco/stuffthingmaps_trainval2017/{}", "coco/stuffthingmaps/{}"]
    what = "COCO-Stuff (stuffthingmaps_trainval2017, with COCO's photos)"
    return _maps("cocostuff", what, root, split, folders, tuple(labels.values()), table)


def cocostuff_pixelmaps(root: Path, split: str) -> LabelImages:
    """The 91 kinds of stuff; a thing's pixels are `OTHER`. Arguments and errors as for `cocostuff`."""
    labels = {number: name for number, name in coco_stuff_labels().items() if number >= _FIRST_STUFF}
    table = id_table({0: UNKNOWN, _THINGS: OTHER, **{number: i for i, number in enumerate(labels)}})
    folders = ["coco/stuff_{}_pixelmaps", "coco/annotations/stuff_{}_pixelmaps"]
    what = "COCO's stuff annotations (stuff_annotations_trainval2017: stuff_*_pixelmaps, with COCO's photos)"
    return _maps("cocostuff_pixelmaps", what, root, split, folders, tuple(labels.values()), table)


def _maps(
    name: str,
    what: str,
    root: Path,
    split: str,
    folders: list[str],
    classes: tuple[str, ...],
    table: NDArray[np.int16],
) -> LabelImages:
    own = published_split(what, split, {"train": "train2017", "val": "val2017"})
    folder = first_folder(what, root, [folder.format(own) for folder in folders])
    photos = [
        LabelledPhoto(path.stem, root / "coco" / own / f"{path.stem}.jpg", path)
        for path in sorted(folder.glob("*.png"))
    ]
    return LabelImages(name, what, folder, classes, table, photos)
