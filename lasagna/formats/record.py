"""A `Segmentation` as JSON that is read back exactly: what result caches hold. Masks are COCO's compressed RLE;
the probability of an unknown class is null.
"""

from typing import Any

from lasagna.masks.conversions import coco_rle_to_mask, mask_to_coco_rle
from lasagna.masks.segmentation import ClassAnswer, Segmentation


def segmentation_to_record(segmentation: Segmentation) -> dict[str, Any]:
    """JSON-ready dict; `record_to_segmentation` is its inverse."""
    return {
        "size": list(segmentation.size),
        "classes": [
            {
                "name": answer.name,
                "probability": None if answer.is_unknown else float(answer.probability),
                "mask": None if answer.mask is None else mask_to_coco_rle(answer.mask)["counts"],
                "stability": answer.stability,
            }
            for answer in segmentation.classes
        ],
    }


def record_to_segmentation(record: dict[str, Any]) -> Segmentation:
    """The segmentation of a record. Raises KeyError, TypeError or ValueError for a dict that is not one."""
    height, width = (int(n) for n in record["size"])
    answers = []
    for answer in record["classes"]:
        if answer["probability"] is None:
            answers.append(ClassAnswer.unknown(answer["name"]))
            continue
        counts = answer["mask"]
        mask = None if counts is None else coco_rle_to_mask({"size": [height, width], "counts": counts})
        answers.append(ClassAnswer(answer["name"], float(answer["probability"]), mask, answer.get("stability")))
    return Segmentation((height, width), tuple(answers))
