"""The commands `lasagna models list`, `show`, `diff`, `serve`, `promote`, `rollback` and `prune`."""

import json
from collections.abc import Callable, Iterable
from dataclasses import asdict
from typing import Any

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from backend.commands.which_project import ProjectName, find_project, server_option
from backend.instant.heads import ProjectHeads
from backend.registry.figures import measured
from backend.registry.known_projects import KnownProjects
from backend.registry.registry import Aliases, Registry, Version, project_number
from backend.studio.project_id import number_of
from lasagna.checkpoint.architectures import folder_licence
from lasagna.checkpoint.folder import find_checkpoint, folder_name
from lasagna.commands.models import LARGE, find_entries
from lasagna.errors import RegistryError
from lasagna.settings import Settings, registry_folder

_registry_option = click.option(
    "--registry", metavar="FOLDER", help="The registry.  [default: LASAGNA_REGISTRY, else in the state folder]"
)
_json_option = click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
_reason_option = click.option("--reason", default="", help="Why, for the project's history.")


def _registry(folder: str | None) -> Registry:
    return Registry(registry_folder(Settings.load(registry=folder)))


def _names(registry: Registry, uids: Iterable[str]) -> dict[str, str]:
    """What people read of projects: a number, with its Label Studio where several have it."""
    return KnownProjects(registry.folder, None).names(uids)


def _find(registry: Registry, project: str, server: str) -> str:
    """The uid of the project that is meant."""
    return find_project(Settings.load(registry=str(registry.folder)), None, project, server)


@click.command(
    "list",
    epilog="""\b
Examples:
  lasagna models list
  lasagna models list --project 12
  lasagna models list --json""",
)
@click.option("--project", type=ProjectName(), help="Only this project's versions, and its history.")
@server_option
@_registry_option
@_json_option
def list_models(project: str | None, server: str, registry: str | None, as_json: bool) -> None:
    """The checkpoints on this machine, and the fine-tuned versions with what they are to each project."""
    found = _registry(registry)
    uid = None if project is None else _find(found, project, server)
    entries = [] if project is not None else list(find_entries())
    versions, heads = found.versions(uid), ProjectHeads(found.folder)
    uids = [*found.projects(), *heads.projects()] if uid is None else [uid]
    names = _names(found, uids)
    aliases = {names[uid]: found.aliases(uid) for uid in uids if uid in found.projects()}
    learning = {names[uid]: heads.states(uid) for uid in uids if uid in heads.projects() or project is not None}
    if as_json:
        _print_json(
            {
                "checkpoints": [asdict(entry) for entry in entries],
                "versions": [{**version.as_dict(), "roles": _roles(version, aliases)} for version in versions],
                "projects": {name: asdict(each) for name, each in aliases.items()},
                "heads": {name: [asdict(state) for state in states] for name, states in learning.items()},
            }
        )
        return
    console = Console(markup=False)
    if project is None:
        rows = ((e.name, e.origin, _size(e.size), e.dialect, e.version) for e in entries)
        console.print(_table(("checkpoint", "from", "size", "dialect", "version"), rows))
    elif not versions:
        console.print(f"project {project_number(project)} has no version in {found.folder}", highlight=False)
    if versions:
        columns = ("version", "is", "added", "from", "labels", "data", "mIoU")
        console.print(_table(columns, (_row(version, aliases) for version in reversed(versions))))
    learnt = [
        (name, state.full_version, state.decision["reason"]) for name, states in learning.items() for state in states
    ]
    if learnt:
        console.print(_table(("project", "instant head", "which"), learnt))
    if uid is not None:
        _print_history(console, aliases.get(names[uid], Aliases()))


