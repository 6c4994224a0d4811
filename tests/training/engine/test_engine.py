"""The engine: what is killed goes on to the same curve, several processes give one process's curve, and what must stop
a run stops it with the last good state intact."""

import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.distributed.launcher.api import LaunchConfig, elastic_launch
from torch.distributed.run import config_from_args, parse_args

from lasagna import Lasagna
from lasagna.checkpoint.vocabulary import load_vocabulary
from lasagna.commands.cli import main
from lasagna.environment import usable_cores
from lasagna.errors import ConfigError, DataError, TrainingError
from tests.forked import run_forked
from tests.training.conftest import TINY
from training.data.vocabulary import vocabulary_after
from training.engine import run as engine
from training.engine.run import explain_failure, train
from training.engine.run_report import LogFile, Reporter
from training.engine.start import prepare
from training.examples.batches import MicroBatches, batch_workers
from training.recipe.files import read_recipe
from training.recipe.values import Recipe

Tiny = Callable[..., Recipe]
TIMES = ("seconds_per_step",)
MORE_THAN_CORES = "ignore:This DataLoader will create:UserWarning"
"""A machine of one core too makes the batches of these tests in two processes."""


class Steps(Reporter):
    """Remembers the steps that it was told of."""

    def __init__(self) -> None:
        self.steps: list[int] = []

    def step(self, step: int) -> None:
        self.steps.append(step)


def curve(folder: Path) -> list[dict[str, float]]:
    """The log's lines without what depends on the clock."""
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in TIMES} for line in lines]


def train_command(*words: str) -> list[str]:
    return ["train", *words, "--device", "cpu"]


@pytest.fixture(scope="session")
def straight(squares: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the tiny recipe's run, which nothing stopped, with every state that it saved. Read only."""
    folder = tmp_path_factory.mktemp("straight")
    (folder / "tiny.yaml").write_text(TINY.format(output=folder / "run", data=squares))
    train(read_recipe(folder / "tiny.yaml", ["optimiser.keep=3"]).recipe, "cpu")
    return folder / "run"


@pytest.fixture
def ran(straight: Path, tiny_file: Path) -> Path:
    """The tiny recipe's folder, in which it has run to its end."""
    shutil.copytree(straight, tiny_file.parent / "run")
    return tiny_file.parent / "run"


@pytest.fixture
def begun(ran: Path) -> Path:
    """The same folder as after a stop in step 3 or 4: its last state is that of step 2."""
    for later in ("checkpoint-4", "checkpoint-6"):
        shutil.rmtree(ran / "states" / later)
    return ran


@pytest.mark.slow
def test_a_run_trains_and_its_checkpoint_loads(tiny: Tiny) -> None:
    recipe, reporter = tiny(), Steps()
    assert train(recipe, "cpu", reporter) == recipe.output / "checkpoint"
    assert reporter.steps == [1, 2, 3, 4, 5, 6]
    lines = curve(recipe.output)
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert {"loss", "norm", "learning_rate", "text", "bce", "dice"} <= lines[0].keys()
    assert [line["learning_rate"] for line in lines[:2]] == pytest.approx([5e-4, 1e-3])
    answer = Lasagna.from_pretrained(recipe.output / "checkpoint").segment(np.full((64, 64, 3), 9, np.uint8), ["red"])
    assert len(answer.classes) == 1
    vocabulary = load_vocabulary(recipe.output / "checkpoint")
    assert vocabulary is not None, "it says what it was taught"
    assert vocabulary == vocabulary_after(recipe)
    assert vocabulary.reading("Reds") == "red"
    assert [path.name for path in (recipe.output / "states").iterdir()] == ["checkpoint-6"]


@pytest.mark.slow
def test_what_is_frozen_stays_and_the_rest_moves(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    run = prepare(tiny("trained.parts=[lm_head, encoder, language_model, segmenter.mask_decoder]"))
    monkeypatch.setattr(engine, "prepare", lambda recipe: run)
    before = {key: value.clone() for key, value in run.model.state_dict().items()}
    train(run.recipe, "cpu")
    moved = {key for key, value in run.model.state_dict().items() if not torch.equal(value, before[key])}
    assert moved <= {name for name, parameter in run.model.named_parameters() if parameter.requires_grad}
    for part in (
        "lm_head",
        "language_model.embed_tokens",
        "segmenter.mask_decoder",
        "encoder.backbone.blocks.6.0.conv_pw",
    ):
        assert any(key.startswith(part) for key in moved), part
    frozen = (
        "prompt_projection.",
        "encoder.backbone.conv_stem.",
        "encoder.backbone.blocks.0.",
        "segmenter.coarse_bias",
    )
    assert not [key for key in moved if key.startswith(frozen)]
    assert not [key for key in moved if "running" in key or "conv_dw" in key]


def die_in_step_3() -> None:
    """The state of step 2 is saved by then, step 4's is not."""
    whole = LogFile.step

    def step(self: LogFile, number: int) -> None:
        whole(self, number)
        if number == 3:
            os.kill(os.getpid(), signal.SIGKILL)

    LogFile.step = step  # type: ignore[method-assign]


@pytest.mark.slow
def test_killed_in_the_middle_and_gone_on_with_is_the_same_curve(
    straight: Path, tiny_file: Path, tmp_path: Path
) -> None:
    words = train_command(str(tiny_file))
    assert run_forked(words, tmp_path, before=die_in_step_3).returncode == -signal.SIGKILL
    assert len(curve(tmp_path / "run")) < 6
    told = run_forked(words, tmp_path, check=True)
    assert "going on after step 2" in told.stderr
    assert curve(tmp_path / "run") == curve(straight)
    one, two = (load_file(run / "checkpoint" / "model.safetensors") for run in (straight, tmp_path / "run"))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[key], two[key]) for key in one)


