"""The 7B recipes on a tiny checkpoint of their architecture: real steps with LoRA, from samples of every data set."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lasagna.checkpoint.folder import checkpoint_version
from lasagna.checkpoint.weights import load_model
from lasagna.errors import CheckpointError, ConfigError
from lasagna.prompt.dialect import RELEASED
from tests.training.data.sources.samples import SAMPLES
from training.engine import run as engine
from training.engine.adapters import new_token_ids, unwrapped_name
from training.engine.run import train
from training.engine.start import prepare
from training.engine.weights import check_trained
from training.recipe.files import read_recipe
from training.recipe.values import Recipe

RECIPES = Path(__file__).parents[3] / "training" / "recipes"
LARGE = ("lasagna-7b.yaml", "lasagna-7b-released.yaml", "lisa-baseline.yaml")


@pytest.fixture(scope="session")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data root with a sample of every data set that the 7B recipes name."""
    root = tmp_path_factory.mktemp("datasets")
    names = {name for file in LARGE for task in read_recipe(RECIPES / file).recipe.tasks.values() for name in task.sets}
    for name in sorted(names):
        SAMPLES[name](root)
    return root


@pytest.fixture
def shrunk(samples: Path, tiny_7b: Path, tmp_path: Path) -> Callable[..., Recipe]:
    """A function from a shipped 7B recipe's name, and changes, to that recipe on the tiny checkpoint, 4 steps long."""

    def read(file: str, *changes: str) -> Recipe:
        fixed = [
            f"data={samples}",
            f"start={tiny_7b}",
            f"output={tmp_path / file.removesuffix('.yaml')}",
            "deepspeed=null",
            *(f"optimiser.{change}" for change in ("steps=4", "batch_size=4", "learning_rate=1e-2", "warmup=1")),
            *(f"optimiser.{change}" for change in ("log_every=1", "save_every=2")),
        ]
        return read_recipe(RECIPES / file, [*fixed, *changes]).recipe

    return read


