"""Recipes: every shipped one is valid, and every error of a file is named at once, with its place."""

from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from backend.commands.train import train
from lasagna.errors import ConfigError
from training.recipe.files import read_recipe, recipe_from_values, shipped_recipes, to_values
from training.recipe.sequence import PRESETS
from training.recipe.values import TASKS, Recipe

RECIPES = sorted((Path(__file__).parents[3] / "training" / "recipes").glob("*.yaml"))
NANO = next(path for path in RECIPES if path.name == "nano.yaml")


def errors_of(path: Path, *changes: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        read_recipe(path, changes)
    return str(caught.value).splitlines()[1:]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_every_shipped_recipe_is_valid(path: Path) -> None:
    recipe = read_recipe(path, ["seed=7", "optimiser.steps=30000"]).recipe
    assert (recipe.seed, recipe.optimiser.steps) == (7, 30000)
    assert recipe_from_values(to_values(recipe)) == recipe
    if recipe.smoke:
        assert read_recipe(path, smoke=True).recipe != read_recipe(path).recipe


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_every_shipped_recipe_says_what_its_keys_mean(path: Path) -> None:
    lines = path.read_text().splitlines()
    assert lines[0].startswith("# ")
    assert sum("#" in line for line in lines) >= 10


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("sed=1", "sed: unknown key; did you mean seed?"),
        ("optimiser.step=2", "optimiser.step: unknown key; did you mean steps?"),
        ("tasks.semantics.sets={msrc: 1}", "tasks.semantics: unknown key; did you mean semantic?"),
        ("tasks.semantic.sets.msrc={rat: 1}", "rat: unknown key; did you mean rate?"),
        ("model.decoder.skip_channel=1", "model.decoder.skip_channel: unknown key; did you mean skip_channels?"),
        ("optimiser.steps=many", "optimiser.steps: should be a valid integer, found 'many'"),
        ("optimiser.steps=1.5", "optimiser.steps: should be a valid integer, found 1.5"),
        ("optimiser.gradient_checkpointing=1", "should be a valid boolean, found 1"),
        ("optimiser.clip=0", "optimiser.clip: should be greater than 0, found 0"),
        ("holdout=1", "holdout: should be less than 1, found 1"),
        ("optimiser.precision=half", "optimiser.precision: should be 'float32' or 'bfloat16', found 'half'"),
        ("augment.view=[100, 96]", "augment.view.0: should be a multiple of 32, found 100"),
        ("tasks.semantic.sets={}", "should have at least 1 item"),
        ("sequence.preset=oder", "preset is one of lisa, class_list, random_list, negatives, order, not 'oder'"),
        ("sequence.lengths=[[1.0, 9, 3]]", "fewest names come before most names"),
        ("trained.parts=[decoder]", "the model has no decoder; its parts are encoder"),
        ("optimiser.micro_batch=5", "batch_size 12 is not a multiple of micro_batch 5"),
        ("optimiser.save_every=15", "save_every 15 is not a multiple of log_every 10"),
        ("optimiser.warmup=2000", "warmup 2000 leaves nothing of 1260 steps"),
        ("start=nano", "start and model contradict each other"),
        ("model=null", "name a checkpoint to start from, or give model"),
        ("features={folder: cache}", "features: cached features are of photos as they are"),
        ("trained.lora={rank: 4}", "lora adapts a language model that is frozen"),
        ("trained.token_rows=new", "token_rows: new contradicts lm_head or language_model in parts"),
        ("output.x=1", "output is 'runs/nano', which holds no keys"),
        ("seed", "'seed' changes nothing: write key=value"),
        ("seed=[1", "'seed=[1': the value is not readable as YAML"),
    ],
)
def test_an_error_names_the_key_and_what_to_write(change: str, message: str) -> None:
    found = errors_of(NANO, change)
    assert any(message in line for line in found), found


