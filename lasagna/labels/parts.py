"""What a labelling configuration consists of: labels, the controls that draw them, images.

Pure data; `lasagna.labels.elements` reads it from XML, `lasagna.labels.configuration` is what users call.
"""

import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from lasagna.labels.kinds import kind_of
from lasagna.masks.segmentation import ClassQuery

Kind = Literal["brush", "bitmask", "magicwand", "polygon", "rectangle", "ellipse", "keypoint"]


def each_once(queries: Iterable[ClassQuery]) -> tuple[ClassQuery, ...]:
    """Each name once, by first appearance; its hint, its threshold and whether its objects are told apart are the first
    that are given."""
    found: dict[str, ClassQuery] = {}
    for query in queries:
        known = found.get(query.name, query)
        found[query.name] = replace(
            known,
            reads_as=query.reads_as if known.reads_as is None else known.reads_as,
            threshold=query.threshold if known.threshold is None else known.threshold,
            objects=query.objects if known.objects is None else known.objects,
        )
    return tuple(found.values())


@dataclass(frozen=True)
class Label:
    """A `<Label>` of a control, or a leaf of a `<Taxonomy>`. `alias`, `hint`, `predicted_values`, `threshold` and
    `objects` are its attributes.

    Attributes:
        value: Its name; of a leaf of a taxonomy with what it stands below: "animal / cat".
        path: What Label Studio writes for a leaf of a taxonomy; () of a label.
        threshold: Probability from which it is present; None: as for the others.
        objects: Whether each object is a region of its own; None: as the kind of name says (`tells_apart`).
    """

    value: str
    alias: str | None = None
    hint: str | None = None
    predicted_values: tuple[str, ...] = ()
    path: tuple[str, ...] = ()
    threshold: float | None = None
    objects: bool | None = None

    @property
    def written(self) -> str:
        """What Label Studio writes into a region for this label, and accepts in one: the alias if there is one."""
        return self.alias or self.value

    @property
    def kind(self) -> Literal["thing", "stuff"] | None:
        """By its name, else by what the model reads instead; None: not known."""
        names = (self.path[-1] if self.path else self.value, self.reads_as)
        return next((kind for name in names if name and (kind := kind_of(name)) is not None), None)

    @property
    def reads_as(self) -> str | None:
        """What the model reads: the alias, else the hint, else the first predicted value, else None (the label itself).

        In this order because an alias is another name for the class, a hint describes it to people, and predicted
        values name it in the vocabulary of some model. Of a leaf of a taxonomy it is the leaf's own name at least.
        """
        leaf = self.path[-1] if len(self.path) > 1 else None
        return self.alias or self.hint or next(iter(self.predicted_values), None) or leaf


@dataclass(frozen=True)
class Labeller:
    """The tag that names the regions of a control without labels of its own.

    Attributes:
        name: Of the tag: `from_name` of the second result of a region.
        kind: "labels" (`Labels`), or "taxonomy" or "choices" with perRegion="true".
    """

    name: str
    kind: Literal["labels", "taxonomy", "choices"]

    def write(self, label: Label) -> dict[str, Any]:
        """The part of a result's value that holds a label."""
        return {self.kind: [list(label.path) if self.kind == "taxonomy" else label.written]}


@dataclass(frozen=True)
class Control:
    """A control tag that draws on an image.

    Attributes:
        name: The tag's name: `from_name` of its regions.
        kind: What it draws.
        to_name: Name of the image tag.
        labels: Its labels, each value once.
        smart: The tag offers a smart tool: a click or box of it is sent to the model.
        labelled_by: The tag that holds its labels; None where it holds them itself (`BrushLabels`).
        variable: What it takes labels of the task from (`$labels`), or None.
    """

    name: str
    kind: Kind
    to_name: str
    labels: tuple[Label, ...]
    smart: bool = False
    labelled_by: Labeller | None = None
    variable: str | None = None

    @property
    def is_drawn(self) -> bool:
        """Whether answers can be drawn in it; a key point only takes clicks."""
        return self.kind != "keypoint"

    @property
    def is_dynamic(self) -> bool:
        return self.variable is not None

    @property
    def result_type(self) -> str:
        """`type` of its results."""
        return self.kind if self.labelled_by else f"{self.kind}labels"

    def label(self, value: str) -> Label | None:
        """The label with this value, or None."""
        return next((label for label in self.labels if label.value == value), None)

    def label_written(self, written: Any) -> Label | None:
        """The label that a region's text stands for (its alias or its value; of a taxonomy its path), or None."""
        if isinstance(written, list | tuple):
            return next((label for label in self.labels if label.path and label.path == tuple(written)), None)
        return next((label for label in self.labels if written in (label.written, label.value)), None)


