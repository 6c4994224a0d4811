"""Referring expressions made from masks: "the largest dog", "the second car from the left", "both cows", with their
targets.

No photos with published expressions are at hand, so these stand in for them, in training and as an evaluation set: any
data set in the folder layout gives some. An instance is a connected component of a countable class. Masks do not say
which pixels are one object, so an expression is only made where they leave no doubt: differences in size and place are
wide, and where two components may be one object behind a void border, nothing is counted. Four kinds, as in gRefCOCO:
one target among several of its class, the only one of its class, several targets, and none (the class is absent).

What always holds: the expressions of a photo follow from its mask, its id and the seed alone; void, and specks of the
class that belong to no instance, are void in the label map; a text fits no other region that is annotated.
"""

import itertools
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from training.data.concepts import concept_of, is_doubtful_negative
from training.data.records import OTHER, UNKNOWN, LabelMap, Record
from training.data.sources.folder import Folder

_OBJECTS = """
    person, face, bicyclist, car, bus, truck, bicycle, motorcycle, train, boat, airplane, traffic sign, stop
    sign, traffic light, parking meter, fire hydrant, bench, bird, cat, dog, horse, sheep, cow, elephant,
    bear, zebra, giraffe, backpack, umbrella, purse, bag, tie, suitcase, frisbee, snowboard, sports ball,
    kite, baseball bat, baseball glove, skateboard, surfboard, tennis racket, bottle, wine glass, cup, fork,
    knife, spoon, bowl, banana, apple, sandwich, orange, carrot, hot dog, pizza, donut, cake, chair, couch,
    potted plant, bed, dining table, toilet, tv, laptop, mouse, remote, keyboard, cell phone, microwave, oven,
    toaster, sink, refrigerator, book, clock, vase, teddy bear, hair drier, toothbrush, house, tent, sign,
    motor, hat, dress, coat, scarf
"""
COUNTABLE = frozenset(" ".join(concept.split()) for concept in _OBJECTS.split(","))
"""Concepts (`training.data.concepts`) that come as single objects: no stuff, no pairs, nothing that is rarely whole."""

WORN = frozenset({"hat", "dress", "coat", "scarf"})
"""Things whose two components are as likely one garment behind an arm: they are not told apart."""

SMALLEST = 0.003
"""An instance covers at least this share of the photo; smaller components are specks."""
SPECKS = 0.2
"""Where the specks together are larger than this share of the smallest instance, instances are not counted."""
LARGER = 1.5
"""The largest instance has so many times the pixels of the next, the smallest so many times fewer."""
APART = {"x": 0.08, "y": 0.12}
"""Distance between the centres of neighbours, in widths and heights of the photo."""
GAP = 5
"""Pixels of void, from either side, across which two components may be one object."""

Part = tuple[int, tuple[int, ...] | None]
"""A class and the numbers of its components, or None for all of it, specks too."""


@dataclass(frozen=True)
class Expression:
    """Wordings that mean the same, and what they mean.

    Attributes:
        key: Unique in the photo.
        texts: Any of them may be asked.
        parts: Nothing where no target is meant.
        several: Whether more than one object is meant.
    """

    key: str
    texts: tuple[str, ...]
    parts: tuple[Part, ...] = ()
    several: bool = False


@dataclass(frozen=True)
class _Instance:
    number: int
    area: int
    x: float
    y: float


class Expressions:
    """One split of one data set in the folder layout, as referring expressions.

    Attributes:
        classes: Empty: these are texts.
    """

    classes: tuple[str, ...] = ()

    def __init__(
        self, root: Path, split: str, per_photo: int = 4, nothing: float = 0.4, several: bool = True, seed: int = 0
    ) -> None:
        """Reads every mask of the split once.

        Args:
            root: The data set's folder.
            split: Which list of ids.
            per_photo: Most expressions with a target of one photo.
            nothing: Share of the photos that get one expression without a target besides.
            several: Whether expressions that mean more than one object are among them.
            seed: Of the choice among all expressions of a photo.

        Raises:
            DataError: The folder is not in the layout, or a mask cannot be read.
        """
        folder = Folder(root, split)
        self._found: list[tuple[Record, Expression]] = []
        for photo in (folder[index] for index in range(len(folder))):
            (mask,) = photo.read()
            rng = random.Random(f"expressions-{seed}-{photo.image_id}")
            possible = [one for one in expressions_of(mask, folder.classes) if several or not one.several]
            chosen = rng.sample(possible, min(per_photo, len(possible)))
            absent = nothing_meant(mask, folder.classes)
            if absent and rng.random() < nothing:
                chosen.append(rng.choice(absent))
            self._found += [(photo, expression) for expression in chosen]

    def __len__(self) -> int:
        return len(self._found)

    def __getitem__(self, index: int) -> Record:
        photo, expression = self._found[index]
        return Record(
            "expressions",
            f"{photo.image_id} {expression.key}",
            photo.image_path,
            texts=expression.texts,
            labels=partial(_labels, photo, expression.parts),
        )


