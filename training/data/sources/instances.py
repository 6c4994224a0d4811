"""Which pixels are which object: what some data sets have beside their masks (docs/data.md).

    NAME/instances/ID.png   16 bits: 0 no object, 1..n the objects of the photo
    NAME/instances.json     {ID: [index into classes.json of object 1, of object 2, ...]}

What always holds: a *thing* is a class of which the set has an object in some photo; pixels that have a thing's class
and are of no object (a crowd) are void for it. An object may be in several parts.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lasagna.errors import DataError
from training.data.sources.annotations import read_json
from training.data.sources.folder import read_classes
from training.data.sources.label_images import read_label_image


@dataclass(frozen=True)
class Instances:
    """The objects of one photo.

    Attributes:
        numbers: uint16 (height, width): 0 or the object's number from 1 on.
        classes: The class name of object 1, of object 2, ...
    """

    numbers: NDArray[np.uint16]
    classes: tuple[str, ...]

    def of_class(self, name: str) -> NDArray[np.int32]:
        """int32 (height, width): the objects of one class, numbered from 1 on; 0 elsewhere."""
        places = np.zeros(len(self.classes) + 1, np.int32)
        own = [i for i, found in enumerate(self.classes, start=1) if found == name]
        places[own] = range(1, len(own) + 1)
        return places[self.numbers]


class InstanceMaps:
    """The objects of a data set's photos.

    Attributes:
        root: The data set's folder.
        things: Names of classes that have an object in some photo.
    """

    def __init__(self, root: Path | str) -> None:
        """Raises DataError where the set does not tell objects apart, or the list is damaged."""
        self.root = Path(root)
        path = self.root / "instances.json"
        if not path.exists() or not (self.root / "instances").is_dir():
            raise DataError(
                f"{self.root} does not tell objects apart: it has no instances.json with a folder instances/; "
                "docs/data.md shows the layout"
            )
        _, names = read_classes(self.root / "classes.json")
        table = read_json(path)
        try:
            self._classes = {str(id): tuple(names[int(i)] for i in row) for id, row in table.items()}
        except (AttributeError, TypeError, ValueError, IndexError) as error:
            raise DataError(
                f"{path}: it needs {{ID: [class index of object 1, ...]}} with indices of classes.json ({error!r})"
            ) from error
        self.things = frozenset(name for row in self._classes.values() for name in row)

    def has(self, image_id: str) -> bool:
        """Whether the objects of a photo are told apart."""
        return image_id in self._classes and self._path(image_id).exists()

    def read(self, image_id: str, size: tuple[int, int] | None = None) -> Instances:
        """The objects of a photo.

        Args:
            image_id: The photo.
            size: Its (height, width); None: whatever the map has.

        Raises:
            DataError: The map does not fit the photo or the list.
        """
        path, classes = self._path(image_id), self._classes.get(image_id, ())
        numbers = read_label_image(path)
        height, width = size or numbers.shape
        if numbers.shape != (height, width) or numbers.dtype.kind not in "iu" or numbers.max() > len(classes):
            raise DataError(
                f"{path}: a map of {len(classes)} objects of a photo of {width} x {height} was expected, found "
                f"numbers up to {numbers.max()} in {numbers.shape[1]} x {numbers.shape[0]} ({numbers.dtype})"
            )
        return Instances(numbers.astype(np.uint16), classes)

    def _path(self, image_id: str) -> Path:
        return self.root / "instances" / f"{image_id}.png"
