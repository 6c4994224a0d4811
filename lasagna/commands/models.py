"""The commands `lasagna models`: fetching and converting checkpoints, and which there are.

A group to which other packages add theirs through the entry-point group `lasagna.models` (name = click command).
Nothing here imports torch before a command runs.
"""

import resource
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click

from lasagna.checkpoint.architectures import architecture_of
from lasagna.checkpoint.folder import checkpoint_version, find_checkpoint, pulled_folder, shipped_checkpoints
from lasagna.commands.groups import EntryPointGroup
from lasagna.errors import LasagnaError

LARGE = 1_000_000_000
"""Bytes from which on a version is named only where checksums are noted: reading the file would take a while."""


@click.group(cls=EntryPointGroup, entry_point_group="lasagna.models")
def models() -> None:
    """Checkpoints: what is here, fetch, convert; and the fine-tuned versions that serve each project."""


@dataclass(frozen=True)
class CheckpointEntry:
    """One checkpoint: what to give `--model`, where it is from, its weights in bytes, whose wording it has (for a model
    of another maker its `model_type`)."""

    name: str
    origin: str
    size: int
    dialect: str
    version: str


def find_entries() -> Iterator[CheckpointEntry]:
    """Every checkpoint that a name leads to; broken ones say so in place of the version."""
    for name in shipped_checkpoints():
        yield _entry(name, "shipped", find_checkpoint(name))
    for folder in sorted(path for path in pulled_folder().glob("[!.]*") if (path / "config.json").exists()):
        yield _entry(folder.name, "pulled", folder)
    for hub_id, folder in _cached():
        yield _entry(hub_id, "hub cache", folder)


def _cached() -> Iterator[tuple[str, Path]]:
    from huggingface_hub import constants, scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        repositories = scan_cache_dir(constants.HF_HUB_CACHE).repos
    except (CacheNotFound, ValueError):
        return
    for repository in sorted(repositories, key=lambda r: r.repo_id):
        for revision in repository.revisions:
            place = revision.snapshot_path
            if revision.refs and ((place / "prompt.json").exists() or architecture_of(place) is not None):
                yield repository.repo_id, place


def _entry(name: str, origin: str, folder: Path) -> CheckpointEntry:
    from lasagna.prompt.dialect import RELEASED, PromptFormat

    size = sum(path.stat().st_size for path in folder.glob("**/*.safetensors"))
    try:
        other = architecture_of(folder)
        if other is None:
            form = PromptFormat.load(folder / "prompt.json")
            dialect = "released" if form.present == RELEASED.present else "paper"
        else:
            dialect = other.model_type
        quick = size < LARGE or (folder / "checksums.json").exists()
        version = checkpoint_version(folder) if quick else "not computed"
    except (LasagnaError, OSError) as error:
        return CheckpointEntry(name, origin, size, "?", f"not usable: {error}")
    return CheckpointEntry(name, origin, size, dialect, version)


@models.command(
    epilog="""\b
Examples:
  lasagna models convert LaSagnA-7B lasagna-7b --clip openai/clip-vit-large-patch14
  lasagna models convert llava-1.5-7b-hf start --sam sam_vit_h_4b8939.pth
  lasagna models convert LaSagnA-7B tuned --adapter lora-output
"""
)
@click.argument("source", type=click.Path(path_type=Path))
@click.argument("target", type=click.Path(path_type=Path))
@click.option("--clip", help="CLIP's folder or hub id; default: what SOURCE names.")
@click.option("--sam", type=click.Path(path_type=Path, dir_okay=False, exists=True), help="sam_vit_{h,l,b}.pth.")
@click.option("--adapter", type=click.Path(path_type=Path, file_okay=False, exists=True), help="peft's LoRA folder.")
@click.option("--lora-alpha", type=click.FloatRange(0, min_open=True), help="Of LoRA keys in SOURCE itself.  [16]")
@click.option("--keep-adapter", is_flag=True, help="Keep LoRA apart instead of merging it.")
@click.option("--bfloat16", is_flag=True, help="Round a float32 language model to bfloat16.")
def convert(
    source: Path,
    target: Path,
    clip: str | None,
    sam: Path | None,
    adapter: Path | None,
    lora_alpha: float | None,
    keep_adapter: bool,
    bfloat16: bool,
) -> None:
    """Turn SOURCE, a folder in LaSagnA's, LLaVA's or our layout, into the checkpoint folder TARGET."""
    from lasagna.checkpoint.convert import convert as convert_folder
    from lasagna.checkpoint.convert import source_config
    from lasagna.checkpoint.pull import clip_folder

    done = convert_folder(
        source,
        target,
        clip=clip_folder(clip, source, source_config(source)),
        sam=sam,
        adapter=adapter,
        lora_alpha=lora_alpha,
        keep_adapter=keep_adapter,
        bfloat16=bfloat16,
    )
    click.echo(f"{source}: {done.kind}")
    size = f"{done.parameters / 1e6:.1f} M parameters, {done.size / 1e9:.3f} GB"
    click.echo(f"{done.weights} weights, {size}, in {target}")
    for note in done.notes:
        click.echo(f"  {note}")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6  # kilobytes on Linux
    click.echo(f"  peak memory {peak:.2f} GB, with mapped files and libraries")
    click.echo(f"  use it with --model {target}")


@models.command(
    epilog="""\b
Examples:
  lasagna models check nano
  lasagna models check ./sam3"""
)
@click.argument("model")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option("--dtype", default="auto", show_default=True, help="auto, float32, bfloat16 or float16.")
def check(model: str, device: str, dtype: str) -> None:
    """Load MODEL, say its licence and abilities, and try whether it keeps the contract of all models.

    Exit code 1 where it does not.
    """
    from lasagna.contract.check import broken
    from lasagna.models.loading import about, load_model

    found = load_model(model, device=device, dtype=dtype, say=lambda _: None)
    for line in about(found):
        click.echo(line)
    faults = broken(found)
    for fault in faults:
        click.secho(f"not kept: {fault}", fg="red", err=True)
    if faults:
        raise SystemExit(1)
    click.echo(f"{found.version} keeps the contract")


@models.command()
@click.argument("name")
def pull(name: str) -> None:
    """Fetch checkpoint NAME (lasagna-7b, or a hub id), verify it, and convert it if need be."""
    from lasagna.checkpoint.pull import pull as pull_checkpoint

    usable, folder = pull_checkpoint(name, lambda line: click.echo(line, err=True))
    click.echo(f"{folder}\n  use it with --model {usable}")
