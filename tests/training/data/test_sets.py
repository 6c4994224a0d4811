"""A recipe's data sets: found by name, format or path; photos of any source in memory; what is held out stays out."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from lasagna import Lasagna
from lasagna.errors import ConfigError
from lasagna.masks.image import load_image
from tests.training.data.sources.samples import SAMPLES
from training.data.records import OTHER, UNKNOWN, Record
from training.data.sets import (
    Subset,
    held_out_records,
    locate_set,
    missing_files,
    open_set,
    training_records,
    what_is_replayed,
    with_replay,
)
from training.data.sources.folder import Folder
from training.engine.run import train
from training.examples.photos import Photos, photos_in_memory
from training.recipe.files import read_recipe
from training.recipe.values import Recipe

RECIPES = Path(__file__).parents[3] / "training" / "recipes"


def test_a_name_is_a_folder_of_the_layout_or_a_published_format(tiny: Callable[..., Recipe], tmp_path: Path) -> None:
    recipe = tiny("tasks.semantic.sets={squares: 1, ade20k: 1, mine: {rate: 1, reader: label_studio}}")
    found = {name: locate_set(recipe, name, data).reader for name, data in recipe.semantic.items()}
    assert found == {"squares": "folder", "ade20k": "ade20k", "mine": "label_studio"}
    misspelt = tiny("tasks.semantic.sets={ade20: 1}")
    with pytest.raises(ConfigError, match=r"no reader is called 'ade20' \(did you mean ade20k\?\)"):
        open_set(misspelt, "ade20", misspelt.semantic["ade20"])
    SAMPLES["ade20k"](tmp_path)
    elsewhere = tiny(f"tasks.semantic.sets={{street: {{rate: 1, reader: ade20k, path: {tmp_path / 'ade20k'}}}}}")
    assert len(open_set(elsewhere, "street", elsewhere.semantic["street"])) == 1


def test_what_is_missing_is_listed_with_its_key(tiny: Callable[..., Recipe], tmp_path: Path) -> None:
    (tmp_path / "zero.json").write_text("[]")
    problems = missing_files(
        tiny(
            "tasks.semantic.sets={ade20k: 1, nothing: 1, squares: {rate: 1, split: test}, odd: {rate: 1, reader: odd}}",
            "tasks.vqa.sets={llava_instruct_150k: 1}",
            "augment=null",
            "deepspeed=zero.json",
            "optimiser.ema=0",
        )
    )
    expected = ("tasks.semantic.sets.ade20k: ", "tasks.semantic.sets.nothing: ", "tasks.semantic.sets.squares: ")
    expected += (
        "tasks.semantic.sets.odd: unknown data set 'odd'",
        "tasks.vqa.sets.llava_instruct_150k: ",
        "deepspeed: ",
    )
    assert [problem[: len(start)] for problem, start in zip(problems, expected, strict=True)] == list(expected)


def test_held_out_photos_are_in_one_part_only(tiny: Callable[..., Recipe]) -> None:
    recipe = tiny("holdout=0.5")
    kept = training_records(recipe, "squares", recipe.semantic["squares"])
    sides = [{side[i].image_id for i in range(len(side))} for side in (kept, held_out_records(recipe)["squares"])]
    assert sides[0] | sides[1] == {"0", "1", "2", "3"}
    assert not sides[0] & sides[1]
    assert len(photos_in_memory(recipe, 100)[0]) == len(kept)


def test_a_subset_has_its_photos_alone(squares: Path) -> None:
    whole = Folder(squares / "squares", "train")
    part = Subset(whole, [3, 1])
    assert [part[i].image_id for i in range(len(part))] == ["3", "1"]
    assert part.classes == whole.classes
    assert len(whole) == 4


def test_photos_are_held_no_larger_than_they_are_seen(squares: Path) -> None:
    source = Folder(squares / "squares", "train")
    whole, small = Photos(source, "squares", 200), Photos(source, "squares", 50)
    assert whole.classes == ("red", "blue")
    for i in range(4):
        assert np.array_equal(whole.images[i], np.asarray(load_image(squares / "squares" / "images" / f"{i}.jpg")))
        assert np.array_equal(whole.masks[i][None], source[i].read())
        assert set(np.unique(small.masks[i])) <= set(np.unique(whole.masks[i]))
        assert small.images[i].shape[:2] == small.masks[i].shape == (40, 50)
    assert set(np.unique(whole.masks[0])) == {0, 1, OTHER, UNKNOWN}
    assert whole.decided.all()


def test_a_set_in_the_folder_layout_is_known_by_its_folder(tiny: Callable[..., Recipe], squares: Path) -> None:
    """What its names may mean beside others' (`training.data.concepts`) does not depend on what a recipe calls it."""
    recipe = tiny(f"tasks.semantic.sets={{mine: {{rate: 1, path: {squares / 'squares'}}}}}")
    assert photos_in_memory(recipe, 100)[0].name == "squares"


