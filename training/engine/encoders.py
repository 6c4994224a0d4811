"""Photos of conversations on their way into a step, in two halves: `read` where batches are made, on a thread or in a
forked process, which must not touch a GPU; `encode` in the step. `training.engine.features.FrozenEncoder` does the same
from outputs that are kept on disk."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from lasagna.masks.image import load_image
from lasagna.network.model import LasagnaModel
from lasagna.network.pyramid import PyramidEncoder
from lasagna.network.vision import EncodedImages, PreparedImage
from training.engine.conversations import ConversationBatch, encode_images
from training.engine.features import PhotoFeatures
from training.examples.tasks import ConversationExample


class PhotoEncoder(Protocol):
    """What encodes photos for training."""

    def read(self, photo: Path) -> PhotoFeatures: ...

    def encode(self, photos: Sequence[PhotoFeatures]) -> EncodedImages: ...


class LiveEncoder:
    """The model's encoder, run at every step."""

    def __init__(self, model: LasagnaModel) -> None:
        self.model = model

    def read(self, photo: Path) -> PhotoFeatures:
        image = load_image(photo)
        if isinstance(self.model.encoder, PyramidEncoder):  # keeps a photo's shape, where a batch needs one shape
            side = self.model.config.vision.image_size
            stretched = self.model.encoder.prepare(np.asarray(image.resize((side, side))))
            prepared = dataclasses.replace(stretched, original_size=(image.height, image.width))
        else:
            prepared = self.model.encoder.prepare(np.asarray(image))
        sizes = (prepared.input_size, prepared.content_size, prepared.original_size)
        return PhotoFeatures("", None, prepared.pixels, *sizes)

    def encode(self, photos: Sequence[PhotoFeatures]) -> EncodedImages:
        return encode_images(self.model, [_prepared(photo) for photo in photos])


@dataclasses.dataclass(frozen=True)
class Conversations:
    """The examples of a micro-batch and their photos."""

    examples: list[ConversationExample]
    photos: list[PhotoFeatures]

    def batch(self) -> ConversationBatch:
        """The batch as `conversation_losses` takes it; one conversation per photo."""
        return ConversationBatch(
            [_prepared(photo) for photo in self.photos],
            [example.conversation for example in self.examples],
            range(len(self.examples)),
            [torch.from_numpy(example.masks) for example in self.examples],
            [torch.from_numpy(example.known) for example in self.examples],
        )


def _prepared(photo: PhotoFeatures) -> PreparedImage:
    return PreparedImage(photo.pixels or {}, photo.input_size, photo.content_size, photo.original_size)
