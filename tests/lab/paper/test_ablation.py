"""Table 5: what the rows share and in what they differ, a real run of two rows, and the table worked out by hand."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from lab.paper.ablation import EXACT, ROWS, ablation_table, row_recipe, summarise, vision_start
from lasagna.commands.cli import main
from lasagna.errors import ConfigError
from training.engine.start import prepare
from training.recipe.sequence import PRESETS
from training.recipe.values import Recipe

COLOURS = {"dog": (220, 20, 20), "cow": (20, 20, 220)}


@pytest.fixture(scope="module")
def farm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root with one data set, `farm`: a red dog on the left, in every other photo a blue cow on the right."""
    root = tmp_path_factory.mktemp("data")
    folder = root / "farm"
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    (folder / "classes.json").write_text(json.dumps({"classes": ["grass", *COLOURS], "background_index": None}))
    for split, ids in (("train", range(4)), ("val", range(4, 6))):
        (folder / f"{split}.txt").write_text("".join(f"{i}\n" for i in ids))
    for i in range(6):
        image, mask = np.full((80, 100, 3), 90, np.uint8), np.zeros((80, 100), np.uint8)
        for index, (name, left) in enumerate((("dog", 5), ("cow", 60)), 1):
            if index == 1 or i % 2:
                image[20:60, left : left + 30], mask[20:60, left : left + 30] = COLOURS[name], index
        Image.fromarray(image).save(folder / "images" / f"{i}.jpg", quality=95)
        Image.fromarray(mask).save(folder / "masks" / f"{i}.png")
    return root


@pytest.fixture
def changes(farm: Path) -> tuple[str, ...]:
    """From the recipe of the smallest size (conftest) to one on `farm` with texts."""
    sets = "{semantic: {sets: {farm: 1.0}}, referring: {sets: {farm: {rate: 1.0, reader: expressions}}}}"
    return (f"data={farm}", f"tasks={sets}", "optimiser.steps=2", "optimiser.warmup=1")


@pytest.fixture
def base(tiny: Callable[..., Recipe], changes: tuple[str, ...]) -> Recipe:
    return tiny(*changes)


@pytest.mark.slow
def test_rows_differ_in_their_strategies_alone_and_begin_alike(base: Recipe, tmp_path: Path) -> None:
    recipes = {preset: row_recipe(base, preset, 3, tmp_path) for preset in PRESETS}
    assert {preset: recipe.sequence.class_list for preset, recipe in recipes.items()} == {
        "lisa": False,
        **dict.fromkeys(("class_list", "random_list", "negatives", "order"), True),
    }
    assert [recipes[preset].sequence.negatives for preset in PRESETS] == [False, False, False, True, True]
    assert {recipe.sequence.lengths for recipe in recipes.values()} == {base.sequence.lengths}
    assert {recipe.seed for recipe in recipes.values()} == {3}
    first, last = (prepare(recipes[preset]).model.state_dict() for preset in ("lisa", "order"))
    assert first.keys() == last.keys()
    assert all(torch.equal(first[key], last[key]) for key in first)
    other = prepare(row_recipe(base, "lisa", 4, tmp_path)).model.state_dict()
    assert not torch.equal(first["lm_head.weight"], other["lm_head.weight"])


def test_rows_are_the_papers_and_asked_as_they_were_trained() -> None:
    assert [row.title for row in ROWS][0::4] == ["LISA", "+ target order consistency"]
    assert [row.kind for row in ROWS] == ["one_by_one", *["free"] * 4]
    assert [(row.preset, row.kind) for row in EXACT] == [("negatives", "lasagna"), ("order", "lasagna")]


@pytest.mark.slow
def test_a_start_with_trained_vision_and_a_new_language_model(
    tiny: Callable[..., Recipe], changes: tuple[str, ...], base: Recipe, tmp_path: Path
) -> None:
    trained = prepare(row_recipe(base, "order", 9, tmp_path))
    trained.save(tmp_path / "trained")
    recipe = vision_start(base, tmp_path / "trained", tmp_path / "start")
    assert (recipe.model, recipe.start) == (None, str(tmp_path / "start"))
    found, new, theirs = (run.model.state_dict() for run in (prepare(recipe), prepare(base), trained))
    for key in found:  # stored in half precision
        source = theirs if key.startswith(("encoder.", "segmenter.")) else new
        torch.testing.assert_close(found[key], source[key], rtol=1e-3, atol=1e-3)
    assert not torch.allclose(found["encoder.lateral8.weight"], new["encoder.lateral8.weight"], atol=1e-2)
    other = tiny(*changes, "model.decoder.mlp_dim=8")
    with pytest.raises(ConfigError, match="do not fit"):
        vision_start(other, tmp_path / "trained", tmp_path / "other")


