"""Names that training never sees: hidden in every set and under every name, and told apart when they are asked."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from lab.paper.unseen import (
    HIDDEN,
    Renamed,
    evaluate_names,
    hidden_names,
    hidden_recipe,
    hide_classes,
    name_groups,
    synonyms,
    trained_names,
)
from lasagna import ClassAnswer, Segmentation
from lasagna.commands.cli import main
from lasagna.errors import ConfigError, DataError
from training.data.records import OTHER, UNKNOWN
from training.data.sources.folder import Folder
from training.recipe.files import read_recipe

RECIPE = Path(__file__).parents[3] / "training" / "recipes" / "ablation.yaml"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two sets: `home` (background, sofa, cat, tv) and `street` (car, bus, television)."""
    for name, classes, background in (
        ("home", ["background", "sofa", "cat", "tv"], 0),
        ("street", ["car", "bus", "television"], None),
    ):
        folder = tmp_path / "data" / name
        for kind in ("images", "masks"):
            (folder / kind).mkdir(parents=True)
        (folder / "classes.json").write_text(json.dumps({"classes": classes, "background_index": background}))
        mask = np.repeat(np.array([*range(len(classes)), 255], np.uint8), 10)[None].repeat(20, 0)
        Image.fromarray(mask).save(folder / "masks" / "a.png")
        Image.fromarray(np.zeros((*mask.shape, 3), np.uint8)).save(folder / "images" / "a.jpg")
        for split in ("train", "val"):
            (folder / f"{split}.txt").write_text("a\n")
    return tmp_path / "data"


def test_hidden_classes_are_void_and_unnamed(root: Path, tmp_path: Path) -> None:
    copy = hide_classes(Folder(root / "home", "train"), ["couch", "bus"], tmp_path / "copy")
    assert copy.classes == ("cat", "tv")  # a sofa is a couch
    assert copy[0].read()[0, 0].tolist() == [v for v in (OTHER, UNKNOWN, 0, 1, UNKNOWN) for _ in range(10)]
    assert copy[0].image_path.read_bytes() == (root / "home" / "images" / "a.jpg").read_bytes()
    with pytest.raises(DataError, match="every class is hidden"):
        hide_classes(Folder(root / "street", "train"), ["car", "bus", "tv"], tmp_path / "none")


def test_a_recipe_without_names_and_without_a_set(root: Path, tmp_path: Path) -> None:
    sets = "tasks.semantic.sets={home: 1.0, street: 1.0}"
    base = read_recipe(
        RECIPE, [f"data={root}", sets, "tasks.referring.sets={street: {rate: 1.0, reader: expressions}}"]
    )
    recipe = hidden_recipe(base.recipe, ["tv"], [], tmp_path / "out")
    assert trained_names(recipe) == ("sofa", "cat", "car", "bus")
    assert set(recipe.tasks) == {"semantic", "referring"}
    assert recipe.output == tmp_path / "out" / "run"
    recipe = hidden_recipe(base.recipe, ["tv"], ["street"], tmp_path / "other")
    assert trained_names(recipe) == ("sofa", "cat")
    assert set(recipe.tasks) == {"semantic"}  # the only set of the other task is gone
    with pytest.raises(ConfigError, match="no data set is left"):
        hidden_recipe(base.recipe, ["tv"], ["street", "home"], tmp_path / "empty")


def test_names_to_hide_are_known() -> None:
    assert len(hidden_names(HIDDEN)) == 20
    assert hidden_names(" hot  dog, cat") == ("hot dog", "cat")
    with pytest.raises(ConfigError, match="griffin"):
        hidden_names("cat, griffin")


def test_groups_of_names() -> None:
    groups = name_groups(["cat", "couch", "tv", "griffin"], ["cat", "sofa"])
    assert groups == {"cat": "seen", "couch": "synonym", "tv": "unseen", "griffin": "unseen"}
    assert synonyms(["sofa", "cat", "car"], ["sofa", "cat"]) == {"sofa": "couch", "car": "automobile"}


class Sees:
    """Draws every class whose name it knows where it is, and nothing else."""

    def __init__(self, known: dict[str, int]) -> None:
        self.known = known

    def segment_batch(
        self, images: Sequence[Any], class_lists: Sequence[Sequence[Any]], /, **options: Any
    ) -> list[Segmentation]:
        answers = []
        for image, names in zip(images, class_lists, strict=True):
            size = (image.height, image.width)
            masks = {}
            for name in names:
                if name in self.known:
                    masks[name] = np.zeros(size, bool)
                    masks[name][:, 10 * self.known[name] : 10 * self.known[name] + 10] = True
            answers.append(
                Segmentation(size, tuple(ClassAnswer(n, 0.9 if n in masks else 0.1, masks.get(n)) for n in names))
            )
        return answers


def test_figures_by_group(root: Path) -> None:
    source = Folder(root / "home", "val")
    found = evaluate_names(Sees({"cat": 2, "couch": 1}), Renamed(source, {"sofa": "couch"}), ["sofa", "cat"])
    assert {group: figures["names"] for group, figures in found.items()} == {
        "seen": ["cat"],
        "synonym": ["couch"],
        "unseen": ["tv"],
    }
    assert [found[group]["miou"] for group in ("seen", "synonym", "unseen")] == [1.0, 1.0, 0.0]
    assert found["unseen"]["average_precision"] == 1.0  # the only pair of its group
    assert found["unseen"]["prevalence"] == 1.0
    assert found["seen"]["classes"] == 1


@pytest.mark.slow
def test_the_command_trains_without_the_names_and_scores_all(root: Path, tiny_file: Path, tmp_path: Path) -> None:
    sets = "tasks={semantic: {sets: {home: 1.0, street: 1.0}}}"
    out = tmp_path / "unseen"
    arguments = [
        "--recipe",
        tiny_file,
        "--out",
        out,
        "--hide",
        "tv",
        "--without",
        "street",
        "--device",
        "cpu",
        "--json",
    ]
    arguments += [f"data={root}", sets, "optimiser.steps=2", "optimiser.warmup=1"]
    result = CliRunner().invoke(main, ["experiment", "unseen", *map(str, arguments)])
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    groups = {name: {group: one["names"] for group, one in found.items()} for name, found in report["sets"].items()}
    assert groups["home"] == {"seen": ["cat", "sofa"], "unseen": ["tv"]}
    assert groups["home, reworded"]["synonym"] == ["couch"]
    assert groups["street"] == {"unseen": ["bus", "car", "television"]}
    assert (out / "unseen.md").read_text().startswith("| data set | names |")
