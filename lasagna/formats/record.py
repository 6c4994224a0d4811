"""A `Segmentation` as JSON that is read back exactly: what result caches hold. Masks are COCO's compressed RLE;
the probability of an unknown class is null; `objects` is missing where a class's objects are not told apart.
"""

from typing import Any

from lasagna.masks.conversions import coco_rle_to_mask, mask_to_coco_rle
from lasagna.masks.objects import Objects
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
                **({} if answer.objects is None else {"objects": _objects_to_record(answer.objects)}),
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
        told = answer.get("objects")
        objects = None if told is None else _record_to_objects(told, (height, width))
        probability = float(answer["probability"])
        answers.append(ClassAnswer(answer["name"], probability, mask, answer.get("stability"), objects=objects))
    return Segmentation((height, width), tuple(answers))


def _objects_to_record(objects: Objects) -> list[dict[str, Any]]:
    return [{"mask": mask_to_coco_rle(each.mask)["counts"], "score": each.score} for each in objects]


def _record_to_objects(record: list[dict[str, Any]], size: tuple[int, int]) -> Objects:
    masks = [coco_rle_to_mask({"size": list(size), "counts": each["mask"]}) for each in record]
    return Objects.of_masks(masks, [float(each["score"]) for each in record], size)
