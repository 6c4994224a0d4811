"""The core type: what the model says of one image.

`Segmentation` crosses every border of the project. It is immutable, holds one `ClassAnswer` per queried class in query
order, and everything else (Label Studio regions, COCO, PNG, overlays) is a pure function of it. Each answer is one of
three: the class is present (with a mask), absent (with a probability), or unknown: the model cannot be asked for it.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from lasagna.errors import QueryError
from lasagna.masks.objects import Objects

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class ClassQuery:
    """A class to ask for.

    Attributes:
        name: The label as the user wrote it; answers carry it unchanged.
        reads_as: An alias or a description that the model reads instead of the name, or None.
        threshold: Probability from which this class is present, in (0, 1); None: as for the others of the call.
        objects: Whether the class's objects are told apart (`ClassAnswer.objects`); None: not said, and they are not.
    """

    name: str
    reads_as: str | None = None
    threshold: float | None = None
    objects: bool | None = None

    @property
    def text(self) -> str:
        """What the model reads."""
        return self.name if self.reads_as is None else self.reads_as


@dataclass(frozen=True, eq=False)
class ClassAnswer:
    """The answer for one class.

    Attributes:
        name: The label as it was asked.
        probability: That the class is present, in [0, 1]; NaN where it is unknown, which no comparison takes for one.
        mask: bool (height, width) of the image, or None where the class is absent or unknown. A present class's mask
            may be all False (the model says "present" but finds no pixel).
        stability: How much the mask would change with the threshold, in [0, 1], 1 not at all: SAM's stability score,
            the IoU of the masks at logit thresholds of +1 and -1. None where it is not known, and of absent classes.
        is_unknown: The model was not asked, for it was never taught the class: neither drawn nor an absence.
        objects: The mask's parts, one for each object: they share no pixel, and together they are exactly the mask.
            None: not told apart, and of a class that is not present.
    """

    name: str
    probability: float
    mask: Mask | None
    stability: float | None = None
    is_unknown: bool = False
    objects: Objects | None = None

    def __post_init__(self) -> None:
        if self.is_unknown != math.isnan(self.probability) or (self.is_unknown and self.mask is not None):
            raise ValueError(
                f"an unknown class has neither probability nor mask, every other has a probability; {self.name!r} has "
                f"{self.probability}"
            )
        if self.mask is not None:
            if self.mask.dtype != np.bool_ or self.mask.ndim != 2:
                raise ValueError(f"a mask is a 2-D bool array, not {self.mask.dtype} {self.mask.shape}")
            self.mask.flags.writeable = False
        if self.objects is not None:
            numbers = self.objects.numbers
            if self.mask is None or numbers.shape != self.mask.shape or not ((numbers > 0) == self.mask).all():
                raise ValueError(f"the objects of {self.name!r} are together exactly its mask; these are not")

    @classmethod
    def unknown(cls, name: str) -> "ClassAnswer":
        """The answer for a class that the model cannot be asked for."""
        return cls(name, math.nan, None, is_unknown=True)

    @property
    def is_present(self) -> bool:
        return self.mask is not None

    @property
    def state(self) -> Literal["present", "absent", "unknown"]:
        """In one word, as it is written to files."""
        return "unknown" if self.is_unknown else "present" if self.is_present else "absent"

    @property
    def area(self) -> int:
        """Pixels of the mask; 0 where there is none."""
        return 0 if self.mask is None else int(self.mask.sum())


@dataclass(frozen=True, eq=False)
class Segmentation:
    """The answers for one image.

    Attributes:
        size: (height, width) in pixels, after EXIF orientation.
        classes: One answer per queried class, in query order.
    """

    size: tuple[int, int]
    classes: tuple[ClassAnswer, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "classes", tuple(self.classes))
        for answer in self.classes:
            if answer.mask is not None and answer.mask.shape != self.size:
                raise ValueError(f"mask of {answer.name!r} is {answer.mask.shape}, the image is {self.size}")

    @property
    def present(self) -> tuple[ClassAnswer, ...]:
        return tuple(answer for answer in self.classes if answer.is_present)

    @property
    def absent(self) -> tuple[ClassAnswer, ...]:
        """What the model was asked and does not find."""
        return tuple(answer for answer in self.classes if answer.state == "absent")

    @property
    def unknown(self) -> tuple[ClassAnswer, ...]:
        """What the model cannot be asked for; not among the absent."""
        return tuple(answer for answer in self.classes if answer.is_unknown)

    def __iter__(self) -> Iterator[ClassAnswer]:
        return iter(self.classes)

    def __len__(self) -> int:
        return len(self.classes)

    def __contains__(self, name: object) -> bool:
        """Whether a class of that name was asked."""
        return any(answer.name == name for answer in self.classes)

    def __getitem__(self, name: str) -> ClassAnswer:
        """The first answer of that name. Raises KeyError where the class was not asked."""
        for answer in self.classes:
            if answer.name == name:
                return answer
        raise KeyError(name)


def class_queries(classes: Sequence[str | ClassQuery]) -> list[ClassQuery]:
    """Class names or queries as queries.

    Raises:
        QueryError: It is no list of names (of a text alone the letters would be asked) or empty, or a name is blank.
    """
    if isinstance(classes, str | bytes):
        raise QueryError(f"the classes are a list of names, not the text {classes!r}; write [{classes!r}]")
    if isinstance(classes, ClassQuery) or not isinstance(classes, Iterable):
        raise QueryError(f'the classes are a list of names, such as ["sky", "road"], not {_called(classes)}')
    if isinstance(classes, Mapping | Set):
        raise QueryError(
            f"the classes are a list of names, in the order of the answers, not {_called(classes)}; write list(...)"
        )
    queries = []
    for i, query in enumerate(classes):
        if not isinstance(query, str | ClassQuery):
            raise QueryError(f"class {i + 1} is {_called(query)}; a class is a name or a ClassQuery")
        queries.append(ClassQuery(query) if isinstance(query, str) else query)
    if not queries:
        raise QueryError("no class to ask for: the class list is empty; give at least one label")
    for i, query in enumerate(queries):
        if not query.name.strip() or not query.text.strip():
            raise QueryError(f"class {i + 1} of {len(queries)} is blank ({query.name!r}); remove it or give it a name")
        if query.threshold is not None and not 0 < query.threshold < 1:
            raise QueryError(f"the threshold of {query.name!r} is between 0 and 1, not {query.threshold!r}")
    return queries


def _called(value: object) -> str:
    return "None" if value is None else f"{type(value).__name__} {str(value)[:60]!r}"
