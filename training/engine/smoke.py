"""`lasagna train RECIPE --smoke`: a short run, measured before and after on photos of the val splits that never change.

Shows that data, loss, optimiser and checkpoint work together: the loss falls and presence average precision rises. A
smoke run that was killed goes on like any other.
"""

import os
from dataclasses import dataclass

import torch
from rich.console import Console
from rich.table import Table

from lasagna import Lasagna
from lasagna.checkpoint.folder import Calibration
from lasagna.errors import ConfigError
from lasagna.network.model import LasagnaModel
from lasagna.prompt.dialect import PromptFormat
from lasagna.prompt.tokenizer import LabelTokenizer
from training.data.sets import Subset, with_replay
from training.data.sources import Source
from training.data.sources.folder import Folder
from training.data.spread import spread
from training.engine.objective import Objective
from training.engine.run import cpu_threads, train
from training.engine.run_report import TerminalReporter
from training.engine.start import prepare
from training.evaluation.evaluate import evaluate_dataset
from training.examples.batches import MicroBatch
from training.examples.mixture import Mixture
from training.examples.photos import Photos
from training.recipe.values import Recipe

PHOTOS, LOSS_BATCHES = 40, 6


@dataclass(frozen=True)
class Measured:
    """One set's photos: their training loss without gradient, and presence average precision over all classes."""

    loss: float
    average_precision: float


def run_smoke(recipe: Recipe, device: str = "auto", restart: bool = False) -> dict[str, tuple[Measured, Measured]]:
    """Trains and prints what was measured before and after; returns it by data set."""
    with cpu_threads(recipe.threads):
        return _run(with_replay(recipe)[0], device, restart)


def _run(recipe: Recipe, device: str, restart: bool) -> dict[str, tuple[Measured, Measured]]:
    quiet = os.environ.get("RANK", "0") != "0"
    console = Console(stderr=True, highlight=False, quiet=quiet, soft_wrap=True, markup=False)
    if recipe.augment is None or not recipe.semantic:
        raise ConfigError("--smoke measures class lists of photos in the folder layout: it needs augment and sets")
    sets = {}
    for name, data in recipe.semantic.items():
        val = Folder(data.path or recipe.data / name, "val")
        sets[name] = Subset(val, spread(len(val), PHOTOS))
    console.print(f"measuring on {PHOTOS} val photos of each set: {', '.join(sets)}")
    run = prepare(recipe)
    started = run.model, run.tokenizer, run.format
    before = {name: measure(recipe, *started, name, source) for name, source in sets.items()}
    with TerminalReporter(recipe, quiet) as reporter:
        folder = train(recipe, device, reporter, restart)
    trained = Lasagna.from_pretrained(folder, device="cpu")
    result = {
        name: (before[name], measure(recipe, trained.model, trained.tokenizer, trained.format, name, source))
        for name, source in sets.items()
    }
    table = Table(title=f"{recipe.optimiser.steps} steps, {folder}")
    for heading in ("val photos", "loss before", "after", "presence AP before", "after"):
        table.add_column(heading, justify="left" if heading == "val photos" else "right")
    for name, (first, last) in result.items():
        values = (first.loss, last.loss, first.average_precision, last.average_precision)
        table.add_row(f"{name} ({len(sets[name])})", *(f"{value:.3f}" for value in values))
    Console(quiet=quiet, markup=False).print(table)
    return result


@torch.no_grad()
def measure(
    recipe: Recipe, model: LasagnaModel, tokenizer: LabelTokenizer, format: PromptFormat, name: str, source: Source
) -> Measured:
    """Measures a model on a data set's photos, on the CPU: the same photos, views and questions each time."""
    answering = Lasagna(model, tokenizer, format, Calibration(), "smoke")
    assert recipe.augment is not None
    size = model.config.vision.image_size
    mixture = Mixture(
        [Photos(source, name, 2 * size)],
        [1.0],
        recipe.sequence,
        recipe.optimiser.micro_batch,
        size,
        recipe.seed,
        recipe.augment.view,
    )
    objective = Objective(model, answering.prompt, recipe).eval()
    losses = [objective(MicroBatch(0, i, mixture.batch(0, i)))["loss"].item() for i in range(LOSS_BATCHES)]
    precision = evaluate_dataset(answering, source).presence.average_precision()
    return Measured(sum(losses) / len(losses), precision or 0.0)
