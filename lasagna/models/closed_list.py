"""EoMT, Mask2Former and OneFormer behind the contract: models that answer the names of their own list and no other.

The network runs once per photo, whatever is asked. A label is read as a name of the list by
`lasagna.checkpoint.closed_lists`, and is unknown where it means none. A name's margin is the log-odds of its class in
the query that is surest of it; its mask is where the semantic post-processing of transformers says that class, so masks
never overlap, and classes that were not asked keep their pixels. Objects are the segments of its panoptic
post-processing, where the model makes one.
"""

from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from lasagna.assistant.devices import choose_device, choose_dtype
from lasagna.checkpoint.closed_lists import closed_names
from lasagna.checkpoint.vocabulary import load_vocabulary
from lasagna.masks.segmentation import ClassQuery, Mask
from lasagna.masks.splitting import fill, parts_of
from lasagna.models.foreign import EncodedPhoto, ForeignModel, Parts, Said, blocks, load_network, read_folder

_NETWORKS = {
    "eomt": "EomtForUniversalSegmentation",
    "mask2former": "Mask2FormerForUniversalSegmentation",
    "oneformer": "OneFormerForUniversalSegmentation",
}

_LOGITS = ("masks_queries_logits", "class_queries_logits")
"""What transformers' post-processing reads of an output."""
_MASK2FORMER_SIZE = (384, 384)
"""To which Mask2Former's semantic post-processing brings masks of queries, whatever the photo."""
_AT_ONCE = 8
"""Classes whose scores are brought to the photo's size together: those of a long list would take gigabytes."""


def load(folder: Path, *, device: str = "auto", dtype: str = "auto") -> "ClosedList":
    """Reads a folder that transformers' model and image processor wrote."""
    place = choose_device(device)
    closed_names(folder)  # without names nothing can be asked

    def read(transformers: Any) -> ClosedList:
        kind = transformers.AutoConfig.from_pretrained(folder, local_files_only=True).model_type
        network = load_network(getattr(transformers, _NETWORKS[kind]), folder, place, choose_dtype(dtype, place))
        return ClosedList(folder, network, _processor(transformers, kind, folder))

    return read_folder(folder, read)


def _processor(transformers: Any, kind: str, folder: Path) -> Any:
    if kind != "oneformer":
        return transformers.AutoImageProcessor.from_pretrained(folder, local_files_only=True)
    # The names of classes that it would fetch from the hub are those of the training; id2label has them, too.
    images = transformers.OneFormerImageProcessor.from_pretrained(folder, local_files_only=True, class_info_file=None)
    words = transformers.CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    length = transformers.AutoConfig.from_pretrained(folder, local_files_only=True).task_seq_len
    return transformers.OneFormerProcessor(images, words, task_seq_length=length, max_seq_length=length)


@dataclass
class _Read:
    """One photo, read, on the CPU.

    Attributes:
        margins: float32 (C,).
        classes: (H, W): which class each pixel is of.
        raw: Output of the network, for the panoptic map; None where the model makes none that can be used.
        panoptic: That map, once it was asked for (`ClosedList._panoptic`).
    """

    margins: Tensor
    classes: Tensor
    raw: Any
    panoptic: tuple[NDArray[np.int64], list[dict[str, Any]]] | None = None