@click.command(
    epilog="""\b
Examples:
  lasagna models show nano-3f2a9c10
  lasagna models show nano-3f2a9c10 --json"""
)
@click.argument("version")
@_registry_option
@_json_option
def show(version: str, registry: str | None, as_json: bool) -> None:
    """Where VERSION is from, what the gate measured, and which projects it serves."""
    found = _registry(registry)
    chosen = found.version(version)
    names = _names(found, found.projects())
    roles = _roles(chosen, {name: found.aliases(uid) for uid, name in names.items()})
    if as_json:
        _print_json({**chosen.as_dict(), "roles": roles, "reports": [str(path) for path in chosen.reports]})
        return
    console = Console(markup=False)
    rows = [
        ("version", chosen.id),
        ("is", _in_words(roles) or "kept"),
        ("added", _moment(chosen.created)),
        ("started from", chosen.parent or "-"),
        ("laid over", chosen.base or "nothing: it is whole"),
        ("data", chosen.snapshot or "-"),
        ("labels", ", ".join(chosen.labels) or "-"),
        ("checkpoint", str(chosen.checkpoint)),
        *(("report", str(path)) for path in chosen.reports),
    ]
    if summary := chosen.metrics.get("summary"):
        rows.append(("gate", str(summary)))
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(name, Text(value))
    console.print(table)
    _print_figures(console, chosen)


@click.command(
    epilog="""\b
Examples:
  lasagna models diff nano-3f2a9c10 nano-81d0c2aa
  lasagna models diff nano nano-3f2a9c10 --json

\b
Either may also be a checkpoint outside the registry: a shipped name, a folder or a hub id."""
)
@click.argument("first")
@click.argument("second")
@_registry_option
@_json_option
def diff(first: str, second: str, registry: str | None, as_json: bool) -> None:
    """What differs from FIRST to SECOND: label set, calibration, figures per class, weights and by how much."""
    from backend.registry.compare import CheckpointComparison, compare

    found: CheckpointComparison = compare(_registry(registry), first, second)
    if as_json:
        _print_json(found.as_dict())
        return
    console = Console(markup=False)
    console.print(f"{found.ids[0]} → {found.ids[1]}", highlight=False, style="bold")
    for name, labels in (("added", found.labels_added), ("removed", found.labels_removed)):
        if labels:
            console.print(Text(f"labels {name}: {', '.join(labels)}"))
    if not (found.labels_added or found.labels_removed):
        console.print("label set: the same")
    if found.calibration:
        rows = ((name, _figure(a), _figure(b)) for name, (a, b) in found.calibration.items())
        console.print(_table(("calibration", "first", "second"), rows))
    else:
        console.print("calibration: the same")
    figures = [(name, *pair) for name, pair in found.figures.items()]
    figures += [(f"{name} {figure}", *pair) for name, each in found.classes.items() for figure, pair in each.items()]
    if figures:
        photos = "same photos" if found.same_photos else "each on the photos of its own gate"
        shown = ((name, _figure(a), _figure(b), _difference(a, b)) for name, a, b in figures)
        console.print(_table((f"figure ({photos})", "first", "second", "change"), shown))
    if found.weights:
        parts = ((name, count, f"{size:,}", f"{change:.2%}") for name, count, size, change in found.parts())
        console.print(_table(("weights that differ", "tensors", "parameters", "relative change"), parts))
    console.print(f"{len(found.weights)} weights differ, {found.equal_weights} are equal", highlight=False)
    if found.only_in:
        console.print(Text(f"in one of them alone, or of another shape: {', '.join(found.only_in)}"))


@click.command(
    epilog="""\b
Examples:
  lasagna models promote 12
  lasagna models promote 12 nano-3f2a9c10 --reason "the gate's photos are all of one field"

\b
Counts from the next request on, without a restart. Predictions that are in Label Studio stay; to renew those of tasks
that nobody has annotated: lasagna prelabel 12"""
)
@click.argument("project", type=ProjectName())
@click.argument("version", required=False)
@server_option
@_reason_option
@_registry_option
@_json_option
def promote(project: str, version: str | None, server: str, reason: str, registry: str | None, as_json: bool) -> None:
    """Let VERSION (default: the candidate) serve PROJECT, whatever the gate said."""
    found = _registry(registry)
    uid = _find(found, project, server)
    if version is None:
        candidate = found.candidate(uid)
        if candidate is None:
            raise RegistryError(
                f"project {project_number(project)} has no candidate; name a version (`lasagna models list`)"
            )
        version = candidate.id
    _change(found, uid, lambda: found.promote(uid, version, reason), as_json)


