"""The command `lasagna jobs`."""

import json
from collections.abc import Iterator
from typing import Any

import click
from rich.console import Console, RenderableType
from rich.padding import Padding
from rich.text import Text

from backend.commands.redis import open_store, redis_in_words, redis_option
from backend.commands.which_project import ProjectName, find_project, server_option
from lasagna.progress import in_time
from lasagna.settings import Settings


@click.group(
    invoke_without_command=True,
    epilog="""\b
Examples:
  lasagna jobs
  lasagna jobs --state failed --limit 100
  lasagna jobs --json
  lasagna jobs retry
  lasagna jobs retry --project 3
  lasagna jobs cancel --project 3""",
)
@redis_option
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
@click.option("--state", type=click.Choice(["queued", "running", "ready", "done", "failed"]), help="Only this state.")
@click.option("--limit", type=click.IntRange(min=1), default=20, show_default=True, help="Tasks listed per state.")
@click.pass_context
def jobs(context: click.Context, redis_url: str | None, as_json: bool, state: str | None, limit: int) -> None:
    """Show what is queued, running, done and failed, and why."""
    context.obj = Settings.load(redis_url=redis_url)
    if context.invoked_subcommand is not None:
        return
    from backend.registry.known_projects import KnownProjects
    from backend.web.overview import overview

    with redis_in_words():
        store = open_store(context.obj)
        report = overview(store, KnownProjects.from_settings(context.obj, store), limit=limit, state=state)
    if as_json:
        click.echo(json.dumps(report, indent=2, ensure_ascii=False))
    else:
        _print_overview(report)


@jobs.command()
@click.option("--project", type=ProjectName(), help="Only tasks of this project.")
@server_option
@click.pass_context
def retry(context: click.Context, project: str | None, server: str) -> None:
    """Put failed tasks back: those that were predicted are only posted again, the others are predicted anew."""
    from backend.web.overview import retry_failed

    settings: Settings = context.obj
    with redis_in_words():
        store = open_store(settings)
        uid = None if project is None else find_project(settings, store, project, server)
        queued, posted = retry_failed(store, settings.batch_size, uid)
    click.echo(f"{queued} tasks queued again, {posted} predictions to be posted again")


@jobs.command()
@click.option("--project", type=ProjectName(), help="What pre-labels this project.")
@server_option
@click.option("--all", "every", is_flag=True, help="What pre-labels any project.")
@click.pass_context
def cancel(context: click.Context, project: str | None, server: str, every: bool) -> None:
    """Stop pre-labelling: tasks that no worker has begun are taken out of the queue, what is predicted stays.

    A task that somebody has open and waits for is left in. `lasagna prelabel` goes on where it was.
    """
    from backend.web.prelabel_jobs import PrelabelJobs

    if (project is None) != every:
        raise click.UsageError("name the project (--project NUMBER), or say --all")
    with redis_in_words():
        store = open_store(context.obj)
        uid = None if project is None else find_project(context.obj, store, project, server)
        stopped, taken_out = PrelabelJobs(store).cancel_project(uid)
    click.echo(f"{stopped} jobs cancelled, {taken_out} waiting tasks taken out; what a worker has begun is finished")


def _print_overview(report: dict[str, Any]) -> None:
    console = Console(markup=False)
    model = report["model"]["version"] if report["model"] else "none yet"
    workers = report["workers"]
    none = Text(str(len(workers) or "none"), style="" if workers else "red")
    console.print(Text.assemble(f"Model {model}. Workers: ", none, "."))
    for name, entry in workers.items():
        console.print(f"  {name}: {entry['state']}", highlight=False, markup=False)
    counts = "  ".join(f"{state} {count}" for state, count in report["counts"].items())
    console.print(f"Tasks: {counts}", highlight=False)
    for name, known in report["training"].items():
        console.print(f"Project {name}: {_training_in_words(known)}", highlight=False, markup=False)
    for entry in report["aside"][:10]:
        console.print(f"Set aside: {entry['what']}: {entry['reason']}", highlight=False, markup=False, style="red")
    for name, known in report["learning"].items():
        console.print(f"Project {name}: {_learning_in_words(known)}", highlight=False, markup=False)
    for job in report["projects"]:
        console.print(f"Project {job['name']}: {_prelabelling_in_words(job)}", highlight=False, markup=False)
    for line in _tasks_in_words(report["tasks"]):
        console.print(line)


_NAMED = 8
"""Tasks that one line names."""


def _tasks_in_words(tasks: list[dict[str, Any]]) -> Iterator[RenderableType]:
    """A line for tasks of one project that are in the same state for the same reason, and the reason below it, over the
    whole width: twenty tasks that failed alike are two lines."""
    groups: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for task in tasks:
        groups.setdefault((task["state"], task["name"], task["reason"] or ""), []).append(task)
    for (state, project, reason), found in groups.items():
        colour = {"failed": "red", "done": "green", "running": "cyan"}.get(state, "")
        names = ", ".join(str(task["task"] or "-") for task in found[:_NAMED])
        more = f" and {len(found) - _NAMED} more" if len(found) > _NAMED else ""
        ago = in_time(min(task["seconds_ago"] for task in found))
        attempts = max(task["attempts"] or 0 for task in found)
        tried = f", {attempts} attempts" if attempts else ""
        several = "s" * (len(found) > 1)
        yield Text(f"{state:8}project {project}, task{several} {names}{more}, {ago} ago{tried}", style=colour)
        if reason:
            yield Padding(Text(reason, style=colour), (0, 0, 0, 8))


def _prelabelling_in_words(job: dict[str, Any]) -> str:
    """One line about a whole project, e.g. "pre-labelling 305 of 600, 1.2 per second, 4 min left"."""
    if job["state"] == "queued":
        return "waits to be pre-labelled"
    words = f"pre-labelling {job['through']} of {job['total']}"
    if job["rate"]:
        words += f", {job['rate']:.1f} per second"
    if job["seconds_left"] is not None:
        words += f", {in_time(job['seconds_left'])} left"
    return words


def _learning_in_words(known: dict[str, Any]) -> str:
    """One or more lines about what a project has learnt at once."""
    head = f"h{known['head']} of {known['corrections']} corrections; " if known.get("head") else ""
    lines = [f"instant head: {head}{known.get('reason') or 'nothing is learnt yet'}"]
    if known["waiting"]:
        lines.append(f"  {known['waiting']} corrections wait to be learnt from")
    lines += [f"  task {task} is not learnt from: {reason}" for task, reason in list(known["aside"].items())[:20]]
    return "\n".join(lines)


def _training_in_words(known: dict[str, str]) -> str:
    """One line about a project's fine-tunes, e.g. "training (20 corrections): train 40 of 160, 3 min left"."""
    changed = f"; {known['changed']} tasks corrected since" if known["changed"] != "0" else ""
    if known["state"] == "idle":
        if not known.get("outcome"):
            return f"not trained yet{changed}"
        if known["outcome"] == "refused":
            return f"no fine-tune: {known.get('summary', '')}{changed}"
        version = f" {known['version']}" if known.get("version") else ""
        return f"last fine-tune {known['outcome']}{version}: {known.get('summary', '')}{changed}"
    if known["state"] == "queued":
        return f"a fine-tune waits ({known['reason']})"
    step = f" {known['step']} of {known['steps']}" if known.get("steps", "0") != "0" else ""
    left = float(known.get("left") or 0)
    time_left = f", {in_time(left)} left" if left else ""
    again = "; one more afterwards" if known.get("again") else ""
    return f"training ({known['reason']}): {known.get('stage', '')}{step}{time_left}{again}{changed}"
