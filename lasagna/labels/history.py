"""When which labels stood in a labelling configuration, so that an annotation is read under the label set of its time.

A label that nobody could choose when a photo was annotated is undecided there, not absent. Two things tell that it
stood: the label sets that were seen, each with the time from which on it holds; and, before the first of them, the
first annotation that uses the label, since it still stands at the first that was seen. What neither tells is undecided.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from lasagna.labels.parts import ImageConfig

LabelSet = Mapping[str, Sequence[str]]
"""Template name of each image -> its labels."""


def label_set(images: Iterable[ImageConfig]) -> dict[str, list[str]]:
    """The labels that people can choose, by image. Those that stand in tasks are not known here."""
    return {
        image.template_name: sorted({label.value for control in image.controls for label in control.labels})
        for image in images
    }


@dataclass(frozen=True)
class Seen:
    """A label set, and from when on it was seen."""

    at: datetime
    labels: LabelSet


@dataclass(frozen=True)
class LabelHistory:
    """The label sets of a project, oldest first, and labels that were renamed: old name -> new name."""

    seen: tuple[Seen, ...] = ()
    renamed: Mapping[str, str] = field(default_factory=dict)

    def with_set(self, labels: LabelSet, at: datetime) -> "LabelHistory":
        """With a set that was seen now; itself where it is the newest already."""
        if self.seen and self.seen[-1].labels == labels:
            return self
        return LabelHistory((*self.seen, Seen(at, labels)), self.renamed)

    def with_rename(self, old: str, new: str) -> "LabelHistory":
        """With one more renamed label. Renaming back ends the older entry; a chain leads to the newest name."""
        chained = {name: new if target == old else target for name, target in self.renamed.items()}
        return LabelHistory(self.seen, {name: to for name, to in {**chained, old: new}.items() if name != to})

    def without_rename(self, old: str) -> "LabelHistory":
        """Without the entry of a renamed label."""
        return LabelHistory(self.seen, {name: to for name, to in self.renamed.items() if name != old})

    def name_now(self, label: str) -> str:
        return self.renamed.get(label, label)

    def stood(self, image: str, label: str, at: datetime, first_used: datetime | None = None) -> bool:
        """Whether a label could be chosen at a time.

        Args:
            image: Template name of the image.
            label: Its name now.
            at: When the annotation was changed last.
            first_used: When the first annotation that uses it was changed last; None where none does.
        """
        names = {label, *(old for old, new in self.renamed.items() if new == label)}
        before = [one for one in self.seen if one.at <= at]
        if before:
            return bool(names & set(before[-1].labels.get(image, ())))
        if self.seen and not names & set(self.seen[0].labels.get(image, ())):
            return False
        return first_used is not None and first_used <= at

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready; `from_dict` is its inverse."""
        return {
            "seen": [{"at": one.at.isoformat(), "labels": dict(one.labels)} for one in self.seen],
            "renamed": dict(self.renamed),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "LabelHistory":
        """Raises KeyError, TypeError or ValueError for what is no history."""
        seen = [Seen(_time(one["at"]), {str(i): list(v) for i, v in one["labels"].items()}) for one in values["seen"]]
        return cls(tuple(sorted(seen, key=lambda one: one.at)), dict(values.get("renamed") or {}))


def _time(text: str) -> datetime:
    time = datetime.fromisoformat(text)
    return time if time.tzinfo else time.replace(tzinfo=UTC)
