"""`ClassListModel`: what every model that answers class lists is to the rest of the project.

    class Mine(ClassListModel):
        version = "mine-1"
        def segment_batch(self, images, class_lists, **asked): ...

What always holds: whatever serves, evaluates, calibrates, compares and batches asks a model through this alone; what a
model cannot do it says before it is asked (`abilities`), and again, in words, where it is asked all the same
(`cannot`). Here is no torch. `lasagna.contract.check` tries a model.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from lasagna.checkpoint.folder import Calibration
from lasagna.errors import ConfigError
from lasagna.masks.segmentation import ClassQuery, Mask, Segmentation, class_queries

WORDS = {
    "keeps_images": "keep an encoded image for a later question",
    "clicks": "answer clicks and boxes",
    "questions": "answer questions in words",
    "instant": "learn from each correction at once",
    "training": "be fine-tuned here",
    "objects": "tell the objects of a class apart by itself",
}
"""What stands after "cannot" for each ability."""
_INSTEAD = {
    "clicks": "draw by hand, or serve a model that can (nano does)",
    "questions": "ask a checkpoint of LaSagnA that was trained for it",
    "instant": "corrections are kept in Label Studio, and a checkpoint of LaSagnA learns from them",
    "training": "fine-tune a checkpoint of LaSagnA: `lasagna train` with LASAGNA_MODEL=nano",
}


@dataclass(frozen=True)
class Abilities:
    """What a model can do beside answering class lists.

    Attributes:
        keeps_images: `encode_image` gives what `segment_batch` takes in place of the image.
        clicks: `segment_prompt` answers points and boxes on an encoded image.
        questions: `ask_features` answers a question in words.
        instant: `observe` reads a corrected photo, and `segment_batch` takes the instant head of such (`head`).
        training: `lasagna train` can start from it.
        objects: Its answers say which pixels are of which object.
    """

    keeps_images: bool = False
    clicks: bool = False
    questions: bool = False
    instant: bool = False
    training: bool = False
    objects: bool = False

    @property
    def missing(self) -> tuple[str, ...]:
        """What an annotator or the one who trains would miss, in words."""
        return tuple(WORDS[name] for name in ("clicks", "questions", "instant", "training") if not getattr(self, name))


class ClassListAnswerer(Protocol):
    """What scores are taken of: anything that answers class lists."""

    def segment_batch(
        self,
        images: Sequence[Any],
        class_lists: Sequence[Sequence[Any]],
        /,
        *,
        threshold: float | None = None,
        exclusive: bool = False,
        chunk_size: int | None = None,
        guess_unknown: bool = False,
    ) -> list[Segmentation]: ...


class ClassListModel(ABC):
    """A model that can be served.

    Attributes:
        abilities: What it can do besides.
        calibration: What turned its margins into probabilities; `lasagna calibrate` fits it.
        folder: Where it was loaded from; None: made in memory.
        licence: What its folder says of its licence; "" where that is not known.
    """

    abilities = Abilities()
    calibration = Calibration()
    folder: Path | None = None
    licence = ""

    @property
    @abstractmethod
    def version(self) -> str:
        """Name and content in one word, such as "nano-ec805b63": what its predictions carry. Another content is
        another version."""

    @property
    def precision(self) -> str:
        """What it is computed in. Two models of one version differ in their answers if in this."""
        return "float32"

    @property
    def device(self) -> str:
        """Where it is computed, such as "cpu" or "cuda:0"."""
        return "cpu"

    @abstractmethod
    def segment_batch(
        self,
        images: Sequence[Any],
        class_lists: Sequence[Sequence[str | ClassQuery]],
        *,
        threshold: float | None = None,
        exclusive: bool = False,
        chunk_size: int | None = None,
        guess_unknown: bool = False,
    ) -> list[Segmentation]:
        """Answers a class list about each image.

        Args:
            images: Files (paths, or their content), PIL images or uint8 (H, W, 3) arrays, of any sizes;
                `lasagna.assistant.inputs.as_array` reads them. Where `keeps_images`, what `encode_image` gave, too.
            class_lists: One list per image (`lasagna.assistant.inputs.check_batch` reads and checks them).
            threshold: Probability from which on a class is present, in (0, 1); None is 0.5. That of a `ClassQuery`
                comes first.
            exclusive: Whether a pixel belongs to at most one class.
            chunk_size: Most classes that are computed together; None: as the model likes.
            guess_unknown: Whether to ask also for what the model was never taught, where that can be asked at all.

        Returns:
            For each image, one answer per class, in the order of the list. A class that the model cannot be asked for
            is `ClassAnswer.unknown`: not an absence.

        Raises:
            QueryError: A list is empty or no list, a label is blank, a threshold is out of range.
            ImageError: An image cannot be read, or is none.
        """

    def segment(
        self,
        image: Any,
        classes: Sequence[str | ClassQuery],
        *,
        threshold: float | None = None,
        exclusive: bool = False,
        chunk_size: int | None = None,
        guess_unknown: bool = False,
    ) -> Segmentation:
        """Answers one class list about one image; see `segment_batch`."""
        return self.segment_batch(
            [image],
            [class_queries(classes)],
            threshold=threshold,
            exclusive=exclusive,
            chunk_size=chunk_size,
            guess_unknown=guess_unknown,
        )[0]

    def read_text(self, text: str) -> str:
        """What the model reads for a name; offsets of classes (`calibration`) go by it."""
        return text

    def knows(self, query: ClassQuery) -> bool:
        """Whether the model can be asked for a class."""
        return True

    def encode_image(self, image: Any) -> Any:
        """Encodes an image once for several calls."""
        raise self.cannot("keeps_images")

    def segment_prompt(
        self,
        image: Any,
        *,
        points: Sequence[tuple[float, float, bool]] = (),
        box: tuple[float, float, float, float] | None = None,
    ) -> tuple[Mask, float]:
        """The mask of points (x, y, is foreground) and a box (x0, y0, x1, y1), in pixels of the image, and how good
        the model thinks it is, in [0, 1]."""
        raise self.cannot("clicks")

    def ask_features(
        self,
        features: Any,
        question: str,
        *,
        task: str = "vqa",
        max_new_tokens: int = 256,
        control_tokens: bool = False,
    ) -> Any:
        """A `lasagna.network.generate.TextAnswer` to a question in words about an encoded image."""
        raise self.cannot("questions")

    @property
    def encoder_fingerprint(self) -> str:
        """Which encoder corrections and instant heads of this model must be of."""
        raise self.cannot("instant")

    def observe(
        self,
        image: Any,
        masks: Mapping[str, Mask | None],
        id: str,
        *,
        classes: Sequence[str | ClassQuery] | None = None,
        undecided: Mask | None = None,
        is_evidence: bool = True,
        source: str = "",
    ) -> Any:
        """The `lasagna.instant.correction.Correction` that a corrected photo teaches."""
        raise self.cannot("instant")

    def cannot(self, ability: str) -> ConfigError:
        """The error for what the model is not able to do."""
        instead = f"; {_INSTEAD[ability]}" if ability in _INSTEAD else ""
        return ConfigError(f"the model {self.version} cannot {WORDS[ability]}{instead}")
