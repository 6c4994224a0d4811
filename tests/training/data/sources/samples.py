"""Tiny samples of every data set, written in the format in which it is published, below one root."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from scipy.io import savemat

from training.data.sources import SOURCES

SIZE = (6, 8)
"""Height and width of every photo."""


def photo(path: Path, size: tuple[int, int] = SIZE) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size[::-1], (90, 120, 60)).save(path)


def ids(left: int, right: int, bottom: int | None = None) -> np.ndarray:
    """Two halves, and a last row of its own."""
    values = np.full(SIZE, left, np.int64)
    values[:, SIZE[1] // 2 :] = right
    if bottom is not None:
        values[-1] = bottom
    return values


def grey(path: Path, values: np.ndarray, bits: int = 8) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values.astype(np.uint8 if bits == 8 else np.uint16)).save(path)


def palette(path: Path, values: np.ndarray) -> None:
    """An 8-bit PNG with a palette, in which the colours are unlike the ids."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(values.astype(np.uint8))
    image.putpalette([(37 * i + c) % 256 for i in range(256) for c in range(3)])
    assert image.mode == "P"
    image.save(path)


def ade20k(root: Path, split: str = "training", values: np.ndarray | None = None) -> None:
    folder, name = root / "ade20k", f"ADE_{split[:5]}_00000001"
    photo(folder / "images" / split / f"{name}.jpg")
    grey(folder / "annotations" / split / f"{name}.png", ids(1, 150, 0) if values is None else values)


def cocostuff(root: Path, folder: str = "cocostuff/train2017", values: np.ndarray | None = None) -> None:
    photo(root / "coco" / "train2017" / "000000000009.jpg")
    grey(root / folder / "000000000009.png", ids(0, 181, 255) if values is None else values)


def cocostuff_pixelmaps(root: Path) -> None:
    cocostuff(root, "coco/stuff_train2017_pixelmaps", ids(92, 183, 0))


def cityscapes(root: Path, values: np.ndarray | None = None) -> None:
    folder, name = root / "cityscapes", "aachen_000000_000019"
    photo(folder / "leftImg8bit" / "train" / "aachen" / f"{name}_leftImg8bit.png")
    fine = folder / "gtFine" / "train" / "aachen"
    grey(fine / f"{name}_gtFine_labelIds.png", ids(7, 33, 1) if values is None else values)
    grey(fine / f"{name}_gtFine_instanceIds.png", ids(7, 33001, 1), bits=16)
    palette(fine / f"{name}_gtFine_color.png", ids(0, 1))
    (fine / f"{name}_gtFine_polygons.json").write_text('{"imgHeight": 6, "imgWidth": 8, "objects": []}')


def mapillary(root: Path, version: str = "v2.0", values: np.ndarray | None = None) -> None:
    folder = root / "mapillary"
    labels = [
        {"name": "animal--bird", "readable": "Bird", "instances": True, "evaluate": True, "color": [165, 42, 42]},
        {"name": "a--front", "readable": "Traffic Light", "instances": True, "evaluate": True, "color": [250, 170, 30]},
        {"name": "a--side", "readable": "Traffic Light", "instances": True, "evaluate": True, "color": [250, 170, 30]},
        {"name": "nature--sky", "readable": "Sky", "instances": False, "evaluate": True, "color": [70, 130, 180]},
        {"name": "void--unlabeled", "readable": "Unlabeled", "instances": False, "evaluate": False, "color": [0, 0, 0]},
    ]
    photo(folder / "training" / "images" / "_2C0-3.jpg")
    palette(folder / "training" / version / "labels" / "_2C0-3.png", ids(2, 3, 4) if values is None else values)
    config = {"labels": labels, "version": version[1:], "mapping": "public", "folder_structure": "{split}/{content}"}
    (folder / f"config_{version}.json").write_text(json.dumps(config))


MASKS_HEADER = "MaskPath,ImageID,LabelName,BoxID,BoxXMin,BoxXMax,BoxYMin,BoxYMax,PredictedIoU,Clicks"


