"""The command `lasagna train`: by a recipe, or of a project of Label Studio."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from backend.commands.which_project import ProjectName, find_project, server_option
from lasagna.errors import ConfigError

if TYPE_CHECKING:
    from training.recipe.files import RecipeFile


@click.command(
    epilog="""\b
Examples:
  lasagna train finetune tasks.semantic.sets.mine.path=FOLDER
  lasagna train nano output=/tmp/run optimiser.steps=200
  lasagna train my-recipe.yaml --smoke
  lasagna train --validate nano finetune my-recipe.yaml
  lasagna train --print-config nano sequence.preset=lisa
  OMP_NUM_THREADS=1 torchrun --nproc-per-node 2 --no-python lasagna train nano
  lasagna train --project 3
"""
)
@click.argument("arguments", metavar="RECIPE [KEY=VALUE ...]", nargs=-1)
@click.option("--project", type=ProjectName(), help="Fine-tune on this project's corrections instead.")
@server_option
@click.option("--again", is_flag=True, help="With --project: also where nothing was corrected since.")
@click.option("--redis-url", metavar="URL", help="With --project: Redis, as for `lasagna worker`.")
@click.option("--device", default="auto", help="auto, cpu or cuda")
@click.option("--smoke", is_flag=True, help="A short run with what the recipe's section `smoke` changes.")
@click.option("--restart", is_flag=True, help="Delete what an earlier run left in the output folder.")
@click.option("--validate", is_flag=True, help="Check recipes and the files that they need; train nothing.")
@click.option("--print-config", is_flag=True, help="Print every value and where it is from; train nothing.")
def train(
    arguments: tuple[str, ...],
    project: str | None,
    server: str,
    again: bool,
    redis_url: str | None,
    device: str,
    smoke: bool,
    restart: bool,
    validate: bool,
    print_config: bool,
) -> None:
    """Train a model by a RECIPE, a file or the name of a shipped one; a run that was killed goes on where it was.

    --validate ends with 0 where all is well, 2 where a recipe is wrong, and 3 where recipes are right but need files
    that are not on this machine.

    With --project, ask `lasagna worker` to fine-tune on what was corrected there.
    """
    if project is not None:
        if arguments:
            raise click.UsageError(
                "--project trains by the project's own recipe (LASAGNA_TRAIN_RECIPE); leave RECIPE out"
            )
        _ask_for_fine_tune(project, server, again, redis_url)
        return
    paths = [Path(argument) for argument in arguments if "=" not in argument or Path(argument).is_file()]
    changes = [argument for argument in arguments if Path(argument) not in paths]
    if not paths:
        raise click.UsageError("no recipe given; one is nano")
    if validate:
        raise SystemExit(_validate(paths, changes, smoke))
    if len(paths) > 1:
        raise click.UsageError(f"one recipe at a time is trained or printed; found {', '.join(map(str, paths))}")
    from training.recipe.files import read_recipe

    file = read_recipe(paths[0], changes, smoke)
    if print_config:
        _print_config(file)
        return
    from training.data.sets import what_is_replayed
    from training.engine.run import train as run
    from training.engine.run_report import TerminalReporter

    first = int(os.environ.get("RANK", "0")) == 0
    for line in what_is_replayed(file.recipe) if first else ():
        click.secho(line, fg="yellow", err=True)
    if not smoke:
        with TerminalReporter(file.recipe, quiet=not first) as reporter:
            folder = run(file.recipe, device, reporter, restart)
        reporter.console.print(f"done: {folder}")
        return
    from training.engine.smoke import run_smoke

    run_smoke(file.recipe, device, restart)


def _ask_for_fine_tune(project: str, server: str, again: bool, redis_url: str | None) -> None:
    from backend.commands.redis import open_store, redis_in_words
    from backend.loop.trainings import Trainings
    from backend.queue.living_workers import living_workers
    from backend.registry.abilities import why_not_trained
    from backend.registry.registry import Registry
    from lasagna.settings import Settings, registry_folder

    settings = Settings.load(redis_url=redis_url)
    store = open_store(settings)
    with redis_in_words():
        uid = find_project(settings, store, project, server)
        if refused := why_not_trained(uid, Registry(registry_folder(settings)), store):
            raise ConfigError(refused)
        Trainings(store).ask(uid, again=again)
    click.echo(f"asked for a fine-tune of project {project}; `lasagna jobs` shows how far it is")
    if not living_workers(store, "train"):
        raise ConfigError("no training process is running: the wish is noted, start `lasagna worker`")


def _validate(paths: list[Path], changes: list[str], smoke: bool) -> int:
    from rich.console import Console

    from training.data.sets import missing_files, what_is_replayed
    from training.recipe.files import read_recipe

    console, result = Console(highlight=False, soft_wrap=True, markup=False), 0
    for path in paths:
        try:
            recipe = read_recipe(path, changes, smoke).recipe
            if recipe.smoke and not smoke:
                _check_smoke_section(path, changes)
        except ConfigError as error:
            console.print(str(error), style="red", markup=False)
            result = 2
            continue
        missing = missing_files(recipe)
        for line in what_is_replayed(recipe):
            console.print(f"{path}: {line}", markup=False)
        console.print(f"{path}: a valid recipe" + ("; not on this machine:" if missing else ""))
        for problem in missing:
            console.print("  " + problem.replace("\n", "\n  "), markup=False)
        result = result or (3 if missing else 0)
    return result


def _check_smoke_section(path: Path, changes: list[str]) -> None:
    """Checks what `--smoke` would make of a recipe as it is written; the changes are for the run that was asked about,
    and count where the recipe is none without them.

    Raises:
        ConfigError: That is no valid recipe.
    """
    from training.recipe.files import read_recipe

    try:
        read_recipe(path)
        changes = []
    except ConfigError:
        pass
    try:
        read_recipe(path, changes, smoke=True)
    except ConfigError as error:
        raise ConfigError(f"with --smoke, which changes what its section `smoke` says: {error}") from error


def _print_config(file: "RecipeFile") -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for heading in ("key", "value", "from"):
        table.add_column(heading, no_wrap=True)
    for row in file.describe():
        table.add_row(*row)
    console = Console(highlight=False, markup=False)
    if not console.is_terminal:
        console.width = 200
    console.print(table)
