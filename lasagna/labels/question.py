"""What a prediction answers: the question, and its name.

A prediction belongs to the question that it was made under: the labels, what the model reads for them, the controls
that they are drawn in, the parameters, and what is left out of answers. The digest of all that is a part of the version
that the prediction carries ("nano-ec805b63+h12~3f2a9c"), so that Label Studio itself, a copy of the project and every
command see which predictions answer the question of now. What a task adds (its images, labels of its own) is kept
beside it (`backend.queue.store`).

What always holds: whatever changes an answer, or where its regions are drawn, changes the digest; whatever does not (a
colour, a hotkey, a hint that an alias hides, a parameter at its default) leaves it as it is.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple

from lasagna.labels.parts import Control, ImageConfig

SEPARATOR = "~"
_DIGITS = 6


class Difference(NamedTuple):
    """Why an answer to one question is none to another; `words` say what has happened since."""

    kind: Literal["labels", "controls", "parameters"]
    words: str


@dataclass(frozen=True)
class ProjectQuestion:
    """What is asked of every image of a project.

    Attributes:
        images: By the image's name: `image_question`.
        params: Of the model, without those at their default.
        left_out: What is left out of answers (the limits of `lasagna.formats.hygiene.Hygiene` that are set).
    """

    images: Mapping[str, Any]
    params: Mapping[str, Any]
    left_out: Mapping[str, Any]

    @classmethod
    def of(
        cls, images: Iterable[ImageConfig], params: Mapping[str, Any] | None, left_out: Mapping[str, Any]
    ) -> "ProjectQuestion":
        """The question of a labelling configuration (`LabelConfig.images`), or of one image."""
        asked = {image.template_name or image.image_name: image_question(image) for image in images}
        given = {name: value for name, value in (params or {}).items() if value is not None and value is not False}
        return cls(asked, given, {name: limit for name, limit in left_out.items() if limit})

    @property
    def text(self) -> str:
        """Canonical JSON; `from_text` is its inverse."""
        return json.dumps(asdict(self), sort_keys=True)

    @property
    def digest(self) -> str:
        """Six hexadecimal digits."""
        return hashlib.sha256(self.text.encode("utf-8", "surrogatepass")).hexdigest()[:_DIGITS]

    @classmethod
    def from_text(cls, text: str) -> "ProjectQuestion":
        """Raises ValueError or TypeError for what is no question."""
        return cls(**json.loads(text))

    def since(self, before: "ProjectQuestion", renamed: Mapping[str, str] | None = None) -> list[Difference]:
        """What has changed since another question, in words; [] where nothing has.

        Args:
            before: The older question.
            renamed: Labels that were renamed: old name -> new name.
        """
        found: list[Difference] = []
        for name in (*before.images, *(name for name in self.images if name not in before.images)):
            if name not in self.images or name not in before.images:
                change = "added" if name in self.images else "removed"
                found.append(Difference("controls", f"the image {name!r} was {change}"))
            else:
                found += _since(before.images[name], self.images[name], renamed or {})
        for was, now in ((before.params, self.params), (before.left_out, self.left_out)):
            for name in sorted({*was, *now}):
                if was.get(name) != now.get(name):
                    said = [str(value) if value is not None else "not set" for value in (was.get(name), now.get(name))]
                    found.append(Difference("parameters", f"{name} was {said[0]} and is {said[1]}"))
        return list(dict.fromkeys(found))


def image_question(image: ImageConfig) -> dict[str, Any]:
    """What is asked of an image and how it is drawn, JSON-ready, as far as it changes a prediction."""
    return {
        "name": image.image_name,
        "page": image.item_index,
        "asked": [[query.name, query.reads_as, query.threshold] for query in image.classes],
        **({"objects": objects} if (objects := [query.name for query in image.classes if query.objects]) else {}),
        "drawn": [_control(control) for control in image.drawn],
        "absent": [image.absent_choices, [list(pair) for pair in image.absent_values]],
    }


def name_version(version: str, question: ProjectQuestion) -> str:
    """What predictions carry: a model's version, with the question that they answer."""
    return f"{version}{SEPARATOR}{question.digest}"


def _control(control: Control) -> dict[str, Any]:
    return {
        "name": control.name,
        "kind": control.kind,
        "to": control.to_name,
        "labeller": None if control.labelled_by is None else asdict(control.labelled_by),
        "of_task": control.variable,
        "labels": [[label.value, label.written, list(label.path)] for label in control.labels],
    }


def _since(before: Mapping[str, Any], now: Mapping[str, Any], renamed: Mapping[str, str]) -> list[Difference]:
    was, asked = ({name: text for name, text, _ in one["asked"]} for one in (before, now))
    found, moved = [], set[str]()
    for name in was:
        target = renamed.get(name)
        if name not in asked and target in asked and target not in was:
            found.append(Difference("labels", f"the label {name!r} is called {target!r} now"))
            moved.add(str(target))
        elif name not in asked:
            found.append(Difference("labels", f"the label {name!r} was removed"))
    found += [Difference("labels", f"the label {n!r} was added") for n in asked if n not in was and n not in moved]
    for name in was:
        if name in asked and was[name] != asked[name]:
            words = f"the label {name!r} was read as {was[name] or name!r} and is read as {asked[name] or name!r}"
            found.append(Difference("labels", words))
    limits = [{name: threshold for name, _, threshold in one["asked"]} for one in (before, now)]
    for name in was:
        if name in asked and limits[0][name] != limits[1][name]:
            said = ["not set" if one[name] is None else one[name] for one in limits]
            found.append(Difference("parameters", f"the threshold of {name!r} was {said[0]} and is {said[1]}"))
    told = [set(one.get("objects", ())) for one in (before, now)]
    for name in was:
        if name in asked and (name in told[0]) != (name in told[1]):
            change = "is one region for each object now" if name in told[1] else "is no more a region for each object"
            found.append(Difference("controls", f"the label {name!r} {change}"))
    if not found and list(was) != list(asked):
        found.append(Difference("labels", "the labels stand in another order"))
    controls = [{_drawn_as(control): control for control in one["drawn"]} for one in (before, now)]
    if list(controls[0]) != list(controls[1]):
        words = f"{_listed(controls[0])} became {_listed(controls[1])}"
        found.append(Difference("controls", f"the control {words}"))
    elif not found and before["drawn"] != now["drawn"]:
        found.append(Difference("labels", "labels are written otherwise, or drawn in another control"))
    if before["absent"] != now["absent"]:
        found.append(Difference("controls", "the choices of absent labels were changed"))
    return found


def _drawn_as(control: Mapping[str, Any]) -> str:
    of_task = f" of {control['of_task']}" if control["of_task"] else ""
    labeller = f" with {control['labeller']['kind']} {control['labeller']['name']!r}" if control["labeller"] else ""
    return f"{control['name']!r} ({control['kind']}{labeller}{of_task})"


def _listed(names: Iterable[str]) -> str:
    return " and ".join(names) or "of none"
