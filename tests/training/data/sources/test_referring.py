"""REFER's format, written as it is published: Python 2's pickles, COCO's polygons and run lengths, LISA's folders."""

import json
import os
import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from lasagna.errors import DataError
from training.data.records import OTHER
from training.data.sources.annotations import runs_to_mask
from training.data.sources.referring import (
    GRefCoco,
    RefClef,
    RefClefBerkeley,
    RefCoco,
    RefCocoG,
    RefCocoGGoogle,
    RefCocoGoogle,
    RefCocoPlus,
    Refer,
)

SIZE = (12, 20)
READERS = {
    RefClef: ("refclef/refs(unc).p", "saiapr_tc-12"),
    RefClefBerkeley: ("refclef/refs(berkeley).p", "saiapr_tc-12"),
    RefCoco: ("refcoco/refs(unc).p", "mscoco/images/train2014"),
    RefCocoGoogle: ("refcoco/refs(google).p", "mscoco/images/train2014"),
    RefCocoPlus: ("refcoco+/refs(unc).p", "mscoco/images/train2014"),
    RefCocoG: ("refcocog/refs(umd).p", "mscoco/images/train2014"),
    RefCocoGGoogle: ("refcocog/refs(google).p", "mscoco/images/train2014"),
    GRefCoco: ("grefcoco/grefs(unc).json", "mscoco/images/train2014"),
}


def box(x0: int, y0: int, x1: int, y1: int) -> np.ndarray:
    mask = np.zeros(SIZE, bool)
    mask[y0:y1, x0:x1] = True
    return mask


def ring(x0: int, y0: int, x1: int, y1: int) -> list[float]:
    return [x0, y0, x1, y0, x1, y1, x0, y1]


def compressed(mask: np.ndarray) -> dict[str, Any]:
    rle = coco_mask.encode(np.asfortranarray(mask, np.uint8))
    return {"size": list(SIZE), "counts": rle["counts"].decode()}


def runs(mask: np.ndarray) -> dict[str, Any]:
    column = mask.T.reshape(-1)
    edges = np.flatnonzero(np.diff(column.astype(int))) + 1
    lengths = np.diff([0, *edges, column.size]).tolist()
    return {"size": list(SIZE), "counts": [0, *lengths] if column[0] else lengths}


def python2_pickle(value: Any) -> bytes:
    """Protocol 2 as Python 2 writes it: `str` as bytes, `unicode` (here: text beyond ASCII) as UTF-8."""

    def write(value: Any) -> bytes:
        if isinstance(value, str) and value.isascii():
            return b"U" + bytes([len(value)]) + value.encode()
        if isinstance(value, str):
            return b"X" + struct.pack("<I", len(value.encode())) + value.encode()
        if isinstance(value, int):
            return b"J" + struct.pack("<i", value)
        if isinstance(value, list):
            return b"](" + b"".join(map(write, value)) + b"e"
        return b"}(" + b"".join(write(key) + write(item) for key, item in value.items()) + b"u"

    return b"\x80\x02" + write(value) + b"."


def reference(ref_id: int, ann_id: Any, split: str, *texts: str) -> dict[str, Any]:
    sentences = [
        {"sent_id": i, "sent": text, "raw": text.upper(), "tokens": text.split()} for i, text in enumerate(texts)
    ]
    name = f"photo_{ref_id}.jpg"  # not the photo's own name, as published
    shared = {"ref_id": ref_id, "image_id": 7, "split": split, "file_name": name, "sentences": sentences}
    return {**shared, "ann_id": ann_id, "category_id": 1, "sent_ids": list(range(len(texts)))}


def write(root: Path, reader: type[Refer], references: list[Any], segmentations: dict[int, Any]) -> None:
    index, photos = READERS[reader]
    (root / index).parent.mkdir(parents=True)
    content = json.dumps(references).encode() if index.endswith("json") else python2_pickle(references)
    (root / index).write_bytes(content)
    instances = {
        "images": [{"id": 7, "file_name": "COCO_7.jpg", "height": SIZE[0], "width": SIZE[1]}],
        "annotations": [{"id": i, "image_id": 7, "segmentation": part} for i, part in segmentations.items()],
        "categories": [{"id": 1, "name": "person"}],
    }
    (root / index).with_name("instances.json").write_text(json.dumps(instances))
    (root / "images" / photos).mkdir(parents=True)
    Image.new("RGB", SIZE[::-1]).save(root / "images" / photos / "COCO_7.jpg")


