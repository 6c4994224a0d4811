"""YOLO segmentation labels (https://docs.ultralytics.com/datasets/segment): a text file per image, and `data.yaml`."""

from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath

import yaml

from lasagna.masks.conversions import Polygon, mask_to_polygon, mask_to_polygons
from lasagna.masks.segmentation import ClassAnswer, Segmentation


def segmentation_to_yolo(segmentation: Segmentation, class_ids: dict[str, int], tolerance: float = 1.0) -> str:
    """One line per object, or per connected part of a class whose objects are not told apart: class id, then x y of the
    polygon as fractions of width and height.

    Holes, and the parts of an object, are kept by a bridge (see `mask_to_polygon`). An image without a present class
    gives an empty text, which YOLO reads as an image that shows none of the classes.
    """
    height, width = segmentation.size
    lines = []
    for answer in segmentation.present:
        for polygon in _polygons(answer, tolerance):
            points = " ".join(f"{x / width:.6g} {y / height:.6g}" for x, y in polygon)
            lines.append(f"{class_ids[answer.name]} {points}\n")
    return "".join(lines)


def _polygons(answer: ClassAnswer, tolerance: float) -> Iterator[Polygon]:
    if answer.objects is not None:
        rings = (mask_to_polygon(each.mask, tolerance) for each in answer.objects)
        yield from (ring for ring in rings if ring is not None)
    elif answer.mask is not None:
        yield from mask_to_polygons(answer.mask, tolerance)


def yolo_label_path(image: str) -> str:
    """Where YOLO's loaders look for the labels of `images/IMAGE`, relative to the same folder.

    They know an image by its path alone: the last folder of the path that is called `images` stands for one called
    `labels` beside it, and the ending for `.txt`.
    """
    path = PurePosixPath("images", image)
    parts = list(path.with_suffix(".txt").parts)
    last = max(i for i, part in enumerate(parts[:-1]) if part == "images")
    return "/".join([*parts[:last], "labels", *parts[last + 1 :]])


def yolo_data_yaml(class_names: Sequence[str]) -> str:
    """`data.yaml` for a folder with `images/`, `labels/` and `images.txt`, the list of images.

    All of them are the training set, and the validation set too: which photos to hold out is for the user to say.
    """
    data = {"train": "images.txt", "val": "images.txt", "names": dict(enumerate(class_names))}
    return yaml.safe_dump(data, sort_keys=False, allow_unicode=True)
