"""Other ways to ask: class by class with everything drawn, and freely chosen answers out of the list."""

import numpy as np
import pytest
import torch

from lab.paper.answering import FreeAnswers, OneByOne, answer_as
from lasagna import Lasagna

NAMES = ["cat", "dog", "red car", "sky", "tree", "catfish"]
IMAGE = np.random.default_rng(0).integers(0, 255, (48, 64, 3)).astype(np.uint8)


@pytest.fixture(scope="module")
def model() -> Lasagna:
    return Lasagna.random(seed=0)


def test_class_by_class_everything_is_drawn(model: Lasagna) -> None:
    (answer,) = OneByOne(model).segment_batch([IMAGE], [NAMES], exclusive=True)
    assert [found.name for found in answer.classes] == NAMES
    assert [found.probability for found in answer.classes] == [1.0] * len(NAMES)
    masks = np.stack([found.mask for found in answer.classes])
    assert masks.sum(0).max() == 1  # exclusive
    # Each class as if it were asked alone: the list has no influence.
    (alone,) = OneByOne(model).segment_batch([IMAGE], [["sky"]])
    (all_of_them,) = OneByOne(model).segment_batch([IMAGE], [NAMES])
    np.testing.assert_array_equal(alone["sky"].mask, all_of_them["sky"].mask)


class Scripted:
    """Makes a model's next tokens known: those of a text, in spite of what it would say."""

    def __init__(self, model: Lasagna, answer: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
        self.forwards = 0
        size = len(model.model.lm_head.weight)

        def head(state: torch.Tensor) -> torch.Tensor:
            logits = torch.zeros(size)
            if self.forwards < len(answer):
                logits[answer[self.forwards]] = 10.0
            self.forwards += 1
            return logits

        monkeypatch.setattr(model.model.lm_head, "forward", head)


def spell(model: Lasagna, *parts: str) -> list[int]:
    ids: list[int] = []
    for part in parts:
        control = {"<SEG>": model.prompt.seg, "<NEG>": model.prompt.neg}
        ids += [control[part]] if part in control else model.tokenizer.encode(part)
    return ids


def test_a_free_answer_is_what_the_model_writes(model: Lasagna, monkeypatch: pytest.MonkeyPatch) -> None:
    script = Scripted(
        model, spell(model, "sky", "<SEG>", ", ", "catfish", "<SEG>", ", ", "dog", "<NEG>", "."), monkeypatch
    )
    (answer,) = FreeAnswers(model).segment_batch([IMAGE], [NAMES])
    assert {found.name for found in answer.present} == {"sky", "catfish"}
    assert answer["sky"].probability > 0.9
    assert 0 < answer["dog"].probability < 0.1  # named, and said absent
    assert answer["cat"].probability == 0.0  # not named
    assert script.forwards == len(spell(model, "sky, catfish, dog")) + 3 + 1  # the last token ends it


def test_a_name_comes_once_and_only_from_the_list(model: Lasagna, monkeypatch: pytest.MonkeyPatch) -> None:
    script = Scripted(model, spell(model, "cat", "<SEG>", ", ", "cat", "<SEG>", ", ", "cat", "<SEG>"), monkeypatch)
    (answer,) = FreeAnswers(model).segment_batch([IMAGE], [["cat", "dog"]])
    assert [found.name for found in answer.classes] == ["cat", "dog"]
    assert len(answer.present) == 2  # the second "cat" had to be the other name, and then no name was left
    assert script.forwards == len(spell(model, "cat, dog")) + 2


def test_an_answer_may_name_nothing(model: Lasagna, monkeypatch: pytest.MonkeyPatch) -> None:
    Scripted(model, spell(model, "."), monkeypatch)
    (answer,) = FreeAnswers(model).segment_batch([IMAGE], [NAMES])
    assert not answer.present
    assert [found.probability for found in answer.classes] == [0.0] * len(NAMES)


def test_chunks_duplicates_and_sizes(model: Lasagna) -> None:
    (answer,) = FreeAnswers(model).segment_batch([IMAGE], [["cat", "dog", "Cat"]], exclusive=True, chunk_size=1)
    assert answer.size == (48, 64)
    cat, _, again = answer.classes
    assert (again.name, again.probability) == ("Cat", cat.probability)  # the model reads lower case
    assert answer_as("lasagna", model) is model
    assert isinstance(answer_as("free", model), FreeAnswers)
    assert isinstance(answer_as("one_by_one", model), OneByOne)
