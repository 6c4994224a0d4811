"""The gate's report: one page that needs nothing else, and the same figures as JSON."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lasagna import ClassAnswer, Segmentation
from training.data.records import Record, stack_masks
from training.evaluation.gate import Limits, Verdict, judge
from training.evaluation.gate_report import choose_samples, make_samples, write_report
from training.evaluation.samples import truth_to_segmentation
from training.evaluation.scores import ImageScore, score_images
from training.evaluation.scoring import ClassScore

SIZE = (24, 32)
NAMES = ("sky", "<script>alert(1)</script> & $cost", "car")


def half(side: str) -> np.ndarray:
    mask = np.zeros(SIZE, bool)
    {"top": mask[:12], "left": mask[:, :16], "right": mask[:, 16:]}[side][:] = True
    return mask


class Painter:
    def __init__(self, *masks: np.ndarray | None) -> None:
        self._answers = tuple(
            ClassAnswer(name, 0.1 if mask is None else 0.9, mask) for name, mask in zip(NAMES, masks, strict=True)
        )

    def segment_batch(self, images: Any, class_lists: Any, /, **_: Any) -> list[Segmentation]:
        return [Segmentation(SIZE, self._answers) for _ in images]


CHAMPION, CANDIDATE = Painter(half("top"), half("right"), half("top")), Painter(half("top"), half("left"), None)


@pytest.fixture
def records(tmp_path: Path) -> list[Record]:
    labels = stack_masks(SIZE, [(0, half("top")), (1, half("left"))])
    Image.new("RGB", SIZE[::-1], (90, 120, 60)).save(tmp_path / "photo.png")
    return [Record("test", f"photo & {i}", tmp_path / "photo.png", NAMES, labels=lambda: labels) for i in range(5)]


def verdict_of(records: list[Record], champion: Painter, candidate: Painter) -> tuple[Verdict, list[Any]]:
    before, after = score_images(champion, records), score_images(candidate, records)
    samples = make_samples(records, choose_samples(before, after, 2), champion, candidate)
    return judge(before, after, limits=Limits(resamples=100)), samples


class Page(HTMLParser):
    """Tags, and whatever a browser would fetch."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.fetched: list[str] = re.findall(r"url\((?!#|data:)[^)]*\)", text)
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        names = ("src", "href", "xlink:href")
        self.fetched += [v for k, v in attrs if k in names and v and not v.startswith(("#", "data:"))]


def test_the_page_is_one_file_and_says_why(records: list[Record], tmp_path: Path) -> None:
    verdict, samples = verdict_of(records, CHAMPION, CANDIDATE)
    assert verdict.passed
    page, figures = write_report(
        verdict, samples, tmp_path / "report", versions=("nano-1", "nano-2"), about={"project": "12 <b>"}
    )
    text = page.read_text(encoding="utf-8")
    parsed = Page(text)
    assert parsed.fetched == []
    assert "script" not in parsed.tags
    assert "12 &lt;b&gt;" in text
    assert ">Passed</span>nano-2" in text
    for reason in verdict.reasons:
        assert reason.text.replace("'", "&#39;") in text
    assert text.count('<article class="sample"') == 2
    assert parsed.tags.count("svg") == 2 * 3 + 2  # three columns a photo, two plots
    assert text.count("right now</td>") == 5  # no photo has a car, and the champion said so in all
    stored = json.loads(figures.read_text())
    assert (stored["champion"], stored["candidate"], stored["passed"]) == ("nano-1", "nano-2", True)
    assert stored["summary"] == verdict.in_words()
    assert len(stored["flips"]) == 5


def test_a_candidate_that_fails_is_reported_as_such(records: list[Record], tmp_path: Path) -> None:
    verdict, samples = verdict_of(records, CANDIDATE, CHAMPION)
    page, figures = write_report(verdict, samples, tmp_path)
    text = page.read_text(encoding="utf-8")
    assert "Not promoted" in text
    assert "✗ fail" in text
    assert not json.loads(figures.read_text())["passed"]


def test_nothing_changed_and_nothing_to_show(records: list[Record], tmp_path: Path) -> None:
    scores = score_images(CHAMPION, records)
    page, _ = write_report(judge(scores, scores, limits=Limits(resamples=10)), [], tmp_path)
    text = page.read_text(encoding="utf-8")
    assert "both models say the same classes" in text
    assert "<article" not in text


def photo(number: int, intersection: int) -> ImageScore:
    return ImageScore(str(number), (ClassScore("cat", intersection, 100, 100, True, True, 0.9),))


def test_samples_run_from_the_largest_loss_to_the_largest_gain() -> None:
    before = [photo(i, 50) for i in range(9)]
    after = [photo(i, 10 + 10 * i) for i in range(9)]
    assert list(choose_samples(before, after, 3)) == ["0", "4", "8"]
    assert choose_samples(before, after, 2) == {"0": pytest.approx(-0.4), "8": pytest.approx(0.4)}
    assert list(choose_samples(before, after, 1)) == ["8"]
    assert len(choose_samples(before, after, 50)) == 9


def test_an_annotation_as_answers() -> None:
    labels = stack_masks(SIZE, [(0, half("top")), (1, half("left"))])
    found = truth_to_segmentation(labels, NAMES)
    assert [answer.is_present for answer in found.classes] == [True, True, False]
    assert (found.classes[1].mask == half("left")).all()