class ClosedList(ForeignModel):
    """A loaded model with a closed list of names."""

    def __init__(self, folder: Path, network: Any, processor: Any) -> None:
        super().__init__(folder, network, processor)
        self.abilities = replace(self.abilities, objects=self._makes_panoptic_maps())
        self.vocabulary = load_vocabulary(folder)
        self._numbers: dict[str, list[int]] = {}
        for number, name in closed_names(folder).items():
            self._numbers.setdefault(name, []).append(number)

    def _makes_panoptic_maps(self) -> bool:
        """EoMT of whole photos and Mask2Former do. A photo in patches has objects cut by their borders, and OneFormer
        would have to be run again with its task "panoptic"."""
        kind = self.network.config.model_type
        return bool(kind == "mask2former" or (kind == "eomt" and not self.processor.do_split_image))

    def knows(self, query: ClassQuery) -> bool:
        """Whether its list has a name for it."""
        return self.vocabulary is not None and self.vocabulary.reading(query.text) is not None

    def read_text(self, text: str) -> str:
        """The name of its list that a text means, else the text."""
        found = None if self.vocabulary is None else self.vocabulary.reading(text)
        return text if found is None else found

    def _encode(self, image: NDArray[np.uint8]) -> _Read:
        more = {"task_inputs": ["semantic"]} if self.network.config.model_type == "oneformer" else {}
        given = self.processor(images=[image], return_tensors="pt", **more)
        found = self.network(**{key: self._placed(value) for key, value in given.items()})
        size = (image.shape[0], image.shape[1])
        queries = found.class_queries_logits.float().flatten(0, 1).log_softmax(-1)[:, :-1]
        classes = self._classes(found, size).cpu()
        logits = {name: getattr(found, name).float().cpu() for name in _LOGITS} if self.abilities.objects else None
        return _Read(log_odds(queries).amax(0).cpu(), classes, logits and SimpleNamespace(**logits))

    def _placed(self, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        return value.to(self.network.device, self.network.dtype if value.is_floating_point() else value.dtype)

    def _classes(self, found: Any, size: tuple[int, int]) -> Tensor:
        """(H, W): the number of each pixel's class."""
        for name in _LOGITS:
            setattr(found, name, getattr(found, name).float())
        kind, masks = self.network.config.model_type, found.masks_queries_logits
        if kind == "eomt":
            height = self.processor.size["shortest_edge"]
            masks = F.interpolate(masks, size=(height, self.processor.size["longest_edge"] or height), mode="bilinear")
        elif kind == "mask2former":
            masks = F.interpolate(masks, size=_MASK2FORMER_SIZE, mode="bilinear", align_corners=False)
        shares = found.class_queries_logits.softmax(-1)[..., :-1]
        scores = torch.einsum("bqc,bqhw->bchw", shares, masks.sigmoid())
        best = torch.full(size, -1.0, device=scores.device)
        classes = torch.zeros(size, dtype=torch.int64, device=scores.device)
        for part in blocks(scores.shape[1], _AT_ONCE):
            value, number = self._large(scores[:, part], size, getattr(found, "patch_offsets", None)).max(0)
            better = value > best
            best[better] = value[better]
            classes[better] = number[better] + part.start
        return classes

    def _large(self, scores: Tensor, size: tuple[int, int], patches: Any) -> Tensor:
        """Scores of some classes (B, C, h, w) to (C, H, W), as the semantic post-processing of each kind does it."""
        kind = self.network.config.model_type
        if kind == "eomt" and self.processor.do_pad:
            content: Tensor = self.processor.unpad_image(scores, [size], self.processor.size)[0]
            return content
        if kind == "eomt" and patches:
            whole: Tensor = self.processor.merge_image_patches(scores, patches, [size], self.processor.size)[0]
            return whole
        smooth = kind == "oneformer"
        return F.interpolate(scores, size=size, mode="bilinear", align_corners=False, antialias=smooth)[0]

    def _say(
        self,
        photo: EncodedPhoto,
        texts: list[str],
        even: Tensor,
        exclusive: bool,
        block: int,
        apart: Collection[str],
    ) -> Said:
        read: _Read = photo.features
        margins = torch.stack([read.margins[self._numbers[text]].amax() for text in texts])
        present = [text for text, here in zip(texts, (margins >= even).tolist(), strict=True) if here]
        masks = [torch.isin(read.classes, torch.tensor(self._numbers[text])).numpy() for text in present]
        parts = [
            self._parts(read, self._numbers[text], mask) if text in apart else None
            for text, mask in zip(present, masks, strict=True)
        ]
        return Said(margins, masks, [None] * len(masks), parts)

    def _parts(self, read: _Read, classes: list[int], mask: Mask) -> Parts | None:
        """A mask by the segments of its classes; None where the panoptic map has none of them on it, or makes none.

        The semantic map has pixels that no segment has. Those that hang on one are of the nearest; a part of the mask
        without any is an object of its own, as sure as the class.
        """
        if not self.abilities.objects:
            return None
        segments, rows = self._panoptic(read)
        own = [row for row in rows if row["label_id"] in classes]
        places = np.zeros(len(rows) + 1, np.int32)
        for number, row in enumerate(own, start=1):
            places[row["place"]] = number
        numbers = np.where(mask, places[segments], 0).astype(np.int32)
        if not numbers.any():
            return None
        connected = parts_of(mask)
        has = np.zeros(int(connected.max()) + 1, np.bool_)
        has[connected[numbers > 0]] = True
        without = np.flatnonzero(~has[1:]) + 1
        for number, part in enumerate(without, start=len(own) + 1):
            numbers[connected == part] = number
        scores = torch.tensor([row["score"] for row in own]).clamp(1e-6, 1 - 1e-6)
        margins = torch.cat([scores.logit(), read.margins[classes].amax().expand(len(without))])
        return Parts(fill(numbers, mask).astype(np.uint16), margins)

    def _panoptic(self, read: _Read) -> tuple[NDArray[np.int64], list[dict[str, Any]]]:
        """transformers' panoptic post-processing, once per photo: (H, W) places of segments from 1 on, 0 none, and its
        rows, each with its `place`."""
        if read.panoptic is None:
            size = (read.classes.shape[0], read.classes.shape[1])
            fuse_none: dict[str, Any] = {"label_ids_to_fuse": set()}
            more = {} if self.network.config.model_type == "eomt" else fuse_none
            found = self.processor.post_process_panoptic_segmentation(read.raw, target_sizes=[size], **more)[0]
            rows = [{**row, "place": place} for place, row in enumerate(found["segments_info"], start=1)]
            ids = found["segmentation"].cpu().numpy().astype(np.int64)
            segments = np.zeros(ids.shape, np.int64)
            for row in rows:
                segments[ids == row["id"]] = row["place"]
            read.panoptic = segments, rows
        return read.panoptic


def log_odds(log_probability: Tensor) -> Tensor:
    """log(p / (1 - p)) of log(p); at most 27.6, where float32 ends."""
    return log_probability - (-torch.expm1(log_probability)).clamp(min=1e-12).log()
