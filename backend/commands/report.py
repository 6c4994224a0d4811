"""The command `lasagna report`."""

import json
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from backend.commands.which_project import uid_there
from lasagna.errors import ConfigError
from lasagna.settings import Settings, registry_folder


@click.command(
    epilog="""\b
Examples:
  lasagna report 3
  lasagna report 3 --html effort.html
  lasagna report 3 --json --url https://label.example.org --token "$TOKEN"

\b
The same page is served by the backend as /report/PROJECT. What the figures mean: docs/effort.md."""
)
@click.argument("project", type=click.IntRange(min=1))
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON instead of the table.")
@click.option("--html", type=click.Path(path_type=Path, dir_okay=False), help="Write the page to a file too.")
@click.option("--url", metavar="URL", help="Address of Label Studio.  [default: LASAGNA_LABEL_STUDIO_URL]")
@click.option("--token", help="Personal or legacy token.  [default: LASAGNA_LABEL_STUDIO_TOKEN]")
def report(project: int, as_json: bool, html: Path | None, url: str | None, token: str | None) -> None:
    """What annotators of PROJECT (its number in Label Studio) had to change in the predictions, version by version."""
    from backend.effort.disagreement import in_words as disagreement_in_words
    from backend.effort.page import FIGURES, effect, headline, in_words, render_effort
    from backend.effort.report import EffortReader
    from backend.instant.taught import TaughtNames
    from backend.registry.label_histories import LabelHistories
    from backend.registry.registry import Registry
    from backend.studio.client import LabelStudio
    from lasagna.files import write_atomically
    from lasagna.progress import progress_bar

    settings = Settings.load(label_studio_url=url, label_studio_token=token)
    if not settings.label_studio_url:
        raise ConfigError("where is Label Studio? give --url or set LASAGNA_LABEL_STUDIO_URL")
    label_studio = LabelStudio(settings.label_studio_url, settings.label_studio_token)
    uid_there(settings, label_studio, project)
    with progress_bar(Console(stderr=True), "reading tasks", len(label_studio.annotated(project))) as advance:
        registry = Registry(registry_folder(settings))
        reader = EffortReader(LabelHistories(registry.folder), TaughtNames(settings, registry).unknown_of)
        found = reader.read(label_studio, project, lambda done, total: advance())
    if html is not None:
        write_atomically(html, render_effort(found))
    if as_json:
        click.echo(json.dumps(found.as_dict(), indent=2, ensure_ascii=False))
        return
    console = Console(highlight=False, markup=False)
    table = Table(title=found.title, box=None, pad_edge=False)
    table.add_column("")
    for version in found.versions:
        table.add_column(f"{version.version}\n{version.tasks} photos", justify="right")
    for figure in FIGURES:
        cells = []
        for version in found.versions:
            one, change = version.figures.get(figure.key), version.against_previous.get(figure.key)
            word = effect(figure, change) if change else ""
            cells.append((in_words(figure, one) if one else "-") + (f"\n{word}" if word else ""))
        table.add_row(figure.title, *cells)
    if found.versions:
        console.print(table)
    console.print(headline(found))
    for version in found.versions:
        if version.unknown:
            names = ", ".join(f"{name} (drawn in {photos})" for name, photos in version.unknown.items())
            console.print(f"{version.version} was never taught, and in no figure of it is: {names}")
    for task, classes in found.disagreements.items():
        console.print(f"annotators disagree: task {task}: {disagreement_in_words(classes)}")
    for task, reason in found.skipped.items():
        console.print(f"not compared: task {task}: {reason}")
