"""`lasagna calibrate`: the model's margins on held-out photos to probabilities that can be believed.

Platt scaling (Platt 1999, "Probabilistic outputs for support vector machines"): one temperature and one offset for all
classes, fitted on the photos that a recipe kept out of training. What always holds: every data set weighs the same,
however many classes and photos it has; the ranking of a question's answers does not change, only where "present"
begins.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
from numpy.typing import NDArray

from lasagna.checkpoint import Calibration, find_checkpoint, write_calibration
from lasagna.errors import DataError
from lasagna.progress import progress_bar
from training.data import FolderDataset
from training.evaluate import Segmenter, evaluate_dataset
from training.metrics import average_precision, expected_calibration_error
from training.recipe_file import read_recipe
from training.sets import open_photos

ROUNDS = 2  # an answer depends on the decisions before it, so margins move a little with the offset


@dataclass(frozen=True)
class Answers:
    """Presence answers on one data set, every class of the set asked of every photo.

    Attributes:
        margins: (N,) float64, logit(<SEG>) - logit(<NEG>).
        present: (N,) bool, the truth.
    """

    margins: NDArray[np.float64]
    present: NDArray[np.bool_]

    def probabilities(self, calibration: Calibration) -> NDArray[np.float64]:
        logits = (self.margins - calibration.offset) / calibration.temperature
        return np.asarray(np.exp(-np.logaddexp(0, -logits)))


def fit_calibration(sets: Sequence[Answers]) -> Calibration:
    """The temperature and offset with the smallest binary cross-entropy, averaged per set, then over sets.

    Raises:
        DataError: There is no present or no absent answer, or larger margins do not mean that a class is more often
            present: such a model has nothing to calibrate.
    """
    from scipy.optimize import minimize

    everything = np.concatenate([answers.present for answers in sets]) if sets else np.zeros(0, bool)
    if everything.all() or not everything.any():
        raise DataError(
            f"calibration needs present and absent answers; found {everything.sum()} present ones of "
            f"{everything.size}: hold more photos out"
        )

    def loss(values: NDArray[np.float64]) -> float:
        scale, shift = values
        terms = []
        for answers in sets:
            logits = scale * answers.margins + shift
            terms.append(np.logaddexp(0, np.where(answers.present, -logits, logits)).mean())
        return float(np.mean(terms))

    scale, shift = minimize(loss, np.array([1.0, 0.0]), method="L-BFGS-B").x
    if not scale > 1e-3:
        raise DataError(
            f"classes with larger margins are not more often present (fitted slope {scale:.3g}); train the model first"
        )
    return Calibration(temperature=1 / float(scale), offset=-float(shift / scale))


def collect_answers(
    model: Segmenter, dataset: FolderDataset, calibration: Calibration, on_image: Callable[[], None] = lambda: None
) -> Answers:
    """Asks a data set as `evaluate_dataset` does.

    Args:
        calibration: The model's own, to take its probabilities back to margins.
    """
    found = evaluate_dataset(model, dataset, on_image=on_image).presence
    # float32 probabilities end at 1: beyond these borders a margin says no more.
    probability = found.probability.clip(1e-7, 1 - 1e-7)
    logits = np.log(probability) - np.log1p(-probability)
    return Answers(logits * calibration.temperature + calibration.offset, found.truth)


@click.command(
    epilog="""\b
Examples:
  lasagna calibrate training/recipes/nano.yaml
  lasagna calibrate training/recipes/nano.yaml output=runs/other
  lasagna calibrate training/recipes/nano.yaml --model nano
"""
)
@click.argument("recipe", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("changes", nargs=-1)
@click.option("--model", "name", help="Checkpoint to calibrate; default: the one that the recipe wrote.")
def calibrate(recipe: Path, changes: tuple[str, ...], name: str | None) -> None:
    """Fit the probabilities of a checkpoint on the photos that its RECIPE held out, and store them beside it."""
    checked = read_recipe(recipe, changes).recipe
    folder = find_checkpoint(name or checked.output / "checkpoint")
    sets = [held_out for held_out in open_photos(checked, held_out=True) if len(held_out)]
    if not sets:
        raise DataError(f"{recipe} holds no photo out; its 'holdout' is {checked.holdout}, a share such as 0.05 does")

    from rich.console import Console
    from rich.table import Table

    from lasagna import Lasagna

    model = Lasagna.from_pretrained(folder)
    model.calibration = Calibration()
    console = Console(stderr=True)
    with progress_bar(console, "asking", ROUNDS * sum(len(dataset) for dataset in sets)) as advance:
        for _ in range(ROUNDS):
            answers = [collect_answers(model, dataset, model.calibration, advance) for dataset in sets]
            model.calibration = fit_calibration(answers)
    write_calibration(folder, model.calibration)

    table = Table(title=f"temperature {model.calibration.temperature:.3f}, offset {model.calibration.offset:.3f}")
    for heading in ("held out", "photos", "average precision", "ECE before", "ECE after"):
        table.add_column(heading, justify="left" if heading == "held out" else "right")
    for dataset, found in zip(sets, answers, strict=True):
        ranked = average_precision(found.present, found.margins)
        fits = (Calibration(), model.calibration)
        errors = (expected_calibration_error(found.present, found.probabilities(fit)) for fit in fits)
        table.add_row(dataset.name, str(len(dataset)), f"{ranked or 0:.3f}", *(f"{error:.3f}" for error in errors))
    Console().print(table)
    console.print(f"written: {folder / 'calibration.json'}")
