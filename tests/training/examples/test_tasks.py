"""Records become questions with the right masks; what is asked can be read back from the ids, in both dialects."""

import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from lasagna.assistant.random_model import byte_tokenizer, piece_tokenizer
from lasagna.errors import DataError, QueryError
from lasagna.prompt.dialect import RELEASED, PromptFormat
from lasagna.prompt.sequences import IGNORED, Conversation, Prompt
from training.data.records import OTHER, UNKNOWN, LabelMap, Record
from training.examples.sequences import sample_class_list
from training.examples.tasks import Tasks
from training.recipe.sequence import PRESETS, SequenceOptions
from training.recipe.values import Recipe

DIALECTS = {
    "paper": lambda: Prompt(PromptFormat(), byte_tokenizer(), 4),
    "released": lambda: Prompt(RELEASED, piece_tokenizer(), 4),
}
PRESENT, ABSENT = ["sky", "traffic light", "person"], ["dog", "cup", "tennis racket", "bed"]


@pytest.fixture(params=DIALECTS)
def prompt(request: pytest.FixtureRequest) -> Prompt:
    return DIALECTS[request.param]()


def read_answer(prompt: Prompt, conversation: Conversation) -> list[tuple[str, bool]]:
    """The classes and decisions of an answer, from its supervised ids alone."""
    found, name = [], []
    for token, label in zip(conversation.ids, conversation.labels, strict=True):
        if label == IGNORED:
            continue
        if token in (prompt.seg, prompt.neg):
            found.append((prompt.tokenizer.decode(name).strip(" ,"), token == prompt.seg))
            name = []
        else:
            name.append(token)
    return found


@pytest.mark.parametrize("preset", [preset for preset in PRESETS if preset != "lisa"])
@pytest.mark.parametrize("seed", range(3))
def test_a_sequence_is_read_back_as_its_classes(prompt: Prompt, preset: str, seed: int) -> None:
    classes = sample_class_list(PRESENT, ABSENT, 5, SequenceOptions(**PRESETS[preset]), random.Random(seed))
    turn = prompt.class_list_turn(
        [prompt.encode_name(name) for name in classes.names], classes.present, 0, classes.answered
    )
    conversation = prompt.conversation([turn])
    assert read_answer(prompt, conversation) == [(classes.names[i], classes.present[i]) for i in classes.answered]
    supervised = len([label for label in conversation.labels if label != IGNORED])
    asked = prompt.tokenizer.decode(conversation.ids[:-supervised])
    assert all(name in asked for name in classes.names)


class Scene:
    """A source of one record of each kind: a red half and a blue half, void at the bottom."""

    classes = ("red", "blue", "green", "black")

    def __init__(self, photo: Path, kind: str, there: bool = True) -> None:
        labels = np.full((2, 8, 10), OTHER, np.int16)
        if kind == "semantic":
            labels[0, :, :5], labels[1, :, 3:] = 0, 1  # they overlap
        elif there:
            labels[0, :4] = 0
        labels[0, -1] = UNKNOWN
        self.labels: LabelMap = labels
        texts = ("the red one", "what is red") if kind in ("referring", "reasoning") else ()
        self.record = Record(
            "scene",
            "1",
            photo,
            classes=self.classes if kind == "semantic" else (),
            texts=texts,
            turns=(("What is this?", "A flag."), ("Whose?", "Nobody knows.")) if kind == "vqa" else (),
            answer="It waves." if kind == "reasoning" else None,
            labels=None if kind == "vqa" else lambda: self.labels,
        )

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> Record:
        return self.record


@pytest.fixture
def tasks(
    tiny: Callable[..., Recipe], squares: Path, prompt: Prompt, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Tasks]:
    """A function from a task (and recipe changes) to `Tasks` over `Scene`."""

    def build(kind: str, *changes: str, there: bool = True) -> Tasks:
        scene = Scene(squares / "squares" / "images" / "0.jpg", kind, there)
        monkeypatch.setattr("training.examples.tasks.training_records", lambda recipe, name, data: scene)
        fixed = [f"tasks={{{kind}: {{sets: {{scene: 1.0}}}}}}", "augment=null", "optimiser.micro_batch=2"]
        return Tasks(tiny(*fixed, *changes), prompt)

    return build


