"""Slow, obviously right decoders of a class list: the references that `lasagna.network.decoding` is compared with.

Both follow the definition of exact decoding to the letter, with a key/value cache and nothing else: every decision is
made once, in order, from everything before it. `decode_class_by_class` runs one forward per class;
`decode_token_by_token` one per token of the answer, as a plain `generate()` does. They use the network's public pieces
only, and never `lasagna.network.decoding`. Images of a batch are asked the same list, so that nothing is padded.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lab.bench.measure import synchronise
from lasagna.network.llama import KeyValues
from lasagna.network.model import LasagnaModel
from lasagna.prompt.sequences import Prompt, Query


@dataclass(frozen=True)
class ReferenceDecoding:
    """What a reference decoder found for B images and N classes.

    Attributes:
        margins: (B, N) float32, logit(<SEG>) - logit(<NEG>) of each class given the decisions before it.
        present: (B, N) bool, the decisions.
        hidden: (B, N, width) hidden states before the decisions.
        steps: Forwards of the language model after the one of the image's prefix.
    """

    margins: Tensor
    present: Tensor
    hidden: Tensor
    steps: int


class _Reader:
    """Runs the language model forward over a growing sequence, and keeps the last position's hidden state."""

    def __init__(self, model: LasagnaModel, prompt: Prompt, tokens: Tensor) -> None:
        self.model, self.batch = model, len(tokens)
        self.cache = KeyValues()
        self.length = self.steps = 0
        self._run(model.prefix(prompt.before_image, tokens))
        self.steps = 0

    def read(self, ids: Sequence[int]) -> Tensor:
        """Reads the same token ids for every image. Returns (B, width), the hidden state of the last of them."""
        return self.read_each(torch.tensor(ids, device=self.model.device).expand(self.batch, -1))

    def read_each(self, ids: Tensor) -> Tensor:
        """Reads token ids (B, L), image by image. Returns (B, width), the hidden state of the last of them."""
        return self._run(self.model.embed(ids))

    def _run(self, embeddings: Tensor) -> Tensor:
        positions = torch.arange(self.length, self.length + embeddings.shape[1], device=self.model.device)
        hidden = self.model.run(embeddings, None, positions.expand(self.batch, -1), self.cache)
        self.length += embeddings.shape[1]
        self.steps += 1
        return hidden[:, -1]


class _Decisions:
    """Decides class after class, or follows decisions that are given."""

    def __init__(self, model: LasagnaModel, prompt: Prompt, bias: Tensor, given: Tensor | None) -> None:
        self.model, self.prompt, self.given = model, prompt, given
        self.bias = bias.to(model.device)
        self.margins: list[Tensor] = []
        self.present: list[Tensor] = []
        self.hidden: list[Tensor] = []

    def decide(self, hidden: Tensor) -> Tensor:
        """Takes (B, width), the hidden state before the decision; returns its token ids (B, 1)."""
        i = len(self.margins)
        margin = self.model.margins(hidden, self.prompt.seg, self.prompt.neg)
        present = margin >= self.bias[i] if self.given is None else self.given[:, i].to(margin.device)
        self.margins.append(margin)
        self.present.append(present)
        self.hidden.append(hidden)
        return torch.where(present, self.prompt.seg, self.prompt.neg)[:, None]

    def result(self, steps: int) -> ReferenceDecoding:
        margins, present, hidden = (torch.stack(x, 1) for x in (self.margins, self.present, self.hidden))
        return ReferenceDecoding(margins, present, hidden, steps)


@torch.inference_mode()
def decode_class_by_class(
    model: LasagnaModel, prompt: Prompt, tokens: Tensor, query: Query, bias: Tensor, given: Tensor | None = None
) -> ReferenceDecoding:
    """Decodes one class list with one forward per class.

    Args:
        model: The network, in eval mode.
        prompt: Of the same checkpoint.
        tokens: (B, T, C) image tokens.
        query: One class list, asked of every image.
        bias: (N,) float32, the b_i.
        given: (B, N) bool: decisions to follow instead of the model's own; the margins are then those of a decoder
            that has made these decisions.
    """
    reader, decisions = _Reader(model, prompt, tokens), _Decisions(model, prompt, bias, given)
    hidden = reader.read([*query.question, *query.answer[: query.slots[0]]])
    for slot, next_slot in zip(query.slots, query.slots[1:], strict=False):
        decision = decisions.decide(hidden)
        name = torch.tensor(query.answer[slot + 1 : next_slot], device=model.device).expand(len(tokens), -1)
        hidden = reader.read_each(torch.cat([decision, name], 1))
    decisions.decide(hidden)
    return decisions.result(reader.steps)


