"""Free-running answers: greedy generation with a key/value cache, and the masks that an answer asks for.

The image is encoded once; the language model runs once over the question and then once per token. The state that
predicts a "present" token is the one whose projection prompts the mask decoder, as in class-list decoding, so masks
need no further forward.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lasagna.errors import QueryError
from lasagna.masks.segmentation import Mask
from lasagna.network.llama import KeyValues
from lasagna.network.model import LasagnaModel
from lasagna.prompt.sequences import Prompt, Turn


@dataclass(frozen=True)
class Generated:
    """A generated answer.

    Attributes:
        ids: New tokens, the stop token included where it came.
        hidden: (len(ids), width) the state that predicted each.
        forwards: Of the language model.
        complete: Whether it ended with the stop token.
    """

    ids: tuple[int, ...]
    hidden: Tensor
    forwards: int
    complete: bool


@dataclass(frozen=True)
class TextAnswer:
    """An answer in words and masks.

    Attributes:
        text: Without the stop token; decision tokens stand where masks belong.
        masks: bool (height, width) of the image, one per "present" token, in their order.
        ids: New tokens.
        complete: False where the answer was cut at the limit of tokens.
        forwards: Of the language model.
    """

    text: str
    masks: tuple[Mask, ...]
    ids: tuple[int, ...]
    complete: bool
    forwards: int


@torch.inference_mode()
def generate(
    model: LasagnaModel, prompt: Prompt, tokens: Tensor, question: Sequence[int], max_new_tokens: int
) -> Generated:
    """Generates an answer greedily, token by token.

    Args:
        model: The network, in eval mode.
        prompt: The prompt of the same checkpoint.
        tokens: (1, T, C) image tokens.
        question: Ids from after the image to where the answer starts.
        max_new_tokens: At least 1; the stop token counts.
    """
    cache = KeyValues()
    embeddings = torch.cat([model.prefix(prompt.before_image, tokens), model.embed(question)[None]], dim=1)
    ids: list[int] = []
    states: list[Tensor] = []
    length = 0
    while len(ids) < max_new_tokens and (not ids or ids[-1] != prompt.stop):
        positions = torch.arange(length, length + embeddings.shape[1], device=model.device)[None]
        length += embeddings.shape[1]
        state = model.run(embeddings, None, positions, cache)[:, -1]
        states.append(state[0])
        ids.append(int(model.lm_head(state)[0].argmax()))
        embeddings = model.embed(ids[-1:])[None]
    return Generated(tuple(ids), torch.stack(states), len(states), ids[-1] == prompt.stop)


def question_turn(prompt: Prompt, question: str, task: str, control_tokens: bool) -> Turn:
    """The turn of a question.

    Args:
        task: "vqa" (the question as it is), "referring" or "reasoning" (a wording of the checkpoint around it).
        control_tokens: Whether the question is template text, in which control tokens count: what the released code
            does with every question. The wording is then as given.

    Raises QueryError for a blank question, or a task that the checkpoint was not trained for.
    """
    if not question.strip():
        raise QueryError("the question is blank")
    if not control_tokens:
        return prompt.text_turn(task, question)
    prompt.text_turn(task, question)  # whether the task is known
    return Turn((question,), ())


def answer_text(prompt: Prompt, ids: Sequence[int]) -> str:
    """An answer as a person reads it: no stop token, no space before a sign that ends a phrase."""
    text = prompt.tokenizer.decode([i for i in ids if i != prompt.stop])
    return re.sub(r"\s+(?=[.,;:!?])", "", text).strip()