@dataclass(frozen=True)
class ImageConfig:
    """What a labelling configuration says of one image.

    Attributes:
        image_name: Name of the image tag: `to_name` of every region.
        value: Where a task has the image: `$image`, `$photo.url`, `https://host/$path`; "" with `value_list`.
        value_list: Where a task has a list of images, shown as pages; None: it is one image.
        controls: Every control that draws on the image, in order.
        absent_choices: Name of a `Choices` tag called "absent", which is to list the absent classes, or None.
        absent_values: Class name and what Label Studio writes for it, for each choice of that tag.
        question_area: Name of the first `TextArea` of that image with smart="true": what is written in it is asked.
        answer_area: Name of the `TextArea` called "answer", which takes answers in words.
        template_name: `image_name` as it stands in the configuration: "page_{{idx}}" of "page_0".
        item_index: The number of the page, from 0, of an image with `value_list`.
        is_page: It is one of several that are looked at one at a time.
    """

    image_name: str
    value: str
    value_list: str | None
    controls: tuple[Control, ...]
    absent_choices: str | None = None
    absent_values: tuple[tuple[str, str], ...] = ()
    question_area: str | None = None
    answer_area: str | None = None
    template_name: str = ""
    item_index: int | None = None
    is_page: bool = False

    @property
    def name(self) -> str:
        """For messages: the image, and the page from 1 on."""
        return self.image_name if self.item_index is None else f"{self.image_name}, page {self.item_index + 1}"

    @property
    def drawn(self) -> tuple[Control, ...]:
        """The controls that predictions are drawn in: not key points; not smart tools whose labels another control of
        the same kind has, which only take boxes (else every rectangle would be drawn twice); not a magic wand beside a
        brush with the same labels."""
        return tuple(c for c in self.controls if c.is_drawn and not self._is_prompt(c) and not self._is_spare(c))

    @property
    def classes(self) -> tuple[ClassQuery, ...]:
        """What to ask: the labels that can be drawn, each once, by first appearance."""
        told = self._told_apart
        return each_once(
            ClassQuery(label.value, label.reads_as, label.threshold, told.get(label.value))
            for control in self.drawn
            for label in control.labels
        )

    @functools.cached_property
    def _told_apart(self) -> dict[str, bool]:
        """Labels with whether each of their objects is a region of its own: as they say (the first that says anything
        counts); else it is for things, and for names that are neither things nor stuff where only rectangles and
        ellipses draw them, for such a shape is of one object. Of others nothing is said."""
        drawn: dict[str, list[tuple[Control, Label]]] = {}
        for control in self.drawn:
            for label in control.labels:
                drawn.setdefault(label.value, []).append((control, label))
        found = {}
        for name, places in drawn.items():
            said = next((label.objects for _, label in places if label.objects is not None), None)
            kind = next((label.kind for _, label in places if label.kind is not None), None)
            is_boxed = all(control.kind in ("rectangle", "ellipse") for control, _ in places)
            if said is None and (kind == "thing" or (kind is None and is_boxed)):
                said = True
            if said is not None:
                found[name] = said
        return found

    def controls_for(self, class_name: str) -> list[tuple[Control, Label]]:
        """The controls in which the class is drawn, with its label there."""
        found = [(control, control.label(class_name)) for control in self.drawn]
        return [(control, label) for control, label in found if label is not None]

    def _is_prompt(self, control: Control) -> bool:
        others = {label.value for c in self.controls if c.kind == control.kind and not c.smart for label in c.labels}
        return control.smart and bool(control.labels) and all(label.value in others for label in control.labels)

    def _is_spare(self, control: Control) -> bool:
        masks = {label.value for c in self.controls if c.kind in ("brush", "bitmask") for label in c.labels}
        return control.kind == "magicwand" and all(label.value in masks for label in control.labels)


def with_thresholds(config: ImageConfig, thresholds: Mapping[str, float]) -> ImageConfig:
    """The image with thresholds of labels in place of what it says itself; names that it has not are left."""
    if not thresholds:
        return config
    controls = []
    for control in config.controls:
        labels = (replace(label, threshold=thresholds.get(label.value, label.threshold)) for label in control.labels)
        controls.append(replace(control, labels=tuple(labels)))
    return replace(config, controls=tuple(controls))


@dataclass(frozen=True)
class NotServed:
    """A part of a configuration that no prediction is made for, or that people cannot work with.

    Attributes:
        tag: As a person would write it: `<VectorLabels name="v">`.
        why: In words, with what to do.
        is_predicted: Predictions are made for it.
    """

    tag: str
    why: str
    is_predicted: bool = False

    def __str__(self) -> str:
        return f"{self.tag} is {'served in part' if self.is_predicted else 'not served'}: {self.why}"
