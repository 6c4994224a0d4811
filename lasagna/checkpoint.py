"""Checkpoint folders: find, read, write, name.

A checkpoint is a folder in the layout of the Hugging Face hub:

    config.json         the shape (`lasagna.config.ModelConfig`)
    *.safetensors       the weights, one file or shards; matrices in half precision, everything else float32
    tokenizer.json      the vocabulary, or
    tokenizer.model, added_tokens.json   that of a Llama (`lasagna.tokenizer`)
    prompt.json         the dialect (`lasagna.dialect.PromptFormat`)
    calibration.json    temperature and offsets of the probabilities; optional
    README.md           model card; optional

Weights are safetensors only: no file of a checkpoint can run code. This module imports no torch at its top, so that the
web process can name a version.
"""

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from lasagna.config import ModelConfig
from lasagna.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

    from lasagna.dialect import PromptFormat
    from lasagna.model import LasagnaModel
    from lasagna.tokenizer import LabelTokenizer

SHIPPED = Path(__file__).with_name("checkpoints")
REQUIRED = ("config.json", "prompt.json")
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
    """The folder of a shipped name, of a path, or of a hub id (downloaded, or from the local cache).

    Raises CheckpointError that says what was looked for.
    """
    folder = Path(name).expanduser()
    if not folder.is_dir() and str(name) in shipped_checkpoints():
        folder = SHIPPED / str(name)
    elif not folder.is_dir():
        if folder.exists():
            raise CheckpointError(f"{name}: is a file; a checkpoint is a folder with {', '.join(REQUIRED)}")
        if str(name).count("/") != 1 or str(name).startswith((".", "/", "~")):
            raise CheckpointError(
                f"unknown checkpoint {str(name)!r}: it is neither a shipped one ({', '.join(shipped_checkpoints())}), "
                "nor a folder, nor a hub id (owner/name)"
            )
        folder = _download(str(name))
    missing = [file for file in REQUIRED if not (folder / file).exists()]
    if not any((folder / file).exists() for file in TOKENIZERS):
        missing.append(" or ".join(TOKENIZERS))
    if not list(folder.glob("*.safetensors")):
        missing.append("*.safetensors")
    if missing:
        raise CheckpointError(f"{folder}: not a complete checkpoint, it has no {', '.join(missing)}")
    return folder


def _download(hub_id: str) -> Path:
    from huggingface_hub import snapshot_download

    patterns = ["*.json", "*.safetensors", "tokenizer.model", "README.md"]
    try:
        return Path(snapshot_download(hub_id, allow_patterns=patterns))
    except Exception as error:  # network, authentication, unknown id: a dozen unrelated classes
        raise CheckpointError(
            f"{hub_id}: no such folder here, and it cannot be fetched from the hub ({type(error).__name__}: {error}); "
            "check the spelling and the network, or give a folder"
        ) from error


def checkpoint_version(name: str | Path) -> str:
    """Name and content of a checkpoint as one word, "nano-3f2a9c1b": the model version of its predictions.

    Depends on every file that changes an answer; the model card does not count.
    """
    folder = find_checkpoint(name)
    digest = hashlib.sha256()
    for path in sorted(path for pattern in ("*.json", "*.safetensors", "*.model") for path in folder.glob(pattern)):
        digest.update(path.name.encode() + b"\0")
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return f"{folder.resolve().name}-{digest.hexdigest()[:8]}"


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


def read_weights(folder: Path) -> "dict[str, Tensor]":
    """Every tensor of a folder's safetensors files, by key."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    weights: dict[str, Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        try:
            weights.update(load_file(path))
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path}: not readable as safetensors ({error}); fetch it again") from error
    return weights


def load_model(folder: Path) -> "LasagnaModel":
    """The network of a folder, in float32, in eval mode. Raises CheckpointError; see `load_weights`."""
    from lasagna.model import LasagnaModel

    model = LasagnaModel(ModelConfig.load(folder / "config.json"))
    load_weights(model, folder)
    return model.eval()


def load_weights(model: "LasagnaModel", folder: Path) -> None:
    """Puts a folder's weights into a network, in its types.

    Raises CheckpointError that lists keys that are missing, unexpected or of another shape.
    """
    weights = read_weights(folder)
    own = model.state_dict()
    problems = [f"missing {key}" for key in own if key not in weights]
    problems += [f"unexpected {key}" for key in weights if key not in own]
    problems += [
        f"{key} is {tuple(weights[key].shape)}, the model has {tuple(own[key].shape)}"
        for key in own
        if key in weights and weights[key].shape != own[key].shape
    ]
    if problems:
        shown = "\n  ".join(problems[:10])
        more = f"\n  and {len(problems) - 10} more" if len(problems) > 10 else ""
        raise CheckpointError(f"{folder}: the weights do not fit the model:\n  {shown}{more}")
    model.load_state_dict({key: value.to(own[key].dtype) for key, value in weights.items()})


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
    (folder / "config.json").write_text(json.dumps(model.config.to_dict(), indent=2) + "\n")
    write_calibration(folder, calibration)
    tokenizer.save(folder)
    prompt.save(folder / "prompt.json")
    assert all(torch.isfinite(value).all() for value in state.values()), "a weight is not finite"
