"""`lasagna learn`: a head file from corrected photos; and what `lasagna annotate --corrected` does first."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console

from lasagna.commands.classes import choose_classes
from lasagna.errors import ConfigError
from lasagna.files import write_atomically
from lasagna.masks.segmentation import ClassQuery
from lasagna.progress import progress_bar
from lasagna.settings import Settings

if TYPE_CHECKING:
    from lasagna.instant.head import Head
    from lasagna.instant.store import HeadStore


@click.command(
    epilog="""\b
Examples:
  lasagna learn corrected --out head.safetensors
  lasagna learn export.json --photos photos --out head.safetensors --store learnt
  lasagna learn coco.json --photos photos --label-config project.xml --out head.safetensors

\b
CORRECTED is one of
  masks          DIR/*.png or DIR/masks/*.png with classes.json, as `lasagna annotate --format masks` writes them
  COCO           a JSON file, or DIR/coco.json
  Label Studio   an export as JSON or JSON_MIN, beside its label_config.xml
  data set       a folder with classes.json, images, masks and train.txt (docs/data.md)

\b
The head is then used by
  lasagna annotate photos --labels sky,road --head head.safetensors --out out
  Lasagna.from_pretrained("nano", head="head.safetensors")

Exit code: 0 learnt from all, 1 some photos were left out, 2 from none."""
)
@click.argument("corrected", type=click.Path(path_type=Path))
@click.option("--photos", multiple=True, type=click.Path(path_type=Path, exists=True, file_okay=False),
              help="Folder below which the photos are. Repeatable.  [default: beside the corrections]")  # fmt: skip
@click.option("--labels", metavar="A,B,C", help="The classes as they will be asked, where the model reads other words.")
@click.option("--labels-file", type=click.Path(path_type=Path), help="The same, as a text file with one per line.")
@click.option("--label-config", type=click.Path(path_type=Path), help="The same, as a labelling configuration (XML).")
@click.option("--out", "-o", required=True, type=click.Path(path_type=Path, dir_okay=False), help="The head's file.")
@click.option("--store", type=click.Path(path_type=Path, file_okay=False),
              help="Keep the corrections here, at most 2 MB each: a later run computes only what changed.")  # fmt: skip
@click.option("--model", help="Checkpoint: a shipped name, a folder or a hub id.  [default: nano]")
@click.option("--device", help="auto, cpu, cuda or cuda:N.  [default: auto]")
def learn(
    corrected: Path,
    photos: tuple[Path, ...],
    labels: str | None,
    labels_file: Path | None,
    label_config: Path | None,
    out: Path,
    store: Path | None,
    **chosen: Any,
) -> None:
    """Learn from CORRECTED photos, at once, and write a head that the model then uses."""
    from lasagna.instant.store import HeadStore

    settings = Settings.load(**chosen)
    given = any(option is not None for option in (labels, labels_file, label_config))
    queries = choose_classes(labels, labels_file, label_config)[0] if given else []
    with tempfile.TemporaryDirectory() as scratch:
        head, failures = learn_corrected(corrected, photos, queries, settings, HeadStore(store or scratch))
    try:
        write_atomically(out, head.to_bytes())
    except OSError as error:
        raise ConfigError(f"{out}: cannot be written ({error.strerror}); choose another --out") from error
    click.echo(f"learnt from {head.decision.corrections} photos, into {out}; {head.decision.reason}")
    if failures:
        raise SystemExit(1)


def learn_for_annotate(
    corrected: Path, photos: Sequence[Path], queries: Sequence[ClassQuery], settings: Settings, folder: Path
) -> Path:
    """What `lasagna annotate --corrected` learns: the head's file, below `folder`, where corrections are kept too."""
    from lasagna.instant.store import HeadStore

    store = HeadStore(folder)
    head, _ = learn_corrected(corrected, photos, queries, settings, store)
    click.echo(f"learnt from {head.decision.corrections} corrected photos; {head.decision.reason}", err=True)
    return store.path(head.number)


def learn_corrected(
    corrected: Path, photos: Sequence[Path], queries: Sequence[ClassQuery], settings: Settings, store: "HeadStore"
) -> tuple["Head", dict[str, str]]:
    """Learns from all corrected photos of a path, with a progress bar.

    Returns:
        The head, and the reason of each photo that was left out, which is also printed.

    Raises:
        DataError: The path is of no known form, or no photo could be learnt from.
    """
    from lasagna.assistant.lasagna import Lasagna
    from training.instant.corrected import read_corrected
    from training.instant.learn import learn_from

    source = read_corrected(corrected, photos)
    console: Console = Console(stderr=True, markup=False)
    model = Lasagna.from_pretrained(
        settings.model, device=settings.device, dtype=settings.dtype, quantise=settings.quantise
    )
    failures: dict[str, str] = {}
    with progress_bar(console, "Learning", len(source)) as advance:
        head = learn_from(model, source, store, queries, failures.__setitem__, advance)
    for name, reason in failures.items():
        click.secho(f"left out: {name}: {reason}", fg="red", err=True)
    return head, failures
