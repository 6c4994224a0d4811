"""A model beside the instant head of annotated photos, each of which is answered by a head that has not seen it.

    served = LeaveOneOut(model, records, is_new=lambda record: record.image_id not in trained)
    scores = score_images(served, held_out)          one of the records, or any other photo

So what serves a project, model and head together, is measured on the very photos that the head learnt from. What always
holds: a photo's own pixels touch none of the weights that it is answered with (`lasagna.instant.fit.Learner.without`);
the head serves under the conditions of the product: only photos that are new to the model say how good the model is
there; the model itself is left as it was.
"""

import hashlib
import logging
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from lasagna import Lasagna
from lasagna.errors import DataError, LasagnaError
from lasagna.instant.fit import Learner
from lasagna.instant.head import Head
from lasagna.masks.segmentation import Segmentation
from training.data.records import UNKNOWN, Record
from training.data.spread import spread
from training.evaluation.scoring import read_photo

logger = logging.getLogger(__name__)

MOST_KNOWN = 200
"""Photos that the model was trained on of which the head learns at most: each takes half a second, and evidence are the
others."""


class LeaveOneOut:
    """Answers class lists as `Lasagna.segment_batch` does, with the head.

    Args:
        model: Without a head of its own.
        records: Annotated photos; one that cannot be read is passed over with a warning.
        is_new: Whether the model was not trained on a photo.
        on_image: Called after each.

    Attributes:
        head: What was learnt from all; None: from nothing.
    """

    def __init__(
        self,
        model: Lasagna,
        records: Sequence[Record],
        is_new: Callable[[Record], bool],
        on_image: Callable[[], None] = lambda: None,
    ) -> None:
        self._model, self._learner = model, Learner()
        self._ids: dict[str, list[str]] = defaultdict(list)
        known = [record for record in records if not is_new(record)]
        chosen = [known[i] for i in spread(len(known), MOST_KNOWN)]
        # The newest are left out in turn to choose by: those that are evidence.
        for record, new in [*((each, False) for each in chosen), *((each, True) for each in records if is_new(each))]:
            try:
                self._learn(record, new)
            except LasagnaError as error:
                logger.warning("photo %s is not learnt from: %s", record.image_id, error)
            on_image()
        try:
            self.head: Head | None = self._learner.fit() if len(self._learner) else None
        except DataError as error:
            logger.warning("no head: %s", error)
            self.head = None

    def _learn(self, record: Record, is_new: bool) -> None:
        if not record.classes:
            raise DataError(f"{record.source} {record.image_id} has no class list")
        image, labels = read_photo(record)
        masks = {name: (labels == i).any(0) for i, name in enumerate(record.classes)}
        id = str(self._learner.next_order)
        undecided = (labels == UNKNOWN).any(0)
        correction = self._model.observe(image, masks, id, undecided=undecided, is_evidence=is_new)
        self._learner.put(correction.numbered(self._learner.next_order))
        self._ids[_content(image)].append(id)

    @property
    def reason(self) -> str:
        """The gate's words about the head."""
        return "nothing to learn from" if self.head is None else self.head.decision.reason

    def segment_batch(
        self,
        images: Sequence[Any],
        class_lists: Sequence[Sequence[Any]],
        /,
        *,
        threshold: float | None = None,
        exclusive: bool = False,
        chunk_size: int | None = None,
        guess_unknown: bool = False,
    ) -> list[Segmentation]:
        """As `Lasagna.segment_batch`; the images are upright, as `lasagna.load_image` gives them."""
        answers = []
        for image, classes in zip(images, class_lists, strict=True):
            answers += self._model.segment_batch(
                [image],
                [classes],
                threshold=threshold,
                exclusive=exclusive,
                chunk_size=chunk_size,
                guess_unknown=guess_unknown,
                head=self._head_without(self._ids.get(_content(image), [])),
            )
        return answers

    def _head_without(self, ids: list[str]) -> Head | None:
        if self.head is None or not ids:
            return self.head
        try:
            return self._learner.without(ids, self.head)
        except DataError:  # it is the only photo
            return None


def _content(image: Any) -> str:
    pixels = np.asarray(image)
    return hashlib.sha256(repr(pixels.shape).encode() + pixels.tobytes()).hexdigest()
