"""One's own photos and masks, in the layout of `docs/data.md` or as `lasagna annotate --format masks` writes them.

    NAME/images/ID.jpg   NAME/masks/ID.png   NAME/classes.json   NAME/{train,val}.txt

where a mask has 8 bits, an index into the classes of `classes.json` for each pixel, and 255 is void. What always holds:
every class but the background is decided in every photo; the background, a class that is annotated but never asked for,
is `OTHER`; void is `UNKNOWN`; a value that is none of these raises DataError, and so does a split whose masks are all
black and white, for 255 is void and nothing would be learnt from them.

Of `annotate`'s output the root is OUT. Its photos are where `report.json` says, and its splits follow from the photos'
content: "val" is a tenth of them, "train" the rest, "all" both; "corrected" are the masks that somebody changed since
they were written. Lists of ids beside `masks` come first.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lasagna.annotate.folder import unique_stems
from lasagna.annotate.output import Written
from lasagna.annotate.swap import files_below
from lasagna.errors import DataError
from lasagna.files import file_digest
from lasagna.masks.image import IMAGE_SUFFIXES
from training.data.records import OTHER, UNKNOWN, LabelMap, Record
from training.data.sources.annotations import read_json
from training.data.sources.label_images import read_label_image
from training.data.sources.unsplit import UNSPLIT, is_in_split, photo_folders
from training.data.spread import spread

MOST_CLASSES = 254
_VOID = 255
_UNDEFINED = -3
_LOOKED_AT = 16
"""Masks whose values are looked at when a split is opened."""


@dataclass(frozen=True)
class _Pair:
    """A photo and its mask."""

    image_id: str
    photo: Path
    mask: Path


class Folder:
    """One split of one data set.

    Attributes:
        root: The data set's folder.
        name: The folder's name.
        split: The list of ids.
        classes: The names that can be asked for, without the background class.
    """

    def __init__(self, root: Path | str, split: str) -> None:
        """Raises DataError where the folder is in neither layout, naming every file that is missing, and where the
        masks hold values that mean nothing."""
        self.root, self.split = Path(root), split
        self.name = self.root.resolve().name
        written = _written_classes(self.root)
        if written is not None:
            self.classes: tuple[str, ...] = written
            self._table = _written_table(written)
            self._pairs = _written_pairs(self.root, split)
        else:
            ids = _read_ids(self.root, split)
            background, names = read_classes(self.root / "classes.json")
            asked = [i for i in range(len(names)) if i != background]
            self.classes = tuple(names[i] for i in asked)
            self._table = np.full(256, _UNDEFINED, np.int16)
            self._table[asked] = range(len(asked))
            self._table[_VOID] = UNKNOWN
            if background is not None:
                self._table[background] = OTHER
            self._pairs = _pairs(self.root, ids, split)
        _check_values([pair.mask for pair in self._pairs], self._table, self.classes)

    def __len__(self) -> int:
        return len(self._pairs)

    def __getitem__(self, index: int) -> Record:
        pair = self._pairs[index]
        labels = partial(_read_labels, pair.mask, self._table)
        return Record(self.name, pair.image_id, pair.photo, classes=self.classes, labels=labels)


def is_folder(root: Path) -> bool:
    """Whether a folder is in one of the two layouts, as far as its classes tell."""
    return (root / "classes.json").exists() or (root / "masks" / "classes.json").exists()


# --- Masks ------------------------------------------------------------------------------------------------------------


def _read_indices(path: Path, table: NDArray[np.int16]) -> NDArray[Any]:
    mask = read_label_image(path)
    if mask.dtype == np.bool_:
        mask = mask.astype(np.uint8)
    if mask.dtype.kind not in "iu" or (mask.dtype.itemsize > 1 and len(table) <= 256):
        raise DataError(f"{path}: a mask is one 8-bit channel of class indices, not {mask.dtype}")
    return mask


def _read_labels(path: Path, table: NDArray[np.int16]) -> LabelMap:
    mask = _read_indices(path, table)
    labels = table[mask]
    _check_defined(path, np.unique(mask[labels == _UNDEFINED]), table)
    return labels[None]


def _check_defined(path: Path, strange: NDArray[Any], table: NDArray[np.int16]) -> None:
    if strange.size:
        known = np.flatnonzero((table != _UNDEFINED) & (table != UNKNOWN))
        shown = ", ".join(str(value) for value in strange[:5]) + ", ..." * (strange.size > 5)
        raise DataError(
            f"{path}: the value{'s' * (strange.size > 1)} {shown} stand{'s' * (strange.size == 1)} for no class: the "
            f"classes are {known.min()} to {known.max()}, and {_VOID} is void. Write each pixel's index into "
            "classes.json, or add the classes that are missing there"
        )


def _check_values(masks: list[Path], table: NDArray[np.int16], classes: tuple[str, ...]) -> None:
    """Raises DataError where masks hold values that mean nothing, or all are black and white.

    A few are looked at; where those are black and white, all.
    """
    looked = [_values(masks[i], table) for i in spread(len(masks), _LOOKED_AT)]
    if len(table) > 256 or table[_VOID] != UNKNOWN or not any(_VOID in values for values in looked):
        return
    if all(values <= {0, _VOID} for values in looked) and all(_values(mask, table) <= {0, _VOID} for mask in masks):
        first = f"{int(np.flatnonzero(table >= 0)[-1])} for {classes[-1]!r}"
        raise DataError(
            f"{masks[0].parent}: all {len(masks)} masks are black and white (0 and {_VOID}). Here {_VOID} is void, "
            f"which counts nowhere, so nothing could be learnt or measured; write the class's index instead, {first}"
        )


def _values(path: Path, table: NDArray[np.int16]) -> set[int]:
    try:
        values = np.unique(_read_indices(path, table))
    except DataError:  # says so when it is read
        return set()
    _check_defined(path, values[table[values] == _UNDEFINED], table)
    return {int(value) for value in values}


# --- The layout of docs/data.md ---------------------------------------------------------------------------------------


class _ByName:
    """The files of a folder, with what is below it, by their names with and without an ending."""

    def __init__(self, folder: Path, endings: frozenset[str]) -> None:
        self._folder, self._by_stem = folder, dict[str, list[str]]()
        self._names = {name for name in files_below(folder) if PurePosixPath(name).suffix.lower() in endings}
        for name in sorted(self._names):
            self._by_stem.setdefault(str(PurePosixPath(name).with_suffix("")), []).append(name)

    def find(self, image_id: str) -> list[Path]:
        """The files of an id, which may be written with an ending: one where all is well."""
        if image_id in self._names:
            return [self._folder / image_id]
        if image_id in self._by_stem:
            return [self._folder / name for name in self._by_stem[image_id]]
        behind_links = (self._folder / f"{image_id}{ending}" for ending in ("", ".jpg", ".png"))
        return [path for path in behind_links if path.is_file()][:1]


def _pairs(root: Path, ids: list[str], split: str) -> list[_Pair]:
    """The photo and mask of each id. Raises DataError where one of them is missing, or could be any of several."""
    photos, masks = _ByName(root / "images", IMAGE_SUFFIXES), _ByName(root / "masks", frozenset({".png"}))
    pairs, missing = [], []
    for image_id in ids:
        stem = image_id
        if PurePosixPath(image_id).suffix.lower() in IMAGE_SUFFIXES:
            stem = str(PurePosixPath(image_id).with_suffix(""))
        photo, mask = photos.find(image_id), masks.find(f"{image_id}.png") or masks.find(stem)
        if len(photo) > 1:
            raise DataError(
                f"{root}: the photo of {image_id!r} could be any of {', '.join(map(str, photo))}; write the ending "
                f"into {split}.txt, and into the mask's name ({photo[0].name}.png), or keep one of them"
            )
        missing += [] if photo else [str(root / "images" / f"{image_id}.jpg (or another ending)")]
        missing += [] if mask else [str(root / "masks" / f"{stem}.png")]
        if photo and mask:
            pairs.append(_Pair(image_id, photo[0], mask[0]))
    if missing:
        raise DataError(f"{root}: {len(missing)} files of split {split!r} are missing, first {', '.join(missing[:3])}")
    return pairs


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
    return _read_list(listed)


def _read_list(path: Path) -> list[str]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text (byte {error.start}); save it as UTF-8") from error
    return [line.strip() for line in text.splitlines() if line.strip()]


def read_classes(path: Path) -> tuple[int | None, list[str]]:
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


# --- What `lasagna annotate --format masks` writes --------------------------------------------------------------------


def _written_classes(root: Path) -> tuple[str, ...] | None:
    """The names in `masks/classes.json`; None where it is not there, or the root has a classes.json of its own."""
    path = root / "masks" / "classes.json"
    if (root / "classes.json").exists() or not path.exists():
        return None
    rows = read_json(path)
    try:
        names = {int(row["index"]): row["name"] for row in rows if row["name"] is not None}
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path}: not the table of masks that lasagna annotate writes ({error!r})") from error
    if sorted(names) != list(range(1, len(names) + 1)) or not all(isinstance(name, str) for name in names.values()):
        raise DataError(f"{path}: the classes have the indices 1, 2, 3, ..., not {sorted(names)[:10]}")
    return tuple(names[i] for i in sorted(names))


def _written_table(classes: tuple[str, ...]) -> NDArray[np.int16]:
    """0 is no class. With 255 classes no value is left for void, with more a mask has 16 bits."""
    table = np.full(256 if len(classes) <= _VOID else 65536, _UNDEFINED, np.int16)
    table[_VOID if len(table) == 256 else 65535] = UNKNOWN
    table[0] = OTHER
    table[1 : len(classes) + 1] = range(len(classes))
    return table


def _written_pairs(root: Path, split: str) -> list[_Pair]:
    report, written = root / "report.json", Written.load(root / ".results" / "written.json")
    listed = root / f"{split}.txt"
    if not report.exists():
        raise DataError(f"{root}: {report.name} is missing, which says where the photos are; give OUT itself")
    content = read_json(report)
    try:
        folders = photo_folders(root, content["image_root"])
        names = [row["path"] for row in content["images"]]
        stems = unique_stems([*names, *(row["path"] for row in content["failures"] if row["path"] not in names)])
    except (KeyError, TypeError) as error:
        raise DataError(f"{report}: not a report of lasagna annotate ({error!r})") from error
    pairs = []
    for name in names:
        photo = next((path for folder in folders if (path := folder / name).exists()), folders[0] / name)
        pairs.append(_Pair(name, photo, root / "masks" / f"{stems[name]}.png"))
    if listed.exists():
        wanted = set(_read_list(listed))
        pairs = [pair for pair in pairs if {pair.image_id, str(PurePosixPath(pair.image_id).with_suffix(""))} & wanted]
    elif split == "corrected":
        known = {pair.mask: written.files.get(pair.mask.relative_to(root).as_posix(), []) for pair in pairs}
        pairs = [pair for pair in pairs if pair.mask.exists() and _digest(pair.mask) not in known[pair.mask]]
    elif split in UNSPLIT:
        known_images = {name: content for name, (content, _) in written.images.items()}
        pairs = [pair for pair in pairs if is_in_split(split, pair.photo, known_images.get(pair.image_id, ""))]
    else:
        raise DataError(
            f"{root}: no split {split!r}; an output of lasagna annotate has train, val, all and corrected, and the "
            f"lists of ids that somebody puts there ({split}.txt)"
        )
    missing = [str(path) for pair in pairs for path in (pair.photo, pair.mask) if not path.exists()]
    if missing:
        raise DataError(
            f"{root}: {len(missing)} files of split {split!r} are missing, first {', '.join(missing[:3])}; the photos "
            f"are looked for in {' and '.join(str(folder) for folder in folders)}"
        )
    if not pairs:
        raise DataError(f"{root}: no photo in split {split!r}, of {len(names)} in all")
    return pairs


def _digest(path: Path) -> str:
    return file_digest(path).hex()[:32]
