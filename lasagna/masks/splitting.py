"""A class's mask cut into objects by its shape alone. Pure functions; what a model adds is in `lasagna.assistant`.

scipy and scikit-image are imported where a mask is cut: a first answer waits for neither.

What always holds: the pieces share no pixel and are together the mask; each has a pixel; the same mask gives the same
pieces, numbered from the largest on.

The shape of a mask says something where objects touch: a row of mushrooms is a chain of discs with narrow necks. It is
cut at its necks: every ridge of the distance to the border is an object at first (watershed, Vincent and Soille 1991),
and two that meet are one again unless the neck between them is clearly narrower than the narrower of the two.
"""

import cv2
import numpy as np
from numpy.typing import NDArray

from lasagna.masks.segmentation import Mask

SIDE = 512
"""Longest side in pixels of the picture that objects are told apart in: a large photo is made smaller for it."""
SPECK = 1e-3
"""Share of the image's pixels below which a connected part belongs to its neighbour and is no object of its own."""
NECK = 0.85
"""A neck between two round pieces that is wider than this share of the narrower one is none."""
ROUND = 0.6
"""Share of a piece's pixels that its largest disc has, from which on it is round."""
LIKE = 0.6
"""Share of the wider piece's width that the other one must have, else it is a bulge of it."""
MOSTLY = 0.75
"""Share of a part's pixels that must be in round pieces, else it is not cut."""

Numbers = NDArray[np.int32]
"""(height, width): 0 outside of the mask, else the number of an object from 1 on."""


def parts_of(mask: Mask) -> Numbers:
    """The connected parts (8 neighbours), each an object; specks belong to the nearest part that is none."""
    _, labels, rows, _ = cv2.connectedComponentsWithStats(mask.view(np.uint8), connectivity=8)
    numbers = np.asarray(labels, np.int32)
    areas = np.asarray(rows)[1:, cv2.CC_STAT_AREA]
    if not len(areas):
        return numbers
    least = min(SPECK * mask.size, areas.max() / 4)
    kept = np.concatenate([[False], areas >= least])
    return by_size(fill(np.where(kept[numbers], numbers, 0), mask))


def fill(numbers: Numbers, mask: Mask) -> Numbers:
    """Numbers for the whole of a mask: where it has none, that of the nearest pixel that has one; 0 outside of it."""
    from scipy.ndimage import distance_transform_edt

    missing = mask & (numbers == 0)
    if missing.any() and (numbers > 0).any():
        rows, columns = distance_transform_edt(numbers == 0, return_distances=False, return_indices=True)
        numbers = np.where(missing, numbers[rows, columns], numbers)
    return np.where(mask, numbers, 0).astype(np.int32)


def by_size(numbers: Numbers) -> Numbers:
    """The same objects, numbered from 1 on, the largest first; of equal ones the one with the lower number."""
    counts = np.bincount(numbers.reshape(-1))
    counts[0] = 0
    order = np.argsort(-counts, kind="stable")[: np.count_nonzero(counts)]
    places = np.zeros(len(counts), np.int32)
    places[order] = np.arange(1, len(order) + 1)
    return places[numbers]


def shrink(mask: Mask) -> Mask:
    """The mask at a longest side of at most `SIDE`; a mask with a pixel has one there too."""
    scale = SIDE / max(mask.shape)
    if scale >= 1:
        return mask
    height, width = (max(1, round(side * scale)) for side in mask.shape)
    share = cv2.resize(mask.astype(np.float32), (width, height), interpolation=cv2.INTER_AREA)
    return np.asarray(share >= min(0.5, float(share.max())) if mask.any() else share > 0.5, np.bool_)


def grow(numbers: Numbers, mask: Mask) -> Numbers:
    """The objects of a smaller picture on the pixels of a mask: each pixel is of the object nearest to it there."""
    if numbers.shape == mask.shape:
        return by_size(fill(numbers, mask))
    everywhere = fill(numbers, np.ones(numbers.shape, np.bool_))  # not at the photo's size, where it takes seconds
    size = (mask.shape[1], mask.shape[0])
    large = cv2.resize(everywhere.astype(np.float32), size, interpolation=cv2.INTER_NEAREST)
    return by_size(np.where(mask, large, 0).astype(np.int32))


def split_by_shape(mask: Mask) -> Numbers:
    """The mask's objects by its shape: cut at necks, see above."""
    return grow(cut_at_necks(parts_of(shrink(mask))), mask)


