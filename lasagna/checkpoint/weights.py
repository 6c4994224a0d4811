"""The weights of checkpoint folders: read into a network, compared, written.

What always holds: a light checkpoint is read as one thing with what it is laid over (`LayeredWeights`); no more than
one tensor is in memory beside a network.
"""

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import save_torch_state_dict
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lasagna.checkpoint.folder import Calibration, checkpoint_layers, write_calibration, write_config
from lasagna.errors import CheckpointError
from lasagna.network.adapter import load_adapter
from lasagna.network.config import ModelConfig
from lasagna.network.model import LasagnaModel, cast_weights
from lasagna.prompt.dialect import PromptFormat
from lasagna.prompt.tokenizer import LabelTokenizer

_LANGUAGE = "language_model."
"""Before the keys of weights that an adapter may change."""


class LayeredWeights:
    """The weights of checkpoint folders that lie over each other, one at a time and without a network.

    Args:
        layers: The folders, the lowest first (`checkpoint_layers`), or those above a base that is in memory.
        stack: Closes the files.

    Raises CheckpointError where one cannot be read.
    """

    def __init__(self, layers: Sequence[Path], stack: contextlib.ExitStack) -> None:
        self._layers = [(layer.resolve(), _open(layer, stack), load_adapter(layer)) for layer in layers]

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """By key, the shape of every weight that a folder holds as a whole."""
        return {
            key: tuple(file.get_slice(key).get_shape())
            for _, contents, _ in self._layers
            for key, file in contents.items()
        }

    def adapted(self) -> list[str]:
        """The keys of the weights that an adapter changes."""
        return [f"{_LANGUAGE}{key}" for _, _, adapter in self._layers if adapter for key in adapter.factors]

    def origin(self, key: str) -> tuple[Path, ...]:
        """The folders that decide a weight: where these are the same for two checkpoints, the weight is."""
        found: tuple[Path, ...] = ()
        for layer, contents, adapter in self._layers:
            if key in contents:
                found = (layer,)
            elif adapter and key.removeprefix(_LANGUAGE) in adapter.factors:
                found = (*found, layer)
        return found

    def get(self, key: str, dtype: torch.dtype = torch.float32, below: Tensor | None = None) -> Tensor:
        """A weight, with every adapter added.

        Args:
            dtype: Of the result; an adapter is added to the weight in this type.
            below: What the lowest folder lies over, for a weight that no folder holds as a whole.
        """
        value = below
        for _, contents, adapter in self._layers:
            if key in contents:
                value = contents[key].get_tensor(key)
            if adapter and value is not None and key.startswith(_LANGUAGE):
                value = adapter.merge(key.removeprefix(_LANGUAGE), value.to(dtype))
        if value is None:
            raise CheckpointError(f"{', '.join(str(layer) for layer, *_ in self._layers)}: no weight {key}")
        return value.to(dtype)


def _open(layer: Path, stack: contextlib.ExitStack) -> dict[str, Any]:
    """The open file of each weight of one folder."""
    contents: dict[str, Any] = {}
    for path in sorted(layer.glob("*.safetensors")):
        try:
            opened = stack.enter_context(safe_open(path, "pt"))
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path}: not readable as safetensors ({error}); fetch it again") from error
        contents.update(dict.fromkeys(opened.keys(), opened))
    return contents


def load_model(folder: Path, device: torch.device | str = "cpu", dtype: torch.dtype | None = None) -> LasagnaModel:
    """The network of a folder, in eval mode; an un-merged adapter is added to the weights.

    Args:
        device: Where weights go, one at a time: beside the network, no more than one tensor is in memory.
        dtype: Of parameters; None: float32. Buffers and batch statistics stay float32.

    Raises CheckpointError; see `load_weights`.
    """
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


def load_weights(model: LasagnaModel, folder: Path) -> None:
    """Puts a folder's weights into a network, in its types and on its device, one tensor at a time.

    Raises CheckpointError that lists keys that are missing, unexpected or of another shape.
    """
    own = model.state_dict()
    with contextlib.ExitStack() as stack, torch.no_grad():
        weights = LayeredWeights(checkpoint_layers(folder), stack)
        refuse_misfits(folder, {key: tuple(value.shape) for key, value in own.items()}, weights.shapes())
        for key, target in own.items():
            target.copy_(weights.get(key, target.dtype))


def refuse_misfits(folder: Path, expected: dict[str, tuple[int, ...]], found: dict[str, tuple[int, ...]]) -> None:
    """Raises CheckpointError where weights do not fit a model: the first ten reasons, and how many more there are."""
    if problems := weight_problems(expected, found):
        shown = "\n  ".join(problems[:10])
        more = f"\n  and {len(problems) - 10} more" if len(problems) > 10 else ""
        raise CheckpointError(f"{folder}: the weights do not fit the model:\n  {shown}{more}")


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


def save_checkpoint(
    folder: Path,
    model: LasagnaModel,
    tokenizer: LabelTokenizer,
    prompt: PromptFormat,
    calibration: Calibration,
    half: bool = True,
) -> None:
    """Writes a checkpoint folder.

    Args:
        half: Whether matrices are stored in float16. Vectors, statistics and positional frequencies stay float32:
            they are few, and the smallest variances are below float16's range.
    """
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
