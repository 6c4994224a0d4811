"""The recipe of a project's fine-tune."""

from pathlib import Path

import pytest
from PIL import Image

from backend.loop.finetune import FASTER, GENTLER, KNOWN, UNKNOWN, for_what_is_known, make_recipe
from lasagna.settings import Settings


def settings(**values: str) -> Settings:
    return Settings.load({f"LASAGNA_{name.upper()}": value for name, value in values.items()})


def rate(given: Settings, checkpoint: Path, folder: Path, miou: float) -> tuple[float, str]:
    """The learning rate of a fine-tune, as a multiple of the shipped recipe's, and what the report says about it."""
    recipe, notes = make_recipe(given, checkpoint, folder / "snapshot", folder / "run")
    recipe, more = for_what_is_known(given, recipe, miou)
    return recipe.optimiser.learning_rate / 1e-4, " ".join(notes + more)


@pytest.fixture
def replayed(tmp_path: Path) -> str:
    """A data folder with one of the recipe's old sets, of one photo."""
    folder = tmp_path / "data" / "camvid"
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    Image.new("RGB", (20, 20)).save(folder / "images" / "1.jpg")
    Image.new("L", (20, 20)).save(folder / "masks" / "1.png")
    (folder / "classes.json").write_text('{"classes": ["sky"], "background_index": null}')
    (folder / "train.txt").write_text("1\n")
    return str(tmp_path / "data")


def test_classes_that_the_model_knows_are_taught_gently(checkpoint: Path, replayed: str, tmp_path: Path) -> None:
    given = settings(replay_data=replayed)
    times, words = rate(given, checkpoint, tmp_path, KNOWN)
    assert times == pytest.approx(1)
    assert "not replayed, since they are not in" in words
    assert "knew" not in words


def test_classes_that_it_does_not_know_are_taught_faster(checkpoint: Path, replayed: str, tmp_path: Path) -> None:
    times, words = rate(settings(replay_data=replayed), checkpoint, tmp_path, 0.057)
    assert times == pytest.approx(FASTER)
    assert "hardly knew these classes (mean IoU 0.057 on corrected photos that were new to it)" in words
    assert "the learning rate is 4.0e-04 (4.0 times as high)" in words


def test_the_more_of_them_it_knows_the_gentler(checkpoint: Path, replayed: str, tmp_path: Path) -> None:
    given = settings(replay_data=replayed)
    half, words = rate(given, checkpoint, tmp_path, (UNKNOWN + KNOWN) / 2)
    assert half == pytest.approx((FASTER + 1) / 2)
    assert "only partly knew these classes" in words
    assert rate(given, checkpoint, tmp_path, UNKNOWN)[0] == pytest.approx(FASTER)
    assert rate(given, checkpoint, tmp_path, 1.0)[0] == pytest.approx(1)


def test_without_replay_it_is_lower_in_either_case(checkpoint: Path, tmp_path: Path) -> None:
    given = settings(replay_data=str(tmp_path / "none"))
    assert rate(given, checkpoint, tmp_path, 1.0)[0] == pytest.approx(GENTLER)
    times, words = rate(given, checkpoint, tmp_path, 0.0)
    assert times == pytest.approx(GENTLER * FASTER)
    assert "nothing is replayed" in words


def test_a_rate_that_is_set_stays(checkpoint: Path, replayed: str, tmp_path: Path) -> None:
    given = settings(replay_data=replayed, train_changes="optimiser.learning_rate=2e-4")
    assert rate(given, checkpoint, tmp_path, 0.0)[0] == pytest.approx(2)
