"""The commands `lasagna serve` and `lasagna worker`."""

import logging
import sys
import time
from typing import Any

import click

from backend.commands.redis import redis_address, redis_option
from backend.queue.jobs import PREDICTING, QUEUES
from backend.web.access import check_exposure
from lasagna.errors import ConfigError
from lasagna.logs import mask, start_logging
from lasagna.settings import Settings

logger = logging.getLogger(__name__)


def _say_settings(settings: Settings) -> None:
    _say(settings, "Settings (value, where it comes from):\n" + settings.describe())


def _say(settings: Settings, words: str) -> None:
    """Tells the person who started this; with JSON logs, as an event like any other."""
    if settings.log_format == "json":
        logger.info("%s", words)
    else:
        click.echo(mask(words), err=True)


def _say_unfit(settings: Settings, url: str) -> None:
    """Says loudly that tasks will be lost; a Redis that only refuses for now may be mended while this runs."""
    import redis

    from backend.queue.fitness import unfitness
    from backend.queue.store import connect

    try:
        why_not = unfitness(connect(url))
    except redis.RedisError as error:
        why_not = [f"it does not answer: {error}"]
    for reason in why_not:
        _say(settings, f"WARNING: Redis: {reason}")


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
@redis_option
@click.option("--model", help="Checkpoint, for the version until a worker says it.  [default: nano]")
@click.option("--label-studio-url", metavar="URL", help="Address of Label Studio.  [default: what /setup says]")
@click.option("--predict-deadline", type=click.FloatRange(min=0), metavar="SECONDS",
              help="Answer /predict with what is done after that time.  [default: 45]")  # fmt: skip
@_print_config_option
def serve(print_config: bool, **options: Any) -> None:
    """Run the web process that Label Studio talks to. It loads no model."""
    from backend._wsgi import WebServer, bound
    from backend.app import create_app
    from backend.studio.way import check_label_studio

    settings = Settings.load(**options)
    if print_config:
        click.echo(settings.describe())
        return
    check_exposure(settings)
    start_logging(settings)
    _say_settings(settings)
    url = redis_address(settings)
    if not settings.redis_url:
        settings = settings.replaced(redis_url=url)
    _say_unfit(settings, url)
    _say(settings, check_label_studio(settings))
    app = create_app(settings)
    _say(settings, f"Listening on http://{bound(settings)} (Ctrl-C ends)")
    WebServer(app, settings).run()


@click.command(
    epilog="""\b
Examples:
  lasagna worker
  lasagna worker --model ./my-checkpoint --device cuda:0 --redis-url redis://redis:6379/0
  lasagna worker --check                          for health checks
  lasagna worker --queues interactive,instant,predict     and on another machine: lasagna worker --queues train
  LASAGNA_LABEL_STUDIO_URL=https://label.example.org LASAGNA_LABEL_STUDIO_TOKEN=... lasagna worker

\b
Several workers may share one Redis. SIGTERM and Ctrl-C end a worker after the batch at hand; what is queued stays
queued."""
)
@click.option("--model", help="Checkpoint: a shipped name, a folder or a hub id.  [default: nano]")
@click.option("--device", help="auto, cpu, cuda or cuda:N.  [default: auto]")
@click.option("--dtype", help="auto, float32, bfloat16 or float16.  [default: auto]")
@click.option("--quantise", help="none, int8 or int4: the language model in fewer bits.  [default: none]")
@click.option("--encoder", help="torch or openvino: what computes the image encoder on a CPU.  [default: torch]")
@redis_option
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
    if chosen == {"interactive", "predict"}:  # what a predicting worker was told before 1.0
        chosen = {*PREDICTING}
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
    url = redis_address(settings)

    from backend.loop.process import TrainingProcess, run_training_worker
    from backend.studio.way import check_label_studio
    from backend.worker.process import run_worker

    _say_unfit(settings, url)
    _say(settings, check_label_studio(settings))
    if chosen == {"train"}:
        run_training_worker(settings, url)
        logger.info("training worker ended")
        return
    from lasagna.models.loading import load_model

    training = TrainingProcess(settings, url) if trains else None
    started = time.monotonic()
    model = load_model(
        settings.model,
        device=settings.device,
        dtype=settings.dtype,
        quantise=settings.quantise,
        encoder=settings.encoder,
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

    from backend.queue.living_workers import alive_here
    from backend.queue.own_redis import running_redis
    from backend.queue.store import Store, connect

    url = running_redis(settings)
    if url is None:
        return "Redis does not answer"
    try:
        found = alive_here(Store(connect(url)), queues)
    except redis.RedisError as error:
        return f"Redis does not answer: {error}"
    return "" if found else "no worker of this machine has given a sign of life"
