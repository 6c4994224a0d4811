"""The commands `lasagna serve`, `worker`, `prelabel` and `jobs`."""

import json
import logging
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.table import Table

from backend.access import check_exposure
from backend.jobs import PREDICTING, QUEUES
from backend.logs import mask, start_logging
from lasagna.errors import ConfigError, LasagnaError, ServiceError
from lasagna.progress import in_time
from lasagna.settings import Settings

if TYPE_CHECKING:
    from backend.prelabel import Plan

logger = logging.getLogger(__name__)


def _say_settings(settings: Settings) -> None:
    _say(settings, "Settings (value, where it comes from):\n" + settings.describe())


def _say(settings: Settings, words: str) -> None:
    """To the person who started this; a log store gets it as any other line."""
    if settings["log_format"] == "json":
        logger.info("%s", words)
    else:
        click.echo(mask(words), err=True)


def _redis(settings: Settings) -> str:
    """The address of Redis: the one that is set, else our own, started if it does not run yet."""
    from backend.services import ensure_redis

    return ensure_redis(settings)


_redis_option = click.option(
    "--redis-url", metavar="URL", help="Redis, e.g. redis://127.0.0.1:6379/0.  [default: one that lasagna runs itself]"
)

_print_config_option = click.option(
    "--print-config", is_flag=True, help="Print every setting and where it comes from, secrets as ***; start nothing."
)


@click.command(
    epilog="""\b
Examples:
  lasagna serve
  lasagna serve --host 0.0.0.0 --port 9090 --redis-url redis://redis:6379/0
  LASAGNA_BASIC_AUTH=label:studio lasagna serve
  lasagna serve --print-config

\b
Then connect http://HOST:PORT in Label Studio, under Settings > Model. A Label Studio that shall reach a backend on the
same machine or in a private network needs ML_BLOCK_LOCAL_IP=false and SSRF_PROTECTION_ENABLED=false.
Predictions need a worker: lasagna worker."""
)
@click.option("--host", metavar="ADDRESS", help="Address to listen on.  [default: 127.0.0.1]")
@click.option("--port", type=click.IntRange(0, 65535), help="Port to listen on.  [default: 9090]")
@_redis_option
@click.option("--model", help="Checkpoint, for the version until a worker says it.  [default: nano]")
@click.option("--label-studio-url", metavar="URL", help="Address of Label Studio.  [default: what /setup says]")
@click.option("--predict-deadline", type=click.FloatRange(min=0), metavar="SECONDS",
              help="Answer /predict with what is done after that time.  [default: 45]")  # fmt: skip
@_print_config_option
def serve(print_config: bool, **options: Any) -> None:
    """Run the web process that Label Studio talks to. It loads no model."""
    from dataclasses import replace

    from backend._wsgi import WebServer
    from backend.app import create_app
    from backend.worker import check_label_studio

    settings = Settings.load(**options)
    if print_config:
        click.echo(settings.describe())
        return
    check_exposure(settings)
    start_logging(settings)
    _say_settings(settings)
    url = _redis(settings)
    if not settings["redis_url"]:
        settings = replace(settings, values={**settings.values, "redis_url": url})
    _say(settings, check_label_studio(settings))
    app = create_app(settings)
    _say(settings, f"Listening on http://{settings['host']}:{settings['port']} (Ctrl-C ends)")
    WebServer(app, settings).run()


@click.command(
    epilog="""\b
Examples:
  lasagna worker
  lasagna worker --model ./my-checkpoint --device cuda:0 --redis-url redis://redis:6379/0
  lasagna worker --check                          for health checks
  lasagna worker --queues interactive,predict     and on another machine: lasagna worker --queues train
  LASAGNA_LABEL_STUDIO_URL=https://label.example.org LASAGNA_LABEL_STUDIO_TOKEN=... lasagna worker

\b
Several workers may share one Redis. SIGTERM and Ctrl-C end a worker after the batch at hand; what is queued stays
queued."""
)
@click.option("--model", help="Checkpoint: a shipped name, a folder or a hub id.  [default: nano]")
@click.option("--device", help="auto, cpu, cuda or cuda:N.  [default: auto]")
@click.option("--dtype", help="auto, float32, bfloat16 or float16.  [default: auto]")
@click.option("--quantise", help="none, int8 or int4: the language model in fewer bits.  [default: none]")
@_redis_option
@click.option("--batch-size", type=click.IntRange(min=1), help="Images per model batch.  [default: 4]")
@click.option("--label-studio-url", metavar="URL", help="Address of Label Studio.  [default: what /setup says]")
@click.option("--queues", metavar="NAMES", default=",".join(QUEUES), show_default=True,
              help="Which work: train has a process of its own, beside this one where both are named.")  # fmt: skip
