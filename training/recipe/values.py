"""A recipe: everything that decides how a model is trained, as typed and checked values.

`training.recipe.files` reads one from YAML. What always holds: a `Recipe` that exists is valid in itself (types,
ranges, no switches that contradict each other), says nothing about the number of processes that will run it, and is the
only thing that the engine knows; what the files that it names hold is checked by `missing_files`.
"""

from collections.abc import Mapping
from dataclasses import asdict, field, fields
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator
from pydantic.dataclasses import dataclass

from lasagna.network.config import DecoderConfig, ModelConfig, VisionConfig
from lasagna.settings import data_folder
from training.recipe.fields import STRICT, Count, CountOrZero, Positive, PositiveOrZero, Share, Switch
from training.recipe.sequence import PRESETS, SequenceOptions

TASKS = ("semantic", "referring", "reasoning", "vqa")
PARTS = ("encoder", "projector", "language_model", "lm_head", "prompt_projection", "segmenter")


@dataclass(frozen=True, config=STRICT)
class NewModel:
    """The shape of a model that is made anew; see `lasagna.network.config` for the values.

    Attributes:
        vocabulary: Tokens of the tokenizer that is trained for it, on the names of the data sets.
        captions: Files of other text for that tokenizer, below the recipe's `data`: {image id: [sentences]} each. What
            is not there is left out.
    """

    text: dict[str, Any]
    vision: VisionConfig
    decoder: DecoderConfig
    projector: Literal["linear", "mlp2x_gelu"] = "linear"
    vocabulary: Annotated[int, Field(strict=True, ge=300)] = 2048
    captions: tuple[Path, ...] = ()

    def config(self, vocabulary: int) -> ModelConfig:
        return ModelConfig({**self.text, "vocab_size": vocabulary}, self.vision, self.decoder, self.projector)


@dataclass(frozen=True, config=STRICT)
class DataSet:
    """One data set of a task.

    Attributes:
        rate: How often it is drawn, relative to the other sets of the task.
        reader: Name of its format (`training.data.sources.SOURCES`, or "folder"); None: the data set's name where that
            is a format, else "folder".
        path: Its folder; None: the format's folder, or the data set's name, under the recipe's `data`.
        split: Which part of it.
    """

    rate: Positive
    reader: str | None = None
    path: Path | None = None
    split: str = "train"


def _rate_alone(value: Any) -> Any:
    return {"rate": value} if isinstance(value, int | float) and not isinstance(value, bool) else value


@dataclass(frozen=True, config=STRICT)
class RecipeTask:
    """One kind of question: how often it is asked, relative to the other kinds, and about which data sets.

    A data set is written as its rate alone, or as the values of `DataSet`.
    """

    sets: Annotated[dict[str, Annotated[DataSet, BeforeValidator(_rate_alone)]], Field(min_length=1)]
    rate: Positive = 1.0


@dataclass(frozen=True, config=STRICT)
class ConversationWeights:
    """Weights of the terms of conversations (the paper, equation 1); the defaults are the released code's."""

    text: PositiveOrZero = 1.0
    bce: PositiveOrZero = 2.0
    dice: PositiveOrZero = 0.5


@dataclass(frozen=True, config=STRICT)
class ViewWeights(ConversationWeights):
    """Weights of the terms of random views: those of conversations, and the small model's own."""

    copied: PositiveOrZero = 0.1
    coarse: PositiveOrZero = 0.5
    competition: PositiveOrZero = 0.5
    clicks: PositiveOrZero = 0.5


OF_VIEWS = tuple(item.name for item in fields(ViewWeights) if not hasattr(ConversationWeights, item.name))


