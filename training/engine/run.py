"""The engine: a recipe to a checkpoint folder, on one process or as one of several under torchrun.

    from training.engine.run import train
    folder = train(recipe)                      # recipe.output / "checkpoint", loadable with Lasagna.from_pretrained

A run's folder holds

    checkpoint/          the model (averaged weights where the recipe keeps them)
    states/              what a killed run goes on from
    log.jsonl            one JSON object per log step
    recipe.yaml          the resolved recipe
    tensorboard/         scalars, where tensorboard is installed

What always holds: a run that was killed goes on from its last state to the same curve; a folder that holds a run of
another recipe is refused; whatever ends a run leaves the last good state and checkpoint as they are.
"""

import contextlib
import importlib.util
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import yaml

from lasagna.errors import ConfigError, TrainingError
from lasagna.network.compat import ensure_torchvision
from training.data.sets import with_replay
from training.engine.run_report import LogFile, Reporter
from training.engine.start import prepare
from training.recipe.files import recipe_from_values, to_values
from training.recipe.values import Recipe

# What may change between a run and its continuation without changing the curve.
FREE = {"output", "data", "features", "tensorboard", "smoke", "deepspeed", "threads"}
FREE_OPTIONS = {"save_every", "keep"}


def train(recipe: Recipe, device: str = "auto", reporter: Reporter | None = None, restart: bool = False) -> Path:
    """Trains to the recipe's last step, from the last state in its output folder where there is one.

    Args:
        device: "auto" (CUDA where there is one), "cpu" or "cuda".
        restart: Whether what an earlier run left in the output folder is deleted first.

    Returns:
        The checkpoint's folder.

    Raises:
        ConfigError: The recipe cannot be run here, or its output folder holds a run of another recipe.
        DataError, CheckpointError: What it names is missing or broken.
        TrainingError: The run had to stop: loss or gradient not finite, out of memory, disk full.
    """
    with cpu_threads(recipe.threads):
        return _train(with_replay(recipe)[0], device, reporter or Reporter(), restart)


