"""`lasagna models pull`: a checkpoint of the hub, converted where it is in a foreign layout."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lasagna.checkpoint.convert import convert
from lasagna.checkpoint.convert.layouts import read_config
from lasagna.checkpoint.folder import find_checkpoint, foreign_layout, pulled_folder
from lasagna.checkpoint.hub import download_weights, is_hub_id, verify
from lasagna.errors import CheckpointError


@dataclass(frozen=True)
class Known:
    """A checkpoint with a short name: its hub id, and that of its CLIP."""

    hub_id: str
    clip: str


KNOWN = {"lasagna-7b": Known("weic22/LaSagnA-7B", "openai/clip-vit-large-patch14")}


def clip_folder(given: str | None, source: Path, config: dict[str, Any]) -> Path | None:
    """CLIP's folder for a conversion.

    Args:
        given: Folder or hub id that a user named, or None: what the source's `config.json` names.
        source: The checkpoint; a relative folder in its configuration is looked for in it and beside it.
        config: Its `config.json`.

    Returns:
        None where the source has its own tower.
    """
    if given is not None:
        return Path(given) if Path(given).is_dir() else _clip_from_hub(given)
    if config.get("vision_config"):
        return None
    named = str(config.get("mm_vision_tower") or config.get("vision_tower") or "")
    for folder in (source / named, source.parent / named):
        if named and folder.is_dir() and (folder / "config.json").exists() and folder.resolve() != source.resolve():
            return folder
    if not is_hub_id(named):
        return None
    return _clip_from_hub(named)


def _clip_from_hub(name: str) -> Path:
    if not is_hub_id(name):
        raise CheckpointError(f"{name}: neither a folder nor a hub id of CLIP, such as openai/clip-vit-large-patch14")
    return download_weights(name)


def pull(name: str, report: Callable[[str], None]) -> tuple[str, Path]:
    """Fetches and verifies a checkpoint, and converts it if it is in the released layout.

    Args:
        name: A short name of `KNOWN`, or a hub id.
        report: Told what goes on, one line at a time.

    Returns:
        What to give `--model`, and the folder.
    """
    known = KNOWN.get(name)
    hub_id = known.hub_id if known else name
    if not is_hub_id(hub_id):
        raise CheckpointError(f"{name!r} is neither a hub id (owner/name) nor one of {', '.join(KNOWN)}")
    target = pulled_folder() / (name if known else hub_id.replace("/", "--"))
    if target.exists():
        report(f"{target} is there already; remove it to make it again")
        return target.name, find_checkpoint(target)
    report(f"fetching {hub_id}")
    folder = download_weights(hub_id)
    report(f"{verify(folder)} files of {hub_id} have the right checksum")
    if not foreign_layout(folder):
        return hub_id, find_checkpoint(hub_id)
    clip = clip_folder(known.clip if known else None, folder, read_config(folder))
    if clip is not None:
        report(f"{verify(clip)} files of CLIP have the right checksum")
    report(f"converting to {target}")
    convert(folder, target, clip=clip)
    return target.name, target
