"""Checkpoint folders: find, read, write, name.

A checkpoint is a folder in the layout of the Hugging Face hub:

    config.json         the shape (`lasagna.network.config.ModelConfig`)
    *.safetensors       the weights, one file or shards; matrices in half precision, everything else float32
    tokenizer.json      the vocabulary, or
    tokenizer.model, added_tokens.json   that of a Llama (`lasagna.prompt.tokenizer`)
    prompt.json         the dialect (`lasagna.prompt.dialect.PromptFormat`)
    calibration.json    temperature and offsets of the probabilities; optional
    adapter/            a LoRA adapter that is not merged (`lasagna.network.adapter`); optional
    classifier/         what the encoder's features say of the taught names (`lasagna.instant.classifier`); optional
    base.json           {"base": name}: the checkpoint that has the weights which this one does not have; optional.
                        A name that starts with ./ or ../ is a path from this folder
    labels.json         [names]: the label set that it was fine-tuned for; optional
    vocabulary.json     the names that it was taught (`lasagna.checkpoint.vocabulary`); optional: without it everything
                        may be asked
    checksums.json      digests of large files, so that naming a version need not read them; optional
    README.md           model card; optional

Another `model_type` in `config.json` makes it the folder of another model (`lasagna.checkpoint.architectures`), which
needs the files that its loader reads, and may have `calibration.json` and README.md beside them.

Weights are safetensors only: no file of a checkpoint can run code. `lasagna.checkpoint.weights` reads them; here is no
torch, so that the web process can name a version.
"""

import hashlib
import json
import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import entry_points
from pathlib import Path

from lasagna.checkpoint.architectures import OURS, architecture_of, architectures, model_type
from lasagna.checkpoint.hub import download, download_weights
from lasagna.errors import CheckpointError
from lasagna.files import file_digest, parse_json
from lasagna.network.config import ModelConfig
from lasagna.settings import cache_folder

SHIPPED = Path(__file__).parents[1] / "checkpoints"
REQUIRED = ("config.json", "prompt.json")
CHECKSUMS, ADAPTER, BASE, LABELS = "checksums.json", "adapter", "base.json", "labels.json"
CLASSIFIER = "classifier/taught.safetensors"
CONTENT = ("*.json", "*.safetensors", "*.model", "merges.txt", f"{ADAPTER}/*", CLASSIFIER)
"""The files of a checkpoint that change its answers, as patterns."""
TOKENIZERS = ("tokenizer.model", "tokenizer.json")


@dataclass(frozen=True)
class Calibration:
    """Margins to probabilities: sigmoid((margin - offset) / temperature).

    Attributes:
        temperature: Positive; fitted on held-out answers.
        offset: Margin at which the probability is one half.
        class_offsets: Added to `offset` for a class, by the name that the model reads.
    """

    temperature: float = 1.0
    offset: float = 0.0
    class_offsets: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise CheckpointError(f"calibration.json: temperature is positive, not {self.temperature}")


def shipped_checkpoints() -> list[str]:
    """Names of the checkpoints that come with the package."""
    return sorted(path.name for path in SHIPPED.glob("*") if (path / "config.json").exists())


