"""EoMT, Mask2Former and OneFormer behind the contract: models that answer the names of their own list and no other.

The network runs once per photo, whatever is asked. A label is read as a name of the list by
`lasagna.checkpoint.closed_lists`, and is unknown where it means none. A name's margin is the log-odds of its class in
the query that is surest of it; its mask is where the semantic post-processing of transformers says that class, so masks
never overlap, and classes that were not asked keep their pixels.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lasagna.assistant.devices import choose_device, choose_dtype
from lasagna.checkpoint.closed_lists import closed_names
from lasagna.checkpoint.vocabulary import load_vocabulary
from lasagna.masks.segmentation import ClassQuery
from lasagna.models.foreign import EncodedPhoto, ForeignModel, Said, load_network, read_folder

_NETWORKS = {
    "eomt": "EomtForUniversalSegmentation",
    "mask2former": "Mask2FormerForUniversalSegmentation",
    "oneformer": "OneFormerForUniversalSegmentation",
}


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


@dataclass(frozen=True)
class _Read:
    """One photo, read: float32 (C,) margins, and which class each pixel of (H, W) is of. Both on the CPU."""

    margins: Tensor
    classes: Tensor


class ClosedList(ForeignModel):
    """A loaded model with a closed list of names."""

    def __init__(self, folder: Path, network: Any, processor: Any) -> None:
        super().__init__(folder, network, processor)
        self.vocabulary = load_vocabulary(folder)
        self._numbers: dict[str, list[int]] = {}
        for number, name in closed_names(folder).items():
            self._numbers.setdefault(name, []).append(number)

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
        return _Read(log_odds(queries).amax(0).cpu(), self._classes(found, size).cpu())

    def _placed(self, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        return value.to(self.network.device, self.network.dtype if value.is_floating_point() else value.dtype)

    def _classes(self, found: Any, size: tuple[int, int]) -> Tensor:
        """(H, W): the number of each pixel's class."""
        for name in ("masks_queries_logits", "class_queries_logits"):
            setattr(found, name, getattr(found, name).float())
        if getattr(self.processor, "do_pad", False) and hasattr(self.processor, "unpad_image"):
            # EoMT's semantic post-processing is for photos in patches; one that was padded is cut to its content first.
            height = self.processor.size["shortest_edge"]
            width = self.processor.size["longest_edge"] or height
            masks = torch.nn.functional.interpolate(found.masks_queries_logits, size=(height, width), mode="bilinear")
            classes = found.class_queries_logits.softmax(-1)[..., :-1]
            scores = torch.einsum("bqc,bqhw->bchw", classes, masks.sigmoid())
            return self.processor.unpad_image(scores, [size], self.processor.size)[0].argmax(0)
        read: Tensor = self.processor.post_process_semantic_segmentation(found, target_sizes=[size])[0]
        return read

    def _say(self, photo: EncodedPhoto, texts: list[str], even: Tensor, exclusive: bool, block: int) -> Said:
        read: _Read = photo.features
        margins = torch.stack([read.margins[self._numbers[text]].amax() for text in texts])
        masks = [
            torch.isin(read.classes, torch.tensor(self._numbers[text])).numpy()
            for text, margin, level in zip(texts, margins.tolist(), even.tolist(), strict=True)
            if margin >= level
        ]
        return Said(margins, masks, [None] * len(masks))


def log_odds(log_probability: Tensor) -> Tensor:
    """log(p / (1 - p)) of log(p); at most 27.6, where float32 ends."""
    return log_probability - (-torch.expm1(log_probability)).clamp(min=1e-12).log()
