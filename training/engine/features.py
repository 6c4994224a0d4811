"""Outputs of a frozen image encoder, kept on disk.

    features = FrozenEncoder(model, FeatureStore(Path("features"), limit=200 * 2**30))
    features.fill(photos, Console(stderr=True))          # optional: once, before training
    encoded = features.encode([features.read(photo)])    # instead of model.encoder(pixels)

At 7B, CLIP and SAM's image encoder see every photo of every epoch the same way. `read` needs no model and may run on a
thread or in a process that makes batches; `encode` belongs to the step. Both give what `model.encoder` gives, to the
rounding of half precision.

What always holds: features are found by the photo's bytes, the encoder's weights and what its preprocessing does, so
that they are never those of another photo, another checkpoint or other code. Nothing is kept of an encoder that trains.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from lasagna.errors import ConfigError
from lasagna.masks.image import load_image, read_image_bytes
from lasagna.network.model import LasagnaModel
from lasagna.network.vision import EncodedImages, PreparedImage
from lasagna.progress import progress_bar
from training.engine.feature_store import FeatureStore, Stored

if TYPE_CHECKING:
    from rich.console import Console

Size = tuple[int, int]


@dataclass(frozen=True)
class PhotoFeatures:
    """One photo on its way into a step.

    Attributes:
        key: Where its features are kept.
        stored: Its features, or None where they are still to be computed.
        pixels: Input of the encoder, or None where `stored` is there.
        input_size, content_size, original_size: As in `PreparedImage`, (height, width): how label maps are brought to
            the decoder's masks.
    """

    key: str
    stored: Stored | None
    pixels: dict[str, Tensor] | None
    input_size: Size
    content_size: Size
    original_size: Size


class FrozenEncoder:
    """Stands for `model.encoder` in a training step.

    Args:
        model: Its encoder must not train: no parameter of it requires a gradient.
        store: Where the outputs are kept.

    Raises:
        ConfigError: A part of the encoder trains.
    """

    def __init__(self, model: LasagnaModel, store: FeatureStore) -> None:
        require_frozen(model)
        self.model, self.store = model, store
        self._identity = encoder_digest(model).encode()

    def key(self, content: bytes) -> str:
        """Where the features of an image file are kept: a hash of its content and of the encoder."""
        return hashlib.sha256(self._identity + hashlib.sha256(content).digest()).hexdigest()

    def read(self, photo: Path | bytes) -> PhotoFeatures:
        """The features of an image file, or what they are computed from. Raises ImageError for a broken image."""
        content = photo if isinstance(photo, bytes) else read_image_bytes(photo)
        key = self.key(content)
        stored = self.store.get(key)
        if stored is not None:
            sizes = [(int(height), int(width)) for height, width in stored.notes["sizes"]]
            return PhotoFeatures(key, stored, None, *sizes)
        image = load_image(content, name="the image" if isinstance(photo, bytes) else str(photo))
        prepared: PreparedImage = self.model.encoder.prepare(np.asarray(image))
        sizes = [prepared.input_size, prepared.content_size, prepared.original_size]
        return PhotoFeatures(key, None, prepared.pixels, *sizes)

    def encode(self, photos: Sequence[PhotoFeatures]) -> EncodedImages:
        """What `model.encoder` gives for a batch, in its precision and on its device; what is missing is computed,
        in one batch, and kept.

        Raises:
            ConfigError: The photos are of several prepared shapes, which no encoder takes in one batch.
        """
        shapes = {photo.input_size for photo in photos}
        if len(shapes) != 1:
            raise ConfigError(f"a batch has photos of one prepared shape, not of {sorted(shapes)}; batch them by shape")
        rows = [photo.stored for photo in photos]
        missing = [i for i, row in enumerate(rows) if row is None]
        if missing:
            # The same features whether or not they had been kept before.
            for i, row in zip(missing, self._compute([photos[i] for i in missing]), strict=True):
                rows[i] = row
        parts = [row.tensors for row in rows if row is not None]
        weight = next(self.model.encoder.parameters())
        return _join({name: torch.cat([part[name].to(weight) for part in parts]) for name in parts[0]})

    def _compute(self, photos: Sequence[PhotoFeatures]) -> list[Stored]:
        encoder = self.model.encoder
        weight = next(encoder.parameters())
        inputs = [photo.pixels or {} for photo in photos]
        pixels = {name: torch.stack([one[name] for one in inputs]).to(weight) for name in inputs[0]}
        was_training = encoder.training
        encoder.eval()
        try:
            # In the weights' own precision: what is kept must not depend on the step that happened to compute it.
            with torch.no_grad(), torch.autocast(weight.device.type, enabled=False):
                encoded: EncodedImages = encoder(pixels)
        finally:
            encoder.train(was_training)
        found = []
        for i, photo in enumerate(photos):
            sizes = [photo.input_size, photo.content_size, photo.original_size]
            found.append(self.store.put(photo.key, _split(encoded[i]), {"sizes": sizes}))
        return found

    def fill(
        self, photos: Sequence[Path], console: "Console", batch_size: int = 1, rank: int = 0, processes: int = 1
    ) -> int:
        """Computes what is not kept yet, with a progress bar.

        Args:
            photos: Image files; one that is listed twice is computed once.
            console: Shows the bar.
            batch_size: Photos per call of the encoder.
            rank, processes: This process does its share of the photos.

        Returns:
            How many were computed.

        Raises:
            ImageError: An image is broken.
            ConfigError: They do not fit below the store's limit, and would be evicted before they are used, or the
                disk is full.
        """
        mine = list(dict.fromkeys(photos))[rank::processes]
        waiting: dict[Size, list[PhotoFeatures]] = {}
        computed = 0
        with progress_bar(console, "features", len(mine)) as advance:
            for path in mine:
                photo = self.read(path)
                if photo.stored is None:
                    batch = waiting.setdefault(photo.input_size, [])
                    batch.append(photo)
                    if len(batch) == batch_size:
                        computed += len(self._compute(waiting.pop(photo.input_size)))
                        self._check_room(computed, batch_size, len(mine) * processes)
                advance()
            for batch in waiting.values():
                computed += len(self._compute(batch))
        return computed

    def _check_room(self, computed: int, batch_size: int, total: int) -> None:
        if self.store.is_full:
            raise ConfigError(f"{self.store.folder}: nothing more could be written, see the log; make room and go on")
        if self.store.limit is None or computed > batch_size:
            return
        each = self.store.size() / max(1, len(self.store))
        if each * total > self.store.limit:
            raise ConfigError(
                f"the features of {total} photos take about {each * total / 2**30:.1f} GiB, the limit of "
                f"{self.store.folder} is {self.store.limit / 2**30:.1f} GiB; raise it"
            )


def require_frozen(model: LasagnaModel) -> None:
    """Raises ConfigError where a parameter of the image encoder trains.

    The small model's encoder is one such: of its backbone only the first stages are frozen, and the pyramid above
    trains, so that none of its outputs stays the same.
    """
    trained = [name for name, parameter in model.encoder.named_parameters() if parameter.requires_grad]
    if trained:
        total = sum(1 for _ in model.encoder.parameters())
        raise ConfigError(
            f"features can be kept only of an image encoder that does not train; {len(trained)} of its {total} "
            f"parameters do, such as encoder.{trained[0]}. Freeze the encoder (take it out of what the recipe trains), "
            "or train without kept features"
        )


def encoder_digest(model: LasagnaModel) -> str:
    """A hash of the image encoder: its weights, its configuration, and what its preprocessing makes of a test image.

    The last stands for the preprocessing's parameters, and changes with them and with the code alike.
    """
    encoder = model.encoder
    digest = hashlib.sha256(json.dumps([type(encoder).__name__, asdict(encoder.vision)], default=str).encode())
    for name, tensor in sorted(encoder.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(_bytes(tensor))
    probe = np.random.default_rng(0).integers(0, 256, (37, 53, 3), np.uint8)
    for name, tensor in sorted(encoder.prepare(probe).pixels.items()):
        digest.update(name.encode() + _bytes(tensor))
    return digest.hexdigest()


def _bytes(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes()


def _split(encoded: EncodedImages) -> dict[str, Tensor]:
    """The tensors of `EncodedImages` by name."""
    named = {"tokens": encoded.tokens, "embedding": encoded.embedding, "pixel_embedding": encoded.pixel_embedding}
    if encoded.skips is not None:
        named |= {"skip8": encoded.skips[0], "skip4": encoded.skips[1]}
    return {name: tensor for name, tensor in named.items() if tensor is not None}


def _join(tensors: Mapping[str, Tensor]) -> EncodedImages:
    """The inverse of `_split`."""
    skips = (tensors["skip8"], tensors["skip4"]) if "skip8" in tensors else None
    return EncodedImages(tensors["tokens"], tensors["embedding"], tensors.get("pixel_embedding"), skips)
