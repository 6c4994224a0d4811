"""The Pascal VOC photos with three annotations: VOC's own 20 classes, and Pascal Context with 59 or all 459.

    VOCdevkit/VOC2012/JPEGImages/ID.jpg, SegmentationClass/ID.png, ImageSets/Segmentation/{train,val,trainval}.txt
    VOCdevkit/VOC2010/JPEGImages/ID.jpg, ImageSets/Main/{train,val,trainval}.txt
    pascal_context/labels.txt         "1: accordion", ..., "459: wool"
    pascal_context/trainval/ID.mat    MATLAB 5: LabelMap, uint16 ids of labels.txt

Sources: host.robots.ox.ac.uk/pascal/VOC; cs.stanford.edu/~roozbeh/pascal-context. The 59 classes are taken from the
same .mat files by name, as in the evaluation of FCN (arXiv 1605.06211): converted PNGs go round in two orders of the
classes, which their pixels do not tell apart.

A pixel of none of the classes (VOC's background; labels outside the 59) is `OTHER`. Tables of "PC-59" and "PAS-20" in
papers leave such pixels out.
"""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lasagna.errors import DataError
from training.data.records import OTHER, UNKNOWN, require_files
from training.data.sources.label_images import (
    LabelImages,
    LabelledPhoto,
    id_table,
    published_names,
    published_split,
)

_SPLITS = {"train": "train", "val": "val", "trainval": "trainval"}
_SPELT = {"diningtable": "dining table", "pottedplant": "potted plant", "tvmonitor": "tv monitor"}


def pascal_voc(root: Path, split: str) -> LabelImages:
    """VOC 2012's 20 classes, "train", "val" or "trainval"; the void border (255) is void.

    Args:
        root: The folder that holds `VOCdevkit`.
        split: The split.

    Raises:
        DataError: Files are missing, or there is no such split.
    """
    what = "Pascal VOC 2012 (VOCdevkit/VOC2012, the segmentation task)"
    own = published_split(what, split, _SPLITS)
    folder = root / "VOCdevkit" / "VOC2012"
    photos = [
        LabelledPhoto(i, folder / "JPEGImages" / f"{i}.jpg", folder / "SegmentationClass" / f"{i}.png")
        for i in _read_ids(what, root, folder / "ImageSets" / "Segmentation" / f"{own}.txt")
    ]
    names = published_names("pascal_voc.txt")
    table = id_table({0: OTHER, 255: UNKNOWN, **{i + 1: i for i in range(len(names))}})
    return LabelImages(
        "pascal_voc_20", what, folder / "SegmentationClass", [_spelt(name) for name in names], table, photos
    )


def pascal_context_459(root: Path, split: str) -> LabelImages:
    """All labels of Pascal Context in the order of labels.txt. Arguments and errors as for `pascal_voc`."""
    labels = _read_labels(root)
    table = id_table({0: UNKNOWN, **{raw: i for i, raw in enumerate(labels)}}, size=max(labels) + 1)
    return _context("pascal_context_459", root, split, tuple(labels.values()), table)


def pascal_context_59(root: Path, split: str) -> LabelImages:
    """The 59 most frequent labels of Pascal Context. Arguments and errors as for `pascal_voc`."""
    labels = _read_labels(root)
    classes = published_names("pascal_context_59.txt")
    own = {name.replace(" ", ""): raw for raw, name in labels.items()}
    missing = [name for name in classes if name not in own]
    if missing:
        raise DataError(
            f"{root / 'pascal_context' / 'labels.txt'}: has no {', '.join(missing)}, of the 59 classes; take the "
            "labels.txt of all 459 labels"
        )
    table = id_table({0: UNKNOWN, **dict.fromkeys(labels, OTHER)}, size=max(labels) + 1)
    for i, name in enumerate(classes):
        table[own[name]] = i
    return _context("pascal_context_59", root, split, classes, table)


_CONTEXT = "Pascal Context (labels.txt and trainval/ of trainval.tar.gz, with Pascal VOC 2010)"


def _context(name: str, root: Path, split: str, classes: tuple[str, ...], table: NDArray[np.int16]) -> LabelImages:
    own = published_split(_CONTEXT, split, _SPLITS)
    voc, maps = root / "VOCdevkit" / "VOC2010", root / "pascal_context" / "trainval"
    photos = [
        LabelledPhoto(i, voc / "JPEGImages" / f"{i}.jpg", maps / f"{i}.mat")
        for i in _read_ids(_CONTEXT, root, voc / "ImageSets" / "Main" / f"{own}.txt")
    ]
    return LabelImages(name, _CONTEXT, maps, [_spelt(name) for name in classes], table, photos, _read_label_map)


def _spelt(name: str) -> str:
    """A name in words: a model is to be asked about the thing, not about a spelling."""
    return _SPELT.get(name, name)


def _read_ids(what: str, root: Path, path: Path) -> list[str]:
    require_files(what, root, [path])
    return path.read_text().split()


def _read_labels(root: Path) -> dict[int, str]:
    path = root / "pascal_context" / "labels.txt"
    require_files(_CONTEXT, root, [path])
    lines = [line.partition(":") for line in path.read_text().splitlines() if line.strip()]
    try:
        labels = {int(number): name.strip() for number, _, name in lines}
    except ValueError as error:
        raise DataError(f"{path}: a line is a number, a colon and a name ({error}); download it again") from error
    if not labels or min(labels) < 1 or not all(labels.values()):
        raise DataError(f"{path}: not the labels of {_CONTEXT}; download it again")
    return labels


def _read_label_map(path: Path) -> NDArray[Any]:
    from scipy.io import loadmat

    try:
        label_map: NDArray[Any] = loadmat(path)["LabelMap"]
    except Exception as error:  # a damaged file raises what it pleases
        raise DataError(f"{path}: no MATLAB file with a LabelMap ({error}); download it again") from error
    return label_map
