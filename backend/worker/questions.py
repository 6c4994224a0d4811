"""Questions that an annotator writes into a smart `<TextArea>`: asked of the model, answered in words and in masks.

Label Studio sends what was written as a region of type "textarea" in the context of an interactive request. The
question is answered freely, as by `lasagna ask`; masks are drawn with the label that it is asked for. What always
holds: an answer that cannot be given is said in words, in the answer's `TextArea` where the configuration has one,
since the editor shows no error of a model.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import numpy as np

from lasagna.errors import ConfigError, QueryError
from lasagna.formats.label_studio import segmentation_to_label_studio
from lasagna.formats.regions import read_regions
from lasagna.labels.configuration import TaskImage
from lasagna.labels.parts import ImageConfig
from lasagna.masks.segmentation import ClassAnswer, Segmentation

if TYPE_CHECKING:
    from lasagna.contract.model import ClassListModel

MAX_NEW_TOKENS = 128
"""Most tokens of an answer: a person waits for it."""


@dataclass(frozen=True)
class Question:
    """What is asked, of which image, and the class in whose label masks of the answer are drawn (None: in none)."""

    text: str
    class_name: str | None
    image: TaskImage

    @property
    def task(self) -> str:
        """A sentence with a question mark is asked as it is; anything else describes what to segment."""
        return "vqa" if self.text.endswith("?") else "referring"


def parse_question(regions: Sequence[Any], images: Sequence[TaskImage]) -> Question | None:
    """The question in an interactive request, or None where it holds none.

    The label is the one that the request's region has (a `TextArea` with perRegion="true" belongs to a region, whose
    labels travel with it), else the longest label that the question names, else the only one there is.

    Args:
        regions: `context.result` of the request.
        images: That the task shows.
    """
    reading = read_regions(regions, [image.config for image in images])
    for image, drawn in zip(images, reading.of_image, strict=True):
        text = _written(regions, image.config)
        if text:
            labels = [label.value for region in drawn for label in region.labels]
            return Question(text, labels[-1] if labels else _named(text, image.config), image)
    return None


def _written(regions: Sequence[Any], config: ImageConfig) -> str:
    """What is written in the image's field for questions."""
    text = ""
    for region in regions if config.question_area is not None else ():
        value = region.get("value") if isinstance(region, Mapping) else None
        is_of_page = isinstance(region, Mapping) and config.item_index in (None, region.get("item_index") or 0)
        if not isinstance(value, Mapping) or not is_of_page:
            continue
        if region.get("from_name") == config.question_area and region.get("type") == "textarea":
            lines = value.get("text")
            written = [lines] if isinstance(lines, str) else lines if isinstance(lines, list) else []
            text = " ".join(" ".join(str(line).split()) for line in written).strip()
    return text


def _named(text: str, config: ImageConfig) -> str | None:
    names = [query.name for query in config.classes]
    if len(names) == 1:
        return names[0]
    padded = f" {text.lower().rstrip('?.! ')} "
    found = [query.name for query in config.classes if f" {query.name.lower()} " in padded]
    return max(found, key=len, default=None)


def answer_question(
    model: "ClassListModel", features: Any, question: Question, size: tuple[int, int]
) -> dict[str, Any]:
    """A prediction of Label Studio: masks in the first control that has the label, and the words.

    Args:
        features: The image, as the model encodes it.
        size: (height, width) of the image.

    Raises:
        ConfigError: The answer holds nothing that the configuration can show.
        QueryError: The question cannot be asked, and the configuration has no `TextArea` to say so in.
    """
    config = question.image.config
    masks: tuple[Any, ...] = ()
    try:
        found = model.ask_features(features, question.text, task=question.task, max_new_tokens=MAX_NEW_TOKENS)
        words, masks = found.text, found.masks
    except (QueryError, ConfigError) as error:  # not this question, or no question at all
        if config.answer_area is None:
            raise
        words = f"{model.version} cannot answer this: {error}"
    prediction: dict[str, Any] = {"model_version": model.version, "score": 0.0, "result": []}
    drawn = config.controls_for(question.class_name) if question.class_name else []
    if masks and drawn:
        mask = np.logical_or.reduce(masks)
        shown = Segmentation(size, (ClassAnswer(str(question.class_name), 1.0, mask),))
        narrowed = replace(config, controls=(drawn[0][0],), absent_choices=None, absent_values=())
        # the id is new each time: a second answer must not replace the region of the first
        prediction = segmentation_to_label_studio(shown, narrowed, uuid4().hex, model.version)
    elif masks:
        words += " (name one of the labels in the question, and the mask is drawn with it)"
    if config.answer_area is not None:
        prediction["result"].append(
            {
                "id": uuid4().hex[:10],
                "from_name": config.answer_area,
                "to_name": config.image_name,
                "type": "textarea",
                "value": {"text": [words]},
                **({} if config.item_index is None else {"item_index": config.item_index}),
            }
        )
    if not prediction["result"]:
        raise ConfigError(
            f'the answer is {words!r}, which nothing can show: add <TextArea name="answer" '
            f'toName="{config.image_name}"/> to the labelling configuration'
        )
    return prediction
