"""What readers of label images share: one PNG of raw ids per photo, and a table from raw ids to classes.

What always holds: a raw id that the data set does not define raises DataError (it is then a conversion of the data set
with other ids, and every class would be another's), and a label map has the size of its photo.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lasagna.errors import DataError
from training.data.records import LabelMap, Record, require_files
from training.data.sources.annotations import upright_size

_UNDEFINED = np.int16(-3)
_NAMES = Path(__file__).with_name("names")


@cache
def published_names(file: str) -> tuple[str, ...]:
    """The lines of a file of `names/`: classes of a data set in its own order."""
    return tuple((_NAMES / file).read_text(encoding="utf-8").splitlines())


def published_split(what: str, asked: str, known: Mapping[str, str]) -> str:
    """The data set's own name of a split.

    Args:
        what: The data set, for the message.
        asked: "train", "val", ..., or the data set's own name of it.
        known: "train", "val", ... to the data set's own names.

    Raises:
        DataError: There is no such split.
    """
    if asked in known:
        return known[asked]
    if asked in known.values():
        return asked
    shown = ", ".join(name if name == own else f"{name} (or {own})" for name, own in known.items())
    raise DataError(f"{what} has no split {asked!r}; there are {shown}")


def first_folder(what: str, root: Path, candidates: Sequence[str]) -> Path:
    """The first of the folders below a root that exists. Raises DataError that lists them where none does."""
    for candidate in candidates:
        if (root / candidate).is_dir():
            return root / candidate
    looked = "\n  ".join(str(root / candidate) for candidate in candidates)
    raise DataError(f"{root}: not a complete copy of {what}; looked for one of the folders\n  {looked}")


def id_table(classes: Mapping[int, int], *, size: int = 256) -> NDArray[np.int16]:
    """A table to look raw ids up in.

    Args:
        classes: Raw id -> index of the class, `OTHER` or `UNKNOWN`. Any other id is undefined.
        size: Number of raw ids that a label image can hold.
    """
    table = np.full(size, _UNDEFINED, np.int16)
    for raw, index in classes.items():
        table[raw] = index
    return table


def read_label_image(path: Path) -> NDArray[Any]:
    """The raw ids (height, width) of a PNG of one channel: grey of 1, 8 or 16 bits, or palette indices.

    The values are what the file holds, whatever colours a palette gives them. Raises DataError.
    """
    try:
        with Image.open(path) as image:
            ids = np.asarray(image)
    except (OSError, SyntaxError, ValueError) as error:
        raise DataError(f"{path}: the mask cannot be read ({error}); copy or download it again") from error
    if ids.ndim != 2:
        raise DataError(f"{path}: a mask is one channel of ids, not an image of {ids.shape[2]} channels")
    return ids


@dataclass(frozen=True)
class LabelledPhoto:
    """A photo and its label image; nothing read yet."""

    image_id: str
    photo: Path
    labels: Path


def pair_by_stem(photos: Path, labels: Path) -> list[LabelledPhoto]:
    """Every NAME.jpg of a folder with NAME.png of another; both are listed, so that neither is missed."""
    stems = {path.stem for path in photos.glob("*.jpg")} | {path.stem for path in labels.glob("*.png")}
    return [LabelledPhoto(stem, photos / f"{stem}.jpg", labels / f"{stem}.png") for stem in sorted(stems)]


class LabelImages:
    """One split of a data set of label images.

    Every class that has no pixel in a photo is certainly absent from it: the set is annotated for all its classes.

    Attributes:
        classes: What the table's indices mean.
    """

    def __init__(
        self,
        name: str,
        what: str,
        folder: Path,
        classes: Sequence[str],
        table: NDArray[np.int16],
        photos: Sequence[LabelledPhoto],
        read: Callable[[Path], NDArray[Any]] = read_label_image,
    ) -> None:
        """Checks that every file is there.

        Args:
            name: `Record.source`.
            what: The data set, with where it is published, for messages.
            folder: Where its label images lie, for messages.
            classes: Names.
            table: Raw id -> index into `classes`, `OTHER` or `UNKNOWN`; see `id_table`.
            photos: What the split holds.
            read: Reads the raw ids (height, width) of a file.

        Raises:
            DataError: A file is missing, or there is none.
        """
        if not photos:
            raise DataError(f"{folder}: no label image of {what} in it")
        require_files(what, folder, [path for item in photos for path in (item.photo, item.labels)])
        self.classes = tuple(classes)
        self._name, self._what, self._table, self._photos, self._decode = name, what, table, list(photos), read

    def __len__(self) -> int:
        return len(self._photos)

    def __getitem__(self, index: int) -> Record:
        item = self._photos[index]
        return Record(self._name, item.image_id, item.photo, classes=self.classes, labels=partial(self._labels, item))

    def _labels(self, item: LabelledPhoto) -> LabelMap:
        ids = self._decode(item.labels).astype(np.int64)
        known = (ids >= 0) & (ids < len(self._table))
        labels = self._table[np.where(known, ids, 0)]
        strange = ids[~known | (labels == _UNDEFINED)]
        if strange.size:
            shown = ", ".join(str(value) for value in np.unique(strange)[:5])
            raise DataError(
                f"{item.labels}: the ids {shown} are none of {self._what}; this is a conversion with other ids, take "
                "the published files"
            )
        size = upright_size(item.photo)
        if labels.shape != size:
            raise DataError(
                f"{item.labels} is {labels.shape[1]} x {labels.shape[0]}, its photo {size[1]} x {size[0]}; a mask has "
                "the size of its photo"
            )
        return labels[None]
