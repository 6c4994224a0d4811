"""What models of other makers have in common behind the contract: reading, calibration, thresholds, masks.

A kind of model adds three things: how a photo is encoded, what it says of names, and how its folder is read. What
always holds: images are computed one by one, so no image's answer depends on the others of its batch; a margin is
turned into a probability by the `calibration.json` of the folder, as for LaSagnA; masks are made of present classes
alone.
"""

import logging
from abc import abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from lasagna.assistant.drawing import mask_stability
from lasagna.assistant.inputs import ImageLike, as_array, check_batch
from lasagna.assistant.locking import CallLock
from lasagna.assistant.objects import tell_apart
from lasagna.checkpoint.architectures import folder_licence
from lasagna.checkpoint.folder import checkpoint_version, load_calibration
from lasagna.contract.model import Abilities, ClassListModel
from lasagna.errors import CheckpointError
from lasagna.masks.objects import Objects
from lasagna.masks.segmentation import ClassAnswer, ClassQuery, Mask, Segmentation
from lasagna.network.compat import ensure_torchvision

logger = logging.getLogger(__name__)

KEPT_TEXTS = 4096
"""Names whose encoded text is kept."""

_Loaded = TypeVar("_Loaded")


@dataclass(frozen=True)
class EncodedPhoto:
    """A photo as a model encodes it: all that does not depend on the names.

    Attributes:
        size: (height, width) of the image.
        features: The model's own.
    """

    size: tuple[int, int]
    features: Any


@dataclass(frozen=True)
class Parts:
    """A mask in objects, as the model tells them apart itself.

    Attributes:
        numbers: uint16 (H, W): 0 outside of the mask, inside an object's number from 1 on; one may be nowhere.
        margins: float32 (n,), on the CPU: of each object, on the scale of those of names.
    """

    numbers: NDArray[np.uint16]
    margins: Tensor


@dataclass(frozen=True)
class Said:
    """What a model says of some names on one photo.

    Attributes:
        margins: float32 (N,), on the CPU: the larger, the likelier is the name present.
        masks: bool (H, W) of the names whose margin reaches what was asked for, in their order.
        stability: Of these masks, as of `ClassAnswer`; None where it is not known.
        parts: Of these masks; None where the model does not tell objects apart, or nobody asked.
    """

    margins: Tensor
    masks: list[Mask]
    stability: list[float | None]
    parts: list[Parts | None]


class ForeignModel(ClassListModel):
    """A network of transformers with its processor.

    Args:
        folder: That it was loaded from.
        network: In eval mode, on its device.
        processor: Of images, and of text where the model reads any.
    """

    abilities = Abilities(keeps_images=True)
    block = 16
    """Names that are computed together."""

    def __init__(self, folder: Path, network: Any, processor: Any) -> None:
        self.folder, self.network, self.processor = folder, network, processor
        self.calibration = load_calibration(folder)
        self.licence = folder_licence(folder)
        self._version = checkpoint_version(folder)
        self._lock = CallLock()
        self._texts: OrderedDict[str, Any] = OrderedDict()

    @property
    def version(self) -> str:
        return self._version

    @property
    def precision(self) -> str:
        return str(self.network.dtype).removeprefix("torch.")

    @property
    def device(self) -> str:
        return str(self.network.device)

    @abstractmethod
    def _encode(self, image: NDArray[np.uint8]) -> Any:
        """The features of uint8 (H, W, 3)."""

    @abstractmethod
    def _say(
        self,
        photo: EncodedPhoto,
        texts: list[str],
        even: Tensor,
        exclusive: bool,
        block: int,
        apart: Collection[str],
    ) -> Said:
        """What the model says of distinct names.

        Args:
            even: float32 (N,): margins from which on names are present, and masks are wanted.
            block: Names that are computed together.
            apart: Those of the names whose objects are wanted.
        """

    def encode_image(self, image: ImageLike) -> EncodedPhoto:
        """Encodes an image once for several calls. Raises ImageError where it is none."""
        with self._lock, torch.inference_mode():
            return self._encoded(image)

    def _encoded(self, image: ImageLike | EncodedPhoto) -> EncodedPhoto:
        if isinstance(image, EncodedPhoto):
            return image
        array = np.require(as_array(image), requirements="W")  # torch reads no array that is read-only
        return EncodedPhoto((array.shape[0], array.shape[1]), self._encode(array))

    def segment_batch(
        self,
        images: Sequence[ImageLike | EncodedPhoto],
        class_lists: Sequence[Sequence[str | ClassQuery]],
        *,
        threshold: float | None = None,
        exclusive: bool = False,
        chunk_size: int | None = None,
        guess_unknown: bool = False,
    ) -> list[Segmentation]:
        """As the contract says; `chunk_size` changes the time and the memory alone."""
        queries = check_batch(images, class_lists, threshold, chunk_size, exclusive)
        with self._lock, torch.inference_mode():
            return [
                tell_apart(
                    self._answer(self._encoded(image), asked, threshold, exclusive, chunk_size or self.block), asked
                )
                for image, asked in zip(images, queries, strict=True)
            ]

    def _answer(
        self, photo: EncodedPhoto, queries: list[ClassQuery], threshold: float | None, exclusive: bool, block: int
    ) -> Segmentation:
        levels: dict[str, float] = {}
        apart = set[str]()
        for query in queries:
            if self.knows(query):
                text = self.read_text(query.text)
                level = query.threshold or threshold or 0.5
                levels[text] = min(level, levels.get(text, 1.0))
                if query.objects:
                    apart.add(text)
        if not levels:
            return Segmentation(photo.size, tuple(ClassAnswer.unknown(query.name) for query in queries))
        calibration, texts = self.calibration, list(levels)
        offsets = torch.tensor([calibration.offset + calibration.class_offsets.get(text, 0.0) for text in texts])
        even = offsets + calibration.temperature * torch.logit(torch.tensor([levels[text] for text in texts]))
        said = self._say(photo, texts, even, exclusive, block, apart)
        probabilities = ((said.margins - offsets) / calibration.temperature).sigmoid().tolist()
        drawn = zip(said.masks, said.stability, said.parts, strict=True)
        answers: dict[str, ClassAnswer] = {}
        for text, probability, offset, present in zip(
            texts, probabilities, offsets.tolist(), (said.margins >= even).tolist(), strict=True
        ):
            mask, stability, parts = next(drawn) if present else (None, None, None)
            objects = None
            if parts is not None:
                scores = ((parts.margins - offset) / calibration.temperature).sigmoid().tolist()
                objects = Objects.of_numbers(parts.numbers, scores)
            answers[text] = ClassAnswer(text, probability, mask, stability, objects=objects)
        return Segmentation(photo.size, tuple(self._named(query, answers) for query in queries))

    def _named(self, query: ClassQuery, answers: Mapping[str, ClassAnswer]) -> ClassAnswer:
        """The answer to a query, of those of texts."""
        if not self.knows(query):
            return ClassAnswer.unknown(query.name)
        found = answers[self.read_text(query.text)]
        return replace(found, name=query.name, objects=found.objects if query.objects else None)

    def forget_texts(self) -> None:
        """Encodes every name anew from now on."""
        self._texts.clear()

    def _kept_texts(self, texts: Sequence[str], encode: Callable[[list[str]], list[Any]]) -> list[Any]:
        """What `encode` gives of each text, from the last `KEPT_TEXTS` that were asked for."""
        fresh = [text for text in texts if text not in self._texts]
        for first in range(0, len(fresh), self.block):
            part = fresh[first : first + self.block]
            self._texts.update(zip(part, encode(part), strict=True))
        found = []
        for text in texts:
            self._texts.move_to_end(text)
            found.append(self._texts[text])
        while len(self._texts) > KEPT_TEXTS:
            self._texts.popitem(last=False)
        return found