@click.command(
    epilog="""\b
Examples:
  lasagna models serve 12 ./sam3
  lasagna models serve 12 nano --reason "back to the shipped one"

\b
The folder is copied into the registry, so that what serves cannot change. Counts from the next request on, without a
restart; `lasagna models rollback 12` takes it back."""
)
@click.argument("project", type=ProjectName())
@click.argument("model")
@server_option
@_reason_option
@_registry_option
@_json_option
def serve(project: str, model: str, server: str, reason: str, registry: str | None, as_json: bool) -> None:
    """Let MODEL (a shipped name, a folder or a hub id, of any kind) serve PROJECT, and no other project."""
    found = _registry(registry)
    uid = _find(found, project, server)
    folder = find_checkpoint(model)
    version = found.add(folder, project=uid, parent="", snapshot="", metrics={}, name=folder_name(folder))
    if not as_json:
        licence = folder_licence(version.checkpoint)
        click.echo(f"{version.id}: licence {licence or 'not said in its folder; look where the weights come from'}")
    _change(found, uid, lambda: found.promote(uid, version.id, reason), as_json)


@click.command(
    epilog="""\b
Examples:
  lasagna models rollback 12
  lasagna models rollback 12 --reason "misses small weeds"
  lasagna models rollback 12 --head 11

\b
Counts from the next request on, without a restart, and gives the answers of before bit for bit. Each further call goes
one champion further back, at last to the worker's own model. The instant head goes along: each version
has heads of its own. With --head an earlier head of the version that serves is used, until the next correction."""
)
@click.argument("project", type=ProjectName())
@server_option
@click.option("--head", type=click.IntRange(min=1), help="Use this earlier instant head; the version stays.")
@_reason_option
@_registry_option
@_json_option
def rollback(project: str, server: str, head: int | None, reason: str, registry: str | None, as_json: bool) -> None:
    """Let the champion before, or an earlier instant head, serve PROJECT again."""
    found = _registry(registry)
    uid = _find(found, project, server)
    if head is not None:
        _use_head(found, uid, head, as_json)
        return
    _change(found, uid, lambda: found.rollback(uid, reason), as_json)


@click.command(
    epilog="""\b
Examples:
  lasagna models prune --keep 5 --dry-run
  lasagna models prune --keep 5
  lasagna models prune --keep 0 --project 12

\b
What serves a project, its candidate, the champion before (which rollback needs) and what one of these is laid over
always stay."""
)
@click.option("--keep", type=click.IntRange(min=0), required=True, help="How many of each project's newest stay.")
@click.option("--project", type=ProjectName(), help="Only versions that are this project's alone.")
@server_option
@click.option("--dry-run", is_flag=True, help="Only say what would be removed.")
@_registry_option
@_json_option
def prune(keep: int, project: str | None, server: str, dry_run: bool, registry: str | None, as_json: bool) -> None:
    """Remove old versions."""
    found = _registry(registry)
    removed = found.prune(keep, project and _find(found, project, server), dry_run=dry_run)
    if as_json:
        _print_json({"removed": [version.id for version in removed], "dry_run": dry_run})
        return
    for version in removed:
        click.echo(f"{'would remove' if dry_run else 'removed'} {version.id}, added {_moment(version.created)}")
    click.echo(
        f"{len(removed)} versions {'to remove' if dry_run else 'removed'}, {len(found.versions())} in the registry"
    )


