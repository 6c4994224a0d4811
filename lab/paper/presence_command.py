"""`lasagna experiment presence`: the shipped weights of the instant head's presence."""

import json
from pathlib import Path

import click
from rich.console import Console

from lab.names import asked_everything
from lasagna.progress import progress_bar
from training.commands.options import DATA_HELP, DataSetFolder
from training.evaluation.tables import Cell, markdown_table

_SHIPPED = Path(__file__).parents[2] / "lasagna" / "instant" / "presence.json"


@click.command(
    epilog="""\b
Examples:
  lasagna experiment presence --data ccp --data voc
  lasagna experiment presence --data ccp --data animals --unseen animals --write
"""
)
@click.option(
    "--data",
    "folders",
    multiple=True,
    required=True,
    type=DataSetFolder(),
    help=f"Repeatable, at least two: {DATA_HELP}.",
)
@click.option("--unseen", multiple=True, metavar="NAME", help="A set that the model was not trained on. Repeatable.")
@click.option("--model", "model_name", default="nano", show_default=True, help="Shipped name, folder, hub id.")
@click.option("--photos", default=40, show_default=True, type=click.IntRange(5), help="Corrections of each set.")
@click.option("--write", is_flag=True, help=f"Put the weights into {_SHIPPED.name}.")
def presence(folders: tuple[Path, ...], unseen: tuple[str, ...], model_name: str, photos: int, write: bool) -> None:
    """Fit the default weights by which the instant head says that a class is present.

    Of each set, photos of the train split are taken as corrections and left out in turn: once beside the model, once
    with the ImageNet backbone alone. The table gives each set's figures with weights fitted to the others.
    """
    from lab.bench.instant_curves import BackboneEyes, Eyes, ModelEyes
    from lab.paper.presence import fit_defaults, gather, left_out_figures
    from lasagna.assistant.lasagna import Lasagna

    if len(folders) < 2:
        raise click.UsageError("weights that hold for any data set need at least two --data")
    fitted = {}
    model = asked_everything(Lasagna.from_pretrained(model_name))
    for key, eyes in (("with_model", ModelEyes(model)), ("alone", BackboneEyes())):
        seen: Eyes = eyes
        with progress_bar(Console(stderr=True), key, len(folders) * photos) as advance:
            sets = [gather(seen, folder, photos, advance) for folder in folders]
        new = unseen if key == "with_model" else ()
        rows = left_out_figures(sets, new)
        header = ["set", "answers", "present", "AP", "ECE"]
        cells: list[list[Cell]] = [
            [str(row["set"]), row["answers"], *(row[name] for name in ("present", "ap", "ece"))] for row in rows
        ]
        click.echo(f"{key}: weights fitted to the other sets\n")
        click.echo(markdown_table(header, cells))
        fitted[key] = fit_defaults(sets, new).to_dict()
    text = json.dumps(fitted, indent=1) + "\n"
    if write:
        _SHIPPED.write_text(text, encoding="utf-8")
    else:
        click.echo(text)