@contextlib.contextmanager
def cpu_threads(count: int | None) -> Iterator[None]:
    """Computes with so many threads; None: as it is."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _train(recipe: Recipe, device: str, reporter: Reporter, restart: bool) -> Path:
    first = int(os.environ.get("RANK", "0")) == 0
    if not restart:
        _refuse_another_recipe(recipe)
    elif first:
        _delete_run(recipe.output)
    arguments, run = _arguments(recipe, device), prepare(recipe)
    from training.engine.trainer import Trainer

    log = LogFile(recipe.output / "log.jsonl", reporter)
    trainer = Trainer(run, arguments, log.write, log.step)
    try:
        state = trainer.last_state()
        if first:
            recipe.output.mkdir(parents=True, exist_ok=True)
            _write_recipe(recipe)
            log.open(int(state.name.split("-")[1]) if state else 0, recipe.optimiser.steps)
        trainer.train(resume_from_checkpoint=str(state) if state else None)
        if first and not (recipe.output / "checkpoint").exists():
            trainer.save_averaged(recipe.output / "checkpoint")
        trainer.accelerator.wait_for_everyone()
    except Exception as error:
        told = explain_failure(error, recipe)
        if told is None:
            raise
        last = trainer.last_state()
        rest = f"the last good state is {last}; the same command goes on from it" if last else "no state was saved yet"
        raise TrainingError(f"{told}; {rest}") from error
    finally:
        log.close()
    return recipe.output / "checkpoint"


def explain_failure(error: BaseException, recipe: Recipe) -> str | None:
    """What ended a run and what to do about it, or None for what is not known to end runs.

    Errors of a full disk and of memory come in many classes: OSError, RuntimeError of torch's writer and allocators,
    SafetensorError.
    """
    options, text = recipe.optimiser, str(error)
    if isinstance(error, TrainingError):
        advice = "lower optimiser.learning_rate, or look at the examples of that step"
        return f"{text}; {advice}" if "not finite" in text else text
    if isinstance(error, torch.OutOfMemoryError | MemoryError) or "allocate memory" in text:
        smaller = max(1, options.micro_batch // 2)
        checkpointing = "" if options.gradient_checkpointing else " or optimiser.gradient_checkpointing=true"
        return (
            f"out of memory with micro-batches of {options.micro_batch} ({text.splitlines()[0][:200]}); "
            f"try optimiser.micro_batch={smaller}{checkpointing}, which change no step's examples"
        )
    signs = ("No space left", "File too large", "Disk quota", "os error 28", "os error 27", "failed writing file")
    if any(sign in text for sign in signs) or "unexpected pos" in text:
        free = shutil.disk_usage(recipe.output if recipe.output.exists() else ".").free / 2**20
        what = f"{text.splitlines()[0][:200]}; {free:.0f} MiB free"
        return f"the disk is full: {recipe.output} could not be written ({what})"
    return None


def _arguments(recipe: Recipe, device: str) -> Any:
    ensure_torchvision()
    from transformers import TrainingArguments

    if device not in ("auto", "cpu", "cuda"):
        raise ConfigError(f"device is auto, cpu or cuda, not {device!r}; CUDA_VISIBLE_DEVICES says which GPUs")
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device cuda: torch finds no GPU here; use --device cpu")
    cpu = device == "cpu" or not torch.cuda.is_available()
    options, processes = recipe.optimiser, int(os.environ.get("WORLD_SIZE", "1"))
    try:
        accumulation = options.accumulation(processes)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    if recipe.deepspeed and importlib.util.find_spec("deepspeed") is None:
        raise ConfigError("deepspeed is not installed: `pip install deepspeed`, or deepspeed=null without it")
    tensorboard = recipe.tensorboard and importlib.util.find_spec("tensorboard") is not None
    if tensorboard:
        os.environ["TENSORBOARD_LOGGING_DIR"] = str(recipe.output / "tensorboard")
    arguments = TrainingArguments(
        output_dir=str(recipe.output / "states"),
        max_steps=options.steps,
        per_device_train_batch_size=options.micro_batch,
        gradient_accumulation_steps=accumulation,
        max_grad_norm=options.clip,
        learning_rate=options.learning_rate,
        bf16=recipe.deepspeed is not None and options.precision == "bfloat16",
        use_cpu=cpu,
        seed=recipe.seed,
        logging_strategy="steps",
        logging_steps=options.log_every,
        logging_nan_inf_filter=False,
        save_strategy="steps",
        save_steps=options.save_every,
        report_to=["tensorboard"] if tensorboard else [],
        disable_tqdm=True,
        log_level="warning",
        ignore_data_skip=True,
        ddp_find_unused_parameters=True,
        ddp_broadcast_buffers=False,
        ddp_backend="gloo" if cpu and processes > 1 else None,
        deepspeed=str(recipe.deepspeed) if recipe.deepspeed else None,
        remove_unused_columns=False,
    )
    if processes == 1:
        arguments._n_gpu = min(1, arguments.n_gpu)  # else several GPUs would be used by torch's DataParallel
    return arguments


def _delete_run(output: Path) -> None:
    for folder in ("states", "checkpoint", "tensorboard"):
        shutil.rmtree(output / folder, ignore_errors=True)
    for file in ("log.jsonl", "recipe.yaml"):
        (output / file).unlink(missing_ok=True)


def _write_recipe(recipe: Recipe) -> None:
    (recipe.output / "recipe.yaml").write_text(yaml.safe_dump(to_values(recipe), sort_keys=False), encoding="utf-8")


def _refuse_another_recipe(recipe: Recipe) -> None:
    path = recipe.output / "recipe.yaml"
    if not path.exists() or not (recipe.output / "states").exists():
        return
    before, now = yaml.safe_load(path.read_text(encoding="utf-8")), to_values(recipe)
    with contextlib.suppress(ConfigError):  # what an earlier version wrote, with what it has by default today
        before = to_values(recipe_from_values(before))
    changed = [
        f"{key}{'.' + inner if inner else ''}"
        for key in sorted(before.keys() | now.keys())
        for inner in _differing(before.get(key), now.get(key))
        if key not in FREE and not (key == "optimiser" and inner in FREE_OPTIONS)
    ]
    if changed:
        raise ConfigError(
            f"{recipe.output} holds a run of another recipe, which differs in {', '.join(changed)}; give another "
            f"output (output=..., and start={recipe.output}/checkpoint model=null to go on from its weights), or "
            "--restart to delete it"
        )


def _differing(before: Any, now: Any) -> list[str]:
    if isinstance(before, dict) and isinstance(now, dict):
        return [str(key) for key in sorted(before.keys() | now.keys()) if before.get(key) != now.get(key)]
    return [] if before == now else [""]
