"""Corrected photos, in whichever form they lie: what `lasagna learn` and `lasagna annotate --corrected` read.

    masks          DIR/*.png or DIR/masks/*.png with classes.json, as `lasagna annotate` writes them
    COCO           FILE.json with images, annotations and categories; or DIR/coco.json
    Label Studio   FILE.json, an export as JSON or JSON_MIN beside label_config.xml; or the folder of both
    data set       DIR/classes.json, images, masks and train.txt (docs/data.md): its train split

What always holds: a class of the form's list without a mask is certainly absent, in an export of Label Studio where its
label could be chosen then (`training.data.sources.label_studio`); void and unknown pixels stay
undecided; photos are found below the folders that were given, and beside the corrections, by their path or their name.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from lasagna.errors import DataError
from lasagna.masks.image import IMAGE_SUFFIXES
from training.data.records import OTHER, UNKNOWN, LabelMap, Record
from training.data.sources import Source
from training.data.sources.annotations import read_json
from training.data.sources.coco_json import CocoFile
from training.data.sources.folder import Folder
from training.data.sources.label_images import read_label_image
from training.data.sources.label_studio import NO_EXPORTS, LabelStudioExport

_FORMS = (
    "masks (masks/*.png with classes.json, as `lasagna annotate --format masks` writes), COCO (a JSON file), an export "
    "of Label Studio (JSON beside label_config.xml), or a data set folder (docs/data.md)"
)


def read_corrected(path: Path, photos: Sequence[Path] = ()) -> Source:
    """The corrected photos at a path; masks and photos are read later, one at a time.

    Args:
        path: A folder or a JSON file.
        photos: Folders below which photos are looked for, before those beside the corrections.

    Raises:
        DataError: There is none of the known forms, or its photos are not found.
        ConfigError: The labelling configuration cannot be used.
    """
    if not path.exists():
        raise DataError(f"{path}: there is nothing; corrections are {_FORMS}")
    if path.is_file():
        return _read_file(path, photos)
    if (path / "train.txt").exists():
        return Folder(path, "train")
    for folder in (path, path / "masks"):
        if (folder / "classes.json").exists():
            return MaskFolder(folder, [*photos, *_beside(folder)])
    exports = sorted(file for file in path.glob("*.json") if file.name not in NO_EXPORTS)
    if (path / "coco.json").exists():
        return _read_file(path / "coco.json", photos)
    if len(exports) == 1:
        return _read_file(exports[0], photos)
    found = ", ".join(file.name for file in exports) or "no JSON file"
    raise DataError(f"{path}: corrections are {_FORMS}; found {found}: name the file itself")


def _read_file(path: Path, photos: Sequence[Path]) -> Source:
    content = read_json(path)
    if isinstance(content, dict) and {"images", "annotations", "categories"} <= set(content):
        return CocoFile(path, [*photos, *_beside(path.parent)])
    if isinstance(content, list):
        return LabelStudioExport(path.parent, path.stem, photos=[*photos, path.parent / "images", path.parent])
    raise DataError(f"{path}: neither COCO nor an export of Label Studio; corrections are {_FORMS}")


def _beside(folder: Path) -> list[Path]:
    return [folder / "images", folder.parent / "images", folder, folder.parent]


class MaskFolder:
    """Masks as PNG of class indices, as `lasagna annotate` writes them: 0 is no class, an unknown index undecided.

    Attributes:
        classes: The names in classes.json.
    """

    def __init__(self, folder: Path, photos: Sequence[Path]) -> None:
        """Raises DataError where classes.json is of another form, or no mask has a photo."""
        self.classes, self._lookup = _read_table(folder / "classes.json")
        masks = sorted(folder.rglob("*.png"))
        self._pairs: list[tuple[str, Path, Path]] = []
        missing = []
        for mask in masks:
            name = mask.relative_to(folder).with_suffix("").as_posix()
            photo = _find_photo(name, photos, mask)
            if photo is None:
                missing.append(name)
            else:
                self._pairs.append((name, photo, mask))
        if missing or not masks:
            places = ", ".join(str(place) for place in dict.fromkeys(photos))
            what = f"no photo for {len(missing)} of {len(masks)} masks, first {missing[:3]}" if masks else "no masks"
            raise DataError(f"{folder}: {what}; photos were looked for in {places}")

    def __len__(self) -> int:
        return len(self._pairs)

    def __getitem__(self, index: int) -> Record:
        name, photo, mask = self._pairs[index]
        return Record("masks", name, photo, classes=self.classes, labels=partial(_labels, mask, self._lookup))


def _read_table(path: Path) -> tuple[tuple[str, ...], dict[int, int]]:
    """The names, and the place of each index of a PNG among them."""
    rows: Any = read_json(path)
    try:
        if not isinstance(rows, list):
            raise TypeError(f"found {str(rows)[:40]}")
        named = {int(row["index"]): str(row["name"]) for row in rows if row["name"] is not None}
    except (TypeError, KeyError, ValueError) as error:
        raise DataError(
            f"{path}: it needs a list of {{index, name}} as `lasagna annotate --format masks` writes it ({error!r})"
        ) from error
    if not named:
        raise DataError(f"{path}: no class has a name")
    return tuple(named.values()), {index: place for place, index in enumerate(named)} | {0: OTHER}


def _find_photo(name: str, folders: Sequence[Path], mask: Path) -> Path | None:
    for folder in folders:
        for path in [folder / name, *(folder / f"{name}{suffix}" for suffix in _suffixes())]:
            if path.is_file() and path != mask:
                return path
    return None


def _suffixes() -> Iterator[str]:
    for suffix in sorted(IMAGE_SUFFIXES):
        yield suffix
        yield suffix.upper()


def _labels(path: Path, lookup: dict[int, int]) -> LabelMap:
    indices = read_label_image(path)
    labels = np.full(indices.shape, UNKNOWN, np.int16)
    for index, place in lookup.items():
        labels[indices == index] = place
    return labels[None]
