"""The dialect of a checkpoint, stored as its `prompt.json`: how questions and answers are worded.

The default is the paper's (sections 3.3 and 3.4), with its decision tokens <SEG> and <NEG>; `RELEASED` is that of the
released LaSagnA-7B, with <ins> and <no_ins> and a marked class list. A conversation is

    system  user image question assistant answer stop  user question assistant answer stop  ...

one text of template text, in which control tokens count, and of data, in which they do not
(`lasagna.prompt.tokenizer.Data`).
"""

import json
import unicodedata
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from lasagna.errors import CheckpointError

IMAGE, CLASSES, TEXT = "<image>", "<classes>", "<text>"
TASKS = ("classes", "referring", "reasoning", "vqa")
"""Class list, referring expression, reasoning question (all three are answered with masks), question about an image."""


@dataclass(frozen=True)
class PromptFormat:
    """What a checkpoint's `prompt.json` holds.

    Attributes:
        questions: Wordings by task, of the tasks that the checkpoint was trained for. Those of "classes" hold one
            `<classes>`, the others one `<text>`; inference uses the first.
        answers: Forms by task; `present` stands where a mask goes, `<text>` for text that is known only then. A task
            without forms is answered with text alone. Class lists have a form of their own.
        present, absent: The decision tokens, one of which follows each class name.
        system: Before the first question.
        user, assistant: Before a question, before an answer.
        image: What stands at the start of the first question, with one `<image>`.
        answer_start: Between `assistant` and an answer; a model that generates writes it itself.
        separator: Between the names of a question.
        answer_separator: Between a decision and the next name of an answer.
        end: After the last decision.
        stop: The control token that ends an answer.
        lowercase: Whether the model reads names and expressions in lower case, with underscores as spaces.
        max_length: Longest sequence in tokens, image tokens included, that the model was made for.
        max_label_tokens: A longer name is read up to about here.
    """

    questions: Mapping[str, tuple[str, ...]] = field(
        default_factory=lambda: {
            "classes": ("Can you segment the <classes> in this image?",),
            "referring": ("Can you segment the <text> in this image?",),
            "reasoning": ("<text> Please output the segmentation mask.",),
            "vqa": ("<text>",),
        }
    )
    answers: Mapping[str, tuple[str, ...]] = field(
        default_factory=lambda: {"referring": ("It is <SEG>.",), "reasoning": ("It is <SEG>.", "<text> It is <SEG>.")}
    )
    present: str = "<SEG>"
    absent: str = "<NEG>"
    system: str = ""
    user: str = "USER: "
    image: str = "<image> "
    assistant: str = " ASSISTANT: "
    answer_start: str = ""
    separator: str = ", "
    answer_separator: str = ", "
    end: str = "."
    stop: str = "</s>"
    lowercase: bool = True
    max_length: int = 2048
    max_label_tokens: int = 64

    def __post_init__(self) -> None:
        if self.image.count(IMAGE) != 1:
            raise CheckpointError(f"prompt.json: 'image' needs {IMAGE} once; found {self.image!r}")
        if not self.questions.get("classes"):
            raise CheckpointError("prompt.json: 'questions' needs a wording for 'classes'")
        for task in {*self.questions, *self.answers}:
            if task not in TASKS:
                raise CheckpointError(f"prompt.json: unknown task {task!r}; the tasks are {', '.join(TASKS)}")
        for task, wordings in self.questions.items():
            place = CLASSES if task == "classes" else TEXT
            for wording in wordings:
                if wording.count(place) != 1:
                    raise CheckpointError(f"a question of task {task!r} needs {place} once; found {wording!r}")

    @classmethod
    def load(cls, path: Path) -> "PromptFormat":
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            for name in ("questions", "answers"):
                values[name] = {task: tuple(wordings) for task, wordings in values[name].items()}
            return cls(**values)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise CheckpointError(f"{path}: not a prompt format ({error})") from error

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

    def read_text(self, text: str) -> str:
        """The text of a label or expression as the model reads it."""
        text = unicodedata.normalize("NFC", text)
        if self.lowercase:
            text = text.replace("_", " ").lower() if text.strip("_ ") else text
        return " ".join(text.split())


def _semantic(wording: str) -> str:
    return f"<semantic>{wording}<cat_start> <classes> <cat_end>"


RELEASED = PromptFormat(
    questions={
        "classes": tuple(
            _semantic(wording)
            for wording in (
                "Segment this image.",
                "Can you segment this image?",
                "Please segment all the objects in this image.",
                "What are in this image? Please output segmentation mask.",
                "What are in this image? Please visualize segmentation mask.",
                "What are in this image? Please respond with segmentation mask.",
                "What are in this image? Please output segmentation result.",
                "What are in this image? Please respond with segmentation mask of all the objects.",
                "What are in this image? Please give segmentation result of all the objects.",
                "What are in this image? Please respond with segmentation result of all the objects.",
            )
        ),
        "referring": (
            "Can you detect and segment the <text> in this image?",
            "What is <text> in this image? Please output detection box and segmentation mask.",
            "Where is the <text> in the image?",
        ),
        "reasoning": ("<text> Please output segmentation mask.",),
        "vqa": ("<text>",),
    },
    answers={
        "referring": (
            "It is <ins>.",
            "The detection box and segmentation mask is <ins>.",
            "The result is <ins>.",
        ),
        "reasoning": ("It is <ins>.", "<text> It is <ins>."),
    },
    present="<ins>",
    absent="<no_ins>",
    system="A chat between a curious human and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the human's questions. ",
    user="USER: ",
    image="<im_start><image><im_end>\n",
    assistant=" ASSISTANT:",
    answer_start=" ",
    separator=", ",
    answer_separator="",
    end="",
    stop="</s>",
)
"""The format of the released LaSagnA-7B, which was trained with a few more wordings than these."""

RELEASED_TOKENS = ("<cat_start>", "<cat_end>", "<semantic>", "<ins>", "<no_ins>", "<im_start>", "<im_end>")
"""Tokens that `RELEASED` adds to Llama's vocabulary, in the order in which they were added."""
