"""The command `lasagna doctor`."""

import json
import sys

import click
from rich.console import Console
from rich.text import Text

from backend.doctor.case import Case, Finding
from backend.doctor.examine import as_json, examine, first_wrong, not_known
from lasagna.settings import Settings

_COLOURS = {"ok": "green", "wrong": "bold red", "note": "yellow", "skipped": "dim"}


@click.command(
    epilog="""\b
Examples:
  lasagna doctor
  lasagna doctor --project 3
  lasagna doctor --project 3 --task 17 --json
  lasagna doctor --project 3 --url https://label.example.org --token "$TOKEN"

\b
Run it with the settings of `lasagna worker` (its environment, in its container): it looks from there.
With --project, one task goes the whole way: Label Studio, web process, queue, worker and back. It keeps its prediction.
What each message means: docs/doctor.md.
Exit code: 0 nothing is wrong, 1 something is, 2 it could not be looked, 3 not all of it is known."""
)
@click.option("--project", type=click.IntRange(min=1), help="Number of the project in Label Studio.")
@click.option("--task", type=click.IntRange(min=1), help="The task that is sent.  [default: one without a prediction]")
@click.option("--json", "as_json_", is_flag=True, help="Print the findings as JSON.")
@click.option("--url", metavar="URL", help="Address of Label Studio.  [default: as for a worker]")
@click.option("--token", help="Personal or legacy token.  [default: as for a worker]")
@click.option("--redis-url", metavar="URL", help="Redis.  [default: as for a worker]")
@click.option("--backend", "backend_url", metavar="URL", default="",
              help="`lasagna serve` as Label Studio reaches it, to look whether it may be connected.  "
              "[default: http://HOST:PORT of the settings]")  # fmt: skip
def doctor(
    project: int | None,
    task: int | None,
    as_json_: bool,
    url: str | None,
    token: str | None,
    redis_url: str | None,
    backend_url: str,
) -> None:
    """Name the first thing that keeps predictions from appearing, with the fix."""
    settings = Settings.load(label_studio_url=url, label_studio_token=token, redis_url=redis_url)
    console = Console(highlight=False, soft_wrap=True, markup=False)
    findings: list[Finding] = []
    for found in examine(Case(settings, project, task, backend_url)):
        if not as_json_:
            _print(console, found, with_fix=first_wrong(findings) is not None)
        findings.append(found)
    wrong = first_wrong(findings)
    if as_json_:
        click.echo(json.dumps(as_json(findings), indent=2, ensure_ascii=False))
    elif wrong is None:
        _print_end(console, findings)
    else:
        console.print()
        console.print(Text.assemble(("First: ", "bold red"), wrong.words))
        console.print(Text.assemble(("Fix:   ", "bold"), wrong.fix))
    sys.exit(1 if wrong else 3 if not_known(findings) else 0)


def _print_end(console: Console, findings: list[Finding]) -> None:
    """What is to be said where nothing was found wrong."""
    console.print()
    if unknown := not_known(findings):
        names = ", ".join(found.check for found in unknown)
        console.print(Text.assemble(("Not known: ", "bold yellow"), f"{names}, {unknown[0].words}."))
        console.print("Nothing wrong was found in the rest. Try again.")
    elif all(found.is_asked for found in findings):
        console.print("Nothing is wrong.", style="green")
    else:
        console.print(
            "Nothing is wrong with the installation. No project was looked at: --project NUMBER.", style="green"
        )


def _print(console: Console, found: Finding, with_fix: bool) -> None:
    """One line; the fix of the first trouble comes at the end, that of a later one below it."""
    colour = _COLOURS[found.state]
    console.print(Text.assemble((f"{found.state:8}", colour), (f"{found.check:13}", "bold"), found.words))
    if found.fix and (with_fix or found.state == "note"):
        console.print(Text.assemble(" " * 21, ("fix: ", "bold"), found.fix))
