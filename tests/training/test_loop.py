"""The recipe, the batches and the loop: what is shipped loads, what is killed resumes, what is wrong is named."""

import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lasagna import Lasagna
from lasagna.errors import ConfigError, DataError
from training.augment import random_view
from training.commands import read_recipe
from training.data import BACKGROUND, VOID, FolderDataset
from training.loop import Recipe, Trainer
from training.mixture import OTHER, UNKNOWN, VIEW_SIZE, Mixture, Photos
from training.sequences import SequenceOptions

RECIPES = sorted((Path(__file__).parents[2] / "training" / "recipes").glob("*.yaml"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set in the folder layout: two squares of colour on grey, a void frame."""
    root = tmp_path_factory.mktemp("data")
    folder = root / "squares"
    (folder / "images").mkdir(parents=True)
    (folder / "masks").mkdir()
    (folder / "classes.json").write_text('{"classes": ["backdrop", "red", "blue"], "background_index": 0}')
    rng = np.random.default_rng(0)
    for i in range(4):
        image, mask = np.full((80, 100, 3), 120, np.uint8), np.zeros((80, 100), np.uint8)
        for index, colour in ((1, (220, 20, 20)), (2, (20, 20, 220))):
            if i % 2 and index == 2:
                continue
            top, left = rng.integers(4, 36), rng.integers(4, 56)
            image[top : top + 36, left : left + 36], mask[top : top + 36, left : left + 36] = colour, index
        mask[:2] = 255
        Image.fromarray(image).save(folder / "images" / f"{i}.jpg", quality=95)
        Image.fromarray(mask).save(folder / "masks" / f"{i}.png")
    (folder / "train.txt").write_text("0\n1\n2\n3\n")
    return root


def tiny_recipe(data: Path, output: Path, steps: int) -> Recipe:
    values = read_recipe(RECIPES[0].with_name("nano.yaml"), ())
    values |= {"data": str(data), "output": str(output), "rates": {"squares": 1.0}, "vocabulary": 300, "holdout": 0.0}
    values["model"]["text"] |= {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    values["model"]["text"] |= {"num_attention_heads": 2, "num_key_value_heads": 2}
    values["model"]["decoder"] |= {"width": 16, "heads": 2, "mlp_dim": 16, "skip_channels": [4, 2]}
    values["optimiser"] |= {"steps": steps, "batch_size": 1, "save_every": 10, "warmup": 2, "precision": "float32"}
    return Recipe.from_dict(values)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_every_shipped_recipe_loads(path: Path) -> None:
    recipe = Recipe.from_dict(read_recipe(path, ("seed=7", "optimiser.steps=3")))
    assert (recipe.seed, recipe.optimiser.steps) == (7, 3)
    assert recipe.model_config(1000).text["vocab_size"] == 1000


@pytest.mark.parametrize("change", ["sed=1", "optimiser.step=2", "seed", "a.b.c=1"])
def test_a_change_that_changes_nothing_is_named(change: str) -> None:
    with pytest.raises(ConfigError, match="changes nothing"):
        read_recipe(RECIPES[0], (change,))


def test_an_unknown_key_is_named() -> None:
    values = read_recipe(RECIPES[0], ())
    values["optimiser"]["momentum"] = 0.9
    with pytest.raises(ConfigError, match="momentum"):
        Recipe.from_dict(values)


def test_the_reader_counts_queryable_classes_only(data: Path) -> None:
    dataset = FolderDataset(data / "squares", "train")
    assert dataset.classes == ("red", "blue")
    assert set(np.unique(dataset.read_mask(0))) == {0, 1, BACKGROUND, VOID}


@pytest.mark.parametrize("missing", ["classes.json", "train.txt", "images/2.jpg"])
def test_an_incomplete_folder_is_named(data: Path, tmp_path: Path, missing: str) -> None:
    import shutil

    shutil.copytree(data / "squares", tmp_path / "squares")
    (tmp_path / "squares" / missing).unlink()
    with pytest.raises(DataError, match=missing.split("/")[-1]):
        FolderDataset(tmp_path / "squares", "train")


@pytest.mark.parametrize("shape", [(40, 300), (300, 40), (64, 64), (500, 500)])
def test_a_view_keeps_photo_and_mask_aligned(shape: tuple[int, int]) -> None:
    mask = np.zeros(shape, np.uint8)
    mask[: shape[0] // 2, : shape[1] // 2] = 1
    image = np.repeat(mask[..., None] * 200, 3, axis=2)
    for seed in range(8):
        view, labels = random_view(image, mask, (96, 96), 128, random.Random(seed))
        assert view.shape == (96, 96, 3)
        assert labels.shape == (96, 96)
        assert set(np.unique(labels)) <= {0, 1, VOID}
        bright, dark = view[labels == 1], view[labels == 0]
        if len(bright) > 50 and len(dark) > 50:
            assert bright.mean() > dark.mean() + 40


def test_a_batch_is_a_function_of_seed_and_step(data: Path) -> None:
    photos = [Photos(FolderDataset(data / "squares", "train"))]
    one, two = (Mixture(photos, [1.0], SequenceOptions(), 3, 128, seed=1) for _ in range(2))
    a, b, c = one.batch(5), two.batch(5), one.batch(6)
    assert torch.equal(a.pixels, b.pixels)
    assert a.classes == b.classes
    assert not torch.equal(a.pixels, c.pixels)


def test_labels_of_a_batch_point_at_the_names(data: Path) -> None:
    mixture = Mixture([Photos(FolderDataset(data / "squares", "train"))], [1.0], SequenceOptions(), 4, 128, seed=3)
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


def test_a_killed_run_resumes_to_the_same_weights(data: Path, tmp_path: Path) -> None:
    straight = Trainer(tiny_recipe(data, tmp_path / "a", 20))
    lines = list(straight.run())
    assert [line["step"] for line in lines] == [10, 20]

    interrupted = Trainer(tiny_recipe(data, tmp_path / "b", 20))
    next(interrupted.run())  # killed after the first log line: the state of step 10 is saved
    interrupted.save()
    resumed = Trainer(tiny_recipe(data, tmp_path / "b", 20))
    assert resumed.resume()
    assert resumed.step == 10
    list(resumed.run())
    for (name, a), b in zip(straight.model.state_dict().items(), resumed.model.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, msg=name)

    model = Lasagna.from_pretrained(tmp_path / "b" / "checkpoint")
    answer = model.segment(np.full((64, 64, 3), 100, np.uint8), ["red", "blue"])
    assert len(answer.classes) == 2


def test_a_run_can_start_from_a_checkpoint(data: Path, tmp_path: Path) -> None:
    first = Trainer(tiny_recipe(data, tmp_path / "d", 10))
    list(first.run())
    later = Trainer(replace(tiny_recipe(data, tmp_path / "e", 10), start=str(tmp_path / "d" / "checkpoint")))
    assert later.tokenizer.encode("red") == first.tokenizer.encode("red")
    for (name, saved), loaded in zip(
        first.average.state_dict().items(), later.model.state_dict().values(), strict=True
    ):
        torch.testing.assert_close(saved, loaded, atol=1e-3, rtol=1e-3, msg=name)


def test_frozen_parts_stay_and_the_rest_moves(data: Path, tmp_path: Path) -> None:
    trainer = Trainer(tiny_recipe(data, tmp_path / "c", 10))
    before = {key: value.clone() for key, value in trainer.model.state_dict().items()}
    list(trainer.run())
    after = trainer.model.state_dict()
    assert torch.equal(before["encoder.backbone.conv_stem.weight"], after["encoder.backbone.conv_stem.weight"])
    running = [key for key in before if "running" in key]
    assert running
    assert all(torch.equal(before[key], after[key]) for key in running)
    for key in ("lm_head.weight", "language_model.embed_tokens.weight", "segmenter.mask_decoder.mask_tokens.weight"):
        assert not torch.equal(before[key], after[key]), key
