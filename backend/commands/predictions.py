"""The command `lasagna predictions`: which versions a project has predictions of, removing those of former ones, and
fields of tasks that tell of predictions."""

import json
from typing import TYPE_CHECKING

import click
from rich.console import Console

from backend.commands.redis import open_store, redis_in_words, redis_option
from backend.commands.which_project import uid_there
from lasagna.errors import ConfigError
from lasagna.settings import Settings

if TYPE_CHECKING:
    from backend.studio.client import LabelStudio

_url = click.option("--url", metavar="URL", help="Address of Label Studio.  [default: LASAGNA_LABEL_STUDIO_URL]")
_token = click.option("--token", help="Personal or legacy token.  [default: LASAGNA_LABEL_STUDIO_TOKEN]")


@click.group(
    epilog="""\b
Examples:
  lasagna predictions list 3
  lasagna predictions prune 3 --version nano-ec805b63~3f2a9c --dry-run
  lasagna predictions prune 3 --version nano-ec805b63~3f2a9c --version nano-ec805b63+h12~3f2a9c
  lasagna predictions fields 3
  lasagna predictions fields 3 --remove"""
)
def predictions() -> None:
    """Show which versions a project has predictions of, remove those of former ones, and have tasks sorted by them."""


@predictions.command("list")
@click.argument("project", type=click.IntRange(min=1))
@click.option("--json", "as_json", is_flag=True, help="Print the numbers as JSON.")
@_url
@_token
def list_versions(project: int, as_json: bool, url: str | None, token: str | None) -> None:
    """Print how many predictions PROJECT (its number in Label Studio) has of each version, the most first."""
    found = _label_studio(Settings.load(label_studio_url=url, label_studio_token=token)).version_counts(project)
    if as_json:
        click.echo(json.dumps(found, indent=1, ensure_ascii=False))
        return
    if not found:
        click.echo(f"project {project} has no predictions")
    for version, count in sorted(found.items(), key=lambda entry: -entry[1]):
        click.echo(f"{count:8}  {version}")


@predictions.command()
@click.argument("project", type=click.IntRange(min=1))
@click.option("--version", "versions", multiple=True, required=True, metavar="VERSION",
              help="Whose predictions go, as `lasagna predictions list` names it; without ~..., whatever was asked. "
                   "Repeatable.")  # fmt: skip
@click.option("--dry-run", is_flag=True, help="Say what would go, and remove nothing.")
@_url
@_token
@redis_option
def prune(
    project: int, versions: tuple[str, ...], dry_run: bool, url: str | None, token: str | None, redis_url: str | None
) -> None:
    """Remove the predictions of former versions from PROJECT.

    Annotated tasks keep theirs: what a correction changed is measured against the prediction that was shown. The
    version that serves the project is refused; `lasagna prelabel PROJECT --refresh` renews its predictions.
    """
    from backend.studio.prune import plan_pruning
    from backend.studio.version_names import without_question
    from lasagna.progress import progress_bar

    settings = Settings.load(label_studio_url=url, label_studio_token=token, redis_url=redis_url)
    label_studio, console = _label_studio(settings), Console(stderr=True)
    there = label_studio.version_counts(project)
    named = {version: {one for one in there if version in (one, without_question(one))} for version in versions}
    if unknown := [version for version, found in named.items() if not found]:
        raise ConfigError(
            f"project {project} has no predictions of {', '.join(unknown)}; it has some of: "
            f"{', '.join(sorted(there)) or 'no version'}"
        )
    serving = _serving(settings, label_studio, project)
    former = set().union(*named.values()) - {serving}
    if serving in versions or not former:
        raise ConfigError(f"{serving} serves project {project}: its predictions are not removed; leave it out")
    plan = plan_pruning(label_studio, project, former)
    kept = f"; {len(plan.kept)} annotated tasks keep theirs" if plan.kept else ""
    if dry_run:
        click.echo(f"the predictions of {len(plan.tasks)} tasks would be removed{kept}")
        return
    with progress_bar(console, "Removing", len(plan.tasks)) as advance:
        removed = plan.run(label_studio, advance)
    click.echo(f"{removed} predictions of {len(plan.tasks)} tasks removed{kept}")


