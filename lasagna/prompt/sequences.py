"""Questions and answers as token ids, in the dialect of one checkpoint.

    USER: <image> Can you segment the c1, c2, ..., cN in this image? ASSISTANT: c1<SEG>, c2<NEG>, ..., cN<SEG>.

(the paper, sections 3.3 and 3.4; `lasagna.prompt.dialect` for other wordings). A sequence is built from parts, never
parsed from text: a label is data, so whatever characters it holds, it cannot end the list, add a class or produce a
control token. One decision slot follows each name of an answer; the decision is read at the position before its slot.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from lasagna.errors import QueryError
from lasagna.prompt.dialect import CLASSES, IMAGE, TEXT, PromptFormat
from lasagna.prompt.tokenizer import Data, LabelTokenizer

IMAGE_TOKEN = -200
"""Stands for all of an image's tokens in a sequence of ids, as in the released code."""
IGNORED = -100
"""Label of a token that is not supervised."""


@dataclass(frozen=True)
class Name:
    """A class name as the model reads it: text, and ids in an answer."""

    text: str
    ids: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class Query:
    """One chunk of a class list, as token ids.

    Attributes:
        question: Ids from after the image to the start of the answer.
        answer: Ids of the answer with -1 in every decision slot.
        slots: Index in `answer` of each answered class's decision.
    """

    question: tuple[int, ...]
    answer: tuple[int, ...]
    slots: tuple[int, ...]


@dataclass(frozen=True)
class Turn:
    """A question and its answer, each in parts: template text (str), in which control tokens count, and `Data`."""

    question: tuple[str, ...]
    answer: tuple[str, ...]


@dataclass(frozen=True)
class Conversation:
    """A whole sequence, for teacher forcing.

    Attributes:
        ids: With `IMAGE_TOKEN` once.
        labels: Of the same length: `IGNORED` up to and including `assistant`, else the id itself. The stop token is
            supervised. Token i is predicted from position i - 1.
        slots: Index in `ids` of each decision of an answer.
        present: For each slot, whether it says `present`: these have a mask.
    """

    ids: tuple[int, ...]
    labels: tuple[int, ...]
    slots: tuple[int, ...]
    present: tuple[bool, ...]


