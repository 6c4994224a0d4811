"""How questions are worded in training: the paper's dialect in several wordings.

"For our implementation, we have constructed various templates" (the paper, section 3.4); the wordings are ours.
"""

from collections.abc import Iterable
from dataclasses import replace

from lasagna.prompt.dialect import PromptFormat

QUESTIONS: dict[str, tuple[str, ...]] = {
    "classes": (
        "Can you segment the <classes> in this image?",
        "Please segment the <classes> in this image.",
        "Segment <classes>.",
        "Which of these are in the image, and where: <classes>?",
    ),
    "referring": (
        "Can you segment the <text> in this image?",
        "Please segment the <text> in this image.",
        "Where is the <text> in this image? Answer with a mask.",
    ),
    "reasoning": ("<text> Please output the segmentation mask.", "<text> Answer with a mask."),
    "vqa": ("<text>",),
}
"""By task, as `PromptFormat` has it."""

NEW_MAX_LENGTH = 1536
"""Longest sequence in tokens of a model that is made anew."""


def paper_format(tasks: Iterable[str], own: PromptFormat) -> PromptFormat:
    """The paper's dialect for class lists and the other tasks of a recipe, with a checkpoint's own decision tokens (a
    Llama's vocabulary calls <SEG> and <NEG> as its checkpoint does) and context."""
    paper = PromptFormat()
    others = [task for task in tasks if task != "semantic"]
    return replace(
        paper,
        questions={"classes": QUESTIONS["classes"], **{task: QUESTIONS[task] for task in others}},
        answers={
            task: tuple(form.replace(paper.present, own.present) for form in paper.answers[task])
            for task in others
            if task in paper.answers
        },
        present=own.present,
        absent=own.absent,
        stop=own.stop,
        max_length=own.max_length,
    )