def find_checkpoint(name: str | Path, *, fetch: bool = True) -> Path:
    """The folder of a shipped name, of a path, of a fine-tuned version's id, of a checkpoint that was pulled, or of a
    hub id (from the local cache or, with `fetch`, downloaded).

    Raises CheckpointError that says what was looked for.
    """
    folder = Path(name).expanduser()
    if not folder.is_dir() and str(name) in shipped_checkpoints():
        folder = SHIPPED / str(name)
    elif not folder.is_dir() and (version := _found_elsewhere(str(name))) is not None:
        folder = version
    elif not folder.is_dir() and (pulled_folder() / str(name) / "config.json").exists():
        folder = pulled_folder() / str(name)
    elif not folder.is_dir():
        if folder.exists():
            raise CheckpointError(f"{name}: is a file; a checkpoint is a folder with {', '.join(REQUIRED)}")
        if str(name).count("/") != 1 or str(name).startswith((".", "/", "~")):
            raise CheckpointError(
                f"unknown checkpoint {str(name)!r}: it is neither a shipped one ({', '.join(shipped_checkpoints())}), "
                "nor a version nor one that was pulled (`lasagna models list`), nor a folder, nor a hub id (owner/name)"
            )
        # The small files first: a foreign checkpoint is refused before its weights are fetched.
        folder = download(str(name), ["*.json"], fetch=fetch)
        _refuse_foreign(folder, f"pull {name}", name)
        folder = download_weights(str(name), fetch=fetch)
    _refuse_foreign(folder, f"convert {shlex.quote(str(name))} NEW_FOLDER", name)
    architecture = architecture_of(folder)
    if architecture is not None:
        if architecture.weights and not list(folder.glob("*.safetensors")):
            raise CheckpointError(
                f"{folder}: a folder of the type {architecture.model_type!r}, but it has no *.safetensors; save it "
                "with save_pretrained of a current transformers"
            )
        return folder
    missing = [file for file in REQUIRED if not (folder / file).exists()]
    if not any((folder / file).exists() for file in TOKENIZERS):
        missing.append(" or ".join(TOKENIZERS))
    if not list(folder.glob("*.safetensors")):
        missing.append("*.safetensors")
    if missing:
        raise CheckpointError(
            f"{folder}: not a complete checkpoint, it has no {', '.join(missing)}{_other_type(folder)}"
        )
    return folder


def _other_type(folder: Path) -> str:
    kind = model_type(folder)
    if kind in ("", OURS):
        return ""
    return f"; config.json says model_type {kind!r}, and known here are {', '.join(sorted(architectures()))}"


def _found_elsewhere(name: str) -> Path | None:
    """What the packages above find under a name: functions of the entry-point group `lasagna.checkpoints` (the registry
    of fine-tuned versions is one), which give a folder or None."""
    for point in entry_points(group="lasagna.checkpoints"):
        found = point.load()(name)
        if found is not None:
            return Path(found)
    return None


def pulled_folder() -> Path:
    """Where `lasagna models pull` puts checkpoints."""
    return cache_folder() / "models"


def foreign_layout(folder: Path) -> str:
    """What a folder holds that `lasagna models convert` could read, in words; empty for anything else."""
    try:
        config = parse_json((folder / "config.json").read_text(encoding="utf-8"))
        architecture = str((config.get("architectures") or [""])[0]).lower()
        known = config.get("model_type") in ("llava", "llava_llama") or "llava" in architecture
    except (OSError, ValueError, AttributeError, TypeError):
        return ""
    if "lasagna" in architecture or "lisa" in architecture:
        return "a checkpoint in the layout of the released code"
    return "a LLaVA checkpoint" if known else ""


def _refuse_foreign(folder: Path, command: str, name: str | Path) -> None:
    kind = "" if (folder / "prompt.json").exists() else foreign_layout(folder)
    if kind:
        raise CheckpointError(f"{name}: this is {kind}; type `lasagna models {command}` and use what that makes")


def checkpoint_version(name: str | Path) -> str:
    """Name and content of a checkpoint as one word, "nano-3f2a9c1b": the model version of its predictions.

    Depends on every file that changes an answer; the model card does not count.
    """
    folder = find_checkpoint(name)
    return version_name(folder_name(folder), checkpoint_digest(folder))


def folder_name(folder: Path) -> str:
    """What a checkpoint's folder is called; in the hub's cache: models--OWNER--NAME/snapshots/COMMIT."""
    folder = folder.resolve()
    return folder.parents[1].name.split("--")[-1] if folder.parent.name == "snapshots" else folder.name


def version_name(name: str, digest: str) -> str:
    """The one word for a checkpoint of this name and content (`checkpoint_digest`)."""
    return f"{name}-{digest[:8]}"