@dataclass(frozen=True, config=STRICT)
class LossWeights(ConversationWeights):
    """Weights of the terms of the loss, as a recipe gives them.

    Attributes:
        text: Cross-entropy of the answer's tokens (of random views: the mean over decisions and over other tokens).
        bce, dice: Of the decoded masks.
        copied: Weight of a token that is not a decision, relative to a decision. This and what follows are of random
            views alone (`augment`), where they have the defaults of `ViewWeights`; a recipe without them is refused
            where it gives one.
        coarse: Of BCE + DICE of the coarse masks, relative to the decoded ones.
        competition: Pixel-wise softmax cross-entropy among the classes of a question, coarse and decoded.
        clicks: Of the masks of points and boxes.
    """

    copied: PositiveOrZero | None = None
    coarse: PositiveOrZero | None = None
    competition: PositiveOrZero | None = None
    clicks: PositiveOrZero | None = None


_Side = Annotated[int, Field(strict=True, ge=32, multiple_of=32)]


@dataclass(frozen=True, config=STRICT)
class Augmentation:
    """Random views of the photos of class lists (`training.examples.augment`).

    Attributes:
        view: (height, width) of a view in pixels, multiples of 32.
        drop_tokens: Share of the image's tokens that is hidden from the language model, a regulariser.
    """

    view: tuple[_Side, _Side]
    drop_tokens: Share = 0.0


@dataclass(frozen=True, config=STRICT)
class Lora:
    """Low-rank adapters of the language model (arXiv 2106.09685).

    Attributes:
        rank, alpha, dropout: As in peft's LoraConfig.
        modules: Names of the projections that get one.
    """

    rank: Count = 8
    alpha: Positive = 16.0
    dropout: Share = 0.05
    modules: Annotated[tuple[str, ...], Field(min_length=1)] = ("q_proj", "v_proj")


@dataclass(frozen=True, config=STRICT)
class Trained:
    """Which weights move; everything else is frozen.

    Attributes:
        parts: Names of parameters or modules that are trained whole ("segmenter.mask_decoder").
        frozen_stages: The backbone's first stages stay as they are ("pyramid" only), and so do, for speed, all its
            depthwise kernels and normalisations.
        token_rows: Rows of the embedding and of lm_head: those of the tokens that a decision or an added control token
            has ("new"), all ("all"), or whatever `parts` says ("parts").
        lora: Adapters of the language model, or None.
    """

    parts: Annotated[tuple[str, ...], Field(min_length=1)] = PARTS
    frozen_stages: CountOrZero = 0
    token_rows: Literal["new", "all", "parts"] = "parts"
    lora: Lora | None = None

    @model_validator(mode="after")
    def _consistent(self) -> "Trained":
        unknown = [part for part in self.parts if part.split(".")[0] not in PARTS]
        if unknown:
            raise ValueError(f"parts: the model has no {', '.join(unknown)}; its parts are {', '.join(PARTS)}")
        if self.lora and any(part.split(".")[0] == "language_model" for part in self.parts):
            raise ValueError("lora adapts a language model that is frozen: take language_model out of parts, or lora")
        if self.token_rows != "parts" and {"lm_head", "language_model"} & set(self.parts):
            raise ValueError(
                f"token_rows: {self.token_rows} contradicts lm_head or language_model in parts, which trains every row"
            )
        return self


