"""The sequence format: a class list to token ids and slots.

    USER: <image> Can you segment the c1, c2, ..., cN in this image? ASSISTANT: c1<SEG>, c2<NEG>, ..., cN<SEG>.

(the paper, sections 3.3 and 3.4). A sequence is built from ids, never parsed from text: every label is encoded on its
own, so whatever characters it holds, it cannot end the list, add a class or produce a control token. One decision slot
follows each name; the decision is read at the position before its slot.
"""

import itertools
import json
import unicodedata
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from lasagna.errors import CheckpointError, QueryError
from lasagna.tokenizer import LabelTokenizer

IMAGE, CLASSES = "<image>", "<classes>"


@dataclass(frozen=True)
class PromptFormat:
    """What a checkpoint's `prompt.json` holds.

    Attributes:
        templates: Question wordings, each with one `<image>` and one `<classes>`; inference uses the first.
        separator: Between the names, in the question and in the answer.
        end: After the last decision of the answer.
        lowercase: Whether the model reads names in lower case, with underscores as spaces.
        max_length: Longest sequence in tokens, image tokens included, that the model was made for.
        max_label_tokens: A longer name is read up to here.
    """

    templates: tuple[str, ...] = ("USER: <image> Can you segment the <classes> in this image? ASSISTANT: ",)
    separator: str = ", "
    end: str = "."
    lowercase: bool = True
    max_length: int = 2048
    max_label_tokens: int = 64

    def __post_init__(self) -> None:
        for template in self.templates:
            if template.count(IMAGE) != 1 or template.count(CLASSES) != 1:
                raise CheckpointError(f"a template needs {IMAGE} and {CLASSES} once each; found {template!r}")
        if len({template.split(IMAGE)[0] for template in self.templates}) != 1:
            raise CheckpointError(f"all templates need the same text before {IMAGE}: it is computed once per image")

    @classmethod
    def load(cls, path: Path) -> "PromptFormat":
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            return cls(**{**values, "templates": tuple(values["templates"])})
        except (ValueError, TypeError, KeyError) as error:
            raise CheckpointError(f"{path}: not a prompt format ({error})") from error

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

    def read_text(self, text: str) -> str:
        """The text of a label as the model reads it."""
        text = unicodedata.normalize("NFC", text)
        if self.lowercase:
            text = text.replace("_", " ").lower()
        return " ".join(text.split())


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


class Prompt:
    """Encodes class lists for one checkpoint.

    Args:
        format: The checkpoint's format.
        tokenizer: The checkpoint's tokenizer.
        image_tokens: How many positions the image takes.
    """

    def __init__(self, format: PromptFormat, tokenizer: LabelTokenizer, image_tokens: int) -> None:
        self.format, self.tokenizer, self.image_tokens = format, tokenizer, image_tokens
        self._separator = tokenizer.encode(format.separator)
        self._end = tokenizer.encode(format.end)
        before, _ = format.templates[0].split(IMAGE)
        self.before_image = [tokenizer.bos, *tokenizer.encode(before)]
        self._pieces = []
        for template in format.templates:
            first, last = template.split(IMAGE)[1].split(CLASSES)
            self._pieces.append((tokenizer.encode(first), tokenizer.encode(last)))

    def encode_name(self, text: str) -> tuple[int, ...]:
        """Ids of a name; at least one."""
        ids = self.tokenizer.encode(self.format.read_text(text))[: self.format.max_label_tokens]
        if not ids:
            raise QueryError(f"the label {text!r} has nothing that the model could read; give it an alias")
        return tuple(ids)

    def query(
        self, names: Sequence[tuple[int, ...]], template: int = 0, answered: Sequence[int] | None = None
    ) -> Query:
        """The question and the open answer.

        Args:
            names: What `encode_name` gave, in question order.
            template: Index of the question's wording.
            answered: Indices of the names that the answer holds, in its order; None: all, in question order.
        """
        first, last = self._pieces[template]
        answer: list[int] = []
        slots: list[int] = []
        for i in range(len(names)) if answered is None else answered:
            answer += (self._separator if slots else []) + list(names[i])
            slots.append(len(answer))
            answer.append(-1)
        listed = [token for name in names for token in (*self._separator, *name)][len(self._separator) :]
        return Query((*first, *listed, *last), (*answer, *self._end), tuple(slots))

    def length(self, names: Sequence[tuple[int, ...]]) -> int:
        """Tokens of the whole sequence, image included."""
        query = self.query(names)
        return len(self.before_image) + self.image_tokens + len(query.question) + len(query.answer)

    def plan_chunks(self, names: Sequence[tuple[int, ...]], chunk_size: int | None = None) -> list[list[int]]:
        """Splits a class list into chunks of consecutive classes.

        The default is the whole list where it fits the context, else the fewest balanced chunks that do: small chunks
        cost accuracy (the paper, Table 6).

        Args:
            names: Ids of each name.
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
