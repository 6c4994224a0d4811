"""Objects of a class that a person cut in two, or put together: what the pixels of the class do not show.

What always holds: only classes whose objects are told apart are looked at, each control by itself, for a class that is
drawn by a brush and a box has each object twice; an object that was moved, changed, added or deleted is neither cut nor
merged.
"""

from collections.abc import Collection, Iterable, Mapping

import numpy as np

from lasagna.formats.annotations import regions_to_objects
from lasagna.formats.regions import Region
from lasagna.masks.objects import Objects


def cuts_and_merges(
    before: Iterable[Region], after: Iterable[Region], names: Collection[str], size: tuple[int, int]
) -> dict[str, tuple[int, int]]:
    """How often objects of each class were cut and merged; classes without either are missing.

    Args:
        before: Regions of the prediction.
        after: Regions that were submitted.
        names: Labels whose objects are told apart.
        size: (height, width) of the image.

    Returns:
        Label -> the cuts (an object in three is two cuts) and the merges (three objects in one are two).

    Raises:
        DataError: A region is damaged.
    """
    sides = [_of_controls(regions, names) for regions in (before, after)]
    found: dict[str, tuple[int, int]] = {}
    for key in sides[0].keys() & sides[1].keys():
        old, new = (dict(regions_to_objects(((key, each) for each in side[key]), size))[key] for side in sides)
        cuts, merges = _splits(old, new), _splits(new, old)
        if cuts or merges:
            name = key[0]
            earlier = found.get(name, (0, 0))  # of several controls, the one in which most was done
            found[name] = (max(earlier[0], cuts), max(earlier[1], merges))
    return found


def _of_controls(regions: Iterable[Region], names: Collection[str]) -> Mapping[tuple[str, str], list[Region]]:
    found: dict[tuple[str, str], list[Region]] = {}
    for region in regions:
        for label in region.labels:
            if label.value in names:
                found.setdefault((label.value, region.control), []).append(region)
    return found


def _splits(whole: Objects, pieces: Objects) -> int:
    """How many pieces more there are than objects that they lie in: a piece lies in the object that has most of it,
    and only objects that are mostly in pieces of theirs count."""
    count = len(pieces) + 1
    flat = whole.numbers.astype(np.int64).reshape(-1) * count + pieces.numbers.reshape(-1)
    common = np.bincount(flat, minlength=(len(whole) + 1) * count).reshape(len(whole) + 1, count)
    lies_in = common[1:, 1:] > common[:, 1:].sum(0) / 2
    covered = np.where(lies_in, common[1:, 1:], 0).sum(1) > common[1:].sum(1) / 2
    return int(np.maximum(lies_in[covered].sum(1) - 1, 0).sum())