def test_all_errors_of_a_file_come_at_once_with_their_lines(tmp_path: Path) -> None:
    text = NANO.read_text().replace("  clip: 1.0", "  clip: -1\n  clip: -2").replace("seed: 1", "seeds: 1")
    path = tmp_path / "broken.yaml"
    path.write_text(text.replace("steps: 1260", "steps: lots"))
    number = {line.split("#")[0].strip(): i for i, line in enumerate(path.read_text().splitlines(), 1)}
    assert errors_of(path) == [
        f"  broken.yaml:{number['clip: -2']}: optimiser.clip: written twice, first at broken.yaml:"
        f"{number['clip: -1']}; keep one of them",
        f"  broken.yaml:{number['steps: lots']}: optimiser.steps: should be a valid integer, found 'lots'",
        f"  broken.yaml:{number['clip: -2']}: optimiser.clip: should be greater than 0, found -2",
        f"  broken.yaml:{number['seeds: 1']}: seeds: unknown key; did you mean seed?",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [("a: [", "not readable as YAML"), ("- 1", "list of keys and values"), ("", "list of keys and values")],
)
def test_what_is_no_recipe(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "none.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_recipe(path)


def test_numbers_without_a_point_are_numbers() -> None:
    recipe = read_recipe(NANO, ["optimiser.learning_rate=3e-4", "optimiser.weight_decay=1E-2"]).recipe
    assert (recipe.optimiser.learning_rate, recipe.optimiser.weight_decay) == (3e-4, 1e-2)


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_is_its_switches_and_one_can_be_changed(preset: str) -> None:
    sequence = read_recipe(NANO, [f"sequence.preset={preset}"]).recipe.sequence
    assert {key: getattr(sequence, key) for key in PRESETS[preset]} == PRESETS[preset]
    assert sequence.all_positives == 0.5  # beside the preset in the file
    changed = read_recipe(NANO, [f"sequence.preset={preset}", "sequence.keep_order=true"]).recipe.sequence
    assert changed.keep_order


def test_presets_turn_the_strategies_on_one_by_one() -> None:
    switched_on = [sum(bool(value) for value in switches.values()) for switches in PRESETS.values()]
    assert switched_on == [0, 1, 2, 3, 4]


def test_origins() -> None:
    file = read_recipe(NANO, ["seed=3", "tasks.semantic.sets.msrc=0.5"], smoke=False)
    rows = {key: (value, origin) for key, value, origin in file.describe()}
    assert rows["seed"] == ("3", "command line")
    assert rows["tasks.semantic.sets.msrc.rate"] == ("0.5", "command line")
    assert rows["tasks.semantic.sets.msrc.split"] == ("train", "default")
    assert rows["optimiser.frozen_precision"] == ("float32", "default")
    assert rows["sequence.random_list"][1].startswith("preset, nano.yaml:")
    line = int(rows["optimiser.steps"][1].removeprefix("nano.yaml:"))
    assert NANO.read_text().splitlines()[line - 1].startswith("  steps:")


@pytest.mark.parametrize("name", ["copied", "coarse", "competition", "clicks"])
def test_a_weight_of_a_term_that_a_recipe_has_not_is_refused(tiny_file: Path, name: str) -> None:
    """Conversations have the paper's three terms; the others are of random views."""
    views, conversations = "losses={text: 1.5}", ["augment=null", "losses={text: 1.5}"]
    assert getattr(read_recipe(tiny_file, [views]).recipe.losses, name) in (0.1, 0.5)
    assert getattr(read_recipe(tiny_file, [views, f"losses.{name}=0"]).recipe.losses, name) == 0
    assert getattr(read_recipe(tiny_file, conversations).recipe.losses, name) is None
    (error,) = errors_of(tiny_file, *conversations, f"losses.{name}=0.2")
    assert f"losses: {name} would weigh nothing: only random views of class lists" in error
    assert "give augment and tasks.semantic" in error
    texts = "tasks={vqa: {sets: {llava_instruct_150k: 1}}}"
    (error,) = errors_of(tiny_file, texts, f"losses.{name}=0.2")  # views of nothing
    assert "would weigh nothing" in error


def test_weights_that_earlier_versions_wrote_unused_are_forgotten(tiny: Callable[..., Recipe]) -> None:
    values = to_values(tiny("augment=null"))
    before = {**values, "losses": {"text": 1.0, "copied": 0.1, "bce": 2.0, "dice": 0.5, "coarse": 0.5, "clicks": 0.5}}
    assert recipe_from_values(before) == recipe_from_values(values)
    views = to_values(tiny("losses.clicks=0"))
    assert recipe_from_values(views).losses.clicks == 0


def test_data_sets_are_where_the_setting_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LASAGNA_DATA", raising=False)
    assert read_recipe(NANO).recipe.data == Path("data")
    monkeypatch.setenv("LASAGNA_DATA", "/datasets")
    assert read_recipe(NANO).recipe.data == Path("/datasets")
    assert read_recipe(NANO, ["data=mine"]).recipe.data == Path("mine")


def test_how_a_step_is_shared() -> None:
    options = read_recipe(NANO).recipe.optimiser
    assert [options.accumulation(n) for n in (1, 2)] == [2, 1]
    with pytest.raises(ValueError, match="3 processes cannot share evenly"):
        options.accumulation(3)


def test_the_rate_warms_up_and_decays() -> None:
    options = read_recipe(NANO, ["optimiser.steps=100", "optimiser.warmup=10"]).recipe.optimiser
    assert [options.rate(step) for step in (0, 9, 10, 55, 100)] == pytest.approx([0.1, 1.0, 1.0, 0.5, 0.0])


@pytest.mark.parametrize(
    ("arguments", "code", "expected"),
    [
        (["--validate"], 0, "a valid recipe"),
        (["--validate", "sed=1", "holdout=2"], 2, "2 errors"),
        (["--validate", "data=/nowhere"], 3, "/nowhere/squares is no data set in the folder layout"),
        (["--validate", "start=missing", "model=null"], 3, "start: unknown checkpoint 'missing'"),
        (["--print-config", "seed=5"], 0, "command line"),
    ],
)
def test_the_command(tiny_file: Path, arguments: list[str], code: int, expected: str) -> None:
    result = CliRunner().invoke(train, [str(tiny_file), *arguments])
    assert result.exit_code == code, result.output
    assert expected in result.output


def test_changes_are_not_for_the_smoke_run_that_nobody_asked_for(tmp_path: Path) -> None:
    """The shipped nano: its smoke section has a batch_size of 6, which a micro_batch of 12 does not divide."""
    wider = ["nano", "optimiser.micro_batch=12", f"data={tmp_path}"]
    found = CliRunner().invoke(train, ["--validate", *wider])
    assert "a valid recipe" in found.output
    assert found.exit_code == 3, "its data sets are not there"
    asked = CliRunner().invoke(train, ["--validate", "--smoke", *wider])
    assert asked.exit_code == 2
    assert "batch_size 6 is not a multiple of micro_batch 12" in asked.output
    assert "(values of --smoke and command line)" in asked.output


def test_a_wrong_smoke_section_is_said_to_be_one(tiny_file: Path) -> None:
    tiny_file.write_text(tiny_file.read_text() + "\nsmoke: {optimiser.batch_size: 0, '[/b]': 1}\n")
    found = CliRunner().invoke(train, ["--validate", str(tiny_file), "seed=5"])
    assert found.exit_code == 2
    assert "with --smoke, which changes what its section `smoke` says" in found.output
    assert "--smoke: [/b]: unknown key" in found.output


def test_task_names() -> None:
    assert TASKS == ("semantic", "referring", "reasoning", "vqa")


def test_a_shipped_recipe_has_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert read_recipe(Path("nano")).recipe == read_recipe(shipped_recipes()["nano"]).recipe
    with pytest.raises(ConfigError, match=r"nanno: neither a file nor a shipped recipe; those are .*, nano$"):
        read_recipe(Path("nanno"))
    Path("nano").write_text("seed: [")
    with pytest.raises(ConfigError, match="not readable as YAML"):
        read_recipe(Path("nano"))  # a file of one's own comes first
