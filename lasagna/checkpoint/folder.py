"""Checkpoint folders: find, read, write, name.

A checkpoint is a folder in the layout of the Hugging Face hub:

    config.json         the shape (`lasagna.network.config.ModelConfig`)
    *.safetensors       the weights, one file or shards; matrices in half precision, everything else float32
    tokenizer.json      the vocabulary, or
    tokenizer.model, added_tokens.json   that of a Llama (`lasagna.prompt.tokenizer`)
    prompt.json         the dialect (`lasagna.prompt.dialect.PromptFormat`)
    calibration.json    temperature and offsets of the probabilities; optional
    adapter/            a LoRA adapter that is not merged (`lasagna.network.adapter`); optional
    base.json           {"base": name}: the checkpoint that has the weights which this one does not have; optional.
                        A name that starts with ./ or ../ is a path from this folder
    labels.json         [names]: the label set that it was fine-tuned for; optional
    checksums.json      digests of large files, so that naming a version need not read them; optional
    README.md           model card; optional

Weights are safetensors only: no file of a checkpoint can run code. This module imports no torch at its top, so that the
web process can name a version.
"""

import contextlib
import hashlib
import json
import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lasagna.checkpoint.hub import download, download_weights
from lasagna.errors import CheckpointError
from lasagna.files import file_digest
from lasagna.network.config import ModelConfig
from lasagna.settings import cache_folder, registry_folder

if TYPE_CHECKING:
    import torch

    from lasagna.network.model import LasagnaModel
    from lasagna.prompt.dialect import PromptFormat
    from lasagna.prompt.tokenizer import LabelTokenizer

SHIPPED = Path(__file__).parents[1] / "checkpoints"
REQUIRED = ("config.json", "prompt.json")
CHECKSUMS, ADAPTER, BASE, LABELS = "checksums.json", "adapter", "base.json", "labels.json"
CONTENT = ("*.json", "*.safetensors", "*.model", f"{ADAPTER}/*")
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


def find_checkpoint(name: str | Path) -> Path:
    """The folder of a shipped name, of a path, of a fine-tuned version's id, of a checkpoint that was pulled, or of a
    hub id (downloaded, or from the local cache).

    Raises CheckpointError that says what was looked for.
    """
    folder = Path(name).expanduser()
    if not folder.is_dir() and str(name) in shipped_checkpoints():
        folder = SHIPPED / str(name)
    elif not folder.is_dir() and (version := _version_folder(str(name))) is not None:
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
        folder = download(str(name), ["*.json"])
        _refuse_foreign(folder, f"pull {name}", name)
        folder = download_weights(str(name))
    _refuse_foreign(folder, f"convert {shlex.quote(str(name))} NEW_FOLDER", name)
    missing = [file for file in REQUIRED if not (folder / file).exists()]
    if not any((folder / file).exists() for file in TOKENIZERS):
        missing.append(" or ".join(TOKENIZERS))
    if not list(folder.glob("*.safetensors")):
        missing.append("*.safetensors")
    if missing:
        raise CheckpointError(f"{folder}: not a complete checkpoint, it has no {', '.join(missing)}")
    return folder


def _version_folder(id: str) -> Path | None:
    """The checkpoint of a version in the registry, which lies in versions/ID/NAME, where ID is NAME-DIGEST."""
    name = id.rpartition("-")[0]
    folder = registry_folder() / "versions" / id / name
    return folder if name and "/" not in id and (folder / "config.json").exists() else None


def pulled_folder() -> Path:
    """Where `lasagna models pull` puts checkpoints."""
    return cache_folder() / "models"


def foreign_layout(folder: Path) -> str:
    """What a folder holds that `lasagna models convert` could read, in words; empty for anything else."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
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
    digest = checkpoint_digest(folder)
    folder = folder.resolve()
    # In the hub's cache: models--OWNER--NAME/snapshots/COMMIT.
    name = folder.parents[1].name.split("--")[-1] if folder.parent.name == "snapshots" else folder.name
    return version_name(name, digest)


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

    Raises CheckpointError where that is not here.
    """
    path = folder / BASE
    if not path.exists():
        return None
    try:
        name = json.loads(path.read_text(encoding="utf-8"))["base"]
        if name.startswith(("./", "../")):
            name = str(folder.resolve() / name)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise CheckpointError(f'{path}: not readable as {{"base": name}} ({error!r})') from error
    try:
        return find_checkpoint(name)
    except CheckpointError as error:
        raise CheckpointError(f"{folder} is laid over another checkpoint, which is not here: {error}") from error


