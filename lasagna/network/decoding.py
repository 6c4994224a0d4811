"""Exact class-list decoding.

The answer's text is known before it is generated: the names in order, with one binary unknown per class. The result is
defined as greedy decoding with that text forced,

    d_i = <SEG> if logit(<SEG> | prefix, c_1 d_1, ..., c_i) - logit(<NEG> | ...) >= b_i else <NEG>.

It is found by fixed-point iteration: fill every slot with a guess, run the whole answer in one forward over the cached
prefix, read every slot's decision, put the decisions back, repeat until nothing changes. A decision depends on earlier
slots only, so after pass t at least the first t decisions are those of the sequential decoder, and a fixed point *is*
its result. What is already right is never run again: the cache is cut at the first slot that changed. (Jacobi decoding,
arXiv 2305.10427, with one token per slot.)

Where a forward costs what its positions cost, as on a CPU, the answer is run in windows, each until nothing changes in
it: a later window then never sees a wrong decision before it. Where it costs the reading of the weights, as on a GPU,
the whole answer is one window.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lasagna.network.llama import KeyValues
from lasagna.network.model import LasagnaModel
from lasagna.prompt.sequences import Prompt, Query

CPU_WINDOW = 96
"""Tokens; what was tried is in docs/lab/log.md."""


@dataclass(frozen=True)
class DecodedList:
    """The decisions of one chunk.

    Attributes:
        margins: (N,) float32, logit(<SEG>) - logit(<NEG>) of each class given the decisions before it.
        present: (N,) bool.
        hidden: (N, width) hidden states before the decisions: what the prompt projection takes.
    """

    margins: Tensor
    present: Tensor
    hidden: Tensor


@dataclass(frozen=True)
class DecodedLists:
    """The chunks in the order given, and how many forwards of the language model they took after the image's prefix."""

    lists: list[DecodedList]
    passes: int


def best_window(device: torch.device) -> int | None:
    """Tokens of the answer to run at once on a device; None: all of them (`lasagna bench decode --window` compares)."""
    return CPU_WINDOW if device.type == "cpu" else None


@dataclass(frozen=True)
class _Rows:
    """R chunks as rows of tensors. Questions are padded on the left, so that all answers begin at one position.

    Attributes:
        question: (R, Q) token ids.
        answer: (R, A) token ids up to the last decision (nothing is read after it); the slots are still to fill.
        slots: (R, S) positions of the decisions in the answer; 0 where a row has fewer.
        valid: (R, S) bool, the row has this slot.
        fed: (R, S) bool, the decision is read by later ones: all but a row's last.
        bias: (R, S) float32.
        mask: (R, start + Q + A) long, 0 for padding; None where there is none.
        positions: (R, Q + A) of question and answer, after `start` of the image's prefix.
    """

    question: Tensor
    answer: Tensor
    slots: Tensor
    valid: Tensor
    fed: Tensor
    bias: Tensor
    mask: Tensor | None
    positions: Tensor

    @classmethod
    def of(
        cls, queries: Sequence[Query], biases: Sequence[Tensor], prompt: Prompt, start: int, device: torch.device
    ) -> "_Rows":
        rows = len(queries)
        question_length = max(len(query.question) for query in queries)
        answer_length = max(query.slots[-1] for query in queries)
        slot_count = max(len(query.slots) for query in queries)
        question = torch.full((rows, question_length), prompt.pad)
        answer = torch.full((rows, answer_length), prompt.pad)
        slots = torch.zeros((rows, slot_count), dtype=torch.long)
        valid = torch.zeros((rows, slot_count), dtype=torch.bool)
        fed = torch.zeros((rows, slot_count), dtype=torch.bool)
        bias = torch.zeros((rows, slot_count))
        padding = torch.zeros((rows, 1), dtype=torch.long)
        for r, query in enumerate(queries):
            padding[r] = question_length - len(query.question)
            question[r, padding[r] :] = torch.tensor(query.question)
            answer[r, : query.slots[-1]] = torch.tensor(query.answer[: query.slots[-1]])
            slots[r, : len(query.slots)] = torch.tensor(query.slots)
            valid[r, : len(query.slots)] = True
            fed[r, : len(query.slots) - 1] = True
            bias[r, : len(query.slots)] = biases[r]
        mask = torch.ones((rows, start + question_length + answer_length), dtype=torch.long)
        mask[:, start : start + question_length] = (torch.arange(question_length) >= padding).long()
        positions = start + (torch.arange(question_length + answer_length) - padding).clamp(min=0)
        question, answer, slots, valid, fed, bias, mask, positions = (
            x.to(device) for x in (question, answer, slots, valid, fed, bias, mask, positions)
        )
        return cls(question, answer, slots, valid, fed, bias, mask if bool(padding.any()) else None, positions)

    def filled(self, guess: Tensor, active: Tensor, prompt: Prompt) -> Tensor:
        """(len(active), A): the answers of these rows with the guesses in their slots."""
        answer = self.answer[active]
        places = self.slots[active].clamp(max=answer.shape[1] - 1)
        chosen = torch.where(guess[active], prompt.seg, prompt.neg)
        return answer.scatter(1, places, torch.where(self.fed[active], chosen, answer.gather(1, places)))