def _use_head(registry: Registry, project: str, number: int, as_json: bool) -> None:
    """Lets an earlier head of the version that serves a project be used."""
    from lasagna.instant.store import HeadStore

    heads = ProjectHeads(registry.folder)
    champion = registry.aliases(project).champion
    states = heads.states(project)
    version = champion or (states[-1].version if states else "")
    before = heads.current(project, version) if version else None
    if before is None:
        raise RegistryError(f"project {project_number(project)} has no instant head to roll back")
    store = HeadStore(heads.folder(project, version))
    with store.lock():
        store.rollback(number)
    now = heads.current(project, version)
    assert now is not None
    if as_json:
        _print_json({"project": project_number(project), "head": now.full_version, "before": before.full_version})
        return
    click.echo(f"project {project_number(project)} now uses {now.full_version}, before {before.full_version}")


def _change(registry: Registry, project: str, change: Callable[[], Version | None], as_json: bool) -> None:
    """Changes a project's champion and says what serves it now."""
    number = project_number(project)
    before = registry.aliases(project).champion
    champion = change()
    now = champion.id if champion else ""
    if as_json:
        _print_json({"project": number, "champion": now or None, "before": before or None})
        return
    named = {"": "the worker's own model"}
    if now == before:
        click.echo(f"project {number} is served by {named.get(now, now)} already")
    else:
        click.echo(f"project {number} is now served by {named.get(now, now)}, before by {named.get(before, before)}")
        click.echo(f"  predictions of tasks that nobody has annotated: lasagna prelabel {number}")


# --- printing ---------------------------------------------------------------------------------------------------------


def _print_json(value: Any) -> None:
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))


def _table(columns: Iterable[str], rows: Iterable[Iterable[Any]]) -> Table:
    table = Table(box=None, pad_edge=False)
    for position, column in enumerate(columns):
        table.add_column(column, overflow="fold", no_wrap=position == 0)
    for row in rows:
        table.add_row(*(Text(str(cell)) for cell in row))
    return table


def _row(version: Version, aliases: dict[str, Aliases]) -> list[str]:
    miou = measured(version.metrics)[0].get("miou")
    what = _in_words(_roles(version, aliases))
    labels = str(len(version.labels)) if version.labels else "-"
    return [
        version.id,
        what or f"of project {number_of(version.project)}",
        _moment(version.created),
        version.parent or "-",
        labels,
        version.snapshot or "-",
        _figure(miou),
    ]


def _roles(version: Version, aliases: dict[str, Aliases]) -> dict[str, str]:
    """ "champion", "candidate" or "former" by project; projects to which it is nothing are left out."""
    found = {name: each.role(version.id) for name, each in aliases.items()}
    return {name: role for name, role in found.items() if role}


def _in_words(roles: dict[str, str]) -> str:
    return ", ".join(f"{role} of project {name}" for name, role in roles.items())


def _print_figures(console: Console, version: Version) -> None:
    overall, classes = measured(version.metrics)
    before, classes_before = measured(version.metrics, "champion")
    rows = [(name, before.get(name), value) for name, value in overall.items()]
    for name, figures in classes.items():
        rows += [(f"{name} {k}", classes_before.get(name, {}).get(k), value) for k, value in figures.items()]
    if rows:
        shown = ((name, _figure(a), _figure(b), _difference(a, b)) for name, a, b in rows)
        console.print(_table(("figure", "champion then", "this version", "change"), shown))


def _print_history(console: Console, aliases: Aliases) -> None:
    rows = (
        (
            _moment(e.when),
            e.action,
            e.version or "the worker's own model",
            e.before or "-",
            e.by or "-",
            e.reason or "-",
        )
        for e in aliases.history
    )
    if aliases.history:
        console.print(_table(("when", "what", "version", "before", "by", "why"), rows))


def _moment(when: str) -> str:
    return when[:16].replace("T", " ")


def _size(size: int) -> str:
    return f"{size / 1e9:.2f} GB" if size >= LARGE else f"{size / 1e6:.1f} MB"


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _difference(first: float | None, second: float | None) -> str:
    return "-" if first is None or second is None else f"{second - first:+.3f}"
