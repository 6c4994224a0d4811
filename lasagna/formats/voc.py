"""Pascal VOC XML (http://host.robots.ox.ac.uk/pascal/VOC/voc2012/htmldoc): one file of boxes per image."""

from xml.etree import ElementTree

from lasagna.masks.conversions import Box, mask_to_box, mask_to_boxes
from lasagna.masks.segmentation import ClassAnswer, Segmentation


def segmentation_to_voc(segmentation: Segmentation, file_name: str, min_area: float = 0.0) -> str:
    """The annotation of one image: its objects; of a class whose objects are not told apart one per connected part,
    largest part first.

    VOC counts pixels from 1 and includes the last one, so a box of the whole image is 1, 1, width, height.
    """
    height, width = segmentation.size
    root = ElementTree.Element("annotation")
    folder, _, name = file_name.rpartition("/")
    for tag, text in (("folder", folder), ("filename", name)):
        ElementTree.SubElement(root, tag).text = text
    size = ElementTree.SubElement(root, "size")
    for tag, number in (("width", width), ("height", height), ("depth", 3)):
        ElementTree.SubElement(size, tag).text = str(number)
    ElementTree.SubElement(root, "segmented").text = "0"
    for answer in segmentation.present:
        for x0, y0, x1, y1 in _boxes(answer, min_area):
            item = ElementTree.SubElement(root, "object")
            for tag, text in (("name", answer.name), ("pose", "Unspecified"), ("truncated", "0"), ("difficult", "0")):
                ElementTree.SubElement(item, tag).text = text
            box = ElementTree.SubElement(item, "bndbox")
            for tag, number in (("xmin", x0 + 1), ("ymin", y0 + 1), ("xmax", x1), ("ymax", y1)):
                ElementTree.SubElement(box, tag).text = str(number)
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode") + "\n"


def _boxes(answer: ClassAnswer, min_area: float) -> list[Box]:
    if answer.objects is not None:
        return [box for each in answer.objects if (box := mask_to_box(each.mask)) is not None]
    return [] if answer.mask is None else mask_to_boxes(answer.mask, min_area)