def openimages(root: Path, header: bool = False) -> None:
    """A tie over a suit; a person found absent, a dog found present without a mask, nothing said of a tree."""
    folder, image = root / "OpenImageV6", "d0ed76e0533a914d"
    names = {"/m/01g317": "Person", "/m/0bt9lr": "Dog", "/m/01rkbr": "Tie", "/m/01xyhv": "Suit", "/m/07j7r": "Tree"}
    photo(folder / "train" / f"{image}.jpg")
    rows = [f"{label},{name}" for label, name in names.items()]
    heading = ["LabelName,DisplayName"] if header else []
    (folder / "class-descriptions-boxable.csv").write_text("\n".join([*heading, *rows, "/m/06msq,Lamp"]) + "\n")
    (folder / "classes-segmentation.txt").write_text("\n".join(names) + "\n")
    masks = []
    for label, name, left, right, scale in (("/m/01xyhv", "cffd8afa", 0, 6, 1), ("/m/01rkbr", "5f6546a2", 2, 4, 2)):
        mask = np.zeros((SIZE[0] * scale, SIZE[1] * scale), bool)
        mask[:, left * scale : right * scale] = True
        path = f"{image}_{label[1:].replace('/', '')}_{name}.png"
        (folder / "train-masks").mkdir(exist_ok=True)
        Image.fromarray(mask).save(folder / "train-masks" / path, bits=1)
        masks.append(f"{path},{image},{label},{name},0.0,0.75,0.0,1.0,0.86864,0.95498 0.65197 1;0.89370 0.56579 1;")
    text = "\n".join([MASKS_HEADER, *masks]) + "\n"
    (folder / "train-annotations-object-segmentation.csv").write_text(text)
    verified = ["ImageID,Source,LabelName,Confidence", f"{image},verification,/m/01g317,0"]
    verified += [f"{image},crowdsource-verification,/m/0bt9lr,1", "0000000000000000,verification,/m/07j7r,0"]
    (folder / "train-annotations-human-imagelabels-boxable.csv").write_text("\n".join(verified) + "\n")


CONTEXT_LABELS = 459
CONTEXT_WOOL, CONTEXT_SOFA = 459, 368


def pascal_context(root: Path, values: np.ndarray | None = None) -> None:
    """labels.txt with the 59 classes at other places than the real ones, which no reader may rely on."""
    names = {i: f"thing {i}" for i in range(1, CONTEXT_LABELS + 1)}
    published = Path("training/data/sources/names/pascal_context_59.txt").read_text().splitlines()
    names |= {2 + 7 * i: name for i, name in enumerate(published) if name != "sofa"}
    names |= {CONTEXT_SOFA: "sofa", CONTEXT_WOOL: "wool"}
    voc, context = root / "VOCdevkit" / "VOC2010", root / "pascal_context"
    photo(voc / "JPEGImages" / "2008_000002.jpg")
    (voc / "ImageSets" / "Main").mkdir(parents=True)
    (voc / "ImageSets" / "Main" / "train.txt").write_text("2008_000002\n")
    (context / "trainval").mkdir(parents=True)
    (context / "labels.txt").write_text("".join(f"{i}: {name}\n" for i, name in names.items()))
    label_map = (ids(CONTEXT_SOFA, CONTEXT_WOOL, 0) if values is None else values).astype(np.uint16)
    savemat(context / "trainval" / "2008_000002.mat", {"LabelMap": label_map}, do_compression=True)


def pascal_voc(root: Path, values: np.ndarray | None = None) -> None:
    voc = root / "VOCdevkit" / "VOC2012"
    photo(voc / "JPEGImages" / "2007_000032.jpg")
    palette(voc / "SegmentationClass" / "2007_000032.png", ids(0, 11, 255) if values is None else values)
    (voc / "ImageSets" / "Segmentation").mkdir(parents=True)
    (voc / "ImageSets" / "Segmentation" / "train.txt").write_text("2007_000032\n")


COCO_CATEGORIES: list[dict[str, Any]] = [
    {"supercategory": "person", "isthing": 1, "id": 1, "name": "person"},
    {"supercategory": "animal", "isthing": 1, "id": 18, "name": "dog"},
    {"supercategory": "wall", "isthing": 0, "id": 199, "name": "wall-other-merged"},
]


def coco_image(number: int = 9) -> dict[str, Any]:
    name = f"{number:012d}.jpg"
    return {
        "license": 3,
        "file_name": name,
        "coco_url": f"http://images.cocodataset.org/train2017/{name}",
        "height": SIZE[0],
        "width": SIZE[1],
        "date_captured": "2013-11-14 11:18:45",
        "flickr_url": "http://farm7.staticflickr.com/6116/1_z.jpg",
        "id": number,
    }