@predictions.command()
@click.argument("project", type=click.IntRange(min=1))
@click.option("--remove", is_flag=True, help="Take the fields out of all tasks again.")
@click.option("--dry-run", is_flag=True, help="Say how many tasks it is about, and change nothing.")
@_url
@_token
def fields(project: int, remove: bool, dry_run: bool, url: str | None, token: str | None) -> None:
    """Write into the data of PROJECT's tasks what the data manager is to filter and sort them by.

    Of the newest prediction of ours: lasagna_score, lasagna_regions (their number), lasagna_lowest (the lowest
    probability of one), lasagna_classes (those that are there) and lasagna_version. Nothing else of a task is changed;
    one that has a field of your own under one of these names is left alone and named. With the extra parameter
    {"data_fields": true} in Settings > Model it is done by itself, with each new prediction.
    """
    from backend.studio.data_fields import (
        MARK,
        NAMES,
        TOGETHER,
        Fields,
        check_names,
        fields_of,
        newest_of_ours,
        write_fields,
    )
    from backend.studio.data_fields import remove_fields as take_out
    from lasagna.labels.configuration import parse_label_config
    from lasagna.progress import progress_bar

    settings = Settings.load(label_studio_url=url, label_studio_token=token)
    label_studio, console = _label_studio(settings), Console(stderr=True)
    config = parse_label_config(str(label_studio.project(project)["label_config"]))
    if remove:
        chosen = [task for task in label_studio.tasks(project) if MARK in task.data]
    else:
        check_names(config)
        chosen = [task for task in label_studio.tasks(project) if task.model_versions]
    if dry_run:
        what = "of {} tasks would be taken out" if remove else "would be written for {} tasks with predictions"
        click.echo(f"fields {what.format(len(chosen))}")
        return
    if remove:
        with progress_bar(console, "Removing", len(chosen)) as advance:
            take_out(label_studio, project, chosen, advance)
        click.echo(f"fields of {len(chosen)} tasks taken out")
        return
    changed, same, foreign = 0, 0, list[int]()
    with progress_bar(console, "Writing", len(chosen)) as advance:
        for first in range(0, len(chosen), TOGETHER):
            wanted: dict[int, Fields] = {}
            for task in chosen[first : first + TOGETHER]:
                if newest := newest_of_ours(label_studio.predictions(task.id)):
                    wanted[task.id] = fields_of(newest)
                advance()
            done = write_fields(label_studio, project, wanted)
            changed, same, foreign = changed + done.changed, same + done.same, foreign + done.foreign
    click.echo(f"fields of {changed} tasks written, {same} were right")
    if foreign:
        few = ", ".join(map(str, foreign[:10])) + (" ..." if len(foreign) > 10 else "")
        raise ConfigError(
            f"{len(foreign)} tasks have a field of your own under one of our names ({', '.join(NAMES)}), and are left "
            f"as they are: {few}"
        )


def _serving(settings: Settings, label_studio: "LabelStudio", project: int) -> str:
    """What predictions of a project carry that are made now; "" where no worker has told a version yet."""
    from backend.web.predictions import Predictor
    from lasagna.errors import ServiceError
    from lasagna.labels.configuration import parse_label_config

    found = label_studio.project(project)
    plan = parse_label_config(str(found["label_config"]))
    with redis_in_words():
        store = open_store(settings)
        try:
            return Predictor(settings, store).asked_version(uid_there(settings, label_studio, project), plan)
        except ServiceError:
            return ""


def _label_studio(settings: Settings) -> "LabelStudio":
    from backend.studio.client import LabelStudio

    if not settings.label_studio_url:
        raise ConfigError("where is Label Studio? give --url or set LASAGNA_LABEL_STUDIO_URL")
    return LabelStudio(settings.label_studio_url, settings.label_studio_token)
