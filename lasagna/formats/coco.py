"""COCO instances JSON (https://cocodataset.org/#format-data), readable by pycocotools.

One annotation per present class and image: LaSagnA answers classes, not single objects. `iscrowd` is 0 in both
variants, so that tools which skip crowds do not skip everything. `area` and `bbox` are of the mask, in pixels; `score`
is the probability, a field that COCO results have and that readers of annotations ignore.
"""

from collections.abc import Sequence
from typing import Any, Literal

from lasagna.masks import mask_to_box, mask_to_coco_rle, mask_to_polygons
from lasagna.segmentation import Segmentation

Variant = Literal["rle", "polygons"]


def segmentation_to_coco(
    segmentation: Segmentation,
    category_ids: dict[str, int],
    image_id: int,
    first_id: int = 1,
    *,
    variant: Variant = "rle",
    tolerance: float = 1.0,
) -> list[dict[str, Any]]:
    """The annotations of one image, with ids from `first_id` on.

    Args:
        segmentation: The answers; a present class without a pixel gives no annotation.
        category_ids: Class name to category id.
        image_id: Id of the image.
        first_id: Id of the first annotation.
        variant: "rle" is exact; "polygons" follow the mask within `tolerance` pixels, holes by a bridge.
        tolerance: See `mask_to_polygons`.
    """
    annotations: list[dict[str, Any]] = []
    for answer in segmentation.present:
        box = None if answer.mask is None else mask_to_box(answer.mask)
        if answer.mask is None or box is None:
            continue
        shape: Any
        if variant == "rle":
            shape = mask_to_coco_rle(answer.mask)
        else:
            shape = [ring.ravel().tolist() for ring in mask_to_polygons(answer.mask, tolerance)]
        x0, y0, x1, y1 = box
        annotations.append(
            {
                "id": first_id + len(annotations),
                "image_id": image_id,
                "category_id": category_ids[answer.name],
                "segmentation": shape,
                "area": answer.area,
                "bbox": [x0, y0, x1 - x0, y1 - y0],
                "iscrowd": 0,
                "score": round(float(answer.probability), 6),
            }
        )
    return annotations


class CocoDataset:
    """A whole data set: `add` each image, then write `to_dict` as JSON. Ids count from 1 in the order of adding."""

    def __init__(self, class_names: Sequence[str], model_version: str, variant: Variant = "rle") -> None:
        self._variant: Variant = variant
        self._category_ids = {name: i for i, name in enumerate(dict.fromkeys(class_names), start=1)}
        self._info = {"description": f"pre-labels of LaSagnA, model {model_version}", "version": model_version}
        self._images: list[dict[str, Any]] = []
        self._annotations: list[dict[str, Any]] = []

    def add(self, file_name: str, segmentation: Segmentation) -> None:
        """Adds an image under its path relative to the image folder."""
        image_id = len(self._images) + 1
        height, width = segmentation.size
        self._images.append({"id": image_id, "file_name": file_name, "width": width, "height": height})
        self._annotations += segmentation_to_coco(
            segmentation, self._category_ids, image_id, len(self._annotations) + 1, variant=self._variant
        )

    def to_dict(self) -> dict[str, Any]:
        return {
            "info": self._info,
            "licenses": [],
            "images": self._images,
            "annotations": self._annotations,
            "categories": [{"id": i, "name": name, "supercategory": ""} for name, i in self._category_ids.items()],
        }