@click.option("--check", is_flag=True,
              help="Start nothing: exit code 0 where such a worker of this machine is alive, else 1.")  # fmt: skip
@_print_config_option
def worker(queues: str, check: bool, print_config: bool, **options: Any) -> None:
    """Run the process that owns the model and works through the queue, and the one that trains."""
    settings = Settings.load(**options)
    if print_config:
        click.echo(settings.describe())
        return
    chosen = {name.strip() for name in queues.split(",")}
    trains = "train" in chosen
    if chosen not in ({"train"}, {*PREDICTING}, {*QUEUES}):
        raise ConfigError(
            f"--queues is {','.join(QUEUES)}, {','.join(PREDICTING)} or train, not {queues!r}: a process that holds "
            "the model answers clicks and batches"
        )
    if check:
        said = _check_worker(settings, [name for name in QUEUES if name in chosen])
        click.echo(said or "alive")
        sys.exit(1 if said else 0)
    start_logging(settings)
    _say_settings(settings)
    url = _redis(settings)

    from backend.training_worker import TrainingProcess, run_training_worker
    from backend.worker import check_label_studio, run_worker

    _say(settings, check_label_studio(settings))
    if chosen == {"train"}:
        run_training_worker(settings, url)
        logger.info("training worker ended")
        return
    from lasagna import Lasagna

    training = TrainingProcess(settings, url) if trains else None
    started = time.monotonic()
    model = Lasagna.from_pretrained(
        settings["model"], device=settings["device"], dtype=settings["dtype"], quantise=settings["quantise"]
    )
    logger.info("model %s loaded in %.1f s", model.version, time.monotonic() - started)
    try:
        if training is not None:
            training.look_after()
            run_worker(settings, url, model, training.look_after)
        else:
            run_worker(settings, url, model)
    finally:
        if training is not None:
            training.stop()
    logger.info("worker ended")


