"""`lasagna demo`: everything at once on this machine, up to photos in Label Studio with the model's regions.

The parts are in `backend.demo.parts`. Their folder, `demo` below the state folder, is kept, so a later start is quicker
and annotations survive.
"""

import json
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lasagna.checkpoint.vocabulary import unknown_in_words
from lasagna.errors import ConfigError
from lasagna.settings import Settings

if TYPE_CHECKING:
    from backend.demo.correcting import Step
    from backend.demo.parts import Demo, PhotoOutcome


class _StoppedError(BaseException):
    """SIGTERM or SIGHUP came: end as after Ctrl-C."""


@click.command(
    epilog="""\b
Examples:
  lasagna demo
  lasagna demo --images ~/photos --labels "dog,grass,tree,sky"
  lasagna demo --label-config label_config/polygon.xml
  lasagna demo --correct                        twelve photos corrected one by one; the next one's masks improve
  lasagna demo --exit --json demo.json

\b
Exit code with --exit: 0 every photo has its prediction, 1 some have not, 2 something could not be started."""
)
@click.option(
    "--images",
    type=click.Path(path_type=Path),
    help="Folder or image file.  [default: photos that come with scikit-image]",
)
@click.option("--labels", metavar="A,B,...", help="Classes to ask for.  [default: those of label_config/demo.xml]")
@click.option(
    "--label-config", type=click.Path(path_type=Path, dir_okay=False), help="Labelling configuration of Label Studio."
)
@click.option("--model", help="Checkpoint: a shipped name, a folder or a hub id.  [default: nano]")
@click.option("--port", type=click.IntRange(1, 65535), help="Port of Label Studio.  [default: 8080, or a free one]")
@click.option(
    "--correct",
    is_flag=True,
    help="Correct photos of coins one by one and show how the next prediction improves; writes a film strip.",
)
@click.option("--exit", "exit_after", is_flag=True, help="End after the table.")
@click.option(
    "--json",
    "json_file",
    type=click.Path(path_type=Path, dir_okay=False, writable=True),
    help="Write the summary to this file.",
)
@click.option(
    "--timeout",
    type=click.FloatRange(min=1),
    default=600.0,
    show_default=True,
    help="Seconds to wait for the predictions of all photos.",
)
def demo(
    images: Path | None,
    labels: str | None,
    label_config: Path | None,
    model: str | None,
    port: int | None,
    correct: bool,
    exit_after: bool,
    json_file: Path | None,
    timeout: float,
) -> None:
    """Show photos in a real Label Studio, pre-labelled by the model. Ctrl-C ends everything."""
    from backend.demo.correcting import CONFIG, coin_pieces, correct_one_by_one, write_film
    from backend.demo.parts import Demo, only_one
    from backend.demo.photos import chosen_photos, demo_label_config
    from backend.queue.services import state_dir
    from lasagna.checkpoint.architectures import architecture_of
    from lasagna.checkpoint.folder import find_checkpoint

    settings = Settings.load(model=model)
    checkpoint = find_checkpoint(settings.model)  # an unknown one is named before anything starts
    other = architecture_of(checkpoint)
    if correct and other is not None:
        raise ConfigError(
            f"--correct shows how a model learns from corrections, and {checkpoint.name} is of the type "
            f"{other.model_type!r}, which does not; leave --correct out, or take a checkpoint of LaSagnA"
        )
    folder = state_dir(settings) / "demo"
    folder.mkdir(mode=0o700, exist_ok=True)
    settings = Settings.load(model=model, state_dir=str(folder))
    if correct and (images or labels or label_config):
        raise ConfigError("--correct brings its own photos and label; leave --images, --labels and --label-config out")
    pieces = coin_pieces(folder / "coins") if correct else []
    config = CONFIG if correct else demo_label_config(labels, label_config)
    photos = [piece.path for piece in pieces] if correct else chosen_photos(images)
    if json_file is not None and not json_file.absolute().parent.is_dir():
        raise ConfigError(f"--json {json_file}: there is no folder {json_file.absolute().parent}; make it first")
    console = Console()
    started = time.monotonic()
    ready = False
    try:
        with only_one(folder) as running, _signals(), Demo(settings, folder, console, port) as parts:
            project = parts.create_project(config, photos)
            if correct:
                steps = correct_one_by_one(parts, project, pieces, timeout)
                summary = _film(parts, project, steps, write_film(pieces, steps, folder), time.monotonic() - started)
            else:
                answers = parts.predict(project, photos, config, timeout)
                summary = _summary(parts, project, answers, time.monotonic() - started)
            running.write(summary["url"])
            running.flush()
            if json_file is not None:
                json_file.write_text(json.dumps(summary, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
            if correct:
                _show_film(console, summary)
            else:
                _show(console, summary, answers, other is not None and other.closed)
            _show_place(console, summary, parts.label_studio.login.password)
            ready = True
            if not exit_after:
                console.print("\nCtrl-C ends everything.")
                parts.stay()
    except (KeyboardInterrupt, _StoppedError):
        console.print("Stopped; nothing is left running.")
        if not ready:
            sys.exit(130)
    if exit_after and not summary["complete"]:
        sys.exit(1)


@contextmanager
def _signals() -> Iterator[None]:
    def stop(number: int, frame: object) -> None:
        raise _StoppedError

    numbers = (signal.SIGTERM, signal.SIGHUP)
    before = [signal.signal(number, stop) for number in numbers]
    interrupt = signal.getsignal(signal.SIGINT)
    try:
        yield
    finally:
        for number, handler in zip((*numbers, signal.SIGINT), (*before, interrupt), strict=True):
            with suppress(TypeError):  # a handler that was not set from Python
                signal.signal(number, handler)


def _summary(parts: "Demo", project: int, answers: "Sequence[PhotoOutcome]", seconds: float) -> dict[str, Any]:
    return {
        "complete": all(answer.model_version == parts.model_version for answer in answers),
        "model_version": parts.model_version,
        "about_model": parts.about_model,
        "url": f"{parts.label_studio.url}/projects/{project}/data",
        "user": parts.label_studio.login.user,
        "project": project,
        "seconds_total": round(seconds, 2),
        "photos": [
            {
                "name": answer.name,
                "task": answer.task,
                "present": list(answer.present),
                "probabilities": {name: round(value, 4) for name, value in answer.present.items()},
                "absent": answer.absent,
                "unknown": list(answer.unknown),
                "seconds": round(answer.seconds, 3),
                **({} if answer.error is None else {"error": answer.error}),
            }
            for answer in answers
        ],
    }


def _film(
    parts: "Demo", project: int, steps: "Sequence[Step]", files: Sequence[Path], seconds: float
) -> dict[str, Any]:
    return {
        "complete": all(step.learnt is not None for step in steps),
        "model_version": parts.serving(project),
        "url": f"{parts.label_studio.url}/projects/{project}/data",
        "user": parts.label_studio.login.user,
        "project": project,
        "seconds_total": round(seconds, 2),
        "pictures": [str(file) for file in files],
        "corrections": [
            {
                "name": step.name,
                "task": step.task,
                "model_version": step.version,
                "to_change": round(step.to_change, 4),
                "learnt_in": None if step.learnt is None else round(step.learnt, 2),
            }
            for step in steps
        ],
    }


def _show_film(console: Console, summary: dict[str, Any]) -> None:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in ("photo", "predicted by", "pixels to change", "learnt in"):
        table.add_column(name, justify="left" if name in ("photo", "predicted by") else "right")
    for step in summary["corrections"]:
        learnt = "-" if step["learnt_in"] is None else f"{step['learnt_in']:.1f} s"
        table.add_row(step["name"], step["model_version"], f"{step['to_change']:.1%}", learnt)
    console.print()
    console.print(table)
    for path in summary["pictures"]:
        console.print(f"  {path}", soft_wrap=True, highlight=False)


def _show(console: Console, summary: dict[str, Any], answers: "Sequence[PhotoOutcome]", closed: bool) -> None:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("photo", overflow="fold")
    table.add_column("present (probability)", overflow="fold")
    table.add_column("absent", justify="right")
    table.add_column("seconds", justify="right")
    for answer in answers:
        said = ", ".join(f"{name} {probability:.2f}" for name, probability in answer.present.items()) or "none"
        text = Text(said) if answer.error is None else Text(answer.error, style="red")
        table.add_row(Text(answer.name), text, str(answer.absent), f"{answer.seconds:.2f}")
    console.print()
    console.print(table)
    if words := unknown_in_words(summary["model_version"], answers[0].unknown if answers else (), closed):
        console.print(words, style="yellow", highlight=False, markup=False, soft_wrap=True)


def _show_place(console: Console, summary: dict[str, Any], password: str) -> None:
    console.print(f"\nModel {summary['model_version']}. Look at them in Label Studio:", highlight=False)
    console.print(f"  {summary['url']}", soft_wrap=True)
    console.print(f"  login     {summary['user']}", highlight=False)
    console.print(f"  password  {password}", highlight=False, markup=False)