def main_of_one_process(*words: str) -> None:
    main(words, prog_name="lasagna", standalone_mode=False)


def test_torchrun_starts_the_command() -> None:
    """The documented line, as torchrun itself reads it."""
    words = [*["--standalone", "--nproc-per-node", "2", "-m", "lasagna"], *train_command("tiny.yaml")]
    config, command, arguments = config_from_args(parse_args(words))
    assert (config.min_nodes, config.max_nodes, config.nproc_per_node) == (1, 1, 2)
    assert [command, *arguments] == [sys.executable, "-u", "-m", "lasagna", *train_command("tiny.yaml")]


@pytest.mark.slow
def test_two_processes_give_the_curve_of_one(straight: Path, tiny_file: Path, tmp_path: Path) -> None:
    """The same step of the same micro-batches: their mean gradient, however they are shared. `elastic_launch` is
    torchrun without its command line."""
    fork = LaunchConfig(1, 1, 2, rdzv_backend="c10d", rdzv_endpoint="127.0.0.1:0", start_method="forkserver")
    elastic_launch(fork, main_of_one_process)(*train_command(str(tiny_file)))
    one, two = curve(straight), curve(tmp_path / "run")
    assert len(one) == len(two) == 6
    for a, b in zip(one, two, strict=True):
        assert a == pytest.approx(b, rel=2e-4)


