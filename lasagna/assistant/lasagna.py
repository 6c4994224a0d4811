"""`Lasagna`: a checkpoint that answers class lists.

    model = Lasagna.from_pretrained("nano")
    answer = model.segment(image, ["sky", "road", "cat"])

What always holds: one answer per queried class, in query order; an image's answer does not depend on the other images
of its batch; masks have the size of the image that was given.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lasagna.assistant.answers import Decided, ImageFeatures, grey
from lasagna.assistant.corrected import answer_with_head
from lasagna.assistant.devices import choose_device, choose_dtype
from lasagna.assistant.drawing import draw_masks, masks_to_image
from lasagna.assistant.inputs import ImageLike, as_array, check_batch, check_prompt, check_question
from lasagna.assistant.learning import Learning
from lasagna.assistant.objects import tell_apart
from lasagna.assistant.side_by_side import side_by_side
from lasagna.checkpoint.architectures import architecture_of, folder_licence
from lasagna.checkpoint.folder import Calibration, checkpoint_version, find_checkpoint, load_calibration
from lasagna.checkpoint.light import can_share, load_over
from lasagna.checkpoint.vocabulary import Vocabulary, load_vocabulary, write_vocabulary
from lasagna.checkpoint.weights import load_model, save_checkpoint
from lasagna.contract.model import Abilities
from lasagna.errors import CheckpointError, ConfigError, QueryError
from lasagna.instant.classifier import Classifier, load_classifier
from lasagna.instant.features import FeatureMaps, feature_channels, feature_maps
from lasagna.instant.head import Head
from lasagna.instant.store import HeadStore
from lasagna.masks.segmentation import ClassAnswer, ClassQuery, Mask, Segmentation, class_queries
from lasagna.network.compat import ensure_torchvision
from lasagna.network.decoding import best_window, decode_class_lists
from lasagna.network.exported import use_openvino
from lasagna.network.generate import TextAnswer, answer_text, generate, question_turn
from lasagna.network.model import LasagnaModel
from lasagna.network.quantise import quantisation_of, quantise_layers
from lasagna.network.vision import EncodedImages, PreparedImage
from lasagna.prompt.dialect import PromptFormat
from lasagna.prompt.sequences import Prompt, Query
from lasagna.prompt.tokenizer import LabelTokenizer, load_tokenizer
from lasagna.settings import cache_folder

_Result = TypeVar("_Result")
ENCODERS = ("torch", "openvino")
GUESSED_FROM = -0.7
"""A class is guessed to be present where this margin of the language model would do (`decode_class_lists`)."""


@dataclass(frozen=True)
class _Chunk:
    """One question: the image's index, the names, their token ids, and the margins at which they are even."""

    image: int
    names: tuple[str, ...]
    query: Query
    offsets: Tensor


