"""The gate's report: `report.html`, one file that needs no other, and `report.json`, the same in figures.

What always holds: the page is made of the verdict and the samples alone, so the same verdict gives the same page; names
of classes and photos are escaped.
"""

import io
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lasagna.contract.model import ClassListAnswerer
from lasagna.files import write_atomically
from lasagna.masks.segmentation import Segmentation
from lasagna.pages import page_environment
from training.data.records import Record
from training.data.spread import spread
from training.evaluation.gate import Verdict
from training.evaluation.metrics import reliability
from training.evaluation.paired import ClassChange
from training.evaluation.plots import change_plot, reliability_plot
from training.evaluation.samples import sample_for_page, truth_to_segmentation
from training.evaluation.scores import ImageScore
from training.evaluation.scoring import read_photo

if TYPE_CHECKING:
    from PIL import Image

FLIPS_SHOWN, PLOTTED = 200, 40
"""Answers that changed sides on the page, and classes in its plot; all of them are in the JSON and in the table."""


@dataclass(frozen=True)
class Sample:
    """A held-out photo with three answers of the same classes: the annotation, the champion's, the candidate's.

    `change` is what its mean IoU gained from the one to the other model.
    """

    image_id: str
    image: "Image.Image"
    truth: Segmentation
    champion: Segmentation
    candidate: Segmentation
    change: float


def choose_samples(champion: Sequence[ImageScore], candidate: Sequence[ImageScore], count: int = 6) -> dict[str, float]:
    """Photos to show, from the one that lost most to the one that gained most, evenly spread between: id -> change.

    The change is that of the photo's mean IoU over the classes of its annotation.
    """
    after = {score.image_id: _photo_iou(score) for score in candidate}
    changes = {
        score.image_id: new - old
        for score in champion
        if (old := _photo_iou(score)) is not None and (new := after.get(score.image_id)) is not None
    }
    ranked = sorted(changes, key=lambda image_id: (changes[image_id], image_id))
    count = min(count, len(ranked))
    chosen = [ranked[i * (len(ranked) - 1) // (count - 1)] for i in range(count)] if count > 1 else ranked[-count:]
    return {image_id: changes[image_id] for image_id in chosen}


def _photo_iou(score: ImageScore) -> float | None:
    values = [one.intersection / one.union for one in score.classes if one.truth]
    return float(np.mean(values)) if values else None


def make_samples(
    records: Iterable[Record], chosen: Mapping[str, float], champion: ClassListAnswerer, candidate: ClassListAnswerer
) -> list[Sample]:
    """Asks both models of the chosen photos, in that order; the answers are those that were scored."""
    by_id = {record.image_id: record for record in records if record.image_id in chosen}
    samples = []
    for image_id, change in chosen.items():
        record = by_id[image_id]
        image, truth = read_photo(record)
        both = (model.segment_batch([image], [record.classes], guess_unknown=True) for model in (champion, candidate))
        (before,), (after,) = both
        annotated = truth_to_segmentation(truth, record.classes)
        samples.append(Sample(image_id, image, annotated, before, after, change))
    return samples


def write_report(
    verdict: Verdict,
    samples: Sequence[Sample],
    folder: Path,
    *,
    versions: tuple[str, str] = ("champion", "candidate"),
    about: Mapping[str, str] | None = None,
) -> tuple[Path, Path]:
    """Writes `report.html` and `report.json` into the folder, each whole or not at all, and returns their paths.

    Args:
        verdict: What is reported.
        samples: Photos to show (`choose_samples`, `make_samples`).
        folder: Is made where it is missing.
        versions: Model versions of champion and candidate.
        about: More facts for the top of the page, such as the project, the snapshot and the recipe, name -> value.
    """
    folder.mkdir(parents=True, exist_ok=True)
    page, figures = folder / "report.html", folder / "report.json"
    facts = {"champion": versions[0], "candidate": versions[1], "about": dict(about or {})}
    values = {**facts, **verdict.as_dict()}
    values["better"]["words"] = verdict.which_better.in_words(versions)
    write_atomically(figures, json.dumps(values, indent=2, ensure_ascii=False) + "\n")
    write_atomically(page, render_report(verdict, samples, versions=versions, about=about))
    return page, figures


def render_report(
    verdict: Verdict,
    samples: Sequence[Sample],
    *,
    versions: tuple[str, str] = ("champion", "candidate"),
    about: Mapping[str, str] | None = None,
) -> str:
    """The page; arguments as of `write_report`."""
    classes = sorted(verdict.classes, key=_by_loss)
    shown = [one for one in classes if one.iou.difference is not None]
    return (
        page_environment("training")
        .get_template("gate.html")
        .render(
            verdict=verdict,
            versions=versions,
            about=dict(about or {}),
            better=verdict.which_better.in_words(versions),
            classes=classes,
            plot=_class_plot([shown[i] for i in spread(len(shown), PLOTTED)]) if shown else "",
            reliability=_reliability(verdict) if len(verdict.answers[0]) else "",
            flips=sorted(verdict.flips, key=lambda flip: (flip.is_right, flip.name, flip.image_id))[:FLIPS_SHOWN],
            samples=[_shown(sample) for sample in samples],
        )
    )


def _by_loss(one: ClassChange) -> tuple[bool, float, str]:
    return one.iou.difference is None, one.iou.difference or 0.0, one.name


def _class_plot(classes: Sequence[ClassChange]) -> str:
    names = [f"{_short(one.name)} ({one.photos})" for one in classes]
    before, after = [one.iou.champion for one in classes], [one.iou.candidate for one in classes]
    return _inline(
        lambda file: change_plot(
            file, names, before, after, ("champion", "candidate"), "IoU", "IoU by class (photos with it)"
        )
    )


def _reliability(verdict: Verdict) -> str:
    truth, *probabilities = verdict.answers
    found = {
        name: reliability(truth, probability)
        for name, probability in zip(("champion", "candidate"), probabilities, strict=True)
    }
    return _inline(lambda file: reliability_plot(file, found, "Presence: probability and frequency"))


def _inline(draw: Callable[[io.StringIO], None]) -> str:
    """The SVG element of a plot, without the head of an XML file."""
    file = io.StringIO()
    draw(file)
    text = file.getvalue()
    return re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)


def _short(name: str) -> str:
    # $ would begin a formula in matplotlib
    return (name if len(name) <= 28 else name[:27] + "…").replace("$", r"\$")


def _shown(sample: Sample) -> dict[str, Any]:
    columns = [("annotation", sample.truth), ("champion", sample.champion), ("candidate", sample.candidate)]
    tone = "good" if sample.change > 0 else "bad" if sample.change < 0 else "soft"
    return sample_for_page(sample.image_id, sample.image, columns, f"{sample.change:+.3f} mean IoU", tone)
