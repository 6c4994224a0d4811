"""Which photos of a project train and which are held out: by the photo's bytes, for good.

What always holds:

- A photo keeps its side for ever, whatever is added or taken away later: sides are kept in a file per project.
- Photos that look the same are on one side. A photo that looks like some of both sides is on neither.
- A new group of photos that look the same is placed by the hash of its first photo (the smallest hash), so chance
  decides, and the same photos are divided in the same way on another machine.

How many are held out, of n groups: a fifth; of few groups at least five, but not more than a quarter, except that it
is always as many as the gate asks for; 200 are enough. So 8 groups have 4 (fewer than `FEWEST` cannot be divided), 20
have 5, 100 have 20. A group of more than a quarter of the photos always trains.
"""

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lasagna.errors import DataError
from lasagna.files import write_atomically

Side = Literal["train", "holdout", "neither"]

FEWEST = 8
"""Groups below which nothing is held out, and so nothing can be trained and judged."""
JUDGED = 4
"""Held-out photos without which the gate promotes nothing (`training.evaluation.gate.Limits.least_photos`)."""
SAME = 6
"""Bits of 64 in which the hashes of two photos may differ that look the same. Of the photos of one kind of thing in
docs/data.md's sets (parts on a table, fields, outdoor photos) no two are as close; frames of a video are."""


@dataclass(frozen=True)
class PhotoPlace:
    """Where a photo belongs.

    Attributes:
        looks: Its difference hash (`difference_hash`), 16 hex digits.
        group: Hash of the first photo of those that look the same.
        side: Of the whole group; "neither" for a photo that looks like photos of both.
    """

    looks: str
    group: str
    side: Side


def difference_hash(photo: Image.Image) -> str:
    """What a photo looks like in 64 bits: whether each of 8 x 8 spots is brighter than its left neighbour.

    Source: dHash (N. Krawetz, "Kind of Like That", 2013). The package `imagehash` has it too, and brings PyWavelets for
    hashes that are not needed here.
    """
    grey = np.asarray(photo.convert("L").resize((9, 8), Image.Resampling.LANCZOS), np.int16)
    return np.packbits(grey[:, 1:] > grey[:, :-1]).tobytes().hex()


class Sides:
    """The places of a project's photos.

    Args:
        path: The file that keeps them; it need not exist.

    Raises:
        DataError: The file is damaged. It must not be made anew: photos would change sides.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.places: dict[str, PhotoPlace] = {}
        try:
            kept = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
            self.places = {photo: PhotoPlace(**values) for photo, values in kept.items()}
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise DataError(
                f"{path} cannot be read ({error}); it says which photos are held out, so take it from a backup"
            ) from error

    def divide(self, looks: Mapping[str, str]) -> dict[str, PhotoPlace]:
        """The place of each photo; new ones are placed and kept.

        Args:
            looks: Photo (SHA-256 of its bytes in hex) -> its `difference_hash`.

        Raises:
            DataError: They are too few to be divided. None was placed.
        """
        before = dict(self.places)
        new = sorted(photo for photo in looks if photo not in self.places)
        self._join(new, looks)
        groups = self._new_groups([photo for photo in new if photo not in self.places], looks)
        here = Counter(self.places[photo].group for photo in looks if photo in self.places)
        held = {self.places[photo].group for photo in looks if photo in self.places and self._is(photo, "holdout")}
        total = len(here) + len(groups)
        if total < FEWEST:
            self.places = before
            raise DataError(
                f"there are corrections of {total} different photos; from {FEWEST} on some can be held out, without "
                "which nobody could tell whether a new model is better: correct more"
            )
        wanted = min(200, max(5, total // 5), max(JUDGED, total // 4)) - len(held)
        for group in groups:  # in the order of the hash of their first photo
            side: Side = "holdout" if wanted > 0 and len(group) <= max(1, len(looks) // 4) else "train"
            wanted -= side == "holdout"
            for photo in group:
                self.places[photo] = PhotoPlace(looks[photo], group[0], side)
        if new:
            text = json.dumps({photo: asdict(place) for photo, place in sorted(self.places.items())}, indent=0)
            write_atomically(self.path, text)
        return {photo: self.places[photo] for photo in looks}

    def _is(self, photo: str, side: Side) -> bool:
        return self.places[photo].side == side

    def _join(self, new: Iterable[str], looks: Mapping[str, str]) -> None:
        """Places photos that look like placed ones."""
        known = [photo for photo, place in self.places.items() if place.side != "neither"]
        bits = _bits(self.places[photo].looks for photo in known)
        for photo in new:
            if not len(bits):
                return
            distances = _distances(bits, looks[photo])
            near = np.flatnonzero(distances <= SAME)
            if not len(near):
                continue
            nearest = self.places[known[int(near[np.argmin(distances[near])])]]
            sides = {self.places[known[int(i)]].side for i in near}
            side: Side = nearest.side if len(sides) == 1 else "neither"
            self.places[photo] = PhotoPlace(looks[photo], nearest.group, side)

    @staticmethod
    def _new_groups(photos: list[str], looks: Mapping[str, str]) -> list[list[str]]:
        """Photos that look the same, directly or through others, together; each group and all of them sorted."""
        bits, left, groups = _bits(looks[photo] for photo in photos), set(range(len(photos))), []
        while left:
            group, border = [], [min(left)]
            left.discard(border[0])
            while border:
                at = border.pop()
                group.append(photos[at])
                near = [int(i) for i in np.flatnonzero(_distances(bits, looks[photos[at]]) <= SAME) if int(i) in left]
                left.difference_update(near)
                border += near
            groups.append(sorted(group))
        return groups


def _bits(hashes: Iterable[str]) -> NDArray[np.uint64]:
    return np.array([int(one, 16) for one in hashes], np.uint64)


def _distances(bits: NDArray[np.uint64], looks: str) -> NDArray[np.uint8]:
    return np.bitwise_count(bits ^ np.uint64(int(looks, 16)))
