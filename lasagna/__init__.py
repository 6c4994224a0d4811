"""LaSagnA: one query names every class, the model answers every class, in order.

    from lasagna import Lasagna
    model = Lasagna.from_pretrained("nano")
    answer = model.segment(image, ["sky", "road", "cat"])
    answer.present, answer.absent, answer["road"].mask

What always holds: the names in `__all__` are the public Python API (docs/api.md) and stay as they are within a major
version; importing this package does not import torch, `Lasagna` does so when it is first used.
"""

from typing import TYPE_CHECKING, Any

from lasagna.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    ImageError,
    LasagnaError,
    QueryError,
    RegistryError,
    ServiceError,
    TrainingError,
)
from lasagna.masks.image import load_image
from lasagna.masks.segmentation import ClassAnswer, ClassQuery, Segmentation

if TYPE_CHECKING:
    from lasagna.assistant.lasagna import Lasagna
    from lasagna.contract.model import ClassListModel
    from lasagna.models.loading import load_model

__all__ = [
    "CheckpointError",
    "ClassAnswer",
    "ClassListModel",
    "ClassQuery",
    "ConfigError",
    "DataError",
    "ImageError",
    "Lasagna",
    "LasagnaError",
    "QueryError",
    "RegistryError",
    "Segmentation",
    "ServiceError",
    "TrainingError",
    "load_image",
    "load_model",
]


def __getattr__(name: str) -> Any:
    if name == "Lasagna":
        from lasagna.assistant.lasagna import Lasagna

        return Lasagna
    if name == "load_model":
        from lasagna.models.loading import load_model

        return load_model
    if name == "ClassListModel":
        from lasagna.contract.model import ClassListModel

        return ClassListModel
    raise AttributeError(f"module 'lasagna' has no attribute {name!r}")