@pytest.mark.parametrize("reader", [r for r in READERS if r is not GRefCoco], ids=lambda r: r.name)
def test_one_record_per_object_with_all_its_sentences(tmp_path: Path, reader: type[Refer]) -> None:
    texts = ("man on left", "café sign", "man on left")
    write(tmp_path, reader, [reference(3, 11, "train", *texts)], {11: [ring(2, 1, 9, 8)]})
    source = reader(tmp_path, "train")
    record = source[0]
    assert (len(source), source.classes, record.classes, record.turns) == (1, (), (), ())
    assert record.texts == ("man on left", "café sign")
    assert (record.source, record.image_id, record.size) == (reader.name, "COCO_7-3", SIZE)
    assert record.image_path == tmp_path / "images" / READERS[reader][1] / "COCO_7.jpg"
    labels = record.read()
    assert labels.dtype == np.int16
    np.testing.assert_array_equal(labels, np.where(box(2, 1, 9, 8), 0, OTHER)[None])


BLOBS = np.random.default_rng(0).random(SIZE) > 0.6
MASKS = {
    "one polygon": ([ring(2, 1, 9, 8)], box(2, 1, 9, 8)),
    "two polygons": ([ring(2, 1, 9, 8), ring(12, 3, 14, 9)], box(2, 1, 9, 8) | box(12, 3, 14, 9)),
    "a line beside a polygon": ([[1, 1, 9, 9], ring(2, 1, 9, 8)], box(2, 1, 9, 8)),
    "compressed run lengths": ([compressed(BLOBS)], BLOBS),
    "two of them": ([compressed(box(2, 1, 9, 8)), compressed(BLOBS)], box(2, 1, 9, 8) | BLOBS),
    "run lengths of a crowd": (runs(BLOBS), BLOBS),
    "run lengths from the first pixel": (runs(~box(2, 1, 9, 8)), ~box(2, 1, 9, 8)),
}


@pytest.mark.parametrize("case", MASKS)
def test_masks(tmp_path: Path, case: str) -> None:
    segmentation, mask = MASKS[case]
    write(tmp_path, RefClef, [reference(1, 5, "train", "it")], {5: segmentation})
    np.testing.assert_array_equal(RefClef(tmp_path, "train")[0].read()[0] == 0, mask)


@pytest.mark.parametrize("seed", range(8))
def test_run_lengths_are_read_as_pycocotools_writes_them(seed: int) -> None:
    rng = np.random.default_rng(seed)
    mask = rng.random((40, 90)) > rng.random()
    mask[:, 20:60] &= seed % 2 == 0  # also runs longer than a thousand pixels
    rle = coco_mask.encode(np.asfortranarray(mask, np.uint8))
    np.testing.assert_array_equal(runs_to_mask(rle, (40, 90)), mask)


