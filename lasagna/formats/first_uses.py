"""When labels were first used in annotations: it tells of label sets that nobody noted (`lasagna.labels.history`)."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from lasagna.formats.annotations import changed_at
from lasagna.formats.regions import Reading
from lasagna.labels.history import LabelHistory
from lasagna.labels.parts import ImageConfig, Label


class FirstUses:
    """When each label was first used in an annotation, by image.

    Args:
        history: The label sets that were noted.
        known: Uses that were found before (`as_list`).
    """

    def __init__(self, history: LabelHistory, known: Iterable[Sequence[str]] = ()) -> None:
        self.history = history
        self._times = {(image, history.name_now(label)): datetime.fromisoformat(at) for image, label, at in known}

    def as_list(self) -> list[list[str]]:
        """JSON-ready."""
        return [[image, label, at.isoformat()] for (image, label), at in sorted(self._times.items())]

    def add(self, annotation: Mapping[str, Any], reading: Reading, images: Sequence[ImageConfig]) -> None:
        """Takes the labels of an annotation; one without a time tells nothing."""
        at = changed_at(annotation)
        if at.year == 1:
            return
        for image, regions in zip(images, reading.of_image, strict=True):
            for label in (name for region in regions for name in (*region.unknown_labels, *_values(region.labels))):
                place = (image.template_name, self.history.name_now(label))
                self._times[place] = min(at, self._times.get(place, at))

    def stood(self, image: ImageConfig, annotation: Mapping[str, Any]) -> list[str]:
        """The labels of an image that could be chosen when an annotation was changed last. Labels that stand in the
        task itself could."""
        at, name = changed_at(annotation), image.template_name
        labels = dict.fromkeys(label.value for control in image.controls for label in control.labels)
        own = {label.value for control in image.controls if control.is_dynamic for label in control.labels}
        return [
            label
            for label in labels
            if label in own or self.history.stood(name, label, at, self._times.get((name, label)))
        ]


def _values(labels: Iterable[Label]) -> list[str]:
    return [label.value for label in labels]
