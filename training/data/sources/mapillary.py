"""Mapillary Vistas, versions 1.2 (65 classes) and 2.0 (124 labels).

    config_v2.0.json                        {"labels": [{"readable": "Bird", "evaluate": true, ...}, ...]}
    {training,validation}/images/ID.jpg
    {training,validation}/v2.0/labels/ID.png   8-bit with a palette: positions in that list

Source: mapillary.com/dataset/vistas; the README in the download describes the folders. A label that the data set does
not evaluate ("Unlabeled") is void. Labels that read the same are one class.
"""

from pathlib import Path

from lasagna.errors import DataError
from training.data.records import UNKNOWN, require_files
from training.data.sources.annotations import read_json
from training.data.sources.label_images import LabelImages, first_folder, id_table, pair_by_stem, published_split


def mapillary(root: Path, split: str) -> LabelImages:
    """Version 2.0, "train" (training) or "val" (validation). Raises DataError."""
    return _vistas("mapillary", root, split, "v2.0")


def mapillary_12(root: Path, split: str) -> LabelImages:
    """Version 1.2 of the annotations. Raises DataError."""
    return _vistas("mapillary_v1.2", root, split, "v1.2")


def _vistas(name: str, root: Path, split: str, version: str) -> LabelImages:
    what = f"Mapillary Vistas (config_{version}.json, training/ and validation/)"
    own = published_split("Mapillary Vistas", split, {"train": "training", "val": "validation"})
    config = root / f"config_{version}.json"
    require_files(what, root, [config])
    try:
        labels = [(str(label["readable"]).lower(), bool(label["evaluate"])) for label in read_json(config)["labels"]]
    except (KeyError, TypeError) as error:
        raise DataError(f"{config}: not the list of labels of {what} ({error!r}); download it again") from error
    classes = list(dict.fromkeys(label for label, used in labels if used))
    table = id_table({i: classes.index(label) if used else UNKNOWN for i, (label, used) in enumerate(labels)})
    folder = first_folder(what, root, [f"{own}/{version}/labels"])
    photos = pair_by_stem(root / own / "images", folder)
    return LabelImages(name, what, folder, classes, table, photos)
