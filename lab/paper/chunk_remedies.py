"""`lasagna experiment chunks`: where the loss from small class lists comes from, and whether it can be removed.

A long list that is asked in chunks costs accuracy (the paper's Table 6). An answer has two halves, which class is there
and where it is, and a chunk may hurt either: so each half is taken from the whole list and from chunks, and then come
ways to mend it that a user of chunks could take. What always holds: every row asks the same photos for the same
classes; no remedy sees the truth, and none asks a list that is longer than the chunks, except where its name says so.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from lab.paper.answering import CERTAIN
from lasagna import Lasagna
from lasagna.assistant.answers import ImageFeatures
from training.data.sources import Source
from training.evaluation.evaluate import Evaluation, evaluate_dataset

CANDIDATE = 0.15
"""Probability in its chunk from which on a class is asked again in the list of candidates."""

Decided = list[dict[str, Any]]
"""For each image, by name: probability, whether it is present, and the state that its mask is drawn from."""

Decide = Callable[[Sequence[ImageFeatures], list[list[str]], float | None, int | None], Decided]
"""Decides from the encoded images, the names asked of each, the threshold and the chunk size."""

How = Callable[[Decide, Sequence[ImageFeatures], list[list[str]], float | None, int | None], Decided]
"""Another way to decide; its first argument is the usual one."""


class Redecided(Lasagna):
    """A checkpoint whose decisions are made in another way. Its masks are drawn as always.

    Args:
        model: The checkpoint.
        how: Makes the decisions; gets the usual way first.
    """

    def __init__(self, model: Lasagna, how: How) -> None:
        super().__init__(model.model, model.tokenizer, model.format, model.calibration, model.version)
        self.classifier = model.classifier
        self._how = how

    def _decide(
        self,
        features: Sequence[ImageFeatures],
        texts: list[list[str]],
        threshold: float | None,
        chunk_size: int | None,
        own: Sequence[Mapping[str, float]] = (),
    ) -> Decided:
        return self._how(partial(super()._decide, own=own), features, texts, threshold, chunk_size)


def halves(presence: int | None, masks: int | None) -> How:
    """Takes presence from lists of one size and masks from the states of lists of another; None: the whole list."""

    def how(
        decide: Decide,
        features: Sequence[ImageFeatures],
        texts: list[list[str]],
        threshold: float | None,
        _: int | None,
    ) -> Decided:
        decided, drawn = (decide(features, texts, threshold, size) for size in (presence, masks))
        return [
            {name: replace(one[name], hidden=other[name].hidden) for name in one}
            for one, other in zip(decided, drawn, strict=True)
        ]

    return how


def masks_again(
    decide: Decide,
    features: Sequence[ImageFeatures],
    texts: list[list[str]],
    threshold: float | None,
    chunk_size: int | None,
) -> Decided:
    """Chunks say which classes are there; those are then asked in lists of their own, for their masks alone."""
    first = decide(features, texts, threshold, chunk_size)
    found = [_those(one, lambda answer: answer.present) for one in first]
    second = decide(features, found, CERTAIN, chunk_size)
    return [
        {name: replace(one[name], hidden=(again if name in again else one)[name].hidden) for name in one}
        for one, again in zip(first, second, strict=True)
    ]


def candidates_again(
    decide: Decide,
    features: Sequence[ImageFeatures],
    texts: list[list[str]],
    threshold: float | None,
    chunk_size: int | None,
) -> Decided:
    """Chunks choose candidates (`CANDIDATE`), at most a chunk of them; a list of the candidates decides."""
    first = decide(features, texts, threshold, chunk_size)
    found = []
    for one in first:
        names = _those(one, lambda answer: answer.probability >= CANDIDATE)
        best = sorted(names, key=lambda name: -one[name].probability)[:chunk_size]
        found.append([name for name in names if name in set(best)])
    second = decide(features, found, threshold, chunk_size)
    return [
        {name: again.get(name, replace(answer, present=False)) for name, answer in one.items()}
        for one, again in zip(first, second, strict=True)
    ]


def _those(answers: dict[str, Any], wanted: Callable[[Any], bool]) -> list[str]:
    """Names in the order in which they were asked; the first where there is none, since a list is not empty."""
    return [name for name, answer in answers.items() if wanted(answer)] or list(answers)[:1]


@dataclass(frozen=True)
class Remedy:
    """One row: what was done, and its figures (`Evaluation.as_dict`)."""

    name: str
    figures: dict[str, Any]


ROWS = 7


def measure_remedies(
    model: Lasagna,
    source: Source,
    chunk_size: int,
    limit: int | None = None,
    on_image: Callable[[], None] = lambda: None,
) -> Iterator[Remedy]:
    """`ROWS` rows: the whole list, chunks, then the halves and the remedies.

    Args:
        chunk_size: Classes of one list.
        limit: At most so many photos, evenly spread.
    """

    def evaluate(how: How | None, size: int | None, threshold: float | None = None) -> Evaluation:
        asked = Redecided(model, how) if how else model
        options: dict[str, Any] = {"limit": limit, "chunk_size": size, "threshold": threshold}
        return evaluate_dataset(asked, source, on_image=on_image, **options)

    whole = evaluate(None, None)
    yield Remedy("the whole list", whole.as_dict())
    chunked = evaluate(None, chunk_size)
    yield Remedy("chunks", chunked.as_dict())
    for name, how in (
        ("presence of chunks, masks of the whole list", halves(chunk_size, None)),
        ("presence of the whole list, masks of chunks", halves(None, chunk_size)),
        ("chunks, masks from a second list of what was found", masks_again),
        (f"chunks, a second list of those with p >= {CANDIDATE:g} decides", candidates_again),
    ):
        yield Remedy(name, evaluate(how, chunk_size).as_dict())
    threshold = equal_count(whole.presence.probability, chunked.presence.probability)
    name = f"chunks, threshold {threshold:.2f}: as many said present as by the whole list"
    yield Remedy(name, evaluate(None, chunk_size, threshold).as_dict())


def equal_count(reference: np.ndarray[Any, Any], other: np.ndarray[Any, Any]) -> float:
    """The threshold at which as many of `other` are present as of `reference` at one half. No truth is needed.

    Args:
        reference, other: (N,) probabilities of the same questions.

    Returns:
        Strictly between 0 and 1.
    """
    count = int((reference >= 0.5).sum())
    ranked = np.sort(other)[::-1]
    above = float(ranked[count - 1]) if count else 1.0
    below = float(ranked[count]) if count < len(ranked) else 0.0
    return float(np.clip((above + below) / 2, 1e-6, 1 - 1e-6))
