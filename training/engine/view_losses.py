"""The losses of random views: a batch of photos and class lists, teacher-forced."""

import random
from dataclasses import dataclass

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lasagna.network.model import LasagnaModel
from lasagna.network.vision import EncodedImages
from lasagna.prompt.sequences import Prompt
from training.data.records import UNKNOWN
from training.engine.losses import Losses, competition_loss, mask_losses
from training.examples.mixture import ViewBatch


@dataclass(frozen=True)
class ForcedAnswers:
    """What the language model says of a batch.

    Attributes:
        states: (M, width) hidden state before each decision, over all classes of all questions.
        owners: (M,) index of the photo.
        names: (M,) index of the class in its question.
        present: (M,) bool, the truth.
        text, copied: Cross-entropy of the decisions and of the other tokens of the answers.
    """

    states: Tensor
    owners: Tensor
    names: Tensor
    present: Tensor
    text: Tensor
    copied: Tensor


def answer_questions(
    model: LasagnaModel, prompt: Prompt, tokens: Tensor, batch: ViewBatch, rng: random.Random, drop_tokens: float
) -> ForcedAnswers:
    """Runs the language model over whole sequences, teacher-forced.

    Args:
        tokens: (B, T, C) image tokens.
        drop_tokens: Share of the image's tokens that is hidden from the language model, a regulariser.
    """
    template = rng.randrange(len(prompt.format.questions["classes"]))
    prefix = model.prefix(prompt.before_image, tokens)
    start, sequences, answers = prefix.shape[1], [], []
    for classes in batch.classes:
        names = [prompt.encode_name(name) for name in classes.names]
        query = prompt.query(names, template, classes.answered)
        answer = list(query.answer)
        for slot, i in zip(query.slots, classes.answered, strict=True):
            answer[slot] = prompt.seg if classes.present[i] else prompt.neg
        sequences.append([*query.question, *answer])
        answers.append((len(query.question), query.slots))
    # Few distinct shapes: the CPU's matrix library builds a kernel for every new one.
    longest = start + max(len(sequence) for sequence in sequences)
    length = -(-longest // 64) * 64 - start
    ids = torch.full((len(sequences), length), prompt.pad)
    for row, sequence in enumerate(sequences):
        ids[row, : len(sequence)] = torch.tensor(sequence)
    ids = ids.to(model.device)
    mask = torch.ones((len(ids), start + length), dtype=torch.long, device=model.device)
    if drop_tokens:
        image = slice(len(prompt.before_image), start)
        kept = torch.rand(mask[:, image].shape, device=model.device) >= drop_tokens
        mask[:, image] = kept.long()
    positions = torch.arange(start + length, device=model.device).expand(len(ids), -1)
    hidden = model.run(torch.cat([prefix, model.embed(ids).to(prefix.dtype)], dim=1), mask, positions, None)

    decisions = torch.zeros(ids.shape, dtype=torch.bool, device=model.device)
    answered = torch.zeros_like(decisions)
    owners, columns, which, present = [], [], [], []
    for row, ((offset, slots), classes) in enumerate(zip(answers, batch.classes, strict=True)):
        answered[row, offset : len(sequences[row])] = True
        for slot, i in zip(slots, classes.answered, strict=True):
            decisions[row, offset + slot] = True
            owners.append(row)
            columns.append(offset + slot - 1)
            which.append(i)
            present.append(classes.present[i])
    owner = torch.tensor(owners, device=model.device)
    column = torch.tensor(columns, device=model.device)
    before = hidden[:, start - 1 : -1]  # the state before each token of `ids`
    loss = F.cross_entropy(model.lm_head(before).float().flatten(0, 1), ids.flatten(), reduction="none").view(ids.shape)
    return ForcedAnswers(
        states=hidden[owner, start + column],
        owners=owner,
        names=torch.tensor(which, device=model.device),
        present=torch.tensor(present, device=model.device),
        text=loss[decisions].sum() / decisions.sum().clamp(min=1),
        copied=loss[answered & ~decisions].mean(),
    )


def view_losses(
    model: LasagnaModel,
    prompt: Prompt,
    batch: ViewBatch,
    rng: random.Random,
    masks_per_photo: int = 6,
    drop_tokens: float = 0.0,
) -> Losses:
    """All terms of the objective for one batch.

    Args:
        rng: Of the choices within the step.
        masks_per_photo: Present classes that are decoded, at most.
        drop_tokens: See `answer_questions`.
    """
    labels = batch.labels.to(model.device)
    encoded = model.encoder({"image": batch.pixels.to(model.device)})
    answers = answer_questions(model, prompt, encoded.tokens, batch, rng, drop_tokens)
    prompts = model.prompt_projection(answers.states)
    labels8, labels4 = labels[:, 4::8, 4::8], labels[:, 2::4, 2::4]

    chosen = []
    for row in range(len(labels)):
        there = ((answers.owners == row) & answers.present).nonzero()[:, 0].tolist()
        chosen += rng.sample(there, min(len(there), masks_per_photo))
    if len(chosen) > 8:  # a multiple of eight, for the same reason as the length of the sequences
        chosen = sorted(rng.sample(chosen, len(chosen) // 8 * 8))
    zero = prompts.sum() * 0
    losses = Losses(answers.text, answers.copied, zero, zero, zero, zero, zero, zero, zero)

    coarse = model.segmenter.coarse_logits(encoded, prompts, answers.owners)
    if coarse is not None:
        terms = []
        for row in answers.owners.unique():
            mine = answers.owners == row
            target = _relabel(labels8[row], answers.names[mine])
            terms.append(competition_loss(coarse[mine], target))
        losses.coarse_competition = torch.stack(terms).mean() if terms else zero
    if chosen:
        pick = torch.tensor(chosen, device=model.device)
        owners, names = answers.owners[pick], answers.names[pick]
        masks, picked_coarse = model.segmenter(encoded, prompts[pick], owners)
        bce, dice = mask_losses(masks, labels4[owners] == names[:, None, None], labels4[owners] != UNKNOWN)
        losses.bce, losses.dice = bce.mean(), dice.mean()
        if picked_coarse is not None:
            bce, dice = mask_losses(picked_coarse, labels8[owners] == names[:, None, None], labels8[owners] != UNKNOWN)
            losses.coarse_bce, losses.coarse_dice = bce.mean(), dice.mean()
        terms = []
        for row in owners.unique():
            mine = owners == row
            terms.append(competition_loss(masks[mine], _relabel(labels4[row], names[mine])))
        losses.competition = torch.stack(terms).mean()
    losses.clicks = click_loss(model, encoded, labels, rng) + zero
    return losses


def _relabel(labels: Tensor, names: Tensor) -> Tensor:
    """Labels (h, w) as positions in `names`; classes that are not among them become -1, void stays -2."""
    table = torch.full((int(max(names.max(), labels.max())) + 3,), -1, dtype=torch.long, device=labels.device)
    table[0] = UNKNOWN  # labels are shifted by 2: -2 is the first row
    table[names + 2] = torch.arange(len(names), device=labels.device)
    return table[labels + 2]


def click_loss(model: LasagnaModel, encoded: EncodedImages, labels: Tensor, rng: random.Random) -> Tensor:
    """Masks of a point in, or a loose box around, one connected part of a class: what a smart tool sends.

    BCE + DICE of the part's mask, and squared error of the predicted IoU (SAM, arXiv 2304.02643, A.3).
    """
    height, width = labels.shape[1:]
    points, kinds, owners, targets = [], [], [], []
    for row in range(len(labels)):
        part = _random_part(labels[row].cpu().numpy(), rng)
        if part is None:
            continue
        ys, xs = np.nonzero(part)
        if rng.random() < 0.5:
            i = rng.randrange(len(ys))
            corners = [((xs[i] + 0.5) / width, (ys[i] + 0.5) / height), (0.0, 0.0)]
            kinds.append([1, -1])
        else:
            slack = 0.08
            w, h = xs.max() + 1 - xs.min(), ys.max() + 1 - ys.min()
            loose = [rng.uniform(-slack, slack) for _ in range(4)]
            corners = [
                ((xs.min() + loose[0] * w) / width, (ys.min() + loose[1] * h) / height),
                ((xs.max() + 1 + loose[2] * w) / width, (ys.max() + 1 + loose[3] * h) / height),
            ]
            kinds.append([2, 3])
        points.append(corners)
        owners.append(row)
        targets.append(torch.from_numpy(part[2::4, 2::4]))
    if not points:
        return encoded.embedding.sum() * 0
    device = labels.device
    owner = torch.tensor(owners, device=device)
    masks, iou = model.segmenter.from_clicks(
        encoded, torch.tensor(points, device=device), torch.tensor(kinds, device=device), owner
    )
    target, known = torch.stack(targets).to(device), labels[owner][:, 2::4, 2::4] != UNKNOWN
    bce, dice = mask_losses(masks, target, known)
    found = masks.detach() > 0
    overlap = (found & target & known).sum((1, 2)) / ((found | target) & known).sum((1, 2)).clamp(min=1)
    return bce.mean() + dice.mean() + 0.1 * F.mse_loss(iou.float(), overlap)


def _random_part(labels: np.ndarray, rng: random.Random) -> np.ndarray | None:
    """One connected part, of at least 96 pixels, of a random present class: bool (H, W); None where there is none."""
    present = [int(i) for i in np.unique(labels) if i >= 0]
    if not present:
        return None
    _, parts, stats, _ = cv2.connectedComponentsWithStats((labels == rng.choice(present)).astype(np.uint8))
    large = [i for i in range(1, len(stats)) if stats[i, cv2.CC_STAT_AREA] >= 96]
    return parts == rng.choice(large) if large else None