def _labels(photo: Record, parts: Sequence[Part]) -> LabelMap:
    (mask,) = photo.read()
    return target_map(mask, parts)


def target_map(mask: NDArray[np.int16], parts: Sequence[Part]) -> LabelMap:
    """The label map of what is meant: 0 the target, `OTHER`, and `UNKNOWN` for void and for specks of a class whose
    instances are told apart."""
    labels = np.full(mask.shape, OTHER, np.int16)
    labels[mask == UNKNOWN] = UNKNOWN
    for index, numbers in parts:
        if numbers is None:
            labels[mask == index] = 0
            continue
        components, instances = _instances(mask == index)
        specks = (components > 0) & ~np.isin(components, [instance.number for instance in instances])
        labels[specks] = UNKNOWN
        labels[np.isin(components, numbers)] = 0
    return labels[None]


def expressions_of(mask: NDArray[np.int16], classes: Sequence[str]) -> list[Expression]:
    """Every expression with a target that the mask allows, in a fixed order.

    Args:
        mask: int16 (H, W), a layer of a label map: indices into `classes`, `OTHER` or `UNKNOWN`.
        classes: Names of the data set.
    """
    found: list[Expression] = []
    alone: list[tuple[str, int]] = []
    names = _distinct(classes, np.unique(mask))
    for index, name in names.items():
        instances = _clear_instances(mask, index)
        if len(instances) == 1:
            alone.append((name, index))
            texts = (f"the {name}", name, f"the only {name}")
            found.append(Expression(f"only {name}", texts, ((index, None),)))
        elif len(instances) > 1 and concept_of(name) not in WORN:
            found += _among(name, index, instances, mask.shape)
    found += [
        Expression(f"{a} and {b}", (f"the {a} and the {b}", f"the {b} and the {a}"), ((i, None), (j, None)), True)
        for place, (a, i) in enumerate(alone)
        for b, j in alone[place + 1 :]
    ]
    return found


def nothing_meant(mask: NDArray[np.int16], classes: Sequence[str]) -> list[Expression]:
    """An expression without a target for every countable class that is certainly not in the photo."""
    present = [classes[index] for index in np.unique(mask) if index >= 0]
    wordings: tuple[Callable[[str], str], ...] = (
        lambda name: f"the {name}",
        lambda name: f"the {name} on the left",
        lambda name: f"the largest {name}",
        lambda name: f"the {name} in the middle",
        lambda name: f"the two {_plural(name)}",
    )
    absent = [i for i, name in enumerate(classes) if name not in present and not is_doubtful_negative(name, present)]
    return [
        Expression(f"no {name}", tuple(wording(name) for wording in wordings))
        for name in _distinct(classes, absent).values()
    ]


def _distinct(classes: Sequence[str], indices: Any) -> dict[int, str]:
    """Countable classes by index, as a text names them; two classes of one concept are both left out."""
    countable = {int(i): concept_of(classes[i]) for i in indices if i >= 0}
    kept = {i: concept for i, concept in countable.items() if concept in COUNTABLE}
    concepts = list(kept.values())
    return {i: classes[i].replace("_", " ") for i, concept in kept.items() if concepts.count(concept) == 1}


def _instances(region: NDArray[np.bool_]) -> tuple[NDArray[np.int32], list[_Instance]]:
    """All components of a class, numbered from 1, and those that are large enough to be instances."""
    _, components, stats, centres = cv2.connectedComponentsWithStats(region.astype(np.uint8))
    least = SMALLEST * region.size
    areas = stats[:, cv2.CC_STAT_AREA]
    return np.asarray(components, np.int32), [
        _Instance(i, int(areas[i]), float(centres[i, 0]), float(centres[i, 1]))
        for i in range(1, len(stats))
        if areas[i] >= least
    ]


