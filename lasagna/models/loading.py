"""`load_model`: a name, a folder or a hub id to a model behind the contract.

What always holds: what the folder's `config.json` says (`lasagna.checkpoint.architectures`) decides which code reads
it, everywhere; licence and what the model cannot do are said when it is loaded, and options that it does not have are
refused, not dropped.
"""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lasagna.checkpoint.architectures import architecture_of
from lasagna.checkpoint.folder import find_checkpoint
from lasagna.contract.model import ClassListModel
from lasagna.errors import ConfigError

logger = logging.getLogger(__name__)


def load_model(
    name: str | Path = "nano",
    *,
    device: str = "auto",
    dtype: str = "auto",
    quantise: str = "none",
    encoder: str = "torch",
    base: ClassListModel | None = None,
    head: Any = None,
    say: Callable[[str], None] | None = None,
) -> ClassListModel:
    """Loads what answers class lists.

    Args:
        name: A shipped checkpoint, a folder, or a hub id.
        device, dtype: As of `Lasagna.from_pretrained`.
        quantise, encoder, head: The same; of a checkpoint of LaSagnA alone.
        base: A loaded model whose weights may be shared, where both are LaSagnA's.
        say: Told what a user should know of a model of another maker; None: the log is.

    Raises:
        CheckpointError: The folder is unknown, incomplete, or cannot be read.
        ConfigError: The device or type cannot be had, or the model has no such option.
    """
    from lasagna.assistant.lasagna import Lasagna

    folder = find_checkpoint(name)
    architecture = architecture_of(folder)
    if architecture is None:
        shared = base if isinstance(base, Lasagna) else None
        return Lasagna.from_pretrained(
            folder, device=device, dtype=dtype, quantise=quantise, encoder=encoder, base=shared, head=head
        )
    given = {"quantise": quantise != "none", "encoder": encoder != "torch", "head": head is not None}
    refused = [option for option, is_given in given.items() if is_given]
    if refused:
        raise ConfigError(
            f"{name} is a model of the type {architecture.model_type!r}, and {' and '.join(refused)} can only be given "
            "for a checkpoint of LaSagnA; leave it away"
        )
    model: ClassListModel = architecture.load()(folder, device=device, dtype=dtype)
    for line in about(model):
        (say or logger.info)(line)
    return model


def about(model: ClassListModel) -> list[str]:
    """What a user should know of a model: its licence, what it cannot do, and where its scores are not calibrated."""
    licence = model.licence or "not said in its folder; look where the weights come from"
    lines = [f"{model.version}: licence {licence}"]
    if model.abilities.missing:
        lines.append(f"{model.version} cannot {', '.join(model.abilities.missing)}")
    if not is_calibrated(model) and not model.abilities.training:  # LaSagnA is trained to say what is absent
        lines.append(
            f"{model.version} is not calibrated: a class is present where the model's own score is above the threshold "
            "(0.5). Where too much or too little is drawn, `lasagna calibrate RECIPE --model FOLDER` fits its scores "
            "to photos"
        )
    return lines


def is_calibrated(model: ClassListModel) -> bool:
    """Whether its folder has the `calibration.json` that `lasagna calibrate` writes."""
    return model.folder is not None and (model.folder / "calibration.json").exists()
