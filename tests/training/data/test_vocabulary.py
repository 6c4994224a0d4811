"""The vocabulary that a recipe teaches: counts, other words, and what a run leaves beside its weights."""

import shutil
from pathlib import Path

import pytest

from lasagna.checkpoint.vocabulary import Taught, Vocabulary, load_vocabulary, write_vocabulary
from training.data.vocabulary import count_names, taught_vocabulary, vocabulary_after
from training.recipe.files import read_recipe


def test_other_words_come_with_a_name_that_was_taught() -> None:
    found = taught_vocabulary({"aeroplane": 3, "airplane": 9, "couch": 2, "zebra": 0})
    assert found.names == {"aeroplane": Taught(3), "airplane": Taught(9), "couch": Taught(2)}
    assert found.reading("plane") == "airplane", "of names that mean the same, the one that was seen most"
    assert found.reading("Aeroplanes") == "aeroplane"
    assert found.reading("sofa") == "couch"
    assert found.reading("zebra") is None, "no photo has it, so it was not taught"
    assert found.reading("bicycle") is None
    alone = taught_vocabulary({"aeroplane": 3})
    assert alone.reading("airplane") == alone.reading("plane") == "aeroplane"


def test_names_are_counted_by_the_photos_that_have_them(shared_data: Path) -> None:
    sets = "tasks.semantic.sets={cwfid: 1.0, animals: 1.0}"
    every = read_recipe(Path("nano"), (f"data={shared_data}", sets, "holdout=0")).recipe
    counts = count_names(every)
    photos = len((shared_data / "cwfid" / "train.txt").read_text().split())
    assert counts["crop"] == photos
    assert set(counts) >= {"crop", "weed"}
    held = count_names(read_recipe(Path("nano"), (f"data={shared_data}", sets, "holdout=0.5")).recipe)
    assert 0 < held["crop"] < photos


@pytest.mark.parametrize("start", [None, "unsaid", "said"])
def test_what_a_model_knows_after_a_recipe(
    start: str | None, random_checkpoint: Path, tmp_path: Path, shared_data: Path
) -> None:
    changes = [f"data={shared_data}", "tasks.semantic.sets={cwfid: 1.0}"]
    if start:
        folder = shutil.copytree(random_checkpoint, tmp_path / "start")
        if start == "said":
            write_vocabulary(folder, Vocabulary({"car": Taught(7), "crop": Taught(1)}))
        changes += [f"start={folder}", "model=null"]
    found = vocabulary_after(read_recipe(Path("nano"), tuple(changes)).recipe)
    if start == "unsaid":
        assert found is None
        return
    assert found is not None
    assert found.names["crop"].photos > 1
    assert ("car" in found.names) == (start == "said")
    write_vocabulary(tmp_path, found)
    assert load_vocabulary(tmp_path) == found
