"""Other ways to ask a checkpoint for a class list, for models that were not trained to answer every class.

- `OneByOne`: LISA's. One question per class; such a model takes for granted that what it is asked for is there (the
  paper, section 3.2), so every class counts as said present, and a pixel goes to the class with the largest logit.
- `FreeAnswers`: one question with the whole list; the model chooses which of the names it writes, in which order, and
  when it stops, token by token. A class is present where the answer names it, followed by a "present" token; what the
  answer does not name is absent. Only names of the list can be written, each once: a language model of nano's size has
  not learnt to copy, and repeats one name to the end where it may.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from lasagna.assistant.inputs import ImageLike
from lasagna.assistant.lasagna import Lasagna
from lasagna.masks.segmentation import ClassAnswer, ClassQuery, Segmentation, class_queries
from lasagna.network.llama import KeyValues
from lasagna.prompt.sequences import Name

CERTAIN = 1e-300
"""A threshold that every class is over."""


def answer_as(kind: str, model: Lasagna) -> Any:
    """A checkpoint that is asked in one of the ways of `lab.paper.suite.Model.kind`."""
    return {"lasagna": lambda: model, "one_by_one": lambda: OneByOne(model), "free": lambda: FreeAnswers(model)}[kind]()


class OneByOne:
    """Asks one class per question and draws whatever is asked for; `probability` is 1. Texts are asked as the model
    was trained to be asked about them (`prompt`, `ask`)."""

    def __init__(self, model: Lasagna) -> None:
        self._model, self.prompt, self.ask = model, model.prompt, model.ask

    def segment_batch(
        self,
        images: Sequence[ImageLike],
        class_lists: Sequence[Sequence[str | ClassQuery]],
        /,
        *,
        threshold: float | None = None,
        exclusive: bool = False,
        chunk_size: int | None = None,
        guess_unknown: bool = False,
    ) -> list[Segmentation]:
        """`threshold`, `chunk_size` and `guess_unknown` have no meaning here: everything is asked (`lab.names`)."""
        answers = self._model.segment_batch(images, class_lists, threshold=CERTAIN, exclusive=exclusive, chunk_size=1)
        return [
            Segmentation(answer.size, tuple(replace(found, probability=1.0) for found in answer.classes))
            for answer in answers
        ]


class FreeAnswers:
    """Asks a class list and lets the model choose the answer, greedily, among the names of the list. Texts are asked as
    of `OneByOne`."""

    def __init__(self, model: Lasagna) -> None:
        self._model, self.prompt, self.ask = model, model.prompt, model.ask

    def segment_batch(
        self,
        images: Sequence[ImageLike],
        class_lists: Sequence[Sequence[str | ClassQuery]],
        /,
        *,
        threshold: float | None = None,
        exclusive: bool = False,
        chunk_size: int | None = None,
        guess_unknown: bool = False,
    ) -> list[Segmentation]:
        """`threshold` has no meaning here: the answer is what it is. `probability` is that of the "present" token where
        the class was named, else 0."""
        return [
            self._segment(image, class_queries(classes), exclusive, chunk_size)
            for image, classes in zip(images, class_lists, strict=True)
        ]

    @torch.inference_mode()
    def _segment(
        self, image: ImageLike, queries: list[ClassQuery], exclusive: bool, chunk_size: int | None
    ) -> Segmentation:
        model = self._model
        features = model.encode_image(image)
        names = {query.text: model.prompt.encode_name(query.text) for query in queries}
        listed = list(dict.fromkeys(names.values()))
        found: dict[str, tuple[float, torch.Tensor | None]] = {}
        for chunk in model.prompt.plan_chunks(listed, chunk_size):
            found |= self._answer(features.encoded.tokens, [listed[i] for i in chunk])
        present = [text for text, (_, state) in found.items() if state is not None]
        states = [state for _, state in found.values() if state is not None]
        masks = dict(zip(present, model.decode_masks(features, states, exclusive=exclusive), strict=True))
        answers = []
        for query in queries:
            text = names[query.text].text
            answers.append(ClassAnswer(query.name, found.get(text, (0.0, None))[0], masks.get(text)))
        return Segmentation(features.prepared.original_size, tuple(answers))

    def _answer(self, tokens: torch.Tensor, names: Sequence[Name]) -> dict[str, tuple[float, torch.Tensor | None]]:
        """By name: the probability of "present", and the state that says it (None: the model said absent)."""
        network, prompt = self._model.model, self._model.prompt
        query = prompt.query(names)
        open_names = {name.text: name.ids for name in names}
        between: tuple[int, ...] = ()
        if len(names) > 1:  # what stands between a decision and the name after it
            second = query.answer[query.slots[0] + 1 : query.slots[1]]
            between = second[: len(second) - len(names[1])]
        ends = {prompt.stop, *query.answer[query.slots[-1] + 1 :][:1]}
        cache = KeyValues()
        prefix = network.prefix(prompt.before_image, tokens)
        embeddings = torch.cat([prefix, network.embed(query.question)[None]], dim=1)
        found: dict[str, tuple[float, torch.Tensor | None]] = {}
        spelled: tuple[int, ...] = ()
        length = 0
        while open_names:
            positions = torch.arange(length, length + embeddings.shape[1], device=network.device)[None]
            length += embeddings.shape[1]
            state = network.run(embeddings, None, positions, cache)[0, -1]
            logits = network.lm_head(state).float()
            lead = between if found else ()
            spellings = {text: (*lead, *ids) for text, ids in open_names.items()}
            going = {ids[len(spelled)] for ids in spellings.values() if ids[: len(spelled)] == spelled != ids}
            complete = next((text for text, ids in spellings.items() if ids == spelled), None)
            allowed = going | ({prompt.seg, prompt.neg} if complete else set()) | (set() if spelled else ends)
            token = max(sorted(allowed), key=lambda candidate: float(logits[candidate]))
            if token in ends and not spelled:
                break
            if complete and token in (prompt.seg, prompt.neg):
                probability = float(logits.softmax(0)[prompt.seg])
                found[complete] = (probability, state if token == prompt.seg else None)
                del open_names[complete]
                spelled = ()
            else:
                spelled = (*spelled, token)
            embeddings = network.embed([token])[None]
        return found
