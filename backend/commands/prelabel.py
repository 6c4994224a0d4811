"""The command `lasagna prelabel`."""

import json
import os
import sys
from typing import TYPE_CHECKING

import click
from rich.console import Console

from backend.commands.redis import reached, redis_address, redis_in_words, redis_option
from lasagna.errors import ConfigError, LasagnaError
from lasagna.logs import start_logging
from lasagna.progress import in_time
from lasagna.settings import Settings

if TYPE_CHECKING:
    from backend.web.prelabel import Plan


@click.command(
    epilog="""\b
Examples:
  lasagna prelabel 3
  lasagna prelabel 3 --url https://label.example.org --token "$TOKEN"
  lasagna prelabel 3 --tab 7 --dry-run
  lasagna prelabel 3 --refresh

\b
Goes through the same queue as Label Studio's own requests, so a worker must run: lasagna worker.
A run that was interrupted goes on where it was when the same command is run again. Without a terminal: POST /jobs.
Ctrl-C stops the watching alone: what was asked for goes on. `lasagna jobs cancel --project 3` stops that too.
Exit code: 0 every task has its prediction, 1 some failed or were cancelled, 2 nothing could be started, 130 Ctrl-C."""
)
@click.argument("project", type=click.IntRange(min=1))
@click.option("--url", metavar="URL", help="Address of Label Studio.  [default: LASAGNA_LABEL_STUDIO_URL]")
@click.option("--token", help="Personal or legacy token.  [default: LASAGNA_LABEL_STUDIO_TOKEN]")
@click.option(
    "--tab",
    type=click.IntRange(min=1),
    metavar="NUMBER",
    help="Only the tasks of this tab of the data manager: its address ends with ?tab=NUMBER.",
)
@click.option(
    "--refresh", is_flag=True, help="Also tasks whose prediction is up to date, which is replaced; none annotated."
)
@click.option("--dry-run", is_flag=True, help="Say what would happen and how long it would take, and do nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print what came of it, or would, as JSON on stdout.")
@redis_option
def prelabel(
    project: int,
    url: str | None,
    token: str | None,
    tab: int | None,
    refresh: bool,
    dry_run: bool,
    as_json: bool,
    redis_url: str | None,
) -> None:
    """Predict every task of PROJECT (its number in Label Studio) that has no prediction which is up to date.

    A prediction is outdated once labels, controls or parameters of the project were changed, its task shows another
    image, or another version serves: such predictions are renewed, and no others. Annotated tasks keep the prediction
    that their annotator was shown.
    """
    from contextlib import suppress
    from dataclasses import asdict

    import redis

    from backend.queue.store import Store, connect
    from backend.studio.client import LabelStudio
    from backend.studio.version_names import without_question
    from backend.web.predictions import Predictor
    from backend.web.prelabel import ProjectRun
    from backend.web.prelabel_jobs import PrelabelJobs, work_on
    from lasagna.checkpoint.vocabulary import unknown_in_words
    from lasagna.progress import progress_bar

    settings = Settings.load(label_studio_url=url, label_studio_token=token, redis_url=redis_url)
    start_logging(settings)
    if not settings.label_studio_url:
        raise ConfigError("where is Label Studio? give --url or set LASAGNA_LABEL_STUDIO_URL")
    console = Console(stderr=True, markup=False)
    label_studio = LabelStudio(settings.label_studio_url, settings.label_studio_token)
    console.print(f"Label Studio: {label_studio.url}, {label_studio.check()}", highlight=False)
    store = Store(reached(connect(redis_address(settings), timeout=10.0)))
    with redis_in_words():
        run = ProjectRun(Predictor(settings, store), label_studio, project, tab=tab, refresh=refresh)
    console.print(f"{run.project['title']}: {run.total} tasks, model {run.version}", highlight=False, markup=False)
    with redis_in_words():
        closed = run.predictor.taught.is_closed(run.version)
        if words := unknown_in_words(without_question(run.version), run.unknown_labels(), closed):
            console.print(words, style="yellow", highlight=False, markup=False, soft_wrap=True)
    if dry_run:
        with redis_in_words(), progress_bar(console, "Looking", run.total) as advance:
            plan = run.dry_run(lambda _: advance())
        console.print(_plan_in_words(plan), highlight=False)
        if as_json:
            click.echo(json.dumps(plan.as_dict(), indent=1))
        return
    if not run.has_worker():
        console.print("no worker is running: the tasks wait until you start `lasagna worker`", style="yellow")
    jobs = PrelabelJobs(store)
    owner = f"command {os.getpid()}"
    with redis_in_words():
        id = jobs.add(run.uid, tab=tab, refresh=refresh, by="command")
        jobs.claim(id, owner)
        try:
            with jobs.holding(id, owner), progress_bar(console, "Pre-labelling", run.total) as advance:
                outcome = work_on(jobs, id, owner, run, lambda reason: advance(note=_cut(reason)))
        except KeyboardInterrupt:
            with suppress(redis.RedisError):
                jobs.drop_claim(id)
            console.print(_interrupted(project), highlight=False, soft_wrap=True)
            sys.exit(130)
        except LasagnaError as error:
            with suppress(redis.RedisError):  # the error at hand says more
                jobs.end(id, "failed", str(error))
            raise
    for words, count in outcome.why.items():
        console.print(f"  {count} renewed: {words}", highlight=False, markup=False, soft_wrap=True)
    console.print(
        f"{outcome.done} predicted, {outcome.had_one} had a prediction already, "
        + (f"{outcome.annotated} annotated keep an older one, " if outcome.annotated else "")
        + (f"{outcome.deleted} deleted meanwhile, " if outcome.deleted else "")
        + (f"{outcome.cancelled} cancelled, " if outcome.cancelled else "")
        + f"{len(outcome.failed)} failed",
        highlight=False,
    )
    for task, reason in list(outcome.failed.items())[:20]:
        console.print(f"  task {task}: {reason}", style="red", markup=False, highlight=False, soft_wrap=True)
    if len(outcome.failed) > 20:
        console.print(f"  and {len(outcome.failed) - 20} more: lasagna jobs --state failed")
    if as_json:
        click.echo(json.dumps({"version": run.version, "total": run.total, **asdict(outcome)}, indent=1))
    sys.exit(1 if outcome.failed or outcome.cancelled else 0)


def _interrupted(project: int) -> str:
    return (
        "\nNo longer watched. The tasks that were asked for (up to 2000 at a time) go on in the worker:\n"
        f"  lasagna jobs                       shows how far they are\n"
        f"  lasagna jobs cancel --project {project:<5}stops them\n"
        "  the same command again             goes on where it was"
    )


def _plan_in_words(plan: "Plan") -> str:
    words = (
        f"{plan.to_predict} of {plan.total} tasks would be predicted: {plan.missing} without a prediction, "
        f"{plan.outdated} outdated"
        + (f", {plan.replaced} whose prediction is replaced" if plan.replaced else "")
        + f". Left alone: {plan.had_one} up to date, {plan.annotated} annotated with an older one."
    )
    words += "".join(f"\n  {why['tasks']} outdated: {why['words']}" for why in plan.why)
    if plan.seconds is None or plan.seconds_per_task is None:
        return f"{words}\nHow long it takes is not known before {plan.version} has predicted something here."
    at_work = f"{plan.workers} worker{'s' * (plan.workers != 1)}" if plan.workers else "one worker (none runs now)"
    return f"{words}\nAbout {in_time(plan.seconds)} with {at_work}, at {plan.seconds_per_task:.2f} s per task so far."


def _cut(text: str) -> str:
    return text if len(text) <= 80 else text[:77] + "..."
