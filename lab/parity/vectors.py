"""The released code's vectors: inputs, and what it made of them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor

from lasagna import Lasagna
from lasagna.checkpoint.convert import convert
from lasagna.network.model import LasagnaModel
from lasagna.prompt.sequences import Prompt


class Vectors:
    """A folder of vectors and the converted checkpoint."""

    def __init__(self, folder: Path, converted: Path) -> None:
        self.folder = folder
        if not converted.exists():
            convert(folder / "checkpoint", converted, clip=folder / "clip-tiny")
        self.converted = converted
        self.assistant = Lasagna.from_pretrained(converted, device="cpu", dtype="float32")
        self.text = self.json("text.json")
        self.inputs = np.load(folder / "inputs.npz")
        self.images = [name.removesuffix(".image_u8") for name in self.inputs if name.endswith(".image_u8")]

    @property
    def prompt(self) -> Prompt:
        return self.assistant.prompt

    @property
    def model(self) -> LasagnaModel:
        return self.assistant.model

    def json(self, name: str) -> dict[str, Any]:
        return dict(json.loads((self.folder / name).read_text(encoding="utf-8")))

    def tensors(self, name: str) -> dict[str, Tensor]:
        return dict(load_file(self.folder / name))

    def image(self, name: str) -> NDArray[np.uint8]:
        return self.inputs[f"{name}.image_u8"]
