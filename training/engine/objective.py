"""Micro-batch to loss, by one of two objectives: random views with class lists, or whole conversations about photos.

What always holds: each objective has the weights of its own terms and no others (a recipe that gives others is refused
when it is read); every random choice of a forward is seeded by (recipe, step, part).
"""

import random
from typing import Any

import torch
from torch import nn

from lasagna.network.model import LasagnaModel
from lasagna.prompt.sequences import Prompt
from training.engine.conversations import conversation_losses
from training.engine.encoders import Conversations, LiveEncoder, PhotoEncoder
from training.engine.view_losses import view_losses
from training.examples.batches import MicroBatch
from training.examples.mixture import ViewBatch
from training.recipe.values import ConversationWeights, Recipe, ViewWeights


class ViewObjective:
    """Class lists about random views: all terms of the small model.

    Args:
        drop_tokens: Share of the image's tokens that is hidden from the language model in training.
    """

    def __init__(self, model: LasagnaModel, prompt: Prompt, weights: ViewWeights, drop_tokens: float) -> None:
        self._model, self._prompt, self._weights, self._drop_tokens = model, prompt, weights, drop_tokens

    def __call__(self, batch: ViewBatch, rng: random.Random, training: bool) -> dict[str, Any]:
        drop = self._drop_tokens if training else 0.0
        losses = view_losses(self._model, self._prompt, batch, rng, drop_tokens=drop)
        return {"loss": losses.total(self._weights), "terms": losses.items()}


class ConversationObjective:
    """Conversations of any task: the three terms of the paper's equation 1.

    Args:
        encoder: Of the photos.
    """

    def __init__(self, model: LasagnaModel, encoder: PhotoEncoder, weights: ConversationWeights) -> None:
        self._model, self._encoder, self._weights = model, encoder, weights

    def __call__(self, batch: Conversations, rng: random.Random, training: bool) -> dict[str, Any]:
        losses = conversation_losses(self._model, batch.batch(), self._encoder.encode(batch.photos))
        terms = losses.items()
        if not any(len(example.masks) for example in batch.examples):
            del terms["bce"], terms["dice"]
        return {"loss": losses.total(self._weights), "terms": terms}


class Objective(nn.Module):
    """The objective of whatever a micro-batch holds: the module that is wrapped for several processes.

    Args:
        encoder: Of the photos of conversations; None: the model's own.
    """

    def __init__(
        self, model: LasagnaModel, prompt: Prompt, recipe: Recipe, encoder: PhotoEncoder | None = None
    ) -> None:
        super().__init__()
        self.model, self._seed = model, recipe.seed
        self._precision = getattr(torch, recipe.optimiser.precision)
        self._of: dict[type, ViewObjective | ConversationObjective] = {
            Conversations: ConversationObjective(model, encoder or LiveEncoder(model), recipe.conversation_weights)
        }
        if recipe.augment and recipe.view_weights:
            self._of[ViewBatch] = ViewObjective(model, prompt, recipe.view_weights, recipe.augment.drop_tokens)

    def forward(self, batch: MicroBatch) -> dict[str, Any]:
        """The loss (a scalar with gradient) and its terms (numbers)."""
        torch.manual_seed((self._seed * 1009 + batch.part) * 1_000_003 + batch.step)
        rng = random.Random(f"step-{self._seed}-{batch.part}-{batch.step}")
        device = self.model.device.type
        with torch.autocast(device, self._precision, enabled=self._precision != torch.float32):
            return self._of[type(batch.data)](batch.data, rng, self.training)