def _check_worker(settings: Settings, queues: list[str]) -> str:
    """Why no worker of this machine is alive; "" where one is."""
    import redis

    from backend.living_workers import alive_here
    from backend.predictions import connect
    from backend.services import running_redis
    from backend.store import Store

    url = running_redis(settings)
    if url is None:
        return "Redis does not answer"
    try:
        found = alive_here(Store(connect(url)), queues)
    except redis.RedisError as error:
        return f"Redis does not answer: {error}"
    return "" if found else "no worker of this machine has given a sign of life"


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
Exit code: 0 every task has its prediction, 1 some failed, 2 nothing could be started."""
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
    "--refresh", is_flag=True, help="Also tasks with a prediction of this version, which is replaced; none annotated."
)
@click.option("--dry-run", is_flag=True, help="Say what would happen and how long it would take, and do nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print what came of it, or would, as JSON on stdout.")
@_redis_option
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
    """Predict every task of PROJECT (its number in Label Studio) that has no prediction of the version that serves it.

    After a promotion or a rollback it renews the tasks that nobody has annotated yet. Annotated tasks keep the
    prediction that their annotator was shown.
    """
    from contextlib import suppress
    from dataclasses import asdict

    import redis

    from backend.label_studio import LabelStudio
    from backend.predictions import Predictor, connect
    from backend.prelabel import ProjectRun
    from backend.prelabel_jobs import PrelabelJobs, work_on
    from backend.store import Store
    from lasagna.progress import progress_bar

    settings = Settings.load(label_studio_url=url, label_studio_token=token, redis_url=redis_url)
    start_logging(settings)
    if not settings["label_studio_url"]:
        raise ConfigError("where is Label Studio? give --url or set LASAGNA_LABEL_STUDIO_URL")
    console = Console(stderr=True)
    label_studio = LabelStudio(settings["label_studio_url"], settings["label_studio_token"])
    console.print(f"Label Studio: {label_studio.url}, {label_studio.check()}", highlight=False)
    store = Store(_reached(connect(_redis(settings), timeout=10.0)))
    with _redis_in_words():
        run = ProjectRun(Predictor(settings, store), label_studio, project, tab=tab, refresh=refresh)
    console.print(f"{run.project['title']}: {run.total} tasks, model {run.version}", highlight=False, markup=False)
    if dry_run:
        with _redis_in_words(), progress_bar(console, "Looking", run.total) as advance:
            plan = run.dry_run(lambda _: advance())
        console.print(_plan_in_words(plan), highlight=False)
        if as_json:
            click.echo(json.dumps(plan.as_dict(), indent=1))
        return
    if not run.has_worker():
        console.print("[yellow]no worker is running: the tasks wait until you start `lasagna worker`")
    jobs = PrelabelJobs(store)
    owner = f"command {os.getpid()}"
    with _redis_in_words():
        id = jobs.add(project, tab=tab, refresh=refresh, by="command")
        jobs.claim(id, owner)
        try:
            with jobs.holding(id, owner), progress_bar(console, "Pre-labelling", run.total) as advance:
                outcome = work_on(jobs, id, owner, run, lambda reason: advance(note=_cut(reason)))
        except LasagnaError as error:
            with suppress(redis.RedisError):  # the error at hand says more
                jobs.end(id, "failed", str(error))
            raise
    console.print(
        f"{outcome.done} predicted, {outcome.had_one} had a prediction already, "
        + (f"{outcome.annotated} annotated keep an older one, " if outcome.annotated else "")
        + f"{len(outcome.failed)} failed",
        highlight=False,
    )
    for task, reason in list(outcome.failed.items())[:20]:
        console.print(f"  task {task}: {reason}", style="red", markup=False, highlight=False, soft_wrap=True)
    if len(outcome.failed) > 20:
        console.print(f"  and {len(outcome.failed) - 20} more: lasagna jobs --state failed")
    if as_json:
        click.echo(json.dumps({"version": run.version, "total": run.total, **asdict(outcome)}, indent=1))
    sys.exit(1 if outcome.failed else 0)


def _plan_in_words(plan: "Plan") -> str:
    words = (
        f"{plan.to_predict} of {plan.total} tasks would be predicted: {plan.missing} without a prediction, "
        f"{plan.outdated} with one of another version"
        + (f", {plan.replaced} whose prediction is replaced" if plan.replaced else "")
        + f". Left alone: {plan.had_one} that have one of {plan.version}, {plan.annotated} annotated."
    )
    if plan.seconds is None or plan.seconds_per_task is None:
        return f"{words}\nHow long it takes is not known before {plan.version} has predicted something here."
    at_work = f"{plan.workers} worker{'s' * (plan.workers != 1)}" if plan.workers else "one worker (none runs now)"
    return f"{words}\nAbout {in_time(plan.seconds)} with {at_work}, at {plan.seconds_per_task:.2f} s per task so far."


@click.group(
    invoke_without_command=True,
    epilog="""\b
