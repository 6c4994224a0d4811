"""What belongs to the question that a prediction answers, what does not, and what is said of a change."""

from dataclasses import dataclass, field
from typing import Any

import pytest

from lasagna.labels.configuration import parse_label_config
from lasagna.labels.parts import each_once
from lasagna.labels.question import ProjectQuestion, name_version
from lasagna.masks.segmentation import ClassQuery

IMAGE = '<Image name="image" value="$image"/>'


def brush(*labels: str, name: str = "b", to: str = "image", kind: str = "BrushLabels") -> str:
    """Labels are names, or attributes where they hold a "="."""
    tags = "".join(f"<Label {label}/>" if "=" in label else f'<Label value="{label}"/>' for label in labels)
    return f'<{kind} name="{name}" toName="{to}">{tags}</{kind}>'


@dataclass
class Side:
    """A configuration with its parameters and limits."""

    config: str
    params: dict[str, Any] = field(default_factory=dict)
    left_out: dict[str, Any] = field(default_factory=dict)

    @property
    def question(self) -> ProjectQuestion:
        images = parse_label_config(f"<View>{self.config}</View>").images
        return ProjectQuestion.of(images, self.params, self.left_out)


CLICKS = '<KeyPointLabels name="k" toName="image" smart="true"><Label value="sky"/></KeyPointLabels>'
FIRST = Side(IMAGE + brush("sky", "cat"))
OTHER = {
    "a label is added": (
        FIRST,
        Side(IMAGE + brush("sky", "cat", "tree")),
        "labels",
        "the label 'tree' was added",
    ),
    "a label is removed": (FIRST, Side(IMAGE + brush("sky")), "labels", "the label 'cat' was removed"),
    "a label is renamed, and nobody said so": (
        FIRST,
        Side(IMAGE + brush("heaven", "cat")),
        "labels",
        "the label 'sky' was removed; the label 'heaven' was added",
    ),
    "labels in another order": (
        FIRST,
        Side(IMAGE + brush("cat", "sky")),
        "labels",
        "the labels stand in another order",
    ),
    "an alias": (
        FIRST,
        Side(IMAGE + brush('value="sky" alias="clear sky"', "cat")),
        "labels",
        "the label 'sky' was read as 'sky' and is read as 'clear sky'",
    ),
    "another hint": (
        Side(IMAGE + brush('value="1" hint="sky"')),
        Side(IMAGE + brush('value="1" hint="cloud"')),
        "labels",
        "the label '1' was read as 'sky' and is read as 'cloud'",
    ),
    "predicted values": (
        FIRST,
        Side(IMAGE + brush("sky", 'value="cat" predicted_values="kitten,cat"')),
        "labels",
        "the label 'cat' was read as 'cat' and is read as 'kitten'",
    ),
    "the control has another name": (
        FIRST,
        Side(IMAGE + brush("sky", "cat", name="paint")),
        "controls",
        "the control 'b' (brush) became 'paint' (brush)",
    ),
    "the control draws otherwise": (
        FIRST,
        Side(IMAGE + brush("sky", "cat", kind="PolygonLabels")),
        "controls",
        "the control 'b' (brush) became 'b' (polygon)",
    ),
    "a second control": (
        FIRST,
        Side(IMAGE + brush("sky", "cat") + brush("sky", name="r", kind="RectangleLabels")),
        "controls",
        "the control 'b' (brush) became 'b' (brush) and 'r' (rectangle)",
    ),
    "a label moves to the other control": (
        Side(IMAGE + brush("sky", "cat") + brush("sky", name="r", kind="RectangleLabels")),
        Side(IMAGE + brush("sky", "cat") + brush("cat", name="r", kind="RectangleLabels")),
        "labels",
        "labels are written otherwise, or drawn in another control",
    ),
    "separate labels": (
        FIRST,
        Side(IMAGE + brush("sky", "cat", name="l", kind="Labels") + '<Brush name="b" toName="image"/>'),
        "controls",
        "the control 'b' (brush) became 'b' (brush with labels 'l')",
    ),
    "the image has another name": (
        FIRST,
        Side('<Image name="photo" value="$image"/>' + brush("sky", "cat", to="photo")),
        "controls",
        "the image 'image' was removed; the image 'photo' was added",
    ),
    "a second image": (
        FIRST,
        Side(IMAGE + brush("sky", "cat") + '<Image name="two" value="$two"/>' + brush("sky", name="c", to="two")),
        "controls",
        "the image 'two' was added",
    ),
    "choices of absent labels": (
        FIRST,
        Side(
            IMAGE
            + brush("sky", "cat")
            + '<Choices name="absent" toName="image" choice="multiple"><Choice value="sky"/></Choices>'
        ),
        "controls",
        "the choices of absent labels were changed",
    ),
    "a threshold": (
        FIRST,
        Side(FIRST.config, {"threshold": 0.9}),
        "parameters",
        "threshold was not set and is 0.9",
    ),
    "a threshold of one label": (
        FIRST,
        Side(IMAGE + brush('value="sky" threshold="0.3"', "cat")),
        "parameters",
        "the threshold of 'sky' was not set and is 0.3",
    ),
    "thresholds of labels among the parameters": (
        FIRST,
        Side(FIRST.config, {"thresholds": {"sky": 0.3}}),
        "parameters",
        "thresholds was not set and is {'sky': 0.3}",
    ),
    "another threshold": (
        Side(FIRST.config, {"threshold": 0.9}),
        Side(FIRST.config, {"threshold": 0.5}),
        "parameters",
        "threshold was 0.9 and is 0.5",
    ),
    "a limit": (
        FIRST,
        Side(FIRST.config, {}, {"min_area": 20, "max_regions": 0}),
        "parameters",
        "min_area was not set and is 20",
    ),
}
SAME = {
    "colours, hotkeys, maximum": Side(
        IMAGE + brush('value="sky" background="red" hotkey="s"', 'value="cat" maxUsages="2"')
    ),
    "a layout, and questions to people": Side(
        f'<Header value="x"/><View style="x">{IMAGE}</View>{brush("sky", "cat")}'
        '<Choices name="q" toName="image"><Choice value="blurry"/></Choices>'
    ),
    "a smart tool": Side(IMAGE + brush("sky", "cat") + CLICKS),
    "a parameter at its default": Side(FIRST.config, {"exclusive": False, "threshold": None}),
    "a limit that is none": Side(FIRST.config, {}, {"min_area": 0}),
    "another field of the task": Side('<Image name="image" value="$photo"/>' + brush("sky", "cat")),
}


