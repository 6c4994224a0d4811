"""The command `lasagna models gate`: a model of any kind against what serves a project."""

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console

from backend.commands.redis import noted_project
from backend.commands.which_project import uid_there
from lasagna.errors import ConfigError
from lasagna.settings import Settings, registry_folder

if TYPE_CHECKING:
    from backend.loop.challenge import Outcome, Side


@click.command(
    epilog="""\b
Examples:
  lasagna models gate 12 ./sam3
  lasagna models gate 12 ./eomt-ade --latency-factor 20 --out eomt-or-nano
  lasagna models gate 12 nano-3f2a9c10 --against ./sam3
  lasagna models gate 12 ./sam3 --latency-factor 50 --serve

\b
Judged are all corrected photos that neither model was trained on. A class that a model cannot be asked for counts as
not drawn, and never as absent. The rules: docs/gate.md. Nothing changes what serves, but --serve.
Exit code: 0 it passed, 1 it did not, 2 it could not be judged."""
)
@click.argument("project", type=click.IntRange(min=1))
@click.argument("model")
@click.option("--against", metavar="MODEL", help="The other one.  [default: what serves the project]")
@click.option("--out", type=click.Path(path_type=Path, file_okay=False),
              help="Folder of report.html and report.json.  [default: gate-PROJECT-VERSION]")  # fmt: skip
@click.option("--latency-factor", type=click.FloatRange(min=0, min_open=True), default=1.5, show_default=True,
              help="Times the other's seconds that it may take.")  # fmt: skip
@click.option("--serve", is_flag=True, help="Let it serve the project if it passes.")
@click.option("--device", help="auto, cpu or cuda.  [default: LASAGNA_DEVICE]")
@click.option("--url", metavar="URL", help="Address of Label Studio.  [default: LASAGNA_LABEL_STUDIO_URL]")
@click.option("--token", help="Personal or legacy token.  [default: LASAGNA_LABEL_STUDIO_TOKEN]")
@click.option(
    "--registry", metavar="FOLDER", help="The registry.  [default: LASAGNA_REGISTRY, else the state folder's]"
)
@click.option("--json", "as_json", is_flag=True, help="Print the verdict as JSON.")
def gate(
    project: int,
    model: str,
    against: str | None,
    out: Path | None,
    latency_factor: float,
    serve: bool,
    device: str | None,
    url: str | None,
    token: str | None,
    registry: str | None,
    as_json: bool,
) -> None:
    """Judge MODEL (of any kind) against what serves PROJECT, on the project's corrections, class by class."""
    settings = Settings.load(label_studio_url=url, label_studio_token=token, registry=registry, device=device)
    if not settings.label_studio_url:
        raise ConfigError("where is Label Studio? give --url or set LASAGNA_LABEL_STUDIO_URL")
    from backend.studio.client import LabelStudio

    label_studio = LabelStudio(settings.label_studio_url, settings.label_studio_token)
    uid = uid_there(settings, label_studio, project)
    champion, candidate = _sides(settings, uid, against, model)
    out = out or Path(f"gate-{project}-{candidate.id}")
    console = Console(stderr=True, markup=False)
    outcome = _judge(settings, label_studio, uid, (champion, candidate), out, latency_factor, console)
    verdict, now = outcome.verdict, ""
    if serve and verdict.passed:
        now = _let_serve(settings, uid, candidate, outcome)
    if as_json:
        written = [str(path) for path in outcome.reports]
        names = {"champion": champion.id, "candidate": candidate.id, "serves": now or None, "reports": written}
        click.echo(json.dumps({**names, **verdict.as_dict()}, indent=1, ensure_ascii=False))
    else:
        click.echo(f"{candidate.id} against {champion.id}, {verdict.photos[0]} photos. {verdict.in_words()}")
        for sentence in verdict.which_better.in_words((champion.id, candidate.id)):
            click.echo(f"  {sentence}")
        click.echo(f"  {outcome.reports[0]}")
        if now:
            click.echo(f"project {project} is now served by {now}; `lasagna models rollback {project}` takes it back")
    if not verdict.passed:
        raise SystemExit(1)


def _sides(settings: Settings, uid: str, against: str | None, model: str) -> "tuple[Side, Side]":
    """Champion and candidate. Raises ConfigError where they are the same."""
    from backend.loop.challenge import side_of
    from backend.registry.records import project_key
    from backend.registry.registry import Registry

    registry = Registry(registry_folder(settings))
    serving = registry.champion(uid)
    other = against or (serving.id if serving else settings.model)
    snapshots = registry.folder / "snapshots" / project_key(uid)
    champion, candidate = (side_of(registry, snapshots, name) for name in (other, model))
    if champion.id == candidate.id:
        raise ConfigError(f"{model} is {champion.id}, and so is what it would be compared with; name another model")
    return champion, candidate


def _judge(
    settings: Settings,
    label_studio: Any,
    uid: str,
    sides: "tuple[Side, Side]",
    out: Path,
    latency_factor: float,
    console: Console,
) -> "Outcome":
    from backend.instant.policy import learns_at_once
    from backend.loop.challenge import challenge, corrections, steps
    from backend.loop.snapshot import Snapshots
    from backend.registry.label_histories import LabelHistories
    from backend.registry.records import project_number
    from backend.studio.images import ImageLimits
    from lasagna.models.loading import load_model
    from lasagna.progress import progress_bar
    from training.evaluation.gate import Limits

    def say(line: str) -> None:
        console.print(line, highlight=False, soft_wrap=True)

    noted = noted_project(settings, uid)
    learns = settings.instant if noted is None else learns_at_once(settings, noted)
    most = {"max_pixels": settings.max_image_pixels, "max_memory": settings.max_image_memory}
    history = LabelHistories(registry_folder(settings)).of(uid)
    limits, known_as = ImageLimits.from_settings(settings), noted.url if noted else ""
    with tempfile.TemporaryDirectory(prefix="lasagna-gate-") as folder:
        with console.status("reading the corrections and their photos ..."):
            number = int(project_number(uid))
            source = Snapshots(Path(folder), label_studio, number, limits, most, known_as, history)
            snapshot = source.take(divided=False)
            records = corrections(snapshot)
        models = [load_model(side.folder, device=settings.device, dtype=settings.dtype, say=say) for side in sides]
        with progress_bar(console, "Judging", steps(models, sides, records, learns)) as advance:
            outcome = challenge(
                uid,
                sides,
                (models[0], models[1]),
                records,
                out,
                learns_at_once=learns,
                limits=Limits(latency_factor=latency_factor),
                advance=advance,
            )
    for task, reason in list((snapshot.skipped or {}).items())[:20]:
        console.print(f"left out: task {task}: {reason}", style="red", highlight=False, soft_wrap=True)
    return outcome


def _let_serve(settings: Settings, uid: str, candidate: "Side", outcome: "Outcome") -> str:
    """Makes the candidate serve the project; its id."""
    from backend.registry.registry import Registry
    from lasagna.checkpoint.folder import folder_name

    registry = Registry(registry_folder(settings))
    version = candidate.version
    if version is None:
        verdict = outcome.verdict.as_dict()
        metrics = {name: verdict[name] for name in ("passed", "summary", "figures", "classes", "better")}
        name = folder_name(candidate.folder)
        version = registry.add(
            candidate.folder, project=uid, parent="", snapshot="", metrics=metrics, reports=outcome.reports, name=name
        )
    registry.promote(uid, version.id, outcome.verdict.in_words())
    return version.id