def test_overlaps_void_and_what_is_not_decided(squares: Path) -> None:
    labels = np.full((2, 80, 100), OTHER, np.int16)
    labels[0, :40], labels[1, 20:60], labels[0, 70:] = 0, 1, UNKNOWN

    class Source:
        classes = ("sky", "roof", "dog")

        def __len__(self) -> int:
            return 1

        def __getitem__(self, index: int) -> Record:
            photo = squares / "squares" / "images" / "0.jpg"
            return Record("source", "1", photo, classes=("roof", "dog"), labels=lambda: labels)

    photos = Photos(Source(), "mine", 200)
    mask = photos.masks[0]
    assert [int(mask[row, 0]) for row in (0, 30, 50, 65, 75)] == [1, 2, 2, OTHER, UNKNOWN]
    assert photos.decided.tolist() == [[False, True, True]]


def test_more_classes_than_a_byte_holds(squares: Path) -> None:
    class Source:
        classes = tuple(f"class {i}" for i in range(300))

        def __len__(self) -> int:
            return 1

        def __getitem__(self, index: int) -> Record:
            photo = squares / "squares" / "images" / "0.jpg"
            labels = np.full((1, 80, 100), 299, np.int16)
            return Record("source", "1", photo, classes=self.classes, labels=lambda: labels)

    photos = Photos(Source(), "mine", 40)
    assert (photos.masks[0] == 299).all()
    assert np.flatnonzero(photos.shown).tolist() == [299]


@pytest.mark.slow
def test_the_shipped_fine_tuning_recipe_learns_from_a_label_studio_export(
    squares: Path, random_checkpoint: Path, tmp_path: Path
) -> None:
    SAMPLES["label_studio"](tmp_path)
    (export,) = tmp_path.rglob("label_config.xml")
    changes = [
        f"output={tmp_path / 'run'}",
        f"data={squares}",
        f"start={random_checkpoint}",
        f"tasks.semantic.sets.mine.path={export.parent}",
        "replay={squares: 1, camvid: 1}",
        "trained.frozen_stages=1",
        "holdout=0",
        "augment={view: [64, 64], drop_tokens: 0.1}",
        *(
            f"optimiser.{change}"
            for change in ("steps=2", "warmup=1", "log_every=1", "save_every=1", "precision=float32")
        ),
    ]
    folder = train(read_recipe(RECIPES / "finetune.yaml", changes).recipe, "cpu")
    before, after = (Lasagna.from_pretrained(path) for path in (random_checkpoint, folder))
    assert before.format == after.format
    assert before.version != after.version


def test_what_is_replayed_and_what_is_not(squares: Path, random_checkpoint: Path, tmp_path: Path) -> None:
    SAMPLES["label_studio"](tmp_path)
    (export,) = tmp_path.rglob("label_config.xml")
    own = [f"data={squares}", f"start={random_checkpoint}", f"tasks.semantic.sets.mine.path={export.parent}"]
    both = read_recipe(RECIPES / "finetune.yaml", [*own, "replay={squares: 0.2, camvid: 1}"]).recipe
    assert list(both.semantic) == ["mine"]
    resolved, missing = with_replay(both)
    assert dict(resolved.rates) == {"mine": 0.5, "squares": 0.2}
    assert (resolved.replay, missing) == (None, ["camvid"])
    assert list(what_is_replayed(both)) == [f"not replayed, since they are not in {squares}: camvid"]
    assert with_replay(resolved) == (resolved, [])

    for nothing in ("replay=null", "replay={}", "replay={camvid: 1}"):
        alone = read_recipe(RECIPES / "finetune.yaml", [*own, nothing]).recipe
        assert list(with_replay(alone)[0].semantic) == ["mine"]
        assert "nothing is replayed" in list(what_is_replayed(alone))[-1]
        assert missing_files(alone) == [], "old sets are no condition"
    assert list(what_is_replayed(read_recipe(RECIPES / "nano.yaml").recipe)) == [], "a new model forgets nothing"
