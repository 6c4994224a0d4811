"""The command `lasagna train`."""

import json
from pathlib import Path
from typing import Any

import click

from lasagna.errors import ConfigError


def read_recipe(path: Path, changes: tuple[str, ...]) -> dict[str, Any]:
    """A recipe file as nested dicts, with `key.sub=value` changes; values are read as YAML. Raises ConfigError."""
    import yaml

    try:
        values = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not readable as YAML ({error})") from error
    for change in changes:
        key, separator, text = change.partition("=")
        *parents, last = key.split(".")
        target = values
        for parent in parents:
            target = target.get(parent) if isinstance(target, dict) else None
        if not separator or not isinstance(target, dict) or last not in target:
            raise ConfigError(f"{change!r} changes nothing: {path} has no value {key!r}; write key=value, as in seed=2")
        target[last] = yaml.safe_load(text)
    return dict(values)


@click.command(
    epilog="""\b
Examples:
  lasagna train training/recipes/nano.yaml
  lasagna train training/recipes/nano.yaml output=/tmp/run optimiser.steps=100
  OMP_NUM_THREADS=1 torchrun --nproc-per-node 2 --no-python lasagna train training/recipes/nano.yaml
"""
)
@click.argument("recipe", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("changes", nargs=-1)
@click.option("--device", default="auto", help="auto, cpu or cuda")
def train(recipe: Path, changes: tuple[str, ...], device: str) -> None:
    """Train a model by a RECIPE file; a run that was killed goes on where it was."""
    values = read_recipe(recipe, changes)
    import torch
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    from training.loop import Recipe, Trainer

    checked = Recipe.from_dict(values)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    trainer = Trainer(checked, device)
    console = Console(stderr=True, quiet=trainer.rank > 0)
    if trainer.resume():
        console.print(f"resuming {checked.output} at step {trainer.step}")
    checked.output.mkdir(parents=True, exist_ok=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}"))
    with (
        (checked.output / "log.jsonl").open("a") as log,
        Progress(*columns, TimeRemainingColumn(), console=console) as progress,
    ):
        bar = progress.add_task("training", total=checked.optimiser.steps, completed=trainer.step)
        for line in trainer.run():
            if trainer.rank == 0:
                log.write(json.dumps(line) + "\n")
                log.flush()
            progress.update(bar, completed=line["step"], description=f"loss {line['loss']:.3f}")
    console.print(f"done: {checked.output / 'checkpoint'}")
