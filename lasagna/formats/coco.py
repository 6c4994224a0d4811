"""COCO instances JSON (https://cocodataset.org/#format-data), readable by pycocotools.

One annotation per object of a class whose objects are told apart; of another class one, or one per connected part.
`iscrowd` is 0 of all of them, so that tools which skip crowds do not skip everything. `area` and `bbox` are of the
mask, in pixels; `score` is that of the object, else the probability of the class: a field that COCO results have and
that readers of annotations ignore.
"""

from collections.abc import Sequence
from typing import Any, Literal

from lasagna.formats.pieces import pieces_of
from lasagna.masks.conversions import mask_to_box, mask_to_coco_rle, mask_to_polygons
from lasagna.masks.segmentation import Segmentation

Variant = Literal["rle", "polygons"]


def segmentation_to_coco(
    segmentation: Segmentation,
    category_ids: dict[str, int],
    image_id: int,
    first_id: int = 1,
    *,
    variant: Variant = "rle",
    tolerance: float = 1.0,
    parts: bool = False,
) -> list[dict[str, Any]]:
    """The annotations of one image, with ids from `first_id` on.

    Args:
        segmentation: The answers; a present class without a pixel gives no annotation.
        category_ids: Class name to category id.
        image_id: Id of the image.
        first_id: Id of the first annotation.
        variant: "rle" is exact; "polygons" follow the mask within `tolerance` pixels, holes by a bridge.
        tolerance: See `mask_to_polygons`.
        parts: Whether each connected part of a class whose objects are not told apart is an annotation of its own.
    """
    annotations: list[dict[str, Any]] = []
    for answer in segmentation.present:
        for mask, score in pieces_of(answer, parts=parts):
            x0, y0, x1, y1 = mask_to_box(mask) or (0, 0, 0, 0)
            shape: Any
            if variant == "rle":
                shape = mask_to_coco_rle(mask)
            else:
                shape = [ring.ravel().tolist() for ring in mask_to_polygons(mask, tolerance)]
            annotations.append(
                {
                    "id": first_id + len(annotations),
                    "image_id": image_id,
                    "category_id": category_ids[answer.name],
                    "segmentation": shape,
                    "area": int(mask.sum()),
                    "bbox": [x0, y0, x1 - x0, y1 - y0],
                    "iscrowd": 0,
                    "score": round(score, 6),
                }
            )
    return annotations


def coco_category_ids(class_names: Sequence[str]) -> dict[str, int]:
    """Class name to category id: from 1, in the order of the names."""
    return {name: i for i, name in enumerate(dict.fromkeys(class_names), start=1)}


def coco_frame(class_names: Sequence[str], model_version: str, unknown: Sequence[str] = ()) -> dict[str, Any]:
    """What a data set holds besides its `images` and `annotations`.

    Args:
        unknown: Classes that the model cannot be asked for: that they have no annotation says nothing. They are named
            in `info`, which readers of COCO leave alone.
    """
    info = {"description": f"pre-labels of LaSagnA, model {model_version}", "version": model_version}
    return {
        "info": {**info, "unknown": list(unknown)} if unknown else info,
        "licenses": [],
        "categories": [
            {"id": i, "name": name, "supercategory": ""} for name, i in coco_category_ids(class_names).items()
        ],
    }
