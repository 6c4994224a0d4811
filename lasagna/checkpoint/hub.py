"""Checkpoints from the Hugging Face hub: fetched and verified.

`huggingface_hub` keeps what it fetched in its cache, goes on with an interrupted download, and works from the cache
alone with HF_HUB_OFFLINE=1. The cache names every file's content by its digest, which is what is verified.
"""

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

from lasagna.errors import CheckpointError
from lasagna.files import file_digest

_ID = re.compile(r"[\w.-]+/[\w.-]+")
_CONFIGS = ("*.json", "tokenizer.model", "merges.txt", "README.md", "adapter/*")


def is_hub_id(text: str) -> bool:
    """Whether a text has the form owner/name."""
    return _ID.fullmatch(text) is not None and not text.startswith(".")


def download(hub_id: str, patterns: Sequence[str], *, fetch: bool = True) -> Path:
    """The folder of a repository's newest version with the files that match; from the cache where they are there.

    Args:
        hub_id: owner/name.
        patterns: Of names of files.
        fetch: Whether what is not in the cache may be downloaded.

    Raises CheckpointError.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(snapshot_download(hub_id, allow_patterns=list(patterns), local_files_only=not fetch))
    except LocalEntryNotFoundError as error:
        if fetch:
            raise CheckpointError(_unreachable(hub_id, error)) from error
        raise CheckpointError(
            f"{hub_id}: is not in the cache of the hub; fetch it first: `lasagna models pull {hub_id}`"
        ) from error
    except Exception as error:  # network, authentication, unknown id, full disk: a dozen unrelated classes
        raise CheckpointError(_unreachable(hub_id, error)) from error


def _unreachable(hub_id: str, error: Exception) -> str:
    return (
        f"{hub_id}: cannot be fetched from the hub ({type(error).__name__}: {error}); check the spelling and the "
        "network, or give a folder; a download that was cut off goes on where it was"
    )


def download_weights(hub_id: str, *, fetch: bool = True) -> Path:
    """A repository's configuration and weights: safetensors where it has them, else `.bin`; `fetch` as of `download`.
    Raises CheckpointError."""
    folder = download(hub_id, [*_CONFIGS, "*.safetensors"], fetch=fetch)
    if not list(folder.glob("*.safetensors")):
        folder = download(hub_id, [*_CONFIGS, "pytorch_model*.bin"], fetch=fetch)
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
