"""The paper's objective (equation 1) for whole conversations, teacher-forced, of any task and in any dialect.

    text * cross-entropy + bce * BCE + dice * DICE

What always holds: cross-entropy is the mean over all supervised tokens of a batch, BCE and DICE are taken per mask at
the image's own size and averaged over all masks of a batch, as in the released code, whose values these are.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from lasagna.assistant.drawing import masks_to_image
from lasagna.network.model import LasagnaModel
from lasagna.network.vision import EncodedImages, PreparedImage
from lasagna.prompt.sequences import IGNORED, Conversation
from training.engine.losses import mask_losses
from training.recipe.values import ConversationWeights

DICE_SMOOTHING = 1e-3
"""Added to numerator and denominator of DICE: the released code's 1e-6, which it adds to sums of thousandths."""


@dataclass(frozen=True)
class ConversationBatch:
    """Images of one prepared shape, and conversations about them.

    Attributes:
        images: B prepared images.
        conversations: R of them.
        owners: Index of each conversation's image.
        masks: Per conversation (n, H, W) bool at its image's size: the targets of its n "present" decisions, in order.
        known: Per image (H, W) bool, False where a pixel is void; None: all pixels count.
    """

    images: Sequence[PreparedImage]
    conversations: Sequence[Conversation]
    owners: Sequence[int]
    masks: Sequence[Tensor]
    known: Sequence[Tensor] | None = None


@dataclass
class ConversationLosses:
    """The terms of the loss of conversations, each without its weight."""

    text: Tensor
    bce: Tensor
    dice: Tensor

    def total(self, weights: ConversationWeights) -> Tensor:
        return weights.text * self.text + weights.bce * self.bce + weights.dice * self.dice

    def items(self) -> dict[str, float]:
        return {"text": self.text.item(), "bce": self.bce.item(), "dice": self.dice.item()}


def encode_images(model: LasagnaModel, images: Sequence[PreparedImage]) -> EncodedImages:
    """What the encoders give for prepared images of one shape; without gradients where nothing of them trains."""
    pixels = {name: torch.stack([image.pixels[name] for image in images]).to(model.device) for name in images[0].pixels}
    with torch.set_grad_enabled(torch.is_grad_enabled() and any(p.requires_grad for p in model.encoder.parameters())):
        return model.encoder(pixels)


def conversation_losses(
    model: LasagnaModel, batch: ConversationBatch, encoded: EncodedImages | None = None
) -> ConversationLosses:
    """All terms of the objective for one batch.

    Args:
        model: The network; LoRA layers may have been injected into its `language_model`.
        batch: What is asked and answered.
        encoded: Of the batch's images, in order, where they were encoded before; None: they are encoded now.
    """
    if encoded is None:
        encoded = encode_images(model, batch.images)
    rows = [
        model.sequence(conversation.ids, encoded.tokens[owner])
        for conversation, owner in zip(batch.conversations, batch.owners, strict=True)
    ]
    image_tokens = encoded.tokens.shape[1]
    length = max(len(row) for row in rows)
    device = model.device
    embeddings = torch.stack([F.pad(row, (0, 0, 0, length - len(row))) for row in rows])
    mask = torch.stack([torch.arange(length, device=device) < len(row) for row in rows]).long()
    positions = torch.arange(length, device=device).expand(len(rows), -1)
    hidden = model.run(embeddings, mask, positions, None)

    # After the image, the token with index i stands at i - 1 + image_tokens, and is predicted one position earlier.
    predicted: list[tuple[int, int, int]] = []
    prompted: list[tuple[int, int]] = []
    for row, conversation in enumerate(batch.conversations):
        before = image_tokens - 2
        predicted += [(row, i + before, label) for i, label in enumerate(conversation.labels) if label != IGNORED]
        present = [i for i, there in zip(conversation.slots, conversation.present, strict=True) if there]
        if len(present) != len(batch.masks[row]):
            raise ValueError(f"conversation {row} has {len(present)} present decisions, {len(batch.masks[row])} masks")
        prompted += [(row, i + before) for i in present]
    at = torch.tensor(predicted, dtype=torch.long, device=device).view(-1, 3)
    logits = model.lm_head(hidden[at[:, 0], at[:, 1]]).float()
    text = F.cross_entropy(logits, at[:, 2]) if predicted else hidden.sum() * 0
    places = torch.tensor(prompted, dtype=torch.long, device=device).view(-1, 2)
    if prompted:
        bce, dice = _mask_losses(model, batch, encoded, hidden[places[:, 0], places[:, 1]], places[:, 0])
    else:
        # A mask with weight 0, so that projection and decoder have a gradient in every forward: DeepSpeed adds those of
        # several processes up in the order in which they are made, which has to be the same on all of them.
        first = torch.zeros(1, dtype=torch.long, device=device)
        unused, _ = model.segmenter(encoded[0], model.prompt_projection(hidden[:1, -1]), first)
        bce = dice = unused.sum() * 0
    return ConversationLosses(text, bce, dice)


def _mask_losses(
    model: LasagnaModel, batch: ConversationBatch, encoded: EncodedImages, states: Tensor, rows: Tensor
) -> tuple[Tensor, Tensor]:
    """BCE and DICE of the masks of all states (M, width), each of a conversation (M,)."""
    prompts = model.prompt_projection(states)
    owners = torch.tensor(batch.owners, device=rows.device)[rows]
    low = model.segmenter(encoded, prompts, owners)[0]
    terms = []
    for row, target in enumerate(batch.masks):
        if not len(target):
            continue
        owner = batch.owners[row]
        logits = masks_to_image(low[rows == row], batch.images[owner])
        target = target.to(logits.device)
        known = torch.ones_like(target) if batch.known is None else batch.known[owner].to(target).expand_as(target)
        terms.append(torch.stack(mask_losses(logits, target, known, DICE_SMOOTHING)))
    bce, dice = torch.cat(terms, dim=1).mean(1)
    return bce, dice
