"""Checkpoints from the Hugging Face hub: fetched, verified, converted where they are in a foreign layout.

`huggingface_hub` keeps what it fetched in its cache, goes on with an interrupted download, and works from the cache
alone with HF_HUB_OFFLINE=1. The cache names every file's content by its digest, which is what is verified.
"""

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lasagna.checkpoint.folder import file_digest, find_checkpoint, foreign_layout, pulled_folder
from lasagna.errors import CheckpointError

_ID = re.compile(r"[\w.-]+/[\w.-]+")
_CONFIGS = ("*.json", "tokenizer.model", "README.md", "adapter/*")


@dataclass(frozen=True)
class Known:
    """A checkpoint with a short name: its hub id, and that of its CLIP."""

    hub_id: str
    clip: str


KNOWN = {"lasagna-7b": Known("weic22/LaSagnA-7B", "openai/clip-vit-large-patch14")}


def is_hub_id(text: str) -> bool:
    """Whether a text has the form owner/name."""
    return _ID.fullmatch(text) is not None and not text.startswith(".")


def download(hub_id: str, patterns: Sequence[str]) -> Path:
    """The folder of a repository's newest version with the files that match; from the cache where they are there.

    Raises CheckpointError.
    """
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(hub_id, allow_patterns=list(patterns)))
    except Exception as error:  # network, authentication, unknown id, full disk: a dozen unrelated classes
        raise CheckpointError(
            f"{hub_id}: cannot be fetched from the hub ({type(error).__name__}: {error}); check the spelling and the "
            "network, or give a folder; a download that was cut off goes on where it was"
        ) from error


def download_weights(hub_id: str) -> Path:
    """A repository's configuration and weights: safetensors where it has them, else `.bin`. Raises CheckpointError."""
    folder = download(hub_id, [*_CONFIGS, "*.safetensors"])
    if not list(folder.glob("*.safetensors")):
        folder = download(hub_id, [*_CONFIGS, "pytorch_model*.bin"])
    return folder


def verify(folder: Path) -> int:
    """Compares every file of the cache's folder with the digest that the hub gave. Returns how many there are.

    Large files are named by SHA-256, others by git's SHA-1 of their content. Raises CheckpointError.
    """
    count = 0
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        blob = path.resolve()
        if re.fullmatch(r"[0-9a-f]{64}", blob.name):
            found = file_digest(blob).hex()
        elif re.fullmatch(r"[0-9a-f]{40}", blob.name):
            content = blob.read_bytes()
            found = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
        else:
            continue
        count += 1
        if found != blob.name:
            raise CheckpointError(
                f"{path.name}: its content is not what the hub holds (digest {found[:12]}..., expected "
                f"{blob.name[:12]}...); delete {blob} and pull again"
            )
    return count


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
    from lasagna.checkpoint.convert import convert
    from lasagna.checkpoint.convert.layouts import read_config

    clip = clip_folder(known.clip if known else None, folder, read_config(folder))
    if clip is not None:
        report(f"{verify(clip)} files of CLIP have the right checksum")
    report(f"converting to {target}")
    convert(folder, target, clip=clip)
    return target.name, target