def checkpoint_digest(folder: Path) -> str:
    """Content of a checkpoint folder in 64 hex digits: of every file that changes an answer, and of its base."""
    known = _read_checksums(folder)
    digest = hashlib.sha256()
    if base := base_checkpoint(folder):
        digest.update(checkpoint_version(base).encode())
    for path in sorted(path for pattern in CONTENT for path in folder.glob(pattern)):
        if path.name in (CHECKSUMS, BASE):
            continue
        digest.update(str(path.relative_to(folder)).encode() + b"\0")
        digest.update(known.get(path.name) or file_digest(path))
    return digest.hexdigest()


def base_checkpoint(folder: Path) -> Path | None:
    """The folder of the checkpoint that a folder's weights and adapter are laid over, or None where it is complete.

    Nothing is downloaded: a file must not decide what comes from the network.

    Raises CheckpointError where that is not here, or one is laid over itself.
    """
    base = below = _base_of(folder)
    seen = [folder.resolve()]
    while below is not None:
        if below.resolve() in seen or len(seen) > _MOST_LAYERS:
            chain = " over ".join(map(str, [*seen, below.resolve()][:_MOST_LAYERS]))
            raise CheckpointError(f"{folder / BASE}: the checkpoint is laid over itself, or too deep: {chain}")
        seen.append(below.resolve())
        below = _base_of(below)
    return base


_MOST_LAYERS = 16


def _base_of(folder: Path) -> Path | None:
    path = folder / BASE
    if not path.exists():
        return None
    try:
        name = parse_json(path.read_text(encoding="utf-8"))["base"]
        if name.startswith(("./", "../")):
            name = str(folder.resolve() / name)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise CheckpointError(f'{path}: not readable as {{"base": name}} ({error!r})') from error
    try:
        return find_checkpoint(name, fetch=False)
    except CheckpointError as error:
        raise CheckpointError(f"{folder} is laid over another checkpoint, which is not here: {error}") from error


def load_labels(folder: Path) -> tuple[str, ...]:
    """The label set that a checkpoint was fine-tuned for; empty where it says none."""
    path = folder / LABELS
    if not path.exists():
        return ()
    try:
        labels = parse_json(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path}: not a list of names ({error})") from error
    if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
        raise CheckpointError(f"{path}: not a list of names")
    return tuple(labels)


def write_labels(folder: Path, labels: Sequence[str]) -> None:
    """Notes the label set that a checkpoint was fine-tuned for, as part of its content."""
    path = folder / LABELS
    path.unlink(missing_ok=True)  # a copy may be read-only
    path.write_text(json.dumps(list(labels), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def load_calibration(folder: Path) -> Calibration:
    path = folder / "calibration.json"
    if not path.exists():
        return Calibration()
    try:
        return Calibration(**parse_json(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{path}: not a calibration ({error})") from error


def write_calibration(folder: Path, calibration: Calibration) -> None:
    (folder / "calibration.json").write_text(json.dumps(asdict(calibration), indent=2) + "\n", encoding="utf-8")


def write_checksums(folder: Path) -> None:
    """Notes digest, size and time of every weight file in `checksums.json`."""
    noted = {}
    for path in sorted(folder.glob("*.safetensors")):
        stat = path.stat()
        noted[path.name] = {"sha256": file_digest(path).hex(), "size": stat.st_size, "mtime_ns": stat.st_mtime_ns}
    (folder / CHECKSUMS).write_text(json.dumps(noted, indent=2) + "\n", encoding="utf-8")


def _read_checksums(folder: Path) -> dict[str, bytes]:
    """Noted digests of the files that have not been touched since."""
    try:
        noted = parse_json((folder / CHECKSUMS).read_text(encoding="utf-8"))
        kept = {}
        for name, row in noted.items():
            stat = (folder / name).stat()
            if (stat.st_size, stat.st_mtime_ns) == (row["size"], row["mtime_ns"]):
                kept[name] = bytes.fromhex(row["sha256"])
        return kept
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def checkpoint_layers(folder: Path) -> list[Path]:
    """A checkpoint and what it is laid over, the lowest first."""
    layers = [folder]
    while base := base_checkpoint(layers[0]):
        layers.insert(0, base)
    return layers


def write_config(folder: Path, config: ModelConfig) -> None:
    (folder / "config.json").write_text(json.dumps(config.to_dict(), indent=2) + "\n", encoding="utf-8")
