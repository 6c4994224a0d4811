"""How well are objects told apart? Panoptic quality, and the average precision of masks.

Panoptic quality (Kirillov et al., arXiv 1801.00868): an object and a piece of the answer with an IoU above 0.5 are a
match, and no piece has two. SQ is the mean IoU of matches, RQ = TP / (TP + FP / 2 + FN / 2), PQ their product; each per
class, then the mean over the classes that have an object or a piece.
AP50: COCO's average precision of masks at an IoU of 0.5, by pycocotools, over the same classes that have an object.

What always holds: void pixels, and pixels of a class that belong to no object of it (a crowd), count in no IoU, and a
piece that lies mostly in them is no mistake.
"""

import contextlib
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lasagna.masks.conversions import mask_to_box, mask_to_coco_rle
from lasagna.masks.objects import Objects
from lasagna.masks.segmentation import Mask

MOST_PIECES = 1000
"""Pieces of a class in a photo that the average precision looks at; COCO's own limit of 100 is below a bed of
mushrooms."""


@dataclass
class Counts:
    """Matches and mistakes of one class.

    Attributes:
        matched: Objects that have a piece.
        wrong: Pieces without an object.
        missed: Objects without a piece.
        iou: The sum over the matches.
    """

    matched: int = 0
    wrong: int = 0
    missed: int = 0
    iou: float = 0.0

    def __iadd__(self, other: "Counts") -> "Counts":
        self.matched += other.matched
        self.wrong += other.wrong
        self.missed += other.missed
        self.iou += other.iou
        return self

    @property
    def weight(self) -> float:
        """What PQ divides by; 0 where there is neither an object nor a piece."""
        return self.matched + (self.wrong + self.missed) / 2

    @property
    def pq(self) -> float | None:
        return self.iou / self.weight if self.weight else None

    @property
    def sq(self) -> float | None:
        return self.iou / self.matched if self.matched else None

    @property
    def rq(self) -> float | None:
        return self.matched / self.weight if self.weight else None


def count_matches(truth: NDArray[np.integer], void: Mask, pieces: NDArray[np.integer]) -> Counts:
    """The matches of one class in one photo.

    Args:
        truth: (height, width): numbers of objects, 1..n, 0 elsewhere.
        void: bool (height, width): what counts nowhere; no pixel of an object.
        pieces: (height, width): numbers of the answer's pieces, 1..m, 0 elsewhere.
    """
    objects, found = int(truth.max(initial=0)), int(pieces.max(initial=0))
    table = np.bincount(
        pieces.astype(np.int64).reshape(-1) * (objects + 1) + truth.reshape(-1), minlength=(found + 1) * (objects + 1)
    ).reshape(found + 1, objects + 1)
    in_void = np.bincount(pieces[void].reshape(-1), minlength=found + 1)[1:]
    areas, wanted, common = table.sum(1)[1:], table.sum(0)[1:], table[1:, 1:]
    unions = (areas - in_void)[:, None] + wanted[None] - common
    iou = common / np.maximum(unions, 1)
    match = iou > 0.5
    wrong = ~match.any(1) & (areas > 0) & (in_void <= areas / 2)
    missed = ~match.any(0) & (wanted > 0)
    return Counts(int(match.sum()), int(wrong.sum()), int(missed.sum()), float(iou[match].sum()))


@dataclass
class ObjectScores:
    """The figures of one way to tell objects apart.

    Attributes:
        counts: By class.
    """

    counts: dict[str, Counts] = field(default_factory=dict)
    _truth: list[dict[str, Any]] = field(default_factory=list)
    _found: list[dict[str, Any]] = field(default_factory=list)
    _photos: list[dict[str, int]] = field(default_factory=list)

    def add(self, classes: Mapping[str, tuple[NDArray[np.integer], Mask, Objects | None]]) -> None:
        """One photo: of each class the objects, what is void for it, and the answer's pieces (None: it is absent)."""
        shapes = [truth.shape for truth, *_ in classes.values()][:1]
        self._photos += [{"id": len(self._photos) + 1, "height": h, "width": w} for h, w in shapes]
        for name, (truth, void, pieces) in classes.items():
            numbers = np.zeros(truth.shape, np.uint16) if pieces is None else pieces.numbers
            counts = count_matches(truth, void, numbers)
            if counts.weight or truth.any():
                self.counts.setdefault(name, Counts()).__iadd__(counts)
            self._truth += [self._entry(name, truth == i) for i in range(1, int(truth.max(initial=0)) + 1)]
            if void.any():
                self._truth.append({**self._entry(name, void), "iscrowd": 1})
            self._found += [{**self._entry(name, each.mask), "score": each.score} for each in pieces or ()]

    def _entry(self, name: str, mask: Mask) -> dict[str, Any]:
        x0, y0, x1, y1 = mask_to_box(mask) or (0, 0, 0, 0)
        area = int(mask.sum())
        entry = {
            "image_id": len(self._photos),
            "category_id": name,
            "segmentation": mask_to_coco_rle(mask),
            "area": area,
        }
        return {**entry, "bbox": [x0, y0, x1 - x0, y1 - y0], "iscrowd": 0}

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready: `pq`, `sq`, `rq`, `ap50` (None where nothing defines them), counts, and each class."""
        total = Counts()
        for one in self.counts.values():
            total += one
        rows = {
            name: {"pq": one.pq, "sq": one.sq, "rq": one.rq, "objects": one.matched + one.missed}
            for name, one in sorted(self.counts.items())
        }
        return {
            **{what: _mean([row[what] for row in rows.values()]) for what in ("pq", "sq", "rq")},
            "ap50": self.ap50(),
            "objects": total.matched + total.missed,
            "matched": total.matched,
            "wrong": total.wrong,
            "missed": total.missed,
            "pq_of_all_objects": total.pq,
            "per_class": rows,
        }

    def ap50(self) -> float | None:
        """The mean over classes that have an object; None where no class has one."""
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval

        names = sorted({entry["category_id"] for entry in self._truth if not entry["iscrowd"]})
        ids = {name: i for i, name in enumerate(names, start=1)}
        if not names:
            return None
        with contextlib.redirect_stdout(io.StringIO()):
            truth, found = COCO(), COCO()
            frame = {
                "info": {},
                "images": self._photos,
                "categories": [{"id": i, "name": name} for name, i in ids.items()],
            }
            truth.dataset = {**frame, "annotations": list(_numbered(self._truth, ids))}
            found.dataset = {**frame, "annotations": list(_numbered(self._found, ids))}
            truth.createIndex()
            found.createIndex()
            scoring = COCOeval(truth, found, "segm")
            scoring.params.iouThrs = np.array([0.5])
            scoring.params.maxDets = [MOST_PIECES]
            scoring.params.areaRng, scoring.params.areaRngLbl = [[0, 1e10]], ["all"]
            scoring.evaluate()
            scoring.accumulate()
        precision = scoring.eval["precision"][0, :, :, 0, 0]  # (recalls, classes); -1: the class has no object
        return _mean([float(column.mean()) for column in precision.T if (column > -1).any()])


def _numbered(entries: Sequence[dict[str, Any]], ids: Mapping[str, int]) -> Iterator[dict[str, Any]]:
    for number, entry in enumerate(entries, start=1):
        if entry["category_id"] in ids:
            yield {**entry, "id": number, "category_id": ids[entry["category_id"]]}


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