def run(*args: object) -> Any:
    return CliRunner().invoke(main, ["experiment", "ablation", "--device", "cpu", *map(str, args)])


@pytest.mark.slow
def test_the_command_trains_scores_and_goes_on(
    tiny_file: Path, changes: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, document = tmp_path / "ablation", tmp_path / "results.md"
    document.write_text("<!-- table-5 -->\n<!-- /table-5 -->\n")
    arguments = ["--recipe", tiny_file, "--out", out, "--seeds", 1, "--rows", "lisa,order", *changes]
    result = run(*arguments, "--document", document, "--json")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    rows = {row["row"]: row for row in report["summary"]}
    assert list(rows) == ["LISA", "+ target order consistency", "+ target order consistency, decoded exactly"]
    assert rows["LISA"]["absent_false_positive_rate"] == [1.0, 0.0]
    assert all(0 <= row["miou"]["farm"][0] <= 1 for row in rows.values())
    assert [run.get("referring", {}).get("farm", {}).get("samples", 0) >= 2 for run in report["runs"]] == [
        True,
        True,
        False,  # the same answers about texts as of the row before
    ]
    assert rows["+ target order consistency, decoded exactly"]["referring_ciou"] is None
    assert "| LISA | 19.7 | 24.4 | 38.5 |" in document.read_text()
    assert {path.name for path in out.iterdir()} == {
        "lisa-seed1",
        "order-seed1",
        "ablation.json",
        "ablation.md",
        "table-5.svg",
    }
    assert (out / "lisa-seed1" / "checkpoint" / "config.json").exists()

    monkeypatch.setattr("training.engine.run.train", lambda *args: pytest.fail("a finished row is not trained again"))
    monkeypatch.setattr("lab.paper.suite.Runner.run", lambda *args: pytest.fail("nor scored"))
    again = run(*arguments, "--json")
    assert again.exit_code == 0, again.output
    assert json.loads(again.stdout)["summary"] == report["summary"]

    finished = run("--recipe", tiny_file, "--out", out, "--seeds", 2, "--finished", *changes, "--json")
    assert finished.exit_code == 0, finished.output
    assert json.loads(finished.stdout)["summary"] == report["summary"]
    nothing = run("--recipe", tiny_file, "--out", out, "--finished", *changes, "optimiser.steps=3")
    assert nothing.exit_code == 2
    assert "no run of this recipe is finished" in nothing.stderr


def test_an_unknown_row_is_named() -> None:
    result = run("--out", "x", "--rows", "lisa,list")
    assert result.exit_code == 2
    assert "--rows: list is none of lisa, class_list" in result.stderr


def test_means_over_seeds_and_sets_by_hand() -> None:
    def result(seed: int, miou: float, f1: float | None) -> dict[str, Any]:
        semantic = {
            "miou": miou,
            "presence": {"f1": f1, "average_precision": 0.5},
            "absent_false_positive_rate": 0.25,
        }
        other = {**semantic, "miou": 1.0, "presence": {"f1": 0.5, "average_precision": 0.5}}
        texts = {"ciou": 0.1 * seed, "giou": 0.5, "n_acc": None, "t_acc": 1.0}
        return {
            "row": "LISA",
            "preset": "lisa",
            "asked": "one_by_one",
            "seed": seed,
            "closed_set": {"a": semantic, "b": other},
            "referring": {"a": texts, "b": texts},
            "generalised": {"a": texts, "b": texts},
        }

    (row,) = summarise([result(1, 0.2, 0.3), result(3, 0.4, None)], ["a", "b"])
    assert row["seeds"] == [1, 3]
    assert row["miou"]["a"] == pytest.approx((0.3, 0.1))
    assert row["miou"]["b"] == (1.0, 0.0)
    assert row["f1"] == pytest.approx((0.45, 0.05))  # 0.4 of two sets; 0.5 of the one that has it
    assert row["referring_ciou"] == pytest.approx((0.2, 0.1))
    assert row["n_acc"] is None
    line = ablation_table([row], ["a", "b"]).splitlines()[-1]
    assert line.startswith("| LISA | 19.7 | 24.4 | 38.5 | 74.1 | 76.5 | 71.1 | 46.0 | 2 | 30.0 ± 10.0 | 100.0 ± 0.0 |")
    assert line.endswith("| 25.0 ± 0.0 | 20.0 ± 10.0 | 50.0 ± 0.0 | – | 100.0 ± 0.0 |")
