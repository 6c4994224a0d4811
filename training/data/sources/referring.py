"""Referring expressions in REFER's format: refCLEF, RefCOCO, RefCOCO+, RefCOCOg, and gRefCOCO.

    refer_seg/refcoco/refs(unc).p           pickled list of {ref_id, image_id, ann_id, split, sentences: [{sent}, ...]}
    refer_seg/refcoco/instances.json        COCO's images and annotations
    refer_seg/grefcoco/grefs(unc).json      the same list, in which ann_id is a list, and [-1] where nothing is meant
    refer_seg/images/mscoco/images/train2014, refer_seg/images/saiapr_tc-12

Sources: github.com/lichengunc/refer and github.com/henghuiding/gRefCOCO; the folders are those of LISA's training code.
A data set that is published with two partitions into splits (by UNC, Google, UMD or Berkeley) has a reader for each.

What always holds: one record per referred object (in gRefCOCO, per group of objects) with all its sentences. What
cannot be used is left out and listed in `skipped`.
"""

import pickle
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from lasagna.errors import DataError
from training.data.records import LabelMap, Record, require_files, stack_masks
from training.data.sources.annotations import read_json, segmentation_to_mask

_COCO = "mscoco/images/train2014"
_NOTHING = [-1]


class Refer:
    """One split of one data set.

    Attributes:
        name: `Record.source`.
        folder: Of the data set, below the root.
        index: Its list of references: "refs(PARTITION).p" or JSON.
        photos: Folder of the photos, below the root's `images`.
        classes: Empty: these are texts.
        skipped: Image id -> why the reference is left out.
    """

    name: ClassVar[str]
    folder: ClassVar[str]
    index: ClassVar[str] = "refs(unc).p"
    photos: ClassVar[str] = _COCO

    def __init__(self, root: Path, split: str) -> None:
        """Reads the references and the annotations of a split.

        Args:
            root: The folder that holds the data sets and `images`.
            split: "train", "val", "test" (all of it), or a part of it, e.g. "testA"; what there is differs.

        Raises:
            DataError: Files are missing, damaged or do not belong together, or there is no such split.
        """
        index, instances = root / self.folder / self.index, root / self.folder / "instances.json"
        photos = root / "images" / self.photos
        what = f"{self.name} (REFER format, github.com/lichengunc/refer)"
        require_files(what, root, [index, instances, photos])
        references = _read_references(index)
        known = _splits(references)
        if split not in known:
            raise DataError(f"{index}: {self.name} has no split {split!r}; there are {', '.join(known)}")

        content = read_json(instances)
        try:
            images = {image["id"]: image for image in content["images"]}
            annotations = {annotation["id"]: annotation for annotation in content["annotations"]}
        except (KeyError, TypeError) as error:
            raise DataError(f"{instances}: not COCO's images and annotations ({error!r}); download it again") from error

        self.classes: tuple[str, ...] = ()
        self.skipped: dict[str, str] = {}
        self._records: list[Record] = []
        for reference in references:
            if not _is_in(reference["split"], split):
                continue
            try:
                image = images[reference["image_id"]]
                path, size = photos / image["file_name"], (image["height"], image["width"])
                texts = [sentence["sent"].strip() for sentence in reference["sentences"]]
                wanted = reference["ann_id"] if isinstance(reference["ann_id"], list) else [reference["ann_id"]]
                parts = [annotations[i]["segmentation"] for i in wanted] if wanted != _NOTHING else []
                image_id = f"{path.stem}-{reference['ref_id']}"
            except (KeyError, TypeError, AttributeError) as error:
                raise DataError(
                    f"{index}: reference {reference.get('ref_id')} does not fit {instances.name} ({error!r}); take "
                    "both from one download"
                ) from error
            texts = list(dict.fromkeys(text for text in texts if text))
            if not texts:
                self.skipped[image_id] = "no sentence"
            elif not all(parts):  # without its mask it would read as "nothing is meant"
                self.skipped[image_id] = "an object without a segmentation"
            else:
                labels = partial(_labels, parts, size, f"{instances}: annotation {wanted}")
                self._records.append(Record(self.name, image_id, path, texts=tuple(texts), labels=labels, size=size))
        require_files(what, root, sorted({record.image_path for record in self._records if record.image_path}))

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Record:
        return self._records[index]


class RefClef(Refer):
    """refCLEF: objects and regions of the SAIAPR TC-12 photos, as run lengths. UNC's splits."""

    name = "refclef"
    folder = "refclef"
    photos = "saiapr_tc-12"


class RefClefBerkeley(RefClef):
    """refCLEF with Berkeley's splits."""

    name = "refclef-berkeley"
    index = "refs(berkeley).p"


class RefCoco(Refer):
    """RefCOCO with UNC's splits: testA are people, testB other things."""

    name = "refcoco"
    folder = "refcoco"


class RefCocoGoogle(RefCoco):
    """RefCOCO with Google's splits."""

    name = "refcoco-google"
    index = "refs(google).p"


class RefCocoPlus(Refer):
    """RefCOCO+ (no words of place) with UNC's splits."""

    name = "refcoco+"
    folder = "refcoco+"


class RefCocoG(Refer):
    """RefCOCOg (whole sentences) with UMD's splits, in which no photo is in two."""

    name = "refcocog"
    folder = "refcocog"
    index = "refs(umd).p"


class RefCocoGGoogle(RefCocoG):
    """RefCOCOg with Google's splits: by object, so train and val share photos."""

    name = "refcocog-google"
    index = "refs(google).p"


class GRefCoco(Refer):
    """gRefCOCO: a text may mean several objects, whose masks are united, or none."""

    name = "grefcoco"
    folder = "grefcoco"
    index = "grefs(unc).json"


def _labels(parts: list[Any], size: tuple[int, int], where: str) -> LabelMap:
    try:
        return stack_masks(size, [(0, segmentation_to_mask(part, size)) for part in parts])
    except DataError as error:
        raise DataError(f"{where}: {error}; download the file again") from error


def _splits(references: list[dict[str, Any]]) -> list[str]:
    """The splits that can be asked for. A reference's own may be joined: "testAB" is in testA and in testB."""
    own = {reference["split"] for reference in references}
    parts = sorted({f"test{letter}" for split in own if split.startswith("test") for letter in split[4:]})
    tests = ["test"] if any(split.startswith("test") for split in own) else []
    return sorted(split for split in own if not split.startswith("test")) + tests + parts


def _is_in(own: str, asked: str) -> bool:
    if asked.startswith("test"):
        return own.startswith("test") and asked[4:] in own[4:]
    return own == asked


class _PlainUnpickler(pickle.Unpickler):
    """Builds lists, dicts, tuples, sets, text and numbers, and nothing that would have to be imported: a pickle can
    otherwise run any code."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, where only lists, dicts, text and numbers belong")


def _read_references(path: Path) -> list[dict[str, Any]]:
    if path.suffix == ".json":
        references = read_json(path)
    else:
        try:
            with path.open("rb") as file:
                # The pickles were written by Python 2, whose text is bytes.
                references = _PlainUnpickler(file, encoding="utf-8").load()
        except Exception as error:  # a damaged pickle raises what it pleases
            raise DataError(f"{path}: not a pickled list of references ({error}); download it again") from error
    if not isinstance(references, list) or not references:
        raise DataError(f"{path}: a list of references is expected, not {str(references)[:80]!r}")
    for reference in references:
        if not isinstance(reference, dict) or not isinstance(reference.get("split"), str):
            raise DataError(f"{path}: a reference is a dict with a split, not {str(reference)[:80]!r}")
    return references
