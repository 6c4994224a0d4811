"""One annotated image or text, whatever data set it comes from.

A reader (`training.data.sources`) yields `Record`s; nothing is read from disk until `Record.read` is called, so a list
of a million records is small. What always holds in a label map: a value >= 0 is an index into the record's `classes`
(or 0, for the one target of a text), `OTHER` is annotated as none of them, and `UNKNOWN` is void, which counts in no
loss and in no metric.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lasagna.errors import DataError
from lasagna.masks.objects import Objects

OTHER, UNKNOWN = -1, -2

LabelMap = NDArray[np.int16]
"""(layers, height, width). Masks that overlap lie in different layers; most data sets have one layer. `UNKNOWN` holds
for a pixel when any layer has it."""


@dataclass(frozen=True)
class Record:
    """One question's worth of annotation. Exactly one of `classes`, `texts` and `turns` is not empty.

    Attributes:
        source: Name of the reader.
        image_id: Unique within the source and split.
        image_path: The photo, or None for text without one.
        classes: Class list: every name about which the annotation decides, present in the photo or certainly absent.
            A name that is not in it is unknown, and is never a negative.
        texts: Referring expressions or questions that mean the same one target; any one of them may be asked.
        turns: Conversation without masks, (question, answer) in order.
        answer: What is said about the target besides its mask (the explanation of a reasoning question), or None.
        labels: Reads the label map; None where there are no masks. With `texts` a map without a 0 says that nothing in
            the photo is meant (gRefCOCO's "no target").
        size: (height, width) of the photo where the annotation states it, else None.
        objects: Reads the objects of the classes whose objects are told apart, by the class's name, also of those that
            the photo does not have; None: nothing tells objects apart.
    """

    source: str
    image_id: str
    image_path: Path | None
    classes: tuple[str, ...] = ()
    texts: tuple[str, ...] = ()
    turns: tuple[tuple[str, str], ...] = ()
    answer: str | None = None
    labels: Callable[[], LabelMap] | None = None
    size: tuple[int, int] | None = None
    objects: Callable[[], Mapping[str, Objects]] | None = None

    def read(self) -> LabelMap:
        """The label map. Raises DataError where the record has none or a file of it is broken."""
        if self.labels is None:
            raise DataError(f"{self.source} {self.image_id} is text without masks")
        return self.labels()


def stack_masks(size: tuple[int, int], masks: Iterable[tuple[int, NDArray[np.bool_]]]) -> LabelMap:
    """A label map of masks that may overlap: each goes to the first layer where it covers no other class.

    Args:
        size: (height, width).
        masks: (index, bool (height, width)); several of one index are united.

    Raises:
        DataError: So many classes lie over one another that the map would have more than `MOST_LABEL_BYTES`.
    """
    layers = [np.full(size, OTHER, np.int16)]
    for index, mask in masks:
        for layer in layers:
            covered = layer[mask]
            if ((covered == OTHER) | (covered == index)).all():
                break
        else:
            if (len(layers) + 1) * layer.nbytes > MOST_LABEL_BYTES:
                raise DataError(
                    f"more than {len(layers)} classes lie over one another on {size[1]} x {size[0]} pixels, and their "
                    f"label map may have {MOST_LABEL_BYTES} bytes"
                )
            layer = np.full(size, OTHER, np.int16)
            layers.append(layer)
        layer[mask] = index
    return np.stack(layers) if len(layers) > 1 else layers[0][None]


MOST_LABEL_BYTES = 1 << 30
"""Of one photo's label map; at 12 megapixels 44 classes over one another."""


def require_files(what: str, root: Path, paths: Sequence[Path]) -> None:
    """Raises DataError that lists what was looked for and is not there.

    Args:
        what: The data set, with where it is published, for the message.
        root: Its folder.
        paths: Files or folders that it needs.
    """
    missing = [path for path in paths if not path.exists()]
    if missing:
        shown = "\n  ".join(str(path) for path in missing[:8])
        more = f"\n  and {len(missing) - 8} more" if len(missing) > 8 else ""
        raise DataError(f"{root}: not a complete copy of {what}; looked for\n  {shown}{more}")
