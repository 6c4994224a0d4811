"""Which code answers with a folder: `model_type` of its `config.json` says it.

A folder with our own layout is LaSagnA's. `BUILT_IN` has what this project can put behind the same contract
(`lasagna.contract.model`); other packages add theirs through the entry-point group `lasagna.architectures`: the name is
the `model_type`, the value a loader, called as `load(folder, device=..., dtype=...)`, that gives a `ClassListModel`.
What always holds: no loader is imported before a model of its kind is loaded; here is no torch.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from lasagna.errors import CheckpointError
from lasagna.files import parse_json

GROUP = "lasagna.architectures"
OURS = "lasagna"


@dataclass(frozen=True)
class Architecture:
    """How folders of one `model_type` are read.

    Attributes:
        model_type: As `config.json` has it.
        loader: "module:function".
        closed: It answers the names of its `id2label` and no other.
        weights: The folder must have `*.safetensors`.
    """

    model_type: str
    loader: str
    closed: bool = False
    weights: bool = True

    def load(self) -> Callable[..., Any]:
        """The loader. Raises CheckpointError where it cannot be imported."""
        module, _, name = self.loader.partition(":")
        try:
            found: Callable[..., Any] = getattr(import_module(module), name)
        except (ImportError, AttributeError) as error:
            raise CheckpointError(
                f"folders of the type {self.model_type!r} are loaded by {self.loader}, which cannot be imported: "
                f"{error}"
            ) from error
        return found


_CLOSED = "lasagna.models.closed_list:load"
_SAM3 = "lasagna.models.sam3:load"
BUILT_IN = {
    one.model_type: one
    for one in (
        Architecture("clipseg", "lasagna.models.clipseg:load"),
        Architecture("eomt", _CLOSED, closed=True),
        Architecture("mask2former", _CLOSED, closed=True),
        Architecture("oneformer", _CLOSED, closed=True),
        Architecture("sam3", _SAM3),
        Architecture("sam3_lite_text", _SAM3),
        Architecture("sam3_video", _SAM3),
    )
}


def architectures() -> dict[str, Architecture]:
    """All that are known here, by `model_type`; what this project has comes before what others register."""
    others = {one.name: Architecture(one.name, one.value, weights=False) for one in entry_points(group=GROUP)}
    return {**others, **BUILT_IN}


def architecture_of(folder: Path) -> Architecture | None:
    """What reads a folder; None: our own layout, or nothing that is known."""
    kind = model_type(folder)
    if kind in ("", OURS) or (folder / "prompt.json").exists():
        return None
    return architectures().get(kind)


def model_type(folder: Path) -> str:
    """What `config.json` says; "" where it says nothing or is none."""
    try:
        values = parse_json((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return ""
    return str(values.get("model_type") or "") if isinstance(values, dict) else ""


def folder_licence(folder: Path) -> str:
    """What the model card of a folder (the head of README.md) says of the licence; "" where it says nothing."""
    try:
        lines = (folder / "README.md").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    if not lines or lines[0].strip() != "---":
        return ""
    said = {}
    for line in lines[1:200]:
        if line.strip() == "---":
            break
        key, colon, value = line.partition(":")
        if colon and key in ("license", "license_name", "license_link"):
            said[key] = value.strip().strip("\"'")
    name = said.get("license", "")
    if name in ("", "other"):
        name = said.get("license_name", name)
    return f"{name} ({said['license_link']})" if said.get("license_link") else name