def coco_box(number: int, category: int, x0: int, y0: int, x1: int, y1: int, crowd: bool = False) -> dict[str, Any]:
    """An instance: a polygon, or the uncompressed run lengths of a crowd."""
    segmentation: Any = [[x0, y0, x1, y0, x1, y1, x0, y1]]
    if crowd:
        mask = np.zeros(SIZE, bool)
        mask[y0:y1, x0:x1] = True
        column = mask.T.reshape(-1)
        edges = np.flatnonzero(np.diff(column.astype(int))) + 1
        lengths = np.diff([0, *edges, column.size]).tolist()
        segmentation = {"counts": [0, *lengths] if column[0] else lengths, "size": list(SIZE)}
    return {
        "segmentation": segmentation,
        "area": (x1 - x0) * (y1 - y0),
        "iscrowd": int(crowd),
        "image_id": 9,
        "bbox": [x0, y0, x1 - x0, y1 - y0],
        "category_id": category,
        "id": number,
    }


def coco_json(
    root: Path, kind: str, annotations: list[dict[str, Any]], images: list[dict[str, Any]] | None = None
) -> Path:
    folder = root / "coco"
    images = [coco_image()] if images is None else images
    for image in images:
        photo(folder / "train2017" / image["file_name"])
    (folder / "annotations").mkdir(exist_ok=True)
    path = folder / "annotations" / f"{kind}_train2017.json"
    info = {"description": "COCO 2017 Dataset", "url": "http://cocodataset.org", "version": "1.0", "year": 2017}
    shared = {"info": info, "licenses": [], "images": images, "categories": COCO_CATEGORIES}
    path.write_text(json.dumps({**shared, "annotations": annotations}))
    return path


def coco_instances(root: Path) -> None:
    coco_json(root, "instances", [coco_box(1, 1, 0, 0, 4, 6), coco_box(2, 18, 2, 2, 6, 4)])


def segment(number: int, category: int, crowd: bool = False) -> dict[str, Any]:
    return {"id": number, "category_id": category, "iscrowd": int(crowd), "bbox": [0, 0, 1, 1], "area": 1}