class LargeMasks:
    """Masks of an image's size, of maps that come one after the other: maps of a hundred names of a large photo would
    take gigabytes at once, their masks a quarter of it.

    Args:
        size: (height, width) of the image.
        even: What a pixel's value must be above to be in a mask.
        exclusive: Whether a pixel is in the mask of its highest value alone; of equal ones, the first.
    """

    def __init__(self, size: tuple[int, int], even: float, exclusive: bool) -> None:
        self._even, self._count = even, 0
        self._masks: list[Mask] = []
        self._best = torch.full(size, even) if exclusive else None
        self._owner = torch.full(size if exclusive else (0,), -1, dtype=torch.int32)

    def add(self, values: Tensor) -> None:
        """The next map, float32 (H, W), on the CPU."""
        if self._best is None:
            self._masks.append((values > self._even).numpy())
        else:
            self._owner[values > self._best] = self._count
            torch.maximum(self._best, values, out=self._best)
        self._count += 1

    def masks(self) -> list[Mask]:
        """bool (H, W) of each map, in their order."""
        if self._best is None:
            return self._masks
        return [(self._owner == number).numpy() for number in range(self._count)]


def masks_of_logits(logits: Tensor, size: tuple[int, int], exclusive: bool) -> tuple[list[Mask], list[float | None]]:
    """(M, h, w) logits of a whole image, without padding, to masks of its size and their stability."""
    large = LargeMasks(size, 0.0, exclusive)
    for row in logits.float()[:, None, None]:
        large.add(F.interpolate(row, size=size, mode="bilinear", align_corners=False)[0, 0].cpu())
    return large.masks(), [*mask_stability(logits).tolist()] if len(logits) else []


def blocks(count: int, size: int) -> list[slice]:
    """`count` things, `size` at a time."""
    return [slice(first, min(first + size, count)) for first in range(0, count, size)]


def read_folder(folder: Path, read: Callable[[Any], _Loaded]) -> _Loaded:
    """What `read` makes of a folder with `transformers`, which it is given.

    Raises CheckpointError where the folder does not have what transformers needs, or transformers does not have what
    the folder needs.
    """
    ensure_torchvision()
    import transformers

    bars = transformers.utils.logging
    shown = bars.is_progress_bar_enabled()
    bars.disable_progress_bar()  # one bar for each part of a folder would lie across those of the command
    try:
        return read(transformers)
    except (OSError, ValueError, KeyError, AttributeError, ImportError, RuntimeError) as error:
        raise CheckpointError(
            f"{folder}: transformers {transformers.__version__} cannot load it: {str(error).strip() or error!r}; it "
            "needs config.json, *.safetensors, and the files of its processor (preprocessor_config.json or "
            "processor_config.json, and the tokenizer where it reads names), as save_pretrained writes them"
        ) from error
    finally:
        if shown:
            bars.enable_progress_bar()


def load_network(kind: Any, folder: Path, device: torch.device, dtype: torch.dtype) -> Any:
    """A network of a folder, in eval mode. No code of the folder is run; nothing is fetched.

    Raises ValueError where weights are missing, which transformers would fill with random ones.
    """
    network, report = kind.from_pretrained(
        folder, dtype=dtype, use_safetensors=True, local_files_only=True, output_loading_info=True
    )
    missing = sorted(report["missing_keys"])
    if missing:
        raise ValueError(f"its weights lack {', '.join(missing[:5])} ({len(missing)} in all)")
    return network.to(device).eval()