class Lasagna(Learning):
    """A loaded checkpoint. Use from several threads is safe, one call runs at a time.

    It can be pickled (weights included), copied and deep-copied, and sent to a process that was spawned. A fork waits
    until no call runs. What was forked cannot use CUDA, as torch then says: start such processes with "spawn".

    Attributes:
        base_version: Name and content of the checkpoint in one word.
        head: The instant head in use, or None (`lasagna.instant`).
        folder: Where it was loaded from; None: made in memory.
        vocabulary: The names that it was taught; None: not known, and everything may be asked.
        classifier: What the backbone's features say of them (`lasagna.instant.classifier`), or None.
    """

    abilities = Abilities(keeps_images=True, clicks=True, questions=True, instant=True, training=True, objects=True)

    def __init__(
        self,
        model: LasagnaModel,
        tokenizer: LabelTokenizer,
        format: PromptFormat,
        calibration: Calibration,
        version: str,
    ) -> None:
        super().__init__(model, version)
        self.tokenizer, self.format, self.calibration = tokenizer, format, calibration
        self.prompt = Prompt(format, tokenizer, model.encoder.num_tokens)
        self.abilities = replace(type(self).abilities, questions=any(task != "classes" for task in format.questions))
        self.folder: Path | None = None
        self.vocabulary: Vocabulary | None = None
        self.classifier: Classifier | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return _empty, (type(self),), self.__dict__

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path = "nano",
        *,
        device: str = "auto",
        dtype: str = "auto",
        quantise: str = "none",
        encoder: str = "torch",
        base: "Lasagna | None" = None,
        head: "Head | HeadStore | Path | str | None" = None,
    ) -> "Lasagna":
        """Loads a checkpoint.

        Args:
            name: A shipped checkpoint, a folder, or a hub id.
            device: "auto" (CUDA where there is one), "cpu", "cuda" or "cuda:N".
            dtype: "auto" (bfloat16 on CUDA, else float32), "float32", "bfloat16" or "float16".
            quantise: "none", or "int8" or "int4" for the language model's matrices (`lasagna.network.quantise`).
            encoder: What computes the image encoder: "torch", or "openvino" on a CPU (`lasagna.network.exported`).
            base: A loaded checkpoint. One that is laid over it shares its equal weights, device and type, and takes
                only the memory of what differs; not where matrices are quantised.
            head: An instant head, the file of one (`lasagna learn`), or the folder of its corrections, which can learn
                more; used from the start.

        Raises:
            CheckpointError: The checkpoint is unknown, incomplete, or does not fit its configuration; or the head is
                of another model.
            ConfigError: The device, dtype or encoder cannot be had, or the quantisation is unknown.
        """
        if encoder not in ENCODERS:
            raise ConfigError(f"encoder is {' or '.join(ENCODERS)}, not {encoder!r}")
        folder = find_checkpoint(name)
        if (other := architecture_of(folder)) is not None:
            raise CheckpointError(
                f"{name}: a model of the type {other.model_type!r}, not a checkpoint of LaSagnA: it answers class "
                "lists (`lasagna.load_model`; annotate, evaluate, worker), and neither answers questions nor learns"
            )
        lower = base.folder if base is not None and quantise == "none" else None
        if base is not None and lower is not None and can_share(folder, lower, base.model):
            model = load_over(folder, lower, base.model)
        else:
            place = choose_device(device)
            # Quantised on the way: a device that has no room for the whole model need never hold it.
            model = load_model(folder, place if quantise == "none" else "cpu", choose_dtype(dtype, place))
            model = quantise_layers(model, quantise, place)
        loaded = cls(
            model,
            load_tokenizer(folder),
            PromptFormat.load(folder / "prompt.json"),
            load_calibration(folder),
            checkpoint_version(folder),
        )
        loaded.folder, loaded.licence = folder, folder_licence(folder)
        if encoder == "openvino":
            use_openvino(model.encoder, cache_folder() / "encoders")
        loaded.vocabulary = load_vocabulary(folder)
        classifier = load_classifier(folder, feature_channels(model.encoder))
        loaded.classifier = None if classifier is None else classifier.to(model.device)
        if head is not None:
            if isinstance(head, Path | str):
                head = HeadStore(head) if Path(head).is_dir() else Head.load(head)
            loaded.use_head(head)
        return loaded

    @property
    def precision(self) -> str:
        """What the weights are computed in: their number format and how the language model's matrices are quantised,
        such as "float32, none" or "bfloat16, int4". Two models of one version differ in their answers if in this."""
        return f"{str(self.model.dtype).removeprefix('torch.')}, {quantisation_of(self.model)}"

    @property
    def device(self) -> str:
        """Where it is computed."""
        return str(self.model.device)

    @classmethod
    def random(cls, seed: int = 0, dialect: str = "paper") -> "Lasagna":
        """A tiny model with random weights, for tests: the same code at the smallest size.

        Its offset lies at the median margin of a few names, so that about half of the classes are present.

        Args:
            seed: Of the weights.
            dialect: "paper" or "released"; see `lasagna.prompt.dialect`.
        """
        from lasagna.assistant.random_model import random_parts

        network, tokenizer, format = random_parts(seed, dialect)
        model = cls(network, tokenizer, format, Calibration(), f"random-{seed}")
        grey = np.full((64, 64, 3), 127, np.uint8)
        names = [model.prompt.encode_name(f"{a}{b}") for a in "abcdefgh" for b in "aeiou"]
        query = model.prompt.query(names)
        tokens = model.encode_image(grey).encoded.tokens
        found = decode_class_lists(network, model.prompt, tokens, [query], [0], [torch.zeros(len(names))])
        model.calibration = Calibration(offset=float(found.lists[0].margins.median()))
        return model

    def save_pretrained(self, folder: Path | str, *, half: bool = False) -> None:
        """Writes a checkpoint folder; `half` stores matrices in float16."""
        save_checkpoint(Path(folder), self.model, self.tokenizer, self.format, self.calibration, half)
        write_vocabulary(Path(folder), self.vocabulary)
        if self.classifier is not None:
            self.classifier.save(Path(folder))

    def read_text(self, text: str) -> str:
        """What the model reads for a class name, an alias or a hint: the name that it was taught for it
        (`Vocabulary.reading`), else the text itself."""
        taught = None if self.vocabulary is None else self.vocabulary.reading(text)
        return self.format.read_text(text if taught is None else taught)

    def knows(self, query: ClassQuery) -> bool:
        """Whether the checkpoint can be asked for a class: it was taught it, or does not say what it was taught."""
        return self.vocabulary is None or self.vocabulary.reading(query.text) is not None

    def _asked_text(self, query: ClassQuery, head: Head | None, guess_unknown: bool) -> str | None:
        """What the model reads for a class; None: it cannot be asked, and no head that serves has learnt it."""
        learnt = head is not None and head.serves and query.name in head.names
        return self.read_text(query.text) if guess_unknown or learnt or self.knows(query) else None

    def segment(
        self,
        image: ImageLike | ImageFeatures,
        classes: Sequence[str | ClassQuery],
        *,
        threshold: float | None = None,
        exclusive: bool = False,
        chunk_size: int | None = None,
        head: Head | None = None,
        guess_unknown: bool = False,
    ) -> Segmentation:
        """Answers one class list about one image; see `segment_batch`."""
        return self.segment_batch(
            [image],
            [class_queries(classes)],
            threshold=threshold,
            exclusive=exclusive,
            chunk_size=chunk_size,
            head=head,
            guess_unknown=guess_unknown,
        )[0]

    def segment_batch(
        self,
        images: Sequence[ImageLike | ImageFeatures],
        class_lists: Sequence[Sequence[str | ClassQuery]],
        *,
        threshold: float | None = None,
        exclusive: bool = False,
        chunk_size: int | None = None,
        head: Head | None = None,
        guess_unknown: bool = False,
    ) -> list[Segmentation]:
        """Answers a class list about each image.

        A class that the checkpoint was never taught (`vocabulary`) is not asked, and its answer is unknown; the others
        get the answers of a list without it. A head that serves answers what it has learnt. Names that the model reads
        alike (duplicates, or names that differ only in case where the checkpoint reads lower case) are asked once and
        each get the answer.

        Args:
            images: Files (paths, or their content as bytes), PIL images or uint8 (H, W, 3) arrays, of any sizes, or
                what `encode_image` gave of one. Files and PIL images are read as `lasagna.load_image` does: EXIF
                orientation is applied, more than 8 bits are scaled. Arrays are taken as they are.
            class_lists: One list per image. Objects of a class are told apart where its `ClassQuery` asks for it.
            threshold: Probability from which on a class is present, in (0, 1); None is 0.5. One of a `ClassQuery` comes
                first.
            exclusive: Whether a pixel belongs to at most one class, the one with the largest logit. Otherwise each
                class is answered for itself, and masks may overlap.
            chunk_size: Most classes in one question; None asks the whole list at once where it fits the context.
            head: An instant head for this call; None: that in use, if any.
            guess_unknown: Whether to ask also for what the checkpoint was never taught.

        Returns:
            One `Segmentation` per image, of the upright image's size.

        Raises:
            QueryError: A list is empty or no list, a label is blank, a threshold is out of range.
            ImageError: An image cannot be read, or is none.
        """
        queries = check_batch(images, class_lists, threshold, chunk_size, exclusive)
        if not images:
            return []
        if head is not None:
            head.check(self.encoder_fingerprint, self.base_version)
        head = self.head if head is None else head

        def answer(part: slice) -> list[Segmentation]:
            features = self._features(images[part])
            return self._answer(features, queries[part], head, threshold, exclusive, chunk_size, guess_unknown)

        with self._lock:
            return self._in_parts(answer, len(images))

    def _in_parts(self, run: Callable[[slice], list[_Result]], count: int) -> list[_Result]:
        """What `run` gives for all images of a batch at once; on a CPU for each by itself, several at a time."""
        if self.model.device.type != "cpu":
            return run(slice(0, count))
        return [one for (one,) in side_by_side(lambda i: run(slice(i, i + 1)), count)]

    @torch.inference_mode()
    def _answer(
        self,
        features: Sequence[ImageFeatures],
        queries: Sequence[list[ClassQuery]],
        head: Head | None,
        threshold: float | None,
        exclusive: bool,
        chunk_size: int | None,
        guess_unknown: bool,
    ) -> list[Segmentation]:
        """`segment_batch` of encoded images, their questions to the language model in one batch."""
        texts = [[self._asked_text(query, head, guess_unknown) for query in each] for each in queries]
        own = [_own_thresholds(*each) for each in zip(texts, queries, strict=True)]
        asked = [[text for text in each if text is not None] for each in texts]
        found = self._decide(features, asked, threshold, chunk_size, own)
        if head is not None:
            parts = zip(features, queries, texts, found, strict=True)
            whole = [answer_with_head(self, head, *each, threshold, exclusive) for each in parts]
        else:
            masks = [
                self.draw(photo, [answer for answer in answers.values() if answer.present], exclusive)
                for photo, answers in zip(features, found, strict=True)
            ]
            sizes = [photo.prepared.original_size for photo in features]
            whole = [_assemble(*each) for each in zip(sizes, texts, queries, found, masks, strict=True)]
        return [tell_apart(*each) for each in zip(whole, queries, strict=True)]

    def encode_image(self, image: ImageLike) -> ImageFeatures:
        """Encodes an image once for several calls: `segment_prompt`, `segment`, `learn`."""
        return self.encode_images([image])[0]

    def encode_images(self, images: Sequence[ImageLike]) -> list[ImageFeatures]:
        """Encodes images, those of one shape together. Raises ImageError where an array is not an image."""
        with self._lock:
            return self._in_parts(lambda part: self._features(images[part]), len(images))

    def _one(self, image: ImageLike | ImageFeatures) -> ImageFeatures:
        return image if isinstance(image, ImageFeatures) else self.encode_image(image)

    def _features(self, images: Sequence[ImageLike | ImageFeatures]) -> list[ImageFeatures]:
        """What was encoded as it is, the others encoded now."""
        arrays = {i: as_array(image) for i, image in enumerate(images) if not isinstance(image, ImageFeatures)}
        prepared = {i: self.model.encoder.prepare(array) for i, array in arrays.items()}
        encoded = dict(zip(prepared, self._encode(list(prepared.values())), strict=True))
        return [
            image if isinstance(image, ImageFeatures) else ImageFeatures(encoded[i], prepared[i], grey(arrays[i]))
            for i, image in enumerate(images)
        ]

    def segment_prompt(
        self,
        image: ImageLike | ImageFeatures,
        *,
        points: Sequence[tuple[float, float, bool]] = (),
        box: tuple[float, float, float, float] | None = None,
    ) -> tuple[Mask, float]:
        """The mask of points and a box, without a class: SAM's own prompts.

        Args:
            image: As for `segment_batch`; encode it once (`encode_image`) where several prompts follow.
            points: (x, y, is foreground) in pixels of the image.
            box: (x0, y0, x1, y1) in pixels of the image, or None.

        Returns:
            bool (H, W), and how good the model thinks it is: predicted IoU, clipped to [0, 1].

        Raises:
            QueryError: There is neither point nor box, or one of them is not in the image.
            ImageError: It is no image.
        """
        features = self._one(image)
        prepared = features.prepared
        height, width = prepared.original_size
        check_prompt(points, box, (height, width))
        # Pixels of the image to [0, 1] of the padded input.
        sx = prepared.content_size[1] / prepared.input_size[1] / width
        sy = prepared.content_size[0] / prepared.input_size[0] / height
        coordinates = [(x * sx, y * sy) for x, y, _ in points]
        labels = [int(foreground) for *_, foreground in points]
        if box is not None:
            x0, x1 = sorted((box[0], box[2]))
            y0, y1 = sorted((box[1], box[3]))
            coordinates += [(x0 * sx, y0 * sy), (x1 * sx, y1 * sy)]
            labels += [2, 3]
        else:  # segment-anything closes points without a box with an empty one
            coordinates.append((0.0, 0.0))
            labels.append(-1)
        device = self.model.device
        with self._lock, torch.inference_mode():
            logits, iou = self.model.segmenter.from_clicks(
                features.encoded,
                torch.tensor([coordinates], device=device),
                torch.tensor([labels], device=device),
                torch.zeros(1, dtype=torch.long, device=device),
            )
            mask = masks_to_image(logits, prepared)[0] > 0
        return mask.cpu().numpy(), float(iou[0].float().clamp(0, 1))

    def ask(
        self,
        image: ImageLike | ImageFeatures,
        question: str,
        *,
        task: str = "vqa",
        max_new_tokens: int = 256,
        control_tokens: bool = False,
    ) -> TextAnswer:
        """Asks a question in words about one image and lets the model answer freely, greedily.

        Args:
            image: As for `segment_batch`.
            question: Plain text.
            task: "vqa": the question as it is. "referring": what to segment ("the dog on the left"). "reasoning": a
                question whose answer is to be segmented.
            max_new_tokens: After which the answer is cut; also cut at the checkpoint's context.
            control_tokens: Whether control tokens in the question count, as in the released code. For text that is
                yours, never for a user's.

        Returns:
            Text, and one mask per "present" token of it.

        Raises:
            QueryError: The question is blank or too long, or the checkpoint was not trained for the task.
        """
        check_question(question)
        return self.ask_features(
            self._one(image),
            question,
            task=task,
            max_new_tokens=max_new_tokens,
            control_tokens=control_tokens,
        )

    def ask_features(
        self,
        features: ImageFeatures,
        question: str,
        *,
        task: str = "vqa",
        max_new_tokens: int = 256,
        control_tokens: bool = False,
    ) -> TextAnswer:
        """`ask` about an image that `encode_image` has encoded."""
        prompt = self.prompt
        ids = prompt.question(question_turn(prompt, question, task, control_tokens))
        room = prompt.format.max_length - len(prompt.before_image) - prompt.image_tokens - len(ids)
        if room < 1 or max_new_tokens < 1:
            raise QueryError(
                f"no room for an answer: the question takes {prompt.format.max_length - room} of the "
                f"{prompt.format.max_length} tokens, and max_new_tokens is {max_new_tokens}"
            )
        with self._lock:
            found = generate(self.model, prompt, features.encoded.tokens, ids, min(max_new_tokens, room))
            hidden = [found.hidden[i] for i, token in enumerate(found.ids) if token == prompt.seg]
            masks = self.decode_masks(features, hidden)
        return TextAnswer(answer_text(prompt, found.ids), tuple(masks), found.ids, found.complete, found.forwards)

    def draw(
        self, features: ImageFeatures, decided: Sequence[Decided], exclusive: bool = False
    ) -> tuple[list[Mask], list[float]]:
        """Masks of names of one image, and their stability; see `segment_batch`. For callers that hold the lock."""
        if not decided:
            return [], []
        return draw_masks(self.mask_logits(features, decided), features.prepared, exclusive)

    def decode_masks(self, features: ImageFeatures, hidden: list[Tensor], exclusive: bool = False) -> list[Mask]:
        """Masks of one image from the states that predict "present" alone, (width,) each: those of an answer in words;
        see `segment_batch`."""
        if not hidden:
            return []
        with torch.inference_mode():
            return draw_masks(self._language_masks(features.encoded, hidden), features.prepared, exclusive)[0]

    @torch.inference_mode()
    def _encode(self, prepared: Sequence[PreparedImage]) -> list[EncodedImages]:
        """Encodes images, those of one shape together; results in the given order, each a batch of one."""
        groups: dict[tuple[int, int], list[int]] = {}
        for i, image in enumerate(prepared):
            groups.setdefault(image.input_size, []).append(i)
        results: dict[int, EncodedImages] = {}
        for members in groups.values():
            names = prepared[members[0]].pixels
            stacked = {
                name: torch.stack([prepared[i].pixels[name] for i in members]).to(self.model.device, self.model.dtype)
                for name in names
            }
            encoded = self.model.encoder(stacked)
            results.update({i: encoded[position] for position, i in enumerate(members)})
        return [results[i] for i in range(len(prepared))]

    def _decide(
        self,
        features: Sequence[ImageFeatures],
        texts: list[list[str]],
        threshold: float | None,
        chunk_size: int | None,
        own: Sequence[Mapping[str, float]] = (),
    ) -> list[dict[str, Decided]]:
        """Present or absent for every image, by what the model reads; equal texts are asked once.

        Args:
            own: Thresholds of some texts, for each image; they come before `threshold`.
        """
        calibration = self.calibration

        def raised(image: int, name: str) -> float:
            level = own[image].get(name, threshold) if own else threshold
            return 0.0 if level is None else calibration.temperature * float(np.log(level / (1 - level)))

        chunks: list[_Chunk] = []
        for i, asked in enumerate(texts):
            names = list(dict.fromkeys(asked))
            if not names:
                continue
            evident = self._evident(features[i], names)
            ids = [self.prompt.encode_name(name) for name in names]
            for members in self.prompt.plan_chunks(ids, chunk_size):
                chunk_names = tuple(names[m] for m in members)
                offsets = [calibration.offset + calibration.class_offsets.get(name, 0.0) for name in chunk_names]
                query = self.prompt.query([ids[m] for m in members])
                chunks.append(_Chunk(i, chunk_names, query, torch.tensor(offsets) - evident[members]))
        if not chunks:  # nothing is asked of any image
            return [{} for _ in texts]
        biases = [chunk.offsets + torch.tensor([raised(chunk.image, name) for name in chunk.names]) for chunk in chunks]
        decoded = decode_class_lists(
            self.model,
            self.prompt,
            torch.cat([each.encoded.tokens for each in features]),
            [chunk.query for chunk in chunks],
            [chunk.image for chunk in chunks],
            biases,
            best_window(self.model.device),
            # What the classifier alone finds likely: the nearer to the decisions, the fewer passes.
            [bias <= GUESSED_FROM for bias in biases],
        )
        found: list[dict[str, Decided]] = [{} for _ in texts]
        for chunk, answers in zip(chunks, decoded.lists, strict=True):
            probabilities = ((answers.margins.cpu() - chunk.offsets) / calibration.temperature).sigmoid().tolist()
            for name, *answer in zip(chunk.names, probabilities, answers.present.tolist(), answers.hidden, strict=True):
                found[chunk.image][name] = Decided(name, *answer)
        return found

    def _evident(self, features: ImageFeatures, names: list[str]) -> Tensor:
        """What the classifier adds to the margins of one image: float32 (C,)."""
        if self.classifier is None:
            return torch.zeros(len(names))
        return self.classifier.margins(self.feature_maps(features), names)

    def decide(self, features: ImageFeatures, texts: list[str]) -> dict[str, Decided]:
        """The model's decisions about one image, by what it reads. For callers that hold the lock."""
        return self._decide([features], [texts], None, None)[0]

    def mask_logits(self, features: ImageFeatures, decided: Sequence[Decided]) -> Tensor:
        """(M, 4h, 4w) mask logits of M >= 1 names of one image. For callers that hold the lock."""
        logits = self._language_masks(features.encoded, [each.hidden for each in decided])
        if self.classifier is None:
            return logits
        evidence = self.classifier.evidence(self.feature_maps(features), [each.text for each in decided])
        if evidence.shape[-2:] != logits.shape[-2:]:
            evidence = F.interpolate(evidence[None], size=logits.shape[-2:], mode="bilinear", align_corners=False)[0]
        return logits.float() + self.classifier.mask_share * evidence

    def feature_maps(self, features: ImageFeatures) -> FeatureMaps:
        """What the instant head and the classifier read of an image."""
        return feature_maps(self.model.encoder, features.prepared, features.encoded)

    def _language_masks(self, encoded: EncodedImages, hidden: list[Tensor]) -> Tensor:
        """(M, 4h, 4w) mask logits from M >= 1 states (width,)."""
        prompts = self.model.prompt_projection(torch.stack(hidden).to(self.model.dtype))
        owners = torch.zeros(len(hidden), dtype=torch.long, device=self.model.device)
        logits: Tensor = self.model.segmenter(encoded, prompts, owners)[0]
        return logits


