"""Features of a frozen encoder: the same losses with and without, and nothing kept that could be wrong."""

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from lab.bench.features import step_loss
from lasagna import Lasagna
from lasagna.errors import ConfigError, ImageError
from lasagna.masks.image import load_image
from lasagna.network.config import DecoderConfig, ModelConfig, VisionConfig
from lasagna.network.model import LasagnaModel
from lasagna.network.vision import EncodedImages
from lasagna.prompt.dialect import PromptFormat
from lasagna.prompt.sequences import Prompt
from lasagna.prompt.tokenizer import LabelTokenizer
from training.engine.feature_store import FeatureStore
from training.engine.features import FrozenEncoder, encoder_digest

TINY = VisionConfig(
    kind="clip-sam",
    image_size=224,
    clip={
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
    },
    sam={"embed_dim": 32, "depth": 2, "num_heads": 2, "global_attn_indexes": [1]},
)


@pytest.fixture(scope="module")
def tokenizer() -> LabelTokenizer:
    return Lasagna.random().tokenizer


def make(tokenizer: LabelTokenizer, seed: int = 0, vision: VisionConfig = TINY) -> LasagnaModel:
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "max_position_embeddings": 4096,
    }
    decoder = DecoderConfig(width=16, heads=2, mlp_dim=32)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = LasagnaModel(ModelConfig(text=text, vision=vision, decoder=decoder))
    model.encoder.requires_grad_(False)
    return model.train()


@pytest.fixture
def model(tokenizer: LabelTokenizer) -> LasagnaModel:
    return make(tokenizer)


@pytest.fixture
def photos(tmp_path: Path) -> list[Path]:
    rng = np.random.default_rng(0)
    paths = [tmp_path / f"{i}.png" for i in range(3)]
    for path, shape in zip(paths, [(40, 60, 3), (60, 40, 3), (50, 50, 3)], strict=True):
        Image.fromarray(rng.integers(0, 256, shape, np.uint8)).save(path)
    return paths


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    return FeatureStore(tmp_path / "features")


def encode_directly(model: LasagnaModel, paths: list[Path]) -> EncodedImages:
    prepared = [model.encoder.prepare(np.asarray(load_image(path))) for path in paths]
    pixels = {name: torch.stack([one.pixels[name] for one in prepared]) for name in prepared[0].pixels}
    encoded: EncodedImages = model.encoder(pixels)
    return encoded


