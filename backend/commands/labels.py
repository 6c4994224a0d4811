"""The commands `lasagna labels list`, `rename` and `forget`."""

import json
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from backend.commands.redis import open_store, redis_in_words, redis_option
from backend.commands.which_project import ProjectName, find_project, server_option, uid_there
from lasagna.errors import ConfigError, ServiceError
from lasagna.settings import Settings, registry_folder

if TYPE_CHECKING:
    from backend.registry.label_uses import LabelUses

_project = click.argument("project", type=click.IntRange(min=1))
_url = click.option("--url", metavar="URL", help="Address of Label Studio.  [default: LASAGNA_LABEL_STUDIO_URL]")
_token = click.option("--token", help="Personal or legacy token.  [default: LASAGNA_LABEL_STUDIO_TOKEN]")
_registry = click.option(
    "--registry", metavar="FOLDER", help="The registry.  [default: LASAGNA_REGISTRY, else in the state folder]"
)


@click.group(
    epilog="""\b
Examples:
  lasagna labels list 3
  lasagna labels rename 3 sky Himmel
  lasagna labels forget 3 sky"""
)
def labels() -> None:
    """Which labels stood in a project when, and what they are called now.

    Where a label is renamed in Label Studio, annotations and predictions keep its old name. Say once what it is called
    now, and training, the gate, the instant head and the report read them so.
    """


@labels.command(
    "list",
    epilog="""\b
Examples:
  lasagna labels list 3
  lasagna labels list 3 --json > labels.json

\b
labels.json beside an export tells `lasagna train` when which labels stood (docs/data.md).""",
)
@_project
@_url
@_token
@_registry
@click.option("--json", "as_json", is_flag=True, help="Print the history as JSON.")
def list_labels(project: int, url: str | None, token: str | None, registry: str | None, as_json: bool) -> None:
    """Label sets of PROJECT since it was connected, labels that were renamed, and those that annotations use and the
    labelling configuration does not have."""
    settings = Settings.load(label_studio_url=url, label_studio_token=token, registry=registry)
    history = _histories(settings).of(_uid(settings, project))
    if as_json:
        click.echo(json.dumps(history.as_dict(), indent=1, ensure_ascii=False))
        return
    console = Console(markup=False)
    for before, now in zip((None, *history.seen), history.seen, strict=False):
        console.print(Text(f"{now.at.astimezone():%Y-%m-%d %H:%M}  {_change(before, now)}"))
    if not history.seen:
        console.print(f"no label set of project {project} was seen yet: connect it, or run lasagna prelabel {project}")
    for old, new in history.renamed.items():
        console.print(Text(f"{old!r} is read as {new!r}"))
    if not settings.label_studio_url:
        console.print("what annotations use is not looked at: give --url, or set LASAGNA_LABEL_STUDIO_URL")
        return
    unknown = {name: use for name, use in _uses(settings, project).unknown.items() if name not in history.renamed}
    if unknown:
        table = Table(box=None, pad_edge=False)
        for column in ("annotations use", "regions", "tasks"):
            table.add_column(column)
        for name, use in unknown.items():
            table.add_row(Text(repr(name)), str(use.regions), str(use.tasks))
        console.print(table)
        console.print(f"The configuration has no such label. Was one renamed? lasagna labels rename {project} OLD NEW")


