"""Questions of every task about photos of every source: a record becomes a conversation and the masks of its answer.

A micro-batch is of one task and one data set, drawn by the recipe's rates (the paper, section 4.1). What always holds:
the n-th decision `present` of a conversation belongs to the n-th target; a class about which a record's annotation
does not decide is in no question.
"""

import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from lasagna.errors import DataError, QueryError
from lasagna.prompt.sequences import Conversation, Prompt, Turn
from training.data.records import UNKNOWN, LabelMap, Record
from training.data.sets import training_records
from training.data.sources import Source
from training.examples.sequences import sample_class_list
from training.recipe.values import Recipe

ATTEMPTS = 50


@dataclass(frozen=True)
class ConversationExample:
    """One conversation about one photo.

    Attributes:
        photo: Its file.
        conversation: Token ids, labels and decisions.
        masks: bool (M, H, W) at the photo's size: of each decision `present`, in order.
        known: bool (H, W): False where the annotation is void.
    """

    photo: Path
    conversation: Conversation
    masks: NDArray[np.bool_]
    known: NDArray[np.bool_]


class _Ask(Protocol):
    """Makes the turns of a question about a record, and the label-map indices of its `present` decisions."""

    def __call__(
        self, record: Record, labels: LabelMap | None, length: int, rng: random.Random
    ) -> tuple[list[Turn], list[int]] | None: ...


class Tasks:
    """Draws examples of every task: a task, a data set, a record, and questions about it.

    Args:
        recipe: Its tasks, rates and sequence options are used.
        prompt: The dialect of the model.
    """

    def __init__(self, recipe: Recipe, prompt: Prompt) -> None:
        self._recipe, self._prompt, self._options = recipe, prompt, recipe.sequence
        self._sources: dict[str, dict[str, Source]] = {
            task: {name: training_records(recipe, name, data) for name, data in values.sets.items()}
            for task, values in recipe.tasks.items()
            if task != "semantic" or recipe.augment is None
        }
        for task, sources in self._sources.items():
            for name, source in sources.items():
                if not len(source):
                    raise DataError(f"tasks.{task}.sets.{name}: no record to train on")
            if not (task == "semantic" or prompt.knows(task)):
                raise QueryError(f"tasks.{task}: the checkpoint's dialect (prompt.json) has no question for this task")
        self._ask: Mapping[str, _Ask] = {
            "semantic": self._class_list,
            "referring": self._referring,
            "reasoning": self._reasoning,
            "vqa": self._vqa,
        }

    def draw_task(self, step: int, part: int) -> str:
        """The task of a micro-batch."""
        tasks = self._recipe.tasks
        names = list(tasks)
        if len(names) == 1:
            return names[0]
        rng = random.Random(f"task-{self._recipe.seed}-{part}-{step}")
        return rng.choices(names, weights=[tasks[name].rate for name in names])[0]

    def examples(self, task: str, step: int, part: int) -> list[ConversationExample]:
        """The examples of a micro-batch of a task: a function of its arguments and the seed."""
        seed = self._recipe.seed
        low, high = self._options.draw_lengths(random.Random(f"{seed}-{step}"))
        rng = random.Random(f"examples-{seed}-{part}-{step}")
        sets = self._recipe.tasks[task].sets  # type: ignore[index]
        name = rng.choices(list(sets), weights=[data.rate for data in sets.values()])[0]
        source = self._sources[task][name]
        found: list[ConversationExample] = []
        for _ in range(ATTEMPTS * self._recipe.optimiser.micro_batch):
            example = self._example(task, source[rng.randrange(len(source))], rng.randint(low, high), rng)
            if example is not None:
                found.append(example)
            if len(found) == self._recipe.optimiser.micro_batch:
                return found
        raise DataError(
            f"tasks.{task}.sets.{name}: hardly a record gives a question with this recipe's sequence options"
        )

    def _example(self, task: str, record: Record, length: int, rng: random.Random) -> ConversationExample | None:
        if record.image_path is None:
            return None
        labels = record.read() if record.labels is not None else None
        asked = self._ask[task](record, labels, length, rng)
        if asked is None:
            return None
        turns, targets = asked
        conversation = self._prompt.conversation(turns)
        targets = targets[: sum(conversation.present)]  # a long answer is cut
        if labels is None:
            return ConversationExample(
                record.image_path, conversation, np.zeros((0, 1, 1), bool), np.ones((1, 1), bool)
            )
        masks = [(labels == target).any(0) for target in targets]
        stacked = np.stack(masks) if masks else np.zeros((0, *labels.shape[1:]), bool)
        return ConversationExample(record.image_path, conversation, stacked, ~(labels == UNKNOWN).any(0))

    def _class_list(
        self, record: Record, labels: LabelMap | None, length: int, rng: random.Random
    ) -> tuple[list[Turn], list[int]] | None:
        if labels is None or not record.classes:
            raise DataError(f"{record.source} {record.image_id}: no class list of a photo, as the task semantic needs")
        there = np.unique(labels)
        present = [record.classes[i] for i in there[there >= 0]]
        absent = [name for name in record.classes if name not in set(present)]
        classes = sample_class_list(present, absent, length, self._options, rng)
        if not classes.answered:
            return None
        targets = [record.classes.index(classes.names[i]) for i in classes.answered if classes.present[i]]
        prompt = self._prompt
        if not self._options.class_list and prompt.knows("referring"):
            return [self._text_turn("referring", classes.names[0], rng)], targets
        names = [prompt.encode_name(name) for name in classes.names]
        template = rng.randrange(len(prompt.format.questions["classes"]))
        return [prompt.class_list_turn(names, classes.present, template, classes.answered)], targets

    def _referring(
        self, record: Record, labels: LabelMap | None, length: int, rng: random.Random
    ) -> tuple[list[Turn], list[int]] | None:
        if labels is None or not record.texts:
            raise DataError(f"{record.source} {record.image_id}: no text with a mask, as the task referring needs")
        present = bool((labels == 0).any())
        if not present and not self._options.negatives:
            return None
        return [self._text_turn("referring", rng.choice(record.texts), rng, present=present)], [0] * present

    def _reasoning(
        self, record: Record, labels: LabelMap | None, length: int, rng: random.Random
    ) -> tuple[list[Turn], list[int]] | None:
        if labels is None or not record.texts:
            raise DataError(f"{record.source} {record.image_id}: no question with a mask, as the task reasoning needs")
        present = bool((labels == 0).any())
        text = rng.choice(record.texts)
        turn = self._text_turn("reasoning", text, rng, present=present, explanation=record.answer)
        return [turn], [0] * present

    def _vqa(
        self, record: Record, labels: LabelMap | None, length: int, rng: random.Random
    ) -> tuple[list[Turn], list[int]] | None:
        if not record.turns:
            raise DataError(f"{record.source} {record.image_id}: no conversation, as the task vqa needs")
        return [self._prompt.text_turn("vqa", question, answer) for question, answer in record.turns], []

    def _text_turn(
        self, task: str, text: str, rng: random.Random, present: bool = True, explanation: str | None = None
    ) -> Turn:
        """A turn in a random wording; forms that hold an explanation are for records that have one."""
        form = self._prompt.format
        forms = [
            i for i, answer in enumerate(form.answers[task]) if ("<text>" in answer) == (explanation is not None)
        ] or [i for i, answer in enumerate(form.answers[task]) if "<text>" not in answer]
        return self._prompt.text_turn(
            task,
            text,
            explanation,
            present=present,
            template=rng.randrange(len(form.questions[task])),
            answer_template=rng.choice(forms),
        )
