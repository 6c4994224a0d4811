"""ReasonSeg: photos with questions that take reasoning, and the one target that answers them.

    {train,val,test}/NAME.jpg, NAME.json   {text: [...], is_sentence, shapes: [{label, points}, ...]}
    explanatory/train.json                 [{image, query, outputs}, ...]

Source: github.com/dvlab-research/LISA (README, "Dataset"; its data_processing.py says how shapes become a mask).

What always holds: one record per photo. The texts of a photo ask for the same target, so any of them may be asked.
"""

from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from lasagna.errors import DataError
from lasagna.masks.conversions import as_polygon
from training.data.records import OTHER, UNKNOWN, LabelMap, Record, require_files
from training.data.sources.annotations import read_json, upright_size

_WHAT = "ReasonSeg (github.com/dvlab-research/LISA, Dataset)"
_SPLITS = ("train", "val", "test")


class ReasonSeg:
    """One split of ReasonSeg.

    Attributes:
        classes: Empty: these are texts.
    """

    def __init__(self, root: Path, split: str) -> None:
        """Reads the annotation of every photo of a split; `train` also needs the explanations.

        Raises:
            DataError: Files are missing or damaged, or there is no such split.
        """
        if split not in _SPLITS:
            raise DataError(f"{root}: ReasonSeg has no split {split!r}; there are {', '.join(_SPLITS)}")
        folder, explanations = root / split, root / "explanatory" / "train.json"
        require_files(_WHAT, root, [folder, explanations] if split == "train" else [folder])
        stems = sorted({path.stem for path in folder.iterdir() if path.suffix in (".jpg", ".json")})
        if not stems:
            raise DataError(f"{folder}: no NAME.jpg and NAME.json of {_WHAT} in it")
        require_files(_WHAT, root, [folder / f"{stem}{ending}" for stem in stems for ending in (".jpg", ".json")])

        answers = _read_answers(explanations) if split == "train" else {}
        self.classes: tuple[str, ...] = ()
        self._records: list[Record] = []
        self._sentences: list[bool] = []
        for stem in stems:
            photo, path = folder / f"{stem}.jpg", folder / f"{stem}.json"
            annotation = read_json(path)
            try:
                texts = tuple(dict.fromkeys(text.strip() for text in annotation["text"] if text.strip()))
                shapes = [(shape["label"].lower(), shape["points"]) for shape in annotation["shapes"]]
                is_sentence = bool(annotation["is_sentence"])
            except (KeyError, TypeError, AttributeError) as error:
                raise DataError(f"{path}: not an annotation of ReasonSeg ({error!r}); download it again") from error
            if not texts or isinstance(annotation["text"], str):
                raise DataError(f"{path}: a list of texts is expected, not {annotation['text']!r}; download it again")
            labels = partial(_labels, shapes, photo, path)
            self._records.append(
                Record("reasonseg", stem, photo, texts=texts, answer=answers.get(photo.name), labels=labels)
            )
            self._sentences.append(is_sentence)

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Record:
        return self._records[index]

    def is_sentence(self, index: int) -> bool:
        """Whether the record's texts are whole questions or instructions, rather than phrases that name the target."""
        return self._sentences[index]


def _read_answers(path: Path) -> dict[str, str]:
    try:
        return {item["image"]: item["outputs"].strip() for item in read_json(path)}
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: not the explanations of ReasonSeg ({error!r}); download it again") from error


def _labels(shapes: list[tuple[str, Any]], photo: Path, path: Path) -> LabelMap:
    """Larger shapes first, so that the smaller of two that overlap counts, as in the published evaluation. "flag"
    marks a shape that its author gave up, "ignore" an ambiguous region; any other label is the target."""
    size = upright_size(photo)
    drawn: list[tuple[int, NDArray[np.uint8]]] = []
    for label, points in shapes:
        if label == "flag":
            continue
        try:
            corners = as_polygon(points, size).astype(np.int32)
        except DataError as error:
            raise DataError(f"{path}: {error}; download it again") from error
        mask = np.zeros(size, np.uint8)
        if len(corners):
            cv2.fillPoly(mask, [corners], 1)
        drawn.append((UNKNOWN if "ignore" in label else 0, mask))
    labels = np.full(size, OTHER, np.int16)
    for value, shape in sorted(drawn, key=lambda item: -int(item[1].sum())):
        labels[shape == 1] = value
    return labels[None]
