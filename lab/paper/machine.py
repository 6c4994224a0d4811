"""The machine that a report's figures are from."""

from importlib.metadata import version
from typing import Any

from lasagna.environment import describe_environment


def describe_machine(device: str, *packages: str) -> dict[str, Any]:
    """Processor, threads and versions.

    Args:
        device: "auto": CUDA where there is one.
        packages: Others whose versions count.
    """
    if device == "auto":
        import torch

        device = "cuda" if torch.cuda.is_available() else "cpu"
    return {**describe_environment(device), **{name: version(name) for name in packages}}