@torch.inference_mode()
def decode_class_lists(
    model: LasagnaModel,
    prompt: Prompt,
    tokens: Tensor,
    queries: Sequence[Query],
    owners: Sequence[int],
    biases: Sequence[Tensor],
    window: int | None = None,
) -> DecodedLists:
    """Decodes many class lists at once, exactly.

    Args:
        model: The network, in eval mode.
        prompt: Of the same checkpoint.
        tokens: (B, T, C) image tokens.
        queries: R chunks, of any lengths.
        owners: For each chunk the index of its image; the image's prefix is computed once for all its chunks.
        biases: For each chunk (N,) float32, the b_i.
        window: Tokens of the answer that are run at once, until nothing changes in them; None: all.

    Returns:
        One `DecodedList` per chunk.
    """
    device = model.device
    cache = KeyValues()
    prefix = model.prefix(prompt.before_image, tokens)
    start = prefix.shape[1]
    model.run(prefix, None, torch.arange(start, device=device).expand(len(tokens), -1), cache)
    if list(owners) != list(range(len(tokens))):
        cache.select(torch.as_tensor(list(owners), device=device))

    asked = _Rows.of(queries, biases, prompt, start, device)
    rows, question_length, answer_length = len(queries), asked.question.shape[1], asked.answer.shape[1]
    cache.capacity = start + question_length + answer_length
    guess = torch.zeros_like(asked.valid)  # most classes are absent
    margins = torch.zeros(guess.shape, device=device)
    hidden = torch.zeros((*guess.shape, prefix.shape[2]), device=device, dtype=prefix.dtype)

    active = torch.arange(rows, device=device)
    frontier = 0  # answer positions before it are cached and final
    stop = min(window or answer_length, answer_length)  # those from it on have not been run
    passes = 0
    while True:
        # Put the guesses into the slots and run from the frontier on (the first time with the question before it).
        slots, valid, fed = asked.slots[active], asked.valid[active], asked.fed[active]
        filled = asked.filled(guess, active, prompt)[:, :stop]
        ids, first = filled[:, frontier:], question_length + frontier
        if passes == 0:
            ids, first = torch.cat([asked.question[active], filled], dim=1), 0
        last = question_length + stop
        seen = None if asked.mask is None else asked.mask[active, : start + last]
        out = model.run(model.embed(ids), seen, asked.positions[active, first:last], cache)
        out = out[:, question_length:] if passes == 0 else out
        passes += 1

        # Read the decisions of the slots whose reading position was run.
        reading = slots - 1 - frontier
        fresh = valid & (reading >= 0) & (reading < out.shape[1])
        states = out.gather(1, reading.clamp(0, out.shape[1] - 1)[..., None].expand(-1, -1, out.shape[2]))
        values = model.margins(states, prompt.seg, prompt.neg)
        margins[active] = torch.where(fresh, values, margins[active])
        hidden[active] = torch.where(fresh[..., None], states.to(hidden.dtype), hidden[active])
        decided = torch.where(fresh, values >= asked.bias[active], guess[active])
        changed = (decided != guess[active]) & fed & (slots < stop)
        guess[active] = decided

        going = changed.any(dim=1)
        if going.any():
            # A slot's own decision token is the first position that a change invalidates.
            frontier = int(torch.where(changed, slots, answer_length).min())
            cache.crop(start + question_length + frontier)
            if stop == answer_length and not going.all():  # the other rows are done
                cache.select(going.nonzero()[:, 0])
                active = active[going]
        elif stop == answer_length:
            break
        else:
            frontier, stop = stop, min(stop + (window or 0), answer_length)

    lists = []
    for r, query in enumerate(queries):
        n = len(query.slots)
        lists.append(DecodedList(margins[r, :n], guess[r, :n], hidden[r, :n]))
    return DecodedLists(lists, passes)