@pytest.mark.parametrize("name", OTHER)
def test_another_question(name: str) -> None:
    before, now, kind, words = OTHER[name]
    assert before.question.digest != now.question.digest
    found = now.question.since(before.question)
    assert (found[0].kind, "; ".join(one.words for one in found)) == (kind, words)
    assert name_version("nano-1+h2", now.question) == f"nano-1+h2~{now.question.digest}"


@pytest.mark.parametrize("name", SAME)
def test_the_same_question(name: str) -> None:
    assert SAME[name].question.digest == FIRST.question.digest
    assert SAME[name].question.since(FIRST.question) == []


def test_a_hint_that_an_alias_hides() -> None:
    sides = [Side(IMAGE + brush(f'value="1" alias="sky" hint="{hint}"')) for hint in ("above", "blue")]
    assert sides[0].question == sides[1].question


def test_a_label_that_is_said_to_be_renamed() -> None:
    before, now = FIRST.question, Side(IMAGE + brush("heaven", "cat")).question
    [found] = now.since(before, {"sky": "heaven"})
    assert found.words == "the label 'sky' is called 'heaven' now"


def test_text() -> None:
    """What is kept of a question says the same of it."""
    for _, now, _, _ in OTHER.values():
        again = ProjectQuestion.from_text(now.question.text)
        assert again.digest == now.question.digest
        assert now.question.since(again) == []


def test_labels_of_the_task() -> None:
    """The question says where they come from; which they are belongs to the task."""
    of_task = '<BrushLabels name="b" toName="image" value="${}"/>'
    one, other = (Side(IMAGE + of_task.format(name)).question for name in ("labels", "classes"))
    [found] = other.since(one)
    assert found.words == "the control 'b' (brush of $labels) became 'b' (brush of $classes)"


def test_a_name_that_comes_twice_has_the_first_hint_and_the_first_threshold() -> None:
    given = [
        ClassQuery("sky"),
        ClassQuery("road", "a street", 0.7),
        ClassQuery("sky", "the sky", None),
        ClassQuery("sky", "clouds", 0.3),
        ClassQuery("road", None, 0.2),
    ]
    assert each_once(given) == (ClassQuery("sky", "the sky", 0.3), ClassQuery("road", "a street", 0.7))
