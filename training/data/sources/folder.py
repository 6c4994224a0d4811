"""The folder layout of `docs/data.md`:

    NAME/images/ID.jpg   NAME/masks/ID.png   NAME/classes.json   NAME/{train,val}.txt

where a mask is uint8 indices into the classes of `classes.json` and 255 is void. What always holds: every class but the
background is decided in every photo; the background, a class that is annotated but never asked for, is `OTHER`; void
and an index beyond the classes are `UNKNOWN`.
"""

from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lasagna.errors import DataError
from training.data.records import OTHER, UNKNOWN, LabelMap, Record
from training.data.sources.annotations import read_json
from training.data.sources.label_images import read_label_image

MOST_CLASSES = 254


class Folder:
    """One split of one data set.

    Attributes:
        root: The data set's folder.
        name: The folder's name.
        split: The list of ids.
        classes: The names that can be asked for, without the background class.
    """

    def __init__(self, root: Path | str, split: str) -> None:
        """Raises DataError where the folder is not in the layout, naming every file that is missing."""
        self.root, self.split = Path(root), split
        self.name = self.root.resolve().name
        self._ids = _read_ids(self.root, split)
        background, names = _read_classes(self.root / "classes.json")
        asked = [i for i in range(len(names)) if i != background]
        self.classes: tuple[str, ...] = tuple(names[i] for i in asked)
        self._table = np.full(256, UNKNOWN, np.int16)
        self._table[asked] = range(len(asked))
        if background is not None:
            self._table[background] = OTHER

    def __len__(self) -> int:
        return len(self._ids)

    def __getitem__(self, index: int) -> Record:
        photo, mask = _files(self.root, self._ids[index])
        labels = partial(_read_labels, mask, self._table)
        return Record(self.name, self._ids[index], photo, classes=self.classes, labels=labels)


def _files(root: Path, image_id: str) -> tuple[Path, Path]:
    return root / "images" / f"{image_id}.jpg", root / "masks" / f"{image_id}.png"


def _read_labels(path: Path, table: NDArray[np.int16]) -> LabelMap:
    mask = read_label_image(path)
    if mask.dtype != np.uint8:
        raise DataError(f"{path}: a mask is one 8-bit channel of class indices, not {mask.dtype}")
    return table[mask][None]


def _read_ids(root: Path, split: str) -> list[str]:
    """The ids of a split. Raises DataError where a file of the layout is missing."""
    listed = root / f"{split}.txt"
    for path in (root, root / "classes.json", listed):
        known = sorted(other.stem for other in root.glob("*.txt"))
        if path == listed and known and not path.exists():
            raise DataError(f"{path} is missing: no split {split!r}; there are {', '.join(known)}")
        if not path.exists():
            raise DataError(
                f"{root}: no data set in the folder layout: {path} is missing; "
                "it needs classes.json, images/ID.jpg, masks/ID.png and IDs per split in train.txt, val.txt"
            )
    ids = [line.strip() for line in listed.read_text(encoding="utf-8").splitlines() if line.strip()]
    missing = [str(path) for image_id in ids for path in _files(root, image_id) if not path.exists()]
    if missing:
        raise DataError(f"{root}: {len(missing)} files of split {split!r} are missing, first {', '.join(missing[:3])}")
    return ids


def _read_classes(path: Path) -> tuple[int | None, list[str]]:
    """The background's index and all names of a classes.json."""
    meta = read_json(path)
    names = meta.get("classes") if isinstance(meta, dict) else None
    if not isinstance(names, list) or not names or not all(isinstance(name, str) and name.strip() for name in names):
        raise DataError(f'{path}: it needs {{"classes": [names], "background_index": 0 or null}}, not {str(meta)[:80]}')
    background = meta.get("background_index")
    if background is not None and (not isinstance(background, int) or not 0 <= background < len(names)):
        raise DataError(f"{path}: background_index is null or from 0 to {len(names) - 1}, not {background!r}")
    if len(names) > MOST_CLASSES:
        raise DataError(f"{path}: {len(names)} classes; 8-bit masks hold {MOST_CLASSES} and void")
    return background, names