def forbid(model: LasagnaModel, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> None:
        raise AssertionError("the encoder ran")

    monkeypatch.setattr(model.encoder, "forward", refuse)


def test_features_are_the_encoders_to_half_precision(
    model: LasagnaModel, photos: list[Path], store: FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    features, direct = FrozenEncoder(model, store), encode_directly(model, photos)
    computed = features.encode([features.read(path) for path in photos])
    forbid(model, monkeypatch)
    kept = features.encode([features.read(path) for path in photos])
    for name in ("tokens", "embedding"):
        value, expected = getattr(kept, name), getattr(direct, name)
        assert value.dtype == expected.dtype == torch.float32
        # Half precision keeps 11 bits; a batch of another size may round differently before that.
        torch.testing.assert_close(value, expected, rtol=2**-10, atol=1e-5)
        torch.testing.assert_close(value, getattr(computed, name), rtol=0, atol=0)
    assert model.encoder.training


def test_losses_and_gradients_are_the_same(
    model: LasagnaModel, tokenizer: LabelTokenizer, photos: list[Path], store: FeatureStore
) -> None:
    prompt = Prompt(PromptFormat(max_length=4096), tokenizer, model.encoder.num_tokens)
    features = FrozenEncoder(model, store)
    features.fill(photos, Console(quiet=True))
    labels = torch.from_numpy(np.random.default_rng(1).integers(-2, 3, (3, 56, 56)))
    names = ("sky", "road", "cat", "dog")
    results = []
    for encoded in (encode_directly(model, photos), features.encode([features.read(path) for path in photos])):
        model.zero_grad()
        loss = step_loss(model, prompt, encoded, names, labels, random.Random(0))
        loss.backward()
        gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        results.append((loss.item(), gradients))
    (direct, gradients), (kept, kept_gradients) = results
    assert direct > 0.5
    assert kept == pytest.approx(direct, rel=1e-3)
    assert gradients.keys() == kept_gradients.keys()
    assert any("language_model" in name for name in gradients)
    assert any("mask_decoder" in name for name in gradients)
    assert not any(name.startswith("encoder") for name in gradients)
    own = torch.cat([value.flatten() for value in gradients.values()])
    other = torch.cat([value.flatten() for value in kept_gradients.values()])
    assert (own - other).norm() < 5e-3 * own.norm()


def test_sizes_come_with_the_features(model: LasagnaModel, photos: list[Path], store: FeatureStore) -> None:
    features = FrozenEncoder(model, store)
    before = features.read(photos[0])
    features.encode([before])
    after = features.read(photos[0])
    assert (before.stored, after.pixels) == (None, None)
    for photo in (before, after):
        assert (photo.input_size, photo.content_size, photo.original_size) == ((224, 224), (149, 224), (40, 60))


def test_a_batch_of_kept_and_new_photos_keeps_its_order(
    model: LasagnaModel, photos: list[Path], store: FeatureStore
) -> None:
    features = FrozenEncoder(model, store)
    features.encode([features.read(photos[1])])
    mixed = features.encode([features.read(path) for path in photos])
    torch.testing.assert_close(mixed.embedding, encode_directly(model, photos).embedding, rtol=2**-10, atol=1e-5)
    assert len(store) == 3


def test_a_renamed_photo_is_found_and_a_changed_one_is_not(
    model: LasagnaModel, photos: list[Path], store: FeatureStore
) -> None:
    features = FrozenEncoder(model, store)
    features.encode([features.read(photos[0])])
    moved = photos[0].rename(photos[0].with_name("moved.png"))
    assert features.read(moved).stored is not None
    assert features.read(moved.read_bytes()).stored is not None
    Image.open(moved).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(moved)
    assert features.read(moved).stored is None


def changed_weight(model: LasagnaModel) -> None:
    with torch.no_grad():
        next(model.encoder.sam.parameters()).flatten()[3] += 1e-3


def changed_precision(model: LasagnaModel) -> None:
    model.encoder.bfloat16()


def changed_preprocessing(model: LasagnaModel) -> None:
    prepare = model.encoder.prepare
    model.encoder.prepare = lambda image: prepare(image[::-1])


@pytest.mark.parametrize("change", [changed_weight, changed_precision, changed_preprocessing])
def test_features_of_another_encoder_are_not_found(model, photos, store, change) -> None:  # type: ignore[no-untyped-def]
    features = FrozenEncoder(model, store)
    features.encode([features.read(photos[0])])
    change(model)
    assert FrozenEncoder(model, store).read(photos[0]).stored is None


def test_the_digest_is_the_same_in_every_process(tokenizer: LabelTokenizer) -> None:
    assert encoder_digest(make(tokenizer)) == encoder_digest(make(tokenizer))
    assert encoder_digest(make(tokenizer)) != encoder_digest(make(tokenizer, seed=1))


def test_the_steps_autocast_does_not_change_what_is_kept(
    model: LasagnaModel, photos: list[Path], store: FeatureStore
) -> None:
    features = FrozenEncoder(model, store)
    with torch.autocast("cpu", torch.bfloat16):
        kept = features.encode([features.read(photos[0])])
    torch.testing.assert_close(kept.embedding, encode_directly(model, photos[:1]).embedding, rtol=2**-10, atol=1e-5)


def test_fill_computes_each_photo_once(
    model: LasagnaModel, photos: list[Path], store: FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    features, console = FrozenEncoder(model, store), Console(quiet=True)
    assert features.fill([*photos, photos[0]], console, batch_size=2) == 3
    forbid(model, monkeypatch)
    assert features.fill(photos, console) == 0
    assert features.encode([features.read(path) for path in photos]).tokens.shape == (3, 4, 32)


def test_processes_share_the_photos(model: LasagnaModel, photos: list[Path], store: FeatureStore) -> None:
    features, console = FrozenEncoder(model, store), Console(quiet=True)
    assert [features.fill(photos, console, rank=rank, processes=2) for rank in range(2)] == [2, 1]


def test_fill_says_when_the_limit_is_too_small(model: LasagnaModel, photos: list[Path], tmp_path: Path) -> None:
    features = FrozenEncoder(model, FeatureStore(tmp_path / "features", limit=20_000))
    with pytest.raises(ConfigError, match=r"features of 3 photos take about .* raise it"):
        features.fill(photos, Console(quiet=True))


def test_a_broken_photo_is_named(model: LasagnaModel, photos: list[Path], store: FeatureStore) -> None:
    photos[0].write_bytes(photos[0].read_bytes()[:100])
    with pytest.raises(ImageError, match=r"0\.png is damaged"):
        FrozenEncoder(model, store).read(photos[0])


@pytest.mark.parametrize("part", ["embedding_out", "backbone.blocks.2"])
def test_an_encoder_that_trains_is_refused(store: FeatureStore, part: str) -> None:
    model = Lasagna.random().model
    model.encoder.requires_grad_(False)
    model.encoder.get_submodule(part).requires_grad_(True)
    with pytest.raises(ConfigError, match=rf"does not train; \d+ of its \d+ parameters do, such as encoder\.{part}"):
        FrozenEncoder(model, store)


def test_the_small_models_encoder_can_be_kept_where_all_of_it_is_frozen(
    photos: list[Path], store: FeatureStore
) -> None:
    model = Lasagna.random().model
    model.encoder.requires_grad_(False)
    features = FrozenEncoder(model, store)
    for path in photos:
        features.encode([features.read(path)])
        kept, direct = features.encode([features.read(path)]), encode_directly(model, [path])
        assert kept.pixel_embedding is not None
        assert kept.skips is not None
        assert direct.pixel_embedding is not None
        assert direct.skips is not None
        torch.testing.assert_close(kept.pixel_embedding, direct.pixel_embedding, rtol=2**-10, atol=1e-4)
        for mine, own in zip(kept.skips, direct.skips, strict=True):
            torch.testing.assert_close(mine, own, rtol=2**-10, atol=1e-4)
    with pytest.raises(ConfigError, match="one prepared shape"):
        features.encode([features.read(path) for path in photos])