@pytest.mark.slow
@pytest.mark.parametrize("file", LARGE)
def test_a_shipped_recipe_takes_real_steps(
    shrunk: Callable[..., Recipe], file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = shrunk(file)
    run = prepare(recipe)
    monkeypatch.setattr(engine, "prepare", lambda recipe: run)
    before = {key: value.clone() for key, value in run.model.state_dict().items()}
    folder = train(recipe, "cpu")
    lines = [json.loads(line) for line in (recipe.output / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert all(line["text"] > 0 and line["norm"] > 0 for line in lines)
    assert any(line["dice"] > 0 for line in lines)

    moved = {key for key, value in run.model.state_dict().items() if not torch.equal(value, before[key])}
    trained = {name for name, parameter in run.model.named_parameters() if parameter.requires_grad}
    assert moved <= trained
    for part in ("lora_A.default", "lora_B.default", "segmenter.mask_decoder", "prompt_projection"):
        assert any(part in key for key in moved), part
    rows = "trainable_tokens_delta" if recipe.trained.token_rows == "new" else "embed_tokens.weight"
    assert any(rows in key for key in moved)
    assert not [key for key in moved if key.startswith(("encoder.", "projector."))]

    # The checkpoint: adapter and trained parts alone, which laid over the base are the trained model.
    assert {path.name for path in folder.iterdir()} >= {"adapter", "base.json", "model.safetensors", "prompt.json"}
    assert not [key for key in load_file(folder / "model.safetensors") if key.startswith(("encoder.", "projector."))]
    loaded, sentence = load_model(folder), torch.arange(40, 60)[None]
    with torch.no_grad():
        expected, found = (
            m.lm_head(m.run(m.embed(sentence).float(), None, torch.arange(20)[None], None))
            for m in (run.model.eval().float(), loaded)
        )
    torch.testing.assert_close(found, expected, atol=1e-2, rtol=2e-2)  # rows are kept in bfloat16
    for name, value in run.model.segmenter.state_dict().items():
        torch.testing.assert_close(loaded.segmenter.state_dict()[name], value.float(), atol=1e-3, rtol=1e-2)
    assert checkpoint_version(folder).startswith("checkpoint-")


def test_the_paper_s_dialect_over_a_checkpoint_of_the_released_one(shrunk: Callable[..., Recipe]) -> None:
    paper, released = prepare(shrunk("lasagna-7b.yaml")), prepare(shrunk("lasagna-7b-released.yaml"))
    assert released.format == RELEASED
    assert len(paper.format.questions["classes"]) > 1
    names = [paper.prompt.encode_name(name) for name in ("sky", "cat")]
    conversation = paper.prompt.conversation([paper.prompt.class_list_turn(names, [True, False])])
    assert conversation.present == (True, False)
    said = [i for i, label in zip(conversation.ids, conversation.labels, strict=True) if label >= 0]
    assert paper.tokenizer.decode(said).split() == ["sky", "<ins>", ",", "cat", "<no_ins>", ".</s>"]


@pytest.mark.slow
def test_only_the_rows_of_new_tokens_move(shrunk: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch) -> None:
    run = prepare(shrunk("lasagna-7b.yaml"))
    monkeypatch.setattr(engine, "prepare", lambda recipe: run)
    folder = train(run.recipe, "cpu")
    base, tuned = (load_file(Path(path) / "model.safetensors") for path in (run.recipe.start, folder))
    new = new_token_ids(run.tokenizer)
    assert len(new) == 7
    for key in ("language_model.embed_tokens.weight", "lm_head.weight"):
        same = (base[key].float() == tuned[key].float()).all(1)
        others = torch.ones(len(same), dtype=torch.bool)
        others[new] = False
        assert torch.allclose(base[key].float()[others], tuned[key].float()[others], atol=2e-3)
        assert not same[new].all()


def test_a_parameter_that_trains_and_should_not_is_named(shrunk: Callable[..., Recipe]) -> None:
    recipe = shrunk("lasagna-7b.yaml")
    model = prepare(recipe).model
    model.projector.weight.requires_grad_(True)
    next(model.segmenter.mask_decoder.parameters()).requires_grad_(False)
    with pytest.raises(Exception, match=r"(?s)2 parameters.*projector.weight is trained.*mask_decoder\S+ is frozen"):
        check_trained(model, recipe.trained)


def test_names_without_wrappers(shrunk: Callable[..., Recipe], tiny_7b: Path) -> None:
    plain = {name for name, _ in load_model(tiny_7b).named_parameters()}
    wrapped = [name for name, _ in prepare(shrunk("lasagna-7b.yaml")).model.named_parameters()]
    assert {unwrapped_name(name) for name in wrapped} >= plain


def curve(recipe: Recipe) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (recipe.output / "log.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds_per_step"} for line in lines]


@pytest.mark.slow
def test_adapters_go_on_to_the_same_curve(shrunk: Callable[..., Recipe], tmp_path: Path) -> None:
    straight = shrunk("lasagna-7b.yaml", "optimiser.keep=2")
    train(straight, "cpu")
    cut = dataclasses.replace(straight, output=tmp_path / "cut")
    train(cut, "cpu")
    shutil.rmtree(cut.output / "states" / "checkpoint-4")  # as after a kill in step 3 or 4
    train(cut, "cpu")
    assert curve(cut) == curve(straight)
    one, two = (load_file(r.output / "checkpoint" / "model.safetensors") for r in (straight, cut))
    assert all(torch.equal(one[key], two[key]) for key in one)


@pytest.mark.slow
def test_checkpointed_gradients_are_the_gradients(shrunk: Callable[..., Recipe], tmp_path: Path) -> None:
    exact = ("optimiser.precision=float32", "optimiser.frozen_precision=float32")
    train(plain := shrunk("lasagna-7b.yaml", *exact, "optimiser.gradient_checkpointing=false"), "cpu")
    train(again := shrunk("lasagna-7b.yaml", *exact, f"output={tmp_path}/again"), "cpu")
    assert again.optimiser.gradient_checkpointing
    for a, b in zip(curve(plain), curve(again), strict=True):
        assert a == pytest.approx(b, rel=1e-4)


@pytest.mark.slow
def test_kept_features_give_the_same_losses(shrunk: Callable[..., Recipe], tmp_path: Path) -> None:
    """To the rounding of the half precision in which they are kept."""
    exact = ("optimiser.precision=float32", "optimiser.frozen_precision=float32")
    train(live := shrunk("lasagna-7b.yaml", *exact), "cpu")
    kept = shrunk("lasagna-7b.yaml", *exact, f"features={{folder: {tmp_path / 'features'}}}", f"output={tmp_path}/kept")
    train(kept, "cpu")
    assert list((tmp_path / "features").rglob("*"))
    for a, b in zip(curve(live), curve(kept), strict=True):
        assert a == pytest.approx(b, rel=2e-2, abs=1e-3)


def test_kept_features_of_an_encoder_that_trains_are_refused(shrunk: Callable[..., Recipe], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="only a frozen encoder can be cached"):
        shrunk("lasagna-7b.yaml", f"features={{folder: {tmp_path}}}", "trained.parts=[encoder]")


@pytest.mark.slow
def test_a_light_checkpoint_can_be_trained_further(shrunk: Callable[..., Recipe]) -> None:
    first = train(shrunk("lasagna-7b.yaml"), "cpu")
    second = train(shrunk("lasagna-7b.yaml", f"start={first}", f"output={first.parent.parent}/second", "seed=2"), "cpu")
    one, two = (load_model(folder).language_model.state_dict() for folder in (first, second))
    assert any(not torch.equal(one[key], two[key]) for key in one if "q_proj" in key)
    shutil.rmtree(first)
    with pytest.raises(CheckpointError, match="laid over another checkpoint, which is not here"):
        load_model(second)
