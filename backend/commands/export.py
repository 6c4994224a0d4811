"""The command `lasagna export`."""

import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from backend.commands.which_project import uid_there
from lasagna.errors import ConfigError
from lasagna.settings import Settings, registry_folder


@click.command(
    epilog="""\b
Examples:
  lasagna export 3 --out corrections
  lasagna export 3 --format coco --format yolo --out corrections
  lasagna export 3 --out corrections --url https://label.example.org --token "$TOKEN"

\b
`lasagna train finetune tasks.semantic.sets.mine.path=corrections` trains on what --format masks wrote.
Exit code: 0 all annotated tasks are in it, 1 some could not be used and are named, 2 nothing was written."""
)
@click.argument("project", type=click.IntRange(min=1))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder, new or empty.")
@click.option("--format", "formats", multiple=True, default=("masks",), show_default=True,
              type=click.Choice(["masks", "coco", "yolo"]), help="Repeatable.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print what was written as JSON.")
@click.option("--url", metavar="URL", help="Address of Label Studio.  [default: LASAGNA_LABEL_STUDIO_URL]")
@click.option("--token", help="Personal or legacy token.  [default: LASAGNA_LABEL_STUDIO_TOKEN]")
def export(
    project: int, out: Path, formats: tuple[Any, ...], as_json: bool, url: str | None, token: str | None
) -> None:
    """Write the corrections of PROJECT (its number in Label Studio) with their photos, for any other program.

    Of several annotations of a task the ground truth counts, else the newest, as in training.
    """
    import json

    from backend.commands.redis import noted_project
    from backend.loop.export import check_out, write_export
    from backend.loop.snapshot import Snapshots
    from backend.registry.label_histories import LabelHistories
    from backend.studio.client import LabelStudio
    from backend.studio.images import ImageLimits
    from lasagna.progress import progress_bar

    settings = Settings.load(label_studio_url=url, label_studio_token=token)
    if not settings.label_studio_url:
        raise ConfigError("where is Label Studio? give --url or set LASAGNA_LABEL_STUDIO_URL")
    out = out.resolve()
    check_out(out)
    label_studio = LabelStudio(settings.label_studio_url, settings.label_studio_token)
    console = Console(stderr=True, markup=False)
    most = {"max_pixels": settings.max_image_pixels, "max_memory": settings.max_image_memory}
    limits = ImageLimits.from_settings(settings)
    uid = uid_there(settings, label_studio, project)
    history = LabelHistories(registry_folder(settings)).of(uid)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as folder:
        with console.status("reading the corrections and their photos ..."):
            noted = noted_project(settings, uid)
            known_as = noted.url if noted else ""  # which its photos may have
            source = Snapshots(Path(folder), label_studio, project, limits, most, known_as, history)
            snapshot = source.take(divided=False)
        with progress_bar(console, "Writing", snapshot.train) as advance:
            found = write_export(snapshot, out, formats, advance)
    if as_json:
        click.echo(json.dumps(asdict(found), indent=1, ensure_ascii=False))
    else:
        click.echo(f"{found.photos} photos, {len(found.classes)} classes, in {out}")
    if found.undecided:
        console.print(f"undecided classes in {len(found.undecided)} photos: see export.json", highlight=False)
    for task, reason in list(found.skipped.items())[:20]:
        console.print(f"left out: task {task}: {reason}", style="red", markup=False, highlight=False, soft_wrap=True)
    if found.skipped:
        raise SystemExit(1)