def test_a_class_list_has_the_masks_of_its_present_classes_in_order(
    tasks: Callable[..., Tasks], prompt: Prompt
) -> None:
    for step in range(6):
        for example in tasks("semantic", "sequence.lengths=[[1.0, 2, 4]]").examples("semantic", step, 0):
            answer = read_answer(prompt, example.conversation)
            present = [name for name, there in answer if there]
            assert set(present) <= {"red", "blue"}
            assert {name for name, there in answer if not there} <= {"green", "black"}
            assert len(example.masks) == len(present)
            for name, mask in zip(present, example.masks, strict=True):
                expected = np.zeros((8, 10), bool)
                expected[:, slice(0, 5) if name == "red" else slice(3, 10)] = True
                assert (mask == expected)[example.known].all()
            assert not example.known[-1].any()
            assert example.known[:-1].all()


def test_one_target_per_question(tasks: Callable[..., Tasks]) -> None:
    drawn = [e for s in range(4) for e in tasks("semantic", "sequence.preset=lisa").examples("semantic", s, 0)]
    assert all(example.conversation.present == (True,) and len(example.masks) == 1 for example in drawn)


@pytest.mark.parametrize("task", ["referring", "reasoning"])
@pytest.mark.parametrize("there", [True, False])
def test_a_text_has_its_target_or_is_answered_absent(
    tasks: Callable[..., Tasks], prompt: Prompt, task: str, there: bool
) -> None:
    for step in range(4):
        for example in tasks(task, there=there).examples(task, step, 0):
            assert example.conversation.present == (there,)
            assert example.masks.shape == (int(there), 8, 10)
            said = prompt.tokenizer.decode([i for i in example.conversation.labels if i != IGNORED])
            assert ("waves" in said) == (task == "reasoning")
            if there:
                assert example.masks[0, :4].all()
                assert not example.masks[0, 4:].any()


def test_a_target_that_is_not_there_is_not_asked_without_negatives(tasks: Callable[..., Tasks]) -> None:
    with pytest.raises(DataError, match="hardly a record gives a question"):
        tasks("referring", "sequence.negatives=false", there=False).examples("referring", 0, 0)


def test_every_answer_of_a_conversation_without_masks_is_supervised(
    tasks: Callable[..., Tasks], prompt: Prompt
) -> None:
    (example, _) = tasks("vqa").examples("vqa", 0, 0)
    said = prompt.tokenizer.decode([i for i in example.conversation.labels if i != IGNORED])
    assert "A flag." in said
    assert "Nobody knows." in said
    assert "What is this?" not in said
    assert example.masks.shape[0] == 0


def test_examples_are_a_function_of_seed_step_and_part(tasks: Callable[..., Tasks]) -> None:
    one = tasks("semantic").examples("semantic", 3, 1)
    tasks("semantic").examples("semantic", 2, 0)
    again = tasks("semantic").examples("semantic", 3, 1)
    assert [e.conversation for e in one] == [e.conversation for e in again]
    others = [tasks("semantic").examples("semantic", *at) for at in ((3, 0), (4, 1))]
    assert all([e.conversation for e in one] != [e.conversation for e in other] for other in others)


def test_tasks_and_sets_come_by_their_rates(
    tiny: Callable[..., Recipe], squares: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = Scene(squares / "squares" / "images" / "0.jpg", "semantic")
    monkeypatch.setattr("training.examples.tasks.training_records", lambda recipe, name, data: scene)
    recipe = tiny("augment=null", "tasks={semantic: {rate: 3, sets: {a: 1}}, vqa: {rate: 1, sets: {b: 1}}}")
    found = Tasks(recipe, DIALECTS["paper"]())
    drawn = [found.draw_task(step, 0) for step in range(400)]
    assert 0.68 < drawn.count("semantic") / 400 < 0.82


def test_a_task_that_the_dialect_does_not_have(
    tiny: Callable[..., Recipe], squares: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = Scene(squares / "squares" / "images" / "0.jpg", "vqa")
    monkeypatch.setattr("training.examples.tasks.training_records", lambda recipe, name, data: scene)
    only_lists = PromptFormat(questions={"classes": ("Segment <classes>.",)}, answers={})
    with pytest.raises(QueryError, match=r"tasks.vqa: the checkpoint's dialect"):
        Tasks(tiny("augment=null", "tasks={vqa: {sets: {a: 1.0}}}"), Prompt(only_lists, byte_tokenizer(), 4))