@dataclass(frozen=True, config=STRICT)
class Optimiser:
    """AdamW with linear warm-up and linear decay to zero.

    Attributes:
        steps: Optimiser steps.
        batch_size: Examples of one step, whatever the number of processes.
        micro_batch: Examples of one forward. A step is batch_size / micro_batch of them, shared by the processes, and
            its loss is the mean of theirs.
        learning_rate: Peak.
        backbone_rate: Of the encoder's backbone, relative to learning_rate.
        betas, weight_decay: AdamW's; vectors and embeddings have no decay.
        warmup: Steps to the peak.
        clip: Largest norm of the gradient.
        ema: Decay of the averaged weights, which are then what is saved as the model; 0: none are kept.
        precision: Of the arithmetic, by autocast.
        frozen_precision: In which frozen weights are held.
        gradient_checkpointing: The language model's activations are computed again in the backward: less memory.
        save_every, log_every: In steps; a state that a killed run goes on from, and a log line.
        keep: How many of these states are kept.
    """

    steps: Count
    batch_size: Count
    micro_batch: Count
    learning_rate: Positive
    warmup: CountOrZero
    save_every: Count
    backbone_rate: PositiveOrZero = 1.0
    betas: tuple[Share, Share] = (0.9, 0.95)
    weight_decay: PositiveOrZero = 0.0
    clip: Positive = 1.0
    ema: Share = 0.0
    precision: Literal["float32", "bfloat16"] = "bfloat16"
    frozen_precision: Literal["float32", "bfloat16"] = "float32"
    gradient_checkpointing: Switch = False
    log_every: Count = 10
    keep: Count = 1

    @model_validator(mode="after")
    def _consistent(self) -> "Optimiser":
        if self.batch_size % self.micro_batch:
            raise ValueError(
                f"batch_size {self.batch_size} is not a multiple of micro_batch {self.micro_batch}: "
                "a step is a whole number of forwards"
            )
        if self.save_every % self.log_every:
            raise ValueError(
                f"save_every {self.save_every} is not a multiple of log_every {self.log_every}: a resumed run would "
                "log means over other steps"
            )
        if self.frozen_precision == "bfloat16" and self.precision == "float32":
            raise ValueError("frozen_precision: weights in bfloat16 need arithmetic in it; set precision to bfloat16")
        if self.warmup >= self.steps:
            raise ValueError(f"warmup {self.warmup} leaves nothing of {self.steps} steps")
        return self

    def rate(self, step: int) -> float:
        """Learning rate relative to its peak: linear warm-up, then linear decay to zero."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        return max(0.0, (self.steps - step) / max(1, self.steps - self.warmup))

    def accumulation(self, processes: int) -> int:
        """Forwards per step and process. Raises ValueError where a step cannot be shared evenly."""
        forwards = self.batch_size // self.micro_batch
        if forwards % processes:
            raise ValueError(
                f"a step of {self.batch_size} examples in micro-batches of {self.micro_batch} is {forwards} forwards, "
                f"which {processes} processes cannot share evenly; change optimiser.batch_size or optimiser.micro_batch"
            )
        return forwards // processes


@dataclass(frozen=True, config=STRICT)
class Features:
    """The outputs of a frozen encoder, kept on disk (`training.engine.features`).

    Attributes:
        folder: Where; several runs may share it.
        gigabytes: Most that it may take; the outputs that were not used for longest go first. None: no limit.
    """

    folder: Path
    gigabytes: Positive | None = None


def _expand_preset(value: Any) -> Any:
    if not isinstance(value, dict) or "preset" not in value:
        return value
    rest = {key: switch for key, switch in value.items() if key != "preset"}
    if value["preset"] not in PRESETS:
        raise ValueError(f"preset is one of {', '.join(PRESETS)}, not {value['preset']!r}")
    return {**PRESETS[value["preset"]], **rest}


@dataclass(frozen=True, config=STRICT)
class Recipe:
    """A recipe; `recipes/nano.yaml` explains one line by line.

    Attributes:
        output: Folder of the run: checkpoint, log, states to go on from.
        tasks: By name, one of `TASKS`.
        optimiser: Steps, batch, rates and precision (`Optimiser`).
        losses: What each part of the loss weighs (`LossWeights`).
        sequence: How a question's class list is drawn and answered (`SequenceOptions`).
        trained: Which parts are trained, and how (`Trained`).
        data: Folder under which the data sets lie; by default the setting `data` (LASAGNA_DATA).
        start: A checkpoint to start from, or None: `model` is made anew.
        dialect: How questions and answers are worded: as the checkpoint that it starts from has it, or as in the paper
            (which a model that is made anew always speaks).
        holdout: Share of the photos of class lists that is kept out of training, for calibration.
        augment: Random views of photos, which are then held in memory; None: photos as they are.
        features: The cache of the frozen encoder's outputs, or None.
        replay: Sets that a checkpoint was trained on, drawn beside the class lists so that it forgets less of them.
            Those that are not on this machine are left out, and the run says so; None: nothing is replayed.
        deepspeed: DeepSpeed's configuration (ZeRO 1 or 2), a path relative to the recipe's folder, or None.
        threads: Of each process on a CPU, or None: as torch chooses. Much of a small model's step is operations too
            small to share: several processes of one thread are faster than one of several.
        tensorboard: Whether scalars are written for TensorBoard, under `output`, where it is installed.
        smoke: What `--smoke` changes.
    """

    output: Path
    tasks: Annotated[dict[Literal["semantic", "referring", "reasoning", "vqa"], RecipeTask], Field(min_length=1)]
    optimiser: Optimiser
    data: Path = field(default_factory=data_folder)
    start: str | None = None
    dialect: Literal["checkpoint", "paper"] = "checkpoint"
    model: NewModel | None = None
    seed: int = 1
    holdout: Share = 0.0
    sequence: Annotated[SequenceOptions, BeforeValidator(_expand_preset)] = field(default_factory=SequenceOptions)
    losses: LossWeights = field(default_factory=LossWeights)
    trained: Trained = field(default_factory=Trained)
    augment: Augmentation | None = None
    features: Features | None = None
    replay: dict[str, Annotated[DataSet, BeforeValidator(_rate_alone)]] | None = None
    deepspeed: Path | None = None
    threads: Count | None = None
    tensorboard: Switch = True
    smoke: dict[str, Any] = field(default_factory=dict)

    @model_validator(mode="after")
    def _consistent(self) -> "Recipe":
        if (self.start is None) == (self.model is None):
            raise ValueError(
                "start: name a checkpoint to start from, or give model for one that is made anew"
                if self.start is None
                else "start and model contradict each other: a checkpoint brings its shape; take one of them out"
            )
        if self.features and self.augment:
            raise ValueError("features: cached features are of photos as they are, augment shows others; take one out")
        if self.features and any(part.split(".")[0] == "encoder" for part in self.trained.parts):
            raise ValueError("features: only a frozen encoder can be cached; take encoder out of trained.parts")
        if self.deepspeed and self.optimiser.ema:
            raise ValueError("optimiser.ema: averaged weights are not kept under deepspeed; set it to 0")
        if self.trained.token_rows == "new" and not self.trained.lora:
            raise ValueError("trained.token_rows: new rows alone are kept beside adapters; give lora, or all rows")
        if self.trained.lora and self.start is None:
            raise ValueError("trained.lora: adapters are trained over a checkpoint; name it in start")
        if self.trained.lora and self.optimiser.ema:
            raise ValueError("optimiser.ema: averaged weights are kept of whole models, not of adapters; set it to 0")
        unused = [name for name in OF_VIEWS if getattr(self.losses, name) is not None]
        if weights := self.view_weights:
            object.__setattr__(self, "losses", LossWeights(**asdict(weights)))  # so that every value is shown
        elif unused:
            raise ValueError(
                f"losses: {', '.join(unused)} would weigh nothing: only random views of class lists have these terms; "
                "take them out, or give augment and tasks.semantic"
            )
        return self

    @property
    def conversation_weights(self) -> ConversationWeights:
        """Of the terms of conversations."""
        return ConversationWeights(self.losses.text, self.losses.bce, self.losses.dice)

    @property
    def view_weights(self) -> ViewWeights | None:
        """Of the terms of random views; None where the recipe has none."""
        if self.augment is None or not self.semantic:
            return None
        return ViewWeights(**{name: value for name, value in asdict(self.losses).items() if value is not None})

    @property
    def rates(self) -> Mapping[str, float]:
        """Rate of each data set of class lists, by name."""
        return {name: data.rate for name, data in self.semantic.items()}

    @property
    def semantic(self) -> Mapping[str, DataSet]:
        """The data sets of class lists, by name."""
        return self.tasks["semantic"].sets if "semantic" in self.tasks else {}
