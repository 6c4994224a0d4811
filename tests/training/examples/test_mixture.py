"""Photos, random views and micro-batches: aligned, a function of seed, step and part."""

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from training.data.sources.folder import Folder
from training.examples.augment import random_view
from training.examples.mixture import OTHER, UNKNOWN, VIEW_SIZE, Mixture
from training.examples.photos import Photos
from training.recipe.sequence import SequenceOptions


@pytest.mark.parametrize("shape", [(40, 300), (300, 40), (64, 64), (500, 500)])
def test_a_view_keeps_photo_and_mask_aligned(shape: tuple[int, int]) -> None:
    mask = np.zeros(shape, np.int16)
    mask[: shape[0] // 2, : shape[1] // 2] = 1
    image = np.repeat(mask[..., None] * 200, 3, axis=2).astype(np.uint8)
    for seed in range(8):
        view, labels = random_view(image, mask, (96, 96), 128, random.Random(seed))
        assert view.shape == (96, 96, 3)
        assert labels.shape == (96, 96)
        assert set(np.unique(labels)) <= {0, 1, UNKNOWN}
        bright, dark = view[labels == 1], view[labels == 0]
        if len(bright) > 50 and len(dark) > 50:
            assert bright.mean() > dark.mean() + 40


def test_a_micro_batch_is_a_function_of_seed_step_and_part(squares: Path) -> None:
    photos = [Photos(Folder(squares / "squares", "train"), "squares", 256)]
    one, two = (Mixture(photos, [1.0], SequenceOptions(), 3, 128, seed=1) for _ in range(2))
    first = one.batch(5, 1)
    two.batch(4)
    assert torch.equal(first.pixels, two.batch(5, 1).pixels)
    assert first.classes == two.batch(5, 1).classes
    for other in (one.batch(6, 1), one.batch(5, 0)):
        assert not torch.equal(first.pixels, other.pixels)


def test_the_parts_of_a_step_have_lists_of_one_row_of_lengths(squares: Path) -> None:
    """Processes wait for each other, so none should have much the longest lists."""
    options = SequenceOptions(lengths=((0.5, 1, 1), (0.5, 2, 2)))
    mixture = Mixture([Photos(Folder(squares / "squares", "train"), "squares", 256)], [1.0], options, 2, 128, seed=1)
    lengths = [{len(c.names) for part in range(3) for c in mixture.batch(s, part).classes} for s in range(8)]
    assert {frozenset(found) for found in lengths} == {frozenset({1}), frozenset({2})}


def test_labels_of_a_batch_point_at_the_names(squares: Path) -> None:
    mixture = Mixture(
        [Photos(Folder(squares / "squares", "train"), "squares", 256)], [1.0], SequenceOptions(), 4, 128, seed=3
    )
    seen = 0
    for step in range(6):
        batch = mixture.batch(step)
        assert batch.pixels.shape[-2:] == VIEW_SIZE
        for pixels, labels, classes in zip(batch.pixels, batch.labels, batch.classes, strict=True):
            assert set(labels.unique().tolist()) <= {UNKNOWN, OTHER, *range(len(classes.names))}
            for i, (name, present) in enumerate(zip(classes.names, classes.present, strict=True)):
                assert present == bool((labels == i).any())
                if present:
                    red, _, blue = pixels[:, labels == i].mean(1).tolist()
                    assert (red > blue) == (name == "red") or abs(red - blue) < 0.1  # grey photos
                    seen += 1
    assert seen > 10


def test_a_near_synonym_is_absent_only_beside_the_word_that_was_annotated(tmp_path: Path) -> None:
    """ccp's annotators call some heels shoes: "heels" is a negative where the list has "shoes" to choose from."""
    folder = tmp_path / "ccp"
    (folder / "images").mkdir(parents=True)
    (folder / "masks").mkdir()
    (folder / "classes.json").write_text('{"classes": ["shoes", "heels", "hair"], "background_index": null}')
    (folder / "train.txt").write_text("0")
    Image.fromarray(np.full((64, 64, 3), 90, np.uint8)).save(folder / "images" / "0.jpg")
    Image.fromarray(np.zeros((64, 64), np.uint8)).save(folder / "masks" / "0.png")  # shoes everywhere
    options = SequenceOptions(lengths=((1.0, 1, 3),), all_positives=0.0)
    mixture = Mixture([Photos(Folder(folder, "train"), "ccp", 128)], [1.0], options, 1, 64, seed=1, view=(64, 64))
    lists = [mixture._example(random.Random(seed), 1 + seed % 3).classes for seed in range(60)]
    with_heels = [classes for classes in lists if "heels" in classes.names]
    assert with_heels
    assert all("shoes" in classes.names for classes in with_heels)
    assert all(classes.names for classes in lists)
    assert any(classes.names == ("hair",) for classes in lists)


@pytest.mark.parametrize("shown", [("red",), ()], ids=["one class of two", "none"])
def test_a_class_that_no_photo_shows_is_rarely_asked(tmp_path: Path, shown: tuple[str, ...]) -> None:
    """Else a few corrections teach that the other labels of a project are always absent."""
    (tmp_path / "images").mkdir()
    (tmp_path / "masks").mkdir()
    (tmp_path / "classes.json").write_text('{"classes": ["backdrop", "red", "blue"], "background_index": 0}')
    for i in range(4):
        mask = np.zeros((80, 80), np.uint8)
        if i % 2 and shown:
            mask[20:60, 20:60] = 1
        Image.fromarray(np.full((80, 80, 3), 120, np.uint8)).save(tmp_path / "images" / f"{i}.jpg")
        Image.fromarray(mask).save(tmp_path / "masks" / f"{i}.png")
    (tmp_path / "train.txt").write_text("0\n1\n2\n3\n")
    photos = Photos(Folder(tmp_path, "train"), "mine", 128)
    options = SequenceOptions(lengths=((1.0, 2, 2),))
    mixture = Mixture([photos], [1.0], options, 1, 64, seed=1, view=(64, 64))
    lists = [mixture.batch(step).classes[0] for step in range(200)]
    assert all(one.names for one in lists)
    blue = sum("blue" in one.names for one in lists)
    if shown:
        assert 2 <= blue <= 60
        assert sum("red" in one.names for one in lists) > 150
    else:
        assert blue > 60  # something has to be asked