class Prompt:
    """Encodes questions and answers for one checkpoint.

    Args:
        format: The checkpoint's dialect.
        tokenizer: The checkpoint's tokenizer.
        image_tokens: How many positions the image takes.

    Attributes:
        seg, neg, stop: Ids of the decisions "present" and "absent", and of the token that ends an answer.
        pad: Fills rows of a batch.
        before_image: Ids from the start to the image: what all sequences share.

    Raises CheckpointError where the tokenizer lacks a control token of the dialect.
    """

    def __init__(self, format: PromptFormat, tokenizer: LabelTokenizer, image_tokens: int) -> None:
        self.format, self.tokenizer, self.image_tokens = format, tokenizer, image_tokens
        self.seg, self.neg = tokenizer.control(format.present), tokenizer.control(format.absent)
        self.stop, self.pad = tokenizer.control(format.stop), tokenizer.pad
        before, self._after_image = format.image.split(IMAGE)
        self.before_image = [tokenizer.bos, *tokenizer.encode_template(format.system, format.user, before)]

    # ------------------------------------------------------------------------------------------------ class lists

    def encode_name(self, text: str) -> Name:
        """A class name; at least one id."""
        read, limit = self.format.read_text(text), self.format.max_label_tokens
        ids = self.tokenizer.encode(read)
        while len(ids) > limit:
            read = read[: max(1, len(read) * limit // len(ids))].rstrip()
            ids = self.tokenizer.encode(read)
        if not ids:
            raise QueryError(f"the label {text!r} has nothing that the model could read; give it an alias")
        return Name(read, tuple(ids))

    def query(self, names: Sequence[Name], template: int = 0, answered: Sequence[int] | None = None) -> Query:
        """The question and the open answer.

        Args:
            names: In question order.
            template: Index of the question's wording.
            answered: Indices of the names that the answer holds, in its order; None: all, in question order.
        """
        turn = self.class_list_turn(names, [False] * len(names), template, answered)
        question = self._encode_question(turn, first=True)
        # Every decision is "absent" here, and nothing else can give that id: names are data.
        answer = self.tokenizer.encode_template(*turn.answer)
        slots = tuple(i for i, token in enumerate(answer) if token == self.neg)
        return Query(tuple(question), tuple(-1 if token == self.neg else token for token in answer), slots)

    def class_list_turn(
        self, names: Sequence[Name], present: Sequence[bool], template: int = 0, answered: Sequence[int] | None = None
    ) -> Turn:
        """A class list and its full answer; arguments as for `query`, and whether each name is present."""
        form = self.format
        first, last = form.questions["classes"][template].split(CLASSES)
        listed = [part for name in names for part in (form.separator, Data(name.text))][1:]
        answer: list[str] = []
        for i in range(len(names)) if answered is None else answered:
            decision = form.present if present[i] else form.absent
            answer += [form.answer_separator, Data(names[i].text), decision]
        return Turn((first, *listed, last), (*answer[1:], form.end))

    def length(self, names: Sequence[Name]) -> int:
        """Tokens of the whole sequence, image included."""
        query = self.query(names)
        return len(self.before_image) + self.image_tokens + len(query.question) + len(query.answer)

    def plan_chunks(self, names: Sequence[Name], chunk_size: int | None = None) -> list[list[int]]:
        """Splits a class list into chunks of consecutive classes.

        The default is the whole list where it fits the context, else the fewest balanced chunks that do: small chunks
        cost accuracy (the paper, Table 6).

        Args:
            names: The class list.
            chunk_size: Most classes in a chunk, or None.

        Returns:
            Indices into `names`, chunk by chunk, in order.
        """
        if chunk_size is not None and chunk_size < 1:
            raise QueryError(f"chunk_size is at least 1, not {chunk_size}")
        total = len(names)
        # Never shorter than one class, whatever the context: max_label_tokens keeps one class small.
        for chunks in range(-(-total // chunk_size) if chunk_size else 1, total + 1):
            edges = [round(i * total / chunks) for i in range(chunks + 1)]
            plan = [list(range(a, b)) for a, b in itertools.pairwise(edges)]
            if chunks == total or all(self.length([names[i] for i in c]) <= self.format.max_length for c in plan):
                return plan
        raise AssertionError("unreachable: one class per chunk is always a plan")

    # ------------------------------------------------------------------------------------------------ other tasks

    def knows(self, task: str) -> bool:
        """Whether the checkpoint was trained for a task."""
        return bool(self.format.questions.get(task))

    def text_turn(
        self,
        task: str,
        text: str,
        answer: str | None = None,
        *,
        present: bool = True,
        template: int = 0,
        answer_template: int = 0,
    ) -> Turn:
        """A question in words and its answer.

        Args:
            task: "referring", "reasoning" or "vqa".
            text: The expression or question.
            answer: What takes the place of `<text>` in the answer's form; of "vqa", the whole answer.
            present: Whether what is referred to is in the image; if not, the answer says `absent`.
            template, answer_template: Indices of the wordings.

        Raises QueryError for a task that the checkpoint was not trained for.
        """
        if task == "classes" or not self.knows(task):
            known = ", ".join(name for name in self.format.questions if name != "classes")
            raise QueryError(
                f"this checkpoint was not trained for questions of the task {task!r}, only for "
                + (f"{known} and class lists" if known else "class lists: name the classes instead")
            )
        first, last = self.format.questions[task][template].split(TEXT)
        read = self.format.read_text(text) if task == "referring" else text
        forms = self.format.answers.get(task, (TEXT,))
        form = forms[answer_template]
        if not present:
            form = form.replace(self.format.present, self.format.absent)
        before, place, after = form.partition(TEXT)
        spoken = (before, Data(answer or ""), after) if place else (before,)
        return Turn((first, Data(read), last), spoken)

    def question(self, turn: Turn) -> tuple[int, ...]:
        """Ids of the first question of a conversation, from after the image to where the answer is generated."""
        return tuple(self._encode_question(turn, first=True))

    def with_image(self, question: Sequence[int]) -> tuple[int, ...]:
        """A question's ids with all that stands before them, `IMAGE_TOKEN` at the image."""
        return (*self.before_image, IMAGE_TOKEN, *question)

    def conversation(self, turns: Sequence[Turn], max_length: int | None = None) -> Conversation:
        """A conversation about one image, for teacher forcing.

        Args:
            turns: At least one.
            max_length: Tokens, image tokens included, after which it is cut; None: the checkpoint's `max_length`.
        """
        ids, labels = [*self.before_image, IMAGE_TOKEN], [IGNORED] * (len(self.before_image) + 1)
        form = self.format
        for number, turn in enumerate(turns):
            lead = self._lead(first=number == 0)
            # The stop token ends a piece of text, so that turns are encoded one by one.
            whole = self.tokenizer.encode_template(
                *lead, *turn.question, form.assistant, form.answer_start, *turn.answer, form.stop
            )
            asked = len(self._encode_question(turn, first=number == 0))
            ids += whole
            labels += [*[IGNORED] * asked, *whole[asked:]]
        end = (form.max_length if max_length is None else max_length) - self.image_tokens + 1
        ids, labels = ids[:end], labels[:end]
        slots = tuple(i for i, label in enumerate(labels) if label in (self.seg, self.neg))
        return Conversation(tuple(ids), tuple(labels), slots, tuple(ids[i] == self.seg for i in slots))

    def _lead(self, first: bool) -> tuple[str, ...]:
        return (self._after_image,) if first else (self.format.user,)

    def _encode_question(self, turn: Turn, first: bool) -> list[int]:
        return self.tokenizer.encode_template(*self._lead(first), *turn.question, self.format.assistant)
