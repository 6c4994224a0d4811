"""The page of best, middle and worst photos."""

import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from training.commands.evaluate import evaluate
from training.evaluation.pictures import choose_by_rank, photo_iou
from training.evaluation.scoring import ClassScore, PhotoScore


def score(*pairs: tuple[int, int]) -> PhotoScore:
    return PhotoScore(tuple(ClassScore("x", a, b, b, True, True, 0.9) for a, b in pairs), 100, 50)


def test_what_a_photo_is_ranked_by() -> None:
    assert photo_iou(score((1, 2), (0, 4), (0, 0))) == 0.25
    assert photo_iou(score((0, 0))) is None


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (1, ([], ["d"], [])),
        (2, ([], ["c", "d"], [])),
        (3, (["a"], ["d"], ["g"])),
        (7, (["a", "b"], ["c", "d", "e"], ["f", "g"])),
        (99, (["a", "b"], ["c", "d", "e"], ["f", "g"])),
    ],
)
def test_a_third_each_and_the_rest_in_the_middle(count: int, expected: tuple[list[str], ...]) -> None:
    found = {name: 1 - place / 10 for place, name in enumerate("abcdefg")}
    assert tuple(choose_by_rank(found, count).values()) == expected


def test_photos_of_one_figure_are_ranked_by_their_id() -> None:
    assert choose_by_rank({"b": 0.5, "a": 0.5, "c": 0.5}, 3) == {"Best": ["a"], "In the middle": ["b"], "Worst": ["c"]}
    assert choose_by_rank({}, 3) == {"Best": [], "In the middle": [], "Worst": []}


@pytest.mark.slow
def test_a_page_of_real_photos(shared_data: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    options = ["--data", str(shared_data / "camvid"), "--limit", "5", "--pictures", str(page), "--shown", "3"]
    result = CliRunner().invoke(evaluate, options)
    assert result.exit_code == 0, result.output
    text = page.read_text()
    assert re.findall(r"<h2>(.*?)</h2>", text) == ["Best", "In the middle", "Worst"]
    assert text.count('<article class="sample"') == 3
    ious = [float(value) for value in re.findall(r"mean IoU ([0-9.]+), number", text)]
    assert ious == sorted(ious, reverse=True)
    assert len(set(ious)) == 3
    assert 'src="http' not in text
    result = CliRunner().invoke(evaluate, [*options, "--no-photos"])
    assert result.exit_code == 0, result.output
    assert "annotation" not in page.read_text()
    assert page.read_text().count('<article class="sample"') == 3


def test_a_folder_that_is_not_there_is_said_before_the_work(shared_data: Path, tmp_path: Path) -> None:
    options = ["--data", str(shared_data / "camvid"), "--pictures", str(tmp_path / "none" / "page.html")]
    result = CliRunner().invoke(evaluate, options)
    assert result.exit_code != 0
    assert "does not exist" in str(result.exception or result.output)