def _empty(kind: type[Lasagna]) -> Lasagna:
    """What a pickled model is read into: its parts are of libraries that need torchvision."""
    ensure_torchvision()
    return kind.__new__(kind)


def _own_thresholds(texts: list[str | None], queries: list[ClassQuery]) -> dict[str, float]:
    """The thresholds of single classes, by what the model reads; the lowest of names that it reads alike."""
    found: dict[str, float] = {}
    for text, query in zip(texts, queries, strict=True):
        if text is not None and query.threshold is not None:
            found[text] = min(query.threshold, found.get(text, 1.0))
    return found


def _assemble(
    size: tuple[int, int],
    texts: list[str | None],
    queries: list[ClassQuery],
    found: dict[str, Decided],
    masks: tuple[list[Mask], list[float]],
) -> Segmentation:
    """Answers of the distinct names, handed back to every class that was asked.

    Args:
        texts: What the model read for each query; None: it was not asked.
        found: By what it read, in the order in which `masks` were decoded.
        masks: And their stability.
    """
    present = [text for text, answer in found.items() if answer.present]
    decoded = dict(zip(present, zip(*masks, strict=True), strict=True))
    return Segmentation(
        size,
        tuple(
            ClassAnswer.unknown(query.name)
            if text is None
            else ClassAnswer(query.name, found[text].probability, *decoded.get(text, (None, None)))
            for query, text in zip(queries, texts, strict=True)
        ),
    )