@torch.inference_mode()
def decode_token_by_token(
    model: LasagnaModel, prompt: Prompt, tokens: Tensor, query: Query, bias: Tensor, given: Tensor | None = None
) -> ReferenceDecoding:
    """Decodes one class list with one forward per token of the answer: greedy `generate()` with the names forced.

    Arguments as for `decode_class_by_class`. As in `generate()`, the head runs over the whole vocabulary at each token;
    only at a decision is more than one token allowed. The margin is read in float32, as everywhere.
    """
    reader, decisions = _Reader(model, prompt, tokens), _Decisions(model, prompt, bias, given)
    hidden = reader.read(query.question)
    slots = set(query.slots)
    for position, token in enumerate(query.answer):
        model.lm_head(hidden)
        chosen = decisions.decide(hidden) if position in slots else torch.full((len(tokens), 1), token)
        if position + 1 < len(query.answer):
            hidden = reader.read_each(chosen.to(model.device))
    return decisions.result(reader.steps)


@dataclass(frozen=True)
class DecoderComparison:
    """How the decisions of another decoder relate to those of the references.

    Attributes:
        identical: Whether every decision is the one that `decode_class_by_class` makes after the same decisions, near
            ties apart.
        differing: Decisions that are not those of a free run of `decode_class_by_class`. One near tie may change the
            decisions after it, so this can exceed `near_ties`.
        near_ties: Decisions that `decode_class_by_class` makes otherwise after the same decisions, with a margin within
            `noise` of the bias.
        noise: The rounding noise of a margin: twice the largest difference between the margins of the two references,
            which do the same sums in products of different shapes.
        seconds, processor: What `decode_class_by_class` and `decode_token_by_token` took, each once: on the clock, and
            of this process's processors.
    """

    identical: bool
    differing: int
    near_ties: int
    noise: float
    seconds: tuple[float, float]
    processor: tuple[float, float]


def compare_decisions(
    model: LasagnaModel, prompt: Prompt, tokens: Tensor, query: Query, bias: Tensor, present: Tensor
) -> DecoderComparison:
    """Compares decisions (B, N) bool with the references; other arguments as for `decode_class_by_class`.

    The noise is measured without the decoder that is judged: a wrong one cannot widen its own tolerance.
    """
    free = decode_class_by_class(model, prompt, tokens, query, bias)
    device = str(model.device)
    synchronise(device)
    began, worked = time.perf_counter(), time.process_time()
    by_class = decode_class_by_class(model, prompt, tokens, query, bias, given=present)
    synchronise(device)
    between, worked_between = time.perf_counter(), time.process_time()
    by_token = decode_token_by_token(model, prompt, tokens, query, bias, given=present)
    synchronise(device)
    ended, worked_ended = time.perf_counter(), time.process_time()
    noise = 2 * float((by_class.margins - by_token.margins).abs().max())
    over = by_class.margins - bias.to(model.device)
    other = (over >= 0) != present.to(model.device)
    near = other & (over.abs() <= noise)
    differing = int((free.present != present.to(model.device)).sum())
    seconds = (between - began, ended - between)
    processor = (worked_between - worked, worked_ended - worked_between)
    return DecoderComparison(bool((other == near).all()), differing, int(near.sum()), noise, seconds, processor)


def bias_for_share(
    model: LasagnaModel, prompt: Prompt, tokens: Tensor, query: Query, share: float, rounds: int = 4
) -> Tensor:
    """One bias for all classes, (N,) float32, at which about `share` of the decisions are "present".

    A list in which everything is absent is decoded in one pass, which proves little. The bias lies between two margins,
    and is found by iteration, since margins depend on the decisions before them.
    """
    bias = torch.zeros(len(query.slots))
    best, best_error = bias, float("inf")
    for _ in range(rounds):
        found = decode_class_by_class(model, prompt, tokens, query, bias)
        error = abs(float(found.present.float().mean()) - share)
        if error < best_error:
            best, best_error = bias, error
        ordered = found.margins.flatten().sort(descending=True).values.cpu()
        count = min(max(round(share * len(ordered)), 1), len(ordered) - 1) if len(ordered) > 1 else 0
        middle = (ordered[count - 1] + ordered[count]) / 2 if count else ordered[0]
        bias = torch.full((len(query.slots),), float(middle))
    return best
