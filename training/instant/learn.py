"""Corrected photos to a head, as a folder run does it: each is encoded and observed once, whatever is run again.

    head = learn_from(model, source, HeadStore(folder), queries)

What always holds: what is learnt is what the source has now (a photo that left it is forgotten); a correction that is
in the store, of the same photo, masks and model, is not computed again; a photo that cannot be read is left out with
its reason, and the others count.
"""

import hashlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from lasagna.errors import DataError, LasagnaError
from lasagna.instant.head import Head
from lasagna.instant.store import HeadStore
from lasagna.masks.image import load_image
from lasagna.masks.segmentation import ClassQuery, Mask
from training.data.records import UNKNOWN, LabelMap, Record
from training.data.sources import Source

if TYPE_CHECKING:
    from lasagna.assistant.lasagna import Lasagna


def learn_from(
    model: "Lasagna",
    source: Source,
    store: HeadStore,
    queries: Sequence[ClassQuery],
    on_failure: Callable[[str, str], None],
    on_photo: Callable[[], None] = lambda: None,
) -> Head:
    """The head of all corrected photos of a source.

    Args:
        model: Without a head.
        store: Where corrections and heads are kept; cleared of those of another model.
        queries: The classes as they will be asked. A class of the source is one of these by its name or by what the
            model reads; others are learnt under their own name.
        on_failure: Called with name and reason of a photo that is left out.
        on_photo: Called after each photo.

    Raises:
        DataError: No photo could be learnt from.
    """
    with store.lock():
        if not store.is_of(model.encoder_fingerprint, model.base_version):
            store.clear()
        kept: set[str] = set()
        for index in range(len(source)):
            record = source[index]
            try:
                kept.add(record.image_id)
                _put(model, record, store, queries)
            except LasagnaError as error:
                kept.discard(record.image_id)
                on_failure(record.image_id, str(error))
            on_photo()
        for known in store.corrections:
            if known.id not in kept:
                store.remove(known.id)
        head = store.refresh()
    if head is None:
        raise DataError(f"none of the {len(source)} corrected photos could be learnt from")
    return head


def _put(model: "Lasagna", record: Record, store: HeadStore, queries: Sequence[ClassQuery]) -> None:
    if record.image_path is None:
        raise DataError("it has no photo")
    try:
        data = record.image_path.read_bytes()
    except OSError as error:
        raise DataError(f"{record.image_path}: cannot be read ({error.strerror})") from error
    labels = record.read()
    asked = _asked(record, queries)
    digest = hashlib.sha256(data + labels.tobytes() + repr(asked).encode()).hexdigest()
    if store.has(record.image_id, digest):
        return
    image = np.asarray(load_image(data, name=str(record.image_path)))
    if image.shape[:2] != labels.shape[1:]:
        raise DataError(
            f"{record.image_path} has {image.shape[:2]} pixels, its masks {labels.shape[1:]}; make them of one size"
        )
    masks, undecided = label_map_to_masks(labels, [query.name for query in asked])
    store.put(model.observe(image, masks, record.image_id, classes=asked, undecided=undecided, source=digest))


def label_map_to_masks(labels: LabelMap, names: Sequence[str]) -> tuple[dict[str, Mask | None], Mask]:
    """Masks by class, None where a class has no pixel, and the pixels that are undecided.

    Args:
        labels: Indices into `names`.
    """
    masks: dict[str, Mask | None] = {}
    for index, name in enumerate(names):
        mask = (labels == index).any(0)
        masks[name] = mask if mask.any() else None
    return masks, (labels == UNKNOWN).any(0)


def _asked(record: Record, queries: Sequence[ClassQuery]) -> list[ClassQuery]:
    """The record's classes as they are asked, in its order."""
    by_name = {query.text: query for query in queries} | {query.name: query for query in queries}
    return [by_name.get(name, ClassQuery(name)) for name in record.classes]