def coco_panoptic(root: Path, segments: list[dict[str, Any]] | None = None, values: np.ndarray | None = None) -> None:
    """Segment ids beyond one byte: 70000 = 112 + 256 * 17 + 65536."""
    found = [segment(70000, 1), segment(258, 199)] if segments is None else segments
    annotation = {"segments_info": found, "file_name": "000000000009.png", "image_id": 9}
    path = coco_json(root, "panoptic", [annotation])
    values = ids(70000, 258, 0) if values is None else values
    colours = np.stack([values % 256, values // 256 % 256, values // 65536], axis=-1).astype(np.uint8)
    path.with_suffix("").mkdir(exist_ok=True)
    Image.fromarray(colours).save(path.with_suffix("") / "000000000009.png")


def refer(root: Path, name: str) -> None:
    from tests.training.data.sources.test_referring import READERS, python2_pickle

    (index,) = (index for reader, (index, _) in READERS.items() if reader.name == name)
    path, is_json = root / "refer_seg" / index, index.endswith("json")
    sentences = [{"tokens": ["man"], "raw": "Man", "sent_id": 1, "sent": "man"}]
    shared = {"image_id": 7, "split": "train", "sentences": sentences, "file_name": "7.jpg", "category_id": 1}
    references = [{**shared, "sent_ids": [1], "ann_id": [5] if is_json else 5, "ref_id": 3}]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(json.dumps(references).encode() if is_json else python2_pickle(references))
    instances = {
        "images": [{"id": 7, "file_name": "COCO_7.jpg", "height": SIZE[0], "width": SIZE[1]}],
        "annotations": [{"id": 5, "image_id": 7, "segmentation": [[0, 0, 4, 0, 4, 6, 0, 6]]}],
    }
    path.with_name("instances.json").write_text(json.dumps(instances))
    for folder in ("mscoco/images/train2014", "saiapr_tc-12"):
        photo(root / "refer_seg" / "images" / folder / "COCO_7.jpg")


def reasonseg(root: Path) -> None:
    folder = root / "reason_seg" / "ReasonSeg"
    photo(folder / "train" / "1.jpg")
    shape = {
        "label": "target",
        "labels": ["target"],
        "shape_type": "polygon",
        "points": [[0, 0], [3, 0], [3, 5], [0, 5]],
    }
    annotation = {"text": ["what barks?"], "is_sentence": True, "shapes": [shape]}
    (folder / "train" / "1.json").write_text(json.dumps(annotation))
    (folder / "explanatory").mkdir()
    answers = [{"image": "1.jpg", "query": "what barks?", "outputs": "The dog.", "json": "1.json"}]
    (folder / "explanatory" / "train.json").write_text(json.dumps(answers))


def llava(root: Path) -> None:
    photo(root / "coco" / "train2017" / "000000033471.jpg")
    turns = [{"from": "human", "value": "What?\n<image>"}, {"from": "gpt", "value": "A bus."}]
    (root / "llava_dataset").mkdir()
    items = [{"id": "000000033471", "image": "000000033471.jpg", "conversations": turns}]
    (root / "llava_dataset" / "llava_instruct_150k.json").write_text(json.dumps(items))


def folder(root: Path, values: np.ndarray | None = None) -> None:
    photo(root / "images" / "a.jpg")
    grey(root / "masks" / "a.png", ids(0, 2, 255) if values is None else values)
    (root / "classes.json").write_text(json.dumps({"classes": ["soil", "cat", "dog"], "background_index": 0}))
    (root / "train.txt").write_text("a\n")


def expressions(root: Path) -> None:
    """One dog on soil: "the dog" and nothing else can be said."""
    folder(root, ids(1, 0))
    (root / "classes.json").write_text(json.dumps({"classes": ["soil", "dog"], "background_index": 0}))


def own_coco(root: Path) -> None:
    photo(root / "images" / "a.png")
    half = [0, 0, SIZE[1] // 2, 0, SIZE[1] // 2, SIZE[0], 0, SIZE[0]]
    content = {
        "images": [{"id": 1, "file_name": "a.png", "height": SIZE[0], "width": SIZE[1]}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 5, "segmentation": [half], "iscrowd": 0}],
        "categories": [{"id": 2, "name": "dog"}, {"id": 5, "name": "cat"}],
    }
    (root / "train.json").write_text(json.dumps(content))


def label_studio(root: Path) -> None:
    photo(root / "images" / "a.png")
    corners = [[0, 0], [50, 0], [50, 100], [0, 100]]
    region = {
        "id": "r1",
        "type": "polygonlabels",
        "from_name": "polygon",
        "to_name": "image",
        "original_width": SIZE[1],
        "original_height": SIZE[0],
        "image_rotation": 0,
        "value": {"points": corners, "closed": True, "polygonlabels": ["Cat"]},
    }
    annotation = {"id": 1, "was_cancelled": False, "ground_truth": False, "result": [region]}
    annotation["updated_at"] = "2026-11-24T10:00:00Z"
    seen = {"at": "2026-11-01T10:00:00Z", "labels": {"image": ["Cat", "Dog"]}}
    (root / "labels.json").write_text(json.dumps({"seen": [seen]}))
    task = {"id": 1, "data": {"photo": "/data/upload/1/c2d0f86e-a.png"}, "annotations": [annotation]}
    (root / "train.json").write_text(json.dumps([task]))
    labels = '<Label value="Cat"/><Label value="Dog"/>'
    (root / "label_config.xml").write_text(
        '<View><Image name="image" value="$photo"/>'
        f'<PolygonLabels name="polygon" toName="image">{labels}</PolygonLabels></View>'
    )


def _samples() -> Iterator[tuple[str, Callable[[Path], None]]]:
    yield from {
        "ade20k": ade20k,
        "cocostuff": cocostuff,
        "cocostuff_pixelmaps": cocostuff_pixelmaps,
        "coco_instances": coco_instances,
        "coco_panoptic": coco_panoptic,
        "cityscapes": cityscapes,
        "mapillary": mapillary,
        "mapillary_v1.2": lambda root: mapillary(root, "v1.2"),
        "openimages": openimages,
        "pascal_context_59": pascal_context,
        "pascal_context_459": pascal_context,
        "pascal_voc_20": pascal_voc,
        "reasonseg": reasonseg,
        "llava_instruct_150k": llava,
        "folder": folder,
        "expressions": expressions,
        "coco": own_coco,
        "label_studio": label_studio,
    }.items()
    for name, entry in SOURCES.items():
        if entry.folder == "refer_seg":
            yield name, lambda root, name=name: refer(root, name)


SAMPLES = dict(_samples())
"""Name of a source -> writes a sample of its split "train" below a root."""