def load_labels(folder: Path) -> tuple[str, ...]:
    """The label set that a checkpoint was fine-tuned for; empty where it says none."""
    path = folder / LABELS
    if not path.exists():
        return ()
    try:
        labels = json.loads(path.read_text(encoding="utf-8"))
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
        return Calibration(**json.loads(path.read_text(encoding="utf-8")))
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
        noted = json.loads((folder / CHECKSUMS).read_text(encoding="utf-8"))
        kept = {}
        for name, row in noted.items():
            stat = (folder / name).stat()
            if (stat.st_size, stat.st_mtime_ns) == (row["size"], row["mtime_ns"]):
                kept[name] = bytes.fromhex(row["sha256"])
        return kept
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def load_model(
    folder: Path, device: "torch.device | str" = "cpu", dtype: "torch.dtype | None" = None
) -> "LasagnaModel":
    """The network of a folder, in eval mode; an un-merged adapter is added to the weights.

    Args:
        device: Where weights go, one at a time: beside the network, no more than one tensor is in memory.
        dtype: Of parameters; None: float32. Buffers and batch statistics stay float32.

    Raises CheckpointError; see `load_weights`.
    """
    import torch

    from lasagna.network.model import LasagnaModel, cast_weights

    config = ModelConfig.load(folder / "config.json")
    if config.vision.kind == "clip-sam":
        model = LasagnaModel.without_weights(config, torch.device(device), dtype or torch.float32)
        load_weights(model, folder)
    else:
        model = LasagnaModel(config)
        load_weights(model, folder)
        model = cast_weights(model.to(device), dtype or torch.float32)
        model.encoder.to(memory_format=torch.channels_last)  # as its input is; else every call reorders the weights
    return model.eval()


def load_weights(model: "LasagnaModel", folder: Path) -> None:
    """Puts a folder's weights into a network, in its types and on its device, one tensor at a time.

    Raises CheckpointError that lists keys that are missing, unexpected or of another shape.
    """
    import torch

    from lasagna.network.adapter import load_adapter

    layers = checkpoint_layers(folder)
    adapters = [load_adapter(layer) for layer in layers]
    own = model.state_dict()
    with contextlib.ExitStack() as stack:
        files = [open_weights(layer, stack) for layer in layers]
        shapes = {key: tuple(file.get_slice(key).get_shape()) for contents in files for key, file in contents.items()}
        problems = weight_problems({key: tuple(value.shape) for key, value in own.items()}, shapes)
        if problems:
            shown = "\n  ".join(problems[:10])
            more = f"\n  and {len(problems) - 10} more" if len(problems) > 10 else ""
            raise CheckpointError(f"{folder}: the weights do not fit the model:\n  {shown}{more}")
        with torch.no_grad():
            for key, target in own.items():
                value = None
                for contents, adapter in zip(files, adapters, strict=True):
                    if key in contents:
                        value = contents[key].get_tensor(key)
                    if adapter and value is not None and key.startswith("language_model."):
                        value = adapter.merge(key.removeprefix("language_model."), value.to(target.dtype))
                target.copy_(value)


def checkpoint_layers(folder: Path) -> list[Path]:
    """A checkpoint and what it is laid over, the lowest first."""
    layers = [folder]
    while base := base_checkpoint(layers[0]):
        layers.insert(0, base)
    return layers


def open_weights(layer: Path, stack: contextlib.ExitStack) -> dict[str, Any]:
    """The open file of each weight of one folder."""
    from safetensors import SafetensorError, safe_open

    contents: dict[str, Any] = {}
    for path in sorted(layer.glob("*.safetensors")):
        try:
            opened = stack.enter_context(safe_open(path, "pt"))
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path}: not readable as safetensors ({error}); fetch it again") from error
        contents.update(dict.fromkeys(opened.keys(), opened))
    return contents


def weight_problems(expected: dict[str, tuple[int, ...]], found: dict[str, tuple[int, ...]]) -> list[str]:
    """What keeps weights from fitting a model, key by key."""
    problems = [f"missing {key}" for key in expected if key not in found]
    problems += [f"unexpected {key}" for key in found if key not in expected]
    problems += [
        f"{key} is {found[key]}, the model needs {expected[key]}"
        for key in expected
        if key in found and found[key] != expected[key]
    ]
    return problems


def write_config(folder: Path, config: ModelConfig) -> None:
    (folder / "config.json").write_text(json.dumps(config.to_dict(), indent=2) + "\n", encoding="utf-8")


def save_checkpoint(
    folder: Path,
    model: "LasagnaModel",
    tokenizer: "LabelTokenizer",
    prompt: "PromptFormat",
    calibration: Calibration,
    half: bool = True,
) -> None:
    """Writes a checkpoint folder.

    Args:
        half: Whether matrices are stored in float16. Vectors, statistics and positional frequencies stay float32:
            they are few, and the smallest variances are below float16's range.
    """
    import torch
    from huggingface_hub import save_torch_state_dict

    folder.mkdir(parents=True, exist_ok=True)
    state = {
        key: value.half() if half and value.ndim > 1 and "positional" not in key else value
        for key, value in model.state_dict().items()
    }
    save_torch_state_dict({key: value.detach().cpu().contiguous() for key, value in state.items()}, folder)
    write_config(folder, model.config)
    write_calibration(folder, calibration)
    tokenizer.save(folder)
    prompt.save(folder / "prompt.json")
    assert all(torch.isfinite(value).all() for value in state.values()), "a weight is not finite"
