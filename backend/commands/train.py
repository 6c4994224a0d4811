"""The command `lasagna train`: by a recipe (`training.commands.train`), or of a project of Label Studio.

`training` knows nothing of projects, so the second form is added here.
"""

import copy
from typing import Any

import click

from lasagna.errors import ConfigError
from training.commands.train import train as by_recipe


def _train(project: int | None, again: bool, redis_url: str | None, **options: Any) -> None:
    if project is None:
        assert by_recipe.callback is not None, "a command that runs"
        by_recipe.callback(**options)
        return
    if options["arguments"]:
        raise click.UsageError("--project trains by the project's own recipe (LASAGNA_TRAIN_RECIPE); leave RECIPE out")
    from backend.commands.redis import open_store
    from backend.loop.trainings import Trainings
    from backend.queue.living_workers import living_workers
    from lasagna.settings import Settings

    settings = Settings.load(redis_url=redis_url)
    store = open_store(settings)
    Trainings(store).ask(str(project), again=again)
    click.echo(f"asked for a fine-tune of project {project}; `lasagna jobs` shows how far it is")
    if not living_workers(store, "train"):
        raise ConfigError("no training process is running: the wish is noted, start `lasagna worker`")


def _command() -> click.Command:
    command = copy.copy(by_recipe)
    recipe, *others = by_recipe.params
    recipe = copy.copy(recipe)
    recipe.required = False
    command.params = [
        recipe,
        click.Option(
            ["--project"], type=click.IntRange(min=1), help="Fine-tune on this project's corrections instead."
        ),
        click.Option(["--again"], is_flag=True, help="With --project: also where nothing was corrected since."),
        click.Option(["--redis-url"], metavar="URL", help="With --project: Redis, as for `lasagna worker`."),
        *others,
    ]
    command.callback = _train
    command.help = f"{by_recipe.help}\n\nWith --project, ask `lasagna worker` to fine-tune on what was corrected there."
    command.epilog = f"{(by_recipe.epilog or '').rstrip()}\n  lasagna train --project 3\n"
    return command


train = _command()