def test_every_process_takes_its_parts_of_each_step() -> None:
    def taken(rank: int, processes: int, first: int = 0) -> list[tuple[int, int]]:
        batches = MicroBatches(lambda step, part: None, lambda: first, 3, 4 // processes, rank, processes)
        return [(item["batch"].step, item["batch"].part) for item in batches]

    everything = [(step, part) for step in range(3) for part in range(4)]
    assert taken(0, 1) == everything
    assert sorted(taken(0, 2) + taken(1, 2)) == everything
    assert taken(0, 1, first=2) == everything[8:]


@pytest.mark.filterwarnings(MORE_THAN_CORES)
def test_batches_that_several_processes_make_come_in_order() -> None:
    def draw(step: int, part: int) -> int:
        time.sleep(0.02 * (1 - step % 2))  # the later of two is ready first
        return step

    batches = MicroBatches(draw, lambda: 0, 12, 1, workers=2)
    assert [item["batch"].data for item in batches] == list(range(12))


@pytest.mark.slow
@pytest.mark.filterwarnings(MORE_THAN_CORES)
def test_processes_make_the_batches_that_a_thread_makes(tiny: Tiny) -> None:
    """Photos and their questions, and whatever the global random state is."""
    draw = prepare(tiny()).draw
    thread, processes = (
        [item["batch"].data for item in MicroBatches(draw, lambda: 1, 4, 2, workers=workers)] for workers in (0, 2)
    )
    for one, other in zip(thread, processes, strict=True):
        assert torch.equal(one.pixels, other.pixels)
        assert torch.equal(one.labels, other.labels)
        assert one.classes == other.classes


def test_a_gpu_has_workers_and_a_cpu_has_none() -> None:
    assert batch_workers("cpu") == 0
    assert 1 <= batch_workers("cuda:0") <= usable_cores()
    assert batch_workers("cuda", processes=1000) == 1


@pytest.mark.filterwarnings(MORE_THAN_CORES)
@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_example_is_reported_where_it_is_used(workers: int) -> None:
    def draw(step: int, part: int) -> None:
        if step == 1:
            raise DataError("photo 7 is broken")

    iterator = iter(MicroBatches(draw, lambda: 0, 3, 1, workers=workers))
    next(iterator)
    with pytest.raises(DataError, match=r"^photo 7 is broken$"):
        next(iterator)


@pytest.mark.slow
def test_a_weight_that_is_not_finite_stops_the_run_and_leaves_the_last_state(tiny: Tiny, begun: Path) -> None:
    state, checkpoint = begun / "states" / "checkpoint-2", (begun / "checkpoint" / "model.safetensors").read_bytes()
    weights = load_file(state / "trained.safetensors")
    weights["model.lm_head.weight"][3, 3] = float("nan")
    save_file(weights, state / "trained.safetensors")
    before = {path.name: path.read_bytes() for path in state.iterdir()}
    with pytest.raises(TrainingError, match=r"loss of step 3 is not finite .*checkpoint-2; the same command"):
        train(tiny(), "cpu")
    assert {path.name: path.read_bytes() for path in state.iterdir()} == before
    assert (begun / "checkpoint" / "model.safetensors").read_bytes() == checkpoint


@pytest.mark.slow
def test_a_gradient_that_is_not_finite_never_reaches_the_weights(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    from training.engine import trainer

    class Root(torch.autograd.Function):
        """Zero with an infinite gradient, as a square root at zero has."""

        @staticmethod
        def forward(ctx: object, x: torch.Tensor) -> torch.Tensor:
            return x * 0

        @staticmethod
        def backward(ctx: object, gradient: torch.Tensor) -> torch.Tensor:
            return gradient * float("inf")

    def poisoned(self: trainer.Objective, batch: object) -> dict[str, object]:
        outputs = forward(self, batch)
        weight = self.model.lm_head.weight.sum()
        return {**outputs, "loss": outputs["loss"] + Root.apply(weight)} if batch.step == 3 else outputs

    forward = trainer.Objective.forward
    monkeypatch.setattr(trainer.Objective, "forward", poisoned)
    recipe = tiny()
    with pytest.raises(TrainingError, match=r"gradient of step 4 is not finite .*checkpoint-2"):
        train(recipe, "cpu")
    saved = load_file(recipe.output / "states" / "checkpoint-2" / "trained.safetensors")
    assert all(torch.isfinite(value).all() for value in saved.values())


@pytest.mark.slow
def test_a_full_disk_stops_the_run_and_leaves_the_last_state(begun: Path, tiny_file: Path, tmp_path: Path) -> None:
    """The largest file that the process may write is too small for a state: the same errors as of a full disk."""
    states = begun / "states"
    before = {path.name: path.read_bytes() for path in (states / "checkpoint-2").iterdir()}
    limit = 300_000
    assert max(len(content) for content in before.values()) > limit
    told = run_forked(train_command(str(tiny_file)), tmp_path, largest_file=limit)
    assert told.returncode == 2, told.stderr
    assert "the disk is full" in told.stderr
    assert "checkpoint-2; the same command goes on from it" in told.stderr
    assert "Traceback" not in told.stderr
    assert sorted(path.name for path in states.iterdir()) == ["checkpoint-2"]
    assert {path.name: path.read_bytes() for path in (states / "checkpoint-2").iterdir()} == before
    run_forked(train_command(str(tiny_file)), tmp_path, check=True)
    assert [line["step"] for line in curve(begun)] == [1, 2, 3, 4, 5, 6]


def test_out_of_memory_says_what_to_change(tiny: Tiny) -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    told = explain_failure(caught.value, tiny("optimiser.batch_size=8", "optimiser.micro_batch=4"))
    assert told is not None
    assert "optimiser.micro_batch=2 or optimiser.gradient_checkpointing=true" in told
    assert explain_failure(ValueError("something else"), tiny()) is None


@pytest.mark.slow
def test_threads_are_the_recipe_s_while_it_trains(tiny: Tiny) -> None:
    class Threads(Reporter):
        seen = 0

        def step(self, step: int) -> None:
            self.seen = torch.get_num_threads()

    before, reporter = torch.get_num_threads(), Threads()
    train(tiny("threads=3"), "cpu", reporter)
    assert (reporter.seen, torch.get_num_threads()) == (3, before)


@pytest.mark.slow
def test_another_recipe_in_the_same_folder_is_refused(tiny: Tiny, ran: Path) -> None:
    with pytest.raises(ConfigError, match=r"differs in optimiser.learning_rate, seed; give another"):
        train(tiny("seed=2", "optimiser.learning_rate=1e-4"), "cpu")
    train(tiny("tensorboard=false"), "cpu")  # changes no curve
    train(tiny("optimiser.steps=2", "optimiser.warmup=1", "seed=2"), "cpu", restart=True)
    assert [line["step"] for line in curve(ran)] == [1, 2]


@pytest.mark.slow
def test_a_finished_run_is_left_as_it_is(tiny: Tiny, ran: Path) -> None:
    reporter, weights = Steps(), ran / "checkpoint" / "model.safetensors"
    written = weights.stat().st_mtime_ns
    assert train(tiny(), "cpu", reporter) == ran / "checkpoint"
    assert reporter.steps == []
    assert weights.stat().st_mtime_ns == written


@pytest.mark.slow
def test_a_run_starts_from_a_checkpoint(tiny: Tiny, straight: Path) -> None:
    folder = straight / "checkpoint"
    later = prepare(tiny(f"start={folder}", "model=null"))
    saved = Lasagna.from_pretrained(folder)
    assert later.tokenizer.encode("red") == saved.tokenizer.encode("red")
    assert later.format == saved.format
    for key, value in saved.model.state_dict().items():
        assert torch.equal(value, later.model.state_dict()[key]), key


def test_missing_data_is_named_before_anything_is_made(tiny: Tiny, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"tasks.semantic.sets.squares: .*classes.json"):
        train(tiny(f"data={tmp_path}/nowhere"), "cpu")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("device", "message"), [("tpu", "device is auto, cpu or cuda"), ("cuda", "torch finds no GPU here")]
)
def test_a_device_that_is_not_there(tiny: Tiny, device: str, message: str) -> None:
    if device == "cuda" and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(ConfigError, match=message):
        train(tiny(), device)


def test_scalars_for_tensorboard(straight: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(straight / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("train/loss")] == [1, 2, 3, 4, 5, 6]