WHOLE = compressed(box(2, 1, 9, 8))
BROKEN = {
    "too few runs": ({"size": list(SIZE), "counts": [5, 5]}, "cover 10 pixels of 240"),
    "text cut short": ({**WHOLE, "counts": WHOLE["counts"][:-3]}, "run lengths"),
    "text of something else": ({**WHOLE, "counts": "hello world ~"}, "not in COCO's format"),
    "of another photo": ({**runs(BLOBS), "size": [10, 24]}, "the photo is 20 x 12"),
    "without counts": ({"size": list(SIZE)}, "not in COCO's format"),
    "a polygon far outside": ([[1, 1, 1e9, 1, 5, 5]], "far outside"),
    "a polygon of text": ([["a", "b"]], "a list of x, y"),
    "a number": ([1, 2], "a list of polygons or of run lengths"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_mask_names_the_file_and_the_annotation(tmp_path: Path, case: str) -> None:
    segmentation, said = BROKEN[case]
    write(tmp_path, RefCoco, [reference(1, 5, "train", "it")], {5: segmentation})
    record = RefCoco(tmp_path, "train")[0]
    with pytest.raises(DataError, match=rf"(?s)refcoco/instances\.json: annotation \[5\].*{said}.*download"):
        record.read()


@pytest.mark.parametrize(
    ("split", "expected"),
    [("train", [0]), ("val", [1]), ("test", [2, 3, 4]), ("testA", [2, 4]), ("testB", [3, 4])],
)
def test_splits(tmp_path: Path, split: str, expected: list[int]) -> None:
    own = ["train", "val", "testA", "testB", "testAB"]
    references = [reference(i, 5, name, f"text {i}") for i, name in enumerate(own)]
    write(tmp_path, RefClef, references, {5: [ring(2, 1, 9, 8)]})
    source = RefClef(tmp_path, split)
    assert [source[i].texts for i in range(len(source))] == [(f"text {i}",) for i in expected]


def test_an_unknown_split_names_the_known_ones(tmp_path: Path) -> None:
    write(
        tmp_path, RefCocoG, [reference(i, 5, s, "it") for i, s in enumerate(("val", "train"))], {5: [ring(2, 1, 9, 8)]}
    )
    with pytest.raises(DataError, match=r"refcocog has no split 'testA'; there are train, val"):
        RefCocoG(tmp_path, "testA")


def test_grefcoco_unites_several_objects(tmp_path: Path) -> None:
    segmentations = {5: [ring(2, 1, 9, 8)], 6: runs(box(7, 2, 18, 4)), 8: [ring(0, 0, 1, 1)]}
    write(tmp_path, GRefCoco, [reference(1, [5, 6], "train", "both men", "the two")], segmentations)
    record = GRefCoco(tmp_path, "train")[0]
    assert record.texts == ("both men", "the two")
    np.testing.assert_array_equal(record.read(), np.where(box(2, 1, 9, 8) | box(7, 2, 18, 4), 0, OTHER)[None])


def test_grefcoco_without_a_target_has_no_pixel_of_one(tmp_path: Path) -> None:
    write(tmp_path, GRefCoco, [reference(1, [-1], "train", "the third man")], {5: [ring(2, 1, 9, 8)]})
    np.testing.assert_array_equal(GRefCoco(tmp_path, "train")[0].read(), np.full((1, *SIZE), OTHER))


def test_what_cannot_be_used_is_listed(tmp_path: Path) -> None:
    references = [reference(1, 5, "train", "it"), reference(2, 6, "train", "gone"), reference(3, 5, "train", " ")]
    write(tmp_path, RefCoco, references, {5: [ring(2, 1, 9, 8)], 6: []})
    source = RefCoco(tmp_path, "train")
    assert [source[i].image_id for i in range(len(source))] == ["COCO_7-1"]
    assert source.skipped == {"COCO_7-2": "an object without a segmentation", "COCO_7-3": "no sentence"}


@pytest.mark.parametrize(
    "missing", ["refcoco/refs(unc).p", "refcoco/instances.json", "images/mscoco/images/train2014/COCO_7.jpg"]
)
def test_a_missing_file_is_named(tmp_path: Path, missing: str) -> None:
    write(tmp_path, RefCoco, [reference(1, 5, "train", "it")], {5: [ring(2, 1, 9, 8)]})
    (tmp_path / missing).unlink()
    with pytest.raises(DataError) as error:
        RefCoco(tmp_path, "train")
    assert str(tmp_path / missing) in str(error.value)


def test_files_that_do_not_belong_together_are_named(tmp_path: Path) -> None:
    write(tmp_path, RefCoco, [reference(1, 99, "train", "it")], {5: [ring(2, 1, 9, 8)]})
    with pytest.raises(DataError, match=r"reference 1 does not fit instances.json \(KeyError\(99\)\)"):
        RefCoco(tmp_path, "train")


class Payload:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def test_a_pickle_cannot_run_code(tmp_path: Path) -> None:
    write(tmp_path, RefCoco, [reference(1, 5, "train", "it")], {5: [ring(2, 1, 9, 8)]})
    index = tmp_path / "refcoco" / "refs(unc).p"
    index.write_bytes(pickle.dumps([Payload(tmp_path / "ran")]))
    with pytest.raises(DataError, match=r"refs\(unc\)\.p: .*asks for \w+\.mkdir"):
        RefCoco(tmp_path, "train")
    assert not (tmp_path / "ran").exists()
    pickle.loads(index.read_bytes())  # and it would have
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "content", [b"", b"not a pickle", python2_pickle([{"split": "train"}])[:9], python2_pickle({})]
)
def test_a_damaged_pickle_is_named(tmp_path: Path, content: bytes) -> None:
    write(tmp_path, RefCoco, [reference(1, 5, "train", "it")], {5: [ring(2, 1, 9, 8)]})
    (tmp_path / "refcoco" / "refs(unc).p").write_bytes(content)
    with pytest.raises(DataError, match=r"refs\(unc\)\.p: .*list of references"):
        RefCoco(tmp_path, "train")
