"""What differs between two checkpoints: label set, calibration, figures of the gate, weights."""

import contextlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from backend.registry.figures import measured
from backend.registry.registry import Registry, Version
from lasagna.checkpoint.folder import (
    checkpoint_layers,
    checkpoint_version,
    find_checkpoint,
    load_calibration,
    load_labels,
)
from lasagna.errors import RegistryError

if TYPE_CHECKING:
    from lasagna.checkpoint.weights import LayeredWeights

Pair = tuple[float | None, float | None]
"""A figure of the first and of the second."""


@dataclass(frozen=True)
class WeightChange:
    """One weight that differs.

    Attributes:
        name: Its key in the checkpoint.
        parameters: How many numbers it has.
        distance: L2 norm of the difference.
        norm: L2 norm of it in the first checkpoint.
    """

    name: str
    parameters: int
    distance: float
    norm: float


@dataclass(frozen=True)
class CheckpointComparison:
    """Two checkpoints, first and second.

    Attributes:
        ids: What their predictions are called.
        labels_added: In the second's label set alone.
        labels_removed: In the first's label set alone.
        calibration: Temperature, offset and class offsets that differ.
        figures: Figures of the gate, of either.
        classes: Figures of a class, by class and figure.
        same_photos: Whether both were measured on the same photos: as champion and candidate of one gate.
        weights: Weights that differ.
        equal_weights: How many do not.
        only_in: Weights that one of them alone has, or that have another shape.
    """

    ids: tuple[str, str]
    labels_added: list[str]
    labels_removed: list[str]
    calibration: dict[str, Pair]
    figures: dict[str, Pair]
    classes: dict[str, dict[str, Pair]]
    same_photos: bool
    weights: list[WeightChange]
    equal_weights: int
    only_in: list[str]

    def as_dict(self) -> dict[str, Any]:
        """The fields, JSON-ready."""
        return asdict(self)

    def parts(self) -> list[tuple[str, int, int, float]]:
        """Weights that differ by part of the model: name, weights, parameters, relative change (L2)."""
        groups: dict[str, list[WeightChange]] = {}
        for change in self.weights:
            groups.setdefault(".".join(change.name.split(".")[:2]), []).append(change)
        return [
            (name, len(changes), sum(c.parameters for c in changes), _relative(changes))
            for name, changes in groups.items()
        ]


def compare(registry: Registry, first: str, second: str) -> CheckpointComparison:
    """Compares two versions, or any two checkpoints that `find_checkpoint` finds.

    Raises:
        CheckpointError: One of them is not there or cannot be read.
    """
    from lasagna.checkpoint.weights import LayeredWeights  # torch

    records = [_record(registry, name) for name in (first, second)]
    folders = [
        record.checkpoint if record else find_checkpoint(name)
        for record, name in zip(records, (first, second), strict=True)
    ]
    labels = [load_labels(folder) for folder in folders]
    offsets = [_offsets(folder) for folder in folders]
    figures, classes, same_photos = _figures(records[0], records[1])
    with contextlib.ExitStack() as stack:
        weights, equal, only = _weights(*(LayeredWeights(checkpoint_layers(folder), stack) for folder in folders))
    ids = [record.id if record else checkpoint_version(f) for record, f in zip(records, folders, strict=True)]
    return CheckpointComparison(
        ids=(ids[0], ids[1]),
        labels_added=[label for label in labels[1] if label not in labels[0]],
        labels_removed=[label for label in labels[0] if label not in labels[1]],
        calibration={key: pair for key, pair in _pairs(*offsets).items() if pair[0] != pair[1]},
        figures=figures,
        classes=classes,
        same_photos=same_photos,
        weights=weights,
        equal_weights=equal,
        only_in=only,
    )


def _figures(first: Version | None, second: Version | None) -> tuple[dict[str, Pair], dict[str, dict[str, Pair]], bool]:
    """Overall and per class. Where the second was measured against the first, that gate's figures of both: they are of
    the same photos."""
    same_photos = first is not None and second is not None and second.parent == first.id
    metrics = [version.metrics if version else {} for version in (first, second)]
    before = measured(metrics[1], "champion") if same_photos else measured(metrics[0])
    after = measured(metrics[1])
    names = dict.fromkeys((*before[1], *after[1]))
    classes = {name: _pairs(before[1].get(name, {}), after[1].get(name, {})) for name in names}
    return _pairs(before[0], after[0]), classes, same_photos


def _pairs(first: Mapping[str, float], second: Mapping[str, float]) -> dict[str, Pair]:
    return {name: (first.get(name), second.get(name)) for name in dict.fromkeys((*first, *second))}


def _record(registry: Registry, name: str) -> Version | None:
    try:
        return registry.version(name)
    except RegistryError:
        return None


def _offsets(folder: Any) -> dict[str, float]:
    calibration = load_calibration(folder)
    named = {f"offset of {name}": value for name, value in calibration.class_offsets.items()}
    return {"temperature": calibration.temperature, "offset": calibration.offset, **named}


def _weights(first: "LayeredWeights", second: "LayeredWeights") -> tuple[list[WeightChange], int, list[str]]:
    keys = first.shapes(), second.shapes()
    only = sorted(set(keys[0]) ^ set(keys[1]))
    changes, equal = list[WeightChange](), 0
    for key in sorted(set(keys[0]) & set(keys[1])):
        if first.origin(key) == second.origin(key):
            equal += 1
            continue
        a, b = first.get(key), second.get(key)
        if a.shape != b.shape:
            only.append(key)
            continue
        distance = float((b - a).norm())
        if distance == 0:
            equal += 1
        else:
            changes.append(WeightChange(key, a.numel(), distance, float(a.norm())))
    return changes, equal, only


def _relative(changes: list[WeightChange]) -> float:
    norm = sum(change.norm**2 for change in changes) ** 0.5
    return sum(change.distance**2 for change in changes) ** 0.5 / norm if norm else float("inf")
