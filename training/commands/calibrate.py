"""The command `lasagna calibrate`: the photos that a recipe held out, asked and fitted on."""

from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from lasagna.checkpoint.architectures import architecture_of
from lasagna.checkpoint.folder import CLASSIFIER, Calibration, find_checkpoint, write_calibration
from lasagna.checkpoint.vocabulary import VOCABULARY, load_vocabulary, write_vocabulary
from lasagna.errors import ConfigError, DataError
from lasagna.progress import progress_bar
from training.data.sets import held_out_records, training_sets, with_replay
from training.data.vocabulary import count_names, taught_vocabulary
from training.evaluation.calibrate import collect_answers, fit_calibration, mean_precisions
from training.evaluation.metrics import average_precision, expected_calibration_error
from training.recipe.files import read_recipe
from training.recipe.values import Recipe

ROUNDS = 2  # an answer depends on the decisions before it, so margins move a little with the offset


@click.command(
    epilog="""\b
Examples:
  lasagna calibrate nano
  lasagna calibrate nano output=runs/other
  lasagna calibrate nano --model nano
  lasagna calibrate nano --model runs/nano/checkpoint --vocabulary
  lasagna calibrate nano --model runs/nano/checkpoint --classifier
"""
)
@click.argument("recipe", type=click.Path(path_type=Path))
@click.argument("changes", nargs=-1)
@click.option("--model", "name", help="Checkpoint to calibrate; default: the one that the recipe wrote.")
@click.option("--vocabulary", "only_vocabulary", is_flag=True,
              help="Only note the names that the recipe's data sets teach beside it (vocabulary.json).")  # fmt: skip
@click.option("--classifier", "only_classifier", is_flag=True,
              help="Only fit the classifier of taught names to the recipe's photos (classifier/), and the "
                   "probabilities with it.")  # fmt: skip
def calibrate(
    recipe: Path, changes: tuple[str, ...], name: str | None, only_vocabulary: bool, only_classifier: bool
) -> None:
    """Fit the probabilities of a checkpoint on the photos that its RECIPE held out, and store them beside it.

    Where the checkpoint says what it was taught (vocabulary.json), the average precision of each name goes there, too.
    """
    checked = with_replay(read_recipe(recipe, changes).recipe)[0]
    folder = find_checkpoint(name or checked.output / "checkpoint")
    other = architecture_of(folder)
    if other is not None and (only_vocabulary or only_classifier):
        option = "--vocabulary" if only_vocabulary else "--classifier"
        raise ConfigError(
            f"{folder} is a model of the type {other.model_type!r}: no recipe taught it, so {option} has nothing to "
            "note; leave it out to fit the probabilities"
        )
    if only_vocabulary:
        _note_vocabulary(checked, folder)
        return
    if only_classifier:
        _fit_classifier(checked, folder)
        return
    sets = {name: source for name, source in held_out_records(checked).items() if len(source)}
    if not sets:
        raise DataError(f"{recipe} holds no photo out; its 'holdout' is {checked.holdout}, a share such as 0.05 does")

    from lasagna.models.loading import load_model

    model = load_model(folder)
    model.calibration = Calibration()
    console = Console(stderr=True, markup=False)
    with progress_bar(console, "asking", ROUNDS * sum(map(len, sets.values()))) as advance:
        for _ in range(ROUNDS):
            answers = [collect_answers(model, source, model.calibration, advance) for source in sets.values()]
            model.calibration = fit_calibration(answers)
    write_calibration(folder, model.calibration)
    if other is None and (vocabulary := load_vocabulary(folder)) is not None:
        write_vocabulary(folder, vocabulary.measured(mean_precisions(answers)))

    table = Table(title=f"temperature {model.calibration.temperature:.3f}, offset {model.calibration.offset:.3f}")
    for heading in ("held out", "photos", "average precision", "ECE before", "ECE after"):
        table.add_column(heading, justify="left" if heading == "held out" else "right")
    for (name, source), found in zip(sets.items(), answers, strict=True):
        if not len(found.present):
            console.print(f"{name}: the model cannot be asked for a class of it", highlight=False)
            continue
        ranked = average_precision(found.present, found.margins)
        fits = (Calibration(), model.calibration)
        errors = (expected_calibration_error(found.present, found.probabilities(fit)) for fit in fits)
        table.add_row(name, str(len(source)), f"{ranked or 0:.3f}", *(f"{error:.3f}" for error in errors))
    Console(markup=False).print(table)
    console.print(f"written: {folder / 'calibration.json'}")


def _note_vocabulary(recipe: Recipe, folder: Path) -> None:
    """Writes the names of the recipe's class lists, as if the checkpoint had been trained by it from nothing."""
    photos = sum(len(source) for source in training_sets(recipe).values())
    console = Console(stderr=True, markup=False)
    with progress_bar(console, "counting", photos) as advance:
        found = taught_vocabulary(count_names(recipe, advance))
    write_vocabulary(folder, found)
    console.print(f"written: {folder / VOCABULARY}: {len(found.names)} names, {len(found.synonyms)} other words")


def _fit_classifier(recipe: Recipe, folder: Path) -> None:
    """Writes the classifier of the names that the checkpoint was taught, and the calibration with it."""
    from lasagna import Lasagna
    from training.instant.classifier import fit_classifier

    training, held_out = training_sets(recipe), held_out_records(recipe)
    photos = sum(len(source) for sets in (training, held_out) for source in sets.values())
    console = Console(stderr=True, markup=False)
    with progress_bar(console, "looking", photos) as advance:
        classifier, calibration = fit_classifier(Lasagna.from_pretrained(folder), training, held_out, advance)
    classifier.save(folder)
    write_calibration(folder, calibration)
    classes = len(set(classifier.rows.values()))
    console.print(
        f"written: {folder / CLASSIFIER}: {classes} classes under {len(classifier.rows)} names; "
        f"mask share {classifier.mask_share:g}, temperature {calibration.temperature:.3f}"
    )
