"""Questions that an annotator writes into a smart `<TextArea>`: asked of the model, answered in words and in masks.

Label Studio sends what was written as a region of type "textarea" in the context of an interactive request. The
question is answered freely, as by `lasagna ask`; masks are drawn with the label that it is asked for. What always
holds: an answer that cannot be given is said in words, in the answer's `TextArea` where the configuration has one,
since the editor shows no error of a model.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import numpy as np

from lasagna.errors import ConfigError, QueryError
from lasagna.formats.label_studio import segmentation_to_label_studio
from lasagna.labels.configuration import LabelConfig
from lasagna.masks.segmentation import ClassAnswer, Segmentation

if TYPE_CHECKING:
    from lasagna.assistant.answers import ImageFeatures
    from lasagna.assistant.lasagna import Lasagna

MAX_NEW_TOKENS = 128
"""Most tokens of an answer: a person waits for it."""
_DRAWN = ("brushlabels", "polygonlabels", "rectanglelabels")


@dataclass(frozen=True)
class Question:
    """What is asked, and the class in whose label masks of the answer are drawn (None: in none)."""

    text: str
    class_name: str | None

    @property
    def task(self) -> str:
        """A sentence with a question mark is asked as it is; anything else describes what to segment."""
        return "vqa" if self.text.endswith("?") else "referring"


def parse_question(regions: Iterable[Any], plan: LabelConfig) -> Question | None:
    """The question in an interactive request, or None where it holds none.

    The label is the one that the request's region has (a `TextArea` with perRegion="true" belongs to a region, whose
    labels travel with it), else the longest label that the question names, else the only one there is.

    Args:
        regions: `context.result` of the request.
        plan: The labelling configuration.
    """
    if plan.question_area is None:
        return None
    text, label = "", None
    known = {one.written: one.value for control in plan.controls for one in control.labels}
    for region in regions:
        value = region.get("value") if isinstance(region, Mapping) else None
        if not isinstance(value, Mapping):
            continue
        if region.get("from_name") == plan.question_area and region.get("type") == "textarea":
            lines = value.get("text")
            written = [lines] if isinstance(lines, str) else lines if isinstance(lines, list) else []
            text = " ".join(" ".join(str(line).split()) for line in written).strip()
        for kind in _DRAWN:
            chosen = value.get(kind)
            if isinstance(chosen, list) and chosen and isinstance(chosen[0], str) and chosen[0] in known:
                label = known[chosen[0]]
    if not text:
        return None
    return Question(text, label or _named(text, plan))


def _named(text: str, plan: LabelConfig) -> str | None:
    names = [query.name for query in plan.classes]
    if len(names) == 1:
        return names[0]
    padded = f" {text.lower().rstrip('?.! ')} "
    found = [query.name for query in plan.classes if f" {query.name.lower()} " in padded]
    return max(found, key=len, default=None)


def answer_question(
    model: "Lasagna", features: "ImageFeatures", question: Question, plan: LabelConfig, size: tuple[int, int]
) -> dict[str, Any]:
    """A prediction of Label Studio: masks in the first control that has the label, and the words.

    Args:
        features: The image, encoded.
        size: (height, width) of the image.

    Raises:
        ConfigError: The answer holds nothing that the configuration can show.
        QueryError: The question cannot be asked, and the configuration has no `TextArea` to say so in.
    """
    masks: tuple[Any, ...] = ()
    try:
        found = model.ask_features(features, question.text, task=question.task, max_new_tokens=MAX_NEW_TOKENS)
        words, masks = found.text, found.masks
    except QueryError as error:
        if plan.answer_area is None:
            raise
        words = f"{model.version} cannot answer this: {error}"
    prediction: dict[str, Any] = {"model_version": model.version, "score": 0.0, "result": []}
    drawn = plan.controls_for(question.class_name) if question.class_name else []
    if masks and drawn:
        mask = np.logical_or.reduce(masks)
        shown = Segmentation(size, (ClassAnswer(str(question.class_name), 1.0, mask),))
        narrowed = replace(plan, controls=(drawn[0][0],), absent_choices=None, absent_values=())
        # the id is new each time: a second answer must not replace the region of the first
        prediction = segmentation_to_label_studio(shown, narrowed, uuid4().hex, model.version)
    elif masks:
        words += " (name one of the labels in the question, and the mask is drawn with it)"
    if plan.answer_area is not None:
        prediction["result"].append(
            {
                "id": uuid4().hex[:10],
                "from_name": plan.answer_area,
                "to_name": plan.image_name,
                "type": "textarea",
                "value": {"text": [words]},
            }
        )
    if not prediction["result"]:
        raise ConfigError(
            f'the answer is {words!r}, which nothing can show: add <TextArea name="answer" '
            f'toName="{plan.image_name}"/> to the labelling configuration'
        )
    return prediction
