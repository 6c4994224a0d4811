"""Evaluation of texts: referring expressions, reasoning questions, expressions that mean several targets or none.

Every text of a record is one sample, as published (`texts: first` asks one of several wordings that mean the same).
What is scored is the union of the masks of the answer. How a model is asked:

- `ListOfOne`: a class list whose one name is the expression; absent is "nothing is meant". For a model that was
  trained on class lists alone, as `nano`.
- `InConversation`: the checkpoint's own wording for the task, and a free answer; one without a mask is "nothing is
  meant".
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from lasagna.contract.model import ClassListAnswerer
from lasagna.errors import DataError, LasagnaError
from training.data.records import UNKNOWN
from training.data.sources import Source
from training.data.spread import spread
from training.evaluation.scoring import read_photo
from training.evaluation.text_metrics import TextMetrics

LONGEST = {"referring": 32, "reasoning": 256}
"""Tokens after which an answer is cut: a model that was trained too little goes on and on."""

Mask = NDArray[np.bool_]
Texts = Literal["all", "first"]


class TextSegmenter(Protocol):
    """What is evaluated: answers one text about each image."""

    def segment_texts(self, images: Sequence[Any], texts: Sequence[str], /) -> list[Mask]:
        """The union of the masks of each answer, bool (H, W) of its image; all False where there is no such thing."""


class ListOfOne:
    """Asks a text as a class list of one name."""

    def __init__(self, model: ClassListAnswerer, threshold: float | None = None) -> None:
        self._model, self._threshold = model, threshold

    def segment_texts(self, images: Sequence[Any], texts: Sequence[str], /) -> list[Mask]:
        answers = self._model.segment_batch(images, [[text] for text in texts], threshold=self._threshold)
        return [
            np.zeros(answer.size, bool) if answer.classes[0].mask is None else answer.classes[0].mask
            for answer in answers
        ]


class InConversation:
    """Asks a text in the checkpoint's own wording, and lets it answer freely.

    Args:
        model: A `Lasagna`.
        task: "referring" or "reasoning"; the checkpoint knows it.
        max_new_tokens: Of an answer; None: by the task. Answers about expressions have no explanation.
    """

    def __init__(self, model: Any, task: str, max_new_tokens: int | None = None) -> None:
        self._model, self._task = model, task
        self._tokens = max_new_tokens or LONGEST[task]

    def segment_texts(self, images: Sequence[Any], texts: Sequence[str], /) -> list[Mask]:
        found = []
        for image, text in zip(images, texts, strict=True):
            answer = self._model.ask(image, text, task=self._task, max_new_tokens=self._tokens)
            nothing = np.zeros((image.height, image.width), bool)
            found.append(np.logical_or.reduce([nothing, *answer.masks]))
        return found


def text_segmenter(model: Any, task: str, threshold: float | None = None) -> TextSegmenter:
    """How a model is asked about texts: in conversation where its checkpoint knows the task, else by lists of one."""
    prompt = getattr(model, "prompt", None)
    if prompt is not None and prompt.knows(task) and hasattr(model, "ask"):
        return InConversation(model, task)
    return ListOfOne(model, threshold)


@dataclass
class TextEvaluation:
    """What was measured on one split of one data set.

    Attributes:
        metrics: Over all samples.
        seconds: Time of the model alone, all samples together.
        failures: Record id -> why it could not be scored.
    """

    metrics: TextMetrics
    seconds: float = 0.0
    failures: dict[str, str] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """The figures as they are written to JSON; an undefined one is None."""
        samples = len(self.metrics)
        return {
            **self.metrics.as_dict(),
            "seconds_per_sample": self.seconds / samples if samples else None,
            "failures": self.failures,
        }


def evaluate_texts(
    model: TextSegmenter,
    source: Source,
    *,
    limit: int | None = None,
    batch_size: int = 8,
    texts: Texts = "all",
    on_record: Callable[[], None] = lambda: None,
) -> TextEvaluation:
    """Asks every text of a split about its image, and scores the answers.

    Args:
        model: Answers texts.
        source: The split; records with `texts`.
        limit: At most so many records, evenly spread.
        batch_size: Texts per call of the model.
        texts: "all": every text of a record is a sample; "first": one, for wordings that mean the same.
        on_record: Called after every record, scored or failed.

    Returns:
        The figures; of a split without a record, none. A photo or annotation that cannot be read is in `failures`, its
        texts are scored nowhere.

    Raises:
        DataError: A record has no text.
    """
    result = TextEvaluation(TextMetrics())
    for index in spread(len(source), limit):
        record = source[index]
        if not record.texts:
            raise DataError(f"{record.source} {record.image_id} has no text; class lists are for the semantic tables")
        try:
            image, labels = read_photo(record)
        except LasagnaError as error:
            result.failures[record.image_id] = str(error)
            on_record()
            continue
        truth, known = (labels == 0).any(0), ~(labels == UNKNOWN).any(0)
        asked = record.texts if texts == "all" else record.texts[:1]
        for start in range(0, len(asked), batch_size):
            some = asked[start : start + batch_size]
            began = time.perf_counter()
            masks = model.segment_texts([image] * len(some), some)
            result.seconds += time.perf_counter() - began
            for mask in masks:
                result.metrics.update(truth, mask, known)
        on_record()
    return result