def cut_at_necks(parts: Numbers) -> Numbers:
    """Parts, each cut where it is narrow; numbers in no order."""
    from skimage.segmentation import watershed

    padded = np.pad(parts, 1)
    depth = _depths(padded)
    smooth = np.asarray(cv2.GaussianBlur(depth, (0, 0), 1.0), np.float32)
    seeds = np.zeros(padded.shape, np.int32)
    peaks = _peaks(smooth, padded)
    seeds[tuple(peaks.T)] = np.arange(1, len(peaks) + 1)
    # 8 neighbours, as parts have them: a pixel that hangs on a corner is no object
    found = fill(np.asarray(watershed(-smooth, seeds, connectivity=2, mask=padded > 0), np.int32), padded > 0)
    return _join(found, depth, padded)[1:-1, 1:-1]


def ridges_of(parts: Numbers) -> list[tuple[int, int]]:
    """(row, column) of the places that are farthest from the border of their part, the farthest first."""
    padded = np.pad(parts, 1)
    depth = np.asarray(cv2.GaussianBlur(_depths(padded), (0, 0), 1.0), np.float32)
    peaks = _peaks(depth, padded)
    order = np.argsort(-depth[tuple(peaks.T)], kind="stable")
    return [(int(row) - 1, int(column) - 1) for row, column in peaks[order]]


def _depths(parts: Numbers) -> NDArray[np.float32]:
    """How far each pixel of a part is from its border; parts may lie side by side."""
    from scipy.ndimage import find_objects

    depth = np.zeros(parts.shape, np.float32)
    for number, box in enumerate(find_objects(parts), start=1):
        if box is not None:
            # One pixel around, so that the border of the box is none of the part
            around = tuple(slice(max(0, side.start - 1), side.stop + 1) for side in box)
            own = (parts[around] == number).astype(np.uint8)
            found = cv2.distanceTransform(own, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
            depth[around] = np.maximum(depth[around], found)
    return depth


def _peaks(depth: NDArray[np.float32], parts: Numbers) -> NDArray[np.intp]:
    """(n, 2): rows and columns of the local maxima, those of the parts alone."""
    from skimage.feature import peak_local_max

    return np.asarray(peak_local_max(depth, min_distance=2, labels=parts, exclude_border=False))


def _join(numbers: Numbers, depth: NDArray[np.float32], parts: Numbers) -> Numbers:
    """Basins joined over necks that are none, the widest first."""
    tops = np.zeros(int(numbers.max()) + 1, np.float32)
    np.maximum.at(tops, numbers.reshape(-1), depth.reshape(-1))
    areas = np.bincount(numbers.reshape(-1)).astype(np.float64)
    necks: dict[tuple[int, int], float] = {}
    for one, other, deep in _meetings(numbers, depth):
        pair = (min(one, other), max(one, other))
        necks[pair] = max(necks.get(pair, 0.0), deep)
    root = np.arange(len(tops))

    def find(i: int) -> int:
        while root[i] != i:
            root[i] = root[root[i]]
            i = int(root[i])
        return i

    for (one, other), deep in sorted(necks.items(), key=lambda item: -item[1]):
        a, b = find(one), find(other)
        if a == b:
            continue
        narrow, wide = sorted((tops[a], tops[b]))
        are_alike = narrow >= LIKE * wide and all(np.pi * tops[i] ** 2 >= ROUND * areas[i] for i in (a, b))
        if not are_alike or deep > NECK * narrow:
            root[max(a, b)] = min(a, b)
            tops[min(a, b)] = max(tops[a], tops[b])
            areas[min(a, b)] = areas[a] + areas[b]
    places = np.array([find(i) for i in range(len(root))], np.int32)
    is_round = (np.pi * tops**2 >= ROUND * areas)[places]
    return _where_mostly_round(places[numbers], is_round[numbers], parts)


def _where_mostly_round(numbers: Numbers, is_round: Mask, parts: Numbers) -> Numbers:
    """The pieces of the parts that are mostly in round ones; other parts whole."""
    total = np.bincount(parts.reshape(-1))
    rounded = np.bincount(parts[is_round & (parts > 0)].reshape(-1), minlength=len(total))
    cut = rounded >= MOSTLY * total
    return np.where(cut[parts], numbers + len(total), parts) * (parts > 0)


def _meetings(numbers: Numbers, depth: NDArray[np.float32]) -> list[tuple[int, int, float]]:
    """Where two basins touch: their numbers and the depth there."""
    found = []
    beside = (np.s_[:-1], np.s_[1:]), (np.s_[:, :-1], np.s_[:, 1:])
    across = (np.s_[:-1, :-1], np.s_[1:, 1:]), (np.s_[:-1, 1:], np.s_[1:, :-1])
    for here, there in beside + across:
        a, b = numbers[here], numbers[there]
        touch = (a != b) & (a > 0) & (b > 0)
        deep = np.minimum(depth[here], depth[there])[touch]
        found += list(zip(a[touch].tolist(), b[touch].tolist(), deep.tolist(), strict=True))
    return found
