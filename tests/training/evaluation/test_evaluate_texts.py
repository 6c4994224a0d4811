"""Texts: every text of a record is asked and scored, by class lists of one or in conversation."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lasagna import ClassAnswer, Lasagna, Segmentation
from lasagna.errors import DataError
from training.data.records import OTHER, UNKNOWN, Record
from training.evaluation.texts import InConversation, ListOfOne, evaluate_texts, text_segmenter

SIZE = (8, 10)


def half(*, left: bool) -> np.ndarray:
    mask = np.zeros(SIZE, bool)
    mask[:, slice(None, 5) if left else slice(5, None)] = True
    return mask


class Pairs:
    """Records whose target is the left half; the last means nothing."""

    classes: tuple[str, ...] = ()

    def __init__(self, folder: Path, void: bool = False) -> None:
        self._photo = folder / "photo.png"
        Image.fromarray(np.zeros((*SIZE, 3), np.uint8)).save(self._photo)
        self._void = void

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> Record:
        labels = np.full((1, *SIZE), OTHER, np.int16)
        if index < 2:
            labels[0, :, :5] = 0
        if self._void:
            labels[0, 4:] = UNKNOWN
        texts = ("the left half", "the half on the left") if index == 0 else (f"text {index}",)
        return Record("pairs", str(index), self._photo, texts=texts, labels=lambda: labels)


class Lists:
    """Answers class lists: the left half for names with "left", the whole image for others, absent for "text 2"."""

    def __init__(self) -> None:
        self.asked: list[Any] = []

    def segment_batch(
        self, images: Sequence[Any], class_lists: Sequence[Sequence[Any]], /, **options: Any
    ) -> list[Segmentation]:
        self.asked += class_lists
        answers = []
        for (name,) in class_lists:
            mask = None if name == "text 2" else half(left=True) | (not name.count("left"))
            answers.append(Segmentation(SIZE, (ClassAnswer(name, 0.5, mask),)))
        return answers


def test_every_text_is_a_sample(tmp_path: Path) -> None:
    lists = Lists()
    seen: list[None] = []
    found = evaluate_texts(ListOfOne(lists), Pairs(tmp_path), batch_size=2, on_record=lambda: seen.append(None))
    assert lists.asked == [["the left half"], ["the half on the left"], ["text 1"], ["text 2"]]
    figures = found.as_dict()
    assert (figures["samples"], figures["without_target"], len(seen)) == (4, 1, 3)
    assert figures["ciou"] == pytest.approx((40 + 40 + 40) / (40 + 40 + 80))
    assert figures["giou"] == pytest.approx((1 + 1 + 0.5 + 1) / 4)
    assert (figures["n_acc"], figures["t_acc"]) == (1.0, 1.0)
    assert figures["seconds_per_sample"] > 0


def test_the_first_text_alone_and_fewer_records(tmp_path: Path) -> None:
    lists = Lists()
    evaluate_texts(ListOfOne(lists), Pairs(tmp_path), texts="first", limit=2)
    assert lists.asked == [["the left half"], ["text 1"]]


def test_void_is_not_scored(tmp_path: Path) -> None:
    found = evaluate_texts(ListOfOne(Lists()), Pairs(tmp_path, void=True))
    assert found.metrics.ciou == pytest.approx((20 + 20 + 20) / (20 + 20 + 40))


def test_a_photo_that_cannot_be_read_fails_alone(tmp_path: Path) -> None:
    source = Pairs(tmp_path)
    (tmp_path / "photo.png").write_bytes(b"no photo")
    found = evaluate_texts(ListOfOne(Lists()), source)
    assert set(found.failures) == {"0", "1", "2"}
    assert found.as_dict()["ciou"] is None


def test_class_lists_are_refused(tmp_path: Path) -> None:
    class Photos(Pairs):
        def __getitem__(self, index: int) -> Record:
            return Record("sets", "7", self._photo, classes=("cat",), labels=lambda: np.zeros((1, *SIZE), np.int16))

    with pytest.raises(DataError, match="sets 7 has no text"):
        evaluate_texts(ListOfOne(Lists()), Photos(tmp_path))


class Talks:
    """A model that answers in conversation: two masks, or none."""

    def ask(self, image: Any, question: str, **options: Any) -> Any:
        self.options = options
        masks = () if question == "text 2" else (half(left=True), half(left=False))
        return type("Answer", (), {"masks": masks})


def test_a_conversation_is_scored_by_the_union_of_its_masks(tmp_path: Path) -> None:
    talks = Talks()
    found = evaluate_texts(InConversation(talks, "referring"), Pairs(tmp_path))
    assert found.metrics.ciou == pytest.approx(1 / 2)
    assert found.metrics.no_target_accuracy == 1.0
    assert talks.options == {"task": "referring", "max_new_tokens": 32}


def test_a_checkpoint_is_asked_as_it_was_trained() -> None:
    model = Lasagna.random()
    assert isinstance(text_segmenter(model, "referring"), InConversation)
    assert isinstance(text_segmenter(Lists(), "referring"), ListOfOne)
    nano = Lasagna.from_pretrained("nano")
    assert not nano.prompt.knows("referring")
    assert isinstance(text_segmenter(nano, "referring"), ListOfOne)


@pytest.mark.parametrize("conversation", [True, False])
def test_a_real_model_answers_texts(tmp_path: Path, conversation: bool) -> None:
    model = Lasagna.random()
    asked = InConversation(model, "referring", 8) if conversation else ListOfOne(model)
    found = evaluate_texts(asked, Pairs(tmp_path))
    assert len(found.metrics) == 4
    assert not found.failures
