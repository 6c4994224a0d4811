"""What an annotation says of a photo: masks of the classes that are there, and the classes that are not.

One reader of regions serves training and this (`training.data.sources.label_studio`), so that both learn the same.
"""

import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lasagna.errors import DataError
from lasagna.formats.first_uses import FirstUses
from lasagna.labels.history import LabelHistory
from lasagna.labels.parts import ImageConfig
from lasagna.masks.segmentation import ClassQuery, Mask
from training.data.records import UNKNOWN
from training.data.sources.label_studio import HISTORY, LabelStudioExport


@dataclass(frozen=True)
class AnnotatedPhoto:
    """What somebody decided about a photo.

    Attributes:
        masks: bool (H, W) of each class that is there, by the name that the project gives it.
        classes: All classes about which the annotation decides; those without a mask are absent.
        undecided: bool (H, W): pixels about which it says nothing; None: there are none.
    """

    masks: dict[str, Mask]
    classes: list[ClassQuery]
    undecided: Mask | None


def read_annotation(
    task: Mapping[str, Any], image: ImageConfig, photo: bytes, kind: str, xml: str, uses: FirstUses
) -> AnnotatedPhoto:
    """Reads what the annotation that counts of a task says of one of its images.

    Args:
        task: As Label Studio exports it, with `id`, `data` and `annotations`.
        image: The image.
        photo: The file's bytes.
        kind: Its format, as Pillow calls it ("JPEG").
        xml: The project's labelling configuration.
        uses: When which labels stood in it.

    Raises:
        DataError: It cannot be used; the message says why.
    """
    with tempfile.TemporaryDirectory(prefix="lasagna-correction-") as place:
        root = Path(place)
        (root / "images").mkdir()
        name = f"photo.{kind.lower()}"
        (root / "images" / name).write_bytes(photo)
        (root / "label_config.xml").write_text(xml, encoding="utf-8")
        annotations = [{**each, "labels": uses.stood(image, each)} for each in task["annotations"]]
        place_of_image = {"photo": name, "image": image.image_name, "page": image.item_index}
        reduced = {"id": task["id"], "data": task["data"], "snapshot": place_of_image, "annotations": annotations}
        if renamed := uses.history.renamed:
            (root / HISTORY).write_text(json.dumps(LabelHistory(renamed=renamed).as_dict()))
        (root / "one.json").write_text(json.dumps([reduced]), encoding="utf-8")
        try:
            export = LabelStudioExport(root, "one")
            record = export[0]
            layers = record.read()
        except DataError as error:
            raise DataError(str(error).split(f"task {task['id']}: ")[-1]) from error
    queries = {query.text: query for query in reversed(image.classes)}
    classes = [queries[text] for text in record.classes]
    masks = {}
    for index, query in enumerate(classes):
        mask = (layers == index).any(axis=0)
        if mask.any():
            masks[query.name] = mask
    void = (layers == UNKNOWN).any(axis=0)
    return AnnotatedPhoto(masks, classes, np.asarray(void) if void.any() else None)
