"""The machine that a figure was measured on: a time means nothing without it."""

import os
import platform
from importlib.metadata import version
from pathlib import Path


def processor_name() -> str:
    """The processor's name, as the system reports it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def usable_cores() -> int:
    """Cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def describe_environment(device: str = "cpu") -> dict[str, str | int | float]:
    """What a report of times states: processor, cores, torch and its threads, accelerator, how busy the machine is.

    `load` is the system's mean number of running processes over the last minute; well over 0 before a measurement
    means that something else takes processor time.
    """
    import torch

    found: dict[str, str | int | float] = {
        "processor": processor_name(),
        "cores": usable_cores(),
        "device": device,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": version("transformers"),
        "threads": torch.get_num_threads(),
    }
    if hasattr(os, "getloadavg"):
        found["load"] = round(os.getloadavg()[0], 2)
    if device.startswith("cuda"):
        found["accelerator"] = torch.cuda.get_device_name(device)
    return found
