"""What a photo is to `Lasagna`, and what is said of it before it is put together: its features, and the decisions.

What always holds: `ClassDecider` is all that an instant head needs of the model that it stands beside.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from lasagna.masks.segmentation import ClassQuery, Mask
from lasagna.network.vision import EncodedImages, PreparedImage


@dataclass(frozen=True)
class ImageFeatures:
    """One encoded image: everything that does not depend on what is asked.

    Attributes:
        encoded: A batch of one.
        prepared: How it was brought to the encoder's input.
        grey: uint8 (H, W), the image in grey: its edges are what masks of an instant head are drawn along.
    """

    encoded: EncodedImages
    prepared: PreparedImage
    grey: NDArray[np.uint8]


@dataclass(frozen=True)
class Decided:
    """What is said of one distinct name of one image.

    Attributes:
        text: The name, as the model reads it.
        probability, present: Its decision.
        hidden: (width,) the state that a mask is decoded from, present or not.
    """

    text: str
    probability: float
    present: bool
    hidden: Tensor


class ClassDecider(Protocol):
    """A model that decides about classes of an encoded image; `Lasagna` is one."""

    model: Any
    base_version: str

    @property
    def encoder_fingerprint(self) -> str: ...

    def read_text(self, text: str) -> str:
        """What the model reads for a class name."""

    def knows(self, query: ClassQuery) -> bool:
        """Whether it can be asked for a class."""

    def decide(self, features: ImageFeatures, texts: list[str]) -> dict[str, Decided]:
        """Decisions by what the model reads."""

    def mask_logits(self, features: ImageFeatures, decided: Sequence[Decided]) -> Tensor:
        """(M, h, w) mask logits of M >= 1 names."""

    def draw(
        self, features: ImageFeatures, decided: Sequence[Decided], exclusive: bool = False
    ) -> tuple[list[Mask], list[float]]:
        """Masks of names and their stability."""


def grey(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """uint8 (H, W, 3) to (H, W)."""
    return np.asarray(cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_RGB2GRAY), np.uint8)