def _clear_instances(mask: NDArray[np.int16], index: int) -> list[_Instance]:
    """The instances of a class, or none where it is not clear how many there are."""
    region = mask == index
    components, instances = _instances(region)
    if not instances:
        return []
    covered = sum(instance.area for instance in instances)
    if int(region.sum()) - covered > SPECKS * min(instance.area for instance in instances):
        return []
    grown = cv2.dilate(region.astype(np.uint8), np.ones((2 * GAP + 1,) * 2, np.uint8)) & (region | (mask == UNKNOWN))
    _, joined = cv2.connectedComponents(grown.astype(np.uint8))
    groups = {int(joined[components == instance.number][0]) for instance in instances}
    return instances if len(groups) == len(instances) else []


def _among(name: str, index: int, instances: Sequence[_Instance], shape: Sequence[int]) -> list[Expression]:
    """Expressions about one or several of two or more instances."""
    count, plural = len(instances), _plural(name)
    found: list[Expression] = []

    def add(key: str, chosen: Sequence[_Instance], *texts: str) -> None:
        parts = ((index, tuple(one.number for one in chosen)),)
        found.append(Expression(f"{key} {name}", texts, parts, len(chosen) > 1))

    by_size = sorted(instances, key=lambda one: one.area)
    if by_size[-1].area >= LARGER * by_size[-2].area:
        add("largest", by_size[-1:], f"the largest {name}", f"the biggest {name}")
    if by_size[1].area >= LARGER * by_size[0].area:
        add("smallest", by_size[:1], f"the smallest {name}", f"the {name} that is smallest")

    across, gaps = _ordered(instances, "x", shape[1])
    for side, row, clear in (("left", across, gaps), ("right", across[::-1], gaps[::-1])):
        if count == 2 and clear[0]:
            add(side, row[:1], f"the {name} on the {side}", f"the {side} {name}", f"the {side}most {name}")
        elif count > 2 and clear[0]:
            add(side, row[:1], f"the {side}most {name}", f"the {name} furthest to the {side}")
        for place in range(1, min(count - 1, 4)):
            if all(clear[: place + 1]):
                texts = (
                    f"the {_ordinal(place + 1)} {name} from the {side}",
                    f"{_ordinal(place + 1)} {name} from {side}",
                )
                add(f"{place + 1} from {side}", row[place : place + 1], *texts)
        if count > 2 and clear[1]:
            add(f"two {side}", row[:2], f"the two {plural} on the {side}", f"the two {side}most {plural}")
    if count == 3 and all(gaps):
        add("middle", across[1:2], f"the {name} in the middle", f"the middle {name}")

    down, gaps = _ordered(instances, "y", shape[0])
    if gaps[0]:
        add("top", down[:1], f"the {name} at the top", f"the {name} near the top", f"the highest {name}")
    if gaps[-1]:
        add("bottom", down[-1:], f"the {name} at the bottom", f"the {name} near the bottom", f"the lowest {name}")

    if count <= 5:
        texts = (f"the {_number(count)} {plural}", f"all the {plural}")
        found.append(
            Expression(f"all {name}", (f"both {plural}", *texts[:1]) if count == 2 else texts, ((index, None),), True)
        )
    return found


def _ordered(instances: Sequence[_Instance], axis: str, length: int) -> tuple[list[_Instance], list[bool]]:
    """The instances along an axis, and which neighbours are clearly apart on it."""
    ordered = sorted(instances, key=lambda one: (getattr(one, axis), one.number))
    places = [getattr(one, axis) for one in ordered]
    return ordered, [b - a >= APART[axis] * length for a, b in itertools.pairwise(places)]


@cache
def _words() -> Any:
    import inflect  # takes half a second

    return inflect.engine()


def _plural(name: str) -> str:
    return str(_words().plural_noun(name))


def _number(count: int) -> str:
    return str(_words().number_to_words(count))


def _ordinal(count: int) -> str:
    return str(_words().ordinal(_number(count)))
