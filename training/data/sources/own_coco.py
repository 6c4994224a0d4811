"""One's own annotations in COCO's format: exported by an annotation program, or `coco.json` of `lasagna annotate`.

    FOLDER/SPLIT.json, FOLDER/annotations/instances_SPLIT.json, FOLDER/SPLIT/_annotations.coco.json     of one split
    FOLDER/coco.json, result.json, annotations/instances_default.json, or the only other one there      of all photos

or the file itself. Photos are looked for by `file_name` beside the file, in FOLDER, `images` and `SPLIT`, and where
`annotate` found them.

What always holds: every category of the file is decided in every photo that it lists, and a category is called exactly
as in the file; a file of all photos has the splits of `training.data.sources.unsplit`.
"""

from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from lasagna.errors import DataError
from training.data.sources.annotations import read_json
from training.data.sources.coco_json import CocoInstances
from training.data.sources.unsplit import SPLIT_NAMES, UNSPLIT, annotated_photos, is_in_split

_OF_ALL = ("coco.json", "result.json", "annotations/instances_default.json", "_annotations.coco.json")


class OwnCoco(CocoInstances):
    """One split of one's own set.

    Attributes:
        classes: The categories in the file's order.
    """

    source = "coco"
    _name = staticmethod(str)

    def __init__(self, root: Path, split: str) -> None:
        """Reads the annotations.

        Args:
            root: The folder, or the file.
            split: A file's own, or one of `UNSPLIT`.

        Raises:
            DataError: There is no file of annotations, a photo is missing, or the split is empty.
        """
        super().__init__(root, split)
        if self._is_of_all:
            kept = [r for r in self._records if r.image_path and is_in_split(split, r.image_path)]
            if not kept:
                raise DataError(f"{self._json}: no photo in split {split!r}, of {len(self._records)} in all")
            self._records = kept

    @staticmethod
    def is_here(folder: Path) -> bool:
        """Whether a folder, or a file, holds such annotations."""
        lists = (f"{name}.json" for name in SPLIT_NAMES)
        patterns = ("annotations/instances_*.json", "*/_annotations.coco.json", *lists)
        in_splits = (path for pattern in patterns for path in folder.glob(pattern) if is_coco(path))
        return next(_files_of_all(folder), None) is not None or any(in_splits)

    def _path(self, root: Path, split: str) -> Path:
        self._is_of_all = False
        own = next((path for path in _files_of_split(root, split) if path.exists()), None)
        if own is not None:
            return own
        found = list(_files_of_all(root))
        if len(found) == 1 or (found and found[0].name in {PurePosixPath(name).name for name in _OF_ALL}):
            if split not in UNSPLIT:
                raise DataError(f"{found[0]}: no split {split!r}; a file of all photos has {', '.join(UNSPLIT)}")
            self._is_of_all = True
            return found[0]
        splits = [name for name in SPLIT_NAMES if any(path.exists() for path in _files_of_split(root, name))]
        if splits:
            raise DataError(f"{root}: no split {split!r}; there are {', '.join(splits)}")
        looked = ", ".join([*(str(path.relative_to(root)) for path in _files_of_split(root, split)), *_OF_ALL])
        several = f", or one of {', '.join(path.name for path in found)}, by its path" if found else ""
        raise DataError(f"{root}: no annotations in COCO's format: looked for {looked}{several}")

    def _photo(self, root: Path, own: str, file_name: str) -> Path:
        beside = self._json.parent
        folder = root if root.is_dir() else beside
        places = [beside, folder, folder / "images", folder / own, folder / "images" / own]
        if beside.name == "annotations":
            places += [beside.parent, beside.parent / "images"]
        places += annotated_photos(folder)
        name = PurePosixPath(file_name.replace("\\", "/"))
        for wanted in (name, PurePosixPath(name.name)):
            found = next((place / wanted for place in places if (place / wanted).is_file()), None)
            if found is not None:
                return found
        return folder / "images" / name


def _files_of_split(root: Path, split: str) -> list[Path]:
    """Where the annotations of one split may be."""
    names = (f"{split}.json", f"annotations/instances_{split}.json", f"{split}/_annotations.coco.json")
    return [root / name for name in names] if root.is_dir() else []


def _files_of_all(root: Path) -> Iterator[Path]:
    """The files that may hold the annotations of all photos, the likeliest first."""
    if root.is_file():
        yield root
        return
    known = [root / name for name in _OF_ALL if (root / name).is_file()]
    yield from known
    if not known:
        yield from (path for path in sorted(root.glob("*.json")) if path.stem not in SPLIT_NAMES and is_coco(path))


def is_coco(path: Path) -> bool:
    """Whether a JSON file holds annotations in COCO's format."""
    try:
        content: Any = read_json(path)
    except DataError:
        return False
    return isinstance(content, dict) and {"images", "annotations", "categories"} <= content.keys()