Examples:
  lasagna jobs
  lasagna jobs --state failed --limit 100
  lasagna jobs --json
  lasagna jobs retry
  lasagna jobs retry --project 3""",
)
@_redis_option
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
@click.option("--state", type=click.Choice(["queued", "running", "ready", "done", "failed"]), help="Only this state.")
@click.option("--limit", type=click.IntRange(min=1), default=20, show_default=True, help="Tasks listed per state.")
@click.pass_context
def jobs(context: click.Context, redis_url: str | None, as_json: bool, state: str | None, limit: int) -> None:
    """Show what is queued, running, done and failed, and why."""
    context.obj = Settings.load(redis_url=redis_url)
    if context.invoked_subcommand is not None:
        return
    from backend.overview import overview

    with _redis_in_words():
        report = overview(open_store(context.obj), limit=limit, state=state)
    if as_json:
        click.echo(json.dumps(report, indent=2, ensure_ascii=False))
    else:
        _print_overview(report)


@jobs.command()
@click.option("--project", type=click.IntRange(min=1), help="Only tasks of this project.")
@click.pass_context
def retry(context: click.Context, project: int | None) -> None:
    """Put failed tasks back: those that were predicted are only posted again, the others are predicted anew."""
    from backend.overview import retry_failed

    settings: Settings = context.obj
    with _redis_in_words():
        queued, posted = retry_failed(open_store(settings), settings["batch_size"], project)
    click.echo(f"{queued} tasks queued again, {posted} predictions to be posted again")


def open_store(settings: Settings) -> Any:
    """The records in Redis. Raises ServiceError where it cannot be reached."""
    from backend.predictions import connect
    from backend.store import Store

    return Store(_reached(connect(_redis(settings))))


def _reached(connection: Any) -> Any:
    import redis

    try:
        connection.ping()
    except redis.RedisError as error:
        raise ServiceError(f"Redis cannot be reached ({error}); start it, or correct --redis-url") from error
    return connection


@contextmanager
def _redis_in_words() -> Iterator[None]:
    """An error of Redis in the middle of a command as one that the command line shows without a traceback."""
    import redis

    try:
        yield
    except redis.RedisError as error:
        raise ServiceError(f"Redis is gone or refuses ({error}); then run the same command again") from error


def _cut(text: str) -> str:
    return text if len(text) <= 80 else text[:77] + "..."


def _print_overview(report: dict[str, Any]) -> None:
    console = Console()
    model = report["model"]["version"] if report["model"] else "none yet"
    workers = report["workers"]
    console.print(f"Model {model}. Workers: {len(workers) or '[red]none[/red]'}.", highlight=False)
    for name, entry in workers.items():
        console.print(f"  {name}: {entry['state']}", highlight=False, markup=False)
    counts = "  ".join(f"{state} {count}" for state, count in report["counts"].items())
    console.print(f"Tasks: {counts}", highlight=False)
    for number, known in report["training"].items():
        console.print(f"Project {number}: {_training_in_words(known)}", highlight=False, markup=False)
    for job in report["projects"]:
        console.print(f"Project {job['project']}: {_prelabelling_in_words(job)}", highlight=False, markup=False)
    table = Table(box=None, pad_edge=False)
    for column in ("state", "project", "task", "changed", "attempts", "why"):
        table.add_column(column, overflow="fold", no_wrap=column != "why")
    for task in report["tasks"]:
        colour = {"failed": "red", "done": "green", "running": "cyan"}.get(task["state"], "")
        seconds = task["seconds_ago"]
        ago = f"{in_time(seconds)} ago"
        row = (task["state"], task["project"], task["task"] or "-", ago, task["attempts"] or "", task["reason"] or "")
        table.add_row(*(_plain(cell) for cell in row), style=colour)
    if report["tasks"]:
        console.print(table)


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


def _training_in_words(known: dict[str, str]) -> str:
    """One line about a project's fine-tunes, e.g. "training (20 corrections): train 40 of 160, 3 min left"."""
    changed = f"; {known['changed']} tasks corrected since" if known["changed"] != "0" else ""
    if known["state"] == "idle":
        if not known.get("outcome"):
            return f"not trained yet{changed}"
        version = f" {known['version']}" if known.get("version") else ""
        return f"last fine-tune {known['outcome']}{version}: {known.get('summary', '')}{changed}"
    if known["state"] == "queued":
        return f"a fine-tune waits ({known['reason']})"
    step = f" {known['step']} of {known['steps']}" if known.get("steps", "0") != "0" else ""
    left = float(known.get("left") or 0)
    time_left = f", {in_time(left)} left" if left else ""
    again = "; one more afterwards" if known.get("again") else ""
    return f"training ({known['reason']}): {known.get('stage', '')}{step}{time_left}{again}{changed}"


def _plain(cell: Any) -> Any:
    from rich.text import Text

    return Text(str(cell))  # a reason may hold square brackets
