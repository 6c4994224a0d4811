"""What a `Segmentation` is written as: pure functions from the core type to other tools' formats.

label_studio    predictions for Label Studio                 segmentation_to_label_studio
coco            instances JSON, RLE and polygons             segmentation_to_coco
png             PNGs of class indices, of instances          segmentation_to_indices, segmentation_to_instances
yolo, voc       label text files, box XML                    segmentation_to_yolo, segmentation_to_voc
record          JSON that is read back, for caches           segmentation_to_record, record_to_segmentation
"""

from lasagna.formats.coco import segmentation_to_coco
from lasagna.formats.label_studio import segmentation_to_label_studio
from lasagna.formats.png import indices_to_png, segmentation_to_indices, segmentation_to_instances
from lasagna.formats.record import record_to_segmentation, segmentation_to_record
from lasagna.formats.voc import segmentation_to_voc
from lasagna.formats.yolo import segmentation_to_yolo

__all__ = [
    "indices_to_png",
    "record_to_segmentation",
    "segmentation_to_coco",
    "segmentation_to_indices",
    "segmentation_to_instances",
    "segmentation_to_label_studio",
    "segmentation_to_record",
    "segmentation_to_voc",
    "segmentation_to_yolo",
]