@labels.command(
    epilog="""\b
Examples:
  lasagna labels rename 3 sky Himmel
  lasagna labels rename 3 car "motor car" --url https://label.example.org --token "$TOKEN"

\b
Rename the label in Label Studio first. Nothing in Label Studio is changed by this; lasagna labels forget takes it back.
Predictions are renewed by lasagna prelabel, or when tasks are opened."""
)
@_project
@click.argument("old")
@click.argument("new")
@_url
@_token
@_registry
@redis_option
def rename(
    project: int,
    old: str,
    new: str,
    url: str | None,
    token: str | None,
    registry: str | None,
    redis_url: str | None,
) -> None:
    """Read the label OLD in earlier annotations and predictions of PROJECT as NEW, which took its place."""
    from backend.registry.label_uses import Use, check_rename

    settings = Settings.load(label_studio_url=url, label_studio_token=token, registry=registry, redis_url=redis_url)
    if not settings.label_studio_url:
        raise ConfigError("where is Label Studio? give --url or set LASAGNA_LABEL_STUDIO_URL")
    histories, uses = _histories(settings), _uses(settings, project)
    uid = _uid(settings, project)
    check_rename(histories.of(uid), uses, old, new)
    histories.rename(uid, old, new)
    use = uses.unknown.get(old, Use())
    console = Console(soft_wrap=True, highlight=False, markup=False)
    console.print(Text(f"{old!r} is read as {new!r} now: {use.regions} regions in {use.tasks} annotated tasks"))
    console.print(
        Text(f'The model reads {new!r} from now on. To go on asking for {old!r}, give the label hint="{old}"')
    )
    _read_again(settings, uid)
    console.print(f"Predictions under the old name: lasagna prelabel {project} --dry-run")


@labels.command(
    epilog="""\b
Examples:
  lasagna labels forget 3 sky"""
)
@click.argument("project", type=ProjectName())
@click.argument("old")
@server_option
@_registry
@redis_option
def forget(project: str, old: str, server: str, registry: str | None, redis_url: str | None) -> None:
    """Forget that the label OLD of PROJECT was renamed."""
    settings = Settings.load(registry=registry, redis_url=redis_url)
    histories, uid = _histories(settings), find_project(settings, None, project, server)
    known = histories.of(uid).renamed
    if old not in known:
        names = ", ".join(f"{name!r} (now {to!r})" for name, to in known.items()) or "none"
        raise ConfigError(
            f"no label {old!r} of project {project} was renamed by `lasagna labels rename`; known: {names}"
        )
    histories.forget_rename(uid, old)
    click.echo(f"{old!r} is not read as {known[old]!r} any more")
    _read_again(settings, uid)


def _histories(settings: Settings) -> Any:
    from backend.registry.label_histories import LabelHistories

    return LabelHistories(registry_folder(settings))


def _uid(settings: Settings, project: int) -> str:
    """The project that is meant: of the Label Studio that is named, else of the only one that has the number."""
    from backend.studio.client import LabelStudio, LabelStudioError

    if not settings.label_studio_url:
        return find_project(settings, None, str(project), "")
    try:
        return uid_there(settings, LabelStudio(settings.label_studio_url, settings.label_studio_token), project)
    except LabelStudioError:  # said where its annotations are looked at
        return find_project(settings, None, str(project), "")


def _uses(settings: Settings, project: int) -> "LabelUses":
    from backend.registry.label_uses import find_label_uses
    from backend.studio.client import LabelStudio
    from lasagna.progress import progress_bar

    label_studio = LabelStudio(settings.label_studio_url, settings.label_studio_token)
    with progress_bar(Console(stderr=True), "Reading annotations", len(label_studio.annotated(project))) as advance:
        return find_label_uses(label_studio, project, lambda done, total: advance())


def _read_again(settings: Settings, uid: str) -> None:
    """Has the instant head read every annotation of the project again."""
    from backend.instant.changes import EVERYTHING, Changes
    from backend.instant.policy import learns_at_once

    try:
        with redis_in_words():
            store = open_store(settings)
            if learns_at_once(settings, store.project(uid)):
                Changes(store).note(uid, [EVERYTHING])
    except ServiceError as error:
        click.secho(f"the instant head reads the annotations again after the next correction: {error}", fg="yellow")


def _change(before: "Any | None", now: Any) -> str:
    """What a label set has that the one before had not, in words."""
    found = []
    for image, names in now.labels.items():
        of_image = f"{image}: " if len(now.labels) > 1 else ""
        was = before.labels.get(image, ()) if before is not None else None
        if was is None:
            found.append(of_image + (", ".join(names) or "no labels"))
            continue
        changes = [f"+ {name}" for name in names if name not in was] + [
            f"- {name}" for name in was if name not in names
        ]
        found += [of_image + ", ".join(changes)] if changes else []
    return "; ".join(found) or "other images"
