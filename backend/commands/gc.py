"""The command `lasagna gc`."""

import click

from backend.commands.redis import redis_in_words, redis_option
from lasagna.settings import Settings, registry_folder


@click.command(
    epilog="""\b
Examples:
  lasagna gc --dry-run
  lasagna gc --snapshots 1 --jobs 5 --days 7

\b
The training process does the same by itself after each fine-tune, with the default policy. Versions are never
removed."""
)
@click.option("--dry-run", is_flag=True, help="Say what would go, and remove nothing.")
@click.option("--snapshots", type=click.IntRange(min=1), default=3, show_default=True,
              help="Newest snapshots of a project that stay, besides those that a version or a job needs.")  # fmt: skip
@click.option("--jobs", type=click.IntRange(min=0), default=20, show_default=True,
              help="Newest ended fine-tunes of a project whose records stay.")  # fmt: skip
@click.option("--days", type=click.FloatRange(min=0), default=30.0, show_default=True,
              help="Younger records of fine-tunes stay too.")  # fmt: skip
@click.option("--gone", type=click.FloatRange(min=0), default=180.0, show_default=True,
              help="Days without a change after which the corrections, heads and snapshots go of a project that nobody "
                   "knows any more.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print what goes as JSON.")
@redis_option
def gc(
    dry_run: bool, snapshots: int, jobs: int, days: float, gone: float, as_json: bool, redis_url: str | None
) -> None:
    """Remove what the learning loop left behind: old snapshots and jobs, long logs, what projects that are gone had."""
    from backend.commands.redis import open_store
    from backend.loop import tidy
    from backend.queue.services import state_dir

    settings = Settings.load(redis_url=redis_url)
    store = open_store(settings)
    with redis_in_words():
        keep = tidy.Keep(snapshots, jobs, days, gone=gone)
        found = tidy.find_garbage(registry_folder(settings), state_dir(settings), store, keep)
        for garbage in found if not dry_run else ():
            tidy.remove(garbage, store)
    if as_json:
        click.echo(tidy.as_json(found))
        return
    if not found:
        click.echo("nothing to remove")
        return
    for garbage in found:
        click.echo(f"{garbage.what}: {garbage.why} ({garbage.bytes / 1e6:.1f} MB)")
    verb = "would go" if dry_run else "are gone"
    click.echo(f"{len(found)} things, {sum(garbage.bytes for garbage in found) / 1e6:.1f} MB {verb}")
