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

CPU_WINDOW = 224
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
        guess: (R, S) bool, False where a row has no slot.
        mask: (R, start + Q + A) long, 0 for padding; None where there is none.
        positions: (R, Q + A) of question and answer, after `start` of the image's prefix.
    """

    question: Tensor
    answer: Tensor
    slots: Tensor
    valid: Tensor
    fed: Tensor
    bias: Tensor
    guess: Tensor
    mask: Tensor | None
    positions: Tensor

    @classmethod
    def of(
        cls,
        queries: Sequence[Query],
        biases: Sequence[Tensor],
        guesses: Sequence[Tensor],
        prompt: Prompt,
        start: int,
        device: torch.device,
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
        guess = torch.zeros((rows, slot_count), dtype=torch.bool)
        padding = torch.zeros((rows, 1), dtype=torch.long)
        for r, query in enumerate(queries):
            padding[r] = question_length - len(query.question)
            question[r, padding[r] :] = torch.tensor(query.question)
            answer[r, : query.slots[-1]] = torch.tensor(query.answer[: query.slots[-1]])
            slots[r, : len(query.slots)] = torch.tensor(query.slots)
            valid[r, : len(query.slots)] = True
            fed[r, : len(query.slots) - 1] = True
            bias[r, : len(query.slots)] = biases[r]
            guess[r, : len(query.slots)] = guesses[r]
        mask = torch.ones((rows, start + question_length + answer_length), dtype=torch.long)
        mask[:, start : start + question_length] = (torch.arange(question_length) >= padding).long()
        positions = start + (torch.arange(question_length + answer_length) - padding).clamp(min=0)
        question, answer, slots, valid, fed, bias, guess, mask, positions = (
            x.to(device) for x in (question, answer, slots, valid, fed, bias, guess, mask, positions)
        )
        return cls(question, answer, slots, valid, fed, bias, guess, mask if bool(padding.any()) else None, positions)

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
    guesses: Sequence[Tensor] | None = None,
) -> DecodedLists:
    """Decodes many class lists at once, exactly.

    Args:
        model: The network, in eval mode.
        prompt: Of the same checkpoint.
        tokens: (B, T, C) image tokens.
        queries: R chunks, of any lengths.
        owners: For each chunk the index of its image; the image's prefix is computed once for all its chunks.
        biases: For each chunk (N,) float32, the b_i.
        window: Tokens of the answer that are run at once, until nothing changes in them; None: all. Chunks are then
            decoded one after the other: together each would be run again wherever another one changes.
        guesses: For each chunk (N,) bool, what the decisions may be; None: all absent. They change how many passes are
            needed, and not what is found.

    Returns:
        One `DecodedList` per chunk.
    """
    if guesses is None:  # most classes are absent
        guesses = [torch.zeros(len(query.slots), dtype=torch.bool) for query in queries]
    if window is None:
        cache, start = _prefix(model, prompt, tokens)
        if list(owners) != list(range(len(tokens))):
            cache.select(torch.as_tensor(list(owners), device=model.device))
        rows = _Rows.of(queries, biases, guesses, prompt, start, model.device)
        return DecodedLists(*_decode(model, prompt, rows, cache, start, None))
    found: dict[int, DecodedList] = {}
    passes = 0
    for image in range(len(tokens)):
        mine = [i for i, owner in enumerate(owners) if owner == image]
        if not mine:
            continue
        longest = max(len(queries[i].question) + len(queries[i].answer) for i in mine)
        cache, start = _prefix(model, prompt, tokens[image : image + 1], longest)
        for i in mine:
            cache.crop(start)
            rows = _Rows.of([queries[i]], [biases[i]], [guesses[i]], prompt, start, model.device)
            (found[i],), needed = _decode(model, prompt, rows, cache, start, window)
            passes += needed
    return DecodedLists([found[i] for i in range(len(queries))], passes)


def _prefix(model: LasagnaModel, prompt: Prompt, tokens: Tensor, more: int = 0) -> tuple[KeyValues, int]:
    """Runs what all chunks of an image share: its keys and values, and how many positions these are.

    Args:
        more: Positions that will follow.
    """
    embeddings = model.prefix(prompt.before_image, tokens)
    images, start, _ = embeddings.shape
    cache = KeyValues(start + more if more else 0)
    nothing = torch.zeros((images, 0), dtype=torch.long, device=model.device)
    model.run(embeddings, None, torch.arange(start, device=model.device).expand(images, -1), cache, nothing)
    return cache, start


def _decode(
    model: LasagnaModel, prompt: Prompt, asked: _Rows, cache: KeyValues, start: int, window: int | None
) -> tuple[list[DecodedList], int]:
    """The chunks of the rows, all of them together, and the forwards that it took.

    Args:
        cache: Of each row's prefix, `start` positions; extended.
    """
    device, rows = model.device, len(asked.question)
    question_length, answer_length = asked.question.shape[1], asked.answer.shape[1]
    cache.capacity = max(cache.capacity, start + question_length + answer_length)
    guess = asked.guess.clone()
    margins = torch.zeros(guess.shape, device=device)
    hidden = torch.zeros((*guess.shape, model.lm_head.weight.shape[1]), device=device, dtype=model.dtype)

    active = torch.arange(rows, device=device)
    frontier = 0  # answer positions before it are cached and final
    stop = min(window or answer_length, answer_length)  # those from it on have not been run
    passes = 0
    while True:
        # Put the guesses into the slots and run from the frontier on (the first time with the question before it).
        valid, fed, slots = asked.valid[active], asked.fed[active], asked.slots[active]
        filled = asked.filled(guess, active, prompt)[:, :stop]
        ids, first = filled[:, frontier:], question_length + frontier
        if passes == 0:
            ids, first = torch.cat([asked.question[active], filled], dim=1), 0
        last = question_length + stop
        seen = None if asked.mask is None else asked.mask[active, : start + last]

        # Read the decisions of the slots whose reading position is run.
        fresh = valid & (slots > frontier) & (slots <= stop)
        columns = _span(fresh)
        fresh, reading = fresh[:, columns], question_length + slots[:, columns] - 1 - first
        reading = reading.clamp(0, ids.shape[1] - 1)
        states = model.run(model.embed(ids), seen, asked.positions[active, first:last], cache, reading)
        passes += 1
        values = model.margins(states, prompt.seg, prompt.neg)
        margins[active, columns] = torch.where(fresh, values, margins[active, columns])
        hidden[active, columns] = torch.where(fresh[..., None], states.to(hidden.dtype), hidden[active, columns])
        decided = guess[active]
        decided[:, columns] = torch.where(fresh, values >= asked.bias[active][:, columns], decided[:, columns])
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

    counts = asked.valid.sum(1).tolist()
    return [DecodedList(margins[r, :n], guess[r, :n], hidden[r, :n]) for r, n in enumerate(counts)], passes


def _span(fresh: Tensor) -> slice:
    """The columns of (R, S) from the first to the last that any row has."""
    columns = fresh.any(dim=0).nonzero()[:, 0].tolist()
    return slice(columns[0], columns[-1] + 1) if columns else slice(0, 0)
